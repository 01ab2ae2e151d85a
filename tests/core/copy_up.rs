//! Copy-up of every type, with all that belongs to an object.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use rustix::io::Errno;
use unionfs::fs::{SetAttr, SetTime};

use crate::tree::{Small, Tree, is_root, names, os, private, set_xattr, xattr, xattr_names};
use crate::union::{CALLER, KEEP, caller};

/// An access ACL: owner rw, user 1 r, group r, mask r, others nothing.
const ACL: &[u8] = &[
    2, 0, 0, 0, //
    1, 0, 6, 0, 255, 255, 255, 255, //
    2, 0, 4, 0, 1, 0, 0, 0, //
    4, 0, 4, 0, 255, 255, 255, 255, //
    16, 0, 4, 0, 255, 255, 255, 255, //
    32, 0, 0, 0, 255, 255, 255, 255, //
];
/// A file capability: cap_net_raw=ep.
const CAP: &[u8] = &[1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn stamp(path: &Path, (atime, mtime): ((i64, i64), (i64, i64))) {
    let time = |(tv_sec, tv_nsec)| rustix::fs::Timespec { tv_sec, tv_nsec };
    let times = rustix::fs::Timestamps { last_access: time(atime), last_modification: time(mtime) };
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    rustix::fs::utimensat(rustix::fs::CWD, path, &times, flags).unwrap();
}

fn own(path: &Path) {
    if is_root() {
        std::os::unix::fs::lchown(path, Some(1234), Some(5678)).unwrap();
    }
}

#[test]
fn every_type_with_all_its_metadata() {
    if !is_root() {
        eprintln!("SKIP: device nodes and other owners take root");
        return;
    }
    let t = Tree::new(&["d p/dir\nf p/file text\nl p/link some/target\np p/fifo"]);
    let node = |name: &str, kind, dev| {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, t.lower(name), kind, mode, dev).unwrap();
    };
    node("p/char", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    node("p/block", rustix::fs::FileType::BlockDevice, rustix::fs::makedev(7, 99));
    node("p/socket", rustix::fs::FileType::Socket, 0);
    let all = ["p/dir", "p/file", "p/link", "p/fifo", "p/char", "p/block", "p/socket"];
    for (i, name) in all.iter().enumerate() {
        let path = t.lower(name);
        own(&path);
        set_xattr(&path, "trusted.mine", name);
        if !path.is_symlink() {
            set_xattr(&path, "system.posix_acl_access", ACL);
            let mode = [0o3751, 0o6755, 0, 0o1640, 0o604, 0o4060, 0o700][i];
            rustix::fs::chmod(&path, rustix::fs::Mode::from_raw_mode(mode)).unwrap();
        }
        stamp(&path, ((-5, 7), (1_000_000_000 + i as i64, 123_456_789)));
    }
    set_xattr(t.lower("p/file"), "security.capability", CAP);
    set_xattr(t.lower("p/dir"), "system.posix_acl_default", ACL);
    stamp(&t.lower("p"), ((1, 1), (2, 2)));
    let before = t.snapshot("lower0");
    // Reading it changed the access times.
    for (i, name) in all.iter().enumerate() {
        stamp(&t.lower(name), ((-5, 7), (1_000_000_000 + i as i64, 123_456_789)));
    }
    let u = t.open();
    let shown = u.tree();
    // One more name takes a copy-up and changes nothing else.
    for name in all.iter().filter(|n| **n != "p/dir") {
        u.link(name, &format!("{name}.2")).unwrap();
    }
    u.set("p/dir", SetAttr { atime: SetTime::At(-5, 7), ..KEEP }).unwrap();
    for name in all {
        let (low, up) =
            (t.lower(name).symlink_metadata().unwrap(), t.upper(name).symlink_metadata().unwrap());
        let of = |m: &fs::Metadata| {
            (m.mode(), m.uid(), m.gid(), m.rdev(), m.atime(), m.atime_nsec(), m.mtime(), m.mtime_nsec())
        };
        assert_eq!(of(&low), of(&up), "{name}");
    }
    let after = u.tree();
    for name in all {
        let (was, is) = (&shown[name], &after[name]);
        assert_eq!((was.attr, was.ino, &was.content), (is.attr, is.ino, &is.content), "{name}");
        assert_eq!(was.xattrs, is.xattrs, "{name}");
    }
    assert_eq!(xattr(t.upper("p/file"), "security.capability").unwrap().len(), CAP.len());
    assert_eq!(t.snapshot("lower0"), before);
    assert_eq!(t.left_over(), [""; 0]);
}

#[test]
fn the_parents_times_stay() {
    let t = Tree::new(&["f a/b/f text\nd a/b/d"]);
    for dir in ["a/b", "a"] {
        stamp(&t.lower(dir), ((3, 3), (1000, 42)));
    }
    let u = t.open();
    u.chmod("a/b/f", 0o600).unwrap();
    u.chmod("a/b/d", 0o700).unwrap();
    for dir in ["a", "a/b"] {
        assert_eq!(u.stat(dir).unwrap().mtime, (1000, 42), "{dir}");
    }
    assert_eq!(t.open().stat("a/b").unwrap().mtime, (1000, 42));
}

#[test]
fn only_what_must_be_is_copied() {
    let t = Tree::new(&["f a/f text\nf a/g text\nd b"]);
    let u = t.open();
    u.get("a/f").unwrap();
    u.list("a").unwrap();
    assert_eq!(u.fs.removexattr(u.ino("a/f").unwrap(), os("user.none")), Err(Errno::NODATA));
    assert_eq!(names(&t.upper("")), [""; 0]);
    u.write("a/f", "TEXT").unwrap();
    assert_eq!(names(&t.upper("")), ["a"]);
    assert_eq!(names(&t.upper("a")), ["f"]);
    assert_eq!(t.index(), [""; 0]);
    assert_eq!((u.get("a/f").unwrap(), u.get("a/g").unwrap()), ("TEXT".into(), "text".into()));
    assert_eq!(fs::read_to_string(t.lower("a/f")).unwrap(), "text");
}

#[test]
fn holes_stay_holes() {
    const MB: u64 = 1 << 20;
    let t = Tree::new(&["f sparse"]);
    let file = fs::File::options().write(true).open(t.lower("sparse")).unwrap();
    file.set_len(64 * MB).unwrap();
    file.write_all_at(b"one", 5 * MB).unwrap();
    file.write_all_at(b"two", 40 * MB + 5).unwrap();
    file.sync_all().unwrap();
    let u = t.open();
    u.write("sparse", "start").unwrap();
    let up = t.upper("sparse").metadata().unwrap();
    assert_eq!(up.len(), 64 * MB);
    assert!(up.blocks() * 512 < MB, "{} blocks", up.blocks());
    let (mut want, got) = (fs::read(t.lower("sparse")).unwrap(), fs::read(t.upper("sparse")).unwrap());
    want[..5].copy_from_slice(b"start");
    assert!(want == got);
}

#[test]
fn truncation_copies_what_is_kept() {
    let t = Tree::new(&["f a 0123456789\nf b 0123456789\nf c 0123456789"]);
    let u = t.open();
    for (name, size, content) in [("a", 4, "0123"), ("b", 0, ""), ("c", 12, "0123456789\0\0")] {
        let attr = u.set(name, SetAttr { size: Some(size), ..KEEP }).unwrap();
        assert_eq!(attr.size, size);
        assert_eq!(u.get(name).unwrap(), content);
    }
}

#[test]
fn numbers_stay() {
    let t = Tree::new(&[
        if is_root() { "f a/f 1\nd a/d/e\nl a/l x" } else { "f a/f 1\nd a/d/e" },
        "f a/d/e/g 2\nf a/h 2",
    ]);
    let u = t.open();
    let before = u.numbers();
    for path in before.keys() {
        u.set(path, SetAttr { mtime: SetTime::At(9, 9), ..KEEP }).unwrap();
    }
    assert_eq!(u.numbers(), before);
    assert_eq!(t.open().numbers(), before);
    assert_eq!(t.open().tree(), u.tree());
}

#[test]
fn private_attributes_are_hidden_and_escaped() {
    let t = Tree::new(&["o d\nf d/f text"]);
    let u = t.open();
    let d = u.ino("d").unwrap();
    let key = private("opaque");
    let escaped = key.replace("overlay.", "overlay.overlay.");
    assert_eq!(u.getxattr("d", &key), Err(Errno::NODATA));
    assert!(u.xattrs(d).is_empty());
    let none = rustix::fs::XattrFlags::empty();
    u.fs.setxattr(&caller(), d, os(&key), b"mine", none).unwrap();
    assert_eq!(u.getxattr("d", &key).unwrap(), b"mine");
    assert_eq!(u.xattrs(d).keys().collect::<Vec<_>>(), [&key]);
    assert_eq!(xattr(t.upper("d"), &escaped).unwrap(), b"mine");
    // Deeper nesting is escaped once more.
    u.fs.setxattr(&caller(), d, os(&escaped), b"deeper", none).unwrap();
    assert_eq!(u.xattrs(d).len(), 2);
    assert_eq!(u.getxattr("d", &escaped).unwrap(), b"deeper");
    assert_eq!(t.open().getxattr("d", &key).unwrap(), b"mine");
    u.fs.removexattr(d, os(&key)).unwrap();
    assert_eq!(u.getxattr("d", &key), Err(Errno::NODATA));
    assert_eq!(u.getxattr("d", "user.fuseoverlayfs.opaque"), Err(Errno::NODATA));
    let refused = u.fs.setxattr(&caller(), d, os("user.fuseoverlayfs.opaque"), b"y", none);
    assert_eq!(refused, Err(Errno::OPNOTSUPP));
    assert_eq!(u.show(), ["d/", "d/f=text"]);
}

#[test]
fn escaped_attributes_of_a_lower_are_copied() {
    let t = Tree::new(&["f f text"]);
    let key = private("origin");
    set_xattr(t.lower("f"), &key.replace("overlay.", "overlay.overlay."), "nested");
    set_xattr(t.lower("f"), "user.plain", "plain");
    let u = t.open();
    u.chmod("f", 0o600).unwrap();
    assert_eq!(u.getxattr("f", &key).unwrap(), b"nested");
    assert_eq!(u.getxattr("f", "user.plain").unwrap(), b"plain");
    assert_eq!(u.xattrs(u.ino("f").unwrap()).len(), 2);
}

#[test]
fn flags_of_setxattr() {
    let t = Tree::new(&["f f text"]);
    set_xattr(t.lower("f"), "user.k", "v");
    let u = t.open();
    let f = u.ino("f").unwrap();
    let set = |name, flags| u.fs.setxattr(&CALLER, f, os(name), b"w", flags);
    assert_eq!(set("user.k", rustix::fs::XattrFlags::CREATE), Err(Errno::EXIST));
    assert_eq!(set("user.x", rustix::fs::XattrFlags::REPLACE), Err(Errno::NODATA));
    assert!(!t.upper("f").exists());
    assert_eq!(set("user.k", rustix::fs::XattrFlags::REPLACE), Ok(()));
    assert_eq!(set("user.x", rustix::fs::XattrFlags::CREATE), Ok(()));
    assert_eq!(set("user.x", rustix::fs::XattrFlags::CREATE), Err(Errno::EXIST));
}

/// What the work directory would hand down to what is made in it is not the copy's.
#[test]
fn a_default_acl_of_the_work_directory_does_not_matter() {
    if !is_root() {
        eprintln!("SKIP: the access time of another's file takes root");
        return;
    }
    let t = Tree::new(&["f f text\nd d\np p"]);
    let mut acl = ACL.to_vec();
    acl[4 + 8 + 2] = 7;
    set_xattr(t.path("work"), "system.posix_acl_default", &acl);
    rustix::fs::chmod(t.path("work"), rustix::fs::Mode::from_raw_mode(0o2777)).unwrap();
    let u = t.open();
    for name in ["f", "d", "p"] {
        let before = u.stat(name).unwrap();
        u.set(name, SetAttr { atime: SetTime::At(1, 1), ..KEEP }).unwrap();
        assert_eq!(u.stat(name).unwrap().mode, before.mode, "{name}");
        let acls: Vec<_> = xattr_names(&t.upper(name)).into_iter().filter(|n| n.contains("acl")).collect();
        assert_eq!(acls, [""; 0], "{name}");
    }
}

#[test]
fn a_full_upper_leaves_everything_as_it_was() {
    let mut t = Tree::new(&["f d/big\nf d/hard\nh d/hard2 d/hard\nf d/small text"]);
    for name in ["d/big", "d/hard"] {
        fs::write(t.lower(name), vec![b'x'; 3 << 20]).unwrap();
    }
    let place = t.path("small");
    fs::create_dir(&place).unwrap();
    let Some(_small) = Small::mount(&place, 1 << 20) else { return };
    t.put_upper_in("small");
    let u = t.open();
    let before = u.tree();
    for name in ["d/big", "d/hard2", "d/hard"] {
        assert_eq!(u.open(name, libc::O_RDWR).unwrap_err(), Errno::NOSPC, "{name}");
        assert_eq!(u.chmod(name, 0o600).unwrap_err(), Errno::NOSPC, "{name}");
        assert_eq!(u.rename(name, "moved"), Err(Errno::NOSPC), "{name}");
        assert_eq!(u.link(name, "linked").unwrap_err(), Errno::NOSPC, "{name}");
        assert_eq!(t.left_over(), [""; 0]);
        assert_eq!(t.index(), [""; 0]);
    }
    assert_eq!(u.tree(), before);
    assert_eq!(t.open().tree(), before);
    u.write("d/small", "TEXT").unwrap();
    u.unlink("d/big").unwrap();
    let fh = u.open("d/hard", libc::O_RDONLY | libc::O_TRUNC).unwrap();
    u.fs.release(fh);
    assert_eq!((u.get("d/hard2").unwrap(), u.nlink("d/hard2")), (String::new(), 2));
    drop(u);
    assert_eq!(t.open().list("d").unwrap(), ["hard", "hard2", "small"]);
}

#[test]
fn an_acl_that_is_not_there_can_be_removed() {
    let t = Tree::on("", &["f f text\nd d"]);
    let u = t.open();
    for path in ["f", "d"] {
        let ino = u.ino(path).unwrap();
        for name in ["system.posix_acl_access", "system.posix_acl_default"] {
            u.fs.removexattr(ino, name.as_ref()).unwrap();
        }
        assert_eq!(u.fs.removexattr(ino, "user.a".as_ref()), Err(Errno::NODATA));
        assert!(!t.upper(path).exists(), "{path} was copied up for nothing");
    }
}
