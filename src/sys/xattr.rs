//! Extended attributes of objects behind descriptors of any kind, symlinks and O_PATH too.
#![allow(unsafe_code)] // getxattrat(2) has no safe wrapper.

use std::ffi::{CStr, OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::path::Arg;

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
            Self::Fd(fd) => super::proc_path(fd, None),
            Self::At(dir, name) => super::proc_path(dir, Some(name)),
        }
    }

    /// Runs `direct` on a descriptor, which is cheaper than `by_path`; O_PATH ones answer EBADF to it, but not
    /// by way of /proc. `link`: for an entry, not following a symlink.
    fn call<T>(
        self,
        direct: impl FnOnce(BorrowedFd<'_>) -> Result<T>,
        by_path: impl FnOnce(OsString) -> Result<T>,
        link: impl FnOnce(OsString) -> Result<T>,
    ) -> Result<T> {
        match self {
            Self::Fd(fd) => match direct(fd) {
                Err(Errno::BADF) => by_path(self.path()),
                other => other,
            },
            Self::At(..) => link(self.path()),
        }
    }
}

/// getxattrat(2) of Linux 6.13 on the entry `name` of a directory, not following a symlink.
fn get_at(dir: BorrowedFd<'_>, entry: &CStr, name: &CStr, buf: &mut [u8]) -> Result<usize> {
    /// `struct xattr_args` in `linux/xattr.h`.
    #[repr(C, align(8))]
    struct Args {
        value: u64,
        size: u32,
        flags: u32,
    }
    // The same on all architectures that Rust knows for Linux (arch/*/tools/syscall.tbl).
    const SYS_GETXATTRAT: libc::c_long = 464;
    let args =
        Args { value: buf.as_mut_ptr() as u64, size: u32::try_from(buf.len()).unwrap_or(u32::MAX), flags: 0 };
    // SAFETY: two strings that end in NUL, and a structure of the size that is given; the kernel writes to
    // `value` no more than `size` bytes, which `buf` has.
    let got = unsafe {
        libc::syscall(
            SYS_GETXATTRAT,
            dir.as_raw_fd(),
            entry.as_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
            name.as_ptr(),
            &raw const args,
            size_of::<Args>(),
        )
    };
    usize::try_from(got).map_err(|_| super::last_errno())
}

fn get_into(target: Target<'_>, name: &OsStr, buf: &mut [u8]) -> Result<usize> {
    if let Target::At(dir, entry) = target {
        let got = entry.into_with_c_str(|entry| name.into_with_c_str(|name| get_at(dir, entry, name, buf)));
        // Not known to the kernel, or to a seccomp filter.
        if !matches!(got, Err(Errno::NOSYS | Errno::PERM)) {
            return got;
        }
        return rustix::fs::lgetxattr(target.path(), name, buf);
    }
    let Target::Fd(fd) = target else { return Err(Errno::INVAL) };
    match rustix::fs::fgetxattr(fd, name, &mut *buf) {
        Err(Errno::BADF) => rustix::fs::getxattr(target.path(), name, buf),
        other => other,
    }
}

/// Reads a value into a buffer that grows as needed.
///
/// # Errors
/// ENODATA when there is none; EOPNOTSUPP where the filesystem has no xattrs.
pub fn get(target: Target<'_>, name: &OsStr) -> Result<Vec<u8>> {
    // Most are short, and most of those that are asked for are not there.
    let mut short = [0_u8; 256];
    match get_into(target, name, &mut short) {
        Ok(n) => return Ok(short[..n.min(short.len())].to_vec()),
        Err(Errno::RANGE) => {}
        Err(e) => return Err(e),
    }
    let mut buf = vec![0_u8; MAX];
    let n = get_into(target, name, &mut buf)?;
    buf.truncate(n);
    Ok(buf)
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
    target.call(
        |fd| rustix::fs::fsetxattr(fd, name, value, flags),
        |path| rustix::fs::setxattr(path, name, value, flags),
        |path| rustix::fs::lsetxattr(path, name, value, flags),
    )
}

/// Removes an attribute.
pub fn remove(target: Target<'_>, name: &OsStr) -> Result<()> {
    target.call(
        |fd| rustix::fs::fremovexattr(fd, name),
        |path| rustix::fs::removexattr(path, name),
        |path| rustix::fs::lremovexattr(path, name),
    )
}

fn list_into(target: Target<'_>, buf: &mut [u8]) -> Result<usize> {
    match target {
        Target::Fd(fd) => match rustix::fs::flistxattr(fd, &mut *buf) {
            Err(Errno::BADF) => rustix::fs::listxattr(target.path(), buf),
            other => other,
        },
        Target::At(..) => rustix::fs::llistxattr(target.path(), buf),
    }
}

/// The names of all attributes. Empty where the filesystem has none.
pub fn list(target: Target<'_>) -> Result<Vec<OsString>> {
    let names = |buf: &[u8]| {
        buf.split(|b| *b == 0).filter(|n| !n.is_empty()).map(|n| OsStr::from_bytes(n).to_owned()).collect()
    };
    let mut short = [0_u8; 512];
    match list_into(target, &mut short) {
        Ok(n) => return Ok(names(&short[..n.min(short.len())])),
        Err(Errno::RANGE) => {}
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    }
    let mut buf = vec![0_u8; MAX];
    let n = list_into(target, &mut buf)?;
    Ok(names(&buf[..n.min(MAX)]))
}
