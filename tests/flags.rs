//! Inode flags through a mount: lsattr(1), chattr(1), and what the flags forbid.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::files::{dir, errno, exists, get, list, mode, put};
use common::{Union, text};

/// Takes protecting flags away below a directory, so that it can be removed.
struct Unprotect(PathBuf);

impl Drop for Unprotect {
    fn drop(&mut self) {
        let _ = Command::new("chattr").args(["-R", "-f", "-i", "-a"]).arg(&self.0).output();
    }
}

fn chattr(change: &str, path: impl AsRef<Path>) {
    let out = Command::new("chattr").arg(change).arg(path.as_ref()).output().unwrap();
    assert!(out.status.success(), "chattr {change} {}: {}", path.as_ref().display(), text(&out));
}

/// The flags that lsattr shows, sorted letters alone.
fn lsattr(path: impl AsRef<Path>) -> String {
    let out = Command::new("lsattr").arg("-d").arg(path.as_ref()).output().unwrap();
    assert!(out.status.success(), "lsattr {}: {}", path.as_ref().display(), text(&out));
    let shown = String::from_utf8(out.stdout).unwrap();
    let mut letters: Vec<char> =
        shown.split_whitespace().next().unwrap_or_default().chars().filter(|c| *c != '-').collect();
    letters.sort_unstable();
    letters.into_iter().collect()
}

fn has(path: impl AsRef<Path>, letter: char) -> bool {
    lsattr(path).contains(letter)
}

/// Why flags cannot be tested here, if so.
fn cannot() -> Option<&'static str> {
    let dir = common::temp_dir();
    let file = dir.path().join("f");
    put(&file, "");
    let _unprotect = Unprotect(dir.path().to_owned());
    match Command::new("chattr").args(["+i", "+d"]).arg(&file).output() {
        Err(_) => Some("there is no chattr"),
        Ok(out) if !out.status.success() => Some("the filesystem of the layers has no inode flags"),
        Ok(_) => None,
    }
}

macro_rules! need_flags {
    () => {
        need_unionfs!();
        if let Some(reason) = cannot() {
            return common::skip(reason);
        }
    };
}

#[test]
fn shows_the_flags_of_each_layer() {
    need_flags!();
    let u = Union::new(1);
    let _unprotect = Unprotect(u.dir().to_owned());
    put(u.lower(0, "low"), "x");
    put(u.lower(0, "d/f"), "x");
    put(u.upper("up"), "x");
    chattr("+d", u.lower(0, "low"));
    chattr("+d", u.lower(0, "d"));
    chattr("+i", u.upper("up"));
    let u = u.mounted();
    for (name, layer) in [("low", u.lower(0, "low")), ("d", u.lower(0, "d")), ("up", u.upper("up"))] {
        assert_eq!(lsattr(u.at(name)), lsattr(layer), "{name}");
    }
    assert!(!has(u.at("d/f"), 'd'));
    assert_eq!(list(u.upper("")), ["up"], "looking at flags copies nothing up");
}

#[test]
fn sets_flags_on_a_copy() {
    need_flags!();
    let u = Union::new(1).mounted();
    let _unprotect = Unprotect(u.dir().to_owned());
    put(u.lower(0, "f"), "content");
    put(u.lower(0, "same"), "content");
    put(u.lower(0, "d/f"), "content");
    chattr("+d", u.lower(0, "same"));
    let before = std::fs::metadata(u.at("f")).unwrap();
    chattr("+d", u.at("f"));
    chattr("+A", u.at("d"));
    chattr("+d", u.at("same"));
    assert!(has(u.at("f"), 'd') && has(u.upper("f"), 'd') && !has(u.lower(0, "f"), 'd'));
    assert!(has(u.at("d"), 'A') && has(u.upper("d"), 'A') && !has(u.lower(0, "d"), 'A'));
    assert!(!exists(u.upper("same")), "what changes nothing copies nothing up");
    let after = std::fs::metadata(u.at("f")).unwrap();
    assert_eq!((before.ino(), before.mtime_nsec()), (after.ino(), after.mtime_nsec()));
    assert_ne!(before.ctime_nsec(), after.ctime_nsec());
    assert_eq!(get(u.at("f")), "content");
    chattr("-d", u.at("f"));
    assert!(!has(u.at("f"), 'd') && !has(u.upper("f"), 'd'));
}

#[test]
fn immutable_and_append_only_hold() {
    need_flags!();
    let u = Union::new(1).mounted();
    let _unprotect = Unprotect(u.dir().to_owned());
    for place in [u.lower(0, "low"), u.at("new")] {
        put(place, "one");
    }
    for name in ["low", "new"] {
        let file = u.at(name);
        chattr("+a", &file);
        assert_eq!(errno(std::fs::write(&file, "x")), libc::EPERM);
        assert_eq!(errno(OpenOptions::new().write(true).open(&file)), libc::EPERM);
        let mut append = OpenOptions::new().append(true).open(&file).unwrap();
        append.write_all(b" two").unwrap();
        assert_eq!(errno(append.set_len(1)), libc::EPERM);
        drop(append);
        assert_eq!(get(&file), "one two");
        assert_eq!(errno(std::fs::remove_file(&file)), libc::EPERM);
        chattr("-a", &file);
        chattr("+i", &file);
        assert_eq!(errno(OpenOptions::new().append(true).open(&file)), libc::EPERM);
        assert_eq!(errno(std::fs::rename(&file, u.at("x"))), libc::EPERM);
        assert_eq!(errno(std::fs::hard_link(&file, u.at("x"))), libc::EPERM);
        assert_eq!(errno(std::fs::remove_file(&file)), libc::EPERM);
        assert_eq!(get(&file), "one two");
        chattr("-i", &file);
        std::fs::remove_file(&file).unwrap();
    }
}

