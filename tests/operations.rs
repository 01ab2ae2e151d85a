//! Operations on names through a mount: what the union shows, and what lands in the upper.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use common::Union;
use common::disk::lies_on;
use common::files::{
    acl_for, chmod, dir, errno, exists, get, is_opaque, is_whiteout, list, make_opaque, mode, put, set_times,
    whiteout, xattr, xattr_names,
};
use rustix::fs::{CWD, FileType, Mode, RenameFlags, makedev};
use rustix::io::Errno;

fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>, flags: RenameFlags) -> Result<(), Errno> {
    rustix::fs::renameat_with(CWD, from.as_ref(), CWD, to.as_ref(), flags)
}

#[test]
fn lookup_takes_the_topmost() {
    need_mount!();
    let u = Union::new(3);
    put(u.lower(2, "d/base"), "base");
    put(u.lower(2, "d/both"), "2");
    put(u.lower(1, "d/both"), "1");
    put(u.lower(0, "d/top"), "top");
    put(u.upper("d/both"), "upper");
    put(u.lower(2, "gone"), "gone");
    whiteout(u.lower(1, "gone"));
    put(u.lower(2, "kind/x"), "x");
    put(u.lower(1, "kind"), "a file now");
    put(u.lower(2, "opaque/old"), "old");
    put(u.lower(0, "opaque/new"), "new");
    make_opaque(u.lower(0, "opaque"));
    put(u.lower(2, "back/deep"), "below a whiteout");
    whiteout(u.lower(1, "back"));
    put(u.lower(0, "back/again"), "again");
    let u = u.mounted();

    assert_eq!(list(u.mnt()), ["back", "d", "kind", "opaque"]);
    assert_eq!(list(u.at("d")), ["base", "both", "top"]);
    assert_eq!(get(u.at("d/both")), "upper");
    assert_eq!(get(u.at("d/base")), "base");
    assert_eq!(errno(std::fs::read(u.at("gone"))), libc::ENOENT);
    assert_eq!(get(u.at("kind")), "a file now");
    assert_eq!(errno(std::fs::read(u.at("kind/x"))), libc::ENOTDIR);
    assert_eq!(list(u.at("opaque")), ["new"]);
    assert_eq!(errno(std::fs::read(u.at("opaque/old"))), libc::ENOENT);
    assert_eq!(list(u.at("back")), ["again"]);
    assert_eq!(errno(std::fs::metadata(u.at("nothing"))), libc::ENOENT);
    assert_eq!(errno(std::fs::metadata(u.at("x".repeat(256)))), libc::ENAMETOOLONG);
}

#[test]
fn names_are_bytes() {
    need_mount!();
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let u = Union::new(1);
    let name = OsStr::from_bytes(b"not \xff utf-8\n");
    put(u.lower(0, name), "x");
    let u = u.mounted();
    assert_eq!(get(u.at(name)), "x");
    std::fs::rename(u.at(name), u.at("plain")).unwrap();
    std::fs::rename(u.at("plain"), u.at(name)).unwrap();
    assert_eq!(std::fs::read_dir(u.mnt()).unwrap().next().unwrap().unwrap().file_name(), name);
}

#[test]
fn large_directories_list_once_and_complete() {
    need_mount!();
    let u = Union::new(2);
    for i in 0..3000 {
        put(u.lower(i % 2, format!("d/entry-with-a-rather-long-name-{i}")), "");
    }
    for i in 0..300 {
        whiteout(u.upper(format!("d/entry-with-a-rather-long-name-{}", i * 10)));
    }
    let u = u.mounted();
    for _ in 0..3 {
        assert_eq!(list(u.at("d")).len(), 2700);
    }
    // A listing that goes on while names vanish.
    for name in list(u.at("d")).iter().take(1000) {
        std::fs::remove_file(u.at("d").join(name)).unwrap();
    }
    assert_eq!(list(u.at("d")).len(), 1700);
    std::fs::remove_dir_all(u.at("d")).unwrap();
    assert!(!exists(u.at("d")));
}

