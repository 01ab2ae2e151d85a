//! The core behind `fuser::Filesystem`: its state, and how a request is answered. The requests themselves
//! are in [`requests`].

mod requests;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, OnceLock};

use fuser::{BackingId, FopenFlags, INodeNo, Notifier};

use super::reply::{Fail, Ttl, answer};
use super::stats::{Op, Stats};
use super::{convert, handshake, ioctl, reply};
use crate::config::Options;
use crate::error::Result;
use crate::fs::{Backing, Opened, UnionFs};
use crate::sys::cred;

/// Serves the kernel's requests from a [`UnionFs`].
pub struct Adapter {
    fs: Arc<UnionFs>,
    stats: Arc<Stats>,
    notifier: Arc<OnceLock<Notifier>>,
    /// Passthrough is wanted; after the handshake: and the kernel agreed.
    passthrough: bool,
    /// There are POSIX ACLs.
    acl: bool,
    ttl: Ttl,
}

impl Adapter {
    /// An adapter that has not met the kernel yet.
    pub fn new(fs: Arc<UnionFs>, options: &Options) -> Self {
        Self {
            fs,
            stats: Arc::default(),
            notifier: Arc::default(),
            passthrough: options.passthrough && cred::is_host_admin(),
            acl: options.acl,
            ttl: Ttl::new(options.timeout),
        }
    }

    /// Counts of the requests served.
    pub fn stats(&self) -> Arc<Stats> {
        Arc::clone(&self.stats)
    }

    /// Where the session puts its notifier once it has one.
    pub fn notifier(&self) -> Arc<OnceLock<Notifier>> {
        Arc::clone(&self.notifier)
    }

    /// Counts a request, runs it and answers it.
    fn answer<R: Fail, T>(
        &self,
        op: Op,
        reply: R,
        call: impl FnOnce(&mut R) -> Result<T>,
        done: impl FnOnce(R, T),
    ) {
        self.stats.count(op);
        answer(op, reply, call, done);
    }

    /// Makes a file known to the kernel for I/O without us. `None`: it goes through us.
    fn make_backing(
        &self,
        fd: BorrowedFd<'_>,
        open_backing: impl FnOnce(BorrowedFd<'_>) -> io::Result<BackingId>,
    ) -> Option<Backing> {
        if !self.passthrough {
            return None;
        }
        // The kernel keeps the credentials of this moment for all I/O on the file. Without
        // CAP_FSETID in them the backing filesystem clears set-ID bits on writes as it would for any
        // user; with it they would survive a write by anybody.
        match cred::without_fsetid(|| open_backing(fd)) {
            Ok(Ok(id)) => Some(Arc::new(id)),
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
    /// called before the reply, so that who sees that answered sees the change, too. Takes no lock in the
    /// kernel that a pending request could hold.
    fn forget_attributes_if(&self, changed: bool, ino: INodeNo) {
        if changed
            && let Some(notifier) = self.notifier.get()
            && let Err(err) = notifier.inval_inode(ino, -1, 0)
        {
            tracing::debug!(%err, ino = ino.0, "cannot drop cached attributes");
        }
    }
}

/// The backing of an open file, if the kernel does its I/O.
fn backing_id(opened: &Opened) -> Option<&BackingId> {
    opened.backing.as_ref()?.downcast_ref()
}

fn open_flags(opened: &Opened) -> FopenFlags {
    if opened.keep_cache { FopenFlags::FOPEN_KEEP_CACHE } else { FopenFlags::empty() }
}
