//! Long names and paths.

use crate::common::files::{dir, put};
use crate::{agree, need_unionfs, python};

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