#[test]
fn unlink_leaves_a_whiteout_where_a_lower_has_the_name() {
    need_mount!();
    let u = Union::new(1);
    put(u.lower(0, "d/low"), "low");
    put(u.lower(0, "d/both"), "low");
    put(u.upper("d/both"), "up");
    let mut u = u.mounted();
    put(u.at("d/new"), "new");

    std::fs::remove_file(u.at("d/low")).unwrap();
    std::fs::remove_file(u.at("d/both")).unwrap();
    std::fs::remove_file(u.at("d/new")).unwrap();
    assert!(is_whiteout(u.upper("d/low")));
    assert!(is_whiteout(u.upper("d/both")));
    assert!(!exists(u.upper("d/new")));
    assert!(list(u.at("d")).is_empty());
    assert_eq!(errno(std::fs::remove_file(u.at("d/low"))), libc::ENOENT);
    u.remount();
    assert!(list(u.at("d")).is_empty());

    // A new file takes the place of the whiteout.
    put(u.at("d/low"), "again");
    assert_eq!(get(u.upper("d/low")), "again");
    u.remount();
    assert_eq!(get(u.at("d/low")), "again");
    assert_eq!(get(u.lower(0, "d/low")), "low");
    assert_eq!(errno(std::fs::remove_file(u.at("d"))), libc::EISDIR);
}

#[test]
fn unlink_does_not_copy_up() {
    need_mount!();
    let u = Union::new(1);
    put(u.lower(0, "d/big"), vec![1; 1 << 20]);
    let u = u.mounted();
    let open = std::fs::File::open(u.at("d/big")).unwrap();
    std::fs::remove_file(u.at("d/big")).unwrap();
    assert!(is_whiteout(u.upper("d/big")));
    assert_eq!(open.metadata().unwrap().len(), 1 << 20);
    for entry in std::fs::read_dir(u.work("")).unwrap() {
        assert_eq!(list_deep(&entry.unwrap().path()), 0, "something was copied into the work directory");
    }
}

/// Bytes of regular files below a directory.
fn list_deep(path: &Path) -> u64 {
    let meta = path.symlink_metadata().unwrap();
    if meta.is_dir() {
        return std::fs::read_dir(path).unwrap().map(|e| list_deep(&e.unwrap().path())).sum();
    }
    if meta.is_file() && meta.len() >= 1 << 20 { meta.len() } else { 0 }
}

#[test]
fn rmdir_and_mkdir_in_its_place() {
    need_mount!();
    let u = Union::new(1);
    put(u.lower(0, "full/x"), "x");
    put(u.lower(0, "emptied/x"), "x");
    dir(u.lower(0, "empty"));
    let mut u = u.mounted();

    assert_eq!(errno(std::fs::remove_dir(u.at("full"))), libc::ENOTEMPTY);
    std::fs::remove_dir(u.at("empty")).unwrap();
    std::fs::remove_file(u.at("emptied/x")).unwrap();
    std::fs::remove_dir(u.at("emptied")).unwrap();
    assert!(is_whiteout(u.upper("empty")) && is_whiteout(u.upper("emptied")));
    assert_eq!(list(u.mnt()), ["full"]);

    std::fs::create_dir(u.at("emptied")).unwrap();
    assert!(is_opaque(u.upper("emptied")));
    assert!(list(u.at("emptied")).is_empty());
    assert_eq!(errno(std::fs::create_dir(u.at("emptied"))), libc::EEXIST);
    std::fs::remove_dir_all(u.at("full")).unwrap();
    put(u.at("full/y"), "y");
    u.remount();
    assert!(list(u.at("emptied")).is_empty());
    assert_eq!(list(u.at("full")), ["y"]);

    // A directory that is only in the upper goes without a trace.
    std::fs::create_dir(u.at("mine")).unwrap();
    std::fs::remove_dir(u.at("mine")).unwrap();
    assert!(!exists(u.upper("mine")));
    put(u.at("file"), "");
    assert_eq!(errno(std::fs::remove_dir(u.at("file"))), libc::ENOTDIR);
}

