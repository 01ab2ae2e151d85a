//! Mount options with the names of overlayfs: what they change in the tree.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::Path;

use common::files::{chmod, dir, errno, exists, get, is_whiteout, list, mode, put, set_xattr, xattr};
use common::{Union, text, unionfs};

const REDIRECT: &str = "trusted.overlay.redirect";

/// A union with a merged, a lower and an upper directory.
fn directories(options: &str) -> Union {
    let u = Union::new(2).option(options);
    put(u.lower(0, "merged/low"), "low");
    put(u.lower(1, "low/f"), "f");
    put(u.lower(1, "full/f"), "f");
    put(u.upper("merged/up"), "up");
    put(u.upper("up/f"), "f");
    u.mounted()
}

#[test]
fn redirect_dir_on_renames_in_place() {
    need_unionfs!();
    let mut u = directories("redirect_dir=on");
    std::fs::rename(u.at("merged"), u.at("m2")).unwrap();
    std::fs::rename(u.at("low"), u.at("up/l2")).unwrap();
    assert_eq!(xattr(u.upper("m2"), REDIRECT), Some(b"merged".into()));
    assert_eq!(xattr(u.upper("up/l2"), REDIRECT), Some(b"/low".into()));
    u.remount();
    assert_eq!(list(u.at("m2")), ["low", "up"]);
    assert_eq!(get(u.at("up/l2/f")), "f");
}

#[test]
fn without_redirect_dir_directories_with_lower_parts_stay() {
    need_unionfs!();
    for option in ["redirect_dir=off", "redirect_dir=follow", "redirect_dir=nofollow"] {
        let u = directories(option);
        let exchange = |a: &str, b: &str| {
            let cwd = rustix::fs::CWD;
            rustix::fs::renameat_with(cwd, u.at(a), cwd, u.at(b), rustix::fs::RenameFlags::EXCHANGE)
        };
        assert_eq!(errno(std::fs::rename(u.at("merged"), u.at("x"))), libc::EXDEV, "{option}");
        assert_eq!(errno(std::fs::rename(u.at("low"), u.at("x"))), libc::EXDEV, "{option}");
        assert_eq!(errno(std::fs::rename(u.at("low"), u.at("full"))), libc::EXDEV, "{option}");
        assert_eq!(exchange("up", "low"), Err(rustix::io::Errno::XDEV), "{option}");
        assert_eq!(exchange("merged", "up"), Err(rustix::io::Errno::XDEV), "{option}");
        assert_eq!(list(u.upper("")), ["merged", "up"], "nothing is copied up in vain");
        // Others move, and may take the place of a lower one.
        std::fs::rename(u.at("up"), u.at("up2")).unwrap();
        std::fs::rename(u.at("low/f"), u.at("file")).unwrap();
        std::fs::rename(u.at("up2"), u.at("low")).unwrap();
        assert_eq!((list(u.at("low")), get(u.at("low/f")).as_str()), (vec!["f".into()], "f"));
        assert_eq!(xattr(u.upper("low"), REDIRECT), None);
        // As mv(1) does.
        common::run("mv", &[u.at("full").as_os_str(), u.at("moved").as_os_str()]);
        assert_eq!((get(u.at("moved/f")).as_str(), exists(u.at("full"))), ("f", false));
    }
}

#[test]
fn redirects_are_followed_unless_forbidden() {
    need_unionfs!();
    for (option, followed) in
        [("redirect_dir=off", true), ("redirect_dir=follow", true), ("redirect_dir=nofollow", false)]
    {
        let u = Union::new(2).option(option);
        put(u.lower(1, "old/f"), "f");
        put(u.lower(1, "sibling/f"), "f");
        put(u.lower(1, "plain/f"), "f");
        dir(u.lower(0, "a/new"));
        dir(u.lower(0, "b"));
        dir(u.lower(0, "plain"));
        set_xattr(u.lower(0, "a/new"), REDIRECT, b"/old");
        set_xattr(u.lower(0, "b"), REDIRECT, b"sibling");
        let u = u.mounted();
        for name in ["a/new", "b"] {
            if followed {
                assert_eq!(get(u.at(name).join("f")), "f", "{option} {name}");
            } else {
                assert_eq!(errno(std::fs::metadata(u.at(name))), libc::EPERM, "{option} {name}");
                assert_eq!(errno(std::fs::remove_dir(u.at(name))), libc::EPERM, "{option} {name}");
            }
        }
        assert_eq!(get(u.at("plain/f")), "f", "{option}");
    }
}

fn hardlinks(option: &str) -> Union {
    let u = Union::new(1).option(option);
    put(u.lower(0, "d/a"), "old");
    for name in ["d/b", "c"] {
        std::fs::hard_link(u.lower(0, "d/a"), u.lower(0, name)).unwrap();
    }
    u.mounted()
}

