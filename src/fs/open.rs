//! open, create, release.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{FileType, OFlags};

use super::up::Need;
use super::{Attr, Caller, MakeBacking, Opened, UnionFs};
use crate::error::{Errno, Result};
use crate::layer::dir::LayerId;
use crate::layer::stack::Role;
use crate::layer::upper::Writable;
use crate::node::Node;
use crate::node::files::{OpenFile, Real};
use crate::sys::file::{self, Stat};

/// The flags to open the real file with. The kernel appends and does O_DIRECT by itself, and it may read
/// pages by a handle for writing.
pub(super) fn real_flags(flags: OFlags, sync: bool) -> OFlags {
    let writes = flags.intersects(OFlags::WRONLY | OFlags::RDWR | OFlags::TRUNC);
    let access = if writes { OFlags::RDWR } else { OFlags::RDONLY };
    let always = if sync && writes { OFlags::DSYNC } else { OFlags::empty() };
    access | always | (flags & (OFlags::SYNC | OFlags::DSYNC))
}

impl UnionFs {
    /// Opens a regular file. `flags` as in open(2): access mode, O_TRUNC, O_SYNC and the like.
    ///
    /// # Errors
    /// Those of open(2) and of copy-up.
    pub fn open_file(&self, caller: &Caller, ino: u64, flags: i32, make: MakeBacking<'_>) -> Result<Opened> {
        let node = self.node(ino)?;
        let flags = OFlags::from_bits_retain(flags.cast_unsigned());
        if node.kind != FileType::RegularFile {
            return Err(if node.is_dir() { Errno::ISDIR } else { Errno::NXIO });
        }
        let truncate = flags.contains(OFlags::TRUNC);
        let real = real_flags(flags, self.sync);
        let made = if real.contains(OFlags::RDWR) {
            Self::check_writable(&node)?;
            self.up(&node, Need::Data(truncate.then_some(0)))?
        } else {
            None
        };
        if self.opens_later && real == OFlags::RDONLY && self.stack.role(node.content_layer()) == Role::Lower
        {
            return Ok(self.open_later(node, real));
        }
        let _still = node.hold_still().filter(|_| truncate);
        // Taken before the file is opened: when it is copied up or its mode changed meanwhile, that is found out.
        let layer = node.content_layer();
        let chmods = self.chmods.load(Ordering::Acquire);
        let noatime = self.noatime || !self.stack.in_place(layer);
        let is_truncated = made.is_some();
        let opened = match made.filter(|_| real == OFlags::RDWR) {
            Some(fd) => file::stat_fd(&fd).map(|st| (fd, st)),
            None => node.open(self.index(), real, noatime),
        };
        let (real, (fd, st)) = match opened {
            // The real file may be append-only. Where to write is the kernel's to say otherwise.
            Err(Errno::PERM) if flags.contains(OFlags::APPEND) => {
                (real | OFlags::APPEND, node.open(self.index(), real | OFlags::APPEND, noatime)?)
            }
            other => (real, other?),
        };
        if truncate && !is_truncated {
            // An empty file, too: open(2) with O_TRUNC sets its times.
            self.change_blocks(&node, &fd, 0, || rustix::fs::ftruncate(&fd, 0))?;
        }
        let mode_changed = truncate && self.clear_setid(caller, &node, &fd, || caller.keeps_setid())?;
        let mut opened = self.opened(&node, (flags, real), (layer, fd), (st, chmods), make)?;
        opened.attributes_changed |= mode_changed;
        Ok(opened)
    }

    /// Opens a lower file to be read in a writable mount, without the real one: that is for the first who reads what the
    /// kernel does not have in memory. Whether the caller may read it is the kernel's to say, and we may.
    fn open_later(&self, node: Arc<Node>, flags: OFlags) -> Opened {
        // It is not passed through: see `opened`.
        let (_, keep_cache) = node.io().open(false, false, || None);
        let fh = self.files.add(OpenFile::new(node, flags, None, false));
        Opened { fh, backing: None, keep_cache, attributes_changed: false, cold: None }
    }

