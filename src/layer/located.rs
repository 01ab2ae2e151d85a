//! The directories of a mount, found and opened by the paths that name them. Each is opened once; all that follows goes by
//! that descriptor.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::config::{LayerPaths, MAX_LOWERS};
use crate::error::{Errno, MountError};
use crate::sys::place::{self, Place, Places};

pub(super) const LOWER: &str = "lower layer";
pub(super) const DATA: &str = "data-only layer";
pub(super) const UPPER: &str = "upper layer";
pub(super) const INIT: &str = "init layer";
pub(super) const WORK: &str = "work directory";
pub(super) const INIT_WORK: &str = "work directory of the init layer";
pub(super) const MOUNT_POINT: &str = "mount point";

/// The directories of a mount by role.
#[derive(Debug)]
pub(super) struct Directories<T> {
    pub(super) lowers: Vec<T>,
    pub(super) data: Vec<T>,
    pub(super) init: Option<T>,
    pub(super) upper: Option<T>,
    pub(super) work: Option<T>,
    pub(super) init_work: Option<T>,
}

/// A directory that was found.
#[derive(Debug, Clone)]
pub(super) struct Located {
    pub(super) what: &'static str,
    pub(super) path: PathBuf,
    pub(super) place: Place,
}

#[derive(Debug)]
pub(super) struct Opened {
    pub(super) at: Located,
    pub(super) fd: OwnedFd,
}

impl<T> Directories<T> {
    pub(super) fn writable(&self) -> impl Iterator<Item = &T> {
        [&self.upper, &self.work, &self.init, &self.init_work].into_iter().flatten()
    }

    /// The directories that are never changed.
    pub(super) fn read_only(&self) -> impl Iterator<Item = &T> {
        self.lowers.iter().chain(&self.data)
    }

    pub(super) fn map<U>(&self, mut f: impl FnMut(&T) -> U) -> Directories<U> {
        Directories {
            lowers: self.lowers.iter().map(&mut f).collect(),
            data: self.data.iter().map(&mut f).collect(),
            init: self.init.as_ref().map(&mut f),
            upper: self.upper.as_ref().map(&mut f),
            work: self.work.as_ref().map(&mut f),
            init_work: self.init_work.as_ref().map(&mut f),
        }
    }
}

impl Located {
    pub(super) fn name(&self) -> String {
        format!("the {} {}", self.what, self.path.display())
    }

    pub(super) fn error(&self, reason: impl Into<String>) -> MountError {
        MountError::path(self.what, &self.path, reason)
    }
}

/// A sentence for an error that opening a directory gave.
pub fn explain(what: &'static str, path: &Path, errno: Errno) -> MountError {
    let reason = match errno {
        Errno::NOENT if what == UPPER || what == MOUNT_POINT => {
            "does not exist; create it, or let --create do so".into()
        }
        Errno::NOENT => "does not exist; create it or correct the path".into(),
        Errno::NOTDIR => "is not a directory; name a directory".into(),
        Errno::ACCESS | Errno::PERM => {
            "may not be entered by this user; change its mode or run as root".into()
        }
        Errno::LOOP => "has too many symbolic links on the way; name the directory itself".into(),
        Errno::ROFS => "is on a read-only filesystem; choose a writable one".into(),
        Errno::NOTCONN => "is or lies in a mount whose daemon is dead; unmount that first".into(),
        Errno::MFILE | Errno::NFILE => "cannot be opened: raise the limit of open files (ulimit -n)".into(),
        other => format!("cannot be used: {other}"),
    };
    MountError::path(what, path, reason)
}

pub(super) fn open(layers: &LayerPaths) -> Result<Directories<Opened>, MountError> {
    let count = layers.lowers.len() + layers.data.len();
    if layers.lowers.is_empty() || count > MAX_LOWERS {
        let reason = format!("{count} lower layers are named; name 1 to {MAX_LOWERS}");
        return Err(MountError::option("LOWER", reason));
    }
    let mut places = Places::default();
    let mut one = |what, path: &PathBuf| open_one(what, path, &mut places);
    Ok(Directories {
        lowers: layers.lowers.iter().map(|p| one(LOWER, p)).collect::<Result<_, _>>()?,
        data: layers.data.iter().map(|p| one(DATA, p)).collect::<Result<_, _>>()?,
        init: layers.init.as_ref().map(|p| one(INIT, p)).transpose()?,
        upper: layers.upper.as_ref().map(|p| one(UPPER, p)).transpose()?,
        work: layers.work.as_ref().map(|p| one(WORK, p)).transpose()?,
        init_work: layers.init_work.as_ref().map(|p| one(INIT_WORK, p)).transpose()?,
    })
}

pub(super) fn open_one(what: &'static str, path: &Path, places: &mut Places) -> Result<Opened, MountError> {
    let complain = |e| explain(what, path, e);
    let fd = place::open_named_dir(path).map_err(complain)?;
    let place = places.find(&fd).map_err(complain)?;
    Ok(Opened { at: Located { what, path: path.to_owned(), place }, fd })
}
