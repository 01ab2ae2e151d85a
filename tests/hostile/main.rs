//! Hostile layers, clients and users: whatever they do, the daemon goes on serving, nothing outside of the layers is read
//! or changed, and no lower changes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod clients;
mod confined;
mod escapes;
mod marks;
mod races;
mod sizes;
mod users;

use std::path::{Path, PathBuf};
use std::process::Command;

use common::Union;
use common::files::{get, put};

/// Leaves a test of what only we have, or of what a peer does not say it does.
#[macro_export]
macro_rules! need_ours {
    () => {
        $crate::need_unionfs!();
        if $crate::peer().is_some() {
            return $crate::common::skip("tests what is ours alone");
        }
    };
}

/// Another union filesystem to try the tests on that it can be expected to pass, for docs/SECURITY.md:
/// `UNIONFS_HOSTILE_PEER=overlay`, the kernel's, or the path of fuse-overlayfs.
fn peer() -> Option<String> {
    std::env::var("UNIONFS_HOSTILE_PEER").ok()
}

/// Options that a test mounts with one after the other; peers have others.
fn ways<'a>(all: &'a [&'a [&'a str]]) -> &'a [&'a [&'a str]] {
    if peer().is_some() { &all[..1] } else { all }
}

/// Mounts, or gives what was said instead.
fn try_mount(union: &Union, flags: &str) -> Result<(), String> {
    let layers = || {
        let mut list = std::ffi::OsString::from(format!("{flags}lowerdir="));
        list.push(union.lower_list());
        list.push(format!(",upperdir={},workdir={}", union.upper("").display(), union.work("").display()));
        list
    };
    let out = match peer().as_deref() {
        None => union.command().output(),
        Some("overlay") => {
            let mut options = layers();
            options.push(",redirect_dir=on,index=on,metacopy=on,xino=on");
            Command::new("mount")
                .args(["-t", "overlay", "overlay", "-o"])
                .arg(options)
                .arg(union.mnt())
                .output()
        }
        Some(program) => Command::new(program).arg("-o").arg(layers()).arg(union.mnt()).output(),
    };
    let out = out.unwrap();
    if out.status.success() { Ok(()) } else { Err(common::text(&out)) }
}

/// Mounts.
fn mount(union: &Union) {
    if let Err(said) = try_mount(union, "") {
        panic!("cannot mount: {said}");
    }
}

/// What must never be seen in a mount.
const SECRET: &str = "canary: nobody may read this";

/// A file beside the layers, on their filesystem, that no way may lead to.
struct Canary(PathBuf);

impl Canary {
    /// Puts one into the directory that has the layers.
    fn beside(union: &Union) -> Self {
        let path = union.dir().join("outside/secret");
        put(&path, SECRET);
        put(union.dir().join("outside/dir/secret"), SECRET);
        Self(path)
    }

    /// The directory that it lies in.
    fn dir(&self) -> &Path {
        self.0.parent().unwrap()
    }

    /// It is as it was, and so is what lies around it.
    fn check(&self) {
        assert_eq!(get(&self.0), SECRET);
        assert_eq!(common::files::list(self.dir()), ["dir", "secret"]);
        assert_eq!(common::files::list(self.dir().join("dir")), ["secret"]);
        assert_eq!(common::files::xattr_names(&self.0), [""; 0]);
        assert_eq!(common::files::mode(&self.0), 0o644);
    }
}

/// Layers whose daemon writes a log: a fault in it shows there.
fn logged(lowers: usize) -> Union {
    let union = Union::new(lowers);
    let log = format!("log={}", log_of(&union).display());
    union.option(&log)
}

fn log_of(union: &Union) -> PathBuf {
    union.dir().join("log")
}

/// The daemon serves, and nothing in it has panicked.
fn check_alive(union: &Union) {
    assert!(common::is_mounted(&union.mnt()), "nothing is mounted any more");
    let root = std::fs::metadata(union.mnt());
    assert!(root.is_ok(), "the daemon is gone: {root:?}");
    let log = std::fs::read_to_string(log_of(union)).unwrap_or_default();
    assert!(!log.contains("panicked"), "{log}");
}

/// Does everything to every object of a tree that can be done without naming anything new; what fails, fails. Gives the
/// content of all files, and how many objects there were.
fn use_all(root: &Path) -> (Vec<u8>, usize) {
    let (mut contents, mut count) = (Vec::new(), 0);
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        count += 1;
        let Ok(meta) = path.symlink_metadata() else { continue };
        for name in xattr_names(&path) {
            let mut value = vec![0; 65536];
            if let Ok(n) = rustix::fs::lgetxattr(&path, &*name, &mut value[..]) {
                contents.extend_from_slice(&value[..n]);
            }
        }
        if meta.is_file() {
            contents.extend(std::fs::read(&path).unwrap_or_default());
            let _ = std::fs::OpenOptions::new().append(true).open(&path).map(|f| f.sync_all());
        }
        if meta.is_symlink() {
            continue;
        }
        if meta.is_dir() {
            let entries = std::fs::read_dir(&path).into_iter().flatten().flatten();
            todo.extend(entries.map(|entry| entry.path()));
        }
        let _ = std::fs::set_permissions(&path, meta.permissions());
    }
    (contents, count)
}

/// Moves, links and removes what lies in a directory.
fn take_apart(root: &Path) {
    let mut entries: Vec<_> =
        std::fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path()).collect();
    entries.sort();
    for path in entries {
        let moved = path.with_extension("moved");
        let _ = std::fs::hard_link(&path, path.with_extension("linked"));
        let _ = std::fs::rename(&path, &moved);
        let _ = std::fs::read_dir(&moved).map(Iterator::count);
        for path in [&path, &moved] {
            let _ = std::fs::remove_file(path).or_else(|_| std::fs::remove_dir_all(path));
        }
    }
}

fn xattr_names(path: &Path) -> Vec<std::ffi::OsString> {
    use std::os::unix::ffi::OsStringExt;
    let mut list = vec![0; 65536];
    let n = rustix::fs::llistxattr(path, &mut list[..]).unwrap_or(0);
    let names = list[..n].split(|&b| b == 0).filter(|s| !s.is_empty());
    names.map(|s| std::ffi::OsString::from_vec(s.to_vec())).collect()
}

/// Runs a Python program in a directory, for at most a minute; gives its output.
fn python(dir: &Path, program: &str) -> String {
    let mut command = Command::new("timeout");
    let out = command.args(["60", "python3", "-c", program]).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "python in {}: {}: {}", dir.display(), out.status, common::text(&out));
    String::from_utf8(out.stdout).unwrap()
}

/// Whether bytes have the secret in them.
fn tells(bytes: &[u8]) -> bool {
    bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes())
}
