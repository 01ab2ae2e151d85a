//! Files and directories by descriptor and single name.
#![allow(unsafe_code)] // fchmodat2(2) has no safe wrapper.

use std::ffi::{OsStr, OsString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, RenameFlags, Timestamps};

use crate::error::{Errno, Result};

/// What `stat(2)` tells, in plain numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// Device of the filesystem.
    pub dev: u64,
    /// Inode number on that filesystem.
    pub ino: u64,
    /// Type and permission bits.
    pub mode: u32,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device that a device node stands for.
    pub rdev: u64,
    /// Size in bytes.
    pub size: u64,
    /// Allocated 512-byte blocks.
    pub blocks: u64,
    /// Preferred I/O size.
    pub blksize: u32,
    /// Last access: seconds and nanoseconds.
    pub atime: (i64, u32),
    /// Last change of the content.
    pub mtime: (i64, u32),
    /// Last change of the inode.
    pub ctime: (i64, u32),
}

impl Stat {
    /// The file type.
    pub fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// Whether this is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind() == FileType::Directory
    }

    /// Whether a write by someone without CAP_FSETID may clear mode bits: which ones is for
    /// [`clear_setid`] to find out.
    pub fn has_setid(&self) -> bool {
        self.mode & 0o6000 != 0
    }

    /// Whether this is the whiteout of overlayfs.rst: a character device with number 0:0.
    pub fn is_whiteout_device(&self) -> bool {
        self.kind() == FileType::CharacterDevice && self.rdev == 0
    }
}

fn convert(st: &rustix::fs::Stat) -> Stat {
    Stat {
        dev: st.st_dev,
        ino: st.st_ino,
        mode: st.st_mode,
        nlink: u32::try_from(st.st_nlink).unwrap_or(u32::MAX),
        uid: st.st_uid,
        gid: st.st_gid,
        rdev: st.st_rdev,
        size: u64::try_from(st.st_size).unwrap_or(0),
        blocks: u64::try_from(st.st_blocks).unwrap_or(0),
        blksize: u32::try_from(st.st_blksize).unwrap_or(4096),
        atime: (st.st_atime, st.st_atime_nsec as u32),
        mtime: (st.st_mtime, st.st_mtime_nsec as u32),
        ctime: (st.st_ctime, st.st_ctime_nsec as u32),
    }
}

/// `fstatat(2)` without following a symlink.
pub fn stat_at(dir: impl AsFd, name: &OsStr) -> Result<Stat> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map(|st| convert(&st))
}

/// `fstat(2)`; works on O_PATH descriptors, of symlinks too.
pub fn stat_fd(fd: impl AsFd) -> Result<Stat> {
    rustix::fs::fstat(fd).map(|st| convert(&st))
}

/// Retries an open without O_NOATIME where the caller is not the owner (open(2): EPERM).
fn open_noatime(dir: BorrowedFd<'_>, name: &OsStr, flags: OFlags) -> Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    match rustix::fs::openat(dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::openat(dir, name, flags, Mode::empty()),
        other => other,
    }
}

