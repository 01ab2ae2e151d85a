//! What is done when file descriptors run short: those of directories can be closed, and those of removed files go
//! when the kernel forgets the files, which it does soon.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use super::UnionFs;
use crate::sys::process;

/// Notices that descriptors run short.
#[derive(Debug)]
pub(super) struct Relief {
    /// From this number on.
    high: RawFd,
    short: AtomicBool,
}

impl Default for Relief {
    fn default() -> Self {
        let limit = process::open_files().min(RawFd::MAX as u64) as RawFd;
        Self { high: limit / 4 * 3, short: AtomicBool::new(false) }
    }
}

impl Relief {
    /// Tells of a descriptor just opened: the kernel gives the lowest free number, so all below it are in use.
    pub(super) fn note(&self, fd: &OwnedFd) {
        if fd.as_raw_fd() >= self.high {
            self.short.store(true, Ordering::Relaxed);
        }
    }
}

impl UnionFs {
    /// Whether removed files came to hold a good part of the descriptors since this was last asked. Who removed them
    /// should then wait a moment, so that they are forgotten before others are removed.
    pub fn runs_short(&self) -> bool {
        self.relief.short.load(Ordering::Relaxed) && self.relief.short.swap(false, Ordering::Relaxed)
    }

    /// Closes the descriptors that are kept for speed alone.
    pub fn close_directories(&self) {
        self.stack.close_directories();
    }
}
