//! Open files, by handle.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use dashmap::DashMap;
use parking_lot::RwLock;
use rustix::fs::OFlags;

use crate::error::{Errno, Result};
use crate::layer::dir::{Dir, LayerId};
use crate::node::by_number::ByNumber;
use crate::node::object::Node;

/// An open file.
#[derive(Debug)]
pub struct OpenFile {
    /// What is open.
    pub node: Arc<Node>,
    /// Access mode and status flags that the real file is opened with.
    flags: OFlags,
    /// The kernel does reads and writes by itself.
    pub passed: bool,
    /// The real file, once it is open.
    real: RwLock<Option<Real>>,
}

/// A real file that is open.
#[derive(Debug, Clone)]
pub struct Real {
    /// It.
    pub fd: Arc<OwnedFd>,
    /// The layer that it is in.
    pub layer: LayerId,
    /// Its size in bytes when it was opened.
    pub size: u64,
}

impl OpenFile {
    /// An open file. `real`: the real one, if it is open already.
    pub fn new(node: Arc<Node>, flags: OFlags, real: Option<Real>, passed: bool) -> Self {
        Self { node, flags, passed, real: RwLock::new(real) }
    }

    /// Access mode and status flags of the real file.
    pub fn flags(&self) -> OFlags {
        self.flags
    }

    /// Whether it was opened for writing.
    pub fn writes(&self) -> bool {
        self.flags.intersects(OFlags::WRONLY | OFlags::RDWR)
    }

    /// Whether a real file is open: when its data was copied up since, that of before.
    pub fn is_reached(&self) -> bool {
        self.real.read().is_some()
    }

    /// The real file, opened if need be: when its data was copied up since it was opened, the copy. `noatime`: whether
    /// reading a file of this layer leaves its access time.
    ///
    /// # Errors
    /// Those of opening it.
    pub fn reach(&self, index: Option<&Arc<Dir>>, noatime: impl FnOnce(LayerId) -> bool) -> Result<Real> {
        let layer = self.node.content_layer();
        if let Some(real) = self.real.read().as_ref().filter(|real| real.layer == layer) {
            return Ok(real.clone());
        }
        let (fd, st) = self.node.open(index, self.flags, noatime(layer))?;
        let real = Real { fd: Arc::new(fd), layer, size: st.size };
        *self.real.write() = Some(real.clone());
        Ok(real)
    }
}

/// Things by handle.
#[derive(Debug)]
pub struct Handles<T> {
    map: DashMap<u64, Arc<T>, ByNumber>,
    next: AtomicU64,
}

impl<T> Default for Handles<T> {
    fn default() -> Self {
        Self { map: DashMap::default(), next: AtomicU64::new(1) }
    }
}

impl<T> Handles<T> {
    /// Keeps a thing and gives its handle.
    pub fn add(&self, thing: T) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        self.map.insert(fh, Arc::new(thing));
        fh
    }

    /// Keeps a thing that another process has given this handle to. Later handles are higher.
    pub fn put(&self, fh: u64, thing: T) {
        self.next.fetch_max(fh.saturating_add(1), Ordering::Relaxed);
        self.map.insert(fh, Arc::new(thing));
    }

    /// All, with their handles.
    pub fn all(&self) -> Vec<(u64, Arc<T>)> {
        self.map.iter().map(|entry| (*entry.key(), entry.value().clone())).collect()
    }

    /// The thing behind a handle.
    ///
    /// # Errors
    /// EBADF for a handle that is not open.
    pub fn get(&self, fh: u64) -> Result<Arc<T>> {
        self.map.get(&fh).map(|e| e.value().clone()).ok_or(Errno::BADF)
    }

    /// Lets go of a handle.
    pub fn remove(&self, fh: u64) -> Option<Arc<T>> {
        self.map.remove(&fh).map(|(_, thing)| thing)
    }

    /// How many are open.
    pub fn len(&self) -> usize {
        self.map.len()
    }

    /// Whether none is open.
    pub fn is_empty(&self) -> bool {
        self.map.is_empty()
    }
}
