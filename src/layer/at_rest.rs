//! An upper layer and its work directory while nothing is mounted on them: to be checked and mended.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Errno, MountError, Outcome, Result};
use crate::layer::dir::Dir;
use crate::layer::fd_cache::FdCache;
use crate::layer::located::{UPPER, WORK, explain, open_one};
use crate::layer::lock;
use crate::layer::upper::Writable;
use crate::sys::file;
use crate::sys::place::Places;

/// Descriptors of directories kept open.
const CACHE: usize = 256;

/// An upper layer that no mount of ours uses, or that is only looked at.
#[derive(Debug)]
pub struct AtRest {
    upper: Writable,
    work: Option<WorkParts>,
    busy: bool,
    /// Their locks keep mounts away.
    _locks: Vec<OwnedFd>,
}

/// The parts of a work directory that are there.
#[derive(Debug)]
pub struct WorkParts {
    /// Things in the making.
    pub staging: Option<Writable>,
    /// Hardlinks of copied-up files, by origin.
    pub index: Option<Writable>,
    /// How many names of lower hardlinks are gone, by origin.
    pub gone: Option<Writable>,
}

impl AtRest {
    /// Opens an upper and its work directory, and keeps mounts away as long as this lives. With `change`, a
    /// layer that is in use is refused; otherwise see [`Self::is_busy`].
    ///
    /// # Errors
    /// A sentence that names the directory that is missing, in use, or may not be written.
    pub fn open(upper: &Path, work: Option<&Path>, change: bool) -> Outcome<Self> {
        let mut places = Places::default();
        let mut locks = Vec::new();
        let mut busy = false;
        let mut hold = |what: &'static str, path: &Path| -> Outcome<OwnedFd> {
            let opened = open_one(what, path, &mut places)?;
            if change {
                locks.push(lock::lock(&opened, lock::USUAL)?);
            } else {
                // The lock belongs to the open file description, which is kept below.
                busy = busy || lock::lock_soon(&opened.fd, lock::USUAL) == Err(Errno::WOULDBLOCK);
            }
            Ok(opened.fd)
        };
        let cache = Arc::new(FdCache::new(CACHE));
        let unusable = |what, path: &Path, e| -> MountError { explain(what, path, e) };
        let top = Dir::root(0, hold(UPPER, upper)?, &cache).map_err(|e| unusable(UPPER, upper, e))?;
        let work = match work {
            None => None,
            Some(path) => {
                let fd = hold(WORK, path)?;
                let root = Writable::new(Dir::root(0, fd, &cache).map_err(|e| unusable(WORK, path, e))?);
                let part = |name: &str| match root.below(OsStr::new(name)) {
                    Ok(part) => Ok(Some(part)),
                    Err(Errno::NOENT) => Ok(None),
                    Err(e) => Err(unusable(WORK, &path.join(name), e)),
                };
                Some(WorkParts { staging: part("work")?, index: part("index")?, gone: part("gone")? })
            }
        };
        Ok(Self { upper: Writable::new(top), work, busy, _locks: locks })
    }

    /// The root of the upper.
    pub fn upper(&self) -> &Writable {
        &self.upper
    }

    /// The work directory, if one was named.
    pub fn work(&self) -> Option<&WorkParts> {
        self.work.as_ref()
    }

    /// Whether a live mount uses the layer.
    pub fn is_busy(&self) -> bool {
        self.busy
    }

    /// Brings all changes to the device.
    ///
    /// # Errors
    /// Those of syncfs(2).
    pub fn sync(&self) -> Result<()> {
        rustix::fs::syncfs(&*self.upper.fd()?)
    }

    /// Whether the last mount skipped syncs and has not said that all is on the device: the mark of
    /// overlayfs.rst, "Volatile mount", in `work/incompat/volatile`.
    ///
    /// # Errors
    /// Those of looking for it.
    pub fn is_volatile(&self) -> Result<bool> {
        let Some(staging) = self.work.as_ref().and_then(|w| w.staging.as_ref()) else { return Ok(false) };
        let incompat = match staging.below(OsStr::new("incompat")) {
            Ok(dir) => dir,
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(false),
            Err(e) => return Err(e),
        };
        match file::stat_at(incompat.fd()?, OsStr::new("volatile")) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e),
        }
    }
}
