//! The arguments of the commands.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{ArgAction, Parser, Subcommand};

/// Layered union filesystem: several directories appear as one
#[derive(Debug, Parser)]
#[command(name = "unionfs", version, about, max_term_width = 100)]
#[command(after_help = "Examples:
  unionfs demo
  unionfs mount --create image2:image1:base upper /mnt/root
  unionfs umount /mnt/root")]
pub struct Args {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Mount layers as one tree
    Mount(MountArgs),
    /// Unmount a tree
    #[command(visible_alias = "unmount")]
    Umount(UmountArgs),
    /// Show a union filesystem at work, on sample layers in a temporary directory
    #[command(after_help = "Example:
  unionfs demo

Needs /dev/fuse and the right to mount. Everything is unmounted and removed at the end.")]
    Demo,
}

/// Arguments of `mount`.
#[derive(Debug, clap::Args)]
#[command(override_usage = "unionfs mount [OPTIONS] LOWER[:LOWER...] UPPER MOUNTPOINT
       unionfs mount [OPTIONS] --read-only LOWER[:LOWER...] MOUNTPOINT")]
#[command(after_help = "Mount options (-o):
  ro, rw                 refuse or permit writes through the mount
  noatime                never update access times
  nodev, nosuid, noexec  ignore device nodes, set-ID bits, programs; dev, suid and exec undo them
  allow_other[=on|off]   let other users in (the default for root)
  userxattr[=on|off]     keep private attributes in user.overlay. instead of trusted.overlay.
                         (default: what the upper layer permits)
  volatile               skip every sync; a crash may leave the upper layer unusable
  passthrough=on|off     let the kernel read and write files itself where permitted (default: on)
  threads=N              worker threads (default: two per CPU, 4 to 16)
  fsname=NAME            source shown in the mount table (default: unionfs)
  log=FILE               append the log of a detached mount to FILE; SIGUSR1 to the daemon adds its
                         statistics: requests by kind, live objects, memory

Environment:
  UNIONFS_LOG            what to log: error, warn (the default), info, debug, trace, or a filter
                         such as unionfs=debug,fuser=info

Examples:
  unionfs mount lower1:lower2 upper /mnt/root
  unionfs mount --create --init container/init image2:image1:base container/upper /mnt/root
  unionfs mount --read-only image2:image1:base /mnt/image")]
pub struct MountArgs {
    /// Lower layers, topmost first; never changed. `\:` stands for a colon in a name, `\\` for a
    /// backslash
    #[arg(value_name = "LOWER[:LOWER...]")]
    pub lowers: OsString,

    /// Upper layer: takes everything that is new or changed
    // With --read-only, the only path there is, which then is the mount point.
    #[arg(value_name = "UPPER")]
    pub upper: PathBuf,

    /// Directory where the merged tree appears
    #[arg(value_name = "MOUNTPOINT", required_unless_present = "read_only", conflicts_with = "read_only")]
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

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        for command in Args::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let call = format!("  unionfs {}", command.get_name());
            assert!(help.contains("Example") && help.contains(&call), "{}", command.get_name());
        }
    }

    #[test]
    fn read_only_takes_two_paths() {
        let parse = |args: &[&str]| Args::try_parse_from(args);
        assert!(parse(&["unionfs", "mount", "--read-only", "a:b", "m"]).is_ok());
        assert!(parse(&["unionfs", "mount", "--read-only", "a:b", "u", "m"]).is_err());
        assert!(parse(&["unionfs", "mount", "a:b", "u"]).is_err());
        assert!(parse(&["unionfs", "mount", "a:b", "u", "m"]).is_ok());
    }
}
