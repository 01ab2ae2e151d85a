//! From a request to its answer: convert, call the core, convert. One file for each group of requests.

mod dirs;
mod files;
mod objects;

use std::ops::Deref;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use zerocopy::IntoBytes;

use super::ahead::Ahead;
use super::message::{Body, Outcome, Request};
use super::readers::Readers;
use super::stats::{Op, Stats};
use super::wire::{self, EntryOut, InvalInodeOut, OutHeader};
use super::{convert, ioctl};
use crate::config::Options;
use crate::error::{Errno, Result};
use crate::fs::gate::Gate;
use crate::fs::{Attr, Backing, UnionFs};
use crate::sys::cred;
use crate::sys::fuse::{BackingFile, Device};

/// How long to wait, each time that a request fails for want of descriptors: removed files hold one each until the
/// kernel forgets them.
const PAUSES_MS: [u64; 7] = [1, 4, 16, 32, 64, 128, 256];
/// How long who removes waits while removed files hold many descriptors.
const FORGOTTEN_SOON: Duration = Duration::from_millis(10);

/// Serves the kernel's requests from a [`UnionFs`].
#[derive(Debug)]
pub struct Adapter {
    gate: Arc<Gate>,
    stats: Arc<Stats>,
    device: Arc<Device>,
    passthrough: bool,
    ttl: Ttl,
    readers: Readers,
    ahead: Ahead,
}

impl Adapter {
    /// An adapter for the connection behind `device`. `passthrough`: the kernel agreed to do I/O by itself.
    pub fn new(gate: Arc<Gate>, device: Arc<Device>, passthrough: bool, options: &Options) -> Self {
        Self {
            gate,
            stats: Arc::default(),
            device,
            passthrough,
            ttl: Ttl::new(options.timeout),
            readers: Readers::default(),
            ahead: Ahead::default(),
        }
    }

    /// Counts of the requests served.
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// Runs a request. What the answer says goes to `room`, which must hold the largest answer that the request
    /// permits.
    ///
    /// A panic is answered by EIO. It must not leave this function: the worker would be lost, and with the last
    /// one the mount would hang.
    pub fn serve(&self, request: &Request<'_>, room: &mut [u8]) -> Outcome {
        let Some(op) = Op::from_code(request.header.opcode) else {
            // Of most kinds the kernel then asks never again.
            return Outcome::Failed(Errno::NOSYS);
        };
        self.stats.count(op);
        let header = &request.header;
        tracing::trace!(
            op = op.name(),
            node = header.nodeid,
            pid = header.pid,
            unique = header.unique,
            "request"
        );
        let mut result = self.attempt(op, request, room);
        // What fails for want of descriptors has changed nothing, so it can be tried again.
        let mut pauses = PAUSES_MS.into_iter();
        while let Err(Errno::MFILE | Errno::NFILE) = result
            && let Some(pause) = pauses.next()
        {
            self.gate.enter().stack().close_directories();
            thread::sleep(Duration::from_millis(pause));
            result = self.attempt(op, request, room);
        }
        if matches!(op, Op::Unlink | Op::Rmdir | Op::Rename | Op::Rename2) && self.gate.enter().runs_short() {
            thread::sleep(FORGOTTEN_SOON);
        }
        match result {
            _ if matches!(op, Op::Forget | Op::BatchForget) => Outcome::Silent,
            Ok(length) => Outcome::Done(length),
            Err(err) => {
                tracing::trace!(op = op.name(), %err, "request failed");
                Outcome::Failed(err)
            }
        }
    }

    /// Gives the length of the answer.
    fn attempt(&self, op: Op, request: &Request<'_>, room: &mut [u8]) -> Result<usize> {
        let mut body = Body::new(room);
        // What a panic may have left half done is the state behind the core's locks, which do not
        // poison: the next request sees it, as it would after an error at the same place.
        catch_unwind(AssertUnwindSafe(|| self.within(&self.gate.enter()).run(op, request, &mut body)))
            .unwrap_or_else(|_| {
                tracing::error!(op = op.name(), "a request handler panicked; answering EIO");
                Err(Errno::IO)
            })
            .map(|()| body.len())
    }

    /// While a request is served.
    fn within<'a>(&'a self, fs: &'a UnionFs) -> Within<'a> {
        Within { fs, adapter: self }
    }
}

/// An adapter that has entered the filesystem for a request.
#[derive(Debug)]
struct Within<'a> {
    fs: &'a UnionFs,
    adapter: &'a Adapter,
}

impl Deref for Within<'_> {
    type Target = Adapter;

    fn deref(&self) -> &Adapter {
        self.adapter
    }
}

