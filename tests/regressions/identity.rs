//! Inode numbers and file handles.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};

use crate::common::Union;
use crate::common::files::{chmod, dir, put};
use crate::{MOUNTS, agree, need_unionfs, python};

/// Forgets dentries and inodes that nobody uses.
fn drop_caches() {
    std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
}

fn fill(root: &Path) {
    for name in ["file", "chmod", "rename", "d/f", "d/sub/g", "linked", "x"] {
        put(root.join(name), "x");
    }
    std::fs::hard_link(root.join("linked"), root.join("linked2")).unwrap();
    symlink("t", root.join("symlink")).unwrap();
    mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
}

#[test]
fn inode_numbers_never_change() {
    need_unionfs!();
    for options in MOUNTS {
        let mut u = Union::new(2);
        u.set_options(options);
        fill(&u.lower(1, ""));
        put(u.lower(0, "d/top"), "x");
        u.mount();
        put(u.at("new"), "x");
        let names = [
            "file", "chmod", "rename", "d", "d/f", "d/sub", "d/sub/g", "d/top", "linked", "x", "symlink",
            "fifo", "new",
        ];
        let numbers = |u: &Union, moved: bool| {
            names.map(|n| {
                let n =
                    if moved { n.replace("rename", "d/renamed").replace("d/sub", "sub") } else { n.into() };
                u.at(n).symlink_metadata().unwrap().ino()
            })
        };
        let before = numbers(&u, false);
        put(u.at("file"), "written");
        chmod(u.at("chmod"), 0o600);
        chmod(u.at("d/f"), 0o600);
        put(u.at("linked2"), "written");
        std::os::unix::fs::lchown(u.at("symlink"), Some(1), Some(1)).unwrap();
        chmod(u.at("fifo"), 0o644);
        assert_eq!(numbers(&u, false), before, "after copy-up, {options:?}");
        std::fs::rename(u.at("rename"), u.at("d/renamed")).unwrap();
        std::fs::rename(u.at("d/sub"), u.at("sub")).unwrap();
        for when in ["after renames", "after a remount", "after another"] {
            assert_eq!(numbers(&u, true), before, "{when}, {options:?}");
            drop_caches();
            assert_eq!(numbers(&u, true), before, "{when}, caches dropped, {options:?}");
            assert_eq!(u.at("linked2").metadata().unwrap().ino(), before[8]);
            u.remount();
        }
        renameat_with(CWD, u.at("file"), CWD, u.at("d"), RenameFlags::EXCHANGE).unwrap();
        assert_eq!(u.at("d").metadata().unwrap().ino(), before[0]);
        assert_eq!(u.at("file").metadata().unwrap().ino(), before[3]);
    }
}

#[test]
fn inode_numbers_in_use_are_not_given_to_others() {
    need_unionfs!();
    for options in MOUNTS {
        let mut u = Union::new(1);
        u.set_options(options);
        fill(&u.lower(0, ""));
        u.mount();
        put(u.at("up"), "x");
        // Held by descriptors, their names gone.
        let held: Vec<(File, u64)> = ["file", "up", "chmod"]
            .map(|n| {
                chmod(u.at(n), 0o600);
                let file = File::open(u.at(n)).unwrap();
                std::fs::remove_file(u.at(n)).unwrap();
                let ino = file.metadata().unwrap().ino();
                (file, ino)
            })
            .into();
        let mut seen: HashMap<u64, String> = held.iter().map(|(_, ino)| (*ino, "held".into())).collect();
        for round in 0..3 {
            for i in 0..100 {
                let path = u.at(format!("n{i}"));
                match (i + round) % 4 {
                    0 => put(&path, "x"),
                    1 => dir(&path),
                    2 => symlink("t", &path).unwrap(),
                    _ => mknodat(CWD, &path, FileType::Fifo, Mode::from(0o600), 0).unwrap(),
                }
                let meta = path.symlink_metadata().unwrap();
                let kind = (i + round) % 4;
                assert_eq!(
                    [meta.is_file(), meta.is_dir(), meta.is_symlink(), meta.file_type().is_fifo()],
                    [kind == 0, kind == 1, kind == 2, kind == 3]
                );
                if let Some(other) = seen.insert(meta.ino(), path.display().to_string()) {
                    panic!("{} has the number of {other}, {options:?}", path.display());
                }
            }
            for i in 0..100 {
                let path = u.at(format!("n{i}"));
                let ino = path.symlink_metadata().unwrap().ino();
                if path.symlink_metadata().unwrap().is_dir() {
                    std::fs::remove_dir(&path).unwrap();
                } else {
                    std::fs::remove_file(&path).unwrap();
                }
                seen.remove(&ino);
            }
            drop_caches();
        }
        for (file, ino) in &held {
            assert_eq!((file.metadata().unwrap().ino(), file.metadata().unwrap().nlink()), (*ino, 0));
        }
    }
}

/// Python functions for file handles.
const HANDLES: &str = r#"
class Handle(ctypes.Structure):
    _fields_ = [('bytes', ctypes.c_uint), ('type', ctypes.c_int), ('data', ctypes.c_ubyte * 128)]
def handle(path):
    h, mount = Handle(bytes=128), ctypes.c_int()
    check(libc.name_to_handle_at(-100, path.encode(), ctypes.byref(h), ctypes.byref(mount), 0))
    return h
top = os.open('.', os.O_RDONLY)
def reopen(h, flags=os.O_RDONLY):
    return check(libc.open_by_handle_at(top, ctypes.byref(h), flags))
def drop():
    open('/proc/sys/vm/drop_caches', 'w').write('2')
"#;

#[test]
fn open_by_handle_while_the_caches_are_warm() {
    need_unionfs!();
    agree(fill, |root| {
        let program = r#"
names = ('file', 'd', 'd/sub/g', 'linked')
held = [os.open(n, os.O_RDONLY) for n in names]
handles = {n: handle(n) for n in names}
os.rename('file', 'file2'); os.chmod('d/sub/g', 0o600); os.rename('d', 'e')
for n, h in handles.items():
    fd = reopen(h); s = os.fstat(fd); print(n, stat.S_ISDIR(s.st_mode), s.st_size, oct(s.st_mode))
os.write(reopen(handles['file'], os.O_RDWR), b'by handle'); print(open('file2').read())
os.unlink('file2'); os.close(held[0]); print(attempt(lambda: reopen(handles['file'])))
"#;
        python(root, &format!("{HANDLES}{program}"))
    });
}

#[test]
fn open_by_handle_after_the_caches_were_dropped() {
    need_unionfs!();
    agree(fill, |root| {
        let program = r#"
handles = {n: handle(n) for n in ('file', 'd', 'd/f', 'd/sub/g', 'linked', 'x')}
def look():
    drop()
    for n, h in handles.items():
        def size():
            fd = reopen(h)
            s = os.fstat(fd)
            os.close(fd)
            return stat.S_ISDIR(s.st_mode), s.st_ino, s.st_size
        got = attempt(size)
        print(n, got if isinstance(got, str) else (got[0], got[1] == numbers[n], got[2] if not got[0] else 0))
numbers = {n: os.stat(n).st_ino for n in handles}
look()
os.rename('file', 'd/file2'); os.chmod('d/f', 0o600); open('d/sub/g', 'a').write('more'); os.unlink('x')
look()
os.rename('d', 'e')
look()
"#;
        python(root, &format!("{HANDLES}{program}"))
    });
}
