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
    /// The real file's size in bytes when it was opened.
    pub size: u64,
    /// The real file and the layer it is in.
    real: RwLock<(LayerId, Arc<OwnedFd>)>,
}

impl OpenFile {
    /// An open file on `fd`, which lies in `layer`.
    pub fn new(
        node: Arc<Node>,
        flags: OFlags,
        (layer, fd): (LayerId, Arc<OwnedFd>),
        size: u64,
        passed: bool,
    ) -> Self {
        Self { node, flags, passed, size, real: RwLock::new((layer, fd)) }
    }

    /// Access mode and status flags of the real file.
    pub fn flags(&self) -> OFlags {
        self.flags
    }

    /// Whether it was opened for writing.
    pub fn writes(&self) -> bool {
        self.flags.intersects(OFlags::WRONLY | OFlags::RDWR)
    }

    /// The real file: when its data was copied up since it was opened, the copy.
    ///
    /// # Errors
    /// Those of opening the copy.
    pub fn fd(&self, index: Option<&Arc<Dir>>) -> Result<Arc<OwnedFd>> {
        let layer = self.node.content_layer();
        {
            let real = self.real.read();
            if real.0 == layer {
                return Ok(real.1.clone());
            }
        }
        let (fd, _) = self.node.open(index, self.flags, false)?;
        let fd = Arc::new(fd);
        *self.real.write() = (layer, fd.clone());
        Ok(fd)
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
