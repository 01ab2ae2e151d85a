//! The device that a FUSE daemon talks to the kernel through (fuse(4)).
#![allow(unsafe_code)] // ioctl(2) has no safe wrapper.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::error::Result;

/// Where the device is.
pub const DEVICE: &str = "/dev/fuse";

/// `FUSE_DEV_IOC_CLONE`: makes a freshly opened device one more way to a connection.
pub(super) const CLONE: libc::c_ulong = 0x8004_e500;
/// `FUSE_DEV_IOC_BACKING_OPEN`
pub(super) const BACKING_OPEN: libc::c_ulong = 0x4010_e501;
/// `FUSE_DEV_IOC_BACKING_CLOSE`
pub(super) const BACKING_CLOSE: libc::c_ulong = 0x4004_e502;

/// `struct fuse_backing_map`
#[repr(C)]
struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

/// A way to the kernel's end of one FUSE connection.
#[derive(Debug)]
pub struct Device(OwnedFd);

impl Device {
    /// A connection that is mounted, by its descriptor.
    pub fn new(fd: OwnedFd) -> Self {
        Self(fd)
    }

    /// The device, opened but not connected.
    ///
    /// # Errors
    /// Those of open(2).
    pub fn open() -> Result<OwnedFd> {
        rustix::fs::open(DEVICE, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
    }

    /// One more way to the same connection: readers of different ways wait for each other less.
    ///
    /// # Errors
    /// Those of open(2) and ioctl(2).
    pub fn another(&self) -> Result<Self> {
        let new = Self::open()?;
        let connected: u32 = self.0.as_raw_fd().cast_unsigned();
        // SAFETY: FUSE_DEV_IOC_CLONE reads one u32, a descriptor of the connection.
        if unsafe { libc::ioctl(new.as_raw_fd(), CLONE, &raw const connected) } != 0 {
            return Err(super::last_errno());
        }
        Ok(Self(new))
    }

    /// Blocks until there is a request and reads it. `buffer` must hold the largest one.
    ///
    /// # Errors
    /// ENODEV after the unmount; EINTR; ENOENT when the request was taken back.
    pub fn read(&self, buffer: &mut [u8]) -> Result<usize> {
        rustix::io::read(&self.0, buffer)
    }

    /// Writes one answer or notification: its header and what follows.
    ///
    /// # Errors
    /// ENOENT when nobody waits for the answer any more; others when the kernel refuses it.
    pub fn write(&self, header: &[u8], body: &[u8]) -> Result<()> {
        if body.is_empty() {
            return rustix::io::write(&self.0, header).map(drop);
        }
        rustix::io::writev(&self.0, &[IoSlice::new(header), IoSlice::new(body)]).map(drop)
    }
}

impl AsFd for Device {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A file that the kernel does the I/O on by itself, for files of the mount that are opened with it.
#[derive(Debug)]
pub struct BackingFile {
    id: i32,
    device: Arc<Device>,
}

impl BackingFile {
    /// Tells the kernel of an open file. It keeps the file, and the credentials of this thread, until the value
    /// is dropped and all files of the mount that were opened with it are closed.
    ///
    /// # Errors
    /// EPERM without CAP_SYS_ADMIN; ELOOP when the file lies on too deep a stack; EINVAL without passthrough.
    pub fn open(device: &Arc<Device>, file: BorrowedFd<'_>) -> Result<Self> {
        let map = BackingMap { fd: file.as_raw_fd(), flags: 0, padding: 0 };
        // SAFETY: FUSE_DEV_IOC_BACKING_OPEN reads one struct fuse_backing_map.
        let id = unsafe { libc::ioctl(device.0.as_raw_fd(), BACKING_OPEN, &raw const map) };
        if id < 0 {
            return Err(super::last_errno());
        }
        Ok(Self { id, device: device.clone() })
    }

    /// A file that another process has told the same connection of, by its number.
    pub fn adopt(device: &Arc<Device>, id: i32) -> Self {
        Self { id, device: device.clone() }
    }

    /// What an answer to an open names it by.
    pub fn id(&self) -> i32 {
        self.id
    }
}

impl Drop for BackingFile {
    fn drop(&mut self) {
        let id = self.id.cast_unsigned();
        // SAFETY: FUSE_DEV_IOC_BACKING_CLOSE reads one u32, the id.
        unsafe { libc::ioctl(self.device.0.as_raw_fd(), BACKING_CLOSE, &raw const id) };
    }
}
