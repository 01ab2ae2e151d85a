//! Where a directory lies: its mount, its filesystem and the directories above it; and the lock on
//! it.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    Access, AtFlags, FlockOperation, Mode, OFlags, ResolveFlags, StatVfsMountFlags, StatxFlags,
};

use super::mount;

use crate::error::{Errno, Result, errno};

/// Device and inode number.
pub type FileId = (u64, u64);

/// Where a directory lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The directory itself.
    pub id: FileId,
    /// The mount that it was reached by; `None` before Linux 5.8.
    pub mount: Option<u64>,
    /// The directories above it, nearest first, up to the root.
    pub above: Vec<FileId>,
}

impl Place {
    /// Whether this is the same directory.
    pub fn is(&self, other: &Self) -> bool {
        self.id == other.id
    }

    /// Whether this lies below `other`.
    pub fn is_inside(&self, other: &Self) -> bool {
        self.id != other.id && self.above.contains(&other.id)
    }

    /// Whether a rename from one to the other can work: rename(2) wants one mount, not only one
    /// filesystem.
    pub fn shares_mount(&self, other: &Self) -> bool {
        self.id.0 == other.id.0
            && (self.mount == other.mount || self.mount.is_none() || other.mount.is_none())
    }
}

/// Opens a directory that the user names: symlinks in the path are followed, the last one too.
///
/// # Errors
/// Those of open(2), ENOTDIR for anything but a directory.
pub fn open_named_dir(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The same directories, reached by way of a detached clone of the mount that they share: the mount itself is
/// not in use by them. `trees` is as for [`mount::clone_read_only`].
///
/// # Errors
/// Where the right to clone is missing, or one of them has moved meanwhile.
pub fn detach(dirs: &[&OwnedFd], trees: &mut Vec<OwnedFd>) -> Result<Vec<OwnedFd>> {
    by_way_of(dirs, |shared| mount::clone_as_is(shared, trees))
}

/// The same directories, each by way of a detached, read-only clone of its mount ([`mount::clone_read_only`]); as it
/// is where that is not permitted. Those of one mount share a clone: there may be many.
pub fn detach_read_only(dirs: Vec<OwnedFd>, trees: &mut Vec<OwnedFd>) -> Vec<OwnedFd> {
    let mut by_mount: HashMap<Option<u64>, Vec<usize>> = HashMap::new();
    for (at, dir) in dirs.iter().enumerate() {
        by_mount.entry(mount_id(dir)).or_default().push(at);
    }
    let mut clones: Vec<Option<OwnedFd>> = dirs.iter().map(|_| None).collect();
    for (mount, group) in by_mount {
        let members: Vec<&OwnedFd> = group.iter().filter_map(|&at| dirs.get(at)).collect();
        if mount.is_none() || members.len() < 2 {
            continue;
        }
        match by_way_of(&members, |shared| mount::clone_read_only(shared, trees)) {
            Ok(shared) => group.into_iter().zip(shared).for_each(|(at, clone)| clones[at] = Some(clone)),
            Err(e) => tracing::debug!("{} layers of one mount get a clone each: {e}", members.len()),
        }
    }
    let mut alone = |dir: OwnedFd| mount::clone_read_only(&dir, trees).unwrap_or(dir);
    dirs.into_iter().zip(clones).map(|(dir, clone)| clone.unwrap_or_else(|| alone(dir))).collect()
}

/// Opens directories again below a clone of the nearest directory above all of them.
fn by_way_of(dirs: &[&OwnedFd], clone: impl FnOnce(OwnedFd) -> Result<OwnedFd>) -> Result<Vec<OwnedFd>> {
    let paths = dirs
        .iter()
        .map(|dir| std::fs::read_link(super::proc_path(dir.as_fd(), None)))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(|e| errno(&e))?;
    let first = paths.first().ok_or(Errno::INVAL)?;
    let shared = first.ancestors().find(|above| paths.iter().all(|path| path.starts_with(above)));
    let shared = shared.ok_or(Errno::NOENT)?;
    let clone = clone(pin_named_dir(shared)?)?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let again = |(dir, path): (&&OwnedFd, &PathBuf)| {
        let below = path.strip_prefix(shared).ok().filter(|below| !below.as_os_str().is_empty());
        let below = below.unwrap_or(Path::new("."));
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat2(&clone, below, flags, Mode::empty(), resolve)?;
        // The path is only a hint: what counts is that it is the same directory.
        if file_id(&fd)? == file_id(dir)? { Ok(fd) } else { Err(Errno::STALE) }
    };
    dirs.iter().zip(&paths).map(again).collect()
}

/// Pins a directory that the user names, without the right to read it.
///
/// # Errors
/// Those of open(2), ENOTDIR for anything but a directory.
pub fn pin_named_dir(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Where the directory behind `fd` lies. The walk up ends early at a directory that may not be
/// searched.
///
/// # Errors
/// Those of fstat(2).
pub fn place(fd: impl AsFd) -> Result<Place> {
    let fd = fd.as_fd();
    let id = file_id(fd)?;
    let mount = mount_id(fd);
    let mut above = Vec::new();
    let mut here = (id, mount);
    let mut at: Option<OwnedFd> = None;
    loop {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let from = at.as_ref().map_or(fd, AsFd::as_fd);
        let Ok(parent) = rustix::fs::openat(from, "..", flags, Mode::empty()) else { break };
        // The mount too: a directory may be mounted on one that lies directly in it.
        let next = (file_id(parent.as_fd())?, mount_id(parent.as_fd()));
        if next == here {
            break;
        }
        above.push(next.0);
        here = next;
        at = Some(parent);
    }
    Ok(Place { id, mount, above })
}

fn file_id(fd: impl AsFd) -> Result<FileId> {
    rustix::fs::fstat(fd).map(|st| (st.st_dev, st.st_ino))
}

/// The number in the mount table of the mount that a descriptor was reached by; `None` before Linux 5.8.
pub fn mount_id(fd: impl AsFd) -> Option<u64> {
    let st = rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
    (st.stx_mask & StatxFlags::MNT_ID.bits() != 0).then_some(st.stx_mnt_id)
}

/// Whether entries can be made in a directory.
///
/// # Errors
/// EROFS on a read-only mount or filesystem, EACCES without the right.
pub fn check_writable(dir: impl AsFd) -> Result<()> {
    let dir = dir.as_fd();
    if rustix::fs::fstatvfs(dir)?.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Err(Errno::ROFS);
    }
    match rustix::fs::accessat(dir, ".", Access::WRITE_OK | Access::EXEC_OK, AtFlags::EACCESS) {
        // faccessat2(2) is of Linux 5.8: the first change will tell.
        Err(Errno::NOSYS) => Ok(()),
        other => other,
    }
}

/// Takes the exclusive lock on a directory, which belongs to the open file description: it is passed
/// on by fork(2) and given back by the kernel when the last descriptor is closed, be it by a crash.
///
/// # Errors
/// EWOULDBLOCK: someone else has it.
pub fn lock(dir: impl AsFd) -> Result<()> {
    rustix::fs::flock(dir, FlockOperation::NonBlockingLockExclusive)
}