#[test]
fn flags_of_a_lower_protect_it() {
    need_flags!();
    let u = Union::new(1);
    let _unprotect = Unprotect(u.dir().to_owned());
    put(u.lower(0, "f"), "old");
    put(u.lower(0, "d/f"), "old");
    put(u.lower(0, "e/f"), "old");
    dir(u.lower(0, "empty"));
    chattr("+i", u.lower(0, "f"));
    chattr("+i", u.lower(0, "d"));
    chattr("+i", u.lower(0, "empty"));
    let u = u.mounted();
    put(u.at("other"), "");

    let permissions = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    assert_eq!(errno(std::fs::write(u.at("f"), "new")), libc::EPERM);
    assert_eq!(errno(std::fs::set_permissions(u.at("f"), permissions)), libc::EPERM);
    assert_eq!(errno(std::fs::remove_file(u.at("f"))), libc::EPERM);
    assert_eq!(errno(std::fs::rename(u.at("f"), u.at("x"))), libc::EPERM);
    assert_eq!(errno(std::fs::rename(u.at("other"), u.at("f"))), libc::EPERM);
    assert_eq!(errno(std::fs::write(u.at("d/new"), "")), libc::EPERM);
    assert_eq!(errno(std::fs::remove_file(u.at("d/f"))), libc::EPERM);
    assert_eq!(errno(std::fs::remove_dir(u.at("empty"))), libc::EPERM);
    assert_eq!(list(u.upper("")), ["other"]);

    chattr("-i", u.at("f"));
    assert!(has(u.lower(0, "f"), 'i') && !has(u.upper("f"), 'i'));
    std::fs::write(u.at("f"), "new").unwrap();
    chattr("-i", u.at("d"));
    std::fs::write(u.at("d/new"), "").unwrap();
    std::fs::remove_file(u.at("d/f")).unwrap();
    assert_eq!(list(u.at("d")), ["new"]);
}

#[test]
fn copy_up_keeps_harmless_flags() {
    need_flags!();
    let u = Union::new(1);
    put(u.lower(0, "d/f"), "x");
    put(u.lower(0, "d/meta"), "x");
    for name in ["d", "d/f", "d/meta"] {
        chattr("+dAS", u.lower(0, name));
    }
    let u = u.mounted();
    OpenOptions::new().append(true).open(u.at("d/f")).unwrap().write_all(b"y").unwrap();
    common::files::chmod(u.at("d/meta"), 0o600);
    assert_eq!(mode(u.upper("d/meta")), 0o600);
    for name in ["d", "d/f", "d/meta"] {
        for letter in ['d', 'A', 'S'] {
            assert!(
                has(u.upper(name), letter) && has(u.at(name), letter),
                "{name}: {}",
                lsattr(u.upper(name))
            );
        }
    }
}

#[test]
fn extended_flags() {
    need_flags!();
    let u = Union::new(1).mounted();
    put(u.lower(0, "f"), "x");
    let lsproj = |path: PathBuf| {
        let out = Command::new("lsattr").args(["-p", "-d"]).arg(path).output().unwrap();
        String::from_utf8(out.stdout).unwrap().split_whitespace().next().unwrap_or_default().to_owned()
    };
    assert_eq!(lsproj(u.at("f")), "0");
    // chattr sets a project by FS_IOC_FSSETXATTR; ext4 takes none but with the feature.
    let on_plain = Command::new("chattr").args(["-p", "7"]).arg(u.lower(0, "f")).output().unwrap();
    let here = Command::new("chattr").args(["-p", "8"]).arg(u.at("f")).output().unwrap();
    assert_eq!(on_plain.status.success(), here.status.success(), "{}", text(&here));
    if here.status.success() {
        assert_eq!((lsproj(u.at("f")).as_str(), lsproj(u.upper("f")).as_str()), ("8", "8"));
        assert_eq!(lsproj(u.lower(0, "f")), "7");
    }
}

#[test]
fn other_ioctls_are_unknown() {
    need_unionfs!();
    let u = Union::new(1).mounted();
    put(u.at("f"), "x");
    let file = File::open(u.at("f")).unwrap();
    let root = File::open(u.mnt()).unwrap();
    for fd in [&file, &root] {
        let mut version: libc::c_long = 0;
        // FS_IOC_GETVERSION, _IOR('v', 1, long).
        let request = rustix::ioctl::opcode::read::<libc::c_long>(b'v', 1);
        // SAFETY: the ioctl writes no more than a long.
        #[allow(unsafe_code)]
        let done = unsafe { libc::ioctl(fd.as_raw_fd(), request as _, &raw mut version) };
        assert_eq!((done, std::io::Error::last_os_error().raw_os_error()), (-1, Some(libc::ENOTTY)));
    }
}
