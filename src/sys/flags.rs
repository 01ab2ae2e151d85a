//! Inode flags (FS_IOC_GETFLAGS(2const), ioctl_xfs_fsgetxattr(2)): what chattr(1) sets.
#![allow(unsafe_code)] // FS_IOC_FSGETXATTR and FS_IOC_FSSETXATTR have no safe wrapper.

use std::os::fd::AsFd;

use rustix::fs::{AtFlags, IFlags, StatxAttributes, StatxFlags};
use rustix::ioctl::{Getter, Opcode, Setter, ioctl, opcode};

use crate::error::{Errno, Result};

/// `FS_IOC_GETFLAGS` in `linux/fs.h`. Its type says `long`, its argument is an `int`.
pub const GET: Opcode = opcode::read::<libc::c_long>(b'f', 1);
/// `FS_IOC_SETFLAGS`.
pub const SET: Opcode = opcode::write::<libc::c_long>(b'f', 2);
/// `FS_IOC_FSGETXATTR`.
pub const GET_EXTENDED: Opcode = opcode::read::<Extended>(b'X', 31);
/// `FS_IOC_FSSETXATTR`.
pub const SET_EXTENDED: Opcode = opcode::write::<Extended>(b'X', 32);

/// The flags that an object keeps others from changing it by.
pub const PROTECTING: u32 = IFlags::IMMUTABLE.bits() | IFlags::APPEND.bits();
/// `FS_CASEFOLD_FL` in `linux/fs.h`: names in the directory are looked up without regard to case.
pub const CASEFOLD: u32 = 0x4000_0000;
/// The flags that a copy takes over where its filesystem has them.
const KEPT: u32 =
    IFlags::SYNC.bits() | IFlags::DIRSYNC.bits() | IFlags::NOATIME.bits() | IFlags::NODUMP.bits();

/// `struct fsxattr` in `linux/fs.h`, as it goes through the ioctls.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Extended {
    /// `FS_XFLAG_` bits.
    pub xflags: u32,
    /// Extent size hint in bytes.
    pub extsize: u32,
    /// Number of extents; read only.
    pub nextents: u32,
    /// Project.
    pub projid: u32,
    /// Extent size hint for copy on write, in bytes.
    pub cowextsize: u32,
    /// Unused.
    pub pad: [u8; 8],
}

impl Extended {
    /// The size of the structure in bytes.
    pub const SIZE: usize = size_of::<Self>();

    /// Reads the structure; `None` when the bytes are too few.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let field = |i: usize| Some(u32::from_ne_bytes(bytes.get(i * 4..i * 4 + 4)?.try_into().ok()?));
        Some(Self {
            xflags: field(0)?,
            extsize: field(1)?,
            nextents: field(2)?,
            projid: field(3)?,
            cowextsize: field(4)?,
            pad: bytes.get(20..28)?.try_into().ok()?,
        })
    }

    /// The bytes of the structure.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        for (i, field) in
            [self.xflags, self.extsize, self.nextents, self.projid, self.cowextsize].into_iter().enumerate()
        {
            out[i * 4..i * 4 + 4].copy_from_slice(&field.to_ne_bytes());
        }
        out[20..].copy_from_slice(&self.pad);
        out
    }
}

/// The flags of an open object (not O_PATH).
///
/// # Errors
/// ENOTTY where the filesystem has none.
pub fn get(fd: impl AsFd) -> Result<u32> {
    rustix::fs::ioctl_getflags(fd).map(|flags| flags.bits())
}

/// Sets the flags of an open object; reading is enough to have it open for.
///
/// # Errors
/// EOPNOTSUPP for a flag that the filesystem lacks, EPERM, EROFS.
pub fn set(fd: impl AsFd, flags: u32) -> Result<()> {
    rustix::fs::ioctl_setflags(fd, IFlags::from_bits_retain(flags))
}

/// The extended flags of an open object.
///
/// # Errors
/// As for [`get`].
pub fn get_extended(fd: impl AsFd) -> Result<Extended> {
    // SAFETY: the ioctl writes one struct fsxattr, which `Extended` is.
    unsafe { ioctl(fd, Getter::<GET_EXTENDED, Extended>::new()) }
}

/// Sets the extended flags of an open object.
///
/// # Errors
/// As for [`set`].
pub fn set_extended(fd: impl AsFd, flags: Extended) -> Result<()> {
    // SAFETY: the ioctl reads one struct fsxattr, which `Extended` is.
    unsafe { ioctl(fd, Setter::<SET_EXTENDED, Extended>::new(flags)) }
}

/// Whether an object (O_PATH too) is immutable or append-only.
///
/// # Errors
/// Those of statx(2).
pub fn is_protected(fd: impl AsFd) -> Result<bool> {
    match rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::empty()) {
        Ok(st) => Ok(st.stx_attributes.intersects(StatxAttributes::IMMUTABLE | StatxAttributes::APPEND)),
        // Where a seccomp filter does not know the call: the flags cannot be asked for.
        Err(Errno::NOSYS) => Ok(false),
        Err(e) => Err(e),
    }
}

/// That a filesystem lacks flags, or that we may not change them.
fn is_lack(e: Errno) -> bool {
    matches!(e, Errno::NOTTY | Errno::INVAL | Errno::OPNOTSUPP | Errno::NOSYS | Errno::PERM | Errno::ACCESS)
}

/// The harmless flags of an open object, which a copy of it takes over.
///
/// # Errors
/// EIO and the like; that the filesystem has no flags is none.
pub fn kept(fd: impl AsFd) -> Result<u32> {
    match get(fd) {
        Ok(flags) => Ok(flags & KEPT),
        Err(e) if is_lack(e) => Ok(0),
        Err(e) => Err(e),
    }
}

/// Sets flags of an open object in addition, where its filesystem takes them.
///
/// # Errors
/// As for [`kept`].
pub fn add(fd: impl AsFd, flags: u32) -> Result<()> {
    match get(&fd).and_then(|has| set(&fd, has | flags)) {
        Err(e) if !is_lack(e) => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_keep_their_bytes() {
        let bytes: Vec<u8> = (1..=28).collect();
        let extended = Extended::from_bytes(&bytes).unwrap();
        assert_eq!(extended.to_bytes().as_slice(), bytes);
        assert_eq!(Extended::from_bytes(&bytes[1..]), None);
        assert_eq!(Extended::SIZE, 28);
    }

    #[test]
    fn a_plain_file_is_not_protected() {
        let file = tempfile::tempfile().unwrap();
        assert!(!is_protected(&file).unwrap());
    }
}
