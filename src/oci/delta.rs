//! What an upper changes about the layers below it: the whole of `unionfs diff`, and the list of what a
//! layer archive must hold.
//!
//! Two merged trees are compared, the one with the upper and the one without it, but only where the upper
//! says that they may differ: below its own directories, and below those that lead elsewhere (redirects) or
//! hide everything (opaque ones). The init layer is in neither tree: it belongs to one container.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, OFlags};

use super::attributes::{of_entry, same_dirs, same_rights};
use super::links;
use crate::config::{LayerPaths, Options};
use crate::error::{Errno, MountError, Outcome, Result};
use crate::format::names;
use crate::layer::claim;
use crate::layer::dir::{Dir, LayerId};
use crate::layer::fd_cache::FdCache;
use crate::layer::look::look;
use crate::layer::owner;
use crate::layer::stack::{Stack, UPPER};
use crate::merge::attr::Attr;
use crate::merge::listing;
use crate::merge::lookup::{Data, DirFound, Found, Other, lookup, root_from};
use crate::merge::lowers::Parts;
use crate::sys::copy::read_full_at;
use crate::sys::file::{self, Stat};
use crate::sys::xattr::Target;

/// Descriptors of init and index directories kept open.
const SIDE_CACHE: usize = 64;
/// Bytes per read when contents are compared.
const BUFFER: usize = 128 << 10;

/// What has become of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The layers below have nothing of the name.
    Added,
    /// They have another object, or the same with other content or attributes; for a directory also: there
    /// is a change in it.
    Changed,
    /// They have it, and the union has not.
    Deleted,
}

impl Kind {
    /// `A`, `C` or `D`, as `docker diff` has them.
    pub fn letter(self) -> char {
        match self {
            Self::Added => 'A',
            Self::Changed => 'C',
            Self::Deleted => 'D',
        }
    }
}

/// A name that the upper says something about.
#[derive(Debug, Clone)]
pub struct Change {
    /// The path from the root, without a slash at its start; empty for the root itself.
    pub path: PathBuf,
    /// What has become of it. `None`: nothing, but a layer archive must hold it, for the sake of others.
    pub kind: Option<Kind>,
    /// What is there.
    pub what: What,
}

/// What is at a path.
#[derive(Debug, Clone)]
pub enum What {
    /// Nothing any more.
    Nothing {
        /// Whether an archive needs a whiteout to say so; not below an opaque directory.
        whiteout: bool,
    },
    /// A directory.
    Dir {
        /// Where its extended attributes are.
        part: Arc<Dir>,
        /// Its other attributes.
        stat: Stat,
        /// Whether an archive must say that nothing of the layers below shows.
        opaque: bool,
    },
    /// Anything else.
    Other(Other),
}

impl Change {
    /// The type of what is there.
    pub fn file_type(&self) -> Option<FileType> {
        match &self.what {
            What::Nothing { .. } => None,
            What::Dir { .. } => Some(FileType::Directory),
            What::Other(other) => Some(other.stat.kind()),
        }
    }
}

/// An upper with the layers below it, to be looked at.
#[derive(Debug)]
pub struct Upper {
    pub(super) stack: Stack,
    init: Option<Arc<Dir>>,
    pub(super) index: Option<Arc<Dir>>,
}

impl Upper {
    /// Opens the layers. The work directory of `layers` may be missing on disk; it is only looked into for
    /// its index of hardlinks.
    ///
    /// # Errors
    /// A sentence that names the layer that is unusable.
    pub fn open(layers: &LayerPaths, options: &Options) -> Outcome<Self> {
        let (upper, init, fds) = look(layers)?;
        let unusable = |e| MountError::System(format!("the layers cannot be put together: {e}"));
        let cache = Arc::new(FdCache::new(SIDE_CACHE));
        let side = |fd| Dir::root(UPPER, fd, &cache);
        let init = init.map(side).transpose().map_err(unusable)?;
        let index = match &layers.work {
            Some(work) => {
                let path = work.join("index");
                match file::open_dir(rustix::fs::CWD, path.as_os_str()) {
                    Ok(fd) => Some(side(fd).map_err(unusable)?),
                    Err(Errno::NOENT) => None,
                    Err(e) => return Err(claim::explain("work directory", &path, e)),
                }
            }
            None => None,
        };
        let stack = Stack::open_unchanged(upper, fds, options).map_err(unusable)?;
        Ok(Self { stack, init, index })
    }

