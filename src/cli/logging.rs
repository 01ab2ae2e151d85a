//! Where the daemon's log goes. `UNIONFS_LOG` says what is logged; the log of the `log` crate, which
//! the FUSE transport uses, is part of it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

use crate::error::MountError;

/// The variable that says what is logged.
const VARIABLE: &str = "UNIONFS_LOG";

/// Logs to standard error.
///
/// # Errors
/// A filter that cannot be read.
pub fn to_stderr() -> Result<(), MountError> {
    use std::io::IsTerminal;
    start(BoxMakeWriter::new(std::io::stderr), std::io::stderr().is_terminal())
}

/// Appends to a file, which only its owner may read: the log names files of the container. Gives the
/// file, for what is written whatever the filter says.
///
/// # Errors
/// A file that cannot be opened, a filter that cannot be read.
pub fn to_file(path: &Path) -> Result<File, MountError> {
    let file = OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .and_then(|file| Ok((file.try_clone()?, file)))
        .map_err(|e| MountError::path("log file", path, format!("cannot be opened: {e}")));
    let (log, file) = file?;
    start(BoxMakeWriter::new(log), false)?;
    Ok(file)
}

fn start(writer: BoxMakeWriter, colour: bool) -> Result<(), MountError> {
    let wanted = std::env::var(VARIABLE).unwrap_or_else(|_| "warn".into());
    let filter = EnvFilter::try_new(&wanted)
        .map_err(|e| MountError::option(format!("{VARIABLE}={wanted}"), format!("is no log filter: {e}")))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(writer)
        .with_ansi(colour)
        .finish()
        .try_init()
        .map_err(|e| MountError::System(format!("the log cannot be started: {e}")))
}
