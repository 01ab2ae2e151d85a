//! The mutation surface: everything that changes a layer goes through a [`Writable`], and only the
//! upper, the init layer and the work directory give one out.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{OFlags, RenameFlags, XattrFlags};

use crate::error::{Errno, Result};
use crate::format::names::{Mark, Namespace};
use crate::layer::dir::Dir;
use crate::sys::cred::{self, Caller};
use crate::sys::file;
use crate::sys::sync;
use crate::sys::xattr::{self, Target};

/// A directory that may be changed.
#[derive(Debug, Clone)]
pub struct Writable(Arc<Dir>);

impl Writable {
    /// Only for directories of writable layers: [`super::stack::Stack::writable`] checks.
    pub(super) fn new(dir: Arc<Dir>) -> Self {
        Self(dir)
    }

    /// The directory, for reading.
    pub fn dir(&self) -> &Arc<Dir> {
        &self.0
    }

    /// A descriptor of the directory.
    pub fn fd(&self) -> Result<Arc<OwnedFd>> {
        self.0.fd()
    }

    /// The directory `name` in it, which may be changed as well.
    ///
    /// # Errors
    /// ENOENT when there is none, ENOTDIR for anything else.
    pub fn below(&self, name: &OsStr) -> Result<Self> {
        let st = file::stat_at(self.fd()?, name)?;
        if st.is_dir() { Ok(Self(Dir::below(&self.0, name, &st))) } else { Err(Errno::NOTDIR) }
    }

    /// Creates and opens a regular file as `caller`.
    pub fn create(&self, name: &OsStr, flags: OFlags, mode: u32, caller: &Caller) -> Result<OwnedFd> {
        let fd = self.fd()?;
        cred::as_caller(caller, || file::create_regular(&fd, name, flags, mode))
    }

    /// Makes a directory as `caller`.
    pub fn mkdir(&self, name: &OsStr, mode: u32, caller: &Caller) -> Result<()> {
        let fd = self.fd()?;
        cred::as_caller(caller, || file::mkdir(&fd, name, mode))
    }

    /// Makes a node of any type as `caller`.
    pub fn mknod(&self, name: &OsStr, mode: u32, rdev: u64, caller: &Caller) -> Result<()> {
        let fd = self.fd()?;
        cred::as_caller(caller, || file::mknod(&fd, name, mode, rdev))
    }

    /// Makes a symlink as `caller`.
    pub fn symlink(&self, name: &OsStr, target: &OsStr, caller: &Caller) -> Result<()> {
        let fd = self.fd()?;
        cred::as_caller(caller, || file::symlink(target, &fd, name))
    }

    /// Removes a name of anything but a directory.
    pub fn unlink(&self, name: &OsStr) -> Result<()> {
        file::unlink(self.fd()?, name)
    }

    /// Removes an empty directory.
    pub fn rmdir(&self, name: &OsStr) -> Result<()> {
        file::rmdir(self.fd()?, name)
    }

    /// Gives the object behind `object` a name here.
    pub fn link(&self, object: impl AsFd, name: &OsStr) -> Result<()> {
        file::link_fd(object, self.fd()?, name)
    }

    /// Renames into another writable directory.
    pub fn rename(&self, name: &OsStr, to: &Self, new_name: &OsStr, flags: RenameFlags) -> Result<()> {
        file::rename(self.fd()?, name, to.fd()?, new_name, flags)
    }

    /// Renames the directory `moved`, which lies here under `name`, and records its new place.
    pub fn rename_dir(
        &self,
        name: &OsStr,
        moved: &Self,
        to: &Self,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> Result<()> {
        let (from_fd, to_fd) = (self.fd()?, to.fd()?);
        moved.0.relocate(&to.0, new_name, || file::rename(from_fd, name, to_fd, new_name, flags))
    }

    /// Exchanges directory `ours`, which lies here, with directory `theirs` in `to`.
    pub fn exchange_dirs(
        &self,
        name: &OsStr,
        ours: &Self,
        to: &Self,
        other: &OsStr,
        theirs: &Self,
    ) -> Result<()> {
        theirs.0.relocate(&self.0, name, || self.rename_dir(name, ours, to, other, RenameFlags::EXCHANGE))
    }

    /// Records that whiteouts in xattr form are to be expected here.
    pub(super) fn expect_xattr_whiteouts(&self) {
        self.0.expect_xattr_whiteouts();
    }

    /// Sets a private attribute of the entry `name`.
    pub fn set_mark(&self, name: &OsStr, mark: Mark, ns: Namespace, value: &[u8]) -> Result<()> {
        let fd = self.fd()?;
        xattr::set(Target::At(fd.as_fd(), name), mark.name(ns), value, XattrFlags::empty())
    }

    /// Sets a private attribute of the directory itself.
    pub fn set_own_mark(&self, mark: Mark, ns: Namespace, value: &[u8]) -> Result<()> {
        let fd = self.fd()?;
        xattr::set(Target::Fd(fd.as_fd()), mark.name(ns), value, XattrFlags::empty())
    }

    /// Removes an extended attribute of the entry `name`, or of the directory itself for `None`; that there is none
    /// is no error.
    pub fn remove_attribute(&self, name: Option<&OsStr>, attribute: &OsStr) -> Result<()> {
        let fd = self.fd()?;
        let target = match name {
            Some(name) => Target::At(fd.as_fd(), name),
            None => Target::Fd(fd.as_fd()),
        };
        match xattr::remove(target, attribute) {
            Err(Errno::NODATA) => Ok(()),
            other => other,
        }
    }

    /// Sets the access and modification times of the directory itself to those of `st`.
    pub fn set_own_times(&self, st: &file::Stat) -> Result<()> {
        let time = |(seconds, nanoseconds)| file::SetTime::At(seconds, nanoseconds);
        file::utimes_fd(self.fd()?, time(st.atime), time(st.mtime))
    }

    /// Flushes the directory to its device.
    pub fn sync(&self) -> Result<()> {
        sync::object(self.fd()?, false)
    }
}
