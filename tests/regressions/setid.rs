//! Set-ID bits and capabilities go when a file changes, as on ext4, and stay otherwise.

use crate::common::files::{CAPABILITY, chmod, put, set_xattr};
use crate::{agree, need_unionfs, python};

/// The changes. Each has a file of its own for each mode and user.
const ACTIONS: [&str; 12] = [
    "write",
    "append",
    "pwrite",
    "mmap",
    "chown",
    "chgrp",
    "truncate",
    "ftruncate",
    "otrunc",
    "fallocate",
    "punch",
    "copy",
];
/// The third and fourth belong to a group that the user is not in.
const MODES: [u32; 6] = [0o6777, 0o4777, 0o2747, 0o2767, 0o2777, 0o0777];

const PROGRAM: &str = r#"
def act(action, path):
    fd = os.open(path, os.O_RDWR | (os.O_APPEND if action == 'append' else 0) | (os.O_TRUNC if action == 'otrunc' else 0))
    match action:
        case 'write' | 'append': os.write(fd, b'x')
        case 'pwrite': os.pwrite(fd, b'x', 2)
        case 'mmap':
            m = mmap.mmap(fd, 4); m[0:1] = b'y'; m.flush(); m.close()
        case 'chown': print(attempt(os.chown, path, 1234, -1), end=' ')
        case 'chgrp': print(attempt(os.fchown, fd, -1, 1234), end=' ')
        case 'truncate': os.truncate(path, 2)
        case 'ftruncate': os.ftruncate(fd, 8)
        case 'fallocate': os.posix_fallocate(fd, 0, 10000)
        case 'punch': print(attempt(lambda: check(libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(2)))), end=' ')
        case 'copy':
            src = os.open('source', os.O_RDONLY); os.copy_file_range(src, fd, 4)
    os.close(fd)
def all(who):
    for action in sys.argv[1:] or ACTIONS:
        for mode in MODES:
            path = f'{who}-{action}-{mode:o}'
            act(action, path)
            s = os.stat(path); print(path, oct(s.st_mode), s.st_uid, s.st_gid, end=' ')
            # ext4 keeps a capability when a mapping is written to, which a filesystem in userspace cannot.
            print('' if action == 'mmap' else attempt(os.getxattr, path, 'security.capability'))
all('root'); as_user(lambda: all('user'))
"#;

#[test]
fn set_id_bits_and_capabilities_go_as_on_ext4() {
    need_unionfs!();
    let seen = agree(
        |root| {
            put(root.join("source"), "source");
            chmod(root, 0o755);
            for who in ["root", "user"] {
                for action in ACTIONS {
                    for mode in MODES {
                        let path = root.join(format!("{who}-{action}-{mode:o}"));
                        put(&path, "content");
                        if who == "user" {
                            std::os::unix::fs::chown(
                                &path,
                                Some(1234),
                                Some(if [0o2767, 0o2747].contains(&mode) { 5 } else { 1234 }),
                            )
                            .unwrap();
                        }
                        chmod(&path, mode);
                        set_xattr(&path, "security.capability", &CAPABILITY);
                    }
                }
            }
        },
        |root| {
            let lists = format!("ACTIONS, MODES = {ACTIONS:?}, {MODES:?}\n");
            python(root, &format!("{lists}{PROGRAM}"))
        },
    );
    assert!(seen.contains("user-write-6777 0o100777"), "{seen}");
}

#[test]
fn set_id_bits_stay_on_create_and_copy_up() {
    need_unionfs!();
    agree(
        |root| {
            for name in ["link", "rename", "times", "xattr", "read", "chmod"] {
                put(root.join(name), "x");
                chmod(root.join(name), 0o6755);
                set_xattr(root.join(name), "security.capability", &CAPABILITY);
            }
            crate::common::files::dir(root.join("open"));
            chmod(root.join("open"), 0o777);
        },
        |root| {
            python(
                root,
                r#"
os.umask(0)
os.close(os.open('new', os.O_CREAT | os.O_WRONLY, 0o6755)); os.mkdir('newdir', 0o3777); os.mknod('node', 0o6755)
def user():
    os.close(os.open('open/unew', os.O_CREAT | os.O_WRONLY, 0o6755)); os.mknod('open/unode', 0o6755); os.mkdir('open/udir', 0o1777)
as_user(user)
os.link('link', 'linked'); os.rename('rename', 'renamed'); os.utime('times', (1, 2)); os.setxattr('xattr', 'user.a', b'b')
open('read').read(); os.chmod('chmod', 0o6711)
for n in sorted([*os.listdir('.'), *(f'open/{n}' for n in os.listdir('open'))]):
    s = os.stat(n); print(n, oct(s.st_mode), s.st_uid, attempt(os.getxattr, n, 'security.capability'))
"#,
            )
        },
    );
}
