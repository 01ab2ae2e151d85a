//! Who ends a mount that only fusermount3(1) could make. The daemon cannot call that once it has given up that programs
//! gain privileges (no_new_privs): a shell that was started before waits for its word, and ends with it.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;

use super::connect::one_line;
use crate::error::Errno;

/// Waits for a line, and is deaf to the signals that a manager ends all processes of a service by.
const SCRIPT: &str = r#"trap '' HUP INT TERM; read -r word && exec fusermount3 -u -z -- "$0""#;

/// Ends a mount when it is told to.
#[derive(Debug, Clone)]
pub struct Keeper(Arc<Mutex<Child>>);

impl Keeper {
    /// Starts one for the mount at `at`.
    ///
    /// # Errors
    /// Those of starting sh(1).
    pub fn start(at: &Path) -> io::Result<Self> {
        let child = Command::new("sh")
            .arg("-c")
            .arg(SCRIPT)
            .arg(at)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            // The mount point may be its working directory's.
            .current_dir("/")
            .process_group(0)
            .spawn()?;
        Ok(Self(Arc::new(Mutex::new(child))))
    }

    /// Has the mount taken out of the tree, even when in use.
    ///
    /// # Errors
    /// EBUSY when in use; what fusermount3 says.
    pub fn unmount(&self) -> io::Result<()> {
        let mut child = self.0.lock();
        if let Some(mut input) = child.stdin.take() {
            input.write_all(b"end\n")?;
        }
        let mut said = String::new();
        if let Some(mut errors) = child.stderr.take() {
            // What it says matters only to people.
            let _ = errors.read_to_string(&mut said);
        }
        match child.wait()? {
            status if status.success() => Ok(()),
            _ if said.contains("busy") => Err(Errno::BUSY.into()),
            _ => Err(io::Error::other(one_line(&said))),
        }
    }
}
