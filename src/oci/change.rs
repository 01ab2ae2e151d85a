//! A change that an upper makes, and the layers that it is looked for in.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{FileType, OFlags};

use super::attributes::{of_entry, same_rights};
use crate::config::{LayerPaths, Options};
use crate::error::{Errno, MountError, Outcome, Result};
use crate::layer::dir::{Dir, LayerId};
use crate::layer::fd_cache::FdCache;
use crate::layer::located;
use crate::layer::look::look;
use crate::layer::owner;
use crate::layer::stack::{Stack, UPPER};
use crate::merge::attr::Attr;
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
    /// The root of the init layer.
    pub(super) init: Option<Arc<Dir>>,
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
                    Err(e) => return Err(located::explain("work directory", &path, e)),
                }
            }
            None => None,
        };
        let stack = Stack::open_unchanged(upper, fds, options).map_err(unusable)?;
        Ok(Self { stack, init, index })
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
