//! Bringing changes to the device in the order in which they were made.
//!
//! ext4 and XFS write names and attributes in their order, so that one fsync(2) brings all that came before. Btrfs
//! does so by its commits alone: for an fsync(2) between two of them it logs one inode with its own names, and after a
//! power loss that log is put on top of the last commit. What belongs to it otherwise is missing then: a whiteout
//! where the object was renamed, the mode and the marks of a directory copied up for it. So nothing is logged here.
#![allow(unsafe_code)] // FS_IOC_FIEMAP has no safe wrapper.

use std::os::fd::{AsFd, AsRawFd};

use super::{file, last_errno};
use crate::error::Result;

/// `FS_IOC_FIEMAP`: _IOWR('f', 11, struct fiemap) in linux/fs.h.
pub(super) const FIEMAP: u32 = 0xc020_660b;

/// Brings the data of a file that has no name yet so far that no crash shows a name made later without the data.
///
/// # Errors
/// Those of fsync(2).
pub fn data_before_name(fd: impl AsFd) -> Result<()> {
    // On Btrfs the data and the extents that lead to it are part of this commit or of an earlier one, so a name
    // cannot come before them.
    if commits(&fd) && write_extents(&fd).is_ok() { Ok(()) } else { rustix::fs::fsync(fd) }
}

/// Brings a file or directory to its device, and on filesystems that keep the order of changes all that came before;
/// of a file's attributes only what its data needs when `datasync`.
///
/// # Errors
/// Those of fsync(2).
pub fn object(fd: impl AsFd, datasync: bool) -> Result<()> {
    if commits(&fd) {
        // There is nothing left to log for the fsync(2) after it, which tells what is wrong with this object; what syncfs(2)
        // tells may be about others. BTRFS_IOC_START_SYNC would leave the data of other files alone, but leaves the
        // commit to a thread of the kernel, and when that has just ended another one it can miss the call and sleep
        // for the 30 seconds between two.
        let _ = rustix::fs::syncfs(&fd);
    }
    if datasync { rustix::fs::fdatasync(fd) } else { rustix::fs::fsync(fd) }
}

/// Whether the order of changes is kept by commits of the whole filesystem, and not by fsync(2).
fn commits(fd: impl AsFd) -> bool {
    file::fs_type(fd).is_ok_and(|kind| kind == libc::BTRFS_SUPER_MAGIC)
}

/// Writes the data of a file out and waits until its extents are recorded, not yet on the device.
fn write_extents(fd: impl AsFd) -> Result<()> {
    /// `struct fiemap` without room for extents.
    #[derive(Default)]
    #[repr(C)]
    struct Fiemap {
        start: u64,
        length: u64,
        flags: u32,
        mapped: u32,
        room: u32,
        reserved: u32,
    }
    /// `FIEMAP_FLAG_SYNC`: all of the file is written first, not the range alone.
    const SYNC: u32 = 1;
    let mut map = Fiemap { length: 1, flags: SYNC, ..Fiemap::default() };
    // SAFETY: the ioctl reads and writes one struct fiemap, which `map` is, and no extents, for which there is no room.
    let rc = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), FIEMAP as libc::Ioctl, &raw mut map) };
    if rc == 0 { Ok(()) } else { Err(last_errno()) }
}
