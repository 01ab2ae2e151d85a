//! The union filesystem as a set of operations on inode numbers, free of FUSE: complete and testable
//! without a mount.

use std::any::Any;
use std::ffi::{OsStr, OsString};
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use rustix::fs::{FileType, RenameFlags, StatVfs, XattrFlags};

use crate::config::Options;
use crate::error::{Errno, Result};
pub use crate::layer::stack::LayerFds;
pub use crate::merge::attr::Attr;
pub use crate::sys::cred::Caller;
pub use crate::sys::file::SetTime;

/// Inode number of the root, as FUSE fixes it.
pub const ROOT: u64 = 1;

/// What the kernel keeps for I/O on a file without us; opaque here, made and read by the transport.
pub type Backing = Arc<dyn Any + Send + Sync>;

/// Registers an open file with the kernel for I/O without us; `None` where that is not permitted.
pub type MakeBacking<'a> = &'a mut dyn FnMut(BorrowedFd<'_>) -> Option<Backing>;

/// An open file.
#[derive(Clone)]
pub struct Opened {
    /// The handle for later calls.
    pub fh: u64,
    /// Set when the kernel does reads and writes itself, on this.
    pub backing: Option<Backing>,
    /// Pages that the kernel already has for the inode are still right.
    pub keep_cache: bool,
}

/// Attributes to set; `None` and `Keep` leave one as it is.
#[derive(Debug, Clone, Copy)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: SetTime,
    /// Modification time.
    pub mtime: SetTime,
}

/// An entry of a directory listing.
#[derive(Debug, Clone, Copy)]
pub struct DirEntry<'a> {
    /// Inode number.
    pub ino: u64,
    /// Where a listing goes on behind this entry.
    pub next: u64,
    /// File type.
    pub kind: FileType,
    /// Name.
    pub name: &'a OsStr,
}

/// The union filesystem.
pub struct UnionFs {}

#[allow(unused_variables, missing_docs, clippy::too_many_arguments, clippy::missing_errors_doc)]
impl UnionFs {
    pub fn open(layers: LayerFds, options: &Options) -> Result<Self> {
        Ok(Self {})
    }
    /// Counts one lookup of the entry's inode. ENOENT: the name is not there and may be cached so.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Attr> {
        Err(Errno::NOSYS)
    }
    pub fn forget(&self, ino: u64, lookups: u64) {}
    pub fn getattr(&self, ino: u64, fh: Option<u64>) -> Result<Attr> {
        Err(Errno::NOSYS)
    }
    pub fn setattr(&self, caller: &Caller, ino: u64, set: &SetAttr, fh: Option<u64>) -> Result<Attr> {
        Err(Errno::NOSYS)
    }
    pub fn readlink(&self, ino: u64) -> Result<OsString> {
        Err(Errno::NOSYS)
    }
    /// Creations apply `caller.umask` unless a default ACL says otherwise, and count one lookup.
    pub fn mknod(&self, caller: &Caller, parent: u64, name: &OsStr, mode: u32, rdev: u64) -> Result<Attr> {
        Err(Errno::NOSYS)
    }
    pub fn mkdir(&self, caller: &Caller, parent: u64, name: &OsStr, mode: u32) -> Result<Attr> {
        Err(Errno::NOSYS)
    }
    pub fn symlink(&self, caller: &Caller, parent: u64, name: &OsStr, target: &OsStr) -> Result<Attr> {
        Err(Errno::NOSYS)
    }
    pub fn link(&self, ino: u64, parent: u64, name: &OsStr) -> Result<Attr> {
        Err(Errno::NOSYS)
    }
    pub fn unlink(&self, parent: u64, name: &OsStr) -> Result<()> {
        Err(Errno::NOSYS)
    }
    pub fn rmdir(&self, parent: u64, name: &OsStr) -> Result<()> {
        Err(Errno::NOSYS)
    }
    pub fn rename(
        &self,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> Result<()> {
        Err(Errno::NOSYS)
    }
    /// `flags` as in open(2): access mode, O_TRUNC, O_SYNC and the like.
    pub fn open_file(&self, caller: &Caller, ino: u64, flags: i32, make: MakeBacking<'_>) -> Result<Opened> {
        Err(Errno::NOSYS)
    }
    pub fn create(
        &self,
        caller: &Caller,
        parent: u64,
        name: &OsStr,
        mode: u32,
        flags: i32,
        make: MakeBacking<'_>,
    ) -> Result<(Attr, Opened)> {
        Err(Errno::NOSYS)
    }
    /// Fills the buffer as far as the file goes; gives the bytes read.
    pub fn read(&self, fh: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        Err(Errno::NOSYS)
    }
    /// `kill_setid`: the writer lacks CAP_FSETID, so set-ID bits go (FUSE_WRITE_KILL_SUIDGID). Then the
    /// second value is true when the mode changed, and the kernel's copy of it must be dropped.
    pub fn write(&self, fh: u64, offset: u64, data: &[u8], kill_setid: bool) -> Result<(usize, bool)> {
        Err(Errno::NOSYS)
    }
    pub fn release(&self, fh: u64) {}
    pub fn fsync(&self, fh: u64, datasync: bool) -> Result<()> {
        Err(Errno::NOSYS)
    }
    pub fn opendir(&self, ino: u64) -> Result<u64> {
        Err(Errno::NOSYS)
    }
    /// Entries from `offset` on (0, or the `next` of an entry) until `sink` returns true: that entry did
    /// not fit. `.` and `..` come first.
    pub fn readdir(&self, fh: u64, offset: u64, sink: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        Err(Errno::NOSYS)
    }
    /// Like `readdir` with attributes; counts one lookup for each entry that fitted and had attributes,
    /// except `.` and `..`. `None` for `.`, `..` and entries that vanished or can't be read.
    pub fn readdirplus(
        &self,
        fh: u64,
        offset: u64,
        sink: &mut dyn FnMut(DirEntry<'_>, Option<&Attr>) -> bool,
    ) -> Result<()> {
        Err(Errno::NOSYS)
    }
    pub fn releasedir(&self, fh: u64) {}
    pub fn fsyncdir(&self, fh: u64, datasync: bool) -> Result<()> {
        Err(Errno::NOSYS)
    }
    pub fn statfs(&self) -> Result<StatVfs> {
        Err(Errno::NOSYS)
    }
    pub fn setxattr(
        &self,
        caller: &Caller,
        ino: u64,
        name: &OsStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        Err(Errno::NOSYS)
    }
    pub fn getxattr(&self, ino: u64, name: &OsStr) -> Result<Vec<u8>> {
        Err(Errno::NOSYS)
    }
    /// Names, each ended by a NUL.
    pub fn listxattr(&self, ino: u64) -> Result<Vec<u8>> {
        Err(Errno::NOSYS)
    }
    pub fn removexattr(&self, caller: &Caller, ino: u64, name: &OsStr) -> Result<()> {
        Err(Errno::NOSYS)
    }
    /// `mode` as in fallocate(2).
    pub fn fallocate(&self, fh: u64, offset: u64, len: u64, mode: i32) -> Result<()> {
        Err(Errno::NOSYS)
    }
    /// SEEK_DATA and SEEK_HOLE (and the plain forms).
    pub fn lseek(&self, fh: u64, offset: i64, whence: i32) -> Result<i64> {
        Err(Errno::NOSYS)
    }
    pub fn copy_file_range(
        &self,
        from: u64,
        from_offset: u64,
        to: u64,
        to_offset: u64,
        len: u64,
    ) -> Result<usize> {
        Err(Errno::NOSYS)
    }
}
