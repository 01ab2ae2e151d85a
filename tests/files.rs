//! File content and attributes through a mount: copy-up, open files, locks, and lowers that nothing
//! changes.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use common::Union;
use common::files::{
    CAPABILITY, acl_for, chmod, dir, exists, get, list, mode, put, set_times, set_xattr, xattr, xattr_names,
};
use common::tree;
use rustix::fs::{
    AtFlags, CWD, FallocateFlags, FlockOperation, Mode, OFlags, SeekFrom as Seeks, StatxFlags, XattrFlags,
};
use rustix::io::Errno;

const ACCESS: &str = "system.posix_acl_access";

fn rw(path: impl AsRef<Path>) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[test]
fn copy_up_keeps_everything() {
    need_mount!();
    let u = Union::new(1);
    let path = u.lower(0, "d/f");
    put(&path, vec![7; 3 * 1024 * 1024 + 17]);
    std::os::unix::fs::chown(&path, Some(1234), Some(4321)).unwrap();
    chmod(&path, 0o6751);
    set_xattr(&path, "user.note", b"kept");
    set_xattr(&path, "trusted.note", b"kept too");
    set_xattr(&path, "security.capability", &CAPABILITY);
    set_xattr(&path, ACCESS, &acl_for(99, 0o751));
    chmod(u.lower(0, "d"), 0o2771);
    set_xattr(u.lower(0, "d"), "user.dir", b"d");
    set_times(&path, (1_000_000_001, 1), (1_000_000_002, 999_999_999));
    set_times(u.lower(0, "d"), (900_000_001, 1), (900_000_002, 2));
    let want = tree::read(&u.lower(0, ""));
    let mut u = u.mounted();
    let seen = tree::read(&u.mnt());
    tree::assert_same("before copy-up", &without_root(want.clone()), &without_root(seen));

    // A change that leaves all the rest as it is.
    set_xattr(u.at("d/f"), "user.new", b"");
    rustix::fs::lremovexattr(u.at("d/f"), "user.new").unwrap();
    assert!(exists(u.upper("d/f")));
    for _ in 0..2 {
        let seen = tree::read(&u.mnt());
        tree::assert_same("after copy-up", &without_root(want.clone()), &without_root(seen));
        let landed = tree::read(&u.upper(""));
        tree::assert_same("the upper", &without_root(want.clone()), &without_root(landed));
        let meta = u.at("d").metadata().unwrap();
        assert_eq!(
            (meta.mtime(), meta.mtime_nsec()),
            (900_000_002, 2),
            "copy-up is no change of a directory"
        );
        u.remount();
    }
}

fn without_root(mut tree: tree::Tree) -> tree::Tree {
    tree.remove(Path::new(""));
    tree
}

#[test]
fn copy_up_keeps_holes() {
    need_mount!();
    let u = Union::new(1);
    let file = File::create(u.lower(0, "sparse")).unwrap();
    file.write_all_at(b"begin", 0).unwrap();
    file.write_all_at(b"middle", 40 << 20).unwrap();
    file.set_len(100 << 20).unwrap();
    let u = u.mounted();
    chmod(u.at("sparse"), 0o600);
    rw(u.at("sparse")).write_all_at(b"x", 1).unwrap();
    let meta = u.upper("sparse").metadata().unwrap();
    assert_eq!(meta.len(), 100 << 20);
    assert!(meta.blocks() * 512 < 4 << 20, "{} blocks", meta.blocks());
    let mut piece = [0; 8];
    rw(u.at("sparse")).read_exact_at(&mut piece, (40 << 20) - 1).unwrap();
    assert_eq!(&piece, b"\0middle\0");
}

