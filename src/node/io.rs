//! How the kernel does I/O on an open file: through its page cache for the mount with requests to us,
//! or by itself on the real file (passthrough).
//!
//! The kernel demands one way per inode at a time, and one real file (fs/fuse/iomode.c). A lower file
//! is cached, so that a copy-up can be taken up by descriptors that are open already; a file in the
//! upper is passed through, unless cached handles are still open on it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::sys::Backing;

/// The I/O state of one file.
#[derive(Default)]
pub struct Io {
    /// Open handles with cached I/O.
    cached: u32,
    /// Open handles with passthrough.
    passed: u32,
    backing: Option<Backing>,
    /// The kernel wrote by itself: pages cached before may be old.
    written: bool,
    /// The kernel may have mapped it for writing by itself; a mapping outlives its handle.
    mappable: bool,
    /// What the kernel passes through to can be changed no more: the layer was frozen.
    frozen: bool,
    /// A real file that is open, with its device and inode number.
    real: Option<((u64, u64), Arc<OwnedFd>)>,
}

/// The state of a file that is not open and to which nothing has happened.
pub(super) static NOTHING: Io =
    Io { cached: 0, passed: 0, backing: None, written: false, mappable: false, frozen: false, real: None };

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Io")
            .field("cached", &self.cached)
            .field("passed", &self.passed)
            .finish_non_exhaustive()
    }
}

impl Io {
    /// Whether there is nothing to remember.
    pub(super) fn is_nothing(&self) -> bool {
        self.cached == 0 && self.passed == 0 && !self.written && !self.mappable
    }

    /// Remembers a real file that is open, for as long as any handle is. `id`: its device and inode number.
    pub fn set_real(&mut self, id: (u64, u64), fd: &Arc<OwnedFd>) {
        self.real = Some((id, fd.clone()));
    }

    /// The real file of this device and inode number, if it is open.
    pub fn real(&self, id: (u64, u64)) -> Option<Arc<OwnedFd>> {
        self.real.as_ref().filter(|(of, _)| *of == id).map(|(_, fd)| fd.clone())
    }

    /// Whether handles are open.
    pub fn is_open(&self) -> bool {
        self.cached > 0 || self.passed > 0
    }

    /// Whether passthrough handles are open.
    pub fn is_passed(&self) -> bool {
        self.passed > 0
    }

    /// Whether a mapping may write to the file, and so change its times and blocks, without our knowing.
    pub fn is_mappable(&self) -> bool {
        self.mappable
    }

    /// The layer of what is passed through to is frozen: until the last of these handles is closed, all that are
    /// opened read that, so nothing else may be written.
    pub fn freeze(&mut self) {
        self.frozen = self.passed > 0;
    }

    /// Whether handles are open that read a file of a frozen layer without us.
    pub fn is_frozen(&self) -> bool {
        self.frozen
    }

    /// Records that the kernel may map the file for writing by itself, for as long as it knows the file.
    /// Gives whether that is new.
    pub fn set_mappable(&mut self) -> bool {
        !std::mem::replace(&mut self.mappable, true)
    }

    /// Takes in one more handle. `allowed`: whether it may be passed through, as far as the file is
    /// concerned; `make` registers the file with the kernel.
    ///
    /// Gives what to pass through to, if so, and whether the kernel may keep the pages it has.
    pub fn open(
        &mut self,
        allowed: bool,
        writes: bool,
        make: impl FnOnce() -> Option<Backing>,
    ) -> (Option<Backing>, bool) {
        if self.passed == 0 && self.cached == 0 && allowed {
            self.backing = make();
        }
        if let Some(backing) = self.backing.clone().filter(|_| self.passed > 0 || self.cached == 0) {
            self.passed += 1;
            self.written |= writes;
            return (Some(backing), false);
        }
        self.cached += 1;
        // Dropped pages are read again: from the first cached handle on they are kept up to date.
        (None, !std::mem::take(&mut self.written))
    }

    /// What handles are passed through to, if any is.
    pub fn backing(&self) -> Option<&Backing> {
        self.backing.as_ref()
    }

    /// Takes in a handle that another process has told the kernel of, passed through to `backing` or not.
    pub fn adopt(&mut self, passed: bool, backing: Option<Backing>, writes: bool) {
        if passed {
            self.passed += 1;
            self.backing = self.backing.take().or(backing);
            self.written |= writes;
            // Whether it is mapped is not known.
            self.mappable |= writes;
        } else {
            self.cached += 1;
        }
    }

    /// Lets a handle go. Gives what must be dropped once the lock is released.
    pub fn close(&mut self, passed: bool) -> (Option<Backing>, Option<Arc<OwnedFd>>) {
        let count = if passed { &mut self.passed } else { &mut self.cached };
        *count = count.saturating_sub(1);
        self.frozen &= self.passed > 0;
        let backing = if passed && self.passed == 0 { self.backing.take() } else { None };
        let real = if self.passed == 0 && self.cached == 0 { self.real.take() } else { None };
        (backing, real.map(|(_, fd)| fd))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backing() -> Option<Backing> {
        Some(Arc::new(()))
    }

    #[test]
    fn one_way_at_a_time() {
        let mut io = Io::default();
        // A lower file is open for reading, then copied up and opened again: all stay cached.
        assert!(io.open(false, false, backing).0.is_none());
        assert!(io.open(true, true, backing).0.is_none());
        io.close(false);
        assert!(io.open(true, true, backing).0.is_none());
        io.close(false);
        io.close(false);
        // With the last cached handle gone, the kernel does it alone; then all do.
        assert!(io.open(true, true, backing).0.is_some());
        assert!(io.open(false, false, || None).0.is_some());
        io.close(true);
        assert!(io.close(true).0.is_some());
        // Pages from before the kernel wrote by itself are old, once.
        assert_eq!((false, true), (io.open(false, false, backing).1, io.open(false, false, backing).1));
    }

    #[test]
    fn falls_back_when_the_kernel_refuses() {
        let mut io = Io::default();
        assert!(io.open(true, true, || None).0.is_none());
        assert!(io.open(true, true, backing).0.is_none());
    }
}
