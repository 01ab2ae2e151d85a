//! Attributes as the mount shows them.

use rustix::fs::FileType;

use crate::format::names;
use crate::sys::file::Stat;

/// Attributes of an object of the union.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attr {
    /// Inode number, which is the node id as well.
    pub ino: u64,
    /// Type and permission bits, as in `st_mode`.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device that a device node stands for, as in `st_rdev`.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Allocated 512-byte blocks.
    pub blocks: u64,
    /// Preferred I/O size in bytes.
    pub blksize: u32,
    /// Last access: seconds and nanoseconds since the epoch.
    pub atime: (i64, u32),
    /// Last change of the content.
    pub mtime: (i64, u32),
    /// Last change of the inode.
    pub ctime: (i64, u32),
    /// Whether the kernel may keep the attributes. False while they can change without our knowing (see
    /// `docs/SEMANTICS.md`, "Set-ID bits" and "mmap, passthrough").
    pub cacheable: bool,
}

impl Attr {
    /// The attributes of a real object under the union's inode number.
    pub fn new(ino: u64, st: &Stat) -> Self {
        Self {
            ino,
            mode: st.mode,
            nlink: st.nlink,
            uid: st.uid,
            gid: st.gid,
            rdev: if st.rdev == names::ESCAPED_DEVICE { 0 } else { st.rdev },
            size: st.size,
            blocks: st.blocks,
            blksize: st.blksize,
            atime: st.atime,
            mtime: st.mtime,
            ctime: st.ctime,
            cacheable: true,
        }
    }

    /// The file type.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }
}