#[test]
fn a_write_copies_up_once_and_right() {
    need_mount!();
    let u = Union::new(1);
    let content: Vec<u8> = (0..1_000_003_u32).flat_map(u32::to_le_bytes).collect();
    put(u.lower(0, "big"), &content);
    let mut u = u.mounted();
    let file = rw(u.at("big"));
    file.write_all_at(b"@@@", 1_234_567).unwrap();
    let mut want = content.clone();
    want[1_234_567..1_234_570].copy_from_slice(b"@@@");
    assert!(std::fs::read(u.at("big")).unwrap() == want);
    drop(file);
    OpenOptions::new().append(true).open(u.at("big")).unwrap().write_all(b"end").unwrap();
    want.extend(b"end");
    u.remount();
    assert!(std::fs::read(u.at("big")).unwrap() == want);
    assert!(std::fs::read(u.lower(0, "big")).unwrap() == content);
}

#[test]
fn truncation() {
    need_mount!();
    let u = Union::new(1);
    put(u.lower(0, "empty"), "");
    set_times(u.lower(0, "empty"), (1_000, 0), (1_000, 0));
    for name in ["open", "path", "grow", "fd"] {
        put(u.lower(0, name), "0123456789");
    }
    let mut u = u.mounted();
    put(u.at("open"), "");
    put(u.at("empty"), "");
    assert!(
        u.at("empty").metadata().unwrap().mtime() > 1_000,
        "O_TRUNC sets the times of an empty file, too"
    );
    rustix::fs::ftruncate(rw(u.at("fd")), 3).unwrap();
    Command::new("truncate").args(["-s", "4"]).arg(u.at("path")).status().unwrap();
    rw(u.at("grow")).set_len(12).unwrap();
    for _ in 0..2 {
        assert_eq!(get(u.at("open")), "");
        assert_eq!(get(u.at("fd")), "012");
        assert_eq!(get(u.at("path")), "0123");
        assert_eq!(get(u.at("grow")), "0123456789\0\0");
        u.remount();
    }
}

#[test]
fn a_reader_from_before_sees_what_a_writer_writes() {
    need_unionfs!();
    let u = Union::new(1);
    put(u.lower(0, "f"), "0123456789");
    let u = u.mounted();
    let mut before = File::open(u.at("f")).unwrap();
    let mut text = String::new();
    before.read_to_string(&mut text).unwrap();
    assert_eq!(text, "0123456789");
    let writer = rw(u.at("f"));
    writer.write_all_at(b"abc", 0).unwrap();
    text.clear();
    before.rewind().unwrap();
    before.read_to_string(&mut text).unwrap();
    assert_eq!(text, "abc3456789");
    // With the reader still open: the lower must not be what is written to.
    writer.set_len(5).unwrap();
    writer.sync_all().unwrap();
    assert_eq!(get(u.lower(0, "f")), "0123456789");
    assert_eq!(get(u.upper("f")), "abc34");
    assert_eq!(before.metadata().unwrap().len(), 5);
    drop((before, writer));
    // And again with everything closed.
    rw(u.at("f")).write_all_at(b"Z", 0).unwrap();
    assert_eq!(get(u.at("f")), "Zbc34");
}

#[test]
fn open_files_outlive_their_names() {
    need_mount!();
    let u = Union::new(1);
    put(u.lower(0, "low"), "0123456789");
    let u = u.mounted();
    put(u.at("up"), "0123456789");
    for name in ["low", "up"] {
        let mut file = rw(u.at(name));
        std::fs::remove_file(u.at(name)).unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0, "{name}");
        file.write_all(b"abc").unwrap();
        file.set_len(6).unwrap();
        file.set_permissions(PermissionsExt::from_mode(0o604)).unwrap();
        rustix::fs::fsetxattr(&file, "user.k", b"v", XattrFlags::empty()).unwrap();
        let mut value = [0; 8];
        assert_eq!(rustix::fs::fgetxattr(&file, "user.k", &mut value[..]), Ok(1));
        let meta = file.metadata().unwrap();
        assert_eq!((meta.len(), meta.mode() & 0o7777), (6, 0o604), "{name}");
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "abc345", "{name}");
        file.sync_all().unwrap();
    }
    assert!(list(u.mnt()).is_empty());

    // Open for reading only, so not copied up when the name goes.
    put(u.lower(0, "ro/r"), "reader");
    let file = File::open(u.at("ro/r")).unwrap();
    std::fs::rename(u.at("ro/r"), u.at("ro/s")).unwrap();
    put(u.at("ro/t"), "other");
    std::fs::rename(u.at("ro/t"), u.at("ro/s")).unwrap();
    let mut text = [0; 6];
    file.read_exact_at(&mut text, 0).unwrap();
    assert_eq!(&text, b"reader");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
}

