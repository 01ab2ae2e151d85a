//! A directory of one layer: where it is, and a descriptor for it when needed.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::RwLock;

use crate::error::{Errno, Result};
use crate::layer::fd_cache::FdCache;
use crate::sys::file::{self, Stat};

/// Position of a layer in the stack, topmost first.
pub type LayerId = u16;

/// How often a directory that was moved under us is looked for again.
const MOVED_RETRIES: usize = 64;

#[derive(Debug, Clone)]
enum Place {
    Root(Arc<OwnedFd>),
    Below(Arc<Dir>, Box<OsStr>),
}

/// A directory of one layer. Found again by its parent and name when its descriptor was closed; what
/// is found is checked to be the same inode.
#[derive(Debug)]
pub struct Dir {
    layer: LayerId,
    key: u64,
    dev: u64,
    ino: u64,
    place: RwLock<Place>,
    cache: Arc<FdCache>,
}

impl Dir {
    /// The root of a layer; its descriptor stays open.
    pub fn root(layer: LayerId, fd: OwnedFd, cache: &Arc<FdCache>) -> Result<Arc<Self>> {
        let st = file::stat_fd(&fd)?;
        Ok(Arc::new(Self {
            layer,
            key: cache.key(),
            dev: st.dev,
            ino: st.ino,
            place: RwLock::new(Place::Root(Arc::new(fd))),
            cache: cache.clone(),
        }))
    }

    /// The directory `name` below `parent`, whose `stat` is known.
    pub fn below(parent: &Arc<Self>, name: &OsStr, stat: &Stat) -> Arc<Self> {
        Arc::new(Self {
            layer: parent.layer,
            key: parent.cache.key(),
            dev: stat.dev,
            ino: stat.ino,
            place: RwLock::new(Place::Below(parent.clone(), name.into())),
            cache: parent.cache.clone(),
        })
    }

    /// The layer it belongs to.
    pub fn layer(&self) -> LayerId {
        self.layer
    }

    /// Device and inode number in the layer.
    pub fn id(&self) -> (u64, u64) {
        (self.dev, self.ino)
    }

    /// A descriptor for lookups, xattrs and listing.
    ///
    /// # Errors
    /// ESTALE or ENOENT when the layer was changed behind our back or the directory is deleted.
    pub fn fd(&self) -> Result<Arc<OwnedFd>> {
        for _ in 0..MOVED_RETRIES {
            if let Some(fd) = self.cache.get(self.key) {
                return Ok(fd);
            }
            let place = self.place.read().clone();
            let (parent, name) = match place {
                Place::Root(fd) => return Ok(fd),
                Place::Below(parent, name) => (parent, name),
            };
            let fd = match file::open_dir(parent.fd()?, &name) {
                Ok(fd) => fd,
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    std::thread::yield_now();
                    continue;
                }
                Err(e) => return Err(e),
            };
            let st = file::stat_fd(&fd)?;
            if (st.dev, st.ino) == (self.dev, self.ino) {
                let fd = Arc::new(fd);
                self.cache.put(self.key, fd.clone());
                return Ok(fd);
            }
            // Renamed between reading its place and opening it: the new place is stored in a moment.
            std::thread::yield_now();
        }
        Err(Errno::NOENT)
    }

    /// Records that the directory was renamed. For writable layers only.
    pub(super) fn relocate(&self, parent: &Arc<Self>, name: &OsStr) {
        *self.place.write() = Place::Below(parent.clone(), name.into());
    }

    /// The names from the layer's root to this directory.
    pub fn path(&self) -> Vec<Box<OsStr>> {
        let mut names = Vec::new();
        let mut place = self.place.read().clone();
        while let Place::Below(parent, name) = place {
            names.push(name);
            place = parent.place.read().clone();
        }
        names.reverse();
        names
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        self.cache.remove(self.key);
    }
}
