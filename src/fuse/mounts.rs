//! The live mount table of this process' mount namespace.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};

use crate::error::Errno;
use crate::format::mountinfo::{self, MountEntry};

const TABLE: &str = "/proc/self/mountinfo";

/// Reads the table.
///
/// # Errors
/// Those of reading /proc.
pub fn table() -> io::Result<Vec<MountEntry>> {
    Ok(mountinfo::parse(&std::fs::read(TABLE)?))
}

/// The mount that lookups of `at`, an absolute path without symlinks, arrive at.
///
/// # Errors
/// Those of reading /proc.
pub fn top_at(at: &Path) -> io::Result<Option<MountEntry>> {
    Ok(mountinfo::top_at(&table()?, at).cloned())
}

/// The path that the mount table has for `path`: absolute, symlinks resolved in all but the last
/// component. The object itself is not touched, so that a mount whose daemon is dead can be named.
///
/// # Errors
/// Those of resolving the directory above.
pub fn locate(path: &Path) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    match (absolute.parent(), absolute.file_name()) {
        // std::path::absolute keeps "..", which has no name.
        (Some(parent), Some(name)) => Ok(parent.canonicalize()?.join(name)),
        _ => absolute.canonicalize(),
    }
}

/// How long a mount has to show that it is served. One that takes longer counts as alive.
const ANSWER_WITHIN: Duration = Duration::from_secs(2);

/// Whether the process that served the mount at `at` is dead: the kernel answers ENOTCONN for it, at once.
pub fn is_dead(at: &Path) -> bool {
    let (answer, answered) = mpsc::channel();
    let at = at.to_owned();
    // A daemon that is stopped answers nothing, and the question cannot be taken back.
    let asked = thread::Builder::new().spawn(move || answer.send(rustix::fs::statfs(&at).map(drop)));
    // A process that has just died may be asked before the kernel has cut its connection.
    let answer = asked.ok().and_then(|_| answered.recv_timeout(ANSWER_WITHIN).ok());
    matches!(answer, Some(Err(Errno::NOTCONN | Errno::CONNABORTED | Errno::CANCELED)))
}

/// Blocks until the mount with this id is not in the table any more.
///
/// # Errors
/// Those of reading /proc.
pub fn wait_gone(id: u64) -> io::Result<()> {
    let file = File::open(TABLE)?;
    while table()?.iter().any(|entry| entry.id == id) {
        // proc_pid_mounts(5): poll(2) reports POLLPRI and POLLERR when the table has changed since it
        // was last polled; a change between reading and polling is reported too.
        let mut watched = [PollFd::new(&file, PollFlags::PRI)];
        match rustix::event::poll(&mut watched, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}

/// How far the kernel reads ahead on the mount, in KiB: files that it does not read by itself come in requests
/// to us, and one large one costs little more than a small one.
const READ_AHEAD_KIB: &str = "1024";

/// Raises how far the kernel reads ahead, where that is permitted.
pub fn read_ahead(entry: &MountEntry) {
    let setting = Path::new("/sys/class/bdi").join(&entry.device).join("read_ahead_kb");
    if let Err(e) = std::fs::write(&setting, READ_AHEAD_KIB) {
        tracing::debug!("{}: {e}", setting.display());
    }
}
