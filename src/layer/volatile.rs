//! The mark of a mount that skips syncs: `incompat/volatile/dirty` below `work/` of its work directory, from the
//! beginning of the mount to its good end. After a crash it is still there, and says that what the upper holds may be
//! half of what was written (overlayfs.rst, "Volatile mount"; fs/overlayfs/super.c, `ovl_create_volatile_dirty`).

use std::ffi::OsStr;
use std::os::fd::AsFd;

use rustix::fs::OFlags;

use crate::error::{Errno, Result};
use crate::layer::upper::Writable;
use crate::sys::cred::Caller;
use crate::sys::file;

const STAGING: &str = "work";
/// Any entry in it forbids a mount: a later kernel may keep marks there that we do not know.
const INCOMPAT: &str = "incompat";
const VOLATILE: &str = "volatile";
const DIRTY: &str = "dirty";

/// Permissions of the mark's directories.
const MODE: u32 = 0o700;

/// Whether the work directory `work` has a mark that forbids its use.
///
/// # Errors
/// Those of reading directories.
pub fn is_marked(work: impl AsFd) -> Result<bool> {
    let below = |dir: &dyn Fn() -> Result<std::os::fd::OwnedFd>| match dir() {
        Ok(fd) => Ok(Some(fd)),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(e) => Err(e),
    };
    let Some(staging) = below(&|| file::open_dir(&work, OsStr::new(STAGING)))? else { return Ok(false) };
    let Some(marks) = below(&|| file::open_dir(&staging, OsStr::new(INCOMPAT)))? else { return Ok(false) };
    let mut found = false;
    file::list(&marks, |_, _, _| {
        found = true;
        Ok(())
    })?;
    Ok(found)
}

/// Marks the work directory with this staging directory.
///
/// # Errors
/// Those of making directories and files.
pub(super) fn mark(staging: &Writable) -> Result<()> {
    let daemon = Caller::daemon();
    let sub = |dir: &Writable, name: &str| -> Result<Writable> {
        match dir.mkdir(OsStr::new(name), MODE, &daemon) {
            Ok(()) | Err(Errno::EXIST) => dir.below(OsStr::new(name)),
            Err(e) => Err(e),
        }
    };
    let volatile = sub(&sub(staging, INCOMPAT)?, VOLATILE)?;
    volatile.create(OsStr::new(DIRTY), OFlags::WRONLY, MODE, &daemon).map(drop)
}

/// Takes the mark of [`mark`] away, after all that the layers hold was brought to their device.
///
/// # Errors
/// Those of syncfs(2): the mark stays then.
pub(super) fn settle(staging: &Writable) -> Result<()> {
    rustix::fs::syncfs(&*staging.fd()?)?;
    let marks = staging.below(OsStr::new(INCOMPAT))?;
    let volatile = marks.below(OsStr::new(VOLATILE))?;
    volatile.unlink(OsStr::new(DIRTY))?;
    marks.rmdir(OsStr::new(VOLATILE))?;
    staging.rmdir(OsStr::new(INCOMPAT))
}