/// Opens a directory for lookups, xattrs and listing; leaves its atime alone where permitted.
pub fn open_dir(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd> {
    open_noatime(dir.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens a regular file. Never blocks on a FIFO and refuses anything but a regular file: the entry
/// may have been replaced since it was looked at.
///
/// `flags`: access mode and status flags; O_NOATIME is added when `noatime`.
pub fn open_regular(dir: impl AsFd, name: &OsStr, flags: OFlags, noatime: bool) -> Result<(OwnedFd, Stat)> {
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = if noatime {
        open_noatime(dir.as_fd(), name, flags)?
    } else {
        rustix::fs::openat(dir.as_fd(), name, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?
    };
    let st = stat_fd(&fd)?;
    if st.kind() == FileType::RegularFile { Ok((fd, st)) } else { Err(Errno::STALE) }
}

/// Opens again, with other flags, what a descriptor (O_PATH too) refers to.
pub fn reopen(fd: impl AsFd, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::open(super::proc_path(fd.as_fd(), None), flags | OFlags::CLOEXEC, Mode::empty())
}

/// The same without a trace in the access time, where that is permitted.
pub fn reopen_noatime(fd: impl AsFd, flags: OFlags) -> Result<OwnedFd> {
    match reopen(&fd, flags | OFlags::NOATIME) {
        Err(Errno::PERM) => reopen(fd, flags),
        other => other,
    }
}

/// Pins an object of any type without opening it (O_PATH).
pub fn open_path(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd> {
    rustix::fs::openat(dir, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Creates and opens a regular file that must not exist.
pub fn create_regular(dir: impl AsFd, name: &OsStr, flags: OFlags, mode: u32) -> Result<OwnedFd> {
    rustix::fs::openat(
        dir,
        name,
        flags | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::from_raw_mode(mode),
    )
}

/// A nameless regular file in the filesystem of `dir` (O_TMPFILE), open for reading and writing.
pub fn create_nameless(dir: impl AsFd, mode: u32) -> Result<OwnedFd> {
    rustix::fs::openat(dir, ".", OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::from_raw_mode(mode))
}

/// Gives the object behind a descriptor (O_TMPFILE or O_PATH) a name.
pub fn link_fd(fd: impl AsFd, dir: impl AsFd, name: &OsStr) -> Result<()> {
    match rustix::fs::linkat(&fd, "", &dir, name, AtFlags::EMPTY_PATH) {
        // AT_EMPTY_PATH asks for CAP_DAC_READ_SEARCH (open(2), O_TMPFILE); /proc does not.
        Err(Errno::NOENT) => {
            let path = super::proc_path(fd.as_fd(), None);
            rustix::fs::linkat(rustix::fs::CWD, path, dir, name, AtFlags::SYMLINK_FOLLOW)
        }
        other => other,
    }
}

/// `mkdirat(2)`.
pub fn mkdir(dir: impl AsFd, name: &OsStr, mode: u32) -> Result<()> {
    rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode & 0o7777))
}

/// `mknodat(2)`; `mode` with the type bits.
pub fn mknod(dir: impl AsFd, name: &OsStr, mode: u32, rdev: u64) -> Result<()> {
    rustix::fs::mknodat(dir, name, FileType::from_raw_mode(mode), Mode::from_raw_mode(mode & 0o7777), rdev)
}

/// `symlinkat(2)`.
pub fn symlink(target: &OsStr, dir: impl AsFd, name: &OsStr) -> Result<()> {
    rustix::fs::symlinkat(target, dir, name)
}

/// Removes a name of anything but a directory.
pub fn unlink(dir: impl AsFd, name: &OsStr) -> Result<()> {
    rustix::fs::unlinkat(dir, name, AtFlags::empty())
}

/// Removes an empty directory.
pub fn rmdir(dir: impl AsFd, name: &OsStr) -> Result<()> {
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// `renameat2(2)`.
pub fn rename(
    from: impl AsFd,
    name: &OsStr,
    to: impl AsFd,
    new_name: &OsStr,
    flags: RenameFlags,
) -> Result<()> {
    if flags.is_empty() {
        rustix::fs::renameat(from, name, to, new_name)
    } else {
        rustix::fs::renameat_with(from, name, to, new_name, flags)
    }
}

/// The target of the symlink `name`.
pub fn readlink(dir: impl AsFd, name: &OsStr) -> Result<OsString> {
    rustix::fs::readlinkat(dir, name, Vec::new()).map(|s| OsString::from_vec(s.into_bytes()))
}

/// Whether anybody has the regular file behind `fd`, a descriptor for reading, open for writing, or mapped so. Told
/// by a lease for reading, which the kernel gives only when nobody has (fcntl(2), `F_SETLEASE`).
///
/// # Errors
/// Those of fcntl(2): EACCES for the file of another user without CAP_LEASE, EINVAL where there are no leases.
pub fn is_open_for_writing(fd: impl AsFd) -> Result<bool> {
    let fd = fd.as_fd().as_raw_fd();
    // SAFETY: the argument is a plain number.
    let lease = |kind: i32| unsafe { libc::fcntl(fd, libc::F_SETLEASE, kind) == 0 };
    if !lease(libc::F_RDLCK) {
        return match super::last_errno() {
            Errno::AGAIN => Ok(true),
            e => Err(e),
        };
    }
    if lease(libc::F_UNLCK) { Ok(false) } else { Err(super::last_errno()) }
}

/// Sets owner and group of the object behind a descriptor (O_PATH too); `None` leaves it.
pub fn chown_fd(fd: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    let uid = uid.map(rustix::fs::Uid::from_raw);
    let gid = gid.map(rustix::fs::Gid::from_raw);
    rustix::fs::chownat(fd, "", uid, gid, AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW)
}

/// fchmodat2(2), which libc does not name on all architectures; the same on all of them (arch/*/tools/syscall.tbl).
pub(super) const SYS_FCHMODAT2: libc::c_long = 452;

/// Sets the permission bits of the object behind a descriptor (O_PATH too; not of a symlink).
pub fn chmod_fd(fd: impl AsFd, mode: u32) -> Result<()> {
    let (fd, mode) = (fd.as_fd(), mode & 0o7777);
    // fchmodat2(2) of Linux 6.6. SAFETY: a constant string that ends in NUL, and plain numbers.
    let done =
        unsafe { libc::syscall(SYS_FCHMODAT2, fd.as_raw_fd(), c"".as_ptr(), mode, libc::AT_EMPTY_PATH) == 0 };
    match done.then_some(()).ok_or_else(super::last_errno) {
        // Not known to the kernel, or to a seccomp filter.
        Err(Errno::NOSYS | Errno::PERM | Errno::INVAL) => {
            rustix::fs::chmod(super::proc_path(fd, None), Mode::from_raw_mode(mode))
        }
        other => other,
    }
}

/// Clears the set-ID bits that a change of content or owner by a caller clears, as `setattr_should_drop_sgid`
/// in the kernel has it: without group execution, set-group-ID goes only when the caller is not a member of the
/// file's group. `keeps`: the caller has CAP_FSETID. Gives whether there was anything to clear.
///
/// # Errors
/// Those of fstat(2) and chmod(2).
pub fn clear_setid(
    fd: impl AsFd,
    keeps: impl FnOnce() -> bool,
    member: impl FnOnce(u32) -> bool,
) -> Result<bool> {
    let st = stat_fd(&fd)?;
    let clear = setid_to_clear(&st, keeps, member);
    if clear == 0 {
        return Ok(false);
    }
    chmod_fd(fd, st.mode & !clear)?;
    Ok(true)
}

/// The bits that [`clear_setid`] clears of an object with these attributes.
pub fn setid_to_clear(st: &Stat, keeps: impl FnOnce() -> bool, member: impl FnOnce(u32) -> bool) -> u32 {
    if st.kind() != FileType::RegularFile || st.mode & 0o6000 == 0 || keeps() {
        return 0;
    }
    let sgid = st.mode & 0o2000 != 0 && (st.mode & 0o010 != 0 || !member(st.gid));
    (st.mode & 0o4000) | if sgid { 0o2000 } else { 0 }
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// Leave it.
    Keep,
    /// The current time.
    Now,
    /// Seconds and nanoseconds.
    At(i64, u32),
}

impl SetTime {
    fn raw(self) -> rustix::fs::Timespec {
        match self {
            Self::Keep => rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
            Self::Now => rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
            Self::At(s, n) => rustix::fs::Timespec { tv_sec: s, tv_nsec: i64::from(n) },
        }
    }
}

/// Sets the times of the object behind a descriptor (O_PATH too), of symlinks too.
pub fn utimes_fd(fd: impl AsFd, atime: SetTime, mtime: SetTime) -> Result<()> {
    let times = Timestamps { last_access: atime.raw(), last_modification: mtime.raw() };
    match rustix::fs::utimensat(&fd, "", &times, AtFlags::EMPTY_PATH) {
        // Before Linux 5.8. An O_PATH descriptor of a symlink reached through /proc is not followed further
        // (proc(5)).
        Err(Errno::INVAL | Errno::NOENT) => {
            let path = super::proc_path(fd.as_fd(), None);
            rustix::fs::utimensat(rustix::fs::CWD, path, &times, AtFlags::empty())
        }
        other => other,
    }
}

/// Sets the times of an open file, by a shorter way than [`utimes_fd`], which O_PATH descriptors do not have.
pub fn utimes_open(fd: impl AsFd, atime: SetTime, mtime: SetTime) -> Result<()> {
    rustix::fs::futimens(fd, &Timestamps { last_access: atime.raw(), last_modification: mtime.raw() })
}

/// Lists a directory, without `.` and `..`. The descriptor's own offset is not used.
///
/// # Errors
/// Those of open(2) and getdents64(2); what `each` returns ends the listing.
pub fn list(dir: impl AsFd, each: impl FnMut(&OsStr, u64, FileType) -> Result<()>) -> Result<()> {
    list_by(open_dir(dir, OsStr::new("."))?, each)
}

/// The same as a user's reading of the directory, which sets its access time.
///
/// # Errors
/// As for [`list`].
pub fn list_for_user(dir: impl AsFd, each: impl FnMut(&OsStr, u64, FileType) -> Result<()>) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    list_by(rustix::fs::openat(dir, ".", flags, Mode::empty())?, each)
}

fn list_by(fd: OwnedFd, mut each: impl FnMut(&OsStr, u64, FileType) -> Result<()>) -> Result<()> {
    let mut buf = [MaybeUninit::uninit(); 32 * 1024];
    let mut raw = RawDir::new(&fd, &mut buf);
    while let Some(entry) = raw.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            each(OsStr::from_bytes(name), entry.ino(), entry.file_type())?;
        }
    }
    Ok(())
}

/// The type of the filesystem, as the magic numbers of `statfs(2)`.
pub fn fs_type(fd: impl AsFd) -> Result<rustix::fs::FsWord> {
    rustix::fs::fstatfs(fd).map(|st| st.f_type)
}

/// Filesystem numbers as `statfs(2)` gives them.
pub fn statfs(fd: impl AsFd) -> Result<rustix::fs::StatVfs> {
    rustix::fs::fstatvfs(fd)
}
