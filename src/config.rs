//! What a mount is made of: its layers and options, as the command line or a caller gives them.

pub mod ids;

use std::path::PathBuf;
use std::time::Duration;

use ids::Ids;

/// The directories of a mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayerPaths {
    /// Read-only lower layers, topmost first. At least one, at most [`MAX_LOWERS`].
    pub lowers: Vec<PathBuf>,
    /// Data-only lower layers, in the order in which they are asked (overlayfs.rst, "Data-only lower
    /// layers"): they show nothing, and hold data that files of the lowers name by path. They count for
    /// [`MAX_LOWERS`].
    pub data: Vec<PathBuf>,
    /// The container init layer, writable in place, between the upper and the lowers.
    pub init: Option<PathBuf>,
    /// The read-write layer. Without it the mount is read-only.
    pub upper: Option<PathBuf>,
    /// Where copies are prepared and indexes kept: same filesystem as the upper. Required with an
    /// upper by the time the mount is made (the command line fills in the default).
    pub work: Option<PathBuf>,
    /// Where copies for the init layer are prepared: same mount as the init layer. Required when that
    /// is another mount than the upper's (rename(2): EXDEV), since what replaces an init file must be
    /// renamed into place.
    pub init_work: Option<PathBuf>,
}

/// The largest number of lower layers, as in the kernel's overlayfs (`OVL_MAX_STACK`).
pub const MAX_LOWERS: usize = 500;

/// What redirects are good for (`redirect_dir=`): where a directory, or the data of a file, lies in lower
/// layers under another name.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum RedirectDir {
    /// A directory with lower parts is renamed by writing one (`on`).
    #[default]
    On,
    /// None is written: a rename of such a directory fails by EXDEV. Those in the layers are followed
    /// (`off`, `follow`).
    Follow,
    /// Those in the layers are not followed either: what has one cannot be opened, EPERM (`nofollow`).
    NoFollow,
}

/// Access times of a mount, as in mount(8).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Atime {
    /// What the kernel does unasked (`atime`).
    #[default]
    Default,
    /// None (`noatime`).
    No,
    /// When older than the last change (`relatime`).
    Relative,
    /// Always (`strictatime`).
    Strict,
}

/// Whether requests come over io_uring (`io_uring=`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IoUring {
    /// Where the kernel permits it (`auto`).
    #[default]
    Auto,
    /// Not mounting at all where it does not (`on`).
    On,
    /// Never (`off`).
    Off,
}

/// Where owner and permissions of a file are kept (`xattr_permissions=`), for layers on filesystems, or of
/// users, that cannot have other owners. The forms are those of fuse-overlayfs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Permissions {
    /// In the inode (`0`).
    #[default]
    Inode,
    /// In `security.fuseoverlayfs.override_stat`, which takes privilege (`1`).
    Privileged,
    /// In `user.containers.override_stat` (`2`).
    Containers,
}

/// How much the upper may hold (`size=`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// So many bytes.
    Bytes(u64),
    /// A part of its filesystem, in hundredths.
    Percent(u8),
}

/// Options of a mount (`-o`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// No writes through the mount (`ro`).
    pub read_only: bool,
    /// Private xattrs in the `user.overlay.` namespace instead of `trusted.overlay.` (`userxattr`).
    /// `None`: decided by what the upper permits.
    pub userxattr: Option<bool>,
    /// Names of the upper that begin with `.wh.` are whiteouts unless the layer says otherwise, as in lowers: container
    /// engines write image layers so for programs that mount, and compare them mounted as uppers.
    pub wh_upper: bool,
    /// A read-only mount shows the modification time of a regular file that has no part of a second one nanosecond
    /// later. podman and buildah find what a container has changed by comparing its mount to a read-only one of its
    /// image, take times for equal where either has full seconds only, and those of image layers do, being
    /// from archives: a change of a file within the second of its time would get lost.
    pub for_comparison: bool,
    /// Skip every sync (`volatile`, `fsync=0`).
    pub volatile: bool,
    /// A mount that skips syncs marks its work directory, which is refused after a crash (`volatile`, not `fsync=0`).
    pub volatile_mark: bool,
    /// Ignore device nodes (`nodev`).
    pub nodev: bool,
    /// Ignore set-user-ID and set-group-ID bits (`nosuid`).
    pub nosuid: bool,
    /// No execution of programs (`noexec`).
    pub noexec: bool,
    /// Access times (`noatime`, `relatime`, `strictatime`).
    pub atime: Atime,
    /// No access times of directories (`nodiratime`).
    pub nodiratime: bool,
    /// Every write is on the device before it returns (`sync`).
    pub sync: bool,
    /// The mount flag of synchronous directories (`dirsync`).
    pub dirsync: bool,
    /// Other users may enter (`allow_other`; the default for root).
    pub allow_other: Option<bool>,
    /// The way that requests come (`io_uring=on|off|auto`).
    pub io_uring: IoUring,
    /// The most worker threads, with io_uring for each CPU; `None` takes the default for the machine
    /// (`threads=N`).
    pub threads: Option<usize>,
    /// Name shown as the source in the mount table (`fsname=`).
    pub fsname: Option<String>,
    /// I/O through the kernel where permitted (`passthrough=on|off`).
    pub passthrough: bool,
    /// Leave a lower file's data where it is while only its attributes change (`metacopy=on|off`).
    pub metacopy: bool,
    /// Redirects (`redirect_dir=on|off|follow|nofollow`).
    pub redirect_dir: RedirectDir,
    /// Keep the names of a lower file together when it is copied up (`index=on|off`).
    pub index: bool,
    /// How long the kernel may keep names and attributes (`timeout=SECONDS`); `None`: without limit,
    /// since nobody else changes the layers.
    pub timeout: Option<Duration>,
    /// A file that a detached mount appends its log to (`log=PATH`).
    pub log: Option<PathBuf>,
    /// How owners are translated between the layers and the mount.
    pub ids: Ids,
    /// Where owners and permissions are kept.
    pub permissions: Permissions,
    /// Every directory has one link (`static_nlink`).
    pub static_nlink: bool,
    /// POSIX ACLs; without, there are none in the mount (`noacl`).
    pub acl: bool,
    /// The label of all files for SELinux (`context=`).
    pub context: Option<String>,
    /// How much the upper may hold (`size=BYTES`, `size=N%`); `None`: as much as its filesystem.
    pub size: Option<Size>,
    /// How many objects the upper may hold (`inodes=N`).
    pub inodes: Option<u64>,
    /// The mount is not propagated to peers of the mount that it lies on (`private`).
    pub private: bool,
    /// The daemon gives up what it does not need once the mount is made (`sandbox=on|off`).
    pub sandbox: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            read_only: false,
            userxattr: None,
            wh_upper: false,
            for_comparison: false,
            volatile: false,
            volatile_mark: false,
            nodev: false,
            nosuid: false,
            noexec: false,
            atime: Atime::Default,
            nodiratime: false,
            sync: false,
            dirsync: false,
            allow_other: None,
            io_uring: IoUring::Auto,
            threads: None,
            fsname: None,
            passthrough: true,
            metacopy: false,
            redirect_dir: RedirectDir::On,
            index: true,
            timeout: None,
            log: None,
            ids: Ids::default(),
            permissions: Permissions::Inode,
            static_nlink: false,
            acl: true,
            context: None,
            size: None,
            inodes: None,
            private: false,
            sandbox: true,
        }
    }
}

/// A whole mount: layers, place and options.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MountConfig {
    /// The layers.
    pub layers: LayerPaths,
    /// Where the merged tree appears.
    pub mountpoint: PathBuf,
    /// The options.
    pub options: Options,
}
