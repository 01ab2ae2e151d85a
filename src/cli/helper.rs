//! The program as the helper of others: container engines call it as they call fuse-overlayfs(1), mount(8)
//! and mount.fuse3(8) as the program of a filesystem type.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use clap::{ArgAction, CommandFactory, Parser};

use super::command::Args;
use super::layer_list::Lowers;
use super::mount::{self, Start};
use super::options::{self, NamedLayers, Parsed};
use crate::config::{LayerPaths, MountConfig};
use crate::error::{Errno, MountError};
use crate::format::mountinfo;
use crate::fuse::{mounts, session};

/// The names under which container engines know programs of this kind.
const ENGINE_NAMES: [&str; 1] = ["fuse-overlayfs"];
/// The names under which mount(8) looks for the helper of a filesystem type.
const MOUNT_NAMES: [&str; 3] = ["mount.unionfs", "mount.fuse.unionfs", "mount.fuse3.unionfs"];

/// Options for others than the filesystem: mount(8) itself, systemd, libfuse.
const FOR_OTHERS: [&[u8]; 23] = [
    b"defaults",
    b"auto",
    b"noauto",
    b"user",
    b"users",
    b"nouser",
    b"nousers",
    b"owner",
    b"group",
    b"nofail",
    b"_netdev",
    b"silent",
    b"loud",
    b"nonempty",
    b"kernel_cache",
    b"auto_cache",
    b"splice_read",
    b"splice_write",
    b"splice_move",
    b"async_read",
    b"sync_read",
    b"big_writes",
    b"lazytime",
];

/// Mount layers as one tree, called as fuse-overlayfs is or by mount(8)
#[derive(Debug, Parser)]
#[command(name = "unionfs", version, max_term_width = 100)]
#[command(override_usage = "unionfs [-f] -o lowerdir=LOWER[:LOWER...][,upperdir=UPPER][,OPT]... TARGET
       unionfs SOURCE TARGET -o lowerdir=LOWER[:LOWER...][,upperdir=UPPER][,OPT]...")]
#[command(after_help = "`unionfs --help` lists the commands, `unionfs mount --help` the mount options.

Examples:
  unionfs -o lowerdir=lower1:lower2,upperdir=upper,workdir=work /mnt/root
  mount -t fuse.unionfs unionfs /mnt/root -o lowerdir=lower1:lower2,upperdir=upper")]
struct HelperArgs {
    /// Directory where the merged tree appears, after a source that means nothing
    #[arg(value_name = "TARGET", required = true)]
    paths: Vec<OsString>,

    /// Mount options; without upperdir= the mount is read-only
    #[arg(short = 'o', value_name = "OPT[,OPT]...", action = ArgAction::Append)]
    #[arg(allow_hyphen_values = true)]
    options: Vec<OsString>,

    /// Stay in the foreground and log to standard error; called by mount(8): do not mount
    #[arg(short = 'f')]
    foreground: bool,

    /// Stay in the foreground and log to standard error
    #[arg(short = 'd', long)]
    debug: bool,

    /// Of mount(8): accepted
    #[arg(short = 's', short_alias = 'n', short_alias = 'v', action = ArgAction::Count, hide = true)]
    accepted: u8,

    /// Of mount(8): accepted
    #[arg(short = 't', short_alias = 'N', value_name = "TYPE", action = ArgAction::Append, hide = true)]
    kind: Vec<OsString>,
}

/// The helper's command line.
pub fn command() -> clap::Command {
    HelperArgs::command()
}

/// How the process was called.
enum Called {
    /// By the name of a helper of mount(8).
    ByMount,
    /// By another name of ours, or with helper's arguments.
    ByEngine,
    /// With a command.
    WithCommand,
}

fn called() -> Called {
    let mut args = std::env::args_os();
    let program = args.next().unwrap_or_default();
    let name = Path::new(&program).file_name().unwrap_or_default();
    let is = |names: &[&str]| names.iter().any(|known| name == *known);
    if is(&MOUNT_NAMES) {
        return Called::ByMount;
    }
    let args: Vec<OsString> = args.collect();
    if is(&ENGINE_NAMES) || !names_command(&args) { Called::ByEngine } else { Called::WithCommand }
}

/// Whether the first argument is a command, or a question about them. A word that is none and comes without
/// any options is taken for a misspelt one.
fn names_command(args: &[OsString]) -> bool {
    let Some(first) = args.first() else { return true };
    let ours = Args::command();
    let mut commands = ours.get_subcommands();
    if commands.any(|c| first == c.get_name() || c.get_all_aliases().any(|alias| first == alias)) {
        return true;
    }
    ["help", "--help", "-h", "--version", "-V"].iter().any(|known| first == known)
        || !args.iter().any(|arg| arg.as_encoded_bytes().starts_with(b"-o"))
}

/// Whether the process was called as a helper: by the name of one, or with no command as the first argument.
pub fn is_meant() -> bool {
    !matches!(called(), Called::WithCommand)
}

