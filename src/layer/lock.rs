//! Takes hold of the writable directories of a mount.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::located::{Opened, explain};
use super::volatile;
use crate::error::{Errno, MountError, errno};
use crate::sys::place;

/// How often the lock of a directory is tried when nothing else is known of it.
pub(super) const USUAL: u32 = 100;
/// A lock is tried again after this time.
const PAUSE: Duration = Duration::from_millis(10);

/// How often the locks of a mount with these work directories are tried: a mount that was just ended holds on until its
/// daemon has exited, which may have all to write that a volatile one has not.
pub(super) fn patience<'a>(mut works: impl Iterator<Item = &'a Opened>) -> u32 {
    if works.any(|work| volatile::is_marked(&work.fd) == Ok(true)) { 1000 } else { USUAL }
}

/// Refuses what a mount without syncs has left in a crash.
pub(super) fn refuse_marked(work: &Opened) -> Result<(), MountError> {
    let complain = |e| explain(work.at.what, &work.at.path, e);
    if !volatile::is_marked(&work.fd).map_err(complain)? {
        return Ok(());
    }
    Err(work.at.error(
        "is that of a volatile mount that has not ended well, and what its upper layer holds may be incomplete; use a \
         new upper layer and work directory, or, if the machine has not crashed since, remove work/incompat/volatile \
         in it",
    ))
}

/// Takes the lock on a directory, which is tried so many times.
///
/// # Errors
/// EWOULDBLOCK: a live mount has it.
pub(super) fn lock_soon(dir: &OwnedFd, tries: u32) -> Result<(), Errno> {
    let mut locked = place::lock(dir);
    for _ in 0..tries {
        if locked != Err(Errno::WOULDBLOCK) {
            break;
        }
        std::thread::sleep(PAUSE);
        locked = place::lock(dir);
    }
    locked
}

/// Locks a writable directory against other mounts until the descriptor and its copies are closed. A process that dies
/// lets go of its locks.
pub(super) fn lock(dir: &Opened, tries: u32) -> Result<OwnedFd, MountError> {
    place::check_writable(&dir.fd).map_err(|e| {
        dir.at.error(match e {
            Errno::ROFS => "is on a read-only filesystem; choose a writable one, or mount --read-only".into(),
            Errno::ACCESS => {
                "may not be written by this user; change its owner or mode, or run as root".into()
            }
            other => format!("cannot be used: {other}"),
        })
    })?;
    lock_soon(&dir.fd, tries).map_err(|e| {
        dir.at.error(match e {
            Errno::WOULDBLOCK => {
                "is in use by a live mount; unmount that first or choose another directory".into()
            }
            other => format!("cannot be locked against a second mount: {other}"),
        })
    })?;
    dir.fd.try_clone().map_err(|e| explain(dir.at.what, &dir.at.path, errno(&e)))
}
