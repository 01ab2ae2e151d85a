//! Applying a layer archive: it becomes a directory that can be mounted as a lower layer.
//!
//! All is made in a staging directory beside the target, on its filesystem, and moved to its place when it is
//! complete, on the disk, and has the digests that were asked for. What a crash leaves in the staging directory,
//! the next try removes.

use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::RenameFlags;

use super::codec::{Compression, Decoder};
use super::digest::{Digest, Digesting};
use super::ids::IdMap;
use super::tar::{Fault, Limits, Reader};
use super::unpack::Unpack;
use super::{Watch, Watched};
use crate::config::Options;
use crate::error::{Errno, MountError, Outcome, errno};
use crate::layer::claim::explain;
use crate::layer::fd_cache::FdCache;
use crate::layer::stack::{LayerFds, Stack};
use crate::layer::upper::Writable;
use crate::layer::work::WorkDir;
use crate::sys::cred::Caller;
use crate::sys::{file, place};

const TARGET: &str = "directory";

/// How a layer is to be applied.
#[derive(Debug, Default)]
pub struct Wanted {
    /// The digest of the archive as it is, compressed or not.
    pub digest: Option<Digest>,
    /// The digest of the archive without compression.
    pub diff_id: Option<Digest>,
    /// How much it may ask for.
    pub limits: Limits,
    /// Owners on this machine.
    pub uids: IdMap,
    /// Groups on this machine.
    pub gids: IdMap,
    /// Keep owners, modes and device numbers in attributes, as an unprivileged user can
    /// (`user.containers.override_stat`).
    pub rootless: bool,
    /// Private attributes in `user.overlay.`; `None`: what is permitted.
    pub userxattr: Option<bool>,
    /// Layers below, topmost first: for hardlinks to their files, and for the attributes of directories that the
    /// archive does not mention.
    pub lowers: Vec<PathBuf>,
}

/// What was applied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Applied {
    /// Digest of the archive without compression.
    pub diff_id: Option<Digest>,
    /// Digest of the archive as it is.
    pub digest: Option<Digest>,
    /// Bytes of the archive without compression.
    pub archive_size: u64,
    /// Bytes of the archive as it is.
    pub size: u64,
    /// What was left out, one sentence each.
    pub notes: Vec<String>,
    /// Whether the directory would be another above other layers: it has copies of what lies below.
    pub depends: bool,
    /// How the archive was compressed.
    pub compression: Option<Compression>,
}

/// A directory in the making.
#[derive(Debug)]
struct Staging {
    /// Where the target is to be.
    parent: OwnedFd,
    target: OsString,
    /// The staging directory, in `parent`. It is locked as long as this is open.
    name: OsString,
    _lock: OwnedFd,
    work: WorkDir,
    /// The tree, in the staging part of `work`.
    tree: OsString,
    root: Writable,
}

impl Staging {
    fn new(target: &Path, userxattr: Option<bool>) -> Outcome<Self> {
        let complain = |e| explain(TARGET, target, e);
        let absolute = std::path::absolute(target).map_err(|e| complain(errno(&e)))?;
        let (Some(above), Some(last)) = (absolute.parent(), absolute.file_name()) else {
            return Err(MountError::path(TARGET, target, "cannot be replaced; name a directory to be made"));
        };
        let parent = place::open_named_dir(above).map_err(|e| explain(TARGET, above, e))?;
        refuse_occupied(&parent, last, target)?;
        let mut name = OsString::from(".");
        name.push(last);
        name.push(".applying");
        match file::mkdir(&parent, &name, 0o700) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(Errno::NAMETOOLONG) => return Err(complain(Errno::NAMETOOLONG)),
            Err(e) => return Err(explain(TARGET, above, e)),
        }
        let path = above.join(&name);
        let open = || file::open_dir(&parent, &name);
        let lock = open().map_err(|e| explain("staging directory", &path, e))?;
        place::lock(&lock).map_err(|_| complain_busy(target))?;
        let cache = Arc::new(FdCache::new(256));
        let prepare = || -> Result<_, Errno> {
            let work = WorkDir::open(open()?, &cache, userxattr)?;
            let tree = work.temp_name();
            work.staging().mkdir(&tree, 0o700, &Caller::daemon())?;
            let root = work.staging().below(&tree)?;
            Ok((work, tree, root))
        };
        let (work, tree, root) = prepare().map_err(|e| explain("staging directory", &path, e))?;
        Ok(Self { parent, target: last.to_owned(), name, _lock: lock, work, tree, root })
    }

    /// Moves the tree to its place.
    fn publish(&self) -> Result<(), Errno> {
        rustix::fs::syncfs(self.root.fd()?)?;
        // A directory is moved over an empty one only.
        let from = self.work.staging().fd()?;
        file::rename(from, &self.tree, &self.parent, &self.target, RenameFlags::empty())?;
        rustix::fs::fsync(&self.parent)
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Nothing is left of it after it was published.
        if file::stat_at(&self.parent, &self.name).is_ok() {
            let made = self.work.staging().fd().is_ok_and(|fd| file::stat_at(&fd, &self.tree).is_ok());
            if made {
                self.work.purge(&self.tree);
            }
            if let Ok(dir) = file::open_dir(&self.parent, &self.name) {
                for part in ["work", "index", "gone"] {
                    let _ = file::rmdir(&dir, OsStr::new(part));
                }
            }
            if let Err(e) = file::rmdir(&self.parent, &self.name) {
                tracing::warn!("left behind: {}: {e}", self.name.display());
            }
        }
    }
}

