//! Reading ahead over many directories. One after the other, each that is not in memory is waited for; the device
//! can serve several at a time.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

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

/// Watches how long one directory after the other takes.
#[derive(Debug)]
pub struct Watch {
    /// When it was stepped last; `None` once there is nothing more to do.
    last: Option<Instant>,
    slow: u32,
}

impl Watch {
    /// Begins now. `count`: so many directories will be looked at.
    pub fn new(count: usize) -> Self {
        Self { last: (count >= FEW).then(Instant::now), slow: 0 }
    }

    /// To be called between two directories. `rest` gives those to come, each as a name in another one; it is called
    /// at most once, when they should be brought into memory, which this does.
    pub fn step<'a>(&mut self, rest: impl FnOnce() -> Vec<(Arc<OwnedFd>, &'a OsStr)>) {
        let Some(last) = self.last else { return };
        let now = Instant::now();
        self.slow += u32::from(now - last > SLOW);
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

/// Brings directories, their attributes and entries into memory. What fails, will fail again when it is needed.
fn read(dirs: &[(Arc<OwnedFd>, &OsStr)]) {
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some((parent, name)) = dirs.get(next.fetch_add(1, Ordering::Relaxed)) {
            touch(parent, name);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..THREADS.min(dirs.len() / 2) {
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