#[test]
fn an_open_directory_outlives_its_name() {
    need_mount!();
    let u = Union::new(1);
    dir(u.lower(0, "d"));
    let u = u.mounted();
    let fd = rustix::fs::open(u.at("d"), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
    std::fs::remove_dir(u.at("d")).unwrap();
    assert_eq!(
        rustix::fs::openat(&fd, "x", OFlags::CREATE | OFlags::RDWR, Mode::RUSR).err(),
        Some(Errno::NOENT)
    );
    std::fs::create_dir(u.at("d")).unwrap();
    assert!(list(u.at("d")).is_empty());
    rustix::fs::fstat(&fd).unwrap();
}

#[test]
fn unnamed_temporary_files_are_made_or_refused() {
    need_mount!();
    let u = Union::new(1).mounted();
    match rustix::fs::open(u.mnt(), OFlags::TMPFILE | OFlags::RDWR, Mode::RUSR | Mode::WUSR) {
        Ok(fd) => {
            rustix::io::write(&fd, b"x").unwrap();
            assert!(list(u.mnt()).is_empty());
        }
        // What open(2) says of filesystems without it, so that callers fall back.
        Err(e) => assert_eq!(e, Errno::OPNOTSUPP),
    }
}

#[test]
fn statfs_is_that_of_the_upper() {
    need_mount!();
    let u = Union::new(1).mounted();
    let (here, there) = (rustix::fs::statvfs(u.mnt()).unwrap(), rustix::fs::statvfs(u.upper("")).unwrap());
    assert_eq!((here.f_blocks, here.f_bsize, here.f_frsize), (there.f_blocks, there.f_bsize, there.f_frsize));
    assert_eq!((here.f_files, here.f_namemax), (there.f_files, 255));
    assert!(here.f_bavail > 0);
}

#[test]
fn fallocate_modes() {
    need_mount!();
    let u = Union::new(1);
    put(u.lower(0, "low"), vec![b'x'; 16384]);
    let u = u.mounted();
    let file = File::create(u.at("f")).unwrap();
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 10000).unwrap();
    assert_eq!(file.metadata().unwrap().len(), 10000);
    rustix::fs::fallocate(&file, FallocateFlags::KEEP_SIZE, 0, 1 << 20).unwrap();
    let meta = u.at("f").metadata().unwrap();
    assert_eq!(meta.len(), 10000);
    assert!(meta.blocks() * 512 >= 1 << 20, "{} blocks", meta.blocks());

    let low = rw(u.at("low"));
    rustix::fs::fallocate(&low, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, 4096, 4096).unwrap();
    let bytes = std::fs::read(u.at("low")).unwrap();
    assert!(bytes[4096..8192].iter().all(|&b| b == 0) && bytes[..4096].iter().all(|&b| b == b'x'));
    assert_eq!(bytes.len(), 16384);
    let read_only = File::open(u.at("low")).unwrap();
    assert_eq!(rustix::fs::fallocate(&read_only, FallocateFlags::empty(), 0, 1), Err(Errno::BADF));
}

#[test]
fn seeking_data_and_holes() {
    need_mount!();
    let u = Union::new(1);
    let file = File::create(u.lower(0, "f")).unwrap();
    file.write_all_at(&[1; 4096], 1 << 20).unwrap();
    file.set_len(2 << 20).unwrap();
    let u = u.mounted();
    for _ in 0..2 {
        let mut file = File::open(u.at("f")).unwrap();
        assert_eq!(rustix::fs::seek(&file, Seeks::Data(0)), Ok(1 << 20));
        assert_eq!(rustix::fs::seek(&file, Seeks::Hole(1 << 20)), Ok((1 << 20) + 4096));
        assert_eq!(rustix::fs::seek(&file, Seeks::Data((1 << 20) + 4096)), Err(Errno::NXIO));
        assert_eq!(file.seek(SeekFrom::End(-1)).unwrap(), (2 << 20) - 1);
        if common::overlay_backend() {
            break; // It copies up in pieces of 1 MiB.
        }
        chmod(u.at("f"), 0o600);
    }
}

