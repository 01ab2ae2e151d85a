//! Programs that ask for what makes no sense. Whatever they are answered, nobody waits forever, and the mount goes on.

use crate::common::Union;
use crate::common::files::{dir, get, put, set_xattr};
use crate::{Canary, check_alive, logged, mount, need_mount, peer, python, ways};

const PRELUDE: &str = r#"
import ctypes, errno, fcntl, mmap, os, random, signal, struct, sys, time
random.seed(7)
libc = ctypes.CDLL(None, use_errno=True)
os.chdir('mnt')
signal.alarm(50)
def attempt(f, *args, **kw):
    try: return f(*args, **kw)
    except (OSError, ValueError, OverflowError): return None
def raw(f, *args):
    ctypes.set_errno(0)
    return f(*args)
L = ctypes.c_long; Q = ctypes.c_longlong
HUGE = [0, 1, -1, 4096, 2**31 - 1, 2**31, 2**32, 2**40, 2**62, 2**63 - 1, -2**63, -4096]
"#;

fn layers() -> Union {
    let union = logged(1);
    put(union.lower(0, "f"), "content of a lower file".repeat(1000));
    put(union.lower(0, "g"), "untouched");
    dir(union.lower(0, "d/e"));
    std::os::unix::fs::symlink("f", union.lower(0, "l")).unwrap();
    set_xattr(union.lower(0, "f"), "user.there", b"value");
    put(union.upper("u"), "content of an upper file".repeat(1000));
    union
}

fn serve(program: &str) {
    for options in ways(&[&[], &["passthrough=off", "io_uring=off", "metacopy=on"]]) {
        let mut union = layers();
        for option in *options {
            union = union.option(option);
        }
        let canary = Canary::beside(&union);
        mount(&union);
        python(union.dir(), &format!("{PRELUDE}{program}"));
        check_alive(&union);
        assert_eq!(get(union.at("g")), "untouched");
        assert_eq!(get(union.lower(0, "f")), "content of a lower file".repeat(1000));
        canary.check();
        union.unmount();
    }
}

#[test]
fn ioctls_of_any_number() {
    need_mount!();
    serve(
        r#"
fds = [os.open(n, os.O_RDONLY) for n in ('f', 'u', 'd', '.')] + [os.open('u', os.O_RDWR)]
known = [0x80086601, 0x40086602, 0x801c581f, 0x401c5820, 0x40049409, 0x4020940d, 0xc020660b, 0x8004e500, 0x4010e501, 0x80111500, 0x541b, 0x5401, 1, 2]
for number in known + [random.getrandbits(32) for _ in range(300)]:
    for fd in fds:
        # Never the flags that would make the files unchangeable for those who clean up.
        buf = bytearray(random.getrandbits(8) & 0x4f for _ in range(1024)) if number not in (0x40086602, 0x401c5820) else bytearray(1024)
        attempt(fcntl.ioctl, fd, number, buf, True)
        if number not in (0x40086602, 0x401c5820): raw(libc.ioctl, fd, ctypes.c_ulong(number), ctypes.c_void_p(8))
"#,
    );
}

