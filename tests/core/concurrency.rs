//! Many threads on a few names. Nothing may hang, nothing may be lost, and what is on disk afterwards is
//! what the live union shows.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use rustix::fs::RenameFlags;
use rustix::io::Errno;
use unionfs::fs::{ROOT, SetAttr, UnionFs};

use crate::tree::{Tree, os};
use crate::union::{KEEP, Union, caller};

const THREADS: u64 = 8;
const OPERATIONS: u64 = 600;
/// Without a step of any thread for so long, something waits for itself.
const PATIENCE: Duration = Duration::from_secs(60);

const DIRS: [&str; 4] = ["", "d", "e", "d/s"];
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "s"];

/// xorshift64*: the same for each seed everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % n
    }
}

/// A kernel of one thread: takes lookups and gives them back.
struct Worker<'a> {
    fs: &'a UnionFs,
    random: Random,
    held: Vec<u64>,
    open: Vec<u64>,
}

/// Errors that others may cause; any other one is a fault.
const EXPECTED: [Errno; 8] = [
    Errno::NOENT,
    Errno::EXIST,
    Errno::NOTEMPTY,
    Errno::NOTDIR,
    Errno::ISDIR,
    Errno::INVAL,
    Errno::STALE,
    Errno::NXIO,
];

impl Worker<'_> {
    fn look(&mut self, dir: u64, name: &str) -> Result<u64, Errno> {
        let ino = self.fs.lookup(dir, os(name))?.ino;
        if ino != ROOT {
            self.held.push(ino);
        }
        Ok(ino)
    }

    fn dir(&mut self) -> Result<u64, Errno> {
        let path = DIRS[self.random.below(DIRS.len())];
        let mut ino = ROOT;
        for name in path.split('/').filter(|n| !n.is_empty()) {
            ino = self.look(ino, name)?;
        }
        Ok(ino)
    }

    fn step(&mut self) -> Result<(), Errno> {
        let (dir, other) = (self.dir()?, self.dir()?);
        let (name, new) = (NAMES[self.random.below(6)], NAMES[self.random.below(6)]);
        let me = caller();
        let is_dir = |fs: &UnionFs, ino| fs.getattr(ino, None).map(|a| a.kind().is_dir());
        match self.random.below(16) {
            0 => {
                self.look(dir, name)?;
            }
            1 => {
                let (attr, opened) =
                    self.fs.create(&me, dir, os(name), 0o644, libc::O_RDWR, &mut |_| Some(Arc::new(())))?;
                self.held.push(attr.ino);
                self.open.push(opened.fh);
                self.fs.write(opened.fh, 0, name.as_bytes(), None)?;
            }
            2 => self.held.push(self.fs.mkdir(&me, dir, os(name), 0o755)?.ino),
            3 => self.held.push(self.fs.symlink(&me, dir, os(name), os(new))?.ino),
            4 => {
                let ino = self.look(dir, name)?;
                match self.fs.link(ino, other, os(new)) {
                    Err(Errno::PERM) if is_dir(self.fs, ino)? => {}
                    done => self.held.push(done?.ino),
                }
            }
            5 => self.fs.unlink(dir, os(name))?,
            6 => self.fs.rmdir(dir, os(name))?,
            // As the kernel does: directories are not moved below themselves.
            7..=9 => {
                let ino = self.look(dir, name)?;
                if !is_dir(self.fs, ino)? || dir == other {
                    self.fs.rename(dir, os(name), other, os(new), RenameFlags::empty())?;
                }
            }
            10 => {
                let (a, b) = (self.look(dir, name)?, self.look(other, new)?);
                if dir == other || !is_dir(self.fs, a)? && !is_dir(self.fs, b)? {
                    self.fs.rename(dir, os(name), other, os(new), RenameFlags::EXCHANGE)?;
                }
            }
            11 => {
                let ino = self.look(dir, name)?;
                self.fs.setattr(&me, ino, &SetAttr { uid: Some(me.uid), ..KEEP }, None)?;
            }
            12 | 13 => {
                let ino = self.look(dir, name)?;
                let flags =
                    [libc::O_RDONLY, libc::O_RDWR, libc::O_WRONLY | libc::O_TRUNC][self.random.below(3)];
                let fh = match self.fs.open_file(&me, ino, flags, &mut |_| Some(Arc::new(()))) {
                    Err(Errno::ISDIR) => self.fs.readdir(ino, 0, &mut |_| false).map(|()| 0)?,
                    opened => opened?.fh,
                };
                if fh != 0 {
                    self.open.push(fh);
                    self.fs.read(fh, 0, &mut [0; 16])?;
                }
            }
            14 => {
                self.fs.readdir(dir, 0, &mut |_| false)?;
            }
            _ => {
                let held = &mut self.held;
                self.fs.readdirplus(dir, 0, self.random.below(2) == 0, &mut |e, attr| {
                    if attr.is_some() {
                        held.push(e.ino);
                    }
                    false
                })?;
            }
        }
        Ok(())
    }

    fn let_go(&mut self, keep: usize) {
        while self.open.len() > keep {
            let fh = self.open.swap_remove(self.random.below(self.open.len()));
            self.fs.release(fh);
        }
        while self.held.len() > 20 * keep {
            let ino = self.held.swap_remove(self.random.below(self.held.len()));
            self.fs.forget(ino, 1);
        }
    }
}