#[test]
fn copy_file_range_between_files() {
    need_mount!();
    let u = Union::new(1);
    let content: Vec<u8> = (0..=255).cycle().take(700_001).collect();
    put(u.lower(0, "from"), &content);
    let u = u.mounted();
    let from = File::open(u.at("from")).unwrap();
    let to = File::create(u.at("to")).unwrap();
    let (mut from_at, mut to_at, end) = (1, 3, content.len() as u64);
    while from_at < end {
        let left = usize::try_from(end - from_at).unwrap();
        let n = rustix::fs::copy_file_range(&from, Some(&mut from_at), &to, Some(&mut to_at), left).unwrap();
        assert!(n > 0);
    }
    let got = std::fs::read(u.at("to")).unwrap();
    assert!(got[..3] == [0; 3] && got[3..] == content[1..]);
    // Within one file, copied up by it.
    let file = rw(u.at("from"));
    let n = rustix::fs::copy_file_range(&file, Some(&mut 0), &file, Some(&mut 500_000), 1000).unwrap();
    let mut piece = vec![0; n];
    file.read_exact_at(&mut piece, 500_000).unwrap();
    assert!(piece == content[..n]);
    assert!(std::fs::read(u.lower(0, "from")).unwrap() == content);
}

/// The other process of the lock tests: this test binary itself, told by the environment what to do.
#[test]
fn in_another_process() {
    let Some(task) = std::env::var_os("UNIONFS_CHILD") else { return };
    let path = std::env::var_os("UNIONFS_PATH").unwrap();
    let file = rw(Path::new(&path));
    let got = match task.to_str().unwrap() {
        "flock" => rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive),
        "posix" => rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive),
        other => panic!("{other}"),
    };
    match got {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK | Errno::ACCESS) => std::process::exit(77),
        Err(e) => panic!("{e}"),
    }
}

/// Whether another process gets the lock.
fn other_gets(task: &str, path: &Path) -> bool {
    let out = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "in_another_process"])
        .env("UNIONFS_CHILD", task)
        .env("UNIONFS_PATH", path)
        .output()
        .unwrap();
    match out.status.code() {
        Some(0) => true,
        Some(77) => false,
        _ => panic!("{}", common::text(&out)),
    }
}

#[test]
fn locks_between_processes() {
    need_mount!();
    let u = Union::new(1);
    put(u.lower(0, "f"), "x");
    let u = u.mounted();
    // Copied up first: overlayfs locks the lower inode of a file opened for reading.
    chmod(u.at("f"), 0o600);
    let file = rw(u.at("f"));
    assert!(other_gets("flock", &u.at("f")));
    rustix::fs::flock(&file, FlockOperation::LockExclusive).unwrap();
    assert!(!other_gets("flock", &u.at("f")));
    rustix::fs::flock(&file, FlockOperation::Unlock).unwrap();
    assert!(other_gets("flock", &u.at("f")));

    rustix::fs::fcntl_lock(&file, FlockOperation::LockExclusive).unwrap();
    assert!(!other_gets("posix", &u.at("f")));
    // POSIX locks go with any close of the file by the process.
    drop(File::open(u.at("f")).unwrap());
    assert!(other_gets("posix", &u.at("f")));
    rustix::fs::fcntl_lock(&file, FlockOperation::LockExclusive).unwrap();
    drop(file);
    assert!(other_gets("posix", &u.at("f")));
}