#[test]
fn attributes_and_names_of_any_kind() {
    need_mount!();
    serve(
        r#"
names = ['', '.', 'user', 'user.', 'user.' + 'n' * 250, 'user.' + 'n' * 251, 'n' * 300, 'trusted.overlay.opaque', 'user.overlay.redirect',
    'trusted.overlay.overlay.overlay.x', 'security.capability', 'security.selinux', 'system.posix_acl_access', 'system.posix_acl_default', 'system.x', 'user.a/../b',
    'user.containers.override_stat', 'user.fuseoverlayfs.opaque', 'trusted.', 'os2.x', 'user.\xff']
for name in names:
    for size in (0, 1, 4, 28, 255, 4096, 65536, 65537):
        for path in ('f', 'u', 'd', 'l', '.'):
            for flags in (0, 1, 2, 3):
                attempt(os.setxattr, path, name, os.urandom(size), flags, follow_symlinks=False)
            raw(libc.lgetxattr, path.encode(), name.encode(), ctypes.create_string_buffer(size or 1), size)
            raw(libc.llistxattr, path.encode(), ctypes.create_string_buffer(size or 1), size)
            attempt(os.removexattr, path, name, follow_symlinks=False)
for name in (b'n' * 255, b'n' * 256, b'\xff\xfe', b'a\nb', b'\x1b[31m', b'.', b'..', b'...', b'.wh.', b'.wh..', b'.wh...', b'.wh..wh..opq', b'.wh.f', b'x' * 4096, b'd/' * 2000 + b'x', b'.wh.' + b'n' * 251, b'#1', b'work'):
    for f in (os.mkdir, os.rmdir, os.unlink, os.stat, os.listdir, os.readlink):
        attempt(f, name); attempt(f, b'd/' + name)
    attempt(os.symlink, b't' * 4095, name); attempt(os.unlink, name)
    attempt(os.symlink, b't' * 4096, name); attempt(os.unlink, name)
    attempt(os.rename, b'f', name); attempt(os.rename, name, b'f')
    attempt(os.link, b'f', name); attempt(os.unlink, name)
    attempt(os.rename, b'd', b'd/e/' + name); attempt(os.rename, b'd', b'd')
    for mode in (0, 0o160000, 0o140000, 0o060000, 0o020000, 0o010000, 0o177777, 0o170000):
        attempt(os.mknod, name, mode | 0o644, random.getrandbits(32)); attempt(os.unlink, name)
for flags in (1, 2, 3, 4, 5, 6, 7, 8, 0xffffffff):
    raw(libc.renameat2, -100, b'f', -100, b'd', flags); raw(libc.renameat2, -100, b'd', -100, b'f', flags)
    if os.path.isdir('f'): os.rename('f', 'x'); os.rename('d', 'f'); os.rename('x', 'd')
"#,
    );
}

#[test]
fn offsets_and_sizes_of_any_size() {
    need_mount!();
    serve(
        r#"
for name in ('f', 'u'):
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND, os.O_RDWR | os.O_DIRECT, os.O_RDWR | os.O_SYNC, os.O_PATH, 3, os.O_RDWR | os.O_TRUNC):
        fd = attempt(os.open, name, flags)
        if fd is None: continue
        for a in HUGE:
            for whence in (0, 1, 2, 3, 4, 5, 77): attempt(os.lseek, fd, a, whence)
            attempt(os.pread, fd, 100, a); attempt(os.pwrite, fd, b'', a)
            if abs(a) < 2**31 or a > 2**50: attempt(os.pwrite, fd, b'x', a)
            attempt(os.posix_fadvise, fd, a, a, 77); attempt(os.posix_fadvise, fd, a, a, 3)
            raw(libc.sync_file_range, fd, Q(a), Q(a), 7)
            for b in HUGE:
                raw(libc.fallocate, fd, 3, Q(a), Q(b)); raw(libc.fallocate, fd, 0x10, Q(a), Q(min(b, 2**20)))
                raw(libc.fallocate, fd, 0x7f, Q(a), Q(b)); raw(libc.fallocate, fd, 8, Q(a), Q(b))
                x, y = Q(a), Q(b)
                raw(libc.copy_file_range, fd, ctypes.byref(x), fd, ctypes.byref(y), ctypes.c_size_t(min(abs(b), 2**20)), 0)
                raw(libc.copy_file_range, fd, ctypes.byref(x), fd, ctypes.byref(y), ctypes.c_size_t(10), 99)
        attempt(os.ftruncate, fd, -1); attempt(os.ftruncate, fd, 2**63 - 1); attempt(os.ftruncate, fd, 5)
        os.close(fd)
    for nsec in (-1, 10**9, 2**62, 0x3fffffff, 0x3ffffffe):
        times = struct.pack('4q', 2**62, nsec, -2**62, nsec)
        raw(libc.utimensat, -100, name.encode(), times, 0)
for flags in [random.getrandbits(23) & ~os.O_TRUNC for _ in range(400)]:
    fd = attempt(os.open, random.choice(['f', 'u', 'd', 'l', 'none', '.']), flags | os.O_NONBLOCK, random.getrandbits(12))
    if fd is not None: os.close(fd)
at = os.open('.', os.O_RDONLY)
buf = ctypes.create_string_buffer(65536)
for a in HUGE:
    raw(libc.lseek, at, Q(a), 0)
    for size in (0, 1, 23, 24, 100, 65536): raw(libc.syscall, L(217), at, buf, L(size))
"#,
    );
}

