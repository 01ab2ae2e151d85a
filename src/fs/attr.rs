//! getattr, setattr, readlink, statfs.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use rustix::fs::{FileType, OFlags, StatVfs};

use super::up::Need;
use super::{Attr, Caller, SetAttr, SetTime, UnionFs};
use crate::error::{Errno, Result};
use crate::node::Node;
use crate::sys::file;

impl UnionFs {
    /// Attributes of an inode; by an open file where one is given.
    ///
    /// # Errors
    /// ESTALE for an unknown inode.
    pub fn getattr(&self, ino: u64, fh: Option<u64>) -> Result<Attr> {
        let node = self.node(ino)?;
        let open = fh.and_then(|fh| self.files.get(fh).ok()).filter(|open| open.node.ino == ino);
        let st = match open.filter(|open| open.is_reached() && node.with(|s| s.data.is_none())) {
            Some(open) => node.in_union(file::stat_fd(&*self.real(&open)?.fd)?),
            None => node.stat(self.index())?,
        };
        self.attr(&node, &st)
    }

    /// Sets attributes; gives all as they are then.
    ///
    /// # Errors
    /// Those of chmod(2), chown(2), truncate(2) and utimensat(2), of copy-up, and EROFS.
    pub fn setattr(&self, caller: &Caller, ino: u64, set: &SetAttr, fh: Option<u64>) -> Result<Attr> {
        let node = self.node(ino)?;
        if set.size.is_some() {
            Self::check_writable(&node)?;
        }
        let made = self.up(&node, set.size.map_or(Need::Attributes, |size| Need::Data(Some(size))))?;
        let _still = node.hold_still();
        // Before anything is changed: who gets an error has changed nothing.
        let (fd, has_size) = match made {
            Some(fd) => (Arc::new(fd), true),
            None => (node.refer(self.index())?, false),
        };
        match set.size {
            Some(_) if has_size => drop(self.clear_setid(caller, &node, &*fd, || caller.keeps_setid())?),
            Some(size) => self.truncate(caller, &node, size, fh)?,
            None => {}
        }
        self.set_owner(caller, &node, &fd, set)?;
        if (set.atime, set.mtime) != (SetTime::Keep, SetTime::Keep) {
            file::utimes_fd(&*fd, set.atime, set.mtime)?;
        }
        let st = node.in_union(file::stat_fd(&*fd)?);
        self.attr(&node, &st)
    }

    fn truncate(&self, caller: &Caller, node: &Arc<Node>, size: u64, fh: Option<u64>) -> Result<()> {
        if node.kind != FileType::RegularFile {
            return Err(if node.is_dir() { Errno::ISDIR } else { Errno::INVAL });
        }
        let by_handle = fh.and_then(|fh| self.files.get(fh).ok()).filter(|open| open.writes());
        let fd = match by_handle {
            Some(open) => self.real(&open)?.fd,
            None => Arc::new(node.open(self.index(), OFlags::WRONLY, false)?.0),
        };
        self.change_blocks(node, &*fd, 0, || rustix::fs::ftruncate(&*fd, size))?;
        self.clear_setid(caller, node, &*fd, || caller.keeps_setid())?;
        Ok(())
    }

    /// The target of a symlink.
    ///
    /// # Errors
    /// EINVAL for anything else.
    pub fn readlink(&self, ino: u64) -> Result<OsString> {
        let node = self.node(ino)?;
        if node.kind != FileType::Symlink {
            return Err(Errno::INVAL);
        }
        file::readlink(&*node.pin(self.index())?, OsStr::new(""))
    }

    /// Numbers of the filesystem that takes writes: the upper's; of a read-only stack, the topmost
    /// layer's.
    ///
    /// # Errors
    /// Those of statfs(2).
    pub fn statfs(&self) -> Result<StatVfs> {
        let top = self.stack.roots().next().ok_or(Errno::IO)?;
        file::statfs(top.fd()?).map(|st| self.limited(st))
    }
}
