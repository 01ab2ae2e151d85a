//! Errors: an errno for requests, a sentence for the command line.

use std::path::PathBuf;

/// The error of a request: the errno that the caller of the system call gets.
pub use rustix::io::Errno;

/// The errno of an error of the standard library; EIO for one that has none.
pub fn errno(e: &std::io::Error) -> Errno {
    Errno::from_io_error(e).unwrap_or(Errno::IO)
}

/// The result of a request.
pub type Result<T> = std::result::Result<T, Errno>;

/// The result of what a command does.
pub type Outcome<T> = std::result::Result<T, MountError>;

/// Why a command could not do its work, mounting first of all. Each message is one sentence that names the path or the
/// option and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// A path given on the command line is unusable.
    #[error("{what} {path}: {reason}")]
    Path {
        /// The role of the path: "lower layer", "upper layer", "work directory", "mount point"...
        what: &'static str,
        /// The path as the user gave it.
        path: PathBuf,
        /// What is wrong and what to do.
        reason: String,
    },
    /// An option given on the command line is unusable.
    #[error("option {option}: {reason}")]
    Option {
        /// The option as the user gave it.
        option: String,
        /// What is wrong and what to do.
        reason: String,
    },
    /// The system does not let us mount.
    #[error("{0}")]
    System(String),
}

impl MountError {
    /// A complaint about a path.
    pub fn path(what: &'static str, path: impl Into<PathBuf>, reason: impl Into<String>) -> Self {
        Self::Path { what, path: path.into(), reason: reason.into() }
    }

    /// A complaint about an option.
    pub fn option(option: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Option { option: option.into(), reason: reason.into() }
    }
}
