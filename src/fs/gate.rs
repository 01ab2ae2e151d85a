//! The way into a [`UnionFs`] that is served: any number of operations at a time, or one that needs it alone.

use std::sync::PoisonError;

use crossbeam_utils::sync::{ShardedLock, ShardedLockReadGuard, ShardedLockWriteGuard};

use super::UnionFs;

/// A union filesystem for all threads. Its lock has a part for each of several threads, so that those who only pass
/// do not wait for each other's caches.
#[derive(Debug)]
pub struct Gate(ShardedLock<UnionFs>);

impl Gate {
    /// A gate to a filesystem.
    pub fn new(fs: UnionFs) -> Self {
        Self(ShardedLock::new(fs))
    }

    /// Enters for one operation. Not to be called again before that is done.
    pub fn enter(&self) -> ShardedLockReadGuard<'_, UnionFs> {
        // An operation that panicked has left what its own locks guard as an error would have.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no operation is under way, and lets none begin meanwhile. Operations wait for nothing but each
    /// other and the layers' filesystems, so that those under way end by themselves.
    pub fn alone(&self) -> ShardedLockWriteGuard<'_, UnionFs> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
