//! The arguments of the commands that mount and unmount.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::ArgAction;

use super::options;
use crate::error::MountError;

/// Arguments of `mount`.
#[derive(Debug, clap::Args)]
#[command(override_usage = "unionfs mount [OPTIONS] LOWER[:LOWER...] UPPER MOUNTPOINT
       unionfs mount [OPTIONS] --read-only LOWER[:LOWER...] MOUNTPOINT
       unionfs mount [OPTIONS] -o lowerdir=LOWER[:LOWER...][,upperdir=UPPER][,OPT]... MOUNTPOINT")]
#[command(after_help = "Mount options (-o):
  lowerdir=LOWER[:LOWER...][::DATA...], upperdir=UPPER, workdir=DIR, init=DIR
                         the layers, in place of arguments but MOUNTPOINT; without upperdir the
                         mount is read-only
  lowerdir+=LOWER, datadir+=DATA
                         one more lower or data-only layer at the end; a colon stands for itself
  redirect_dir=on|off|follow|nofollow
                         rename directories of lower layers in place (on, the default); copy them
                         instead (EXDEV) but follow redirects in the layers (off, follow), or not
                         even that (nofollow)
  index=on|off           keep hardlinks of lower files together when these change (default: on)
  metacopy=on|off        copy no data up when only attributes of a lower file change (default: off)
  xino=on|off|auto, uuid=on|off|null|auto
                         accepted; inode numbers are always unique
  userxattr[=on|off]     keep private attributes in user.overlay. instead of trusted.overlay.
                         (default: what the upper layer permits)
  volatile               skip every sync; a crash may leave the upper layer unusable
  ro, rw                 refuse or permit writes through the mount
  nodev, nosuid, noexec  ignore device nodes, set-ID bits, programs; dev, suid and exec undo them
  sync                   every write is on the device before it returns; async undoes it
  private                the mount does not appear in other mount namespaces
  context=LABEL          the label of all files for SELinux; in quotes when it has commas
  noatime, relatime, strictatime, nodiratime, dirsync
                         flags of the mount, as in mount(8); access times are those of the layers
  allow_other[=on|off]   let other users in (the default for root)
  default_permissions    accepted; always so
  timeout=SECONDS        how long the kernel may keep names and attributes (default: no limit)
  passthrough=on|off     let the kernel read and write files itself where permitted (default: on)
  io_uring=on|off|auto   let requests come over io_uring, which is much faster and must be permitted by
                         the kernel: by Y in /sys/module/fuse/parameters/enable_uring, Linux 6.14
                         (default: auto, where permitted; on: no mount without it)
  sandbox=on|off         once mounted, give up the capabilities and system calls that serving does not
                         take; off lets debuggers of the same user in (default: on)
  uidmapping=LAYER-ID:SHOWN-ID:COUNT[:...], gidmapping=LAYER-ID:SHOWN-ID:COUNT[:...]
                         owners that the mount shows for those in the layers, and stores for those
                         that make and change files
  squash_to_uid=UID, squash_to_gid=GID, squash_to_root
                         show every file as owned by this user, this group, or root
  xattr_permissions=0|1|2
                         keep owners and modes in attributes of the files, of security. (1) or of
                         user. (2), for filesystems and users that cannot set them (default: 0)
  static_nlink           every directory has one link
  noacl                  no POSIX ACLs in the mount
  size=BYTES[k|m|g|t], size=N%
                         how much the files of the upper layer may take together, or which part of its
                         filesystem; more is ENOSPC (default: no limit)
  inodes=N[k|m|g], nr_inodes=N
                         how many files and directories the upper layer may hold (default: no limit)
  threads=N              the most worker threads (default: two per CPU, 4 to 16; with io_uring the
                         most for each CPU, 8)
  fsname=NAME            source shown in the mount table (default: unionfs)
  fsync=0|1, threaded=0|1, clone_fd, max_write=BYTES, subtype=NAME
                         of fuse-overlayfs: fsync=0 is volatile, threaded=0 is threads=1, the others
                         mean nothing
  log=FILE               append the log of a detached mount to FILE; SIGUSR1 to the daemon adds its
                         statistics: requests by kind, live objects, memory
In a value, `\\,` stands for a comma, and in a path `\\:` for a colon and `\\\\` for a backslash.

Environment:
  UNIONFS_LOG            what to log: error, warn (the default), info, debug, trace, or a filter
                         such as unionfs=debug

Examples:
  unionfs mount lower1:lower2 upper /mnt/root
  unionfs mount --create --init container/init image2:image1:base container/upper /mnt/root
  unionfs mount --read-only image2:image1:base /mnt/image
  unionfs mount -o lowerdir=lower1:lower2,upperdir=upper,workdir=work /mnt/root")]
