//! One test for each fault that was seen in union filesystems. Wherever possible the test does the same in a
//! plain directory and in mounts, with and without passthrough, on what lies in a lower and in the upper, and
//! wants to see the same.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod blocking;
mod content;
mod cost;
mod filesystems;
mod identity;
mod layers;
mod limits;
mod listing;
mod metadata;
mod names;
mod setid;

use std::fmt::Debug;
use std::path::Path;
use std::process::Command;

use common::{Union, text, tree};

/// The options of the mounts that a test runs in.
const MOUNTS: [&[&str]; 3] = [&[], &["passthrough=off"], &["metacopy=on", "io_uring=off"]];

/// Runs `observe` in a plain directory that `setup` filled, and in mounts where it filled the lower or, through
/// the mount, the upper. All must see the same. No lower changes, and nothing is left in the work directory.
fn agree<T: PartialEq + Debug>(setup: impl Fn(&Path), observe: impl Fn(&Path) -> T) -> T {
    let plain = common::temp_dir();
    setup(plain.path());
    let want = observe(plain.path());
    for options in MOUNTS {
        for in_lower in [true, false] {
            let mut union = Union::new(2);
            union.set_options(options);
            if in_lower {
                setup(&union.lower(1, ""));
            }
            let before = tree::fingerprint(&union.lower(1, ""));
            union.mount();
            if !in_lower {
                setup(&union.mnt());
            }
            let got = observe(&union.mnt());
            let place = if in_lower { "lower" } else { "upper" };
            assert_eq!(got, want, "mount (left) and plain directory (right); {options:?}, from the {place}");
            union.unmount();
            assert_eq!(tree::fingerprint(&union.lower(1, "")), before, "a lower changed; {options:?}");
            assert_eq!(common::files::list(union.work("work")), [""; 0], "left in the work directory");
        }
    }
    want
}

/// Runs a shell script in a directory; gives its output.
fn sh(dir: &Path, script: &str) -> String {
    run("sh", &["-euc", script], dir)
}

/// Runs a Python program in a directory; gives its output. Programs do what safe Rust cannot: mappings, file
/// handles, and the like.
fn python(dir: &Path, program: &str) -> String {
    run("python3", &["-c", &format!("{PRELUDE}{program}")], dir)
}

fn run(program: &str, args: &[&str], dir: &Path) -> String {
    let mut command = Command::new("timeout");
    let out = command.arg("60").arg(program).args(args).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{program} in {}: {}: {}", dir.display(), out.status, text(&out));
    String::from_utf8(out.stdout).unwrap()
}

const PRELUDE: &str = r#"
import ctypes, errno, mmap, os, stat, sys, time
libc = ctypes.CDLL(None, use_errno=True)
def attempt(f, *args, **kw):
    """What a call gives, or its errno's name."""
    try:
        return f(*args, **kw)
    except OSError as e:
        return errno.errorcode[e.errno]
def check(result):
    if result < 0:
        e = ctypes.get_errno()
        raise OSError(e, os.strerror(e))
    return result
def as_user(f):
    """Runs f in a process without privileges."""
    sys.stdout.flush()
    if pid := os.fork():
        assert os.waitpid(pid, 0)[1] == 0
        return
    os.setgroups([])
    os.setgid(1234)
    os.setuid(1234)
    f()
    sys.stdout.flush()
    os._exit(0)
"#;
