//! Names taken away.

use std::ffi::OsStr;

use rustix::fs::RenameFlags;

use crate::error::{Errno, Result};
use crate::layer::stack::Stack;
use crate::layer::upper::Writable;

/// Removes the entry `name` of the writable directory `dir`; with `whiteout`, leaves one in its place
/// in the same step. A directory must be empty but for whiteouts.
///
/// # Errors
/// Those of unlink(2) and rename(2).
pub fn remove(stack: &Stack, dir: &Writable, name: &OsStr, is_dir: bool, whiteout: bool) -> Result<()> {
    let work = stack.work(dir.dir().layer())?;
    if whiteout {
        work.allow_whiteouts(dir)?;
        let temp = work.make_whiteout()?;
        // A directory can only be exchanged with a whiteout, not replaced by it.
        let flags = if is_dir { RenameFlags::EXCHANGE } else { RenameFlags::empty() };
        let renamed = work.staging().rename(&temp, dir, name, flags);
        if is_dir || renamed.is_err() {
            work.purge(&temp);
        }
        return renamed;
    }
    if !is_dir {
        return dir.unlink(name);
    }
    match dir.rmdir(name) {
        // Whiteouts of what lies no more below.
        Err(Errno::NOTEMPTY | Errno::EXIST) => work.discard(dir, name),
        other => other,
    }
}