pub struct MountArgs {
    /// Lower layers, topmost first; never changed. `\:` stands for a colon in a name, `\\` for a
    /// backslash. After `::` comes a data-only layer, which shows nothing by itself
    // When options name the layers, the only path there is, which then is the mount point.
    // What must be there depends on the options: `missing` tells.
    #[arg(value_name = "LOWER[:LOWER...]")]
    pub lowers: Option<OsString>,

    /// Upper layer: takes everything that is new or changed
    // With --read-only, the only path there is, which then is the mount point.
    #[arg(value_name = "UPPER")]
    pub upper: Option<PathBuf>,

    /// Directory where the merged tree appears
    #[arg(value_name = "MOUNTPOINT", conflicts_with = "read_only")]
    pub mountpoint: Option<PathBuf>,

    /// Mount the lower layers alone, without an upper layer
    #[arg(long)]
    pub read_only: bool,

    /// Init layer between the upper and the lowers: files that belong to this container alone, such as
    /// etc/hosts; changed in place, so that they never get into the upper
    #[arg(long, value_name = "DIR")]
    pub init: Option<PathBuf>,

    /// Work directory, on the filesystem of UPPER [default: .NAME.work beside UPPER]
    #[arg(long, value_name = "DIR", conflicts_with = "read_only")]
    pub work: Option<PathBuf>,

    /// Create UPPER, the work directory and MOUNTPOINT when they are missing
    #[arg(long)]
    pub create: bool,

    /// Stay in the foreground and log to standard error; SIGINT and SIGTERM unmount
    #[arg(long, short = 'f')]
    pub foreground: bool,

    /// Mount options, see below
    #[arg(short = 'o', value_name = "OPT[,OPT]...", action = ArgAction::Append)]
    pub options: Vec<OsString>,
}

impl MountArgs {
    /// The argument that is missing. How many there must be depends on whether options name the layers.
    pub(super) fn missing(&self) -> Option<&'static str> {
        match (self.layers_named(), &self.lowers, &self.upper, &self.mountpoint) {
            (true, None, ..) => Some("MOUNTPOINT"),
            (true, ..) => None,
            (_, None, ..) => Some("LOWER[:LOWER...]"),
            (_, _, Some(_), Some(_)) => None,
            (_, _, Some(_), None) if self.read_only => None,
            (_, _, None, _) if !self.read_only => Some("UPPER"),
            _ => Some("MOUNTPOINT"),
        }
    }

    /// Whether options name the layers. A wrong option will be told of in any case.
    fn layers_named(&self) -> bool {
        options::parse(&self.options).map_or(true, |parsed| !parsed.layers.is_empty())
    }
}

/// Arguments of `run`.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// Bind a directory or file of the host in the tree, writable or read-only. What is below it there
    /// never gets into the upper layer; the empty mount point does, if the tree has none
    #[arg(long = "volume", short = 'v', value_name = "HOST:PATH[:ro]", action = ArgAction::Append)]
    pub volumes: Vec<OsString>,

    /// What to mount.
    #[command(flatten)]
    pub mount: MountArgs,

    /// Command, which is looked for in the tree, and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
}

impl RunArgs {
    /// The argument that is missing: as for `mount`, but for the mount point.
    pub(super) fn missing(&self) -> Option<&'static str> {
        let mount = &self.mount;
        match (mount.layers_named(), &mount.lowers, &mount.upper) {
            (true, ..) => None,
            (_, None, _) => Some("LOWER[:LOWER...]"),
            (_, _, None) if !mount.read_only => Some("UPPER"),
            _ => None,
        }
    }

    /// The arguments of a mount, with an empty mount point when none is named, and the command.
    ///
    /// # Errors
    /// An option of `mount` that makes no sense here.
    pub fn split(self) -> Result<(MountArgs, Vec<OsString>), MountError> {
        let mut mount = self.mount;
        if mount.foreground {
            let reason = "has no meaning here, since a command is run and waited for; leave it out";
            return Err(MountError::option("--foreground", reason));
        }
        if mount.layers_named() {
            mount.lowers.get_or_insert_default();
        } else if mount.read_only {
            mount.upper.get_or_insert_default();
        } else {
            mount.mountpoint.get_or_insert_default();
        }
        Ok((mount, self.command))
    }
}

/// Arguments of `umount`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  unionfs umount /mnt/root
  unionfs umount --lazy /mnt/root

Plain umount and fusermount3 -u do the same.")]
pub struct UmountArgs {
    /// Where the tree is mounted
    #[arg(value_name = "MOUNTPOINT")]
    pub mountpoint: PathBuf,

    /// Take a tree that is in use out of sight now; it ends when the last file in it is closed
    #[arg(long, short = 'l')]
    pub lazy: bool,
}

/// Arguments of `generate`.
#[derive(Debug, clap::Args)]
pub struct GenerateArgs {
    /// An existing directory for the files
    #[arg(value_name = "DIR")]
    pub directory: PathBuf,
}