#[test]
fn private_xattrs_are_invisible() {
    need_mount!();
    let u = Union::new(1);
    put(u.lower(0, "d/f"), "x");
    let u = u.mounted();
    set_xattr(u.at("d/f"), "user.mine", b"1");
    std::fs::remove_dir_all(u.at("d")).unwrap();
    put(u.at("d/g"), "x");
    assert!(!xattr_names(u.upper("d")).is_empty(), "the upper has the mark of an opaque directory");
    for name in ["d", "d/g"] {
        assert!(xattr_names(u.at(name)).is_empty(), "{:?}", xattr_names(u.at(name)));
    }
    assert_eq!(xattr(u.at("d"), "trusted.overlay.opaque"), None);
    // A user cannot make marks through the mount: refused, or kept apart from ours.
    let _ = rustix::fs::lsetxattr(u.at("d/g"), "trusted.overlay.origin", b"x", XattrFlags::empty());
    assert_ne!(xattr(u.upper("d/g"), "trusted.overlay.origin").as_deref(), Some(&b"x"[..]));
}

#[test]
fn xattr_calls() {
    need_mount!();
    let u = Union::new(1);
    put(u.lower(0, "f"), "x");
    set_xattr(u.lower(0, "f"), "user.low", b"value");
    let u = u.mounted();
    let (path, set) = (u.at("f"), rustix::fs::lsetxattr::<_, &str>);
    let mut small = [0; 2];
    assert_eq!(rustix::fs::lgetxattr(&path, "user.low", &mut small[..]), Err(Errno::RANGE));
    assert_eq!(rustix::fs::lgetxattr(&path, "user.none", &mut small[..]), Err(Errno::NODATA));
    // cp asks for sizes first.
    common::run("cp", &["--preserve=all".as_ref(), path.as_os_str(), u.at("copy").as_os_str()]);
    assert_eq!(xattr(u.at("copy"), "user.low").as_deref(), Some(&b"value"[..]));
    assert_eq!(set(&path, "user.low", b"y", XattrFlags::CREATE), Err(Errno::EXIST));
    assert_eq!(set(&path, "user.none", b"y", XattrFlags::REPLACE), Err(Errno::NODATA));
    assert_eq!(rustix::fs::lremovexattr(&path, "user.none"), Err(Errno::NODATA));
    set(&path, "user.low", b"y", XattrFlags::REPLACE).unwrap();
    set(&path, "user.new", b"", XattrFlags::CREATE).unwrap();
    assert_eq!(xattr_names(&path), ["user.low", "user.new"]);
    assert_eq!(xattr(&path, "user.new"), Some(Vec::new()));
    rustix::fs::lremovexattr(&path, "user.low").unwrap();
    assert_eq!(xattr_names(&path), ["user.new"]);
    // An ACL shows in the mode and the other way round.
    set_xattr(&path, ACCESS, &acl_for(99, 0o640));
    assert_eq!(mode(&path) & 0o070, 0o070, "the mask is the group's bits");
    chmod(&path, 0o600);
    assert_ne!(xattr(&path, ACCESS), Some(acl_for(99, 0o640)));
}

#[test]
fn set_id_bits_go_when_another_user_writes() {
    need_mount!();
    use std::os::unix::process::CommandExt;
    let u = Union::new(1);
    dir(u.lower(0, "d"));
    chmod(u.lower(0, "d"), 0o777);
    for name in ["d/low", "d/low2"] {
        put(u.lower(0, name), "x");
        chmod(u.lower(0, name), 0o6777);
        set_xattr(u.lower(0, name), "security.capability", &CAPABILITY);
    }
    let u = u.mounted();
    let copy = "import os; i, o = os.open('from', os.O_RDONLY), os.open('up4', os.O_WRONLY); \
                assert os.copy_file_range(i, o, 5) == 5";
    put(u.at("d/from"), "other");
    for (name, script) in [
        ("d/low", "echo x >> low"),
        ("d/low2", ": > low2"),
        ("d/up", "echo x >> up"),
        ("d/up2", ": > up2"),
        ("d/up3", "fallocate -l 10000 up3"),
        ("d/up4", &format!("python3 -c \"{copy}\"")),
    ] {
        if name.starts_with("d/up") {
            put(u.at(name), "x");
            chmod(u.at(name), 0o6777);
        }
        assert_eq!(mode(u.at(name)), 0o6777);
        let mut sh = Command::new("sh");
        let out = sh.current_dir(u.at("d")).arg("-c").arg(script).uid(1234).gid(1234).output().unwrap();
        assert!(out.status.success(), "{}", common::text(&out));
        // Asked for the mode alone, as by who runs a program: other attributes must not be what brings it.
        let st = rustix::fs::statx(CWD, u.at(name), AtFlags::empty(), StatxFlags::MODE).unwrap();
        assert_eq!(st.stx_mode & 0o7777, 0o777, "{name}: the mode that the kernel goes by");
        assert_eq!(mode(u.at(name)), 0o777, "{name}");
        assert_eq!(mode(u.upper(name)), 0o777, "{name} in the upper");
        assert_eq!(xattr(u.at(name), "security.capability"), None, "{name}");
    }
    // A change of owner takes them, too.
    chmod(u.at("d/up"), 0o6777);
    std::os::unix::fs::chown(u.at("d/up"), Some(5), Some(5)).unwrap();
    assert_eq!(mode(u.at("d/up")), 0o777);
}

