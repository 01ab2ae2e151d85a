//! `unionfs commit --freeze`: the upper of a live mount becomes a lower, and an empty one takes its place.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::layer_list::{join_layers, work_name};
use super::layers::state_of;
use super::live;
use super::made::Made;
use crate::config::LayerPaths;
use crate::error::{MountError, Outcome};
use crate::inspect::control::{self, Answer, Next, Way, Writer};
use crate::inspect::state::MountState;
use crate::layer::next;

/// Options of `commit --freeze`.
#[derive(Debug, clap::Args)]
pub struct FreezeArgs {
    /// Make the upper of the mount a lower that never changes, and go on in an empty one, without
    /// unmounting. Open files stay open
    #[arg(long, requires = "mountpoint")]
    pub freeze: bool,

    /// The new upper, made if it is missing [default: NAME.1 beside the upper NAME, and so on]
    #[arg(long, value_name = "DIR", requires = "freeze")]
    new_upper: Option<PathBuf>,

    /// The work directory of the new upper [default: .NAME.work beside it]
    #[arg(long, value_name = "DIR", requires = "freeze")]
    new_work: Option<PathBuf>,

    /// Wait so long for files to be closed that are open for writing
    #[arg(long, value_name = "SECONDS", requires = "freeze", default_value_t = 0)]
    wait: u64,
}

/// How long is waited in any case: the kernel tells of a close a little later.
const SHORTLY: Duration = Duration::from_millis(500);
/// Between two attempts.
const PAUSE: Duration = Duration::from_millis(50);

/// What became of the stack.
pub struct Frozen {
    /// The layers before: their upper never changes any more.
    pub before: LayerPaths,
    /// The mount as it is now.
    pub state: MountState,
    /// The files that were open for writing: they go on in the new upper.
    pub writers: Vec<Writer>,
}

/// Freezes.
///
/// # Errors
/// A sentence that says what stands in the way, and names the files. Nothing has changed then.
pub fn run(args: &FreezeArgs, mountpoint: &Path) -> Outcome<Frozen> {
    let (recorded, state) = state_of(mountpoint)?;
    let before = state.layers();
    let Some(old) = &before.upper else {
        let reason = "has no upper layer, so there is nothing to freeze";
        return Err(MountError::path("mount point", mountpoint, reason));
    };
    let upper = match &args.new_upper {
        Some(upper) => upper.clone(),
        None => follower(old),
    };
    let work = match (&args.new_work, upper.file_name()) {
        (Some(work), _) => work.clone(),
        (None, Some(name)) => upper.with_file_name(work_name(name)),
        (None, None) => {
            return Err(MountError::path("new upper layer", &upper, "has no name; name a directory by it"));
        }
    };
    let mut made = Made::default();
    made.ensure("new upper layer", &upper, 0o755)?;
    made.ensure("new work directory", &work, 0o700)?;
    let (upper, work) = next::check(&before, &upper, &work)?;
    let next = Next { upper: way(&upper), work: way(&work) };
    live::write_out(&PathBuf::from(&state.mountpoint))?;
    let refused = |reason: String| MountError::path("mount point", mountpoint, reason);
    let ask = |request| control::ask(&recorded.socket(), request);
    let patience = SHORTLY.max(Duration::from_secs(args.wait));
    let begun = Instant::now();
    loop {
        let answer = match control::freeze(&recorded.socket(), &next) {
            Ok(answer) => answer,
            Err(e) if is_unheard(e.kind()) => {
                return Err(refused(format!("was not frozen: its process does not answer: {e}")));
            }
            Err(e) => {
                // It may have been frozen, or be so yet: the new directories are not ours to remove.
                made.keep();
                return Err(refused(format!(
                    "has a process that does not answer ({e}); unionfs list shows whether {} is its upper layer now",
                    upper.path.display()
                )));
            }
        };
        match answer {
            Answer::Frozen => break,
            Answer::Busy(_) if begun.elapsed() < patience => std::thread::sleep(PAUSE),
            Answer::Busy(writers) => return Err(refused(busy(&writers))),
            Answer::Hides(path) => {
                let path = PathBuf::from(&path);
                return Err(refused(format!(
                    "was not frozen: its upper layer hides /{} of the init layer, which would be seen again; remove \
                     it from the init layer when the mount has ended",
                    path.display()
                )));
            }
            Answer::Failed(reason) => return Err(refused(format!("was not frozen: {reason}"))),
        }
    }
    made.keep();
    let writers = ask(control::WRITERS).ok().and_then(|text| serde_json::from_str(&text).ok());
    let state = state.frozen(&next.upper.path, &next.work.path);
    Ok(Frozen { before, state, writers: writers.unwrap_or_default() })
}

