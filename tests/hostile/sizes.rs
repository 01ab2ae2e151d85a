//! Trees deeper than a path may be long, and directories that never seem to end.

use std::process::Command;

use crate::common::files::{dir, list};
use crate::{check_alive, logged, mount, need_mount, python};

#[test]
fn deeper_than_a_path_is_long() {
    need_mount!();
    let union = logged(2);
    // 12 KiB of path, in two layers.
    let make = r#"
import os
for layer in ('l0', 'l1'):
    at = os.open(layer, os.O_RDONLY)
    for i in range(1200):
        os.mkdir('d' * 10, dir_fd=at)
        below = os.open('d' * 10, os.O_RDONLY, dir_fd=at); os.close(at); at = below
    os.close(os.open('of-' + layer, os.O_CREAT | os.O_WRONLY, dir_fd=at)); os.close(at)
"#;
    python(union.dir(), make);
    mount(&union);
    let walk = r#"
import os
at = os.open('mnt', os.O_RDONLY)
for i in range(1200):
    below = os.open('d' * 10, os.O_RDONLY | os.O_DIRECTORY, dir_fd=at); os.close(at); at = below
assert sorted(os.listdir(at)) == ['of-l0', 'of-l1'], os.listdir(at)
# Copies up all directories on the way.
fd = os.open('new', os.O_CREAT | os.O_WRONLY, dir_fd=at); os.write(fd, b'x'); os.close(fd)
fd = os.open('of-l1', os.O_RDWR, dir_fd=at); os.write(fd, b'x'); os.close(fd)
os.unlink('of-l0', dir_fd=at)
try: os.rename('d', 'e')
except OSError: pass
print(sorted(os.listdir(at)))
"#;
    assert_eq!(python(union.dir(), walk).trim(), "['new', 'of-l1']");
    check_alive(&union);
    // All of it, from the kernel's caches and the daemon's.
    std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
    assert_eq!(
        python(
            union.dir(),
            walk.split("# Copies").next().unwrap().replace("['of-l0', 'of-l1']", "['new', 'of-l1']").as_str()
        ),
        ""
    );
    rm(&union.at("dddddddddd"));
    assert_eq!(list(union.mnt()), [""; 0]);
    check_alive(&union);
    union.unmount();
    for layer in [union.lower(0, ""), union.lower(1, ""), union.upper("")] {
        rm(&layer);
    }
}

/// Tests' own way to remove a tree uses paths.
fn rm(path: &std::path::Path) {
    let status = Command::new("timeout").args(["60", "rm", "-rf"]).arg(path).status().unwrap();
    assert!(status.success(), "{}", path.display());
}

#[test]
fn many_names_in_a_directory() {
    need_mount!();
    let union = logged(2);
    for layer in ["l0/big", "l1/big"] {
        dir(union.dir().join(layer));
    }
    let make = r#"
import os
for n, layer in ((10000, 'l0/big'), (20000, 'l1/big')):
    open(layer + '/first', 'w').close()
    at = os.open(layer, os.O_RDONLY)
    for i in range(n):
        # Some names are the longest there can be.
        name = '%d' % i if i % 100 else ('%d' % i).rjust(255, 'n')
        if i % 50 == 7 and layer == 'l0/big': os.mknod(name, 0o020000, 0, dir_fd=at)
        else: os.mknod(name, 0o100644, dir_fd=at)
"#;
    python(union.dir(), make);
    mount(&union);
    let walk = r#"
import os
names = os.listdir('mnt/big')
assert len(names) == len(set(names)) == 20000 + 1 - 200, len(names)
assert sum(len(n) == 255 for n in names) == 200
for name in names[:300]: os.unlink('mnt/big/' + name)
left = {e.name for e in os.scandir('mnt/big') if e.is_file(follow_symlinks=False)}
assert left == set(names[300:])
moved = 'mnt/moved'
try: os.rename('mnt/big', moved)
except OSError as e:
    # Not every filesystem renames a directory of a lower.
    assert e.errno == 18, e
    moved = 'mnt/big'
assert len(os.listdir(moved)) == 20000 + 1 - 200 - 300
"#;
    python(union.dir(), walk);
    check_alive(&union);
}
