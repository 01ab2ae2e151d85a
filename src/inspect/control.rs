//! The control socket of a mount: a request is a line, the answer is text until the end of the connection. Only the
//! owner of the mount can connect, by the permissions of the socket, and only he and root are answered.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

/// The request for statistics.
pub const STATISTICS: &str = "statistics";

/// How long either side waits for the other.
const PATIENCE: Duration = Duration::from_secs(5);
/// The longest request in bytes.
const LONGEST: u64 = 4096;
/// The longest answer in bytes: who asks need not trust the mount.
const LONGEST_ANSWER: u64 = 1 << 20;

/// Answers requests on a new socket at `path`, on a thread of its own. `answer` gives the text for a request, or
/// `None` for one that it does not know.
///
/// # Errors
/// Those of making the socket and the thread.
pub fn serve(path: &Path, answer: impl Fn(&str) -> Option<String> + Send + 'static) -> io::Result<()> {
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
    let peer = rustix::net::sockopt::socket_peercred(stream)?.uid;
    Ok(peer.is_root() || peer == rustix::process::geteuid())
}

fn reply(stream: &UnixStream, answer: &impl Fn(&str) -> Option<String>) -> io::Result<()> {
    if !is_trusted(stream)? {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    // Whoever connects and says nothing holds up the others no longer than this.
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut request = String::new();
    BufReader::new(stream.take(LONGEST)).read_line(&mut request)?;
    let text = answer(request.trim_end()).unwrap_or_else(|| "error unknown request\n".to_owned());
    let mut out = stream;
    out.write_all(text.as_bytes())
}

/// Asks a mount.
///
/// # Errors
/// Those of connecting; `PermissionDenied` for another user's mount. `InvalidData` for a request that the mount does not
/// know.
pub fn ask(path: &Path, request: &str) -> io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
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
        serve(&path, |request| (request == "ping").then(|| "pong\n".into())).unwrap();
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(ask(&path, "ping").unwrap(), "pong\n");
        assert_eq!(ask(&path, "what").unwrap_err().to_string(), "unknown request");
        drop(UnixStream::connect(&path).unwrap());
        assert_eq!(ask(&path, "ping").unwrap(), "pong\n");
    }
}
