//! The copy in the making.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, OFlags, RenameFlags, XattrFlags};

use crate::copy_up::metadata;
use crate::error::{Errno, Result, errno};
use crate::format::names::Mark;
use crate::format::origin::Origin;
use crate::layer::dir::LayerId;
use crate::layer::stack::Stack;
use crate::layer::upper::Writable;
use crate::layer::work::WorkDir;
use crate::sys::copy;
use crate::sys::cred::Caller;
use crate::sys::file::{self, Stat};
use crate::sys::flags;
use crate::sys::sync;
use crate::sys::xattr::{self, Target};

/// A complete copy without a place yet. Dropped unpublished, it is deleted.
#[derive(Debug)]
pub struct Staged<'a> {
    work: &'a WorkDir,
    /// The name in the staging directory; a file may be nameless.
    temp: Option<OsString>,
    /// Refers to the copy; O_PATH unless it is a regular file.
    fd: OwnedFd,
    /// Bytes of data that were copied or shared.
    copied: u64,
}

/// What a copy of a regular file gets of its data.
#[derive(Debug)]
pub enum Content<'a> {
    /// Nothing: not a regular file, or none of its data is needed.
    Empty,
    /// The first bytes of an open file.
    Copy(BorrowedFd<'a>, u64),
    /// Nothing yet: the copy says that its data is still in a lower (metacopy).
    Later,
}

/// Makes a copy of the object behind `from` (O_PATH), of the first layer, whose attributes are `st`, as
/// [`Stack::stat`] gives them, for layer `to`.
///
/// `origin`: recorded in the copy.
///
/// # Errors
/// ENOSPC and the like; EOPNOTSUPP or EPERM when metadata cannot be kept. Nothing is left then.
pub fn stage<'a>(
    stack: &'a Stack,
    (origin_layer, to): (LayerId, LayerId),
    from: BorrowedFd<'_>,
    st: &Stat,
    content: Content<'_>,
    origin: Option<&Origin>,
) -> Result<Staged<'a>> {
    let work = stack.work(to)?;
    let staged = match st.kind() {
        FileType::RegularFile => {
            let mut staged = empty_file(work)?;
            match content {
                Content::Empty => {}
                Content::Copy(source, len) => {
                    staged.copied = copy::copy_data(source, &staged.fd, len.min(st.size), !stack.volatile())?;
                }
                Content::Later => {
                    rustix::fs::ftruncate(&staged.fd, st.size)?;
                    staged.mark(Mark::Metacopy, b"")?;
                }
            }
            staged
        }
        _ => special(work, from, st)?,
    };
    metadata::copy(stack, (origin_layer, to), from, &staged.fd, st)?;
    staged.finish(from, st, origin)?;
    staged.sync_data(stack, st)?;
    Ok(staged)
}

/// Gives a copy that has only attributes (see [`Content::Later`]) its data, and takes the mark away that it
/// lacks it: until then, what the copy contains is not looked at.
///
/// `before`: the copy's attributes. `len`: it is truncated to this size in the same step.
///
/// # Errors
/// As for [`stage`]; the copy is as good as before then.
pub fn complete(
    stack: &Stack,
    layer: LayerId,
    content: Content<'_>,
    copy: &OwnedFd,
    before: &Stat,
    len: Option<u64>,
) -> Result<()> {
    const CAPABILITY: &str = "security.capability";
    let target = Target::Fd(copy.as_fd());
    let mark = Mark::Metacopy.name(stack.work(layer)?.abilities().namespace);
    // Lost by writing.
    let capability = xattr::get_opt(target, OsStr::new(CAPABILITY))?;
    let keep_capability = || match &capability {
        Some(value) => xattr::set(target, OsStr::new(CAPABILITY), value, XattrFlags::empty()),
        None => Ok(()),
    };
    let fill = || {
        match content {
            Content::Copy(source, len) => {
                let copied = copy::copy_data(source, copy, len.min(before.size), !stack.volatile())?;
                if copied > 0 && !stack.volatile() {
                    sync::data_before_name(copy)?;
                }
            }
            // The hole that stands for the data must not be taken for it once the mark is gone.
            Content::Empty | Content::Later => rustix::fs::ftruncate(copy, 0)?,
        }
        match len {
            Some(len) => rustix::fs::ftruncate(copy, len)?,
            None => {
                keep_capability()?;
                metadata::times(copy, before)?;
            }
        }
        xattr::remove(target, mark)
    };
    fill().inspect_err(|_| {
        // The size is an attribute; what else is in the copy is not looked at.
        let restored = rustix::fs::ftruncate(copy, before.size);
        let restored = restored.and_then(|()| keep_capability()).and_then(|()| metadata::times(copy, before));
        if let Err(e) = restored {
            tracing::warn!("the attributes of a file whose data could not be copied up have changed: {e}");
        }
    })
}

fn empty_file(work: &WorkDir) -> Result<Staged<'_>> {
    let staging = work.staging();
    if work.abilities().nameless {
        let fd = file::create_nameless(staging.fd()?, 0o600)?;
        return Ok(Staged { work, temp: None, fd, copied: 0 });
    }
    let temp = work.temp_name();
    let fd = staging.create(&temp, OFlags::RDWR, 0o600, &Caller::daemon())?;
    Ok(Staged { work, temp: Some(temp), fd, copied: 0 })
}

