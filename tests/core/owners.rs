//! Owners translated, and kept in attributes, without a mount.

use std::os::unix::fs::MetadataExt;

use rustix::fs::XattrFlags;
use unionfs::config::ids::{IdMap, Ids};
use unionfs::config::{Options, Permissions};
use unionfs::fs::{Caller, ROOT, SetAttr};

use crate::tree::{Tree, is_root, os, set_xattr, xattr};
use crate::union::KEEP;

fn map(text: &str) -> IdMap {
    IdMap::new(text.parse().unwrap(), None, 65534)
}

#[test]
fn every_operation_translates() {
    if !is_root() {
        return eprintln!("SKIP: owners take root");
    }
    let t = Tree::new(&["f a x\nf b x"]);
    std::os::unix::fs::lchown(t.path("lower0/a"), Some(3), Some(4)).unwrap();
    std::os::unix::fs::lchown(t.path("lower0/b"), Some(9000), Some(9000)).unwrap();
    let ids = Ids { users: map(":0:1000:100"), groups: map("0:2000:100") };
    let u = t.open_with(&Options { ids, ..Options::default() });
    let owner = |path: &str| u.stat(path).map(|a| (a.uid, a.gid)).unwrap();
    assert_eq!((owner("a"), owner("b")), ((1003, 2004), (65534, 65534)));
    let caller = Caller { uid: 1005, gid: 2006, pid: 0, umask: 0 };
    let made = [
        u.fs.mkdir(&caller, ROOT, os("dir"), 0o755).unwrap(),
        u.fs.mknod(&caller, ROOT, os("fifo"), libc::S_IFIFO | 0o644, 0).unwrap(),
        u.fs.symlink(&caller, ROOT, os("link"), os("x")).unwrap(),
        u.fs.create(&caller, ROOT, os("file"), 0o644, libc::O_RDWR, &mut |_| None).unwrap().0,
    ];
    for (attr, name) in made.iter().zip(["dir", "fifo", "link", "file"]) {
        let stored = t.path("upper").join(name).symlink_metadata().unwrap();
        assert_eq!((attr.uid, attr.gid, stored.uid(), stored.gid()), (1005, 2006, 5, 6), "{name}");
    }
    let set = SetAttr { uid: Some(1007), gid: Some(5), ..KEEP };
    let attr = u.fs.setattr(&caller, u.ino("a").unwrap(), &set, None).unwrap();
    assert_eq!((attr.uid, attr.gid), (1007, 65534));
    let stored = t.path("upper/a").metadata().unwrap();
    assert_eq!((stored.uid(), stored.gid()), (7, 65534));
}

#[test]
fn attributes_keep_owners_and_set_id_bits() {
    let t = Tree::new(&["f d/lower x"]);
    let name = "user.containers.override_stat";
    for (path, value) in [("lower0", "0:0:755"), ("lower0/d", "1:2:755"), ("lower0/d/lower", "3:4:4755:file")]
    {
        set_xattr(t.path(path), name, value);
    }
    let options = Options { permissions: Permissions::Containers, acl: false, ..Options::default() };
    let u = t.open_with(&options);
    let shown = |path: &str| u.stat(path).map(|a| (a.uid, a.gid, a.mode & 0o7777)).unwrap();
    assert_eq!((shown("d"), shown("d/lower")), ((1, 2, 0o755), (3, 4, 0o4755)));
    let kept = |path: &str| String::from_utf8(xattr(t.path("upper").join(path), name).unwrap()).unwrap();
    // A write by somebody else copies it up, and clears the bit.
    let ino = u.ino("d/lower").unwrap();
    let opened = u.fs.open_file(&crate::union::caller(), ino, libc::O_RDWR, &mut |_| None).unwrap();
    assert_eq!(kept("d/lower"), "3:4:4755");
    let writer = Caller { uid: 77, gid: 77, pid: 0, umask: 0 };
    assert_eq!(u.fs.write(opened.fh, 0, b"y", Some(&writer)), Ok((1, true)));
    u.fs.release(opened.fh);
    assert_eq!(
        (shown("d/lower"), kept("d/lower"), kept("d")),
        ((3, 4, 0o755), "3:4:755".into(), "1:2:755".into())
    );
    let caller = Caller { uid: 5, gid: 6, pid: 0, umask: 0o027 };
    u.fs.mkdir(&caller, u.ino("d").unwrap(), os("new"), 0o777).unwrap();
    assert_eq!((shown("d/new"), kept("d/new")), ((5, 6, 0o750), "5:6:750".into()));
    let set = u.fs.setxattr(&caller, ino, os(name), b"0:0:4777", XattrFlags::empty());
    assert_eq!(set, Err(rustix::io::Errno::OPNOTSUPP));
    set_xattr(t.path("upper/d/lower"), name, "garbage");
    assert_eq!(u.fs.getattr(ino, None).map(drop), Err(rustix::io::Errno::INVAL));
}
