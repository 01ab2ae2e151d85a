//! When an open file is passed through to the kernel.

use std::sync::Arc;

use unionfs::fs::{Opened, SetAttr};

use unionfs::fs::Caller;

use crate::tree::Tree;
use crate::union::{KEEP, Union, caller};

fn open(u: &Union, path: &str, flags: i32) -> Opened {
    let ino = u.ino(path).unwrap();
    u.fs.open_file(&caller(), ino, flags, &mut |_| Some(Arc::new(()))).unwrap()
}

#[test]
fn upper_files_share_one_backing() {
    let t = Tree::on("f f text", &["d d"]);
    let u = t.open();
    let first = open(&u, "f", libc::O_RDWR);
    // The kernel demands the same real file for all handles: no second one is made.
    let ino = u.ino("f").unwrap();
    let mut never = |_: std::os::fd::BorrowedFd<'_>| panic!("a second backing");
    let second = u.fs.open_file(&caller(), ino, libc::O_RDONLY, &mut never).unwrap();
    assert!(Arc::ptr_eq(first.backing.as_ref().unwrap(), second.backing.as_ref().unwrap()));
    let weak = Arc::downgrade(first.backing.as_ref().unwrap());
    u.fs.release(first.fh);
    u.fs.release(second.fh);
    drop((first, second));
    assert!(weak.upgrade().is_none(), "the backing is kept after the last handle");
}

#[test]
fn lower_files_are_cached_until_the_last_handle_from_before_copy_up_is_gone() {
    let t = Tree::new(&["f f text"]);
    let u = t.open();
    let early = open(&u, "f", libc::O_RDONLY);
    assert!(early.backing.is_none() && early.keep_cache);
    let writer = open(&u, "f", libc::O_RDWR);
    assert!(writer.backing.is_none() && writer.keep_cache);
    u.fs.release(early.fh);
    let other = open(&u, "f", libc::O_RDONLY);
    assert!(other.backing.is_none());
    u.fs.release(writer.fh);
    u.fs.release(other.fh);
    let passed = open(&u, "f", libc::O_RDWR);
    assert!(passed.backing.is_some());
    u.fs.release(passed.fh);
    assert_eq!(u.fs.counts().1, 0);
}

#[test]
fn lower_files_are_opened_when_they_are_read() {
    let t =
        Tree::new(&["d d\nf d/gone text\nf d/moved text\nf d/over text\nf d/changed text\nf d/still text"]);
    let u = t.open();
    let fds = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let early: Vec<u64> = ["gone", "moved", "over", "changed", "still"]
        .map(|name| u.open(&format!("d/{name}"), 0).unwrap())
        .into();
    // Other tests of this process open files, too, but not as many.
    let before = fds();
    let many: Vec<u64> = (0..300).map(|_| u.open("d/still", libc::O_RDONLY).unwrap()).collect();
    assert!(fds() < before + 200);
    many.into_iter().for_each(|fh| u.fs.release(fh));
    // Whatever happens to the file, its content is found.
    u.unlink("d/gone").unwrap();
    u.put("other", "other").unwrap();
    u.rename("other", "d/over").unwrap();
    u.rename("d/moved", "away").unwrap();
    u.write("d/changed", "new text").unwrap();
    u.rename("d", "e").unwrap();
    for (fh, wanted) in early.into_iter().zip(["text", "text", "text", "new text", "text"]) {
        for _ in 0..2 {
            assert_eq!(String::from_utf8(u.read_fh(fh).unwrap()).unwrap(), wanted);
        }
        u.fs.release(fh);
    }
    assert_eq!(u.fs.counts().1, 0);
}

#[test]
fn a_lower_file_opened_for_writing_is_passed_to_its_copy() {
    let t = Tree::new(&["f f text"]);
    let u = t.open();
    let ino = u.ino("f").unwrap();
    let mut seen = None;
    let opened =
        u.fs.open_file(&caller(), ino, libc::O_RDWR, &mut |fd| {
            seen = Some(rustix::fs::fstat(fd).unwrap().st_ino);
            Some(Arc::new(()))
        })
        .unwrap();
    assert!(opened.backing.is_some());
    let of = |p: std::path::PathBuf| std::os::unix::fs::MetadataExt::ino(&p.metadata().unwrap());
    assert_eq!(seen, Some(of(t.upper("f"))));
    assert_ne!(seen, Some(of(t.lower("f"))));
    u.fs.release(opened.fh);
}