fn complain_busy(target: &Path) -> MountError {
    MountError::path(TARGET, target, "is being made by another process; wait for that to end")
}

/// Refuses a target that is there and not an empty directory.
fn refuse_occupied(parent: &OwnedFd, name: &OsStr, target: &Path) -> Outcome<()> {
    let occupied =
        || MountError::path(TARGET, target, "is there already; remove it or name another directory");
    match file::stat_at(parent, name) {
        Err(Errno::NOENT) => Ok(()),
        Err(e) => Err(explain(TARGET, target, e)),
        Ok(st) if !st.is_dir() => Err(occupied()),
        Ok(_) => {
            let mut empty = true;
            let dir = file::open_dir(parent, name).map_err(|e| explain(TARGET, target, e))?;
            file::list(&dir, |_, _, _| {
                empty = false;
                Ok(())
            })
            .map_err(|e| explain(TARGET, target, e))?;
            if empty { Ok(()) } else { Err(occupied()) }
        }
    }
}

/// The layers below, to look into.
fn below(lowers: &[PathBuf]) -> Outcome<Option<Stack>> {
    if lowers.is_empty() {
        return Ok(None);
    }
    let open = |path: &PathBuf| place::open_named_dir(path).map_err(|e| explain("lower layer", path, e));
    let lowers = lowers.iter().map(open).collect::<Outcome<_>>()?;
    let fds = LayerFds { lowers, ..LayerFds::default() };
    let stack = Stack::open(fds, &Options::default());
    stack.map(Some).map_err(|e| MountError::System(format!("the lower layers cannot be put together: {e}")))
}

/// Applies the archive that `from` gives, called `name` in complaints, as the directory `target`, which must not be
/// there, or be empty.
///
/// # Errors
/// A sentence that names the entry that is refused. `target` is as it was then.
pub fn apply(
    from: impl Read,
    name: &Path,
    target: &Path,
    wanted: &Wanted,
    watch: &dyn Watch,
) -> Outcome<Applied> {
    let refuse = |fault: Fault| MountError::path("layer", name, fault.to_string());
    let lowers = below(&wanted.lowers)?;
    let staging = Staging::new(target, wanted.userxattr)?;
    let watched = Watched::new(from, watch);
    let decoder = Decoder::new(Digesting::new(watched)).map_err(|e| refuse(e.into()))?;
    let compression = decoder.compression();
    let mut reader = Reader::new(Digesting::new(decoder), wanted.limits);
    let mut unpack = Unpack::new(&staging.work, staging.root.clone(), lowers.as_ref(), wanted);
    while let Some(entry) = reader.next_entry().map_err(refuse)? {
        unpack.entry(&entry, &mut reader).map_err(refuse)?;
    }
    let (notes, depends) = unpack.finish().map_err(refuse)?;
    let (decoder, diff_id, archive_size) = reader.finish().map_err(refuse)?.finish();
    let (_, digest, size) = decoder.finish().map_err(|e| refuse(e.into()))?.finish();
    for (what, wanted, found) in [("digest", wanted.digest, digest), ("diff ID", wanted.diff_id, diff_id)] {
        if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
            let reason = format!("has the {what} {found}, not {wanted}; get it anew");
            return Err(MountError::path("layer", name, reason));
        }
    }
    staging.publish().map_err(|e| match e {
        Errno::NOTEMPTY | Errno::EXIST => {
            MountError::path(TARGET, target, "is there already; remove it or name another directory")
        }
        e => explain(TARGET, target, e),
    })?;
    Ok(Applied {
        diff_id: Some(diff_id),
        digest: Some(digest),
        archive_size,
        size,
        notes,
        depends,
        compression: Some(compression),
    })
}
