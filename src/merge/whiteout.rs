//! Which entries of a layer's directory are whiteouts.

use std::ffi::OsStr;

use rustix::fs::FileType;

use crate::error::{Errno, Result};
use crate::layer::dir::Dir;
use crate::layer::marks;
use crate::sys::file::{self, Stat};

/// Whether the entry `name` with `stat` in `dir` is a whiteout.
pub fn is_whiteout(dir: &Dir, name: &OsStr, stat: &Stat) -> Result<bool> {
    match stat.kind() {
        FileType::CharacterDevice => Ok(stat.rdev == 0),
        FileType::RegularFile if stat.size == 0 && dir.xattr_whiteouts()? => {
            marks::is_xattr_whiteout(dir.fd()?, name)
        }
        _ => Ok(false),
    }
}

/// The type of an entry; `None` for a whiteout and for what vanished meanwhile.
pub(super) fn visible(dir: &Dir, name: &OsStr, kind: FileType) -> Result<Option<FileType>> {
    let suspicious = match kind {
        FileType::CharacterDevice | FileType::Unknown => true,
        FileType::RegularFile => dir.xattr_whiteouts()?,
        _ => false,
    };
    if !suspicious {
        return Ok(Some(kind));
    }
    match file::stat_at(dir.fd()?, name) {
        Ok(st) if is_whiteout(dir, name, &st)? => Ok(None),
        Ok(st) => Ok(Some(st.kind())),
        Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}