#[test]
fn rename_of_files() {
    need_mount!();
    let u = Union::new(2);
    put(u.lower(1, "a/low"), "low");
    put(u.lower(0, "b/target"), "target");
    put(u.upper("up"), "up");
    let mut u = u.mounted();

    std::fs::rename(u.at("a/low"), u.at("b/moved")).unwrap();
    assert_eq!(get(u.at("b/moved")), "low");
    assert!(!exists(u.at("a/low")));
    assert!(is_whiteout(u.upper("a/low")));
    assert_eq!(get(u.upper("b/moved")), "low");

    assert_eq!(rename(u.at("b/moved"), u.at("b/target"), RenameFlags::NOREPLACE), Err(Errno::EXIST));
    rename(u.at("b/moved"), u.at("b/free"), RenameFlags::NOREPLACE).unwrap();
    std::fs::rename(u.at("b/free"), u.at("b/target")).unwrap();
    assert_eq!(get(u.at("b/target")), "low");
    std::fs::rename(u.at("up"), u.at("up2")).unwrap();
    assert!(!exists(u.upper("up")), "no whiteout where no lower has the name");

    // Back to the old name, over its whiteout.
    std::fs::rename(u.at("b/target"), u.at("a/low")).unwrap();
    assert!(is_whiteout(u.upper("b/target")));
    u.remount();
    assert_eq!(get(u.at("a/low")), "low");
    assert_eq!(list(u.at("b")), Vec::<String>::new());
    assert_eq!(list(u.mnt()), ["a", "b", "up2"]);

    dir(u.at("dir"));
    assert_eq!(errno(std::fs::rename(u.at("up2"), u.at("dir"))), libc::EISDIR);
    assert_eq!(errno(std::fs::rename(u.at("dir"), u.at("up2"))), libc::ENOTDIR);
    assert_eq!(errno(std::fs::rename(u.at("none"), u.at("x"))), libc::ENOENT);
    assert_eq!(rename(u.at("up2"), u.at("x"), RenameFlags::from_bits_retain(64)), Err(Errno::INVAL));
}

#[test]
fn rename_onto_a_hardlink_of_itself_does_nothing() {
    need_mount!();
    let u = Union::new(1).mounted();
    put(u.at("a"), "x");
    std::fs::hard_link(u.at("a"), u.at("b")).unwrap();
    std::fs::rename(u.at("a"), u.at("b")).unwrap();
    assert_eq!(list(u.mnt()), ["a", "b"]);
}

#[test]
fn rename_of_directories() {
    need_mount!();
    let u = Union::new(1);
    put(u.lower(0, "low/x"), "x");
    put(u.lower(0, "was/old"), "old");
    let mut u = u.mounted();

    put(u.at("mine/deep/file"), "f");
    std::fs::rename(u.at("mine"), u.at("yours")).unwrap();
    assert_eq!(get(u.at("yours/deep/file")), "f");
    assert!(!exists(u.at("mine")));
    // Into a place where a lower has a directory: nothing of that may show through.
    std::fs::remove_dir_all(u.at("was")).unwrap();
    std::fs::rename(u.at("yours"), u.at("was")).unwrap();
    assert_eq!(list(u.at("was")), ["deep"]);
    u.remount();
    assert_eq!(list(u.at("was")), ["deep"]);
    assert_eq!(get(u.at("was/deep/file")), "f");

    put(u.at("other/z"), "z");
    assert_eq!(errno(std::fs::rename(u.at("other"), u.at("was"))), libc::ENOTEMPTY);
    assert_eq!(errno(std::fs::rename(u.at("was"), u.at("was/deep/in"))), libc::EINVAL);
    match std::fs::rename(u.at("low"), u.at("high")) {
        Ok(()) => assert_eq!(list(u.at("high")), ["x"]),
        Err(e) => {
            assert_eq!(e.raw_os_error(), Some(libc::EXDEV));
            assert_eq!(list(u.at("low")), ["x"]);
        }
    }
}

