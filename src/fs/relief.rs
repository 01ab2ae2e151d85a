//! What is done when file descriptors run short: those of directories can be closed, and those of removed files go
//! when the kernel forgets the files, which it does soon.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::UnionFs;
use crate::sys::process;

/// Notices that descriptors run short.
#[derive(Debug)]
pub(super) struct Relief {
    /// How many there can be.
    limit: usize,
    short: AtomicBool,
}

impl Default for Relief {
    fn default() -> Self {
        let limit = usize::try_from(process::open_files()).unwrap_or(usize::MAX);
        Self { limit, short: AtomicBool::new(false) }
    }
}

impl Relief {
    /// Tells of a descriptor just opened: the kernel gives the lowest free number, so all below it are in use. `open`:
    /// how many are needed for open files, which waiting does not change.
    pub(super) fn note(&self, fd: &OwnedFd, open: impl FnOnce() -> usize) {
        let used = usize::try_from(fd.as_raw_fd()).unwrap_or(0);
        if self.is_much(used, 0) && self.is_much(used, open()) {
            self.short.store(true, Ordering::Relaxed);
        }
    }

    /// Whether three quarters of those that are not for open files are in use.
    fn is_much(&self, used: usize, open: usize) -> bool {
        used >= open.saturating_add(self.limit.saturating_sub(open) / 4 * 3)
    }
}

impl UnionFs {
    /// Whether removed files came to hold a good part of the descriptors since this was last asked. Those that are kept
    /// for speed alone are closed then; who removes should wait a moment, so that files are forgotten before others are
    /// removed.
    pub fn runs_short(&self) -> bool {
        let short =
            self.relief.short.load(Ordering::Relaxed) && self.relief.short.swap(false, Ordering::Relaxed);
        if short {
            self.stack.close_directories();
        }
        short
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_are_not_what_is_waited_for() {
        let relief = Relief { limit: 1000, short: AtomicBool::new(false) };
        assert!(!relief.is_much(749, 0) && relief.is_much(750, 0));
        assert!(!relief.is_much(900, 800) && relief.is_much(950, 800));
        assert!(!relief.is_much(999, 1000) && relief.is_much(2000, 1000));
    }
}
