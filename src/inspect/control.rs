//! The control socket of a mount: a request is a line, the answer is text until the end of the connection. Only the
//! owner of the mount can connect, by the permissions of the socket, and only he and root are answered.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::state::Text;
use crate::sys::process;

/// The request for statistics.
pub const STATISTICS: &str = "statistics";

/// The request for the files that are open for writing: a JSON array of [`Writer`].
pub const WRITERS: &str = "writers";
/// The request to let nothing change for a moment: the answer begins as for [`WRITERS`], in one line. From then until
/// the one who asks closes the connection, at most [`LONGEST_HOLD`], the mount serves no request.
pub const HOLD: &str = "hold";
/// The request to freeze the upper: followed by a space and a [`Next`] in JSON. The answer is an [`Answer`].
pub const FREEZE: &str = "freeze";

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a mount is held at most.
pub const LONGEST_HOLD: Duration = Duration::from_secs(5);
/// How long is waited for an answer that needs syncs.
const LONG_PATIENCE: Duration = Duration::from_secs(600);
/// The longest request in bytes: four paths in JSON.
const LONGEST: u64 = 1 << 17;
/// The longest answer in bytes: who asks need not trust the mount.
const LONGEST_ANSWER: u64 = 1 << 20;

/// A file that is open for writing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// Its path from the root of the mount, without a leading slash.
    pub path: Text,
    /// The kernel writes to it without the daemon.
    pub passed: bool,
    /// No descriptor is open, but a mapping writes to it.
    pub mapped: bool,
}

/// A directory, named by the way to it from the upper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// Its path.
    pub path: Text,
    /// So many directories up.
    pub up: usize,
    /// And down by these names.
    pub below: Text,
    /// Its device and inode number.
    pub id: (u64, u64),
}

/// The layer that takes the place of the upper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Next {
    /// The new upper, empty.
    pub upper: Way,
    /// Its work directory.
    pub work: Way,
}

/// What became of a request to freeze.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It is done.
    Frozen,
    /// Files are open for writing that the kernel writes to by itself.
    Busy(Vec<Writer>),
    /// The upper hides this path of the init layer.
    Hides(Text),
    /// It is not possible, for this reason.
    Failed(String),
}

/// The side of a conversation that asked.
#[derive(Debug)]
pub struct Asker<'a>(&'a UnixStream);

impl Asker<'_> {
    /// Sends a part of the answer.
    ///
    /// # Errors
    /// Those of writing to a socket.
    pub fn say(&mut self, text: &str) -> io::Result<()> {
        self.0.write_all(text.as_bytes())
    }

    /// Waits until the other side closes the connection, or for `limit`.
    pub fn wait(&mut self, limit: Duration) {
        if self.0.set_read_timeout(Some(limit)).is_ok() {
            // Whatever comes, it is over.
            let _ = self.0.read(&mut [0]);
        }
    }
}

/// Answers requests on a new socket at `path`, on a thread of its own. `answer` sends the text for a request, and gives
/// `false` for one that it does not know.
///
/// # Errors
/// Those of making the socket and the thread.
pub fn serve(
    path: &Path,
    answer: impl Fn(&str, &mut Asker<'_>) -> io::Result<bool> + Send + 'static,
) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    std::thread::Builder::new().name("control".into()).spawn(move || {
        for stream in listener.incoming() {
            if let Err(e) = stream.and_then(|stream| reply(&stream, &answer)) {
                tracing::debug!("control socket: {e}");
            }
        }
    })?;
    Ok(())
}

/// Whether the other end is a process of the same user or of root (unix(7), `SO_PEERCRED`). The permissions of the
/// socket say so too, but not from its first moment on.
fn is_trusted(stream: &UnixStream) -> io::Result<bool> {
    let peer = process::peer(stream)?.uid;
    Ok(peer == 0 || peer == rustix::process::geteuid().as_raw())
}

