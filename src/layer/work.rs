//! The work directory: `work/` for things in the making, `index/` for hardlinks, as the kernel's
//! overlayfs keeps them.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{FileType, RenameFlags};

use crate::error::{Errno, Result};
use crate::layer::dir::Dir;
use crate::layer::fd_cache::FdCache;
use crate::layer::upper::Writable;
use crate::sys::cred::Caller;
use crate::sys::file;

/// The work directory of a mount.
#[derive(Debug)]
pub struct WorkDir {
    work: Writable,
    index: Writable,
    next: AtomicU64,
}

impl WorkDir {
    /// Opens the work directory, makes its parts and removes what a crash left in `work/`.
    ///
    /// # Errors
    /// Those of creating directories in it.
    pub fn open(fd: OwnedFd, cache: &Arc<FdCache>) -> Result<Self> {
        let sub = |name: &str| -> Result<Writable> {
            let name = OsStr::new(name);
            match file::mkdir(&fd, name, 0o700) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
            let root = Dir::root(0, file::open_dir(&fd, name)?, cache)?;
            Ok(Writable::new(root))
        };
        let dir = Self { work: sub("work")?, index: sub("index")?, next: AtomicU64::new(0) };
        dir.clean()?;
        Ok(dir)
    }

    /// Where things are made before they are published.
    pub fn staging(&self) -> &Writable {
        &self.work
    }

    /// Where hardlinks of copied-up files are kept, by origin.
    pub fn index(&self) -> &Writable {
        &self.index
    }

    /// A name in [`Self::staging`] that nothing else has.
    pub fn temp_name(&self) -> OsString {
        format!("#{:x}", self.next.fetch_add(1, Ordering::Relaxed)).into()
    }

    /// Moves an entry out of sight and deletes it there with all that is below it. The name is gone
    /// at once; what cannot be deleted is left for the next mount.
    pub fn discard(&self, dir: &Writable, name: &OsStr) -> Result<()> {
        let temp = self.temp_name();
        dir.rename(name, &self.work, &temp, RenameFlags::NOREPLACE)?;
        self.purge(&temp);
        Ok(())
    }

    /// Deletes an entry of [`Self::staging`] with all that is below it, as far as it can be.
    pub fn purge(&self, temp: &OsStr) {
        if let Err(e) = self.work.fd().and_then(|fd| remove_tree(&fd, temp)) {
            tracing::warn!("left in the work directory: {temp:?}: {e}");
        }
    }

    /// A character device 0:0 in [`Self::staging`], to be renamed over an entry.
    pub fn make_whiteout_device(&self) -> Result<OsString> {
        let temp = self.temp_name();
        self.work.mknod(&temp, FileType::CharacterDevice.as_raw_mode(), 0, &Caller::root())?;
        Ok(temp)
    }

    fn clean(&self) -> Result<()> {
        let mut names = Vec::new();
        let fd = self.work.fd()?;
        file::list(&fd, |name, _, _| {
            names.push(name.to_owned());
            Ok(())
        })?;
        for name in names {
            remove_tree(&fd, &name)?;
        }
        Ok(())
    }
}

/// Removes an entry and everything below it, without following symlinks. The depth is kept on the
/// heap: a layer may be deeper than a stack.
fn remove_tree(dir: impl AsFd, name: &OsStr) -> Result<()> {
    match file::unlink(&dir, name) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return other,
    }
    let mut open = vec![(dir.as_fd().try_clone_to_owned().map_err(|_| Errno::MFILE)?, name.to_owned())];
    while let Some((parent, name)) = open.last() {
        match file::rmdir(parent, name) {
            Ok(()) => {
                open.pop();
                continue;
            }
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
        let fd = file::open_dir(parent, name)?;
        let mut subdir = None;
        file::list(&fd, |entry, _, _| match file::unlink(&fd, entry) {
            Err(Errno::ISDIR | Errno::PERM) => {
                subdir = Some(entry.to_owned());
                Ok(())
            }
            other => other,
        })?;
        if let Some(subdir) = subdir {
            open.push((fd, subdir));
        }
    }
    Ok(())
}