    /// Refuses to change the data of a file that handles from before its layer was frozen still read by the kernel
    /// alone: it has one real file for all handles of an inode.
    pub(super) fn check_writable(node: &Node) -> Result<()> {
        if node.kind == FileType::RegularFile && node.io().is_frozen() { Err(Errno::TXTBSY) } else { Ok(()) }
    }

    /// Makes a regular file and opens it. `mode`: permission bits. Counts one lookup.
    ///
    /// # Errors
    /// Those of open(2); EEXIST when the name is there.
    pub fn create(
        &self,
        caller: &Caller,
        parent: u64,
        name: &OsStr,
        mode: u32,
        flags: i32,
        make: MakeBacking<'_>,
    ) -> Result<(Attr, Opened)> {
        let parent = self.node(parent)?;
        let flags = OFlags::from_bits_retain(flags.cast_unsigned());
        let real = real_flags(flags, self.sync);
        let chmods = self.chmods.load(Ordering::Acquire);
        let create = |dir: &Writable, name: &OsStr| {
            let (mode, maker) = self.making(dir, caller, mode & 0o7777);
            dir.create(name, real, mode, &maker)
        };
        let wanted = libc::S_IFREG | (mode & 0o7777);
        let (node, st, fd) =
            self.make(caller, &parent, name, wanted, create, |fd, _, _| file::stat_fd(fd))?;
        let layer = node.content_layer();
        let opened = self.opened(&node, (flags, real), (layer, fd), (st, chmods), make)?;
        Ok((self.told(&node, &st)?, opened))
    }

    /// Takes in an open file: `flags` are those asked for and those of the real file, which has the attributes
    /// `st`, as of the time when so many modes had been changed.
    fn opened(
        &self,
        node: &Arc<Node>,
        (flags, real): (OFlags, OFlags),
        (layer, fd): (LayerId, OwnedFd),
        (st, chmods): (Stat, u64),
        make: MakeBacking<'_>,
    ) -> Result<Opened> {
        let fd = Arc::new(fd);
        // A handle for writing alone cannot be mapped (mmap(2): EACCES).
        let maps = flags & OFlags::RWMODE == OFlags::RDWR;
        let (backing, keep_cache, attributes_changed) = {
            let mut io = node.io();
            // Writes to a file with set-ID bits are ours to see: they clear the bits.
            // And the kernel would set access times by itself.
            let in_place = self.stack.in_place(layer);
            let is_known =
                self.chmods.load(Ordering::Acquire) == chmods && self.stack.owner_attribute(layer).is_none();
            let now = if is_known { st } else { self.stack.stat(layer, &*fd)? };
            // A lower file may be copied up while it is open, and all handles of an inode must have one backing file.
            // In a mount without writes it stays what it is.
            let stays = in_place || !self.stack.is_writable();
            // What the kernel writes by itself nobody counts.
            let allowed = stays && !self.noatime && !now.has_setid() && self.quota.is_none();
            let (backing, keep_cache) = io.open(allowed, real.contains(OFlags::RDWR), || make(fd.as_fd()));
            let stray = maps && backing.is_some() && io.set_mappable();
            if in_place {
                io.set_real((st.dev, st.ino), &fd);
            }
            (backing, keep_cache, stray)
        };
        let reads = !real.contains(OFlags::RDWR);
        let open = Real { fd, layer, size: st.size };
        let cold = if reads { Self::cold(node, &open) } else { None };
        let open = OpenFile::new(node.clone(), real, Some(open), backing.is_some());
        Ok(Opened { fh: self.files.add(open), backing, keep_cache, attributes_changed, cold })
    }

    /// Lets go of an open file.
    pub fn release(&self, fh: u64) {
        if let Some(open) = self.files.remove(fh) {
            // Let go of when the lock is.
            let unused = open.node.io().close(open.passed);
            drop(unused);
        }
    }
}
