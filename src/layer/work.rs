//! The work directory: `work/` for things in the making and `index/` for hardlinks, as the kernel's
//! overlayfs keeps them; `gone/` for removed names of hardlinks, which is our own.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::fs::{FileType, OFlags, RenameFlags, XattrFlags};

use crate::error::{Errno, Result, errno};
use crate::format::names::{Mark, Namespace};
use crate::layer::dir::Dir;
use crate::layer::fd_cache::FdCache;
use crate::layer::upper::Writable;
use crate::sys::cred::Caller;
use crate::sys::file;
use crate::sys::xattr::{self, Target};

const DEFAULT_ACL: &str = crate::format::acl::DEFAULT;

/// What the filesystem of a writable layer and our rights permit, found by trying.
#[derive(Debug, Clone, Copy)]
pub struct Abilities {
    /// Where private xattrs go.
    pub namespace: Namespace,
    /// Private xattrs can be set at all.
    pub xattrs: bool,
    /// Whiteouts can be 0:0 character devices.
    pub whiteout_device: bool,
    /// A rename can leave a whiteout behind (RENAME_WHITEOUT).
    pub rename_whiteout: bool,
    /// Files can be made without a name (O_TMPFILE).
    pub nameless: bool,
}

impl Abilities {
    /// Whether objects of this type take private xattrs: symlinks and special files have no `user.*` ones
    /// (xattr(7)).
    pub fn marks(&self, kind: FileType) -> bool {
        let any = self.namespace == Namespace::Trusted;
        self.xattrs && (any || matches!(kind, FileType::RegularFile | FileType::Directory))
    }

    /// Whether all is permitted that is with `other`, and private xattrs go to the same place.
    pub fn reach(&self, other: &Self) -> bool {
        self.namespace == other.namespace
            && self.xattrs >= other.xattrs
            && self.whiteout_device >= other.whiteout_device
            && self.rename_whiteout >= other.rename_whiteout
            && self.nameless >= other.nameless
    }
}

/// The work directory of a writable layer.
#[derive(Debug)]
pub struct WorkDir {
    work: Writable,
    index: Writable,
    gone: Writable,
    abilities: Abilities,
    next: AtomicU64,
    /// The last whiteout made (O_PATH).
    whiteout: Mutex<Option<Arc<OwnedFd>>>,
    /// Entries of `work` that could not be deleted.
    left: Mutex<Vec<OsString>>,
    /// Some of that for want of descriptors.
    lacked: AtomicBool,
}