fn numbers(dir: &Path) -> Vec<(OsString, u64)> {
    let mut all: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|e| e.unwrap()).map(|e| (e.file_name(), e.ino())).collect();
    all.sort();
    all
}

#[test]
fn index_on_keeps_hardlinks_together() {
    need_unionfs!();
    let mut u = hardlinks("index=on");
    std::fs::write(u.at("d/a"), "new").unwrap();
    for _ in 0..2 {
        for name in ["d/a", "d/b", "c"] {
            assert_eq!(
                (get(u.at(name)).as_str(), u.at(name).metadata().unwrap().nlink()),
                ("new", 3),
                "{name}"
            );
        }
        u.remount();
    }
}

#[test]
fn index_off_breaks_hardlinks_as_overlayfs_does() {
    need_unionfs!();
    let mut u = hardlinks("index=off");
    let ino = |name: &str| u.at(name).metadata().unwrap().ino();
    // All are known to the kernel before one is copied up.
    let before = ["d/a", "d/b", "c"].map(ino);
    let open = File::open(u.at("d/a")).unwrap();
    std::fs::write(u.at("d/a"), "new").unwrap();
    chmod(u.at("c"), 0o600);
    assert_eq!(["d/a", "d/b", "c"].map(ino), before, "numbers hold over copy-up");
    assert_eq!(open.metadata().unwrap().ino(), before[0]);
    drop(open);
    assert_eq!(numbers(&u.at("d")), [("a".into(), before[0]), ("b".into(), before[1])]);
    let check = |u: &Union| {
        assert_eq!(
            (get(u.at("d/a")).as_str(), get(u.at("d/b")).as_str(), get(u.at("c")).as_str()),
            ("new", "old", "old")
        );
        assert_eq!((mode(u.at("d/a")), mode(u.at("d/b")), mode(u.at("c"))), (0o644, 0o644, 0o600));
        assert_eq!(u.at("d/a").metadata().unwrap().nlink(), 1);
        assert_eq!(u.at("d/b").metadata().unwrap().nlink(), 3);
        let mut all = ["d/a", "d/b", "c"].map(|name| u.at(name).metadata().unwrap().ino());
        all.sort_unstable();
        assert!(all[0] != all[1] && all[1] != all[2], "{all:?}");
    };
    check(&u);
    // The caches gone, all is as before.
    std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    check(&u);
    assert_eq!(list(u.upper("")), ["c", "d"]);
    assert_eq!(list(u.upper("d")), ["a"]);
    assert_eq!(list(u.work("index")), [""; 0]);
    u.remount();
    check(&u);

    std::fs::hard_link(u.at("d/b"), u.at("d/e")).unwrap();
    std::fs::write(u.at("d/e"), "both").unwrap();
    assert_eq!((get(u.at("d/b")).as_str(), u.at("d/b").metadata().unwrap().nlink()), ("both", 2));
    std::fs::remove_file(u.at("d/b")).unwrap();
    assert!(is_whiteout(u.upper("d/b")));
    std::fs::rename(u.at("c"), u.at("d/a")).unwrap();
    u.remount();
    assert_eq!((list(u.at("d")), get(u.at("d/a")).as_str()), (vec!["a".into(), "e".into()], "old"));
}

#[test]
fn layers_named_by_options() {
    need_unionfs!();
    let u = Union::new(2).with_init();
    put(u.lower(0, "l"), "0");
    put(u.lower(1, "l"), "1");
    put(u.lower(1, "only"), "1");
    put(u.init("etc/hosts"), "hosts");
    let (l0, l1, upper, work) = (u.lower(0, ""), u.lower(1, ""), u.upper(""), u.work(""));
    let (l0, l1, upper, work) = (l0.display(), l1.display(), upper.display(), work.display());
    let init = u.init("");
    let forms = [
        format!("lowerdir={l0}:{l1},upperdir={upper},workdir={work},init={}", init.display()),
        format!(
            "ro,lowerdir+={l0},rw,lowerdir+={l1},upperdir={upper},workdir={work},init={}",
            init.display()
        ),
    ];
    for form in forms {
        let out = unionfs().args(["mount", "-o", &form]).arg(u.mnt()).output().unwrap();
        assert!(out.status.success(), "{form}: {}", text(&out));
        assert_eq!((get(u.at("l")).as_str(), get(u.at("only")).as_str()), ("0", "1"));
        put(u.at("new"), "new");
        put(u.at("etc/hosts"), "changed");
        assert_eq!((get(u.upper("new")).as_str(), get(u.init("etc/hosts")).as_str()), ("new", "changed"));
        common::run("umount", &[u.mnt().as_os_str()]);
    }
    // Without upperdir, read-only.
    let out = unionfs().args(["mount", "-o", &format!("lowerdir={l0}")]).arg(u.mnt()).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(errno(std::fs::write(u.at("x"), "")), libc::EROFS);
    assert_eq!(list(u.mnt()), ["l"]);
}

