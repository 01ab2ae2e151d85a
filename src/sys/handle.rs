//! File handles (name_to_handle_at(2)) and filesystem UUIDs: how an origin is named on disk. No mount opens one: what
//! a layer says is a name to compare with and a number to show there, and leads to no object.
#![allow(unsafe_code)] // name_to_handle_at and the UUID ioctl have no safe wrapper.

use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use crate::error::{Errno, Result};
use crate::format::origin::{FileHandle, Volume};

/// The longest handle the kernel makes (`MAX_HANDLE_SZ` in fcntl.h).
const MAX_HANDLE: usize = 128;

/// `FS_IOC_GETFSUUID`: _IOR(0x15, 0, struct fsuuid2) in linux/fs.h.
pub(super) const GET_UUID: u32 = 0x8011_1500;
/// `BTRFS_IOC_FS_INFO`: _IOR(0x94, 31, struct btrfs_ioctl_fs_info_args) in linux/btrfs.h.
pub(super) const BTRFS_INFO: u32 = 0x8400_941f;

#[repr(C)]
struct Raw {
    bytes: u32,
    kind: i32,
    data: [u8; MAX_HANDLE],
}

/// The handle of the entry `name` in `dir`, or of `dir` itself for an empty name.
///
/// # Errors
/// EOPNOTSUPP where the filesystem has no handles.
pub fn of(dir: impl AsFd, name: &OsStr) -> Result<FileHandle> {
    let mut raw = Raw { bytes: MAX_HANDLE as u32, kind: 0, data: [0; MAX_HANDLE] };
    let name = CString::new(name.as_bytes()).map_err(|_| Errno::INVAL)?;
    let mut mount_id = 0;
    // SAFETY: `raw` has the layout of struct file_handle with room for `bytes` bytes behind it.
    let rc = unsafe {
        libc::name_to_handle_at(
            dir.as_fd().as_raw_fd(),
            name.as_ptr(),
            std::ptr::from_mut(&mut raw).cast(),
            &raw mut mount_id,
            libc::AT_EMPTY_PATH,
        )
    };
    if rc != 0 {
        return Err(super::last_errno());
    }
    let len = (raw.bytes as usize).min(MAX_HANDLE);
    Ok(FileHandle { kind: raw.kind, bytes: raw.data[..len].to_vec() })
}

/// Opens what a handle names on the filesystem of `on` (O_PATH).
///
/// # Errors
/// EPERM without CAP_DAC_READ_SEARCH; ESTALE when the inode is gone.
pub fn open(on: impl AsFd, handle: &FileHandle) -> Result<OwnedFd> {
    if handle.bytes.len() > MAX_HANDLE {
        return Err(Errno::INVAL);
    }
    let mut raw = Raw { bytes: handle.bytes.len() as u32, kind: handle.kind, data: [0; MAX_HANDLE] };
    raw.data[..handle.bytes.len()].copy_from_slice(&handle.bytes);
    // SAFETY: `raw` has the layout of struct file_handle, with `bytes` valid bytes behind it.
    let fd = unsafe {
        libc::open_by_handle_at(
            on.as_fd().as_raw_fd(),
            std::ptr::from_mut(&mut raw).cast(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(super::last_errno());
    }
    // SAFETY: the kernel just gave us this descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// What tells the filesystem of `fd` from others in origins, if it has a UUID.
pub fn volume(fd: impl AsFd) -> Option<Volume> {
    let btrfs = super::file::fs_type(&fd).is_ok_and(|kind| kind == libc::BTRFS_SUPER_MAGIC);
    let uuid = match fs_uuid(&fd) {
        None if btrfs => btrfs_uuid(&fd),
        other => other,
    }?;
    Some(Volume { uuid, subvolume: of(&fd, OsStr::new("")).ok().and_then(|handle| handle.subvolume()) })
}

/// The UUID of the filesystem that `fd` lies on (FS_IOC_GETFSUUID, Linux 6.9), if it tells one.
fn fs_uuid(fd: impl AsFd) -> Option<[u8; 16]> {
    #[repr(C)]
    struct FsUuid2 {
        len: u8,
        uuid: [u8; 16],
    }
    let mut out = FsUuid2 { len: 0, uuid: [0; 16] };
    // SAFETY: the ioctl writes one struct fsuuid2, which `out` is.
    let rc = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), GET_UUID as libc::Ioctl, &raw mut out) };
    (rc == 0 && out.len == 16).then_some(out.uuid)
}

/// The UUID of a Btrfs, which does not tell it the way others do.
fn btrfs_uuid(fd: impl AsFd) -> Option<[u8; 16]> {
    #[repr(C)]
    struct Info {
        max_id: u64,
        devices: u64,
        fsid: [u8; 16],
        more: [u64; 124],
    }
    let mut out = Info { max_id: 0, devices: 0, fsid: [0; 16], more: [0; 124] };
    // SAFETY: the ioctl reads and writes one struct btrfs_ioctl_fs_info_args, of 1024 bytes as `out` is.
    let rc = unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), BTRFS_INFO as libc::Ioctl, &raw mut out) };
    (rc == 0).then_some(out.fsid)
}
