//! Open descriptors of layer directories: as many as fit a bound, the least used closed first.

use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use lru::LruCache;
use parking_lot::Mutex;

const SHARDS: usize = 16;

/// The cache, shared by all directories of a stack. Locks are held for the map operation only.
#[derive(Debug)]
pub struct FdCache {
    shards: Vec<Mutex<LruCache<u64, Arc<OwnedFd>>>>,
    next: AtomicU64,
}

impl FdCache {
    /// A cache of at most about `capacity` descriptors.
    pub fn new(capacity: usize) -> Self {
        let per = NonZeroUsize::new(capacity / SHARDS).unwrap_or(NonZeroUsize::MIN);
        let shards = (0..SHARDS).map(|_| Mutex::new(LruCache::new(per))).collect();
        Self { shards, next: AtomicU64::new(0) }
    }

    /// A key for a new directory, unique for the life of the cache.
    pub fn key(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn shard(&self, key: u64) -> &Mutex<LruCache<u64, Arc<OwnedFd>>> {
        &self.shards[key as usize % SHARDS]
    }

    /// The descriptor kept under `key`.
    pub fn get(&self, key: u64) -> Option<Arc<OwnedFd>> {
        self.shard(key).lock().get(&key).cloned()
    }

    /// Keeps a descriptor; what falls out for it is closed once its last user is done.
    pub fn put(&self, key: u64, fd: Arc<OwnedFd>) {
        let dropped = self.shard(key).lock().push(key, fd);
        // Closed here, not under the lock.
        drop(dropped);
    }

    /// Drops what is kept under `key`.
    pub fn remove(&self, key: u64) {
        let dropped = self.shard(key).lock().pop(&key);
        drop(dropped);
    }

    /// Drops all; they are opened again when they are needed.
    pub fn clear(&self) {
        for shard in &self.shards {
            let mut cache = shard.lock();
            let capacity = cache.cap();
            let dropped = std::mem::replace(&mut *cache, LruCache::new(capacity));
            drop(cache);
            drop(dropped);
        }
    }

    /// How many descriptors are open in the cache.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|s| s.lock().len()).sum()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
