//! `unionfs umount`.

use std::path::{Path, PathBuf};

use super::args::UmountArgs;
use crate::error::{Errno, MountError};
use crate::format::mountinfo;
use crate::fuse::{mounts, session};

const WHAT: &str = "mount point";

/// Unmounts.
///
/// # Errors
/// What is not a mount of ours, is busy, or belongs to someone else.
pub fn run(args: &UmountArgs) -> Result<(), MountError> {
    let path = &args.mountpoint;
    let at = find(path)?;
    session::unmount(&at, args.lazy).map_err(|e| {
        let reason = match Errno::from_io_error(&e) {
            Some(Errno::BUSY) => {
                "is busy; leave it and close the files in it (fuser -vm shows who has them open), or use --lazy"
                    .to_owned()
            }
            Some(Errno::PERM) => "may not be unmounted by this user; run as the user who mounted it".to_owned(),
            Some(_) => format!("cannot be unmounted: {e}"),
            // What fusermount3 said.
            None => format!("may not be unmounted by this user; run as root or as the user who mounted it ({e})"),
        };
        MountError::path(WHAT, path, reason)
    })
}

/// The path of the mount in the mount table. The mount itself is not touched: its daemon may be dead.
///
/// # Errors
/// What has no mount of ours on it.
pub fn find(path: &Path) -> Result<PathBuf, MountError> {
    let table = mounts::table().map_err(|e| {
        MountError::path("mount table", "/proc/self/mountinfo", format!("cannot be read: {e}"))
    })?;
    let mut other = None;
    // First as the path is spelled, then with a symlink at its end followed.
    for candidate in [mounts::locate(path), path.canonicalize()] {
        let Ok(candidate) = candidate else { continue };
        match mountinfo::top_at(&table, &candidate) {
            Some(entry) if mountinfo::is_unionfs(entry) => return Ok(candidate),
            Some(entry) => other = Some(entry.fs_type.to_string_lossy().into_owned()),
            None => {}
        }
    }
    let reason = match other {
        Some(fs_type) => format!("has a mount of type {fs_type}, not a unionfs; use umount for that"),
        None if path.symlink_metadata().is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) => {
            "does not exist; correct the path".into()
        }
        None => "has no unionfs mounted on it; `findmnt -t fuse.unionfs` lists those there are".into(),
    };
    Err(MountError::path(WHAT, path, reason))
}
