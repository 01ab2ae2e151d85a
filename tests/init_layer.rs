//! The init layer: names whose topmost version lies there are changed there, in place; new names go
//! to the upper.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use common::Union;
use common::files::{
    chmod, dir, errno, exists, get, is_whiteout, list, make_opaque, mode, put, set_times, set_xattr,
    whiteout, xattr,
};

/// A base with an /etc, and an init layer with the files of one container.
fn container() -> Union {
    let u = Union::new(2).with_init();
    put(u.lower(1, "etc/hosts"), "lower hosts");
    put(u.lower(1, "etc/passwd"), "root");
    put(u.lower(1, "etc/hostname"), "lower");
    put(u.init("etc/hosts"), "init hosts");
    put(u.init("etc/hostname"), "init");
    put(u.init("etc/resolv.conf"), "nameserver 1");
    put(u.init("etc/both"), "init");
    put(u.upper("etc/both"), "upper");
    put(u.init("only/here"), "here");
    u
}

/// Asserts that a name never reached the upper.
fn not_in_upper(u: &Union, rel: &str) {
    assert!(!exists(u.upper(rel)), "{rel} is in the upper");
}

#[test]
fn init_lies_between_upper_and_lowers() {
    need_unionfs!();
    let u = container().mounted();
    assert_eq!(get(u.at("etc/hosts")), "init hosts");
    assert_eq!(get(u.at("etc/both")), "upper");
    assert_eq!(get(u.at("etc/passwd")), "root");
    assert_eq!(get(u.at("only/here")), "here");
    assert_eq!(list(u.at("etc")), ["both", "hostname", "hosts", "passwd", "resolv.conf"]);
}

#[test]
fn changes_stay_in_init() {
    need_unionfs!();
    let mut u = container().mounted();
    put(u.at("etc/hosts"), "changed");
    chmod(u.at("etc/hostname"), 0o600);
    set_xattr(u.at("etc/resolv.conf"), "user.k", b"v");
    std::os::unix::fs::chown(u.at("etc/resolv.conf"), Some(5), Some(6)).unwrap();
    set_times(u.at("etc/resolv.conf"), (7, 0), (8, 9));
    std::fs::OpenOptions::new().write(true).open(u.at("only/here")).unwrap().set_len(2).unwrap();
    for _ in 0..2 {
        assert_eq!(get(u.init("etc/hosts")), "changed");
        assert_eq!(get(u.at("etc/hosts")), "changed");
        assert_eq!((mode(u.init("etc/hostname")), mode(u.at("etc/hostname"))), (0o600, 0o600));
        assert_eq!(xattr(u.init("etc/resolv.conf"), "user.k").as_deref(), Some(&b"v"[..]));
        let meta = u.init("etc/resolv.conf").metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec()), (5, 6, 8, 9));
        assert_eq!(get(u.init("only/here")), "he");
        for name in ["etc/hosts", "etc/hostname", "etc/resolv.conf", "only/here"] {
            not_in_upper(&u, name);
        }
        u.remount();
    }
    rustix::fs::lremovexattr(u.at("etc/resolv.conf"), "user.k").unwrap();
    assert_eq!(xattr(u.init("etc/resolv.conf"), "user.k"), None);
    assert_eq!(get(u.lower(1, "etc/hosts")), "lower hosts");
}

#[test]
fn what_lies_in_the_upper_stays_there() {
    need_unionfs!();
    let u = container().mounted();
    put(u.at("etc/both"), "changed");
    assert_eq!((get(u.upper("etc/both")).as_str(), get(u.init("etc/both")).as_str()), ("changed", "init"));
    // A lower's file is copied up into the upper, not into init.
    put(u.at("etc/passwd"), "changed");
    assert_eq!(get(u.upper("etc/passwd")), "changed");
    assert!(!exists(u.init("etc/passwd")));
}

#[test]
fn new_names_go_to_the_upper() {
    need_unionfs!();
    let mut u = container().mounted();
    put(u.at("etc/new"), "new");
    put(u.at("only/new"), "new");
    dir(u.at("only/dir"));
    std::os::unix::fs::symlink("t", u.at("only/link")).unwrap();
    for _ in 0..2 {
        assert_eq!(get(u.upper("etc/new")), "new");
        assert_eq!(get(u.upper("only/new")), "new");
        assert!(!exists(u.init("etc/new")) && !exists(u.init("only/new")));
        assert_eq!(list(u.at("only")), ["dir", "here", "link", "new"]);
        assert_eq!(list(u.init("only")), ["here"]);
        u.remount();
    }
}

#[test]
fn replacement_by_rename_stays_in_init() {
    need_unionfs!();
    let mut u = container().mounted();
    put(u.at("etc/.hosts.swp"), "by an editor");
    std::fs::rename(u.at("etc/.hosts.swp"), u.at("etc/hosts")).unwrap();
    for _ in 0..2 {
        assert_eq!(get(u.at("etc/hosts")), "by an editor");
        assert_eq!(get(u.init("etc/hosts")), "by an editor");
        not_in_upper(&u, "etc/hosts");
        not_in_upper(&u, "etc/.hosts.swp");
        u.remount();
    }
}

