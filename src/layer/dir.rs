//! A directory of one layer: where it is, and a descriptor for it when needed.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use parking_lot::RwLock;

use crate::error::{Errno, Result};
use crate::layer::fd_cache::FdCache;
use crate::layer::marks;
use crate::sys::file::{self, Stat};

/// Position of a layer in the stack, topmost first: from 0 when it is put together; a layer that is put on top of it
/// later has the number below that of the topmost.
pub type LayerId = i16;

const UNKNOWN: u8 = 0;
const NO: u8 = 1;
const YES: u8 = 2;

#[derive(Debug, Clone)]
enum Place {
    Root(Arc<OwnedFd>),
    Below(Arc<Dir>, Box<OsStr>),
    /// About to be dropped.
    Gone,
}

/// A directory of one layer. Found again by its parent and name when its descriptor was closed; what
/// is found is checked to be the same inode.
#[derive(Debug)]
pub struct Dir {
    layer: LayerId,
    key: u64,
    dev: u64,
    ino: u64,
    /// Held for reading while the directory is opened by its name, for writing while it is moved.
    place: RwLock<Place>,
    xattr_whiteouts: AtomicU8,
    impure: AtomicBool,
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
            xattr_whiteouts: AtomicU8::new(UNKNOWN),
            impure: AtomicBool::new(false),
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
            xattr_whiteouts: AtomicU8::new(UNKNOWN),
            impure: AtomicBool::new(false),
            cache: parent.cache.clone(),
        })
    }

    /// The directory `name` below `parent`, which is opened, and its attributes.
    ///
    /// # Errors
    /// Those of open(2), ENOTDIR for anything but a directory.
    pub fn open_below(parent: &Arc<Self>, name: &OsStr) -> Result<(Arc<Self>, Stat)> {
        let fd = file::open_dir(parent.fd()?, name)?;
        let stat = file::stat_fd(&fd)?;
        let dir = Self::below(parent, name, &stat);
        dir.cache.put(dir.key, Arc::new(fd));
        Ok((dir, stat))
    }

    /// Bytes of memory that it takes.
    pub fn memory(&self) -> usize {
        let name = match &*self.place.read() {
            Place::Below(_, name) => name.len(),
            Place::Root(_) | Place::Gone => 0,
        };
        size_of::<Self>() + name
    }

    /// The layer it belongs to.
    pub fn layer(&self) -> LayerId {
        self.layer
    }

    /// Device and inode number in the layer.
    pub fn id(&self) -> (u64, u64) {
        (self.dev, self.ino)
    }

    /// Whether entries may carry an origin or lack their data, as far as the directory's marks tell.
    pub fn impure(&self) -> bool {
        self.impure.load(Ordering::Acquire)
    }

    /// Records that the directory has the impure mark.
    pub fn note_impure(&self) {
        self.impure.store(true, Ordering::Release);
    }

    /// A descriptor for lookups, xattrs and listing.
    ///
    /// # Errors
    /// ENOENT when the directory is deleted, ESTALE when the layer was changed behind our back.
    pub fn fd(&self) -> Result<Arc<OwnedFd>> {
        if let Some(fd) = self.cache.get(self.key) {
            return Ok(fd);
        }
        // Ancestors first, from the nearest that is open: a tree may be deeper than a stack.
        let mut closed = Vec::new();
        let mut next = self.parent();
        while let Some(dir) = next.filter(|d| d.cache.get(d.key).is_none()) {
            next = dir.parent();
            closed.push(dir);
        }
        while let Some(dir) = closed.pop() {
            dir.open()?;
        }
        self.open()
    }

    fn parent(&self) -> Option<Arc<Self>> {
        match &*self.place.read() {
            Place::Below(parent, _) => Some(parent.clone()),
            Place::Root(_) | Place::Gone => None,
        }
    }

    fn open(&self) -> Result<Arc<OwnedFd>> {
        let place = self.place.read();
        let (parent, name) = match &*place {
            Place::Root(fd) => return Ok(fd.clone()),
            Place::Below(parent, name) => (parent, name),
            Place::Gone => return Err(Errno::STALE),
        };
        let fd = file::open_dir(parent.fd()?, name)?;
        let st = file::stat_fd(&fd)?;
        if (st.dev, st.ino) != (self.dev, self.ino) {
            return Err(Errno::STALE);
        }
        let fd = Arc::new(fd);
        self.cache.put(self.key, fd.clone());
        Ok(fd)
    }

    /// Whether empty regular files in it may be whiteouts (see [`marks::Marks::xattr_whiteouts`]).
    /// Asked once.
    pub fn xattr_whiteouts(&self) -> Result<bool> {
        match self.xattr_whiteouts.load(Ordering::Acquire) {
            UNKNOWN => {
                let found = marks::has_xattr_whiteouts(self.fd()?)?;
                let answer = if found { YES } else { NO };
                // A mark set meanwhile wins.
                let set = self.xattr_whiteouts.compare_exchange(
                    UNKNOWN,
                    answer,
                    Ordering::AcqRel,
                    Ordering::Acquire,
                );
                Ok(found || set == Err(YES))
            }
            known => Ok(known == YES),
        }
    }

    /// Records that the directory may hold whiteouts in xattr form from now on.
    pub(super) fn expect_xattr_whiteouts(&self) {
        self.xattr_whiteouts.store(YES, Ordering::Release);
    }

    /// Runs `rename`, which gives the directory this new parent and name, while nobody opens it by
    /// the old ones. For writable layers only.
    pub(super) fn relocate<T>(
        &self,
        parent: &Arc<Self>,
        name: &OsStr,
        rename: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let mut place = self.place.write();
        let done = rename()?;
        *place = Place::Below(parent.clone(), name.into());
        Ok(done)
    }

    /// The names from the layer's root to this directory.
    pub fn path(&self) -> Vec<Box<OsStr>> {
        let step = |dir: &Self| match &*dir.place.read() {
            Place::Below(parent, name) => Some((parent.clone(), name.clone())),
            Place::Root(_) | Place::Gone => None,
        };
        let mut names = Vec::new();
        let mut next = step(self);
        while let Some((parent, name)) = next {
            names.push(name);
            next = step(&parent);
        }
        names.reverse();
        names
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        self.cache.remove(self.key);
        // Parents one after the other, not one inside the other: trees may be deep.
        let mut place = std::mem::replace(self.place.get_mut(), Place::Gone);
        while let Place::Below(parent, _) = place {
            match Arc::into_inner(parent) {
                Some(mut dir) => place = std::mem::replace(dir.place.get_mut(), Place::Gone),
                None => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deep_trees_need_no_deep_stack() {
        const DEPTH: usize = 3000;
        let tmp = tempfile::tempdir().unwrap();
        let root = file::open_dir(rustix::fs::CWD, tmp.path().as_os_str()).unwrap();
        let cache = Arc::new(FdCache::new(64));
        let mut dir = Dir::root(0, root, &cache).unwrap();
        for _ in 0..DEPTH {
            let fd = dir.fd().unwrap();
            file::mkdir(&fd, OsStr::new("d"), 0o700).unwrap();
            let st = file::stat_at(&fd, OsStr::new("d")).unwrap();
            dir = Dir::below(&dir, OsStr::new("d"), &st);
        }
        // Only the deepest ones are still open now.
        std::thread::Builder::new()
            .stack_size(128 << 10)
            .spawn(move || {
                let cold = Dir::below(&dir, OsStr::new("x"), &file::stat_fd(dir.fd().unwrap()).unwrap());
                assert_eq!(cold.path().len(), DEPTH + 1);
                drop(cold);
                while !cache.is_empty() {
                    for key in 0..DEPTH as u64 + 10 {
                        cache.remove(key);
                    }
                }
                dir.fd().unwrap();
                drop(dir);
            })
            .unwrap()
            .join()
            .unwrap();
    }
}