#[test]
fn links_are_one_file() {
    need_mount!();
    let u = Union::new(1);
    put(u.lower(0, "a/one"), "shared");
    std::fs::hard_link(u.lower(0, "a/one"), u.lower(0, "a/two")).unwrap();
    put(u.lower(0, "alone"), "alone");
    let mut u = u.mounted();

    std::fs::hard_link(u.at("alone"), u.at("alone2")).unwrap();
    put(u.at("alone2"), "both");
    assert_eq!(get(u.at("alone")), "both");
    let (a, b) = (u.at("alone").metadata().unwrap(), u.at("alone2").metadata().unwrap());
    assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
    assert_eq!(errno(std::fs::hard_link(u.at("alone"), u.at("alone2"))), libc::EEXIST);
    assert_eq!(errno(std::fs::hard_link(u.at("a"), u.at("a2"))), libc::EPERM);
    std::fs::remove_file(u.at("alone2")).unwrap();
    assert_eq!(u.at("alone").metadata().unwrap().nlink(), 1);
    u.remount();
    assert_eq!(get(u.at("alone")), "both");
}

#[test]
fn lower_hardlinks_stay_one_file_over_a_copy_up() {
    need_unionfs!();
    let u = Union::new(1);
    put(u.lower(0, "a/one"), "shared");
    std::fs::hard_link(u.lower(0, "a/one"), u.lower(0, "a/two")).unwrap();
    std::fs::hard_link(u.lower(0, "a/one"), u.lower(0, "a/three")).unwrap();
    let mut u = u.mounted();
    let ino = u.at("a/one").metadata().unwrap().ino();
    for name in ["a/one", "a/two", "a/three"] {
        assert_eq!(u.at(name).metadata().unwrap().nlink(), 3, "{name}");
    }
    put(u.at("a/two"), "changed");
    for round in 0..2 {
        for name in ["a/one", "a/two", "a/three"] {
            assert_eq!(get(u.at(name)), "changed", "{name} in round {round}");
            let meta = u.at(name).metadata().unwrap();
            assert_eq!((meta.ino(), meta.nlink()), (ino, 3), "{name} in round {round}");
        }
        u.remount();
    }
    std::fs::remove_file(u.at("a/one")).unwrap();
    assert_eq!(u.at("a/three").metadata().unwrap().nlink(), 2);
    u.remount();
    assert_eq!(u.at("a/three").metadata().unwrap().nlink(), 2);
    assert_eq!(get(u.lower(0, "a/one")), "shared");
}

#[test]
fn inode_numbers_last() {
    need_unionfs!();
    let u = Union::new(2);
    put(u.lower(0, "f"), "f");
    put(u.lower(1, "d/g"), "g");
    let mut u = u.mounted();
    let numbers = |u: &Union| ["f", "d", "d/g"].map(|p| u.at(p).metadata().unwrap().ino());
    let before = numbers(&u);
    put(u.at("f"), "changed");
    chmod(u.at("d/g"), 0o600);
    chmod(u.at("d"), 0o700);
    assert_eq!(numbers(&u), before, "after copy-up");
    u.remount();
    assert_eq!(numbers(&u), before, "after a remount");
    std::fs::rename(u.at("f"), u.at("h")).unwrap();
    assert_eq!(u.at("h").metadata().unwrap().ino(), before[0], "after a rename");
}

