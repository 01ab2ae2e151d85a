//! Reading ahead over many directories or files. One after the other, each that is not in memory is waited for; the
//! device can serve several at a time.
#![allow(unsafe_code)] // cachestat(2) has no safe wrapper.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Advice, OFlags};

use super::file;
use super::xattr::{self, Target};

/// Fewer directories than this are not worth threads.
const FEW: usize = 8;
/// Requests at a time.
const THREADS: usize = 8;
/// A directory that takes longer comes from the device: in memory it takes some 5 us.
const SLOW: Duration = Duration::from_micros(40);
/// So many slow ones are no accident.
const SLOW_ONES: u32 = 2;
/// Larger files have the kernel's own reading ahead.
const LARGE_FILE: u64 = 256 << 10;
/// Bytes of files that are brought in at a time.
const MOST_BYTES: u64 = 4 << 20;
/// So many files that are in memory mean that all are.
const KNOWN_FILES: i64 = 4;
/// `cachestat(2)`, the same on all architectures.
pub(super) const SYS_CACHESTAT: libc::c_long = 451;

/// Watches how long one directory after the other takes.
#[derive(Debug)]
pub struct Watch {
    /// When it was stepped last; `None` once there is nothing more to do.
    last: Option<Instant>,
    /// What takes longer was waited for.
    limit: Duration,
    slow: u32,
}

impl Watch {
    /// Begins now. `count`: so many directories will be looked at.
    pub fn new(count: usize) -> Self {
        Self { last: (count >= FEW).then(Instant::now), limit: SLOW, slow: 0 }
    }

    /// Begins now, for merged directories of so many parts each.
    pub fn of_merged(parts: usize) -> Self {
        let limit = SLOW.saturating_mul(u32::try_from(parts).unwrap_or(u32::MAX));
        Self { last: Some(Instant::now()), limit, slow: 0 }
    }

    /// To be called between two directories. `rest` gives those to come, each as a name in another one; it is called
    /// at most once, when they should be brought into memory, which this does.
    pub fn step<'a>(&mut self, rest: impl FnOnce() -> Vec<(Arc<OwnedFd>, &'a OsStr)>) {
        let Some(last) = self.last else { return };
        let now = Instant::now();
        self.slow += u32::from(now - last > self.limit);
        self.last = Some(now);
        if self.slow >= SLOW_ONES {
            self.last = None;
            let rest = rest();
            if rest.len() >= FEW {
                read(&rest);
            }
        }
    }
}

/// Whether the beginning of a file is not in memory. False where the kernel does not tell (before Linux 6.5, or
/// for files of others that the process may not write).
pub fn is_cold(file: impl AsFd) -> bool {
    #[repr(C)]
    struct Range {
        off: u64,
        len: u64,
    }
    #[derive(Default)]
    #[repr(C)]
    struct Stat {
        cached: u64,
        dirty: u64,
        writeback: u64,
        evicted: u64,
        recently_evicted: u64,
    }
    let range = Range { off: 0, len: 1 };
    let mut stat = Stat::default();
    // SAFETY: cachestat(2) reads a struct cachestat_range and writes a struct cachestat, both as long as ours.
    let rc = unsafe {
        libc::syscall(
            SYS_CACHESTAT,
            file.as_fd().as_raw_fd(),
            std::ptr::from_ref(&range),
            std::ptr::from_mut(&mut stat),
            0,
        )
    };
    rc == 0 && stat.cached == 0
}

/// Brings small files into memory, each given as a name in a directory: the first of them that fit into a few MiB, and
/// none when they turn out to be there already.
pub fn read_files(files: &[(Arc<OwnedFd>, &OsStr)]) {
    let (bytes, known) = (AtomicI64::new(0), AtomicI64::new(0));
    let most = MOST_BYTES.cast_signed();
    each(files, |dir, name| {
        let enough = bytes.load(Ordering::Relaxed) >= most
            || (bytes.load(Ordering::Relaxed) == 0 && known.load(Ordering::Relaxed) >= KNOWN_FILES);
        let Ok((fd, st)) =
            (if enough { return } else { file::open_regular(dir, name, OFlags::RDONLY, true) })
        else {
            return;
        };
        if st.size == 0 || st.size > LARGE_FILE {
            return;
        }
        if !is_cold(&fd) {
            known.fetch_add(1, Ordering::Relaxed);
            return;
        }
        bytes.fetch_add(st.size.cast_signed(), Ordering::Relaxed);
        // It only begins; who needs the file waits for the rest.
        let _ = rustix::fs::fadvise(&fd, 0, None, Advice::WillNeed);
    });
}

/// Brings directories, their attributes and entries into memory; of other objects what a lookup reads. What fails, will
/// fail again when it is needed.
fn read(dirs: &[(Arc<OwnedFd>, &OsStr)]) {
    each(dirs, touch);
}

/// Does something with each object, some at a time.
fn each(objects: &[(Arc<OwnedFd>, &OsStr)], touch: impl Fn(&OwnedFd, &OsStr) + Sync) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((parent, name)) = objects.get(next.fetch_add(1, Ordering::Relaxed)) {
            touch(parent, name);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..THREADS.min(objects.len() / 2) {
            // Without a thread the others do its part.
            let _ = std::thread::Builder::new()
                .name("ahead".into())
                .stack_size(128 << 10)
                .spawn_scoped(scope, work);
        }
        work();
    });
}

fn touch(parent: &OwnedFd, name: &OsStr) {
    let Ok(fd) = file::open_dir(parent, name) else { return };
    let _ = xattr::list(Target::Fd(fd.as_fd()));
    let _ = file::list(&fd, |_, _, _| Ok(()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_that_were_waited_for_are_enough() {
        let parts = 4;
        let slow = || std::thread::sleep(SLOW * parts * 2);
        let mut watch = Watch::of_merged(parts as usize);
        let asked = std::cell::Cell::new(0);
        let rest = || {
            asked.set(asked.get() + 1);
            Vec::new()
        };
        slow();
        watch.step(rest);
        assert_eq!(asked.get(), 0, "one is an accident");
        slow();
        watch.step(rest);
        slow();
        watch.step(rest);
        assert_eq!(asked.get(), 1);
    }

    #[test]
    fn files_come_into_memory() {
        // Beside the build, since a tmpfs has nothing but memory.
        let dir = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        let names: Vec<String> = (0..10).map(|i| format!("f{i}")).collect();
        for name in &names {
            let path = dir.path().join(name);
            std::fs::write(&path, [7; 9000]).unwrap();
            let file = std::fs::File::open(&path).unwrap();
            file.sync_all().unwrap();
            rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).unwrap();
        }
        let open = |name: &str| std::fs::File::open(dir.path().join(name)).unwrap();
        if !is_cold(open("f0")) {
            println!("skip: the kernel does not tell what is in memory, or keeps the files there");
            return;
        }
        let fd = Arc::new(OwnedFd::from(std::fs::File::open(dir.path()).unwrap()));
        let all: Vec<_> = names.iter().map(|name| (fd.clone(), OsStr::new(name))).collect();
        read_files(&all);
        // They are on their way.
        let begin = Instant::now();
        while names.iter().any(|name| is_cold(open(name))) {
            assert!(begin.elapsed() < Duration::from_secs(10));
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
