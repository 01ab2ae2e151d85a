//! `unionfs inspect`: a mount, or what serves a path in it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::diff::{printed_all, type_name};
use super::layers::{refuse_foreign, state_of};
use super::list::printable;
use crate::error::{MountError, Outcome};
use crate::format::mountinfo;
use crate::fuse::mounts;
use crate::inspect::control;
use crate::inspect::path::{What, held};
use crate::inspect::state::{MountState, Recorded};

/// Arguments of `inspect`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "For a mount: its layers from the top with role, filesystem and path, its options and its statistics.
For a path inside: what each layer has of it, which one is seen, whiteouts, opaque directories and
redirects.

Examples:
  unionfs inspect /mnt/root
  unionfs inspect /mnt/root/etc/passwd"
)]
pub struct InspectArgs {
    /// Where a tree is mounted, or a path in it
    #[arg(value_name = "PATH")]
    path: PathBuf,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// A layer of a mount.
#[derive(Serialize)]
struct Layer {
    branch: usize,
    role: &'static str,
    path: String,
    filesystem: Option<String>,
}

#[derive(Serialize)]
struct Mount<'a> {
    #[serde(flatten)]
    state: &'a MountState,
    layers: Vec<Layer>,
    /// By name; seconds are a fraction.
    statistics: Option<BTreeMap<String, f64>>,
}

/// What a layer has of a path.
#[derive(Serialize)]
struct Has {
    branch: i16,
    role: &'static str,
    seen: bool,
    what: &'static str,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    opaque: bool,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    metacopy: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    redirect: Option<String>,
    path: String,
}

/// Prints what is known.
///
/// # Errors
/// A path that is in no mount of ours.
pub fn run(args: &InspectArgs) -> Outcome<()> {
    let path = mounts::locate(&args.path)
        .or_else(|_| std::path::absolute(&args.path))
        .map_err(|e| MountError::path("path", &args.path, format!("cannot be resolved: {e}")))?;
    let table = mounts::table().map_err(|e| {
        MountError::path("mount table", "/proc/self/mountinfo", format!("cannot be read: {e}"))
    })?;
    let ours = |at: &&Path| mountinfo::top_at(&table, at).is_some_and(mountinfo::is_unionfs);
    let Some(mountpoint) = path.ancestors().find(ours) else {
        let reason = "lies in no unionfs mount; unionfs list shows those there are";
        return Err(MountError::path("path", &args.path, reason));
    };
    let (recorded, state) = state_of(mountpoint)?;
    let inside = path.strip_prefix(mountpoint).unwrap_or(Path::new(""));
    let out = if inside.as_os_str().is_empty() {
        mount(&recorded, &state, args.json)
    } else {
        refuse_foreign(&recorded, mountpoint)?;
        of_path(&state, inside, args.json)?
    };
    printed_all(out.and_then(|text| io::stdout().lock().write_all(text.as_bytes())))
}

/// The layers from the top, as a mount numbers them.
fn layers(state: &MountState) -> Vec<Layer> {
    let paths = state.layers();
    let table = mounts::table().unwrap_or_default();
    let all = paths.upper.iter().map(|p| ("rw", p)).chain(paths.init.iter().map(|p| ("init", p)));
    let all = all.chain(paths.lowers.iter().map(|p| ("ro", p))).chain(paths.data.iter().map(|p| ("data", p)));
    all.enumerate()
        .map(|(branch, (role, path))| Layer {
            branch,
            role,
            path: path.display().to_string(),
            filesystem: path
                .ancestors()
                .find_map(|at| mountinfo::top_at(&table, at))
                .map(|entry| entry.fs_type.to_string_lossy().into_owned()),
        })
        .collect()
}

fn mount(recorded: &Recorded, state: &MountState, json: bool) -> io::Result<String> {
    let statistics = control::ask(&recorded.socket(), control::STATISTICS).ok();
    let layers = layers(state);
    if json {
        let number =
            |line: &str| line.rsplit_once(' ').and_then(|(k, v)| Some((k.to_owned(), v.parse().ok()?)));
        let statistics = statistics.map(|text| text.lines().filter_map(number).collect());
        return to_json(&Mount { state, layers, statistics });
    }
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = writeln!(text, "mounted at {}", PathBuf::from(&state.mountpoint).display());
    let _ = writeln!(text, "process    {}, for {}", state.pid, super::list::time(state.since));
    let options = if state.options.is_empty() { "as by default".to_owned() } else { state.options.join(",") };
    let _ = writeln!(text, "options    {options}");
    for Layer { branch, role, path, filesystem } in &layers {
        let filesystem = filesystem.as_deref().unwrap_or("-");
        let _ = writeln!(text, "branch {branch:<3} {role:4}  {filesystem:8} {path}");
    }
    match statistics {
        Some(statistics) => text.push_str(&statistics),
        None => text.push_str("statistics are for the owner of the mount\n"),
    }
    Ok(printable(&text))
}

fn of_path(state: &MountState, path: &Path, json: bool) -> Outcome<io::Result<String>> {
    let options = state.reading();
    let names = layers(state);
    let all: Vec<Has> = held(&state.layers(), &options, path)?
        .into_iter()
        .map(|held| {
            let layer = usize::try_from(held.layer).ok().and_then(|branch| names.get(branch));
            let (what, opaque, redirect, metacopy) = match held.what {
                What::Whiteout => ("whiteout", false, None, false),
                What::Object { kind, opaque, redirect, metacopy } => {
                    (type_name(kind), opaque, redirect, metacopy)
                }
            };
            Has {
                branch: held.layer,
                // Data-only layers come last.
                role: layer.map_or("data", |l| l.role),
                seen: held.seen,
                what,
                opaque,
                metacopy,
                redirect,
                path: layer
                    .map_or(held.path.clone(), |l| Path::new(&l.path).join(&held.path))
                    .display()
                    .to_string(),
            }
        })
        .collect();
    if json {
        return Ok(to_json(&all));
    }
    let mut text = String::new();
    for has in &all {
        let seen = if has.seen { "seen" } else { "-" };
        let _ = write!(text, "branch {:<3} {:4}  {seen:5} {} {}", has.branch, has.role, has.what, has.path);
        if has.opaque {
            text.push_str(", opaque");
        }
        if has.metacopy {
            text.push_str(", attributes only");
        }
        if let Some(redirect) = &has.redirect {
            let _ = write!(text, ", below at {redirect}");
        }
        text.push('\n');
    }
    if all.is_empty() {
        text.push_str("no layer has anything of it\n");
    }
    Ok(Ok(text))
}

fn to_json(value: &impl Serialize) -> io::Result<String> {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}
