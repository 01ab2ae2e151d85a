//! Applying a layer archive: it becomes a directory that can be mounted as a lower layer.
//!
//! All is made in a staging directory beside the target, on its filesystem, and moved to its place when it is
//! complete, on the disk, and has the digests that were asked for. What a crash leaves in the staging directory,
//! the next try removes.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use rustix::fs::RenameFlags;

use super::ahead::{self, Ahead};
use super::codec::{Compression, Decoder};
use super::digest::{Digest, Digesting};
use super::tar::{Fault, Reader};
use super::unpack::Unpack;
use super::wanted::Wanted;
use super::{Watch, Watched};
use crate::config::Options;
use crate::error::{Errno, MountError, Outcome, errno};
use crate::layer::fd_cache::FdCache;
use crate::layer::located::explain;
use crate::layer::stack::{LayerFds, Stack};
use crate::layer::upper::Writable;
use crate::layer::work::WorkDir;
use crate::sys::cred::Caller;
use crate::sys::{file, place};

const TARGET: &str = "directory";

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

/// Digests and sizes of what was read.
struct Summed {
    diff_id: Digest,
    archive_size: u64,
    digest: Digest,
    size: u64,
}

/// Reads to the end, and hands on what is read. An archive without compression has one digest.
fn read_all(decoder: Decoder<Digesting<impl Read>>, to: &SyncSender<ahead::Piece>) -> io::Result<Summed> {
    let mut decoder = decoder;
    if decoder.compression() == Compression::None {
        ahead::send(&mut decoder, to);
        let (_, digest, size) = decoder.finish()?.finish();
        return Ok(Summed { diff_id: digest, archive_size: size, digest, size });
    }
    let mut digesting = Digesting::new(decoder);
    ahead::send(&mut digesting, to);
    let (decoder, diff_id, archive_size) = digesting.finish();
    let (_, digest, size) = decoder.finish()?.finish();
    Ok(Summed { diff_id, archive_size, digest, size })
}

/// Makes the tree. Gives notes, and whether it depends on the layers below.
fn unpack(
    from: Ahead,
    staging: &Staging,
    lowers: Option<&Stack>,
    wanted: &Wanted,
) -> Result<(Vec<String>, bool), Fault> {
    let mut reader = Reader::new(from, wanted.limits);
    let mut unpack = Unpack::new(&staging.work, staging.root.clone(), lowers, wanted);
    while let Some(entry) = reader.next_entry()? {
        unpack.entry(&entry, &mut reader)?;
    }
    let done = unpack.finish()?;
    // What follows the archive counts for the digest.
    reader.finish()?;
    Ok(done)
}

/// Applies the archive that `from` gives, called `name` in complaints, as the directory `target`, which must not be
/// there, or be empty.
///
/// # Errors
/// A sentence that names the entry that is refused. `target` is as it was then.
pub fn apply(
    from: impl Read + Send,
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
    let (to, pieces) = sync_channel(ahead::WAITING);
    let (unpacked, read) = std::thread::scope(|scope| {
        let reading = scope.spawn(move || read_all(decoder, &to));
        let unpacked = unpack(Ahead::new(pieces), &staging, lowers.as_ref(), wanted).map_err(refuse);
        (unpacked, reading.join())
    });
    let (notes, depends) = unpacked?;
    let read = read.map_err(|_| refuse(Fault::Archive("cannot be read: its reader has failed".into())))?;
    let Summed { diff_id, archive_size, digest, size } = read.map_err(|e| refuse(e.into()))?;
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
