//! Open files.

use super::{Within, ioctl};
use crate::error::Result;
use crate::fs::Opened;
use crate::fuse::message::{Body, Request};
use crate::fuse::stats::Op;
use crate::fuse::wire::{self, fopen};
use crate::sys::fuse::BackingFile;

impl Within<'_> {
    pub(super) fn open(&self, request: &Request<'_>, body: &mut Body<'_>) -> Result<()> {
        let flags = request.fixed::<wire::OpenIn>()?.flags.cast_signed();
        let ino = request.header.nodeid;
        let opened = self.fs.open_file(&request.caller(0), ino, flags, &mut |fd| self.make_backing(fd))?;
        self.forget_attributes_if(opened.attributes_changed, ino);
        self.readers.opens(request.header.pid);
        self.read_on(request, opened.cold);
        body.put(&opened_out(&opened))
    }

    pub(super) fn create(&self, request: &Request<'_>, body: &mut Body<'_>) -> Result<()> {
        let wire::CreateIn { flags, mode, umask, .. } = request.fixed()?;
        let (parent, name, caller) = (request.header.nodeid, request.name()?, request.caller(umask));
        let make = &mut |fd: std::os::fd::BorrowedFd<'_>| self.make_backing(fd);
        let (attr, opened) =
            self.fs.create(&caller, parent, name, mode & 0o7777, flags.cast_signed(), make)?;
        body.put(&self.ttl.entry(&attr))?;
        body.put(&opened_out(&opened))
    }

    pub(super) fn read(&self, request: &Request<'_>, body: &mut Body<'_>) -> Result<()> {
        let wire::ReadIn { fh, offset, size, .. } = request.fixed()?;
        let room = body.room();
        let size = room.len().min(size as usize);
        let (count, cold) = self.fs.read(fh, offset, &mut room[..size])?;
        body.filled(count);
        self.read_on(request, cold);
        Ok(())
    }

    /// Has the files that come after one read ahead for who waits for each. `cold`: the directory it is in, if it is
    /// waited for.
    fn read_on(&self, request: &Request<'_>, cold: Option<u64>) {
        if let Some(directory) = cold
            && self.readers.waits(request.header.pid, directory)
        {
            self.ahead.read(&self.gate, directory, Some(request.header.nodeid));
        }
    }

    pub(super) fn write(&self, request: &Request<'_>, body: &mut Body<'_>) -> Result<()> {
        let wire::WriteIn { fh, offset, write_flags, .. } = request.fixed()?;
        let killer = (write_flags & wire::WRITE_KILL_SUIDGID != 0).then(|| request.caller(0));
        let (count, mode_changed) = self.fs.write(fh, offset, request.rest(), killer.as_ref())?;
        self.forget_attributes_if(mode_changed, request.header.nodeid);
        body.put(&written(count))
    }

    pub(super) fn fsync(&self, request: &Request<'_>) -> Result<()> {
        let given: wire::FsyncIn = request.fixed()?;
        self.fs.fsync(given.fh, given.fsync_flags & wire::FSYNC_FDATASYNC != 0)
    }

    pub(super) fn fallocate(&self, request: &Request<'_>) -> Result<()> {
        let wire::FallocateIn { fh, offset, length, mode, .. } = request.fixed()?;
        let caller = request.caller(0);
        let mode_changed = self.fs.fallocate(&caller, fh, offset, length, mode.cast_signed())?;
        self.forget_attributes_if(mode_changed, request.header.nodeid);
        Ok(())
    }

    pub(super) fn lseek(&self, request: &Request<'_>, body: &mut Body<'_>) -> Result<()> {
        let wire::LseekIn { fh, offset, whence, .. } = request.fixed()?;
        let at = self.fs.lseek(fh, offset.cast_signed(), whence.cast_signed())?;
        body.put(&wire::LseekOut { offset: at.cast_unsigned() })
    }

    pub(super) fn copy_file_range(&self, op: Op, request: &Request<'_>, body: &mut Body<'_>) -> Result<()> {
        let given: wire::CopyFileRangeIn = request.fixed()?;
        let (count, mode_changed) = self.fs.copy_file_range(
            &request.caller(0),
            given.fh_in,
            given.off_in,
            given.fh_out,
            given.off_out,
            given.len,
        )?;
        self.forget_attributes_if(mode_changed, given.nodeid_out);
        match op {
            Op::CopyFileRange64 => body.put(&wire::CopyFileRangeOut { bytes_copied: count as u64 }),
            _ => body.put(&written(count)),
        }
    }

    pub(super) fn ioctl(&self, request: &Request<'_>, body: &mut Body<'_>) -> Result<()> {
        let given: wire::IoctlIn = request.fixed()?;
        let ino = request.header.nodeid;
        let done = ioctl::run(self.fs, ino, given.cmd, request.rest())?;
        self.forget_attributes_if(done.changed, ino);
        body.put(&wire::IoctlOut::default())?;
        body.bytes(&done.answer)
    }
}

fn written(count: usize) -> wire::WriteOut {
    wire::WriteOut { size: u32::try_from(count).unwrap_or(u32::MAX), padding: 0 }
}

fn opened_out(opened: &Opened) -> wire::OpenOut {
    let backing = opened.backing.as_ref().and_then(|backing| backing.downcast_ref::<BackingFile>());
    let keep = if opened.keep_cache { fopen::KEEP_CACHE } else { 0 };
    match backing {
        Some(file) => wire::OpenOut { fh: opened.fh, open_flags: fopen::PASSTHROUGH, backing_id: file.id() },
        None => wire::OpenOut { fh: opened.fh, open_flags: keep, backing_id: 0 },
    }
}