/// Mounts as the helper's arguments say.
///
/// # Errors
/// A sentence that says what is wrong with the arguments or the system. Nothing is left behind.
pub fn run() -> Result<(), MountError> {
    let args = HelperArgs::parse();
    let by_mount = matches!(called(), Called::ByMount);
    let target = args.paths.last().map(PathBuf::from).unwrap_or_default();
    let mut parsed = options::parse(&args.options)?;
    let ignored = std::mem::take(&mut parsed.unknown);
    let ignored = ignored.into_iter().filter(|option| !is_for_others(option)).collect();
    if parsed.remount {
        return remount(&target, &parsed);
    }
    parsed.options.wh_upper = !by_mount;
    // Called by mount(8) and mount.fuse3(8) there is a source as well.
    parsed.options.for_comparison = !by_mount && args.paths.len() == 1;
    let config = MountConfig { layers: layers(parsed.layers)?, mountpoint: target, options: parsed.options };
    if by_mount && args.foreground {
        return Ok(());
    }
    let foreground = args.debug || args.foreground;
    mount::start(Start { config, create: false, foreground, ignored })
}

/// Whether an option is for another program than the one that mounts (mount(8), fstab(5), systemd.mount(5)).
fn is_for_others(option: &OsStr) -> bool {
    let option = option.as_encoded_bytes();
    let starts = |prefix: &str| option.starts_with(prefix.as_bytes());
    FOR_OTHERS.contains(&option) || starts("x-") || starts("X-") || starts("comment=")
}

/// The layers as the options name them. An empty upper is none, and without one the work directory is of no
/// use.
fn layers(named: NamedLayers) -> Result<LayerPaths, MountError> {
    let given = |path: &PathBuf| !path.as_os_str().is_empty();
    let NamedLayers { lowers: Lowers { merged: lowers, data }, upper, work, init } = named;
    if lowers.is_empty() {
        let reason = "is missing; add lowerdir=LOWER[:LOWER...] to -o (`unionfs --help` lists the commands)";
        return Err(MountError::option("lowerdir", reason));
    }
    let upper = upper.filter(given);
    let work = work.filter(given).filter(|_| upper.is_some());
    Ok(LayerPaths { lowers, data, init, upper, work, init_work: None })
}

/// Gives an existing mount other flags. What its layers are cannot be changed.
fn remount(target: &Path, parsed: &Parsed) -> Result<(), MountError> {
    let complain = |reason: String| MountError::path("mount point", target, reason);
    let at = target.canonicalize().map_err(|e| complain(format!("cannot be used: {e}")))?;
    let found = mounts::top_at(&at).map_err(|e| complain(format!("cannot be looked up: {e}")))?;
    if !found.is_some_and(|entry| mountinfo::is_unionfs(&entry)) {
        return Err(complain("has no unionfs mounted on it; leave out the option remount".into()));
    }
    session::remount(&at, &parsed.options).map_err(|e| match Errno::from_io_error(&e) {
        Some(Errno::PERM) => complain("may not be remounted by this user; run as root".into()),
        _ => complain(format!("cannot be remounted: {e}")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_consistent() {
        HelperArgs::command().debug_assert();
    }

    fn command(args: &[&str]) -> bool {
        names_command(&args.iter().map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn tells_commands_from_helper_calls() {
        for args in
            [&["mount", "-o", "x"][..], &["unmount", "/m"], &["--version"], &["help"], &["bogus"], &[]]
        {
            assert!(command(args), "{args:?}");
        }
        for args in [
            &["-o", "lowerdir=a", "/m"][..],
            &["none", "/m", "-o", "ro"],
            &["/m", "-olowerdir=a"],
            &["-f", "-o", "lowerdir=a", "/m"],
        ] {
            assert!(!command(args), "{args:?}");
        }
    }

    #[test]
    fn arguments_in_any_order() {
        let parse = |args: &[&str]| {
            let args = HelperArgs::try_parse_from([&["unionfs"], args].concat()).unwrap();
            (args.paths.last().cloned().unwrap(), args.options)
        };
        let wanted = |options: &[&str]| ("/m".into(), options.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(parse(&["-o", "a,b", "/m"]), wanted(&["a,b"]));
        assert_eq!(parse(&["source", "/m", "-o", "a", "-ob"]), wanted(&["a", "b"]));
        assert_eq!(
            parse(&["-o", "a", "source", "-s", "-o", "b", "/m", "-n", "-o", ",,c"]),
            wanted(&["a", "b", ",,c"])
        );
        assert_eq!(parse(&["s", "/m", "-sfnv", "-N", "7", "-o", "a", "-t", "fuse.unionfs"]), wanted(&["a"]));
    }

    #[test]
    fn options_of_others() {
        for option in ["defaults", "x-systemd.automount", "X-mount.mkdir", "_netdev", "comment=x"] {
            assert!(is_for_others(OsStr::new(option)), "{option}");
        }
        assert!(!is_for_others(OsStr::new("bogus")));
    }

    #[test]
    fn an_empty_upper_is_none() {
        let named = |options: &str| options::parse(&[options.into()]).unwrap().layers;
        let paths = layers(named("lowerdir=a,upperdir=,workdir=w")).unwrap();
        assert_eq!((paths.upper, paths.work), (None, None));
        let paths = layers(named("lowerdir=a,upperdir=u,workdir=")).unwrap();
        assert_eq!((paths.upper, paths.work), (Some("u".into()), None));
        assert!(layers(named("upperdir=u")).unwrap_err().to_string().contains("lowerdir"));
    }
}