/// Whether a request has not reached the mount, or was not understood.
fn is_unheard(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{ConnectionRefused, InvalidData, NotFound, PermissionDenied};
    matches!(kind, ConnectionRefused | InvalidData | NotFound | PermissionDenied)
}

fn busy(writers: &[Writer]) -> String {
    const SHOWN: usize = 10;
    let mut names: Vec<String> =
        writers.iter().take(SHOWN).map(|w| format!("{}{}", live::shown(w), live::how(w))).collect();
    if writers.len() > SHOWN {
        names.push(format!("{} more", writers.len() - SHOWN));
    }
    format!(
        "was not frozen: the kernel writes to files that are open for writing: {}; close them, wait by --wait \
         SECONDS, or mount with -o passthrough=off",
        names.join(", ")
    )
}

fn way(way: &next::Way) -> Way {
    Way { path: (&*way.path).into(), up: way.up, below: (&*way.below).into(), id: way.id }
}

/// The name that follows that of an upper: with a number that is one higher, and that nothing has.
fn follower(upper: &Path) -> PathBuf {
    let name = upper.file_name().unwrap_or_default().as_bytes();
    let numbered = name.iter().rposition(|b| *b == b'.').and_then(|dot| {
        let number: u64 = std::str::from_utf8(&name[dot + 1..]).ok()?.parse().ok()?;
        (dot > 0).then_some((&name[..dot], number))
    });
    let (stem, number) = numbered.unwrap_or((name, 0));
    let candidate = |number: u64| {
        let name = OsString::from_vec([stem, format!(".{number}").as_bytes()].concat());
        (upper.with_file_name(&name), upper.with_file_name(work_name(&name)))
    };
    let free = |path: &Path| path.symlink_metadata().is_err();
    let mut next = number.saturating_add(1);
    loop {
        let (upper, work) = candidate(next);
        if free(&upper) && free(&work) {
            return upper;
        }
        next = next.saturating_add(1);
    }
}

/// The command that mounts the stack of a mount again, for a shell.
pub fn mount_command(state: &MountState) -> OsString {
    let layers = state.layers();
    let mut options: Vec<OsString> = Vec::new();
    let mut add = |name: &str, value: &OsStr| {
        let mut option = OsString::from(name);
        option.push(value);
        options.push(option);
    };
    let mut lowers = join_layers(layers.lowers.iter().map(|p| p.as_os_str()));
    for data in &layers.data {
        lowers.push("::");
        lowers.push(join_layers([data.as_os_str()]));
    }
    add("lowerdir=", &lowers);
    for (name, path) in [("upperdir=", &layers.upper), ("workdir=", &layers.work), ("init=", &layers.init)] {
        if let Some(path) = path {
            add(name, &join_layers([path.as_os_str()]));
        }
    }
    if state.userxattr == Some(true) {
        add("userxattr", OsStr::new(""));
    }
    for option in &state.options {
        add(option, OsStr::new(""));
    }
    let escaped = options.iter().map(|option| {
        let bytes =
            option.as_bytes().iter().flat_map(|b| if *b == b',' { vec![b'\\', b','] } else { vec![*b] });
        bytes.collect::<Vec<u8>>()
    });
    let list = OsString::from_vec(escaped.collect::<Vec<_>>().join(&b','));
    let mut command = OsString::from("unionfs mount -o ");
    command.push(quoted(&list));
    command.push(" ");
    command.push(quoted(PathBuf::from(&state.mountpoint).as_os_str()));
    command
}

/// A word for a shell.
fn quoted(word: &OsStr) -> OsString {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._-+,:=@%".contains(b);
    if !word.is_empty() && word.as_bytes().iter().all(plain) {
        return word.to_owned();
    }
    let mut out = vec![b'\''];
    for b in word.as_bytes() {
        match b {
            b'\'' => out.extend_from_slice(br"'\''"),
            b => out.push(*b),
        }
    }
    out.push(b'\'');
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_each_other() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        assert_eq!(follower(&at("upper")), at("upper.1"));
        assert_eq!(follower(&at("upper.9")), at("upper.10"));
        assert_eq!(follower(&at("v1.x")), at("v1.x.1"));
        std::fs::create_dir(at("upper.1")).unwrap();
        std::fs::create_dir(at(".upper.2.work")).unwrap();
        assert_eq!(follower(&at("upper")), at("upper.3"));
    }

    #[test]
    fn words_survive_a_shell() {
        for word in ["plain/a,b", "a b", "it's", "", "$x\\`"] {
            let script = format!("printf %s {}", quoted(OsStr::new(word)).to_str().unwrap());
            let out = std::process::Command::new("sh").arg("-c").arg(script).output().unwrap();
            assert_eq!(out.stdout, word.as_bytes());
        }
    }
}
