//! Conversions between the types of the FUSE protocol (as `fuser` gives them) and those of the core.

use std::ffi::OsStr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{FileType as CoreType, RenameFlags, XattrFlags};

use crate::error::{Errno, Result};
use crate::fs::{Attr, Caller, SetTime};

/// How long the kernel may keep names and attributes: nobody else changes the layers of a live
/// mount, so as long as it likes. `u32::MAX` seconds (136 years) stays clear of the saturation of the
/// kernel's `timespec64_to_jiffies`.
pub const FOREVER: Duration = Duration::from_secs(u32::MAX as u64);

/// The caller of a request. `umask` is 0 for operations that carry none.
pub fn caller(req: &fuser::Request, umask: u32) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid(), umask: umask & 0o777 }
}

/// The errno as the protocol wants it.
pub fn errno(err: Errno) -> fuser::Errno {
    fuser::Errno::from_i32(err.raw_os_error())
}

/// The type of a file. Something that has no type (an unknown one from a broken filesystem) passes
/// as a regular file.
pub fn kind(kind: CoreType) -> fuser::FileType {
    match kind {
        CoreType::Directory => fuser::FileType::Directory,
        CoreType::Symlink => fuser::FileType::Symlink,
        CoreType::Fifo => fuser::FileType::NamedPipe,
        CoreType::Socket => fuser::FileType::Socket,
        CoreType::CharacterDevice => fuser::FileType::CharDevice,
        CoreType::BlockDevice => fuser::FileType::BlockDevice,
        CoreType::RegularFile | CoreType::Unknown => fuser::FileType::RegularFile,
    }
}

/// The attributes of an object.
pub fn attr(attr: &Attr) -> fuser::FileAttr {
    fuser::FileAttr {
        ino: fuser::INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.blocks,
        atime: to_system_time(attr.atime),
        mtime: to_system_time(attr.mtime),
        ctime: to_system_time(attr.ctime),
        crtime: UNIX_EPOCH,
        kind: kind(attr.kind()),
        perm: (attr.mode & 0o7777) as u16,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: rdev_to_wire(attr.rdev),
        blksize: attr.blksize,
        flags: 0,
    }
}

/// Attributes that carry an inode number and a type alone.
pub fn bare_attr(ino: u64, kind: fuser::FileType) -> fuser::FileAttr {
    fuser::FileAttr {
        ino: fuser::INodeNo(ino),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm: 0,
        nlink: 1,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: 0,
        flags: 0,
    }
}

/// The attributes that stand in a READDIRPLUS reply for an entry without any.
///
/// Node 0 would tell the kernel to take the name and the type alone. But fuser writes one number as node
/// and as `d_ino`, and glibc's readdir(3) leaves entries with a `d_ino` of 0 out. So they get a node that
/// does not exist and a size that the kernel refuses (`fuse_valid_size`): it shows the name, links nothing
/// and forgets the node, which [`crate::fs::UnionFs::forget`] does not know. `.` and `..` keep their own
/// number, since the kernel never links these two (`fuse_direntplus_link`).
pub fn attributeless(name: &OsStr, ino: u64, kind: fuser::FileType) -> fuser::FileAttr {
    if name == "." || name == ".." {
        return bare_attr(ino, kind);
    }
    fuser::FileAttr { size: u64::MAX, ..bare_attr(u64::MAX, kind) }
}

/// A time as seconds and nanoseconds since the epoch (nanoseconds count forward also before it).
/// What `SystemTime` cannot hold becomes the epoch.
pub fn to_system_time((secs, nanos): (i64, u32)) -> SystemTime {
    let whole = Duration::from_secs(secs.unsigned_abs());
    let base = if secs >= 0 { UNIX_EPOCH.checked_add(whole) } else { UNIX_EPOCH.checked_sub(whole) };
    base.and_then(|t| t.checked_add(Duration::from_nanos(u64::from(nanos)))).unwrap_or(UNIX_EPOCH)
}

