//! What a mount is made of: its layers and options, as the command line or a caller gives them.

use std::path::PathBuf;

/// The directories of a mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LayerPaths {
    /// Read-only lower layers, topmost first. At least one, at most [`MAX_LOWERS`].
    pub lowers: Vec<PathBuf>,
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

/// Options of a mount (`-o`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// No writes through the mount (`ro`).
    pub read_only: bool,
    /// Private xattrs in the `user.overlay.` namespace instead of `trusted.overlay.` (`userxattr`).
    /// `None`: decided by what the upper permits.
    pub userxattr: Option<bool>,
    /// Skip every sync (`volatile`).
    pub volatile: bool,
    /// Ignore device nodes (`nodev`).
    pub nodev: bool,
    /// Ignore set-user-ID and set-group-ID bits (`nosuid`).
    pub nosuid: bool,
    /// No execution of programs (`noexec`).
    pub noexec: bool,
    /// No access time updates (`noatime`).
    pub noatime: bool,
    /// Other users may enter (`allow_other`; the default for root).
    pub allow_other: Option<bool>,
    /// Worker threads; `None` takes the default for the machine (`threads=N`).
    pub threads: Option<usize>,
    /// Name shown as the source in the mount table (`fsname=`).
    pub fsname: Option<String>,
    /// I/O through the kernel where permitted (`passthrough=on|off`).
    pub passthrough: bool,
    /// Leave a lower file's data where it is while only its attributes change (`metacopy=on|off`).
    pub metacopy: bool,
    /// A file that a detached mount appends its log to (`log=PATH`).
    pub log: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            read_only: false,
            userxattr: None,
            volatile: false,
            nodev: false,
            nosuid: false,
            noexec: false,
            noatime: false,
            allow_other: None,
            threads: None,
            fsname: None,
            passthrough: true,
            metacopy: false,
            log: None,
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