impl WorkDir {
    /// Opens the work directory, makes its parts and removes what a crash left in `work/`.
    ///
    /// `userxattr`: the namespace of private xattrs, `None` to take what is permitted.
    ///
    /// # Errors
    /// Those of creating directories in it.
    pub fn open(fd: OwnedFd, cache: &Arc<FdCache>, userxattr: Option<bool>) -> Result<Self> {
        let sub = |name: &str| -> Result<Writable> {
            let name = OsStr::new(name);
            match file::mkdir(&fd, name, 0o700) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(e) => return Err(e),
            }
            let root = Dir::root(0, file::open_dir(&fd, name)?, cache)?;
            Ok(Writable::new(root))
        };
        let work = sub("work")?;
        inherit_nothing(&work)?;
        let next = AtomicU64::new(clean(&work)?);
        let abilities = probe(&work, &next, userxattr)?;
        Ok(Self {
            work,
            index: sub("index")?,
            gone: sub("gone")?,
            abilities,
            next,
            whiteout: Mutex::new(None),
            left: Mutex::default(),
            lacked: AtomicBool::new(false),
        })
    }

    /// Where things are made before they are published.
    pub fn staging(&self) -> &Writable {
        &self.work
    }

    /// Where hardlinks of copied-up files are kept, by origin.
    pub fn index(&self) -> &Writable {
        &self.index
    }

    /// Where it is recorded how many names of lower hardlinks are gone, by origin.
    pub fn gone(&self) -> &Writable {
        &self.gone
    }

    /// Takes over what `other` has recorded of removed names.
    pub fn take_gone(&self, other: &Self) -> Result<()> {
        let (from, to) = (other.gone.fd()?, self.gone.fd()?);
        file::list(&from, |name, _, _| match file::readlink(&from, name) {
            Ok(count) => file::symlink(&count, &to, name),
            // Nothing of ours.
            Err(Errno::INVAL) => Ok(()),
            Err(e) => Err(e),
        })
    }

    /// Drops the names in the index of files that have all their other names in the layer.
    ///
    /// # Errors
    /// Those of unlink(2).
    pub fn clear_index(&self) -> Result<()> {
        let fd = self.index.fd()?;
        let mut names = Vec::new();
        file::list(&fd, |name, _, kind| {
            if kind != FileType::Directory {
                names.push(name.to_owned());
            }
            Ok(())
        })?;
        names.iter().try_for_each(|name| self.index.unlink(name))
    }

    /// A name in [`Self::staging`] that nothing else has.
    pub fn temp_name(&self) -> OsString {
        temp_name(&self.next)
    }

    /// Moves an entry out of sight and deletes it there with all that is below it. The name is gone
    /// at once; what cannot be deleted is left for the next mount.
    pub fn discard(&self, dir: &Writable, name: &OsStr) -> Result<()> {
        let temp = self.temp_name();
        dir.rename(name, &self.work, &temp, RenameFlags::NOREPLACE)?;
        self.purge(&temp);
        Ok(())
    }

    /// Deletes an entry of [`Self::staging`] with all that is below it, as far as it can be. What is left is tried again
    /// with the next one, and at the next mount.
    pub fn purge(&self, temp: &OsStr) {
        self.purge_left(Some(temp));
    }

    /// Tries again to delete what could not be for want of descriptors, now that some are free.
    pub fn purge_again(&self) {
        if self.lacked.load(Ordering::Relaxed) && self.lacked.swap(false, Ordering::Relaxed) {
            self.purge_left(None);
        }
    }

    fn purge_left(&self, more: Option<&OsStr>) {
        let again = std::mem::take(&mut *self.left.lock());
        for temp in again.iter().map(OsString::as_os_str).chain(more) {
            match self.work.fd().and_then(|fd| remove_tree(&fd, temp)) {
                // By the call before, which failed later.
                Ok(()) | Err(Errno::NOENT) => {}
                Err(e) => {
                    if matches!(e, Errno::MFILE | Errno::NFILE) {
                        self.lacked.store(true, Ordering::Relaxed);
                    } else {
                        tracing::warn!("left in the work directory: {temp:?}: {e}");
                    }
                    self.left.lock().push(temp.to_owned());
                }
            }
        }
    }

    /// A directory to make entries in that are then moved to `like`: what is made here inherits what
    /// it would inherit there (group, set-group-ID, default ACL). It goes with all that is left in it
    /// when dropped.
    pub fn nursery(&self, like: &Writable) -> Result<Nursery<'_>> {
        let temp = self.temp_name();
        self.work.mkdir(&temp, 0o700, &Caller::daemon())?;
        let dir = self.adopt(&temp, like).inspect_err(|_| self.purge(&temp))?;
        Ok(Nursery { work: self, temp, dir })
    }

    fn adopt(&self, temp: &OsStr, like: &Writable) -> Result<Writable> {
        let fd = file::open_dir(self.work.fd()?, temp)?;
        let model = like.fd()?;
        let st = file::stat_fd(&model)?;
        file::chown_fd(&fd, None, Some(st.gid))?;
        file::chmod_fd(&fd, 0o700 | (st.mode & 0o2000))?;
        if let Some(acl) = xattr::get_opt(Target::Fd(model.as_fd()), OsStr::new(DEFAULT_ACL))? {
            xattr::set(Target::Fd(fd.as_fd()), OsStr::new(DEFAULT_ACL), &acl, XattrFlags::empty())?;
        }
        let st = file::stat_fd(&fd)?;
        Ok(Writable::new(Dir::below(self.work.dir(), temp, &st)))
    }

    /// What the filesystem permits.
    pub fn abilities(&self) -> &Abilities {
        &self.abilities
    }

    /// A whiteout in [`Self::staging`], in the form that is permitted, to be renamed to its place in a
    /// directory that [`Self::allow_whiteouts`] has prepared.
    pub fn make_whiteout(&self) -> Result<OsString> {
        let temp = self.temp_name();
        self.place_whiteout(&self.work, &temp)?;
        Ok(temp)
    }

    /// Makes a whiteout under a name that nothing has, as one step.
    pub fn new_whiteout(&self, dir: &Writable, name: &OsStr) -> Result<()> {
        if self.abilities.whiteout_device {
            return self.place_whiteout(dir, name);
        }
        let temp = self.make_whiteout()?;
        let placed = self.allow_whiteouts(dir);
        placed.and_then(|()| self.work.rename(&temp, dir, name, RenameFlags::NOREPLACE)).inspect_err(|_| {
            self.purge(&temp);
        })
    }

    fn place_whiteout(&self, dir: &Writable, name: &OsStr) -> Result<()> {
        let daemon = Caller::daemon();
        if self.abilities.whiteout_device {
            // One more name of the last one, while it has any: an inode less to make, as the kernel does.
            let last = self.whiteout.lock().clone();
            if last.is_some_and(|last| dir.link(&*last, name).is_ok()) {
                return Ok(());
            }
            dir.mknod(name, FileType::CharacterDevice.as_raw_mode(), 0, &daemon)?;
            *self.whiteout.lock() = file::open_path(dir.fd()?, name).ok().map(Arc::new);
            return Ok(());
        }
        // overlayfs.rst, "Whiteouts and opaque directories": a zero-size regular file with the
        // "overlay.whiteout" xattr, in a directory whose "overlay.opaque" is "x".
        dir.create(name, OFlags::WRONLY, 0, &daemon)?;
        dir.set_mark(name, Mark::Whiteout, self.abilities.namespace, b"y").inspect_err(|_| {
            let _ = dir.unlink(name);
        })
    }

    /// Marks a directory as one that may hold whiteouts of the permitted form.
    pub fn allow_whiteouts(&self, dir: &Writable) -> Result<()> {
        if self.abilities.whiteout_device {
            return Ok(());
        }
        let ns = self.abilities.namespace;
        let fd = dir.fd()?;
        // An opaque directory keeps its "y": nothing below it needs hiding.
        if xattr::get_opt(Target::Fd(fd.as_fd()), Mark::Opaque.name(ns))?.is_none() {
            dir.set_own_mark(Mark::Opaque, ns, b"x")?;
        }
        dir.expect_xattr_whiteouts();
        Ok(())
    }
}

