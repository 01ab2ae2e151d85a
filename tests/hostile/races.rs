//! A second process exchanges directories, files and symlinks in the layers while the mount is walked and written.

use std::path::Path;
use std::process::{Child, Command};

use crate::common::Union;
use crate::common::files::put;
use crate::{Canary, SECRET, check_alive, logged, mount, need_mount, peer, python};

/// Exchanges what has each of two names, again and again, until it is killed.
const SWAP: &str = r#"
import ctypes, os, sys
libc = ctypes.CDLL(None)
end = os.times().elapsed + 50
pairs = [(x.encode(), (x + '.other').encode()) for x in sys.argv[1:]]
while os.times().elapsed < end:
    for a, b in pairs:
        libc.renameat2(-100, a, -100, b, 2)
"#;

/// Walks and changes the mount for some seconds, following no symlink itself: what it finds, the daemon has found.
const WALK: &str = r#"
import os, random, stat, sys, time
random.seed(1)
secret, seen, done = b'canary', 0, 0
end = time.monotonic() + 4
root = os.open('mnt', os.O_RDONLY | os.O_DIRECTORY)

def attempt(f, *args, **kw):
    try: return f(*args, **kw)
    except OSError: return None

def is_file(fd):
    found = attempt(os.fstat, fd)
    return found and stat.S_ISREG(found.st_mode)

def read(at, name):
    fd = attempt(os.open, name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
    if fd is None: return
    try:
        if is_file(fd):
            text = attempt(os.pread, fd, 100, 0) or b''
            assert secret not in text, (name, text)
            return True
    finally:
        attempt(os.close, fd)

def change(at, name):
    fd = attempt(os.open, name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=at)
    if fd is None: return
    try:
        if is_file(fd): attempt(os.pwrite, fd, b'written', 0)
    finally:
        attempt(os.close, fd)

while time.monotonic() < end:
    for name in ('d', 'd.other', 'sub/e', 'sub/e.other'):
        at = attempt(os.open, name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=root)
        if at is None: continue
        try:
            for entry in attempt(os.listdir, at) or ():
                assert entry != 'only-outside', name
                seen += bool(read(at, entry))
                what = random.randrange(6)
                if what == 0: change(at, entry)
                if what == 1: attempt(os.chmod, entry, 0o640, dir_fd=at)
                if what == 2: attempt(os.rename, entry, 'moved', src_dir_fd=at, dst_dir_fd=at); attempt(os.rename, 'moved', entry, src_dir_fd=at, dst_dir_fd=at)
                if what == 3: attempt(os.link, entry, 'linked', src_dir_fd=at, dst_dir_fd=at); attempt(os.unlink, 'linked', dir_fd=at)
                if what == 4: attempt(os.setxattr, '/proc/self/fd/%d/%s' % (at, entry), 'user.x', b'x', follow_symlinks=False)
                done += 1
            attempt(os.unlink, 'new', dir_fd=at)
            fd = attempt(os.open, 'new', os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600, dir_fd=at)
            if fd is not None: attempt(os.close, fd)
        finally:
            attempt(os.close, at)
    for name in ('f', 'f.other', 'p', 'p.other'):
        seen += bool(read(root, name))
        if random.randrange(3) == 0: change(root, name)
print(seen, done)
"#;

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn swap(layer: &Path) -> Killed {
    let names = ["d", "sub/e", "f", "p"];
    Killed(Command::new("python3").args(["-c", SWAP]).args(names).current_dir(layer).spawn().unwrap())
}

/// Directories and files, and beside each of them a way out of the layer.
fn fill(layer: &Path) {
    for name in ["d", "sub/e"] {
        for i in 0..5 {
            put(layer.join(format!("{name}/{i}")), "inside");
        }
        put(layer.join(name).join("secret"), "inside");
        let out = if name.contains('/') { "../../outside/dir" } else { "../outside/dir" };
        std::os::unix::fs::symlink(out, layer.join(format!("{name}.other"))).unwrap();
    }
    put(layer.join("f"), "inside");
    std::os::unix::fs::symlink("../outside/secret", layer.join("f.other")).unwrap();
    put(layer.join("p"), "inside");
    let kind = rustix::fs::FileType::CharacterDevice;
    // /dev/zero: who opens it here, reads without an end.
    let zero = rustix::fs::makedev(1, 5);
    rustix::fs::mknodat(rustix::fs::CWD, layer.join("p.other"), kind, rustix::fs::Mode::RWXU, zero).unwrap();
}

fn race(options: &[&str], in_upper: bool) {
    let mut union = logged(2);
    for option in options {
        union = union.option(option);
    }
    let canary = Canary::beside(&union);
    let layer = if in_upper { union.upper("") } else { union.lower(0, "") };
    fill(&layer);
    fill(&union.lower(1, ""));
    mount(&union);
    let swapper = swap(&layer);
    let out = python(union.dir(), WALK);
    drop(swapper);
    let numbers: Vec<u64> = out.split_whitespace().map(|n| n.parse().unwrap()).collect();
    assert!(numbers[0] > 20, "hardly anything was read: {out}");
    check_alive(&union);
    unchanged(&union, &canary);
}

fn unchanged(union: &Union, canary: &Canary) {
    canary.check();
    let inside = std::fs::read(union.dir().join("outside/dir/secret")).unwrap();
    assert_eq!(inside, SECRET.as_bytes());
    let meta = std::fs::metadata(union.dir().join("outside/dir")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mode(&meta) & 0o777, 0o755);
}

#[test]
fn symlinks_swapped_into_a_lower() {
    need_mount!();
    race(&["timeout=0"], false);
    if peer().is_none() {
        race(&["timeout=0", "passthrough=off", "metacopy=on", "io_uring=off"], false);
    }
}

#[test]
fn symlinks_swapped_into_the_upper() {
    need_mount!();
    race(&["timeout=0"], true);
    if peer().is_none() {
        race(&["timeout=0", "passthrough=off", "metacopy=on", "io_uring=off"], true);
    }
}
