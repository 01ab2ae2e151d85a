//! The command line: one command, with its arguments.

use std::ffi::OsString;

use clap::error::ErrorKind;
use clap::{CommandFactory, Parser, Subcommand};

use super::args::{GenerateArgs, MountArgs, RunArgs, UmountArgs};

/// Layered union filesystem: several directories appear as one
#[derive(Debug, Parser)]
#[command(name = "unionfs", version, about, max_term_width = 100)]
#[command(after_help = "Examples:
  unionfs demo
  unionfs mount --create image2:image1:base upper /mnt/root
  unionfs umount /mnt/root
  unionfs run --create image2:image1:base upper -- /bin/sh")]
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
    /// Keep images: import, mount, commit and export them
    Image(super::image::ImageArgs),
    /// List the live mounts
    List(super::list::ListArgs),
    /// Show the layers, options and statistics of a mount, or what serves a path in it
    Inspect(super::inspect::InspectArgs),
    /// Show what the upper layer of a mount, or one without a mount, has changed
    Diff(super::diff::DiffArgs),
    /// Write what an upper layer has changed as a layer of an image
    Commit(super::commit::CommitArgs),
    /// Check an upper layer for what is wrong on disk, repair it, convert its whiteouts
    Check(super::check::CheckArgs),
    /// Make a directory to be mounted from a layer of an image
    Apply(super::apply::ApplyArgs),
    /// Show a union filesystem at work, on sample layers in a temporary directory
    #[command(after_help = "Example:
  unionfs demo

Needs /dev/fuse and the right to mount. Everything is unmounted and removed at the end.")]
    Demo,
    /// Run a command in a tree that is mounted for it
    #[command(
        override_usage = "unionfs run [OPTIONS] LOWER[:LOWER...] UPPER [MOUNTPOINT] -- COMMAND [ARG]...
       unionfs run [OPTIONS] --read-only LOWER[:LOWER...] [MOUNTPOINT] -- COMMAND [ARG]...
       unionfs run [OPTIONS] -o lowerdir=LOWER[:LOWER...][,upperdir=UPPER][,OPT]... [MOUNTPOINT] -- COMMAND [ARG]..."
    )]
    #[command(
        after_help = "The tree is mounted in a mount namespace of its own, on a temporary directory unless MOUNTPOINT is
named, and is the root directory of the command, with /proc, /sys and /dev of the host and the
volumes. When the command ends, what it has left running is killed, and the tree is unmounted. Users
without the right to mount are root in a user namespace, with the ids of /etc/subuid and /etc/subgid
where newuidmap and newgidmap are installed.

The exit status is that of the command; 128 and the number of the signal that ended it; 127 if it is
not found, 126 if it cannot be run, 125 if something else fails.

The mount options (-o) are those of `unionfs mount`, see `unionfs mount --help`.

Examples:
  unionfs run --create image2:image1:base container/upper -- /bin/sh
  unionfs run --volume $PWD:/src --volume ~/.cache:/cache:ro base upper -- make -C /src
  unionfs run --read-only image2:image1:base -- /bin/ls /"
    )]
    #[command(mut_arg("foreground", |arg| arg.hide(true)))]
    #[command(mut_arg("options", |arg| arg.help("Mount options, see `unionfs mount --help`")))]
    Run(RunArgs),
    /// Write completions for shells and manual pages of the commands
    #[command(hide = true)]
    #[command(after_help = "Example:
  unionfs generate target/install")]
    Generate(GenerateArgs),
}

impl Args {
    /// The arguments of the process. Tells of a wrong usage, and ends the process then.
    pub fn read() -> Self {
        Self::read_from(std::env::args_os()).unwrap_or_else(|e| {
            // The statuses of fsck, of which 2 is another.
            if e.use_stderr() && std::env::args_os().nth(1).is_some_and(|command| command == "check") {
                let _ = e.print();
                std::process::exit(super::check::USAGE.into());
            }
            e.exit()
        })
    }

    fn read_from(args: impl IntoIterator<Item = impl Into<OsString> + Clone>) -> Result<Self, clap::Error> {
        let args = Self::try_parse_from(args)?;
        let missing = match &args.command {
            Command::Mount(mount) => mount.missing().map(|missing| ("mount", missing)),
            Command::Run(run) => run.missing().map(|missing| ("run", missing)),
            _ => None,
        };
        missing.map_or(Ok(args), |(command, missing)| Err(missing_error(command, missing)))
    }
}

fn missing_error(name: &str, missing: &str) -> clap::Error {
    let mut command = Args::command();
    command.build();
    let text = format!("the following required argument was not provided: {missing}");
    match command.find_subcommand_mut(name) {
        Some(command) => command.error(ErrorKind::MissingRequiredArgument, text),
        None => command.error(ErrorKind::MissingRequiredArgument, text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let parse = |args: &[&str]| Args::read_from(args.iter().copied());
        assert!(parse(&["unionfs", "mount", "--read-only", "a:b", "m"]).is_ok());
        assert!(parse(&["unionfs", "mount", "--read-only", "a:b", "u", "m"]).is_err());
        assert!(parse(&["unionfs", "mount", "a:b", "u"]).is_err());
        assert!(parse(&["unionfs", "mount", "m"]).is_err());
        assert!(parse(&["unionfs", "mount", "-o", "ro", "m"]).is_err());
        assert!(parse(&["unionfs", "mount", "-o", "lowerdir=a", "m"]).is_ok());
        assert!(parse(&["unionfs", "mount", "a:b", "u", "m"]).is_ok());
    }
}