#[test]
fn created_files_are_passed_through() {
    let t = Tree::new(&["d d"]);
    let u = t.open();
    let dir = u.ino("d").unwrap();
    let make: unionfs::fs::MakeBacking<'_> = &mut |_| Some(Arc::new(()));
    let (attr, opened) =
        u.fs.create(&caller(), dir, crate::tree::os("new"), 0o600, libc::O_WRONLY, make).unwrap();
    assert!(opened.backing.is_some());
    assert_eq!(attr.mode & 0o7777, 0o600);
    u.fs.release(opened.fh);
    u.fs.forget(attr.ino, 1);
}

#[test]
fn refused_by_the_kernel_means_cached() {
    let t = Tree::on("f f text", &["d d"]);
    let u = t.open();
    let ino = u.ino("f").unwrap();
    let cached = u.fs.open_file(&caller(), ino, libc::O_RDONLY, &mut |_| None).unwrap();
    assert!(cached.backing.is_none());
    let other = open(&u, "f", libc::O_RDWR);
    assert!(other.backing.is_none(), "a cached handle is open");
    u.fs.release(cached.fh);
    u.fs.release(other.fh);
}

#[test]
fn files_with_set_id_bits_are_not_passed_through() {
    let t = Tree::on("f f text", &["d d"]);
    let u = t.open();
    u.chmod("f", 0o4755).unwrap();
    let opened = open(&u, "f", libc::O_RDWR);
    assert!(opened.backing.is_none());
    let stranger = Caller { uid: 1000, gid: 4_000_000, pid: 0, umask: 0 };
    assert_eq!(u.fs.write(opened.fh, 0, b"x", Some(&stranger)).unwrap(), (1, true));
    assert_eq!(u.stat("f").unwrap().mode & 0o7777, 0o755);
    u.fs.release(opened.fh);
    // Without group execution the bit goes for who is not in the group, and for nobody else.
    u.chmod("f", 0o2747).unwrap();
    let opened = open(&u, "f", libc::O_RDWR);
    assert!(opened.backing.is_none());
    let member = Caller { gid: u.stat("f").unwrap().gid, ..stranger };
    for (killer, mode) in [(None, 0o2747), (Some(&member), 0o2747), (Some(&stranger), 0o747)] {
        u.fs.write(opened.fh, 0, b"x", killer).unwrap();
        assert_eq!(u.stat("f").unwrap().mode & 0o7777, mode);
    }
    u.fs.release(opened.fh);
}

#[test]
fn pages_from_before_a_passed_write_are_dropped_once() {
    let t = Tree::on("f f text", &["d d"]);
    let u = t.open();
    let passed = open(&u, "f", libc::O_RDWR);
    assert!(passed.backing.is_some());
    u.fs.release(passed.fh);
    let ino = u.ino("f").unwrap();
    let open_cached = || u.fs.open_file(&caller(), ino, libc::O_RDONLY, &mut |_| None).unwrap();
    let (a, b) = (open_cached(), open_cached());
    assert!(!a.keep_cache && b.keep_cache);
    u.fs.release(a.fh);
    u.fs.release(b.fh);
}

#[test]
fn open_truncates() {
    let t = Tree::new(&["f f text\nf empty"]);
    let u = t.open();
    let old = SetAttr { mtime: unionfs::fs::SetTime::At(1000, 5), ..KEEP };
    for name in ["f", "empty"] {
        for copied in [false, true] {
            if copied {
                u.set(name, old).unwrap();
            }
            let before = u.stat(name).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(20));
            let fh = u.open(name, libc::O_WRONLY | libc::O_TRUNC).unwrap();
            let after = u.fs.getattr(before.ino, Some(fh)).unwrap();
            assert_eq!((after.size, after.ino), (0, before.ino));
            assert!(after.mtime > before.mtime, "{name} copied {copied}: open(2), O_TRUNC");
            u.fs.release(fh);
        }
    }
    assert_eq!(std::fs::read(t.lower("f")).unwrap(), b"text");
}