/// Counts a thread that ends, be it by a failure, which the scope reports.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn run(t: &Tree, seed: u64) -> UnionFs {
    let fs = t.open().fs;
    let (steps, done) = (AtomicU64::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (fs, steps, done) = (&fs, &steps, &done);
            let random = Random(seed * 1000 + thread + 1);
            scope.spawn(move || {
                let _done = Counted(done);
                let mut worker = Worker { fs, random, held: Vec::new(), open: Vec::new() };
                for step in 0..OPERATIONS {
                    if let Err(e) = worker.step() {
                        assert!(EXPECTED.contains(&e), "seed {seed}, thread {thread}, step {step}: {e}");
                    }
                    worker.let_go(4);
                    steps.fetch_add(1, Ordering::Relaxed);
                }
                worker.let_go(0);
            });
        }
        let mut last = (0, std::time::Instant::now());
        while done.load(Ordering::Relaxed) < THREADS as usize {
            std::thread::sleep(Duration::from_millis(10));
            let now = steps.load(Ordering::Relaxed);
            if now != last.0 {
                last = (now, std::time::Instant::now());
            } else if last.1.elapsed() > PATIENCE {
                eprintln!("seed {seed}: no thread got on after {now} steps");
                std::process::abort();
            }
        }
    });
    fs
}

fn check(t: &Tree, seed: u64, fs: UnionFs) {
    assert_eq!(fs.counts(), (1, 0, 0), "seed {seed}: all was let go");
    let live = Union::new(fs);
    // Walking the tree looks up every name that is listed.
    let tree = live.tree();
    assert_eq!(t.left_over(), [""; 0], "seed {seed}");
    live.forget_all();
    assert_eq!(live.fs.counts(), (1, 0, 0), "seed {seed}");
    let again = t.open();
    let reopened = again.tree();
    for (path, shown) in &tree {
        assert_eq!(reopened.get(path), Some(shown), "seed {seed}: {path}");
    }
    assert_eq!(reopened.len(), tree.len(), "seed {seed}");
    // As many names as the link count says.
    let mut names = std::collections::BTreeMap::<u64, u32>::new();
    tree.values().filter(|s| s.nlink > 0).for_each(|s| *names.entry(s.ino).or_default() += 1);
    for (path, shown) in tree.iter().filter(|(_, s)| s.nlink > 0) {
        assert_eq!(shown.nlink, names[&shown.ino], "seed {seed}: {path}");
    }
    let linked = tree.values().filter(|s| s.nlink > 0).count();
    assert!(t.index().len() <= linked, "seed {seed}: {:?}", t.index());
}

#[test]
fn slow_threads_on_the_same_names() {
    let first = std::env::var("UNIONFS_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    for seed in first..first + 4 {
        let t = Tree::on(
            "f d/c upper\nf e/s/x 1",
            &[
                "f a one\nf d/a two\nh d/b d/a\nh e/c d/a\nf d/s/a 3\nl e/a x\nd e/b",
                "f b four\nf d/s/b 5\nh e/d b\nf d/s/c 6\nd e/b/c",
            ],
        );
        let before = [t.snapshot("lower0"), t.snapshot("lower1")];
        let fs = run(&t, seed);
        check(&t, seed, fs);
        assert_eq!([t.snapshot("lower0"), t.snapshot("lower1")], before);
    }
}

/// Names of one lower file in several directories, taken away and copied up at once.
#[test]
fn slow_hardlinks_in_several_directories() {
    for round in 0..60 {
        let t = Tree::new(&["f a/f text\nh b/f a/f\nh c/f a/f\nh d/f a/f"]);
        let fs = t.open().fs;
        std::thread::scope(|scope| {
            for (i, dir) in ["a", "b", "c", "d"].into_iter().enumerate() {
                let fs = &fs;
                scope.spawn(move || {
                    let dir = fs.lookup(ROOT, os(dir)).unwrap().ino;
                    let ino = fs.lookup(dir, os("f")).unwrap().ino;
                    match (i + round) % 4 {
                        0 => fs.unlink(dir, os("f")).unwrap(),
                        1 => fs.rename(dir, os("f"), dir, os("g"), RenameFlags::empty()).unwrap(),
                        2 => {
                            fs.setattr(&caller(), ino, &SetAttr { mode: Some(0o600), ..KEEP }, None).unwrap();
                        }
                        _ if round % 8 < 4 => fs.unlink(dir, os("f")).unwrap(),
                        _ => {
                            let ino = fs.link(ino, dir, os("h")).unwrap().ino;
                            fs.forget(ino, 1);
                        }
                    }
                    fs.forget(ino, 1);
                    fs.forget(dir, 1);
                });
            }
        });
        check(&t, round as u64, fs);
        assert!(t.index().len() <= 1);
    }
}