#[test]
fn data_only_layers() {
    need_unionfs!();
    let u = Union::new(1);
    for (i, layer) in ["data1", "data2"].into_iter().enumerate() {
        put(u.dir().join(layer).join("blob/both"), format!("from {}", i + 1));
    }
    put(u.dir().join("data2/blob/second"), "from 2");
    for (name, data) in [("d/x", "/blob/both"), ("d/y", "/blob/second")] {
        put(u.lower(0, name), "");
        OpenOptions::new().write(true).open(u.lower(0, name)).unwrap().set_len(6).unwrap();
        set_xattr(u.lower(0, name), "trusted.overlay.metacopy", b"");
        set_xattr(u.lower(0, name), REDIRECT, data.as_bytes());
    }
    let at = |name: &str| u.dir().join(name).display().to_string();
    let lowers = format!("{}::{}::{}", at("l0"), at("data1"), at("data2"));
    let (list_form, add_form) = (
        format!("lowerdir={lowers},upperdir={},workdir={}", at("upper"), at("work")),
        format!(
            "lowerdir+={},datadir+={},datadir+={},upperdir={},workdir={},redirect_dir=nofollow",
            at("l0"),
            at("data1"),
            at("data2"),
            at("upper"),
            at("work")
        ),
    );
    for args in
        [vec!["-o", &list_form], vec!["-o", &add_form], vec![&lowers, "--work", &at("work"), &at("upper")]]
    {
        let out = unionfs().arg("mount").args(&args).arg(u.mnt()).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", text(&out));
        assert_eq!((list(u.mnt()), list(u.at("d"))), (vec!["d".into()], vec!["x".into(), "y".into()]));
        assert_eq!((get(u.at("d/x")).as_str(), get(u.at("d/y")).as_str()), ("from 1", "from 2"), "{args:?}");
        common::run("umount", &[u.mnt().as_os_str()]);
    }
}

#[test]
fn timeout_limits_what_the_kernel_keeps() {
    need_unionfs!();
    for (option, keeps) in [("timeout=0", false), ("timeout=1000.5", true), ("rw", true)] {
        let u = Union::new(1).option(option);
        put(u.upper("f"), "x");
        let u = u.mounted();
        assert_eq!((mode(u.at("f")), exists(u.at("new"))), (0o644, false));
        chmod(u.upper("f"), 0o600);
        put(u.upper("new"), "");
        let seen = (mode(u.at("f")), exists(u.at("new")));
        assert_eq!(seen, if keeps { (0o644, false) } else { (0o600, true) }, "{option}");
    }
}

#[test]
fn flags_of_the_mount() {
    need_unionfs!();
    for (options, shown) in [
        ("sync", &["sync"][..]),
        ("dirsync,nodiratime", &["dirsync", "nodiratime"]),
        ("noatime", &["noatime"]),
        ("relatime", &["relatime"]),
        ("xino=auto,uuid=null,default_permissions", &[]),
    ] {
        let u = Union::new(1).option(options).mounted();
        let line = common::mount_line(&u.mnt()).unwrap();
        for flag in shown {
            assert!(line.split([' ', ',']).any(|word| word == *flag), "{flag} not in {line}");
        }
    }
    let u = Union::new(1).option("strictatime").mounted();
    assert!(!common::mount_line(&u.mnt()).unwrap().contains("atime"));
}

#[test]
fn sync_opens_the_real_files_so() {
    need_unionfs!();
    for (option, wanted) in [("sync", true), ("sync,volatile", false), ("rw", false)] {
        let u = Union::new(1).option(option).mounted();
        let file = File::create(u.at("f")).unwrap();
        let daemon = common::daemon_of(&u.mnt()).unwrap();
        let real = u.upper("f").metadata().map(|m| (m.dev(), m.ino())).unwrap();
        let flags = std::fs::read_dir(format!("/proc/{daemon}/fd"))
            .unwrap()
            .flatten()
            .find(|fd| std::fs::metadata(fd.path()).is_ok_and(|m| (m.dev(), m.ino()) == real))
            .map(|fd| {
                std::fs::read_to_string(format!("/proc/{daemon}/fdinfo/{}", fd.file_name().display()))
                    .unwrap()
            })
            .and_then(|info| info.lines().find_map(|l| l.strip_prefix("flags:").map(|f| f.trim().to_owned())))
            .map(|flags| i32::from_str_radix(&flags, 8).unwrap())
            .unwrap();
        assert_eq!(flags & libc::O_DSYNC != 0, wanted, "{option}: {flags:o}");
        drop(file);
    }
}