#[test]
fn sed_in_place_stays_in_init() {
    need_unionfs!();
    let u = container().mounted();
    common::run("sed", &["-i".as_ref(), "s/init/sed/".as_ref(), u.at("etc/hosts").as_os_str()]);
    common::run(
        "sed",
        &["-i".as_ref(), "s/lower/sed/;s/init/sed/".as_ref(), u.at("etc/hostname").as_os_str()],
    );
    assert_eq!(get(u.init("etc/hosts")), "sed hosts");
    assert_eq!(get(u.init("etc/hostname")), "sed");
    assert_eq!(get(u.at("etc/hosts")), "sed hosts");
    not_in_upper(&u, "etc/hosts");
    not_in_upper(&u, "etc/hostname");
    assert_eq!(list(u.at("etc")).len(), 5, "no temporary files stay: {:?}", list(u.at("etc")));
    // And twice, so that the temporary name has its history.
    common::run("sed", &["-i".as_ref(), "s/sed/again/".as_ref(), u.at("etc/hosts").as_os_str()]);
    assert_eq!(get(u.init("etc/hosts")), "again hosts");
}

#[test]
fn deletes_leave_their_whiteout_in_init() {
    need_unionfs!();
    let mut u = container().mounted();
    std::fs::remove_file(u.at("etc/hosts")).unwrap();
    std::fs::remove_file(u.at("etc/resolv.conf")).unwrap();
    for _ in 0..2 {
        assert!(!exists(u.at("etc/hosts")) && !exists(u.at("etc/resolv.conf")));
        assert!(is_whiteout(u.init("etc/hosts")), "a lower has the name");
        assert!(
            is_whiteout(u.init("etc/resolv.conf")),
            "no lower has it; the name stays init's all the same"
        );
        not_in_upper(&u, "etc/hosts");
        not_in_upper(&u, "etc/resolv.conf");
        u.remount();
    }
    // The name is init's: made again, it is made there.
    put(u.at("etc/hosts"), "again");
    put(u.at("etc/resolv.conf"), "again");
    for _ in 0..2 {
        assert_eq!(get(u.init("etc/hosts")), "again");
        assert_eq!(get(u.init("etc/resolv.conf")), "again");
        assert_eq!(get(u.at("etc/hosts")), "again");
        not_in_upper(&u, "etc/hosts");
        not_in_upper(&u, "etc/resolv.conf");
        u.remount();
    }
    // What the upper has is deleted in the upper, and init's version must not come out.
    std::fs::remove_file(u.at("etc/both")).unwrap();
    assert!(is_whiteout(u.upper("etc/both")) && get(u.init("etc/both")) == "init");
    u.remount();
    assert!(!exists(u.at("etc/both")));
}

#[test]
fn rename_to_a_new_name_moves_to_the_upper() {
    need_unionfs!();
    let mut u = container().mounted();
    std::fs::rename(u.at("etc/hosts"), u.at("etc/hosts.bak")).unwrap();
    for _ in 0..2 {
        assert_eq!(get(u.upper("etc/hosts.bak")), "init hosts");
        assert_eq!(get(u.at("etc/hosts.bak")), "init hosts");
        assert!(is_whiteout(u.init("etc/hosts")));
        assert!(!exists(u.at("etc/hosts")) && !exists(u.init("etc/hosts.bak")));
        not_in_upper(&u, "etc/hosts");
        u.remount();
    }
    // And back: the name is init's.
    std::fs::rename(u.at("etc/hosts.bak"), u.at("etc/hosts")).unwrap();
    assert_eq!(get(u.init("etc/hosts")), "init hosts");
    not_in_upper(&u, "etc/hosts");
    not_in_upper(&u, "etc/hosts.bak");
}

#[test]
fn rename_between_two_names_of_init() {
    need_unionfs!();
    let mut u = container().mounted();
    std::fs::rename(u.at("etc/hosts"), u.at("etc/hostname")).unwrap();
    for _ in 0..2 {
        assert_eq!(get(u.init("etc/hostname")), "init hosts");
        assert_eq!(get(u.at("etc/hostname")), "init hosts");
        assert!(is_whiteout(u.init("etc/hosts")) && !exists(u.at("etc/hosts")));
        not_in_upper(&u, "etc/hostname");
        not_in_upper(&u, "etc/hosts");
        u.remount();
    }
}

#[test]
fn a_lower_file_renamed_over_an_init_name() {
    need_unionfs!();
    let mut u = container().mounted();
    std::fs::rename(u.at("etc/passwd"), u.at("etc/hosts")).unwrap();
    for _ in 0..2 {
        assert_eq!(get(u.at("etc/hosts")), "root");
        assert_eq!(get(u.init("etc/hosts")), "root");
        assert!(is_whiteout(u.upper("etc/passwd")) && !exists(u.at("etc/passwd")));
        not_in_upper(&u, "etc/hosts");
        u.remount();
    }
}