fn special<'a>(work: &'a WorkDir, from: BorrowedFd<'_>, st: &Stat) -> Result<Staged<'a>> {
    let staging = work.staging();
    let temp = work.temp_name();
    let daemon = Caller::daemon();
    match st.kind() {
        FileType::Directory => staging.mkdir(&temp, 0o700, &daemon)?,
        FileType::Symlink => {
            let target = file::readlink(from, OsStr::new(""))?;
            staging.symlink(&temp, &target, &daemon)?;
        }
        kind => staging.mknod(&temp, kind.as_raw_mode() | 0o600, st.rdev, &daemon)?,
    }
    match file::open_path(staging.fd()?, &temp) {
        Ok(fd) => Ok(Staged { work, temp: Some(temp), fd, copied: 0 }),
        Err(e) => {
            work.purge(&temp);
            Err(e)
        }
    }
}

impl Staged<'_> {
    fn finish(&self, from: BorrowedFd<'_>, st: &Stat, origin: Option<&Origin>) -> Result<()> {
        self.flags(from, st)?;
        // The number of what takes no mark is not kept.
        let markable = self.work.abilities().marks(st.kind());
        if let Some(value) = origin.filter(|_| markable).and_then(Origin::encode) {
            self.mark(Mark::Origin, &value)?;
        }
        Ok(())
    }

    fn flags(&self, from: BorrowedFd<'_>, st: &Stat) -> Result<()> {
        let open = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let (kept, dir) = match st.kind() {
            FileType::Directory => (flags::kept(from)?, true),
            FileType::RegularFile => match file::reopen_noatime(from, open) {
                Ok(from) => (flags::kept(from)?, false),
                // Without the right to read it: harmless flags stay behind then.
                Err(Errno::ACCESS | Errno::PERM) => return Ok(()),
                Err(e) => return Err(e),
            },
            _ => return Ok(()),
        };
        match kept {
            0 => Ok(()),
            _ if dir => flags::add(file::reopen(&self.fd, open | OFlags::DIRECTORY)?, kept),
            _ => flags::add(&self.fd, kept),
        }
    }

    /// Data must be on the device before a name shows it: a crash would leave an empty file else.
    fn sync_data(&self, stack: &Stack, st: &Stat) -> Result<()> {
        if st.kind() == FileType::RegularFile && self.copied > 0 && !stack.volatile() {
            sync::data_before_name(&self.fd)?;
        }
        Ok(())
    }

    /// Truncates the copy of a regular file, as truncate(2) does; gives a descriptor for reading and writing.
    pub fn truncated(&self, len: u64) -> Result<OwnedFd> {
        rustix::fs::ftruncate(&self.fd, len)?;
        self.fd.try_clone().map_err(|e| errno(&e))
    }

    /// Sets a private attribute of the copy.
    pub fn mark(&self, mark: Mark, value: &[u8]) -> Result<()> {
        let name = mark.name(self.work.abilities().namespace);
        xattr::set(Target::Fd(self.fd.as_fd()), name, value, XattrFlags::empty())
    }

    /// Gives the copy one more name, as a hardlink.
    pub fn link(&self, dir: &Writable, name: &OsStr) -> Result<()> {
        dir.link(&self.fd, name)
    }

    /// Publishes the copy under a name that nothing has in `dir`, whose times stay as they are.
    /// Gives the copy's attributes as they were before. Nothing fails once it has the name.
    pub fn publish(mut self, dir: &Writable, name: &OsStr) -> Result<Stat> {
        let fd = dir.fd()?;
        let (before, own) = (file::stat_fd(&fd)?, file::stat_fd(&self.fd)?);
        match self.temp.take() {
            None => dir.link(&self.fd, name)?,
            Some(temp) => {
                if let Err(e) = self.work.staging().rename(&temp, dir, name, RenameFlags::NOREPLACE) {
                    self.temp = Some(temp);
                    return Err(e);
                }
            }
        }
        // Failing to restore them would undo nothing.
        let _ = metadata::times(fd, &before);
        Ok(own)
    }

    /// Publishes the copy in place of whatever has the name.
    pub fn replace(mut self, dir: &Writable, name: &OsStr) -> Result<Stat> {
        let own = file::stat_fd(&self.fd)?;
        let temp = match self.temp.take() {
            Some(temp) => temp,
            None => {
                let temp = self.work.temp_name();
                self.work.staging().link(&self.fd, &temp)?;
                temp
            }
        };
        if let Err(e) = self.work.staging().rename(&temp, dir, name, RenameFlags::empty()) {
            self.temp = Some(temp);
            return Err(e);
        }
        Ok(own)
    }

    /// Publishes the copy in exchange for whatever has the name, which is deleted with this object, or comes back by
    /// a second call.
    pub fn swap(&self, dir: &Writable, name: &OsStr) -> Result<()> {
        let Some(temp) = &self.temp else { return Err(Errno::INVAL) };
        self.work.staging().rename(temp, dir, name, RenameFlags::EXCHANGE)
    }

    /// The copy, for an object that has no name any more: the descriptor is all that refers to it.
    pub fn keep_nameless(mut self) -> Result<OwnedFd> {
        if let Some(temp) = self.temp.take() {
            self.work.purge(&temp);
        }
        self.fd.try_clone().map_err(|e| errno(&e))
    }
}

impl Drop for Staged<'_> {
    fn drop(&mut self) {
        if let Some(temp) = self.temp.take() {
            self.work.purge(&temp);
        }
    }
}