#[test]
fn mappings_of_files_that_shrink() {
    need_mount!();
    serve(
        r#"
import threading
def child(name):
    fd = os.open(name, os.O_RDWR)
    os.ftruncate(fd, 1 << 20)
    maps = [mmap.mmap(fd, 1 << 20, flag, prot) for flag in (mmap.MAP_SHARED, mmap.MAP_PRIVATE) for prot in (3, 1)]
    stop = time.monotonic() + 1
    def shrink():
        while time.monotonic() < stop:
            os.ftruncate(fd, random.choice([0, 1, 4096, 5000, 1 << 20]))
            raw(libc.fallocate, fd, 3, Q(random.randrange(1 << 20)), Q(65536))
            attempt(os.rename, name, name + '.x'); attempt(os.rename, name + '.x', name)
    threading.Thread(target=shrink, daemon=True).start()
    while time.monotonic() < stop:
        for m in maps:
            at = random.randrange(1 << 20)
            m[at]
            if m is maps[0]: m[at] = 1
    for m in maps: attempt(m.flush)
for name in ('f', 'u', 'f', 'u'):
    pid = os.fork()
    if pid == 0:
        try: child(name)
        finally: os._exit(0)
    _, status = os.waitpid(pid, 0)
    # It ends by itself or of reading behind the end of a file.
    assert status in (0, signal.SIGBUS), status
    attempt(os.rename, name + '.x', name)
    os.truncate(name, 100); open(name, 'rb').read()
"#,
    );
}

#[test]
fn handles_that_nobody_was_given() {
    need_mount!();
    if peer().as_deref() == Some("overlay") {
        return crate::common::skip("overlayfs has handles with nfs_export=on only");
    }
    serve(
        r#"
at = os.open('.', os.O_RDONLY)
def handle(path):
    buf = ctypes.create_string_buffer(136); ctypes.c_uint.from_buffer(buf).value = 128
    mount = ctypes.c_int()
    assert libc.name_to_handle_at(at, path, buf, ctypes.byref(mount), 0) == 0
    return bytes(buf.raw)
good = [handle(p) for p in (b'f', b'u', b'd', b'd/e', b'.')]
names = 0
for i in range(4000):
    h = bytearray(random.choice(good))
    for _ in range(random.randrange(4)): h[8 + random.randrange(28)] = random.getrandbits(8)
    if i % 10 == 0: h[4] = random.getrandbits(8)
    if i % 11 == 0: h[0] = random.randrange(129)
    fd = raw(libc.open_by_handle_at, at, bytes(h), os.O_RDONLY | os.O_NONBLOCK)
    if fd >= 0:
        names += 1
        where = os.readlink('/proc/self/fd/%d' % fd)
        if os.fstat(fd).st_mode & 0o170000 == 0o100000: assert b'canary' not in os.read(fd, 100)
        os.close(fd)
assert names
"#,
    );
}

#[test]
fn all_at_once_and_killed_on_the_way() {
    need_mount!();
    serve(
        r#"
def child():
    while True:
        name = random.choice(['f', 'u', 'd/n%d' % random.randrange(5), 'n%d' % random.randrange(5)])
        what = random.randrange(7)
        if what == 0: attempt(os.rename, name, name + '.m')
        if what == 1: attempt(lambda: open(name, 'ab').write(b'x' * 70000))
        if what == 2: attempt(os.unlink, 'd/n1')
        if what == 3: attempt(os.setxattr, name, 'user.k', b'v')
        if what == 4: attempt(lambda: open(name, 'rb').read())
        if what == 5: attempt(os.listdir, 'd')
        if what == 6: attempt(os.link, name, 'd/n%d' % random.randrange(5))
end = time.monotonic() + 2
while time.monotonic() < end:
    pids = []
    for i in range(8):
        pid = os.fork()
        if pid == 0: random.seed(i); child()
        pids.append(pid)
    time.sleep(random.random() / 4)
    for pid in pids: os.kill(pid, 9)
    for pid in pids: os.waitpid(pid, 0)
"#,
    );
}