#[test]
fn other_types_in_the_place_of_an_init_name() {
    need_unionfs!();
    let mut u = container().mounted();
    std::fs::remove_file(u.at("etc/resolv.conf")).unwrap();
    std::os::unix::fs::symlink("../run/resolv.conf", u.at("etc/resolv.conf")).unwrap();
    std::fs::remove_file(u.at("etc/hostname")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        u.at("etc/hostname"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from(0o600),
        0,
    )
    .unwrap();
    std::fs::remove_file(u.at("etc/hosts")).unwrap();
    std::fs::create_dir(u.at("etc/hosts")).unwrap();
    for _ in 0..2 {
        assert!(u.init("etc/resolv.conf").symlink_metadata().unwrap().is_symlink());
        assert!(u.init("etc/hostname").symlink_metadata().unwrap().file_type().is_fifo());
        assert!(u.at("etc/hosts").is_dir() && list(u.at("etc/hosts")).is_empty());
        not_in_upper(&u, "etc/resolv.conf");
        not_in_upper(&u, "etc/hostname");
        u.remount();
    }
}

#[test]
fn links_between_the_layers_are_refused() {
    need_unionfs!();
    let u = container().mounted();
    // A new name would lie in the upper, the file in init.
    assert_eq!(errno(std::fs::hard_link(u.at("etc/hosts"), u.at("etc/linked"))), libc::EXDEV);
    assert!(!exists(u.at("etc/linked")) && !exists(u.upper("etc/linked")));
    std::fs::hard_link(u.at("etc/both"), u.at("etc/both2")).unwrap();
    assert_eq!(u.at("etc/both2").metadata().unwrap().nlink(), 2);
    // Nor does one of several names move from one to the other.
    assert_eq!(errno(std::fs::rename(u.at("etc/both2"), u.at("etc/hosts"))), libc::EXDEV);
    assert_eq!(get(u.at("etc/hosts")), "init hosts");
    assert_eq!(u.at("etc/both2").metadata().unwrap().ino(), u.at("etc/both").metadata().unwrap().ino());
    // And the other way: a name of init's, a file of the upper.
    std::fs::remove_file(u.at("etc/hosts")).unwrap();
    assert_eq!(errno(std::fs::hard_link(u.at("etc/both"), u.at("etc/hosts"))), libc::EXDEV);
    assert!(!exists(u.at("etc/hosts")));
}

#[test]
fn whiteouts_of_init_hide_lowers() {
    need_unionfs!();
    let u = container();
    put(u.lower(0, "gone/file"), "x");
    whiteout(u.init("gone/file"));
    put(u.lower(0, "opaque/low"), "x");
    put(u.init("opaque/mine"), "mine");
    make_opaque(u.init("opaque"));
    let mut u = u.mounted();
    assert!(list(u.at("gone")).is_empty());
    assert_eq!(list(u.at("opaque")), ["mine"]);
    put(u.at("gone/file"), "again");
    assert_eq!(get(u.init("gone/file")), "again");
    put(u.at("opaque/new"), "new");
    u.remount();
    assert_eq!(list(u.at("opaque")), ["mine", "new"]);
    assert_eq!(get(u.upper("opaque/new")), "new");
}

#[test]
fn directories_that_only_init_has() {
    need_unionfs!();
    let mut u = container().mounted();
    // Attributes of a directory of init's are changed in init.
    chmod(u.at("only"), 0o711);
    assert_eq!((mode(u.at("only")), mode(u.init("only"))), (0o711, 0o711));
    put(u.at("only/new"), "new");
    // Its copy in the upper, needed for the new name, shows the same attributes.
    assert_eq!(mode(u.at("only")), 0o711);
    u.remount();
    assert_eq!(mode(u.at("only")), 0o711);
    std::fs::remove_file(u.at("only/new")).unwrap();
    std::fs::remove_file(u.at("only/here")).unwrap();
    std::fs::remove_dir(u.at("only")).unwrap();
    u.remount();
    assert!(!exists(u.at("only")));
    dir(u.at("only"));
    u.remount();
    assert!(list(u.at("only")).is_empty());
}

#[test]
fn open_files_of_init_survive_their_deletion() {
    need_unionfs!();
    use std::io::{Read, Seek, Write};
    let u = container().mounted();
    let mut file = std::fs::OpenOptions::new().read(true).write(true).open(u.at("etc/hosts")).unwrap();
    std::fs::remove_file(u.at("etc/hosts")).unwrap();
    file.write_all(b"still").unwrap();
    file.rewind().unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "stillhosts");
    assert!(is_whiteout(u.init("etc/hosts")));
}
