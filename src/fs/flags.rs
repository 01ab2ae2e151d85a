//! Inode flags: FS_IOC_GETFLAGS, FS_IOC_FSGETXATTR and their counterparts, on files and directories. The
//! kernel has checked the caller's right to change them (CAP_LINUX_IMMUTABLE, ownership).

use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::{FileType, OFlags};

use super::UnionFs;
use super::up::Need;
use crate::error::{Errno, Result};
use crate::node::Node;
use crate::sys::flags::{self, Extended};

impl UnionFs {
    /// The flags of a file or directory.
    ///
    /// # Errors
    /// ENOTTY where the layer's filesystem has none, and for other objects.
    pub fn flags(&self, ino: u64) -> Result<u32> {
        flags::get(self.open_for_flags(&*self.node(ino)?)?)
    }

    /// Sets flags. Only what differs from the flags that are shown counts: the upper's filesystem need not
    /// know the others.
    ///
    /// # Errors
    /// Those of FS_IOC_SETFLAGS and of copy-up.
    pub fn set_flags(&self, ino: u64, wanted: u32) -> Result<()> {
        let node = self.node(ino)?;
        let changed = flags::get(self.open_for_flags(&node)?)? ^ wanted;
        if changed & flags::CASEFOLD != 0 {
            // The union's names would no longer be those of the layer.
            return Err(Errno::OPNOTSUPP);
        }
        if changed == 0 {
            return Ok(());
        }
        self.up(&node, Need::Everything)?;
        let fd = self.open_for_flags(&node)?;
        flags::set(&*fd, flags::get(&*fd)? & !changed | wanted & changed)
    }

    /// The extended flags of a file or directory.
    ///
    /// # Errors
    /// As for [`Self::flags`].
    pub fn extended_flags(&self, ino: u64) -> Result<Extended> {
        flags::get_extended(self.open_for_flags(&*self.node(ino)?)?)
    }

    /// Sets extended flags, as [`Self::set_flags`] does.
    ///
    /// # Errors
    /// Those of FS_IOC_FSSETXATTR and of copy-up.
    pub fn set_extended_flags(&self, ino: u64, wanted: Extended) -> Result<()> {
        let node = self.node(ino)?;
        let shown = flags::get_extended(self.open_for_flags(&node)?)?;
        let wanted = Extended { nextents: shown.nextents, pad: shown.pad, ..wanted };
        if wanted == shown {
            return Ok(());
        }
        self.up(&node, Need::Everything)?;
        let fd = self.open_for_flags(&node)?;
        let mut new = flags::get_extended(&*fd)?;
        let changed = shown.xflags ^ wanted.xflags;
        new.xflags = new.xflags & !changed | wanted.xflags & changed;
        for (new, shown, wanted) in [
            (&mut new.extsize, shown.extsize, wanted.extsize),
            (&mut new.projid, shown.projid, wanted.projid),
            (&mut new.cowextsize, shown.cowextsize, wanted.cowextsize),
        ] {
            if shown != wanted {
                *new = wanted;
            }
        }
        flags::set_extended(&*fd, new)
    }

    /// The real object, where its attributes are.
    fn open_for_flags(&self, node: &Node) -> Result<Arc<OwnedFd>> {
        match node.kind {
            FileType::Directory => node.pin(None),
            FileType::RegularFile => {
                let noatime = !self.stack.in_place(node.layer());
                let (fd, _) = node.open_here(self.index(), OFlags::RDONLY, noatime)?;
                Ok(Arc::new(fd))
            }
            _ => Err(Errno::NOTTY),
        }
    }
}