fn reply(stream: &UnixStream, answer: &impl Fn(&str, &mut Asker<'_>) -> io::Result<bool>) -> io::Result<()> {
    if !is_trusted(stream)? {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    // Whoever connects and says nothing holds up the others no longer than this.
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = String::new();
    BufReader::new(stream.take(LONGEST)).read_line(&mut request)?;
    let mut asker = Asker(stream);
    if answer(request.trim_end(), &mut asker)? { Ok(()) } else { asker.say("error unknown request\n") }
}

/// A mount that lets nothing change until this is dropped.
#[derive(Debug)]
pub struct Held {
    stream: UnixStream,
    /// The files that were open for writing at that moment.
    pub writers: Vec<Writer>,
}

impl Held {
    /// Lets the mount go on. Gives whether it had been held all the time.
    pub fn release(self) -> bool {
        let over = |stream: &UnixStream| {
            stream.set_nonblocking(true)?;
            (&*stream).read(&mut [0])
        };
        over(&self.stream).is_err_and(|e| e.kind() == io::ErrorKind::WouldBlock)
    }
}

/// Asks a mount to let nothing change, which it does for [`LONGEST_HOLD`] at most.
///
/// # Errors
/// As for [`ask`].
pub fn hold(path: &Path) -> io::Result<Held> {
    let mut stream = UnixStream::connect(path)?;
    // Those under way end first.
    stream.set_read_timeout(Some(LONG_PATIENCE))?;
    stream.write_all(format!("{HOLD}\n").as_bytes())?;
    let mut line = String::new();
    BufReader::new((&stream).take(LONGEST_ANSWER)).read_line(&mut line)?;
    let writers = serde_json::from_str(&line).map_err(|_| invalid(&line))?;
    Ok(Held { stream, writers })
}

fn invalid(answer: &str) -> io::Error {
    let reason = answer.strip_prefix("error ").unwrap_or("the answer is not understood").trim_end();
    io::Error::new(io::ErrorKind::InvalidData, reason.to_owned())
}

/// Asks a mount to freeze its upper.
///
/// # Errors
/// As for [`ask`]; `UnexpectedEof` when the answer is not whole, so that nothing is known.
pub fn freeze(path: &Path, next: &Next) -> io::Result<Answer> {
    let request = format!("{FREEZE} {}", serde_json::to_string(next)?);
    let text = ask_for(path, &request, LONG_PATIENCE)?;
    serde_json::from_str(&text).map_err(|_| io::ErrorKind::UnexpectedEof.into())
}

/// Asks a mount.
///
/// # Errors
/// Those of connecting; `PermissionDenied` for another user's mount. `InvalidData` for a request that the mount does not
/// know.
pub fn ask(path: &Path, request: &str) -> io::Result<String> {
    // It may be held for another.
    ask_for(path, request, PATIENCE + LONGEST_HOLD)
}

fn ask_for(path: &Path, request: &str, patience: Duration) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(patience))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(format!("{request}\n").as_bytes())?;
    let mut text = String::new();
    stream.take(LONGEST_ANSWER).read_to_string(&mut text)?;
    match text.strip_prefix("error ") {
        Some(reason) => Err(io::Error::new(io::ErrorKind::InvalidData, reason.trim_end().to_owned())),
        None => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asks_and_answers() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        serve(&path, |request, peer| {
            if request == HOLD {
                peer.say("[]\n")?;
                peer.wait(Duration::from_millis(300));
                return Ok(true);
            }
            peer.say("pong\n").map(|()| true).map(|known| known && request == "ping")
        })
        .unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(ask(&path, "ping").unwrap(), "pong\n");
        assert!(ask(&path, "what").is_ok());
        let held = hold(&path).unwrap();
        assert_eq!(held.writers, []);
        assert!(held.release());
        let held = hold(&path).unwrap();
        std::thread::sleep(Duration::from_millis(600));
        assert!(!held.release(), "the mount does not wait for ever");
        drop(UnixStream::connect(&path).unwrap());
        assert_eq!(ask(&path, "ping").unwrap(), "pong\n");
    }
}
