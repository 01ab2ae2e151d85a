//! Long names and paths, and few descriptors.

use std::process::Command;

use crate::common::files::{dir, list, put};
use crate::common::{Union, daemon_of, is_mounted, text};
use crate::{MOUNTS, agree, need_unionfs, python};

#[test]
fn names_and_paths_at_their_limits() {
    need_unionfs!();
    agree(
        |root| {
            put(root.join("f"), "x");
            dir(root.join("d"));
            put(root.join("n".repeat(255)), "long");
        },
        |root| {
            python(
                root,
                r#"
long, longer = 'x' * 255, 'x' * 256
wide = '\u00e9' * 127 + 'x'  # 255 bytes
for name in (long, longer, wide, wide + 'x', 'd/' + longer, longer + '/x'):
    print(len(name), attempt(os.stat, name), attempt(os.mkdir, name), attempt(os.rmdir, name),
        attempt(os.link, 'f', name), attempt(os.rename, name, 'r'), attempt(os.symlink, 't', name),
        attempt(os.readlink, name), attempt(os.unlink, name), attempt(os.mkfifo, name),
        attempt(os.rename, 'r', name), attempt(os.unlink, name), attempt(os.open, name, os.O_RDONLY))
    for f in (os.unlink, os.rmdir): attempt(f, 'r')
# A lower name of full length: its whiteout, its copy, its other names.
n = 'n' * 255
os.chmod(n, 0o600); os.rename(n, 'm' * 255); os.link('m' * 255, n); os.unlink('m' * 255); print(os.stat(n).st_nlink)
os.unlink(n); print(attempt(os.stat, n))
# A tree deeper than PATH_MAX, made step by step.
top = os.getcwd()
for i in range(20):
    os.mkdir(long); os.chdir(long)
open('bottom', 'w').write('deep'); print(open('bottom').read(), attempt(os.rename, 'bottom', 'b2'))
print(attempt(os.getcwd) if len(top) == 0 else '')
os.chdir(top)
# Paths of 4095 bytes and more.
for length in (4094, 4095, 4096, 4097):
    path = ('./' * 3000)[:length - 1 if length % 2 else length - 2] + ('f' if length % 2 else '/f')
    print(length, len(path), attempt(lambda: os.stat(path).st_size))
deep = '/'.join([long] * 15)
print(len(deep), attempt(lambda: stat.S_ISDIR(os.stat(deep).st_mode)), attempt(os.stat, '/'.join([long] * 16) + '/'))
print(attempt(os.open, deep + '/new', os.O_CREAT | os.O_WRONLY) != 'ENOENT', attempt(os.stat, deep + '/none'))
print(attempt(os.symlink, 'y' * 4095, 's'), attempt(lambda: len(os.readlink('s'))), attempt(os.symlink, 'y' * 4096, 's2'))
"#,
            )
        },
    );
}

/// Removed files hold a descriptor each until the kernel forgets them, and who removes many at once is faster than
/// that: others got EMFILE, and directories were left with files in them.
#[test]
fn descriptors_suffice_for_those_who_remove() {
    const LIMIT: usize = 300;
    need_unionfs!();
    for options in MOUNTS {
        let mut u = Union::new(2);
        u.set_options(options);
        for i in 0..600 {
            put(u.lower(i % 2, format!("lower/f{i}")), "x");
            dir(u.lower(i % 2, format!("dirs/d{i}/d")));
        }
        // Without the capability that lets the daemon raise its limit.
        let command = u.command();
        let out = Command::new("prlimit")
            .arg(format!("--nofile={LIMIT}:{LIMIT}"))
            .args(["setpriv", "--bounding-set=-sys_resource"])
            .arg(command.get_program())
            .args(command.get_args())
            .output()
            .unwrap();
        assert!(out.status.success() && is_mounted(&u.mnt()), "{}", text(&out));
        let limits =
            std::fs::read_to_string(format!("/proc/{}/limits", daemon_of(&u.mnt()).unwrap())).unwrap();
        let line = limits.lines().find(|l| l.starts_with("Max open files")).unwrap();
        assert_eq!(line.split_whitespace().nth(3), Some("300"), "{line}");
        std::thread::scope(|scope| {
            for worker in 0..8 {
                let root = u.mnt();
                scope.spawn(move || {
                    let own = root.join(format!("own{worker}"));
                    for _ in 0..2 {
                        dir(&own);
                        put(own.join("file"), "x");
                        for i in 0..200 {
                            std::os::unix::fs::symlink("target", own.join(format!("s{i}"))).unwrap();
                            std::fs::hard_link(own.join("file"), own.join(format!("h{i}"))).unwrap();
                            dir(own.join(format!("d{i}")));
                        }
                        std::fs::remove_dir_all(&own).unwrap();
                    }
                    for i in (worker..600).step_by(8) {
                        std::fs::remove_file(root.join(format!("lower/f{i}"))).unwrap();
                        std::fs::rename(root.join(format!("dirs/d{i}/d")), root.join(format!("d{i}")))
                            .unwrap();
                        std::fs::remove_dir(root.join(format!("d{i}"))).unwrap();
                    }
                });
            }
        });
        assert_eq!(list(u.at("lower")), [""; 0]);
        u.unmount();
        assert_eq!(list(u.work("work")), [""; 0], "left in the work directory");
    }
}