impl Within<'_> {
    fn run(&self, op: Op, request: &Request<'_>, body: &mut Body<'_>) -> Result<()> {
        match op {
            Op::Lookup => self.lookup(request, body),
            Op::Forget => self.forget(request),
            Op::BatchForget => self.batch_forget(request),
            Op::Getattr => self.getattr(request, body),
            Op::Setattr => self.setattr(request, body),
            Op::Readlink => self.readlink(request, body),
            Op::Symlink => self.symlink(request, body),
            Op::Mknod => self.mknod(request, body),
            Op::Mkdir => self.mkdir(request, body),
            Op::Unlink => self.fs.unlink(request.header.nodeid, request.name()?),
            Op::Rmdir => self.fs.rmdir(request.header.nodeid, request.name()?),
            Op::Rename => self.rename(request, request.fixed::<wire::RenameIn>()?.newdir, 0),
            Op::Rename2 => {
                let given: wire::Rename2In = request.fixed()?;
                self.rename(request, given.newdir, given.flags)
            }
            Op::Link => self.link(request, body),
            Op::Statfs => body.put(&convert::statfs(&self.fs.statfs()?)),
            Op::Setxattr => self.setxattr(request),
            Op::Getxattr => self.getxattr(request, body),
            Op::Listxattr => self.listxattr(request, body),
            Op::Removexattr => self.fs.removexattr(request.header.nodeid, request.name()?),
            Op::Open => self.open(request, body),
            Op::Create => self.create(request, body),
            Op::Read => self.read(request, body),
            Op::Write => self.write(request, body),
            Op::Release => {
                self.fs.release(request.fixed::<wire::ReleaseIn>()?.fh);
                Ok(())
            }
            Op::Fsync => self.fsync(request),
            Op::Fallocate => self.fallocate(request),
            Op::Lseek => self.lseek(request, body),
            Op::CopyFileRange | Op::CopyFileRange64 => self.copy_file_range(op, request, body),
            Op::Ioctl => self.ioctl(request, body),
            Op::Readdir => self.readdir(request, body),
            Op::Readdirplus => self.readdirplus(request, body),
            Op::Fsyncdir => self.fsyncdir(request),
            // Nothing depends on a flush, and the kernel checks permissions itself (default_permissions): it asks
            // once and never again.
            // Directories need not be opened (FUSE_NO_OPENDIR_SUPPORT).
            Op::Flush | Op::Access | Op::Opendir => Err(Errno::NOSYS),
            Op::Releasedir | Op::Destroy => Ok(()),
        }
    }
}

impl Adapter {
    /// Makes a file known to the kernel for I/O without us. `None`: it goes through us.
    fn make_backing(&self, fd: BorrowedFd<'_>) -> Option<Backing> {
        if !self.passthrough {
            return None;
        }
        // The kernel keeps the credentials of this moment for all I/O on the file. Without
        // CAP_FSETID in them the backing filesystem clears set-ID bits on writes as it would for any
        // user; with it they would survive a write by anybody.
        match cred::without_fsetid(|| BackingFile::open(&self.device, fd)) {
            Ok(Ok(file)) => Some(Arc::new(file)),
            Ok(Err(err)) => {
                tracing::debug!(%err, "no passthrough for a file");
                None
            }
            Err(err) => {
                tracing::debug!(%err, "cannot lower capabilities; no passthrough for a file");
                None
            }
        }
    }

    /// Drops the kernel's copy of the attributes of an inode that changed unseen by it, not of its pages. To be
    /// called before the answer, so that who sees that answered sees the change, too. Takes no lock in the
    /// kernel that a pending request could hold.
    fn forget_attributes_if(&self, changed: bool, ino: u64) {
        if !changed {
            return;
        }
        let what = InvalInodeOut { ino, off: -1, len: 0 };
        let len = (size_of::<OutHeader>() + size_of::<InvalInodeOut>()) as u32;
        let header = OutHeader { len, error: wire::NOTIFY_INVAL_INODE, unique: 0 };
        if let Err(err) = self.device.write(header.as_bytes(), what.as_bytes()) {
            tracing::debug!(%err, ino, "cannot drop cached attributes");
        }
    }
}

/// How long the kernel may keep what it is told of names and attributes.
#[derive(Debug, Clone, Copy)]
struct Ttl(Duration);

impl Ttl {
    /// The time that the option `timeout=` gives; without it, [`convert::FOREVER`].
    fn new(timeout: Option<Duration>) -> Self {
        Self(timeout.unwrap_or(convert::FOREVER).min(convert::FOREVER))
    }

    /// How long the kernel may keep these attributes, in seconds and nanoseconds.
    fn of(self, attr: &Attr) -> (u64, u32) {
        if attr.cacheable { self.names() } else { (0, 0) }
    }

    /// How long the kernel may keep names, in seconds and nanoseconds.
    fn names(self) -> (u64, u32) {
        (self.0.as_secs(), self.0.subsec_nanos())
    }

    /// What is told of an entry.
    fn entry(self, attr: &Attr) -> EntryOut {
        let (attr_valid, attr_valid_nsec) = self.of(attr);
        EntryOut {
            nodeid: attr.ino,
            attr_valid,
            attr_valid_nsec,
            attr: convert::attr(attr),
            ..self.missing()
        }
    }

    /// What is told of a name that is not there: node 0, with a time to keep that, which a plain ENOENT lacks.
    fn missing(self) -> EntryOut {
        let (entry_valid, entry_valid_nsec) = self.names();
        EntryOut { entry_valid, entry_valid_nsec, ..EntryOut::default() }
    }

    /// What is told of attributes.
    fn attr(self, attr: &Attr) -> wire::AttrOut {
        let (attr_valid, attr_valid_nsec) = self.of(attr);
        wire::AttrOut { attr_valid, attr_valid_nsec, dummy: 0, attr: convert::attr(attr) }
    }
}
