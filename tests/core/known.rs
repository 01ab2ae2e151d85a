//! What is remembered between operations must not outlive what makes it true: names found missing, what lowers
//! hold, that a file has no capability, that a file is open.

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use unionfs::fs::{ROOT, SetAttr, SetTime};

use crate::tree::{Tree, is_root, os};
use crate::union::{KEEP, caller};

#[test]
fn a_name_found_missing_can_come_by_other_ways() {
    let t = Tree::new(&["f d/low low\nf d/other other\nf g"]);
    let u = t.open();
    let d = u.ino("d").unwrap();
    let missing = |name: &str| assert_eq!(u.fs.lookup(d, os(name)).unwrap_err(), Errno::NOENT);
    let create = |name: &str| {
        let made = u.fs.create(&caller(), d, os(name), 0o644, libc::O_WRONLY, &mut |_| None);
        made.map(|(attr, open)| {
            u.fs.release(open.fh);
            u.fs.forget(attr.ino, 1);
        })
    };
    // By a rename, a link and a directory.
    missing("new");
    u.rename("g", "d/new").unwrap();
    assert_eq!(create("new"), Err(Errno::EXIST));
    missing("linked");
    u.link("d/new", "d/linked").unwrap();
    assert_eq!(create("linked"), Err(Errno::EXIST));
    missing("dir");
    u.mkdir("d/dir").unwrap();
    assert_eq!(create("dir"), Err(Errno::EXIST));
    // A whiteout of the name must give way; one that came later, too.
    u.unlink("d/low").unwrap();
    missing("low");
    create("low").unwrap();
    assert_eq!(u.get("d/low").unwrap(), "");
    missing("later");
    u.rename("d/other", "d/later").unwrap();
    u.unlink("d/later").unwrap();
    missing("other");
    create("later").unwrap();
    create("other").unwrap();
    u.mkdir("d/again").unwrap();
    missing("gone");
    u.rmdir("d/again").unwrap();
    missing("again");
    u.mkdir("d/again").unwrap();
    // In a directory that takes another's place, the name says nothing of the old one's.
    u.mkdir("empty").unwrap();
    let empty = u.ino("empty").unwrap();
    assert!(u.fs.lookup(empty, os("low")).is_err());
    u.unlink("d/dir").unwrap_err();
    u.rename("d", "empty").unwrap();
    assert_eq!(u.put("empty/low", ""), Err(Errno::EXIST));
    assert!(u.list("empty").unwrap().contains(&"low".to_owned()));
}

#[test]
fn lookups_say_the_same_before_and_after_lowers_are_read() {
    let layers = [
        "f d/a top\nw d/b\nf d/.wh.c\nd d/e\nf d/e/.wh..wh..opq\nf d/e/x",
        "f d/a mid\nf d/b mid\nf d/c mid\nf d/f mid\nd d/e\nf d/e/y\nd d/g\nf d/g/1",
        "f d/h bottom\nf d/c bottom\nd d/g\nf d/g/2\nd d/e",
    ];
    let t = Tree::new(&layers);
    let u = t.open();
    let d = u.ino("d").unwrap();
    let look = || -> Vec<_> {
        let names = ["a", "b", "c", "e", "f", "g", "h", ".wh.c", "nowhere"];
        names.map(|name| u.fs.lookup(d, os(name)).map(|attr| (attr.ino, attr.size))).to_vec()
    };
    let first = look();
    for _ in 0..20 {
        assert_eq!(look(), first);
    }
    let kinds: Vec<_> = first.iter().map(Result::is_ok).collect();
    assert_eq!(kinds, [true, false, false, true, true, true, true, false, false]);
    assert_eq!(u.list("d").unwrap(), ["a", "e", "f", "g", "h"]);
    assert_eq!(
        (u.list("d/e").unwrap(), u.list("d/g").unwrap()),
        (vec!["x".into()], vec!["1".into(), "2".into()])
    );
    assert_eq!(look(), first);
}

#[test]
fn a_capability_is_seen_once_it_is_there() {
    if !is_root() {
        println!("SKIP: setting capabilities needs root");
        return;
    }
    const NAME: &str = "security.capability";
    // CAP_NET_RAW, effective, in the second form (capabilities(7)).
    let value = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let t = Tree::new(&["f low text"]);
    let u = t.open();
    u.put("new", "text").unwrap();
    for path in ["low", "new"] {
        let ino = u.ino(path).unwrap();
        assert_eq!(u.getxattr(path, NAME), Err(Errno::NODATA));
        assert_eq!(u.getxattr(path, NAME), Err(Errno::NODATA));
        u.fs.setxattr(&caller(), ino, os(NAME), &value, XattrFlags::empty()).unwrap();
        assert_eq!(u.getxattr(path, NAME).unwrap(), value);
        u.fs.removexattr(ino, os(NAME)).unwrap();
        assert_eq!(u.getxattr(path, NAME), Err(Errno::NODATA));
    }
}

#[test]
fn attributes_go_to_the_file_that_is_open() {
    let t = Tree::new(&["f low text"]);
    let u = t.open();
    let times = SetAttr { atime: SetTime::At(5, 6), mtime: SetTime::At(7, 8), ..KEEP };
    let made = u.fs.create(&caller(), ROOT, os("f"), 0o644, libc::O_RDWR, &mut |_| None).unwrap();
    let (ino, fh) = (made.0.ino, made.1.fh);
    // Under its name, a new one, and none; then a new file under the old name.
    for name in ["f", "g", ""] {
        let set = u.fs.setattr(&caller(), ino, &SetAttr { mode: Some(0o600), ..times }, None).unwrap();
        assert_eq!((set.mode & 0o7777, set.atime, set.mtime), (0o600, (5, 6), (7, 8)));
        assert_eq!(u.fs.getattr(ino, None).unwrap(), set);
        match name {
            "f" => u.rename("f", "g").unwrap(),
            "g" => u.unlink("g").unwrap(),
            _ => assert_eq!(set.nlink, 0),
        }
    }
    u.put("f", "other").unwrap();
    u.fs.setattr(&caller(), ino, &SetAttr { mode: Some(0o400), ..KEEP }, None).unwrap();
    assert_eq!(u.stat("f").unwrap().mode & 0o7777, 0o644);
    u.fs.release(fh);
    assert_eq!(u.fs.getattr(ino, None).unwrap().mode & 0o7777, 0o400, "after it was closed");
    // One that is open in a lower, and copied up then.
    let fh = u.open("low", libc::O_RDONLY).unwrap();
    u.set("low", times).unwrap();
    assert_eq!(u.stat("low").unwrap().mtime, (7, 8));
    assert_eq!(u.read_fh(fh).unwrap(), b"text");
    u.fs.release(fh);
}
