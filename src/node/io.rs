//! How the kernel does I/O on an open file: through its page cache for the mount with requests to us,
//! or by itself on the real file (passthrough).
//!
//! The kernel demands one way per inode at a time, and one real file (fs/fuse/iomode.c). A lower file
//! is cached, so that a copy-up can be taken up by descriptors that are open already; a file in the
//! upper is passed through, unless cached handles are still open on it.

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
    /// It may be mapped for writing by the kernel itself, out of our sight; the mapping outlives the
    /// handle.
    mappable: bool,
}

/// What a handle is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Reading.
    Read,
    /// Writing alone. It cannot be mapped (mmap(2): EACCES).
    Write,
    /// Both.
    ReadWrite,
}

/// How a handle does its I/O.
#[derive(Default)]
pub struct Way {
    /// What to pass through to, if so.
    pub backing: Option<Backing>,
    /// The kernel may keep the pages it has.
    pub keep_cache: bool,
    /// From now on the file's attributes change without our knowing.
    pub attributes_stray: bool,
}

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Io")
            .field("cached", &self.cached)
            .field("passed", &self.passed)
            .finish_non_exhaustive()
    }
}

impl Io {
    /// Whether passthrough handles are open.
    pub fn is_passed(&self) -> bool {
        self.passed > 0
    }

    /// Whether a mapping may write to the file, and so change its times and its blocks, without our
    /// knowing.
    pub fn is_mappable(&self) -> bool {
        self.mappable
    }

    /// Takes in one more handle. `allowed`: whether it may be passed through, as far as the file is
    /// concerned; `make` registers the file with the kernel.
    pub fn open(&mut self, allowed: bool, access: Access, make: impl FnOnce() -> Option<Backing>) -> Way {
        if self.passed == 0 && self.cached == 0 && allowed {
            self.backing = make();
        }
        if let Some(backing) = self.backing.clone().filter(|_| self.passed > 0 || self.cached == 0) {
            self.passed += 1;
            self.written |= access != Access::Read;
            let attributes_stray =
                access == Access::ReadWrite && !std::mem::replace(&mut self.mappable, true);
            return Way { backing: Some(backing), keep_cache: false, attributes_stray };
        }
        self.cached += 1;
        // Dropped pages are read again: from the first cached handle on they are kept up to date.
        Way { keep_cache: !std::mem::take(&mut self.written), ..Way::default() }
    }

    /// Lets a handle go. Gives what must be dropped once the lock is released.
    pub fn close(&mut self, passed: bool) -> Option<Backing> {
        if !passed {
            self.cached = self.cached.saturating_sub(1);
            return None;
        }
        self.passed = self.passed.saturating_sub(1);
        if self.passed == 0 { self.backing.take() } else { None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    fn backing() -> Option<Backing> {
        Some(Arc::new(()))
    }

    #[test]
    fn one_way_at_a_time() {
        let mut io = Io::default();
        let passed = |way: Way| way.backing.is_some();
        // A lower file is open for reading, then copied up and opened again: all stay cached.
        assert!(!passed(io.open(false, Access::Read, backing)));
        assert!(!passed(io.open(true, Access::Write, backing)));
        io.close(false);
        assert!(!passed(io.open(true, Access::Write, backing)));
        io.close(false);
        io.close(false);
        // With the last cached handle gone, the kernel does it alone; then all do.
        assert!(passed(io.open(true, Access::Write, backing)));
        assert!(passed(io.open(false, Access::Read, || None)));
        io.close(true);
        assert!(io.close(true).is_some());
        // Pages from before the kernel wrote by itself are old, once.
        let mut keeps = || io.open(false, Access::Read, backing).keep_cache;
        assert_eq!((false, true), (keeps(), keeps()));
    }

    #[test]
    fn attributes_stray_with_what_may_be_mapped() {
        let mut io = Io::default();
        assert!(!io.open(false, Access::ReadWrite, backing).attributes_stray);
        assert!(!io.is_mappable(), "the kernel's cached I/O tells us");
        io.close(false);
        assert!(!io.open(true, Access::Write, backing).attributes_stray);
        assert!(io.open(true, Access::ReadWrite, backing).attributes_stray);
        assert!(!io.open(true, Access::ReadWrite, backing).attributes_stray, "told once");
        for _ in 0..3 {
            io.close(true);
        }
        assert!(io.is_mappable(), "a mapping outlives the handle");
    }

    #[test]
    fn falls_back_when_the_kernel_refuses() {
        let mut io = Io::default();
        assert!(io.open(true, Access::Write, || None).backing.is_none());
        assert!(io.open(true, Access::Write, backing).backing.is_none());
    }
}
