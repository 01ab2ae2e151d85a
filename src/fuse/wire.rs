//! The FUSE protocol as it lies in memory: `include/uapi/linux/fuse.h`, version 7.42 and what of it older
//! kernels know. Numbers are in the byte order of the machine.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The version of the protocol that we speak.
pub const VERSION: (u32, u32) = (7, 42);
/// The oldest minor version that we understand: the one of Linux 5.4, with names in all requests where they
/// are today.
pub const OLDEST_MINOR: u32 = 31;

macro_rules! wire {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* $(,)? })*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
            #[repr(C)]
            #[allow(missing_docs)] // The names are those of the header file.
            pub struct $name {
                $(pub $field: $type,)*
            }
        )*
    };
}

wire! {
    /// `fuse_in_header`: begins each request.
    InHeader {
        len: u32, opcode: u32, unique: u64, nodeid: u64, uid: u32, gid: u32, pid: u32, total_extlen: u16,
        padding: u16,
    }
    /// `fuse_out_header`: begins each answer.
    OutHeader { len: u32, error: i32, unique: u64 }
    /// `fuse_attr`
    Attr {
        ino: u64, size: u64, blocks: u64, atime: u64, mtime: u64, ctime: u64, atimensec: u32, mtimensec: u32,
        ctimensec: u32, mode: u32, nlink: u32, uid: u32, gid: u32, rdev: u32, blksize: u32, flags: u32,
    }
    /// `fuse_entry_out`
    EntryOut {
        nodeid: u64, generation: u64, entry_valid: u64, attr_valid: u64, entry_valid_nsec: u32,
        attr_valid_nsec: u32, attr: Attr,
    }
    /// `fuse_attr_out`
    AttrOut { attr_valid: u64, attr_valid_nsec: u32, dummy: u32, attr: Attr }
    /// `fuse_open_out`
    OpenOut { fh: u64, open_flags: u32, backing_id: i32 }
    /// `fuse_write_out`
    WriteOut { size: u32, padding: u32 }
    /// `fuse_copy_file_range_out`
    CopyFileRangeOut { bytes_copied: u64 }
    /// `fuse_getxattr_out`
    GetxattrOut { size: u32, padding: u32 }
    /// `fuse_lseek_out`
    LseekOut { offset: u64 }
    /// `fuse_ioctl_out`
    IoctlOut { result: i32, flags: u32, in_iovs: u32, out_iovs: u32 }
    /// `fuse_kstatfs`
    Statfs {
        blocks: u64, bfree: u64, bavail: u64, files: u64, ffree: u64, bsize: u32, namelen: u32, frsize: u32,
        padding: u32, spare: [u32; 6],
    }
    /// The fixed part of `fuse_dirent`; the name follows, padded to eight bytes.
    Dirent { ino: u64, off: u64, namelen: u32, kind: u32 }
    /// `fuse_notify_inval_inode_out`
    InvalInodeOut { ino: u64, off: i64, len: i64 }
    /// `fuse_init_in`
    InitIn { major: u32, minor: u32, max_readahead: u32, flags: u32, flags2: u32, unused: [u32; 11] }
    /// `fuse_init_out`
    InitOut {
        major: u32, minor: u32, max_readahead: u32, flags: u32, max_background: u16, congestion_threshold: u16,
        max_write: u32, time_gran: u32, max_pages: u16, map_alignment: u16, flags2: u32, max_stack_depth: u32,
        request_timeout: u16, unused: [u16; 11],
    }
    /// `fuse_forget_in`
    ForgetIn { nlookup: u64 }
    /// `fuse_batch_forget_in`; as many `ForgetOne` follow.
    BatchForgetIn { count: u32, dummy: u32 }
    /// `fuse_forget_one`
    ForgetOne { nodeid: u64, nlookup: u64 }
    /// `fuse_getattr_in`
    GetattrIn { flags: u32, dummy: u32, fh: u64 }
    /// `fuse_setattr_in`
    SetattrIn {
        valid: u32, padding: u32, fh: u64, size: u64, lock_owner: u64, atime: u64, mtime: u64, ctime: u64,
        atimensec: u32, mtimensec: u32, ctimensec: u32, mode: u32, unused4: u32, uid: u32, gid: u32, unused5: u32,
    }
    /// `fuse_mknod_in`
    MknodIn { mode: u32, rdev: u32, umask: u32, padding: u32 }
    /// `fuse_mkdir_in`
    MkdirIn { mode: u32, umask: u32 }
    /// `fuse_rename_in`
    RenameIn { newdir: u64 }
    /// `fuse_rename2_in`
    Rename2In { newdir: u64, flags: u32, padding: u32 }
    /// `fuse_link_in`
    LinkIn { oldnodeid: u64 }
    /// `fuse_open_in`
    OpenIn { flags: u32, open_flags: u32 }
    /// `fuse_create_in`
    CreateIn { flags: u32, mode: u32, umask: u32, open_flags: u32 }
    /// `fuse_read_in`
    ReadIn { fh: u64, offset: u64, size: u32, read_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    /// `fuse_write_in`
    WriteIn { fh: u64, offset: u64, size: u32, write_flags: u32, lock_owner: u64, flags: u32, padding: u32 }
    /// `fuse_release_in`
    ReleaseIn { fh: u64, flags: u32, release_flags: u32, lock_owner: u64 }
    /// `fuse_fsync_in`
    FsyncIn { fh: u64, fsync_flags: u32, padding: u32 }
    /// `fuse_setxattr_in` in the form without `FUSE_SETXATTR_EXT`
    SetxattrIn { size: u32, flags: u32 }
    /// `fuse_getxattr_in`
    GetxattrIn { size: u32, padding: u32 }
    /// `fuse_ioctl_in`
    IoctlIn { fh: u64, flags: u32, cmd: u32, arg: u64, in_size: u32, out_size: u32 }
    /// `fuse_fallocate_in`
    FallocateIn { fh: u64, offset: u64, length: u64, mode: u32, padding: u32 }
    /// `fuse_lseek_in`
    LseekIn { fh: u64, offset: u64, whence: u32, padding: u32 }
    /// `fuse_copy_file_range_in`
    CopyFileRangeIn { fh_in: u64, off_in: u64, nodeid_out: u64, fh_out: u64, off_out: u64, len: u64, flags: u64 }
}

/// Flags of INIT that we know the meaning of, in the 64 bits of `flags` and `flags2`.
pub mod init {
    #![allow(missing_docs)] // The names are those of the header file.
    pub const ASYNC_READ: u64 = 1 << 0;
    pub const ATOMIC_O_TRUNC: u64 = 1 << 3;
    pub const EXPORT_SUPPORT: u64 = 1 << 4;
    pub const BIG_WRITES: u64 = 1 << 5;
    pub const DONT_MASK: u64 = 1 << 6;
    pub const HAS_IOCTL_DIR: u64 = 1 << 11;
    pub const DO_READDIRPLUS: u64 = 1 << 13;
    pub const READDIRPLUS_AUTO: u64 = 1 << 14;
    pub const ASYNC_DIO: u64 = 1 << 15;
    pub const PARALLEL_DIROPS: u64 = 1 << 18;
    pub const POSIX_ACL: u64 = 1 << 20;
    pub const MAX_PAGES: u64 = 1 << 22;
    pub const CACHE_SYMLINKS: u64 = 1 << 23;
    pub const NO_OPENDIR_SUPPORT: u64 = 1 << 24;
    pub const EXPLICIT_INVAL_DATA: u64 = 1 << 25;
    pub const HANDLE_KILLPRIV_V2: u64 = 1 << 28;
    /// `flags2` counts.
    pub const INIT_EXT: u64 = 1 << 30;
    pub const PASSTHROUGH: u64 = 1 << 37;
    pub const OVER_IO_URING: u64 = 1 << 41;
}

/// `FUSE_GETATTR_FH`: the request names an open file.
pub const GETATTR_FH: u32 = 1;
/// `FUSE_FSYNC_FDATASYNC`
pub const FSYNC_FDATASYNC: u32 = 1;
/// `FUSE_WRITE_KILL_SUIDGID`
pub const WRITE_KILL_SUIDGID: u32 = 4;
/// `FUSE_NOTIFY_INVAL_INODE`, in the place of the error of an answer to no request.
pub const NOTIFY_INVAL_INODE: i32 = 2;

/// Flags of an answer to an open.
pub mod fopen {
    #![allow(missing_docs)] // The names are those of the header file.
    pub const KEEP_CACHE: u32 = 1 << 1;
    pub const PASSTHROUGH: u32 = 1 << 7;
}

/// What SETATTR sets.
pub mod fattr {
    #![allow(missing_docs)] // The names are those of the header file.
    pub const MODE: u32 = 1 << 0;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_header_file() {
        assert_eq!(size_of::<InHeader>(), 40);
        assert_eq!(size_of::<OutHeader>(), 16);
        assert_eq!(size_of::<Attr>(), 88);
        assert_eq!(size_of::<EntryOut>(), 128);
        assert_eq!(size_of::<AttrOut>(), 104);
        assert_eq!(size_of::<Statfs>(), 80);
        assert_eq!(size_of::<Dirent>(), 24);
        assert_eq!((size_of::<InitIn>(), size_of::<InitOut>()), (64, 64));
        assert_eq!(size_of::<SetattrIn>(), 88);
        assert_eq!((size_of::<ReadIn>(), size_of::<WriteIn>()), (40, 40));
        assert_eq!(size_of::<CopyFileRangeIn>(), 56);
        assert_eq!(size_of::<IoctlIn>(), 32);
    }
}