    /// All changes, in the order of a walk that lists each directory by the bytes of its names.
    ///
    /// # Errors
    /// A sentence that names what cannot be read.
    pub fn changes(&self) -> Outcome<Vec<Change>> {
        let mut walk = Walk { upper: self, path: Vec::new(), frames: Vec::new(), found: Noted::default() };
        walk.run().map_err(|e| unreadable(&walk.path, e))?;
        let Noted { mut changes, unchanged_links } = walk.found;
        links::complete(self, &mut changes, unchanged_links)?;
        Ok(changes)
    }

    /// The root of the merged tree, or of that of the layers from `first` down.
    pub(super) fn root(&self, first: LayerId) -> Result<DirFound> {
        let mut found = root_from(&self.stack, first)?;
        if let Some(part) = found.parts.first() {
            self.own(part.layer(), Target::Fd(part.fd()?.as_fd()), &mut found.stat)?;
        }
        Ok(found)
    }

    /// What a name stands for, with the owner and permissions that its layer keeps.
    pub(super) fn lookup(&self, parts: &Parts, name: &OsStr) -> Result<Found> {
        let mut found = lookup(&self.stack, parts, name)?;
        match &mut found {
            Found::Nothing { .. } => {}
            Found::Dir(dir) => {
                if let Some(part) = dir.parts.first() {
                    self.own(part.layer(), Target::Fd(part.fd()?.as_fd()), &mut dir.stat)?;
                }
            }
            Found::Other(other) => {
                let fd = other.dir.fd()?;
                self.own(other.dir.layer(), Target::At(fd.as_fd(), &other.name), &mut other.stat)?;
            }
        }
        Ok(found)
    }

    /// Some layers keep owners and permissions in an attribute.
    pub(super) fn own(&self, layer: LayerId, target: Target<'_>, st: &mut Stat) -> Result<()> {
        match self.stack.owner_attribute(layer) {
            Some(name) => owner::apply(target, name, st),
            None => Ok(()),
        }
    }

    /// What a path of the merged tree stands for.
    pub(super) fn find(&self, path: &Path) -> Result<Found> {
        let mut found = Found::Dir(self.root(UPPER)?);
        for name in path {
            found = match found {
                Found::Dir(dir) => self.lookup(&dir.parts.into(), name)?,
                _ => return Ok(Found::Nothing { whiteout: None }),
            };
        }
        Ok(found)
    }
}

/// A sentence about what cannot be read.
pub(super) fn unreadable(path: &[u8], e: Errno) -> MountError {
    let reason = match e {
        Errno::IO => "cannot be read; a mark in the layers leads nowhere, or the disk is faulty".to_owned(),
        Errno::ACCESS | Errno::PERM => "may not be read by this user; run as root".to_owned(),
        Errno::STALE | Errno::NOENT => {
            "was changed while it was read; try again when nothing writes to the layers".to_owned()
        }
        e => format!("cannot be read: {e}"),
    };
    MountError::path("path", Path::new("/").join(OsStr::from_bytes(path)), reason)
}

/// What a walk has come across.
#[derive(Debug, Default)]
struct Noted {
    changes: Vec<Change>,
    /// Objects in the upper that are as they were, and have further names.
    unchanged_links: Vec<Change>,
}

/// A directory that is being compared.
struct Frame {
    path_len: usize,
    new: Parts,
    old: Option<Parts>,
    init: Option<Arc<Dir>>,
    names: std::vec::IntoIter<OsString>,
    /// Everything in it must be in an archive.
    whole: bool,
    /// Its own change: told when there is one, or one in it.
    own: Change,
    /// Where its own change is told.
    told: Option<usize>,
}

