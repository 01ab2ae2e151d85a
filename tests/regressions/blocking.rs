//! Nothing in a layer makes the daemon wait.

use std::os::unix::fs::symlink;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::common::files::{dir, put};
use crate::{agree, need_unionfs, python};

#[test]
fn a_fifo_does_not_block_the_daemon() {
    need_unionfs!();
    let seen = agree(
        |root| {
            dir(root.join("d"));
            for name in ["read", "write", "chmod", "rename", "unlink", "xattr", "times"] {
                mknodat(CWD, root.join("d").join(name), FileType::Fifo, Mode::from(0o640), 0).unwrap();
            }
            put(root.join("d/file"), "content");
        },
        |root| {
            python(
                root,
                r#"
# Two processes wait for the other end of one, meanwhile all goes on.
waiting = [os.fork() for _ in (0, 1)]
if 0 in waiting:
    os.open('d/read', os.O_RDONLY)
    os._exit(0)
time.sleep(0.05)
print(open('d/file').read(), sorted(os.listdir('d')))
print(attempt(os.open, 'd/write', os.O_WRONLY | os.O_NONBLOCK))
r = os.open('d/write', os.O_RDONLY | os.O_NONBLOCK)
w = os.open('d/write', os.O_WRONLY | os.O_NONBLOCK)
os.write(w, b'through'); print(os.read(r, 100))
os.chmod('d/chmod', 0o600); os.chown('d/chmod', 5, 6)
os.rename('d/rename', 'd/renamed'); os.unlink('d/unlink'); os.link('d/renamed', 'd/linked')
print(attempt(os.getxattr, 'd/xattr', 'user.a'), attempt(os.setxattr, 'd/xattr', 'user.a', b''))
os.setxattr('d/xattr', 'trusted.a', b'v'); print(os.getxattr('d/xattr', 'trusted.a'))
os.utime('d/times', (1, 2)); print(os.stat('d/times').st_mtime)
for name in sorted(os.listdir('d')):
    s = os.lstat('d/' + name); print(name, oct(s.st_mode), s.st_uid, s.st_gid, s.st_nlink)
other_end = os.open('d/read', os.O_WRONLY)
for pid in waiting:
    os.waitpid(pid, 0)
os.close(other_end)
"#,
            )
        },
    );
    assert!(seen.contains("through"));
}

#[test]
fn a_symlink_that_leads_back_into_the_mount_does_not_block_the_daemon() {
    need_unionfs!();
    for options in crate::MOUNTS {
        let mut u = crate::common::Union::new(1);
        u.set_options(options);
        put(u.lower(0, "f"), "x");
        dir(u.lower(0, "d"));
        for (name, to) in [("file", "f"), ("dir", "d"), ("self", "self"), ("missing", "no/where")] {
            symlink(u.mnt().join(to), u.lower(0, name)).unwrap();
        }
        u.mount();
        let seen = python(
            &u.mnt(),
            r#"
for name in ('file', 'dir', 'self', 'missing'):
    kw = {'follow_symlinks': False}
    print(attempt(os.listxattr, name, **kw), attempt(os.getxattr, name, 'user.a', **kw),
          attempt(os.getxattr, name, 'security.selinux', **kw), attempt(os.setxattr, name, 'user.a', b'', **kw))
    os.setxattr(name, 'trusted.a', b'v', **kw)
    os.chown(name, 5, 6, **kw); os.utime(name, (1, 2), **kw); os.removexattr(name, 'trusted.a', **kw)
    print(attempt(os.listxattr, name, **kw), os.lstat(name).st_uid, os.lstat(name).st_mtime)
print(os.listxattr('file'), open('file').read(), attempt(open, 'self'), attempt(open, 'missing'))
"#,
        );
        let link = "[] ENODATA ENODATA EPERM\n[] 5 2.0\n";
        // user. attributes are for files and directories (xattr(7)): EPERM, and ENODATA on reading.
        assert_eq!(seen, format!("{}[] x ELOOP ENOENT\n", link.repeat(4)), "{options:?}");
    }
}
