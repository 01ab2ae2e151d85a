//! read, write, fsync, fallocate, lseek, copy_file_range on open files.

use rustix::fs::{FallocateFlags, OFlags, SeekFrom};

use super::up::Need;
use super::{Caller, UnionFs};
use crate::error::{Errno, Result};
use crate::layer::stack::Role;
use crate::node::Node;
use crate::node::files::{OpenFile, Real};
use crate::sys::ahead;
use crate::sys::copy::{read_full_at, write_some_at};
use crate::sys::sync;

impl UnionFs {
    /// The real file behind an open one.
    pub(super) fn real(&self, open: &OpenFile) -> Result<Real> {
        open.reach(self.index(), |layer| self.noatime || !self.stack.in_place(layer))
    }

    /// The directory that a file is in, if what is read of it must be waited for.
    pub(super) fn cold(node: &Node, real: &Real) -> Option<u64> {
        let link = if real.size > 0 && ahead::is_cold(&*real.fd) { node.any_link() } else { None };
        link.map(|link| link.parent.ino)
    }

    /// Fills the buffer as far as the file goes; gives the bytes read. When the file is read the first time and has to be
    /// waited for, also the directory that it is in.
    ///
    /// # Errors
    /// Those of pread(2), and of open(2) for a lower file that is read the first time.
    pub fn read(&self, fh: u64, offset: u64, buf: &mut [u8]) -> Result<(usize, Option<u64>)> {
        let open = self.files.get(fh)?;
        let is_first = !open.is_reached();
        let real = self.real(&open)?;
        let cold = if is_first { Self::cold(&open.node, &real) } else { None };
        Ok((read_full_at(&*real.fd, buf, offset, real.size)?, cold))
    }

    /// Writes; gives the bytes written and whether the mode changed.
    ///
    /// `killer`: the writer, if it lacks CAP_FSETID, so that set-ID bits go (FUSE_WRITE_KILL_SUIDGID). When
    /// the mode changed, the kernel's copy of it must be dropped.
    ///
    /// # Errors
    /// Those of pwrite(2), when nothing was written.
    pub fn write(&self, fh: u64, offset: u64, data: &[u8], killer: Option<&Caller>) -> Result<(usize, bool)> {
        let open = self.files.get(fh)?;
        if !open.writes() {
            return Err(Errno::BADF);
        }
        self.reach(&open)?;
        let _content = open.node.hold_still();
        let fd = self.real(&open)?.fd;
        // Without CAP_FSETID of our own the write itself clears them.
        let killer = match killer {
            Some(caller) if self.stack.stat(open.node.layer(), &*fd)?.has_setid() => Some(caller),
            _ => None,
        };
        let written = self.write_blocks(&open.node, &*fd, (offset, data.len()), |fits| {
            write_some_at(&*fd, &data[..fits.min(data.len())], offset)
        })?;
        if let Some(caller) = killer {
            // They may be gone by the write already.
            self.clear_setid(caller, &open.node, &*fd, || false)?;
        }
        Ok((written, killer.is_some()))
    }

    /// Copies a file up that was opened for writing before its layer was frozen.
    fn reach(&self, open: &OpenFile) -> Result<()> {
        if self.stack.in_place(open.node.content_layer()) {
            Ok(())
        } else {
            self.up(&open.node, Need::Data(None)).map(drop)
        }
    }

    /// Brings the file to its device; only what is needed to read its data back when `datasync`.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn fsync(&self, fh: u64, datasync: bool) -> Result<()> {
        let open = self.files.get(fh)?;
        if self.stack.volatile() {
            return Ok(());
        }
        if self.stack.role(open.node.layer()) == Role::Lower {
            // Nothing of it has changed but its names, which are gone by whiteouts somewhere in the upper.
            let lost_names = open.node.with(|s| s.gone > 0 || s.hidden) && self.stack.is_writable();
            return if lost_names { self.sync_upper() } else { Ok(()) };
        }
        let _content = open.node.hold_still();
        if open.node.content_layer() != open.node.layer() {
            // Only its attributes are in the upper; the data is where it always was.
            let (own, _) = open.node.open_here(self.index(), OFlags::RDONLY, true)?;
            return sync::object(own, false);
        }
        let fd = self.real(&open)?.fd;
        sync::object(&*fd, datasync)
    }

    fn sync_upper(&self) -> Result<()> {
        rustix::fs::syncfs(&*self.stack.work(self.stack.upper())?.staging().fd()?)
    }

    /// Reserves, punches or collapses a range; `mode` as in fallocate(2). Gives whether the file's mode
    /// changed, as for [`Self::write`].
    ///
    /// # Errors
    /// Those of fallocate(2).
    pub fn fallocate(&self, caller: &Caller, fh: u64, offset: u64, len: u64, mode: i32) -> Result<bool> {
        let open = self.files.get(fh)?;
        if !open.writes() {
            return Err(Errno::BADF);
        }
        self.reach(&open)?;
        let _content = open.node.hold_still();
        let fd = self.real(&open)?.fd;
        let mode = FallocateFlags::from_bits_retain(mode.cast_unsigned());
        // What is made a hole, or taken out, takes nothing.
        let shrinks = FallocateFlags::PUNCH_HOLE | FallocateFlags::COLLAPSE_RANGE;
        let growth = if mode.intersects(shrinks) { 0 } else { len };
        self.change_blocks(&open.node, &*fd, growth, || rustix::fs::fallocate(&*fd, mode, offset, len))?;
        self.clear_setid(caller, &open.node, &*fd, || caller.keeps_setid())
    }

    /// Finds data or a hole; `whence` SEEK_DATA or SEEK_HOLE of lseek(2).
    ///
    /// # Errors
    /// ENXIO past the end; EINVAL for other `whence`.
    pub fn lseek(&self, fh: u64, offset: i64, whence: i32) -> Result<i64> {
        let open = self.files.get(fh)?;
        let at = u64::try_from(offset).map_err(|_| Errno::NXIO)?;
        let from = match whence {
            libc::SEEK_DATA => SeekFrom::Data(at),
            libc::SEEK_HOLE => SeekFrom::Hole(at),
            _ => return Err(Errno::INVAL),
        };
        let found = rustix::fs::seek(&*self.real(&open)?.fd, from)?;
        i64::try_from(found).map_err(|_| Errno::OVERFLOW)
    }

    /// Copies between two open files within the kernel; gives the bytes copied, and whether the target's
    /// mode changed, as for [`Self::write`].
    ///
    /// # Errors
    /// Those of copy_file_range(2); EXDEV and EOPNOTSUPP let the kernel copy by reads and writes.
    pub fn copy_file_range(
        &self,
        caller: &Caller,
        from: u64,
        from_offset: u64,
        to: u64,
        to_offset: u64,
        len: u64,
    ) -> Result<(usize, bool)> {
        let (from, to) = (self.files.get(from)?, self.files.get(to)?);
        if !to.writes() {
            return Err(Errno::BADF);
        }
        self.reach(&to)?;
        let _content = to.node.hold_still();
        let (source, target) = (self.real(&from)?.fd, self.real(&to)?.fd);
        let (mut from_offset, mut to_offset) = (from_offset, to_offset);
        // The answer has 32 bits.
        let len = usize::try_from(len.min(1 << 30)).unwrap_or(1 << 30);
        let copied = self.write_blocks(&to.node, &*target, (to_offset, len), |len| {
            rustix::fs::copy_file_range(&*source, Some(&mut from_offset), &*target, Some(&mut to_offset), len)
        })?;
        Ok((copied, self.clear_setid(caller, &to.node, &*target, || caller.keeps_setid())?))
    }
}