#[test]
fn times() {
    need_mount!();
    let u = Union::new(1);
    put(u.lower(0, "f"), "x");
    let mut u = u.mounted();
    for (name, atime, mtime) in [
        ("f", (-3, 700_000_000), (-1, 1)),
        ("f", (0, 0), (2_000_000_000, 999_999_999)),
        ("", (1, 2), (-5, 0)),
    ] {
        set_times(u.at(name), atime, mtime);
        for _ in 0..2 {
            let m = u.at(name).metadata().unwrap();
            assert_eq!((m.atime(), m.atime_nsec()), atime, "{name}");
            assert_eq!((m.mtime(), m.mtime_nsec()), mtime, "{name}");
            u.remount();
        }
    }
    let before = u.at("f").metadata().unwrap();
    rw(u.at("f")).write_all_at(b"y", 0).unwrap();
    let after = u.at("f").metadata().unwrap();
    assert!(after.mtime() > 1_600_000_000 && after.mtime() != before.mtime());
    let dir_before = u.mnt().metadata().unwrap().mtime();
    put(u.at("g"), "");
    assert_ne!(u.mnt().metadata().unwrap().mtime(), dir_before);
}

/// Writes to a mapping of each file, while it is open and when only the mapping is left. By the C library:
/// Python's own mapping keeps the file open.
const MAPPED: &str = "
import ctypes, os, sys, time
libc = ctypes.CDLL(None)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t] + 3 * [ctypes.c_int] + [ctypes.c_long]
libc.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
for name in sys.argv[1:]:
    before = os.stat(name)
    fd = os.open(name, os.O_RDWR)
    page = libc.mmap(None, 4096, 3, 1, fd, 0)
    assert page != ctypes.c_void_p(-1).value
    for what in ('open', 'closed'):
        time.sleep(0.02)
        ctypes.c_char.from_address(page).value = b'1'
        libc.msync(page, 4096, 4)
        after = os.stat(name)
        assert after.st_mtime_ns > before.st_mtime_ns, f'{name}, {what}: mtime'
        assert after.st_ctime_ns > before.st_ctime_ns, f'{name}, {what}: ctime'
        before = after
        if what == 'open':
            os.close(fd)
";

#[test]
fn a_write_to_a_mapping_changes_times() {
    need_mount!();
    let u = Union::new(1);
    put(u.lower(0, "low"), "x".repeat(10_000));
    put(u.upper("up"), "x".repeat(10_000));
    let u = u.mounted();
    put(u.at("new"), "x".repeat(10_000));
    for name in ["low", "up", "new"] {
        common::run("python3", &["-c".as_ref(), MAPPED.as_ref(), u.at(name).as_ref()]);
    }
}