/// A time to set, as SETATTR brings it.
///
/// The kernel sends (seconds, nanoseconds) with the nanoseconds counting forward, so 0.3 s before the
/// epoch is (-1, 700000000). fuser 0.18 makes `UNIX_EPOCH - Duration::new(1, 700000000)` of that, which
/// is 1.7 s before the epoch. The pair is still in there: the distance to the epoch holds the seconds
/// negated and the nanoseconds as they were sent.
pub fn set_time(time: Option<fuser::TimeOrNow>) -> SetTime {
    match time {
        None => SetTime::Keep,
        Some(fuser::TimeOrNow::Now) => SetTime::Now,
        Some(fuser::TimeOrNow::SpecificTime(t)) => match t.duration_since(UNIX_EPOCH) {
            Ok(after) => {
                SetTime::At(i64::try_from(after.as_secs()).unwrap_or(i64::MAX), after.subsec_nanos())
            }
            Err(before) => {
                let before = before.duration();
                let secs = 0_i64.checked_sub_unsigned(before.as_secs()).unwrap_or(i64::MIN);
                SetTime::At(secs, before.subsec_nanos())
            }
        },
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
pub fn rename_flags(flags: fuser::RenameFlags) -> Result<RenameFlags> {
    let known = RenameFlags::NOREPLACE | RenameFlags::EXCHANGE | RenameFlags::WHITEOUT;
    let flags = RenameFlags::from_bits_retain(flags.bits());
    if known.contains(flags) { Ok(flags) } else { Err(Errno::INVAL) }
}

/// Flags of setxattr(2).
///
/// # Errors
/// EINVAL for a flag that we don't know.
pub fn xattr_flags(flags: i32) -> Result<XattrFlags> {
    let known = XattrFlags::CREATE | XattrFlags::REPLACE;
    let flags = XattrFlags::from_bits_retain(flags.cast_unsigned());
    if known.contains(flags) { Ok(flags) } else { Err(Errno::INVAL) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What fuser 0.18 makes of a time in a request.
    fn as_fuser_reads(secs: i64, nanos: u32) -> SystemTime {
        if secs >= 0 {
            UNIX_EPOCH + Duration::new(secs.unsigned_abs(), nanos)
        } else {
            UNIX_EPOCH - Duration::new(secs.unsigned_abs(), nanos)
        }
    }

    #[test]
    fn set_times_survive_fuser() {
        for (secs, nanos) in [
            (0, 0),
            (0, 1),
            (5, 999_999_999),
            (-1, 0),
            (-1, 700_000_000),
            (-2, 1),
            (i64::MIN + 1, 5),
            (i64::MAX, 7),
        ] {
            let got = set_time(Some(fuser::TimeOrNow::SpecificTime(as_fuser_reads(secs, nanos))));
            assert_eq!(got, SetTime::At(secs, nanos));
        }
        assert_eq!(set_time(None), SetTime::Keep);
        assert_eq!(set_time(Some(fuser::TimeOrNow::Now)), SetTime::Now);
    }

    #[test]
    fn times_before_the_epoch() {
        assert_eq!(to_system_time((-1, 700_000_000)), UNIX_EPOCH - Duration::from_millis(300));
        assert_eq!(to_system_time((-2, 0)), UNIX_EPOCH - Duration::from_secs(2));
        assert_eq!(to_system_time((2, 5)), UNIX_EPOCH + Duration::new(2, 5));
        // Neither end of the range panics.
        to_system_time((i64::MIN, 999_999_999));
        to_system_time((i64::MAX, 999_999_999));
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
        assert_eq!(rename_flags(fuser::RenameFlags::from_bits_retain(0x10)), Err(Errno::INVAL));
        assert_eq!(rename_flags(fuser::RenameFlags::empty()), Ok(RenameFlags::empty()));
        assert_eq!(xattr_flags(8), Err(Errno::INVAL));
        assert_eq!(xattr_flags(libc::XATTR_CREATE), Ok(XattrFlags::CREATE));
    }
}
