//! Whether an origin leads to an object of the layers.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::error::{Errno, Result};
use crate::format::origin::{Origin, Volume};
use crate::layer::dir::Dir;
use crate::layer::stack::Stack;
use crate::sys::file::{self, Stat};
use crate::sys::handle;

/// Filesystems that find every inode by its handle as long as it is there (`statfs(2)`): ext2 to ext4, XFS, Btrfs,
/// tmpfs. Others may know those alone that are in use, as FUSE does.
const RELIABLE: [rustix::fs::FsWord; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994];

/// The filesystems that the layers lie on.
#[derive(Debug)]
pub(super) struct Origins {
    filesystems: Vec<Filesystem>,
}

#[derive(Debug)]
struct Filesystem {
    dev: u64,
    volume: Option<Volume>,
    reliable: bool,
    root: Arc<Dir>,
}

/// What an origin leads to.
pub(super) enum Target {
    /// An object.
    Object(Stat),
    /// An object that has gone.
    Gone,
    /// A filesystem that none of the layers is on.
    Elsewhere,
    /// It takes more rights to tell, or the filesystem cannot.
    Unknown,
}

impl Origins {
    pub(super) fn new(stack: &Stack) -> Result<Self> {
        let mut filesystems: Vec<Filesystem> = Vec::new();
        for root in stack.roots().chain(stack.data_roots()) {
            let dev = root.id().0;
            if !filesystems.iter().any(|f| f.dev == dev) {
                let fd = root.fd()?;
                let volume = handle::volume(&*fd);
                let reliable = RELIABLE.contains(&file::fs_type(&*fd)?);
                filesystems.push(Filesystem { dev, volume, reliable, root: root.clone() });
            }
        }
        Ok(Self { filesystems })
    }

    fn filesystem(&self, origin: &Origin) -> Option<&Filesystem> {
        if origin.uuid == [0; 16] {
            // As a mount takes it: only clear when no other filesystem is in play.
            return self.filesystems.first().filter(|_| self.filesystems.len() == 1);
        }
        // Any of its subvolumes finds what a handle names.
        self.filesystems.iter().find(|f| f.volume.is_some_and(|v| v.uuid == origin.uuid))
    }

    /// Device and inode number of the object, as far as the handle tells them.
    pub(super) fn id(&self, origin: &Origin) -> Option<(u64, u64)> {
        let holds = |f: &&Filesystem| f.volume.is_some_and(|volume| volume.holds(origin));
        let unnamed = origin.uuid == [0; 16];
        let filesystem = if unnamed { self.filesystem(origin) } else { self.filesystems.iter().find(holds) };
        Some((filesystem?.dev, origin.inode()?))
    }

    /// Asks the filesystem.
    pub(super) fn target(&self, origin: &Origin) -> Target {
        let Some(filesystem) = self.filesystem(origin) else {
            // Without numbers of their own, which one it is cannot be told.
            let told = origin.uuid != [0; 16] && self.filesystems.iter().all(|f| f.volume.is_some());
            return if told { Target::Elsewhere } else { Target::Unknown };
        };
        let open = || -> Result<OwnedFd> { handle::open(&*filesystem.root.fd()?, &origin.handle) };
        match open().and_then(file::stat_fd) {
            Ok(stat) if stat.nlink > 0 => Target::Object(stat),
            Ok(_) | Err(Errno::STALE) if filesystem.reliable => Target::Gone,
            _ => Target::Unknown,
        }
    }
}
