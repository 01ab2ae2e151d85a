//! The requests: convert, call, reply.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, FileHandle, FopenFlags, INodeNo, IoctlFlags, KernelConfig,
    LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll,
    ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use super::reply::{GENERATION, contain, send_statfs, send_xattr};
use super::{Adapter, Op, backing_id, convert, handshake, ioctl, open_flags};
use crate::error::Errno;
use crate::fs::SetAttr;

thread_local! {
    /// Where reads land before they are sent; grows to the largest request of the thread.
    static READ_BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        self.passthrough = handshake::agree(config, self.passthrough, self.acl);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.answer(
            Op::Lookup,
            reply,
            |_| match self.fs.lookup(parent.0, name) {
                Ok(attr) => Ok(Some(attr)),
                Err(Errno::NOENT) => Ok(None),
                Err(err) => Err(err),
            },
            |reply, found| match found {
                Some(attr) => self.ttl.entry(reply, &attr),
                None => self.ttl.missing(reply),
            },
        );
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.stats.count(Op::Forget);
        // There is nobody to tell of a failure.
        let _ = contain(Op::Forget, || {
            self.fs.forget(ino.0, nlookup);
            Ok(())
        });
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, fh: Option<FileHandle>, reply: ReplyAttr) {
        self.answer(
            Op::Getattr,
            reply,
            |_| self.fs.getattr(ino.0, fh.map(u64::from)),
            |r, a| self.ttl.attr(r, &a),
        );
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let set = SetAttr {
            mode: mode.map(|m| m & 0o7777),
            uid,
            gid,
            size,
            atime: convert::set_time(atime),
            mtime: convert::set_time(mtime),
        };
        self.answer(
            Op::Setattr,
            reply,
            |_| self.fs.setattr(&convert::caller(req, 0), ino.0, &set, fh.map(u64::from)),
            |r, a| self.ttl.attr(r, &a),
        );
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        self.answer(
            Op::Readlink,
            reply,
            |_| self.fs.readlink(ino.0),
            |r, target| r.data(target.as_encoded_bytes()),
        );
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let caller = convert::caller(req, umask);
        self.answer(
            Op::Mknod,
            reply,
            |_| self.fs.mknod(&caller, parent.0, name, mode, convert::rdev_from_wire(rdev)),
            |r, a| self.ttl.entry(r, &a),
        );
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let caller = convert::caller(req, umask);
        self.answer(
            Op::Mkdir,
            reply,
            |_| self.fs.mkdir(&caller, parent.0, name, mode & 0o7777),
            |r, a| self.ttl.entry(r, &a),
        );
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.answer(Op::Unlink, reply, |_| self.fs.unlink(parent.0, name), |r, ()| r.ok());
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.answer(Op::Rmdir, reply, |_| self.fs.rmdir(parent.0, name), |r, ()| r.ok());
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        self.answer(
            Op::Symlink,
            reply,
            |_| self.fs.symlink(&convert::caller(req, 0), parent.0, name, target.as_os_str()),
            |r, a| self.ttl.entry(r, &a),
        );
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: fuser::RenameFlags,
        reply: ReplyEmpty,
    ) {
        self.answer(
            Op::Rename,
            reply,
            |_| self.fs.rename(parent.0, name, new_parent.0, new_name, convert::rename_flags(flags)?),
            |r, ()| r.ok(),
        );
    }

    fn link(&self, _req: &Request, ino: INodeNo, new_parent: INodeNo, new_name: &OsStr, reply: ReplyEntry) {
        self.answer(
            Op::Link,
            reply,
            |_| self.fs.link(ino.0, new_parent.0, new_name),
            |r, a| self.ttl.entry(r, &a),
        );
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.answer(
            Op::Open,
            reply,
            |reply| {
                let mut make = |fd: BorrowedFd<'_>| self.make_backing(fd, |fd| reply.open_backing(fd));
                self.fs.open_file(&convert::caller(req, 0), ino.0, flags.0, &mut make)
            },
            |reply, opened| {
                self.forget_attributes_if(opened.attributes_changed, ino);
                let fh = FileHandle(opened.fh);
                match backing_id(&opened) {
                    Some(id) => reply.opened_passthrough(fh, FopenFlags::empty(), id),
                    None => reply.opened(fh, open_flags(&opened)),
                }
            },
        );
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        self.answer(
            Op::Create,
            reply,
            |reply| {
                let mut make = |fd: BorrowedFd<'_>| self.make_backing(fd, |fd| reply.open_backing(fd));
                let caller = convert::caller(req, umask);
                self.fs.create(&caller, parent.0, name, mode & 0o7777, flags, &mut make)
            },
            |reply, (attr, opened)| {
                let (fh, ttl, attr) = (FileHandle(opened.fh), self.ttl.of(&attr), convert::attr(&attr));
                match backing_id(&opened) {
                    Some(id) => {
                        reply.created_passthrough(&ttl, &attr, GENERATION, fh, FopenFlags::empty(), id);
                    }
                    None => reply.created(&ttl, &attr, GENERATION, fh, open_flags(&opened)),
                }
            },
        );
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let size = size as usize;
        self.answer(
            Op::Read,
            reply,
            |_| {
                READ_BUFFER.with_borrow_mut(|buf| {
                    if buf.len() < size {
                        buf.resize(size, 0);
                    }
                    self.fs.read(fh.0, offset, &mut buf[..size])
                })
            },
            |reply, n| READ_BUFFER.with_borrow(|buf| reply.data(&buf[..n.min(size)])),
        );
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let kill = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let killer = kill.then(|| convert::caller(req, 0));
        self.answer(
            Op::Write,
            reply,
            |_| self.fs.write(fh.0, offset, data, killer.as_ref()),
            |reply, (n, mode_changed)| {
                self.forget_attributes_if(mode_changed, ino);
                reply.written(u32::try_from(n).unwrap_or(u32::MAX));
            },
        );
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        self.stats.count(Op::Flush);
        // Nothing depends on it: the kernel asks once and never again.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.answer(
            Op::Release,
            reply,
            |_| {
                self.fs.release(fh.0);
                Ok(())
            },
            |r, ()| r.ok(),
        );
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.answer(Op::Fsync, reply, |_| self.fs.fsync(fh.0, datasync), |r, ()| r.ok());
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.answer(
            Op::Opendir,
            reply,
            |_| self.fs.opendir(ino.0),
            |r, fh| r.opened(FileHandle(fh), FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE),
        );
    }

    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, reply: ReplyDirectory) {
        self.answer(
            Op::Readdir,
            reply,
            |reply| {
                self.fs.readdir(fh.0, offset, &mut |entry| {
                    reply.add(INodeNo(entry.ino), entry.next, convert::kind(entry.kind), entry.name)
                })
            },
            |r, ()| r.ok(),
        );
    }

    fn readdirplus(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.answer(
            Op::Readdirplus,
            reply,
            |reply| {
                self.fs.readdirplus(fh.0, offset, &mut |entry, attr| {
                    let (ttl, attr) = match attr {
                        Some(attr) => (self.ttl.of(attr), convert::attr(attr)),
                        None => (
                            Duration::ZERO,
                            convert::attributeless(entry.name, entry.ino, convert::kind(entry.kind)),
                        ),
                    };
                    reply.add(attr.ino, entry.next, entry.name, &ttl, &attr, GENERATION)
                })
            },
            |r, ()| r.ok(),
        );
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.answer(
            Op::Releasedir,
            reply,
            |_| {
                self.fs.releasedir(fh.0);
                Ok(())
            },
            |r, ()| r.ok(),
        );
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.answer(Op::Fsyncdir, reply, |_| self.fs.fsyncdir(fh.0, datasync), |r, ()| r.ok());
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.answer(Op::Statfs, reply, |_| self.fs.statfs(), send_statfs);
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        self.answer(
            Op::Setxattr,
            reply,
            |_| self.fs.setxattr(&convert::caller(req, 0), ino.0, name, value, convert::xattr_flags(flags)?),
            |r, ()| r.ok(),
        );
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.answer(Op::Getxattr, reply, |_| self.fs.getxattr(ino.0, name), |r, v| send_xattr(r, size, &v));
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let caller = convert::caller(req, 0);
        let list = |_: &mut ReplyXattr| self.fs.listxattr(&caller, ino.0);
        self.answer(Op::Listxattr, reply, list, |r, v| send_xattr(r, size, &v));
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.answer(Op::Removexattr, reply, |_| self.fs.removexattr(ino.0, name), |r, ()| r.ok());
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        self.stats.count(Op::Access);
        // The kernel checks permissions itself (default_permissions): it need not ask again.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        cmd: u32,
        in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        self.answer(
            Op::Ioctl,
            reply,
            |_| ioctl::run(&self.fs, ino.0, cmd, in_data),
            |reply, done| {
                self.forget_attributes_if(done.changed, ino);
                reply.ioctl(0, &done.answer);
            },
        );
    }

    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _notifier: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        // Files are always ready: the kernel answers so by itself from now on.
        reply.error(fuser::Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let caller = convert::caller(req, 0);
        let reserve = |_: &mut ReplyEmpty| {
            let mode_changed = self.fs.fallocate(&caller, fh.0, offset, length, mode)?;
            self.forget_attributes_if(mode_changed, ino);
            Ok(())
        };
        self.answer(Op::Fallocate, reply, reserve, |r, ()| r.ok());
    }

    fn lseek(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.answer(Op::Lseek, reply, |_| self.fs.lseek(fh.0, offset, whence), |r, at| r.offset(at));
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        self.answer(
            Op::CopyFileRange,
            reply,
            |_| {
                let caller = convert::caller(req, 0);
                self.fs.copy_file_range(&caller, fh_in.0, offset_in, fh_out.0, offset_out, len)
            },
            |reply, (n, mode_changed)| {
                self.forget_attributes_if(mode_changed, ino_out);
                reply.written(u32::try_from(n).unwrap_or(u32::MAX));
            },
        );
    }
}