/// A place to prepare new entries; see [`WorkDir::nursery`].
#[derive(Debug)]
pub struct Nursery<'a> {
    work: &'a WorkDir,
    temp: OsString,
    dir: Writable,
}

impl Nursery<'_> {
    /// The directory.
    pub fn dir(&self) -> &Writable {
        &self.dir
    }
}

impl Drop for Nursery<'_> {
    fn drop(&mut self) {
        self.work.purge(&self.temp);
    }
}

/// What is made in the work directory must not inherit from it: a copy has the attributes of its model,
/// and ACLs that the model lacks would stay.
fn inherit_nothing(work: &Writable) -> Result<()> {
    let fd = work.fd()?;
    let (target, name) = (Target::Fd(fd.as_fd()), OsStr::new(DEFAULT_ACL));
    // On Btrfs, to remove what is not there takes room as well.
    if xattr::get_opt(target, name)?.is_some() { xattr::remove(target, name) } else { Ok(()) }
}

/// Removes what a crash left; gives the first number from which on [`temp_name`] meets nothing of it.
fn clean(work: &Writable) -> Result<u64> {
    let found = leftovers(work)?;
    if found.is_empty() {
        return Ok(0);
    }
    found.iter().try_for_each(|name| removed(remove_leftover(work, name)))?;
    let number = |name: &OsString| u64::from_str_radix(name.to_str()?.strip_prefix('#')?, 16).ok();
    let last = leftovers(work)?.iter().filter_map(number).max();
    Ok(last.map_or(0, |last| last.saturating_add(1)))
}

/// Removed, or left for another time by a filesystem that is full: on some, to remove takes room.
fn removed(result: Result<()>) -> Result<()> {
    match result {
        Err(e) if is_full(e) => {
            tracing::warn!("left in the work directory: {e}");
            Ok(())
        }
        other => other,
    }
}

