//! The one way from a request to its answer.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use fuser::{Generation, ReplyAttr, ReplyEntry, ReplyStatfs, ReplyXattr};
use rustix::fs::StatVfs;

use super::convert::{self, FOREVER};
use super::stats::Op;
use crate::error::{Errno, Result};
use crate::fs::Attr;

/// Inode numbers are not reused while the kernel knows them.
pub const GENERATION: Generation = Generation(0);

/// The longest name in bytes: that of every filesystem a layer can lie on.
const NAME_MAX: u32 = 255;

/// A reply that can say that the request failed.
pub trait Fail {
    /// Sends the error.
    fn fail(self, err: fuser::Errno);
}

macro_rules! fail {
    ($($reply:ident),* $(,)?) => {
        $(
            impl Fail for fuser::$reply {
                fn fail(self, err: fuser::Errno) {
                    self.error(err);
                }
            }
        )*
    };
}

fail! {
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
}

/// Runs a request and answers it: `done` with the outcome, or the error.
///
/// A panic is answered by EIO. It must not leave this function: fuser would lose the worker thread,
/// and with the last one the mount would hang.
pub fn answer<R: Fail, T>(
    op: Op,
    mut reply: R,
    call: impl FnOnce(&mut R) -> Result<T>,
    done: impl FnOnce(R, T),
) {
    match contain(op, || call(&mut reply)) {
        Ok(outcome) => done(reply, outcome),
        Err(err) => {
            tracing::trace!(op = op.name(), %err, "request failed");
            reply.fail(convert::errno(err));
        }
    }
}

/// Runs something for a request, turning a panic into EIO.
pub fn contain<T>(op: Op, call: impl FnOnce() -> Result<T>) -> Result<T> {
    // What a panic may have left half done is the state behind the core's locks, which do not
    // poison: the next request sees it, as it would after an error at the same place.
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|_| {
        tracing::error!(op = op.name(), "a request handler panicked; answering EIO");
        Err(Errno::IO)
    })
}

/// How long the kernel may keep what it is told of names and attributes.
#[derive(Debug, Clone, Copy)]
pub struct Ttl(Duration);

impl Ttl {
    /// The time that the option `timeout=` gives; without it, [`FOREVER`].
    pub fn new(timeout: Option<Duration>) -> Self {
        Self(timeout.unwrap_or(FOREVER).min(FOREVER))
    }

    /// How long the kernel may keep these attributes.
    pub fn of(self, attr: &Attr) -> Duration {
        if attr.cacheable { self.0 } else { Duration::ZERO }
    }

    /// Answers with an entry.
    pub fn entry(self, reply: ReplyEntry, attr: &Attr) {
        reply.entry_with_ttls(&self.of(attr), &self.0, &convert::attr(attr), GENERATION);
    }

    /// Answers with attributes.
    pub fn attr(self, reply: ReplyAttr, attr: &Attr) {
        reply.attr(&self.of(attr), &convert::attr(attr));
    }

    /// Answers that a name is not there: node 0, with a time to keep that, which a plain ENOENT lacks.
    pub fn missing(self, reply: ReplyEntry) {
        let none = convert::bare_attr(0, fuser::FileType::RegularFile);
        reply.entry_with_ttls(&self.0, &self.0, &none, GENERATION);
    }
}

/// Answers a request for an xattr or a list: its size when `room` is 0, else the bytes if they fit.
pub fn send_xattr(reply: ReplyXattr, room: u32, value: &[u8]) {
    if room == 0 {
        reply.size(u32::try_from(value.len()).unwrap_or(u32::MAX));
    } else if value.len() > room as usize {
        reply.error(convert::errno(Errno::RANGE));
    } else {
        reply.data(value);
    }
}

/// Answers with the state of the filesystem.
pub fn send_statfs(reply: ReplyStatfs, st: StatVfs) {
    let size = |n: u64| u32::try_from(n).unwrap_or(u32::MAX);
    let (bsize, frsize) = (size(st.f_bsize), size(st.f_frsize));
    reply.statfs(st.f_blocks, st.f_bfree, st.f_bavail, st.f_files, st.f_ffree, bsize, NAME_MAX, frsize);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Sent<'a>(Option<&'a mut Vec<i32>>);

    impl Fail for Sent<'_> {
        fn fail(self, err: fuser::Errno) {
            self.0.unwrap().push(err.code());
        }
    }

    #[test]
    fn errors_and_panics_are_answered() {
        let mut sent = Vec::new();
        answer(Op::Read, Sent(Some(&mut sent)), |_| Ok(7), |r, n| r.0.unwrap().push(n));
        answer(Op::Read, Sent(Some(&mut sent)), |_| Err::<(), _>(Errno::NOENT), |_, ()| ());
        answer(Op::Read, Sent(Some(&mut sent)), |_| -> Result<()> { panic!("on purpose") }, |_, ()| ());
        assert_eq!(sent, [7, libc::ENOENT, libc::EIO]);
    }
}