#[test]
fn lowers_are_never_changed() {
    need_mount!();
    let u = Union::new(2);
    for layer in 0..2 {
        for name in ["read", "write", "chmod", "unlink", "rename", "link", "trunc", "xattr", "exec"] {
            put(u.lower(layer, format!("d{layer}/{name}")), format!("#!/bin/sh\n# {name}\n"));
        }
        chmod(u.lower(layer, format!("d{layer}/exec")), 0o755);
        symlink("target", u.lower(layer, format!("d{layer}/symlink"))).unwrap();
        dir(u.lower(layer, format!("d{layer}/rmdir")));
        put(u.lower(layer, "both/common"), format!("{layer}"));
        // Old access times, which any read would bring up to date on a relatime mount.
        let layer = u.lower(layer, "");
        for path in tree::fingerprint(&layer).into_keys() {
            set_times(layer.join(path), (1_000_000, 0), (2_000_000, 0));
        }
    }
    let before = [tree::fingerprint(&u.lower(0, "")), tree::fingerprint(&u.lower(1, ""))];
    let mut u = u.mounted();
    for d in ["d0", "d1"] {
        let at = |name: &str| u.at(d).join(name);
        get(at("read"));
        let mut reader = File::open(at("write")).unwrap();
        reader.read_to_end(&mut Vec::new()).unwrap();
        std::fs::read_link(at("symlink")).unwrap();
        list(u.at(d));
        common::run("cat", &[at("read").as_os_str()]);
        common::run(at("exec"), &[]);
        rw(at("write")).write_all_at(b"W", 0).unwrap();
        chmod(at("chmod"), 0o600);
        std::fs::remove_file(at("unlink")).unwrap();
        std::fs::rename(at("rename"), at("renamed")).unwrap();
        std::fs::hard_link(at("link"), at("linked")).unwrap();
        put(at("linked"), "linked");
        put(at("trunc"), "");
        set_xattr(at("xattr"), "user.a", b"a");
        std::fs::remove_dir(at("rmdir")).unwrap();
        put(at("new"), "new");
        set_times(at("read"), (5, 5), (6, 6));
    }
    put(u.at("both/common"), "changed");
    tree::read(&u.mnt());
    std::fs::remove_dir_all(u.at("d0")).unwrap();
    chmod(u.mnt(), 0o755);
    u.remount();
    tree::read(&u.mnt());
    u.unmount();
    let after = [tree::fingerprint(&u.lower(0, "")), tree::fingerprint(&u.lower(1, ""))];
    for (before, after) in before.iter().zip(&after) {
        for (path, stat) in before {
            assert_eq!(after.get(path), Some(stat), "{}", path.display());
        }
        assert_eq!(before.len(), after.len());
    }
}

#[test]
fn concurrent_first_writes_copy_up_once() {
    need_mount!();
    let u = Union::new(1);
    put(u.lower(0, "f"), vec![b'.'; 1 << 20]);
    let u = u.mounted();
    std::thread::scope(|s| {
        for i in 0..8_u8 {
            let path = u.at("f");
            s.spawn(move || {
                let file = OpenOptions::new().write(true).custom_flags(libc::O_SYNC).open(path).unwrap();
                for k in 0..16 {
                    file.write_all_at(&[b'a' + i; 1000], u64::from(i) * 100_000 + k * 1000).unwrap();
                }
            });
        }
    });
    let bytes = std::fs::read(u.at("f")).unwrap();
    for i in 0..8_u8 {
        let at = usize::from(i) * 100_000;
        assert!(bytes[at..at + 16_000].iter().all(|&b| b == b'a' + i), "writer {i}");
        assert!(bytes[at + 16_000..at + 100_000].iter().all(|&b| b == b'.'), "behind writer {i}");
    }
    assert_eq!(bytes.len(), 1 << 20);
}

#[test]
fn sync_calls() {
    need_mount!();
    let u = Union::new(1);
    put(u.lower(0, "d/f"), "x");
    let u = u.mounted();
    let file = rw(u.at("d/f"));
    file.write_all_at(b"y", 0).unwrap();
    file.sync_data().unwrap();
    file.sync_all().unwrap();
    File::open(u.at("d")).unwrap().sync_all().unwrap();
    File::open(u.at("d/f")).unwrap().sync_all().unwrap();
    let fd = rustix::fs::openat(CWD, u.mnt(), OFlags::RDONLY, Mode::empty()).unwrap();
    rustix::fs::syncfs(&fd).unwrap();
    assert!(common::wait_for(|| get(u.upper("d/f")) == "y"));
}
