//! Extended attributes of objects behind descriptors of any kind, symlinks and O_PATH too.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::XattrFlags;

use crate::error::{Errno, Result};

/// The largest value the kernel passes on (`XATTR_SIZE_MAX`) and the largest name list
/// (`XATTR_LIST_MAX`), in bytes.
pub const MAX: usize = 65536;

/// What an xattr call is about.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// The object behind a descriptor.
    Fd(BorrowedFd<'a>),
    /// The entry `name` in a directory; a symlink is not followed.
    At(BorrowedFd<'a>, &'a OsStr),
}

impl<'a> Target<'a> {
    /// The object behind `fd`.
    pub fn fd(fd: &'a impl AsFd) -> Self {
        Self::Fd(fd.as_fd())
    }

    fn path(self) -> OsString {
        match self {
            // setxattr(2) and the like answer EBADF for O_PATH descriptors, but not by way of /proc.
            Self::Fd(fd) => super::proc_path(fd, None),
            Self::At(dir, name) => super::proc_path(dir, Some(name)),
        }
    }

    fn follow(self) -> bool {
        matches!(self, Self::Fd(_))
    }
}

/// Reads a value into a buffer that grows as needed.
///
/// # Errors
/// ENODATA when there is none; EOPNOTSUPP where the filesystem has no xattrs.
pub fn get(target: Target<'_>, name: &OsStr) -> Result<Vec<u8>> {
    let path = target.path();
    let mut buf = vec![0_u8; 256];
    loop {
        let got = if target.follow() {
            rustix::fs::getxattr(&path, name, &mut buf[..])
        } else {
            rustix::fs::lgetxattr(&path, name, &mut buf[..])
        };
        match got {
            Ok(n) => {
                buf.truncate(n);
                return Ok(buf);
            }
            Err(Errno::RANGE) if buf.len() < MAX => buf.resize(MAX, 0),
            Err(e) => return Err(e),
        }
    }
}

/// Like [`get`], but `None` where the attribute or the whole facility is missing.
pub fn get_opt(target: Target<'_>, name: &OsStr) -> Result<Option<Vec<u8>>> {
    match get(target, name) {
        Ok(v) => Ok(Some(v)),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::PERM) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Sets a value; `flags` as in setxattr(2).
pub fn set(target: Target<'_>, name: &OsStr, value: &[u8], flags: XattrFlags) -> Result<()> {
    let path = target.path();
    if target.follow() {
        rustix::fs::setxattr(&path, name, value, flags)
    } else {
        rustix::fs::lsetxattr(&path, name, value, flags)
    }
}

/// Removes an attribute.
pub fn remove(target: Target<'_>, name: &OsStr) -> Result<()> {
    let path = target.path();
    if target.follow() { rustix::fs::removexattr(&path, name) } else { rustix::fs::lremovexattr(&path, name) }
}

/// The names of all attributes. Empty where the filesystem has none.
pub fn list(target: Target<'_>) -> Result<Vec<OsString>> {
    let path = target.path();
    let mut buf = vec![0_u8; 1024];
    loop {
        let got = if target.follow() {
            rustix::fs::listxattr(&path, &mut buf[..])
        } else {
            rustix::fs::llistxattr(&path, &mut buf[..])
        };
        match got {
            Ok(n) => {
                buf.truncate(n);
                break;
            }
            Err(Errno::RANGE) if buf.len() < MAX => buf.resize(MAX, 0),
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(e) => return Err(e),
        }
    }
    Ok(buf.split(|b| *b == 0).filter(|n| !n.is_empty()).map(|n| OsStr::from_bytes(n).to_owned()).collect())
}