struct Walk<'a> {
    upper: &'a Upper,
    path: Vec<u8>,
    frames: Vec<Frame>,
    found: Noted,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<()> {
        let new = self.upper.root(UPPER)?;
        let old = self.upper.root(UPPER + 1)?;
        let init = self.upper.init.clone();
        self.enter(new, Some(old), init, false)?;
        while let Some(frame) = self.frames.last_mut() {
            self.path.truncate(frame.path_len);
            let Some(name) = frame.names.next() else {
                self.frames.pop();
                continue;
            };
            let (new, old) = (frame.new.clone(), frame.old.clone());
            let (init, whole) = (frame.init.clone(), frame.whole);
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name.as_bytes());
            let now = self.upper.lookup(&new, &name)?;
            let before = match &old {
                Some(old) => self.upper.lookup(old, &name)?,
                None => Found::Nothing { whiteout: None },
            };
            match (now, before) {
                (Found::Nothing { .. }, Found::Nothing { .. }) => {}
                (Found::Nothing { .. }, _) => {
                    self.tell(Some(Kind::Deleted), What::Nothing { whiteout: !whole });
                }
                (Found::Dir(now), before) => {
                    let init = init.map(|dir| below(&dir, &name)).transpose()?.flatten();
                    let before = match before {
                        Found::Dir(before) => Some(before),
                        Found::Other(_) => {
                            // Told here, since the directory alone looks like an addition.
                            self.enter_replaced(now, whole)?;
                            continue;
                        }
                        Found::Nothing { .. } => None,
                    };
                    self.enter(now, before, init, whole)?;
                }
                (Found::Other(now), before) => self.other(now, before, whole)?,
            }
        }
        Ok(())
    }

    /// Tells of a change at the current path, and of the directories on the way to it.
    fn tell(&mut self, kind: Option<Kind>, what: What) -> usize {
        for frame in &mut self.frames {
            match frame.told {
                None if frame.path_len == 0 => {}
                None => {
                    let mut own = frame.own.clone();
                    own.kind = kind.map(|_| Kind::Changed);
                    frame.told = Some(self.found.changes.len());
                    self.found.changes.push(own);
                }
                Some(at) => {
                    let told = &mut self.found.changes[at];
                    // The root is no change for what is in it.
                    if frame.path_len > 0 && told.kind.is_none() && kind.is_some() {
                        told.kind = Some(Kind::Changed);
                    }
                }
            }
        }
        self.found.changes.push(self.change(kind, what));
        self.found.changes.len() - 1
    }

    fn change(&self, kind: Option<Kind>, what: What) -> Change {
        Change { path: PathBuf::from(OsStr::from_bytes(&self.path)), kind, what }
    }

    /// A directory where something else was.
    fn enter_replaced(&mut self, now: DirFound, whole: bool) -> Result<()> {
        self.enter(now, None, None, whole)?;
        if let Some(frame) = self.frames.last()
            && let Some(at) = frame.told
        {
            self.found.changes[at].kind = Some(Kind::Changed);
        }
        Ok(())
    }

    /// Goes into a directory, unless nothing in it can have changed.
    fn enter(
        &mut self,
        now: DirFound,
        before: Option<DirFound>,
        init: Option<Arc<Dir>>,
        whole: bool,
    ) -> Result<()> {
        let Some(part) = now.parts.first().cloned() else { return Err(Errno::IO) };
        let new = Parts::from(now.parts);
        let untouched = before.as_ref().is_some_and(|b| same_parts(new.dirs(), &b.parts));
        if untouched && !whole {
            return Ok(());
        }
        let (own, changed) = self.attributes(part, now.stat, before.as_ref(), init.as_deref())?;
        let kind = match &before {
            None => Some(Kind::Added),
            Some(_) => changed.then_some(Kind::Changed),
        };
        let old = before.map(|b| Parts::from(b.parts));
        let mut names = self.names(&new, old.as_ref(), whole)?;
        let opaque = !whole && self.needs_opaque(&new, old.as_ref(), &names)?;
        if opaque {
            names = self.names(&new, old.as_ref(), true)?;
        }
        let (part, stat) = own;
        let what = What::Dir { part, stat, opaque };
        let told = if kind.is_some() || whole || opaque { Some(self.tell(kind, what.clone())) } else { None };
        self.frames.push(Frame {
            path_len: self.path.len(),
            new,
            old,
            init,
            names: names.into_iter(),
            whole: whole || opaque,
            own: self.change(kind, what),
            told,
        });
        Ok(())
    }

    /// The attributes of a directory for an image, and whether they are other than before. A directory that
    /// was copied up from the init layer has the attributes of that; these are the container's, not the
    /// image's.
    fn attributes(
        &self,
        part: Arc<Dir>,
        stat: Stat,
        before: Option<&DirFound>,
        init: Option<&Dir>,
    ) -> Result<((Arc<Dir>, Stat), bool)> {
        let Some((before, old)) = before.and_then(|b| b.parts.first().map(|p| (b, p))) else {
            return Ok(((part, stat), false));
        };
        if same_dirs((&part, &stat), (old, &before.stat))? {
            return Ok(((part, stat), false));
        }
        if let Some(init) = init
            && part.layer() == UPPER
            && same_dirs((&part, &stat), (init, &file::stat_fd(init.fd()?)?))?
        {
            let stat = Stat { mtime: stat.mtime, ..before.stat };
            return Ok(((old.clone(), stat), false));
        }
        Ok(((part, stat), true))
    }

    /// The names of a directory that may have changed.
    fn names(&self, new: &Parts, old: Option<&Parts>, whole: bool) -> Result<Vec<OsString>> {
        let stack = &self.upper.stack;
        let mut names = BTreeSet::new();
        let (top, below) = match new.dirs().split_first() {
            Some((top, below)) if top.layer() == UPPER => (Some(top), below),
            _ => (None, new.dirs()),
        };
        if !whole && old.is_some_and(|old| same_parts(below, old.dirs())) {
            if let Some(top) = top {
                file::list(top.fd()?, |name, _, _| {
                    if !stack.is_mark(UPPER, name) {
                        names.insert(name.to_owned());
                    } else if let Some(hidden) = names::wh_target(name) {
                        names.insert(hidden.to_owned());
                    }
                    Ok(())
                })?;
            }
        } else {
            for parts in [Some(new), old].into_iter().flatten() {
                names.extend(listing::list(stack, parts, false)?.into_iter().map(|e| e.name.into()));
            }
        }
        Ok(names.into_iter().collect())
    }

    /// Whether a name is gone that no whiteout of an archive can name: it would be too long, or a whiteout
    /// itself.
    fn needs_opaque(&self, new: &Parts, old: Option<&Parts>, names: &[OsString]) -> Result<bool> {
        let Some(old) = old else { return Ok(false) };
        let stack = &self.upper.stack;
        for name in names.iter().filter(|n| names::is_wh(n) || names::wh_name(n).is_none()) {
            if lookup(stack, old, name)?.is_some() && !lookup(stack, new, name)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn other(&mut self, now: Other, before: Found, whole: bool) -> Result<()> {
        let kind = match &before {
            Found::Nothing { .. } => Some(Kind::Added),
            Found::Dir(_) => Some(Kind::Changed),
            Found::Other(before) => (!same(&now, before)?).then_some(Kind::Changed),
        };
        let in_upper = now.dir.layer() == UPPER;
        if kind.is_some() || whole {
            self.tell(kind, What::Other(now));
        } else if in_upper && now.stat.nlink > 1 {
            let change = self.change(None, What::Other(now));
            self.found.unchanged_links.push(change);
        }
        Ok(())
    }
}

/// The directory `name` in one of the init layer.
fn below(dir: &Arc<Dir>, name: &OsStr) -> Result<Option<Arc<Dir>>> {
    match file::stat_at(dir.fd()?, name) {
        Ok(st) if st.is_dir() => Ok(Some(Dir::below(dir, name, &st))),
        Ok(_) | Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

fn place(dir: &Arc<Dir>) -> (LayerId, (u64, u64)) {
    (dir.layer(), dir.id())
}

/// Whether two directories are made of the same parts.
fn same_parts(a: &[Arc<Dir>], b: &[Arc<Dir>]) -> bool {
    a.iter().map(place).eq(b.iter().map(place))
}

/// Whether two objects, neither a directory, look the same: type, permissions, owner, device, target,
/// modification time, extended attributes, content. Link count and the other times do not count.
pub(super) fn same(a: &Other, b: &Other) -> Result<bool> {
    let (st, old) = (&a.stat, &b.stat);
    if (a.dir.layer(), st.dev, st.ino) == (b.dir.layer(), old.dev, old.ino) {
        return Ok(true);
    }
    let device = |st: &Stat| Attr::new(0, st).rdev;
    if !same_rights(st, old) || st.mtime != old.mtime || device(st) != device(old) {
        return Ok(false);
    }
    match st.kind() {
        FileType::RegularFile if st.size != old.size => return Ok(false),
        FileType::Symlink
            if file::readlink(a.dir.fd()?, &a.name)? != file::readlink(b.dir.fd()?, &b.name)? =>
        {
            return Ok(false);
        }
        _ => {}
    }
    if of_entry(&a.dir, &a.name)? != of_entry(&b.dir, &b.name)? {
        return Ok(false);
    }
    Ok(st.kind() != FileType::RegularFile || same_content(&Data::of(a), &Data::of(b), st.size)?)
}

fn same_content(a: &Data, b: &Data, size: u64) -> Result<bool> {
    if a.id == b.id {
        return Ok(true);
    }
    let (a, b) = (open_data(a)?, open_data(b)?);
    let (mut left, mut right) = (vec![0; BUFFER], vec![0; BUFFER]);
    let mut at = 0;
    loop {
        let n = read_full_at(&a, &mut left, at, size)?;
        if n != read_full_at(&b, &mut right, at, size)? || left[..n] != right[..n] {
            return Ok(false);
        }
        if n < BUFFER {
            return Ok(true);
        }
        at += n as u64;
    }
}

/// Opens the content of a regular file.
pub(super) fn open_data(data: &Data) -> Result<std::os::fd::OwnedFd> {
    let (fd, st) = file::open_regular(data.dir.fd()?.as_fd(), &data.name, OFlags::RDONLY, true)?;
    if (st.dev, st.ino) == data.id { Ok(fd) } else { Err(Errno::STALE) }
}
