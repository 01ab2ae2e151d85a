//! Conversions between the FUSE protocol and the core.

use std::time::Duration;

use rustix::fs::{FileType, RenameFlags, StatVfs, XattrFlags};

use super::wire::{self, fattr};
use crate::error::{Errno, Result};
use crate::fs::{Attr, SetAttr, SetTime};

/// How long the kernel may keep names and attributes: nobody else changes the layers of a live
/// mount, so as long as it likes. `u32::MAX` seconds (136 years) stays clear of the saturation of the
/// kernel's `timespec64_to_jiffies`.
pub const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// The longest name in bytes: that of every filesystem a layer can lie on.
const NAME_MAX: u32 = 255;

/// The attributes of an object.
pub fn attr(attr: &Attr) -> wire::Attr {
    let (atime, mtime, ctime) = (attr.atime, attr.mtime, attr.ctime);
    wire::Attr {
        ino: attr.ino,
        size: attr.size,
        blocks: attr.blocks,
        atime: atime.0.cast_unsigned(),
        mtime: mtime.0.cast_unsigned(),
        ctime: ctime.0.cast_unsigned(),
        atimensec: atime.1,
        mtimensec: mtime.1,
        ctimensec: ctime.1,
        mode: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: rdev_to_wire(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

/// The type of a file as a listing gives it (`DT_*`: the bits `S_IFMT` of a mode, shifted).
pub fn kind(kind: FileType) -> u32 {
    kind.as_raw_mode() >> 12
}

/// What SETATTR sets.
pub fn set_attr(given: &wire::SetattrIn) -> SetAttr {
    let has = |what| given.valid & what != 0;
    let time = |set, now, secs: u64, nanos| match (has(set), has(now)) {
        (false, _) => SetTime::Keep,
        (true, true) => SetTime::Now,
        // The nanoseconds count forward also before the epoch.
        (true, false) => SetTime::At(secs.cast_signed(), nanos),
    };
    SetAttr {
        mode: has(fattr::MODE).then_some(given.mode & 0o7777),
        uid: has(fattr::UID).then_some(given.uid),
        gid: has(fattr::GID).then_some(given.gid),
        size: has(fattr::SIZE).then_some(given.size),
        atime: time(fattr::ATIME, fattr::ATIME_NOW, given.atime, given.atimensec),
        mtime: time(fattr::MTIME, fattr::MTIME_NOW, given.mtime, given.mtimensec),
    }
}

/// The state of a filesystem.
pub fn statfs(st: &StatVfs) -> wire::Statfs {
    let size = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    wire::Statfs {
        blocks: st.f_blocks,
        bfree: st.f_bfree,
        bavail: st.f_bavail,
        files: st.f_files,
        ffree: st.f_ffree,
        bsize: size(st.f_bsize),
        namelen: NAME_MAX,
        frsize: size(st.f_frsize),
        ..wire::Statfs::default()
    }
}

/// A device number as FUSE carries it: the kernel's 32-bit `new_encode_dev` (12 bits of major, 20 of
/// minor, `include/linux/kdev_t.h`).
pub fn rdev_to_wire(dev: u64) -> u32 {
    let (major, minor) = (rustix::fs::major(dev), rustix::fs::minor(dev));
    (minor & 0xff) | ((major & 0xfff) << 8) | ((minor & 0xf_ff00) << 12)
}

/// The inverse of [`rdev_to_wire`], as in `new_decode_dev`.
pub fn rdev_from_wire(dev: u32) -> u64 {
    let major = (dev & 0xf_ff00) >> 8;
    let minor = (dev & 0xff) | ((dev >> 12) & 0xf_ff00);
    rustix::fs::makedev(major, minor)
}

/// Flags of renameat2(2).
///
/// # Errors
/// EINVAL for a flag that we don't know, as rename(2) says.
pub fn rename_flags(flags: u32) -> Result<RenameFlags> {
    let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE | RenameFlags::WHITEOUT;
    let flags = RenameFlags::from_bits_retain(flags);
    if known.contains(flags) { Ok(flags) } else { Err(Errno::INVAL) }
}

/// Flags of setxattr(2).
///
/// # Errors
/// EINVAL for a flag that we don't know.
pub fn xattr_flags(flags: u32) -> Result<XattrFlags> {
    let known = XattrFlags::CREATE | XattrFlags::REPLACE;
    let flags = XattrFlags::from_bits_retain(flags);
    if known.contains(flags) { Ok(flags) } else { Err(Errno::INVAL) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_carried_whole() {
        let at = |secs: i64, nanos| {
            let valid = fattr::ATIME | fattr::MTIME | fattr::MTIME_NOW;
            let given = wire::SetattrIn {
                valid,
                atime: secs.cast_unsigned(),
                atimensec: nanos,
                ..wire::SetattrIn::default()
            };
            let set = set_attr(&given);
            assert_eq!((set.mtime, set.mode, set.size), (SetTime::Now, None, None));
            set.atime
        };
        for (secs, nanos) in [(0, 0), (5, 999_999_999), (-1, 700_000_000), (i64::MIN, 5), (i64::MAX, 7)] {
            assert_eq!(at(secs, nanos), SetTime::At(secs, nanos));
        }
        assert_eq!(set_attr(&wire::SetattrIn::default()).atime, SetTime::Keep);
    }

    #[test]
    fn device_numbers() {
        for (major, minor) in [(0, 0), (1, 3), (8, 1), (259, 0xf_ffff), (0xfff, 0x1_2345)] {
            let dev = rustix::fs::makedev(major, minor);
            assert_eq!(rdev_from_wire(rdev_to_wire(dev)), dev);
        }
        assert_eq!(rdev_to_wire(rustix::fs::makedev(1, 3)), 0x103);
        assert_eq!(rdev_to_wire(rustix::fs::makedev(8, 256)), 0x10_0800);
    }

    #[test]
    fn unknown_flags_are_refused() {
        assert_eq!(rename_flags(0x10), Err(Errno::INVAL));
        assert_eq!(rename_flags(0), Ok(RenameFlags::empty()));
        assert_eq!(xattr_flags(8), Err(Errno::INVAL));
        assert_eq!(xattr_flags(libc::XATTR_CREATE.cast_unsigned()), Ok(XattrFlags::CREATE));
    }

    #[test]
    fn kinds_are_those_of_readdir() {
        assert_eq!(kind(FileType::Directory), u32::from(libc::DT_DIR));
        assert_eq!(kind(FileType::Symlink), u32::from(libc::DT_LNK));
        assert_eq!(kind(FileType::RegularFile), u32::from(libc::DT_REG));
    }
}