#[test]
fn symlinks() {
    need_mount!();
    let u = Union::new(1);
    symlink("/nowhere/low", u.lower(0, "low")).unwrap();
    let mut u = u.mounted();
    symlink("../some/where", u.at("new")).unwrap();
    for _ in 0..2 {
        assert_eq!(std::fs::read_link(u.at("low")).unwrap(), Path::new("/nowhere/low"));
        assert_eq!(std::fs::read_link(u.at("new")).unwrap(), Path::new("../some/where"));
        assert_eq!(u.at("new").symlink_metadata().unwrap().len(), 13);
    }
    // Copy-up of a symlink, by its owner and by its times.
    std::os::unix::fs::lchown(u.at("low"), Some(7), Some(8)).unwrap();
    set_times(u.at("low"), (5, 0), (1_000_000_000, 123_456_789));
    u.remount();
    let meta = u.at("low").symlink_metadata().unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mtime(), meta.mtime_nsec()), (7, 8, 1_000_000_000, 123_456_789));
    assert_eq!(std::fs::read_link(u.upper("low")).unwrap(), Path::new("/nowhere/low"));
    assert_eq!(errno(std::fs::read_link(u.mnt())), libc::EINVAL);
    // XFS takes 1023 bytes.
    let xfs = lies_on(u.dir(), libc::XFS_SUPER_MAGIC);
    let long = "x".repeat(if xfs { 1023 } else { 4095 });
    symlink(&long, u.at("long")).unwrap();
    assert_eq!(std::fs::read_link(u.at("long")).unwrap().as_os_str(), &*long);
}

#[test]
fn mknod_of_all_types() {
    need_mount!();
    let u = Union::new(1);
    rustix::fs::mknodat(CWD, u.lower(0, "null"), FileType::CharacterDevice, Mode::from(0o666), makedev(1, 3))
        .unwrap();
    chmod(u.lower(0, "null"), 0o666);
    let mut u = u.mounted();
    let make = |name: &str, kind, dev| rustix::fs::mknodat(CWD, u.at(name), kind, Mode::from(0o640), dev);
    make("fifo", FileType::Fifo, 0).unwrap();
    make("socket", FileType::Socket, 0).unwrap();
    make("file", FileType::RegularFile, 0).unwrap();
    make("char", FileType::CharacterDevice, makedev(1, 5)).unwrap();
    make("block", FileType::BlockDevice, makedev(259, 70000)).unwrap();
    // The kernel's overlayfs refuses to make what it would take for a whiteout.
    make("whiteout", FileType::CharacterDevice, 0).unwrap();
    u.remount();
    let meta = |name: &str| u.at(name).symlink_metadata().unwrap();
    assert!(meta("fifo").file_type().is_fifo() && meta("socket").file_type().is_socket());
    assert!(meta("file").is_file() && meta("char").file_type().is_char_device());
    assert!(meta("block").file_type().is_block_device());
    assert_eq!(meta("char").rdev(), makedev(1, 5));
    assert_eq!(meta("block").rdev(), makedev(259, 70000));
    assert_eq!(meta("null").rdev(), makedev(1, 3));
    assert_eq!((meta("whiteout").file_type().is_char_device(), meta("whiteout").rdev()), (true, 0));
    assert_eq!(mode(u.at("block")), 0o640);
    std::fs::write(u.at("null"), "swallowed").unwrap();
    assert_eq!(std::fs::read(u.at("null")).unwrap(), b"");
    chmod(u.at("null"), 0o600);
    assert_eq!(u.upper("null").symlink_metadata().unwrap().rdev(), makedev(1, 3));
    std::fs::rename(u.at("fifo"), u.at("fifo2")).unwrap();
    assert!(u.at("fifo2").symlink_metadata().unwrap().file_type().is_fifo());
    std::os::unix::net::UnixListener::bind(u.at("bound")).unwrap();
    assert!(u.upper("bound").symlink_metadata().unwrap().file_type().is_socket());
}

