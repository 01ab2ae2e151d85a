//! Directories that a command makes for a mount: gone again unless the mount comes about.

use std::ffi::OsStr;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::error::{Errno, MountError};
use crate::layer::located::explain;

/// What is in a work directory once it was used.
const WORK_PARTS: [&str; 3] = ["work", "index", "gone"];

/// Directories that were made, in that order. Dropping removes them as far as they are empty.
#[derive(Debug, Default)]
pub struct Made {
    directories: Vec<PathBuf>,
    keep: bool,
}

impl Made {
    /// Makes the directory `path` and those above it that are missing.
    ///
    /// # Errors
    /// A sentence that names the path, as what `what` says it is.
    pub fn ensure(&mut self, what: &'static str, path: &Path, mode: u32) -> Result<(), MountError> {
        let complain = |e: std::io::Error| match Errno::from_io_error(&e) {
            Some(Errno::ACCESS | Errno::PERM) => {
                MountError::path(what, path, "may not be created by this user; create it as root")
            }
            Some(errno) => explain(what, path, errno),
            None => MountError::path(what, path, format!("cannot be created: {e}")),
        };
        // Made absolute, since the way back must not depend on the working directory.
        let absolute = std::path::absolute(path).map_err(complain)?;
        let mut missing: Vec<&Path> = absolute.ancestors().take_while(|p| absent(p)).collect();
        missing.reverse();
        for directory in missing {
            let mode = if directory == absolute { mode } else { 0o755 };
            match DirBuilder::new().mode(mode).create(directory) {
                Ok(()) => self.directories.push(directory.to_owned()),
                // Someone else was faster.
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(complain(e)),
            }
        }
        Ok(())
    }

    /// The mount stands: nothing is removed.
    pub fn keep(mut self) {
        self.keep = true;
    }
}

/// Whether nothing is there; not so for a mount whose daemon is dead, or a dangling symlink.
fn absent(path: &Path) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    path.symlink_metadata().is_err_and(|e| matches!(e.kind(), NotFound | NotADirectory))
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        for directory in self.directories.iter().rev() {
            for part in WORK_PARTS {
                // Only a work directory has them.
                let _ = std::fs::remove_dir(directory.join(OsStr::new(part)));
            }
            if let Err(e) = std::fs::remove_dir(directory) {
                tracing::warn!("left behind: {}: {e}", directory.display());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_exactly_what_it_made() {
        let dir = tempfile::tempdir().unwrap();
        let mut made = Made::default();
        made.ensure("mount point", &dir.path().join("a/b/c"), 0o755).unwrap();
        made.ensure("mount point", &dir.path().join("a/b"), 0o755).unwrap();
        std::fs::create_dir(dir.path().join("a/b/c/work")).unwrap();
        assert!(dir.path().join("a/b/c").is_dir());
        drop(made);
        assert!(!dir.path().join("a").exists());
        assert!(dir.path().exists());
    }

    #[test]
    fn keeps_when_told() {
        let dir = tempfile::tempdir().unwrap();
        let mut made = Made::default();
        made.ensure("mount point", &dir.path().join("a"), 0o755).unwrap();
        made.keep();
        assert!(dir.path().join("a").is_dir());
    }

    #[test]
    fn names_the_path_that_cannot_be_made() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        let error = Made::default().ensure("upper layer", &dir.path().join("file/x"), 0o755).unwrap_err();
        assert!(error.to_string().contains("file/x: is not a directory"), "{error}");
    }
}
