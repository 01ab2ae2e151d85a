//! What readers and writers of one file see of each other.

use std::process::Command;

use crate::common::Union;
use crate::common::files::put;
use crate::common::trace::{Trace, no_strace};
use crate::{agree, need_unionfs, python};

#[test]
fn writes_through_a_mapping_set_the_times() {
    need_unionfs!();
    agree(
        |root| put(root.join("f"), vec![b'.'; 20_000]),
        |root| {
            python(
                root,
                r#"
fd = os.open('f', os.O_RDWR); os.utime('f', (1, 1)); before = os.fstat(fd)
m = mmap.mmap(fd, 20000)
time.sleep(0.02); m[10000:10003] = b'new'; m.flush(); s = os.fstat(fd)
print(s.st_mtime_ns > before.st_mtime_ns, s.st_ctime_ns > before.st_ctime_ns, os.stat('f').st_mtime_ns == s.st_mtime_ns)
# Again, after it was written back; and without msync, with the mapping gone.
time.sleep(0.02); m[5:6] = b'n'; m.flush(); t = os.stat('f')
print(t.st_mtime_ns > s.st_mtime_ns, t.st_ctime_ns > s.st_ctime_ns)
time.sleep(0.02); m[6:7] = b'n'; m.close(); os.fsync(fd); os.close(fd); u = os.stat('f')
print(u.st_mtime_ns > t.st_mtime_ns, open('f', 'rb').read().count(b'n'))
"#,
            )
        },
    );
}

#[test]
fn appends_of_several_processes_do_not_overwrite_each_other() {
    need_unionfs!();
    agree(
        |root| put(root.join("log"), "begin\n"),
        |root| {
            python(
                root,
                r#"
pids = []
for w in range(6):
    pid = os.fork()
    if not pid:
        for i in range(200):
            # Opened anew now and then, so that ways of doing I/O change meanwhile.
            if i % 40 == 0:
                fd = os.open('log', os.O_WRONLY | os.O_APPEND)
            line = f'{w}:{i}:'.ljust(59 + w, 'x') + '\n'
            assert os.write(fd, line.encode()) == len(line)
        os._exit(0)
    pids.append(pid)
print([os.waitpid(p, 0)[1] for p in pids])
lines = open('log').read().split('\n')
print(len(lines), lines[0], lines[-1] == '', all(len(l) == 59 + int(l[0]) for l in lines[1:-1]))
print(sorted(tuple(map(int, l.split(':')[:2])) for l in lines[1:-1]) == [(w, i) for w in range(6) for i in range(200)])
"#,
            )
        },
    );
}

#[test]
fn reads_are_not_stale_after_a_copy_up() {
    need_unionfs!();
    agree(
        |root| {
            for name in ["f", "g", "h", "one"] {
                put(root.join(name), vec![b'o'; 10_000]);
            }
            std::fs::hard_link(root.join("one"), root.join("two")).unwrap();
        },
        |root| {
            python(
                root,
                r#"
# In the page cache, and held by descriptors and mappings from before.
old = {n: os.open(n, os.O_RDONLY) for n in ('f', 'g', 'h', 'two')}
maps = {n: mmap.mmap(fd, 10000, prot=mmap.PROT_READ) for n, fd in old.items()}
private = {n: mmap.mmap(fd, 10000, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ) for n, fd in old.items()}
assert all(m[:] == b'o' * 10000 for m in [*maps.values(), *private.values()])
w = os.open('f', os.O_RDWR); os.pwrite(w, b'pwrite', 5000)
open('g', 'r+b').truncate(6000); open('g', 'ab').write(b'appended')
x = os.open('h', os.O_RDWR); n = mmap.mmap(x, 10000); n[5000:5006] = b'mapped'
open('one', 'r+b').write(b'link')
for name, fd in old.items():
    new = open(name, 'rb').read()
    print(name, os.pread(fd, 20000, 0) == new, maps[name][:len(new)] == new, private[name][:len(new)] == new,
        os.fstat(fd).st_size, new.count(b'o'))
# Back and forth, with all descriptors still open.
for i in range(20):
    os.pwrite(w, b'%06d' % i, 100 * i); n[i:i + 1] = b'#'
    assert os.pread(old['f'], 6, 100 * i) == b'%06d' % i == maps['f'][100 * i:100 * i + 6]
    assert os.pread(old['h'], 1, i) == b'#' == maps['h'][i:i + 1]
# A truncation, seen by the mapping's file; then by descriptors opened anew.
os.ftruncate(w, 50); print(os.fstat(old['f']).st_size, os.pread(old['f'], 100, 40), len(open('f', 'rb').read()))
os.ftruncate(w, 100); print(os.pread(old['f'], 100, 40))
"#,
            )
        },
    );
}

#[test]
fn a_file_that_is_written_by_many_ways_at_once_stays_whole() {
    need_unionfs!();
    agree(
        |root| put(root.join("f"), vec![b'.'; 4096 * 16]),
        |root| {
            python(
                root,
                r#"
# A reader's and a writer's mapping, pwrite and O_APPEND in turns, from two processes.
m = mmap.mmap(os.open('f', os.O_RDWR), 4096 * 16); r = os.open('f', os.O_RDONLY)
if not (pid := os.fork()):
    w, a = os.open('f', os.O_RDWR), os.open('f', os.O_WRONLY | os.O_APPEND)
    for i in range(16):
        os.pwrite(w, b'w' * 100, 4096 * i + 100); os.write(a, b'a' * 10)
    os._exit(0)
for i in range(16):
    m[4096 * i + 1000:4096 * i + 1100] = b'm' * 100
os.waitpid(pid, 0); m.flush()
data = os.pread(r, 1 << 20, 0)
print(len(data), data.count(b'w'), data.count(b'm'), data.count(b'a'), m[:] == data[:4096 * 16], open('f', 'rb').read() == data)
"#,
            )
        },
    );
}

#[test]
fn a_truncation_that_fails_truncates_nothing() {
    need_unionfs!();
    if no_strace() {
        return;
    }
    let u = Union::new(1);
    put(u.lower(0, "f"), "x".repeat(1000));
    let u = u.mounted();
    // In the upper already.
    put(u.at("f"), "x".repeat(1000));
    let mut failed = 0;
    for nth in 1..8 {
        let inject = format!("inject=openat:error=EIO:when={nth}");
        let trace = Trace::with(&u, &["-e", "trace=openat", "-e", &inject]);
        let script = "import os, sys; os.truncate(sys.argv[1], 10)";
        let done = Command::new("python3").args(["-c", script]).arg(u.at("f")).output().unwrap();
        trace.end();
        assert_eq!(
            u.upper("f").metadata().unwrap().len(),
            if done.status.success() { 10 } else { 1000 },
            "{nth}"
        );
        failed += u32::from(!done.status.success());
        put(u.at("f"), "x".repeat(1000));
    }
    assert!(failed > 0, "nothing was disturbed");
}