/// What a crash has left in `work/`: what has a name as we and the kernel's overlayfs give, for the directory
/// is the user's. The next mount removes it, and so does `unionfs check --repair`.
///
/// # Errors
/// Those of reading the directory.
pub fn leftovers(work: &Writable) -> Result<Vec<OsString>> {
    let mut names = Vec::new();
    file::list(work.fd()?, |name, _, _| {
        if name.as_encoded_bytes().starts_with(b"#") {
            names.push(name.to_owned());
        }
        Ok(())
    })?;
    Ok(names)
}

/// Removes one of the [`leftovers`], with all that is below it.
///
/// # Errors
/// Those of removing; what is removed by then stays so, and the rest can be removed again.
pub fn remove_leftover(work: &Writable, name: &OsStr) -> Result<()> {
    remove_tree(work.fd()?, name)
}

fn temp_name(next: &AtomicU64) -> OsString {
    format!("#{:x}", next.fetch_add(1, Ordering::Relaxed)).into()
}

/// Whether there was no room for what is permitted otherwise.
fn is_full(e: Errno) -> bool {
    matches!(e, Errno::NOSPC | Errno::DQUOT)
}

/// Tries on the work directory what its filesystem and our rights permit. One that is full can be mounted as well: how
/// else could room be made?
fn probe(staging: &Writable, next: &AtomicU64, userxattr: Option<bool>) -> Result<Abilities> {
    let fd = staging.fd()?;
    let daemon = Caller::daemon();
    let temp = temp_name(next);
    let made = match staging.mkdir(&temp, 0o700, &daemon) {
        Ok(()) => true,
        Err(e) if is_full(e) => false,
        Err(e) => return Err(e),
    };
    let settable = |ns: &Namespace| {
        let target = if made { Target::At(fd.as_fd(), &temp) } else { Target::Fd(fd.as_fd()) };
        let set = xattr::set(target, Mark::Opaque.name(*ns), b"n", XattrFlags::empty());
        if !made {
            // It means nothing here.
            let _ = xattr::remove(target, Mark::Opaque.name(*ns));
        }
        set.map_or_else(is_full, |()| true)
    };
    let candidates: &[Namespace] = match userxattr {
        Some(true) => &[Namespace::User],
        Some(false) => &[Namespace::Trusted],
        None => &[Namespace::Trusted, Namespace::User],
    };
    let namespace = candidates.iter().copied().find(settable);
    if made {
        removed(staging.rmdir(&temp))?;
    }
    // The other may be there yet.
    let temp = temp_name(next);
    let device = staging.mknod(&temp, FileType::CharacterDevice.as_raw_mode(), 0, &daemon);
    // Not known of a full one: then there is a way without.
    let mut rename_whiteout = false;
    if device.is_ok() {
        let other = temp_name(next);
        rename_whiteout = staging.rename(&temp, staging, &other, RenameFlags::WHITEOUT).is_ok();
        removed(staging.unlink(&temp))?;
        if rename_whiteout {
            removed(staging.unlink(&other))?;
        }
    }
    Ok(Abilities {
        namespace: namespace.or(candidates.first().copied()).unwrap_or(Namespace::Trusted),
        xattrs: namespace.is_some(),
        whiteout_device: device.map_or_else(is_full, |()| true),
        rename_whiteout,
        nameless: file::create_nameless(&fd, 0o600).is_ok(),
    })
}

/// Removes an entry and everything below it, without following symlinks. The depth is kept on the
/// heap: a layer may be deeper than a stack.
fn remove_tree(dir: impl AsFd, name: &OsStr) -> Result<()> {
    match file::unlink(&dir, name) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        other => return other,
    }
    let top = dir.as_fd().try_clone_to_owned().map_err(|e| errno(&e))?;
    let mut left = vec![(Arc::new(top), name.to_owned())];
    while let Some((parent, name)) = left.last().cloned() {
        match file::rmdir(&*parent, &name) {
            Ok(()) => {
                left.pop();
                continue;
            }
            Err(Errno::NOTEMPTY | Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
        let fd = Arc::new(file::open_dir(&*parent, &name)?);
        file::list(&*fd, |entry, _, _| match file::unlink(&*fd, entry) {
            Err(Errno::ISDIR | Errno::PERM) => {
                left.push((fd.clone(), entry.to_owned()));
                Ok(())
            }
            other => other,
        })?;
    }
    Ok(())
}