#[test]
fn creation_takes_owner_group_and_mode_from_where_it_happens() {
    need_mount!();
    let u = Union::new(1);
    dir(u.lower(0, "sgid"));
    std::os::unix::fs::chown(u.lower(0, "sgid"), None, Some(4321)).unwrap();
    chmod(u.lower(0, "sgid"), 0o2775);
    dir(u.lower(0, "acl"));
    let acl = acl_for(1234, 0o750);
    rustix::fs::setxattr(
        u.lower(0, "acl"),
        "system.posix_acl_default",
        &acl,
        rustix::fs::XattrFlags::empty(),
    )
    .unwrap();
    let u = u.mounted();

    put(u.at("sgid/f"), "");
    std::fs::create_dir(u.at("sgid/d")).unwrap();
    let (f, d) = (u.at("sgid/f").metadata().unwrap(), u.at("sgid/d").metadata().unwrap());
    assert_eq!((f.gid(), d.gid(), d.permissions().mode() & 0o2000), (4321, 4321, 0o2000));
    assert_eq!(u.upper("sgid").metadata().unwrap().gid(), 4321, "the copied-up parent");

    // A default ACL takes the place of the umask and is inherited.
    std::fs::create_dir(u.at("acl/d")).unwrap();
    put(u.at("acl/f"), "");
    assert_eq!(xattr(u.at("acl/d"), "system.posix_acl_default"), Some(acl));
    assert!(xattr(u.at("acl/f"), "system.posix_acl_access").is_some());
    assert!(xattr_names(u.at("acl/d")).contains(&"system.posix_acl_access".into()));
}

#[test]
fn the_umask_counts_once() {
    need_mount!();
    let u = Union::new(1).mounted();
    let script = "umask 027; touch $0/f; mkdir $0/d; umask 0; touch $0/f0; mkdir $0/d0; mkfifo $0/p0";
    common::run("sh", &["-c".as_ref(), script.as_ref(), u.mnt().as_os_str()]);
    assert_eq!(["f", "d", "f0", "d0", "p0"].map(|n| mode(u.at(n))), [0o640, 0o750, 0o666, 0o777, 0o666]);
}

#[test]
fn what_an_unprivileged_user_makes_is_theirs() {
    need_mount!();
    use std::os::unix::process::CommandExt;
    let u = Union::new(1);
    put(u.lower(0, "secret"), "s");
    chmod(u.lower(0, "secret"), 0o600);
    dir(u.lower(0, "open"));
    chmod(u.lower(0, "open"), 0o777);
    let u = u.mounted();
    // The command starts inside: the way to the mount may be closed to other users.
    let sh = |script: &str| {
        let mut command = std::process::Command::new("sh");
        command.current_dir(u.at("open")).arg("-c").arg(script).uid(1234).gid(4321);
        command.output().unwrap()
    };
    let out = sh("umask 022; echo x > f && mkdir d && ln -s t s && mkfifo p && ln f l");
    assert!(out.status.success(), "{}", common::text(&out));
    for name in ["f", "d", "s", "p"] {
        let meta = u.at("open").join(name).symlink_metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid()), (1234, 4321), "{name}");
        let meta = u.upper("open").join(name).symlink_metadata().unwrap();
        assert_eq!((meta.uid(), meta.gid()), (1234, 4321), "{name} in the upper");
    }
    assert!(!sh("cat ../secret").status.success(), "permissions are checked");
    assert!(!sh("echo x > ../new").status.success(), "permissions are checked");
    assert!(!sh("rm -f ../secret").status.success(), "permissions are checked");
    assert!(!exists(u.upper("secret")), "a refused operation copies nothing up");
}

#[test]
fn directory_nlink_and_dots() {
    need_mount!();
    let u = Union::new(1);
    dir(u.lower(0, "d/sub"));
    let u = u.mounted();
    let out = common::run("ls", &["-1ai".as_ref(), u.at("d").as_os_str()]);
    let names: Vec<_> = out.lines().map(|l| l.split_whitespace().collect::<Vec<_>>()).collect();
    let find = |n: &str| names.iter().find(|l| l[1] == n).unwrap_or_else(|| panic!("{n} not in {out}"))[0];
    assert_eq!(find("."), u.at("d").metadata().unwrap().ino().to_string());
    assert_eq!(find(".."), u.mnt().metadata().unwrap().ino().to_string());
    assert_eq!(find("sub"), u.at("d/sub").metadata().unwrap().ino().to_string());
}
