//! The init layer is changed where it is; everything else goes to the upper.

use std::fs;

use rustix::io::Errno;

use crate::tree::{Tree, is_whiteout, names, set_xattr, xattr};
use crate::union::Union;

fn layers() -> Tree {
    Tree::on("f etc/upper u", &["f etc/hosts lower\nf etc/passwd p\nd data\nf etc/only.d/l l\nf low x"])
        .init("f etc/hosts init\nf etc/resolv.conf r\nf etc/only.d/i i\nf own/f f")
}

fn init(t: &Tree, rel: &str) -> Option<String> {
    fs::read_to_string(t.path("init").join(rel)).ok()
}

#[track_caller]
fn same_again(t: &Tree, u: &Union) {
    assert_eq!(t.open().tree(), u.tree());
    assert_eq!(t.left_over(), [""; 0]);
    u.forget_all();
    assert_eq!(u.fs.counts(), (1, 0, 0));
}

#[test]
fn changes_of_init_files_stay_there() {
    let t = layers();
    let u = t.open();
    let upper = t.snapshot("upper");
    u.write("etc/hosts", "INIT").unwrap();
    u.chmod("etc/resolv.conf", 0o600).unwrap();
    u.fs.setxattr(
        &crate::union::caller(),
        u.ino("own/f").unwrap(),
        crate::tree::os("user.k"),
        b"v",
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    let fh = u.open("etc/only.d/i", libc::O_WRONLY | libc::O_TRUNC).unwrap();
    u.fs.release(fh);
    assert_eq!(init(&t, "etc/hosts").unwrap(), "INIT");
    assert_eq!(init(&t, "etc/only.d/i").unwrap(), "");
    assert_eq!(xattr(t.path("init/own/f"), "user.k").unwrap(), b"v");
    assert_eq!(t.snapshot("upper"), upper);
    same_again(&t, &u);
}

#[test]
fn deleted_and_made_anew() {
    let t = layers();
    let u = t.open();
    let upper = t.snapshot("upper");
    u.unlink("etc/hosts").unwrap();
    assert_eq!(u.ino("etc/hosts"), Err(Errno::NOENT));
    assert!(is_whiteout(t.path("init/etc/hosts")));
    u.unlink("etc/resolv.conf").unwrap();
    assert!(is_whiteout(t.path("init/etc/resolv.conf")), "the name stays the container's own");
    same_again(&t, &u);
    u.put("etc/hosts", "again").unwrap();
    assert_eq!(init(&t, "etc/hosts").unwrap(), "again");
    assert_eq!(t.snapshot("upper"), upper);
    same_again(&t, &u);
}

#[test]
fn made_anew_as_the_merged_directory_has_it() {
    // Owner read and write, group and others nothing, for what is made below.
    const DEFAULT_ACL: &[u8] = &[
        2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 4, 0, 0, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255,
        255, 255,
    ];
    let t = layers();
    let u = t.open();
    u.unlink("etc/hosts").unwrap();
    // Both land in the upper part, which the init layer's own part knows nothing of.
    let default_acl = crate::tree::os("system.posix_acl_default");
    let flags = rustix::fs::XattrFlags::empty();
    u.fs.setxattr(&crate::union::caller(), u.ino("etc").unwrap(), default_acl, DEFAULT_ACL, flags).unwrap();
    u.put("etc/hosts", "anew").unwrap();
    assert_eq!(init(&t, "etc/hosts").unwrap(), "anew");
    assert_eq!(u.stat("etc/hosts").unwrap().mode & 0o777, 0o600);
    same_again(&t, &u);
}

#[test]
fn replaced_by_rename_as_editors_do() {
    let t = layers();
    let u = t.open();
    u.put("etc/hosts.tmp", "edited").unwrap();
    assert!(t.upper("etc/hosts.tmp").exists(), "new names go to the upper");
    u.rename("etc/hosts.tmp", "etc/hosts").unwrap();
    assert_eq!(init(&t, "etc/hosts").unwrap(), "edited");
    assert_eq!(names(&t.upper("etc")), ["upper"]);
    same_again(&t, &u);
    // A lower file over an init file.
    let number = u.ino("etc/passwd").unwrap();
    u.rename("etc/passwd", "etc/hosts").unwrap();
    assert_eq!(u.ino("etc/hosts").unwrap(), number);
    assert_eq!(init(&t, "etc/hosts").unwrap(), "p");
    assert!(is_whiteout(t.upper("etc/passwd")));
    assert_eq!(u.get("etc/hosts").unwrap(), "p");
    same_again(&t, &u);
    // One init file over another.
    u.rename("etc/resolv.conf", "etc/hosts").unwrap();
    assert_eq!(init(&t, "etc/hosts").unwrap(), "r");
    assert!(is_whiteout(t.path("init/etc/resolv.conf")));
    same_again(&t, &u);
}

#[test]
fn renamed_to_a_new_name() {
    let t = layers();
    let u = t.open();
    let ino = u.ino("etc/hosts").unwrap();
    u.rename("etc/hosts", "etc/hosts.bak").unwrap();
    assert_eq!(fs::read_to_string(t.upper("etc/hosts.bak")).unwrap(), "init");
    assert!(is_whiteout(t.path("init/etc/hosts")));
    assert_eq!(u.ino("etc/hosts.bak").unwrap(), ino);
    assert_eq!(u.ino("etc/hosts"), Err(Errno::NOENT));
    same_again(&t, &u);
    u.rename("etc/hosts.bak", "etc/hosts").unwrap();
    assert_eq!(init(&t, "etc/hosts").unwrap(), "init");
    assert_eq!(names(&t.upper("etc")), ["upper"]);
    same_again(&t, &u);
}

#[test]
fn a_name_in_the_upper_stays_there() {
    let t = Tree::on("f etc/hosts upper", &["f etc/hosts lower"]).init("f etc/hosts init");
    let u = t.open();
    u.write("etc/hosts", "UPPER").unwrap();
    u.unlink("etc/hosts").unwrap();
    assert!(is_whiteout(t.upper("etc/hosts")));
    assert_eq!(init(&t, "etc/hosts").unwrap(), "init");
    u.put("etc/hosts", "new").unwrap();
    assert_eq!(fs::read_to_string(t.upper("etc/hosts")).unwrap(), "new");
    assert_eq!(init(&t, "etc/hosts").unwrap(), "init");
    same_again(&t, &u);
}

#[test]
fn new_names_in_directories_that_only_init_has() {
    let t = layers();
    let u = t.open();
    u.put("own/new", "new").unwrap();
    assert_eq!(fs::read_to_string(t.upper("own/new")).unwrap(), "new");
    assert_eq!(names(&t.path("init/own")), ["f"]);
    assert_eq!(u.list("own").unwrap(), ["f", "new"]);
    same_again(&t, &u);
    u.unlink("own/new").unwrap();
    u.unlink("own/f").unwrap();
    u.rmdir("own").unwrap();
    assert_eq!(u.ino("own"), Err(Errno::NOENT));
    same_again(&t, &u);
    u.mkdir("own").unwrap();
    assert_eq!(u.list("own").unwrap(), [""; 0]);
    same_again(&t, &u);
}

#[test]
fn directories_of_init_do_not_move() {
    let t = layers();
    let u = t.open();
    assert_eq!(u.rename("own", "moved"), Err(Errno::XDEV));
    assert_eq!(u.exchange("own", "data"), Err(Errno::XDEV));
    assert_eq!(u.exchange("etc/hosts", "etc/upper"), Err(Errno::XDEV));
    // A merged one whose topmost part is the upper's does, with what init has below it.
    u.chmod("etc/only.d", 0o700).unwrap();
    let moved = u.rename("etc", "data/etc");
    assert_eq!(moved, Ok(()));
    assert_eq!(u.get("data/etc/hosts").unwrap(), "init");
    assert_eq!(u.get("data/etc/only.d/i").unwrap(), "i");
    u.write("data/etc/hosts", "INIT").unwrap();
    assert_eq!(init(&t, "etc/hosts").unwrap(), "INIT");
    same_again(&t, &u);
}

#[test]
fn hardlinks_between_upper_and_init() {
    let t = layers();
    let u = t.open();
    assert_eq!(u.link("etc/hosts", "etc/hosts2").unwrap_err(), Errno::XDEV);
    u.unlink("etc/hosts").unwrap();
    assert_eq!(u.link("etc/upper", "etc/hosts").unwrap_err(), Errno::XDEV);
    same_again(&t, &u);
}

/// Names of one init file cannot be divided between two layers.
#[test]
fn a_hardlinked_init_file_does_not_move_to_the_upper() {
    let t = Tree::new(&["d d"]).init("f a text\nh b a\nf c c");
    let u = t.open();
    assert_eq!(u.rename("a", "new"), Err(Errno::XDEV));
    assert_eq!(u.rename("a", "c"), Ok(()));
    assert_eq!((u.nlink("b"), u.ino("c").unwrap()), (2, u.ino("b").unwrap()));
    u.put("x", "x").unwrap();
    u.link("x", "y").unwrap();
    assert_eq!(u.rename("x", "c"), Err(Errno::XDEV));
    same_again(&t, &u);
}

#[test]
fn the_last_name_of_a_hardlink_moves_to_init() {
    let t = Tree::on("", &["f a one\nh b a"]).init("f c init");
    let u = t.open();
    u.unlink("a").unwrap();
    u.rename("b", "c").unwrap();
    assert_eq!(init(&t, "c").unwrap(), "one");
    assert_eq!(u.stat("c").unwrap().nlink, 1);
    assert_eq!(t.index(), [""; 0]);
    same_again(&t, &u);
}

#[test]
fn unlinked_while_open() {
    let t = layers();
    let u = t.open();
    let fh = u.open("etc/hosts", libc::O_RDWR).unwrap();
    let ino = u.ino("etc/hosts").unwrap();
    u.unlink("etc/hosts").unwrap();
    u.fs.write(fh, 4, b"!", None).unwrap();
    assert_eq!(u.read_fh(fh).unwrap(), b"init!");
    assert_eq!(u.fs.getattr(ino, None).unwrap().nlink, 0);
    u.fs.release(fh);
    let fh = u.open("etc/resolv.conf", libc::O_RDWR).unwrap();
    u.rename("etc/resolv.conf", "moved").unwrap();
    u.fs.write(fh, 0, b"R", None).unwrap();
    assert_eq!(fs::read_to_string(t.upper("moved")).unwrap(), "R");
    u.fs.release(fh);
    same_again(&t, &u);
}

#[test]
fn numbers_of_init_files() {
    let t = layers();
    set_xattr(t.path("init/etc/hosts"), "user.k", "v");
    let u = t.open();
    let before = u.numbers();
    u.write("etc/hosts", "X").unwrap();
    u.put("etc/new", "x").unwrap();
    u.chmod("etc", 0o700).unwrap();
    let mut after = u.numbers();
    after.remove("etc/new");
    assert_eq!(after, before);
    same_again(&t, &u);
}

/// Upper and init on different filesystems: what cannot be renamed is copied.
#[test]
fn on_another_filesystem() {
    let mut t = layers();
    let place = t.path("small");
    fs::create_dir(&place).unwrap();
    let Some(_small) = crate::tree::Small::mount(&place, 4 << 20) else { return };
    t.put_init_in("small", "f etc/hosts init\nf etc/resolv.conf r");
    let u = t.open();
    u.put("etc/hosts.tmp", "edited").unwrap();
    let fh = u.open("etc/hosts.tmp", libc::O_RDWR).unwrap();
    u.rename("etc/hosts.tmp", "etc/hosts").unwrap();
    assert_eq!(fs::read_to_string(t.path("small/init/etc/hosts")).unwrap(), "edited");
    u.fs.write(fh, 0, b"E", None).unwrap();
    u.fs.release(fh);
    assert_eq!(u.get("etc/hosts").unwrap(), "Edited");
    same_again(&t, &u);
    u.rename("etc/resolv.conf", "etc/r").unwrap();
    assert!(is_whiteout(t.path("small/init/etc/resolv.conf")));
    assert_eq!(fs::read_to_string(t.upper("etc/r")).unwrap(), "r");
    same_again(&t, &u);
    u.rename("etc/passwd", "etc/resolv.conf").unwrap();
    assert_eq!(fs::read_to_string(t.path("small/init/etc/resolv.conf")).unwrap(), "p");
    same_again(&t, &u);
}
