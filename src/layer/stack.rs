//! The layers of a mount, topmost first, and what their filesystems permit.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, RenameFlags, XattrFlags};

use crate::error::{Errno, Result};
use crate::format::names::{Mark, Namespace};
use crate::layer::dir::{Dir, LayerId};
use crate::layer::fd_cache::FdCache;
use crate::layer::identity::Identity;
use crate::layer::upper::Writable;
use crate::layer::work::WorkDir;
use crate::sys::cred::Caller;
use crate::sys::xattr::{self, Target};
use crate::sys::{file, mount};

/// What a layer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Takes all that is new or changed.
    Upper,
    /// Belongs to the container: writable in place, below the upper.
    Init,
    /// Never changes.
    Lower,
}

/// The open directories that a stack is made of.
#[derive(Debug)]
pub struct LayerFds {
    /// The upper and its work directory; without them the stack is read-only.
    pub upper: Option<(OwnedFd, OwnedFd)>,
    /// The init layer.
    pub init: Option<OwnedFd>,
    /// The init layer's own work directory; given when the init layer is on another mount than the
    /// upper.
    pub init_work: Option<OwnedFd>,
    /// The lowers, topmost first.
    pub lowers: Vec<OwnedFd>,
}

/// What the upper's filesystem and our rights permit, found by trying.
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

/// The layers of a mount.
#[derive(Debug)]
pub struct Stack {
    roots: Vec<(Role, Arc<Dir>)>,
    work: Option<WorkDir>,
    identity: Identity,
    abilities: Abilities,
    volatile: bool,
}

/// Directory descriptors kept open at most, by a limit of open files.
fn fd_budget() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
    usize::try_from(limit / 4).unwrap_or(4096).clamp(64, 4096)
}

impl Stack {
    /// Builds the stack. Lowers are cloned as private read-only mounts where permitted.
    ///
    /// `userxattr`: the namespace of private xattrs, `None` to take what is permitted. `volatile`:
    /// skip syncs.
    ///
    /// # Errors
    /// Those of preparing the work directory.
    pub fn open(fds: LayerFds, userxattr: Option<bool>, volatile: bool) -> Result<Self> {
        let cache = Arc::new(FdCache::new(fd_budget()));
        let identity = Identity::default();
        let mut roots: Vec<(Role, Arc<Dir>)> = Vec::new();
        let mut push = |role, fd: OwnedFd| -> Result<()> {
            let id = LayerId::try_from(roots.len()).map_err(|_| Errno::TOOBIG)?;
            let root = Dir::root(id, fd, &cache)?;
            identity.add(root.id().0, root.fd()?.as_fd());
            roots.push((role, root));
            Ok(())
        };
        let mut work = None;
        if let Some((upper, workdir)) = fds.upper {
            push(Role::Upper, upper)?;
            work = Some(WorkDir::open(workdir, &cache)?);
        }
        if let Some(init) = fds.init {
            push(Role::Init, init)?;
        }
        for lower in fds.lowers {
            let clone = mount::clone_read_only(&lower).ok();
            push(Role::Lower, clone.unwrap_or(lower))?;
        }
        let abilities = match &work {
            Some(work) => probe(work, userxattr)?,
            None => Abilities {
                namespace: Namespace::Trusted,
                xattrs: false,
                whiteout_device: false,
                rename_whiteout: false,
                nameless: false,
            },
        };
        Ok(Self { roots, work, identity, abilities, volatile })
    }

    /// The number of layers.
    pub fn len(&self) -> usize {
        self.roots.len()
    }

    /// Never: a stack has a layer at least.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    /// What a layer is for; anything unknown counts as a lower.
    pub fn role(&self, layer: LayerId) -> Role {
        self.roots.get(usize::from(layer)).map_or(Role::Lower, |r| r.0)
    }

    /// Whether objects of a layer are changed where they are.
    pub fn in_place(&self, layer: LayerId) -> bool {
        self.work.is_some() && self.role(layer) != Role::Lower
    }

    /// Whether a layer is the last one: nothing lies below it.
    pub fn is_bottom(&self, layer: LayerId) -> bool {
        usize::from(layer) + 1 >= self.roots.len()
    }

    /// The roots of the layers, topmost first.
    pub fn roots(&self) -> impl ExactSizeIterator<Item = &Arc<Dir>> {
        self.roots.iter().map(|r| &r.1)
    }

    /// The work directory.
    ///
    /// # Errors
    /// EROFS on a read-only stack.
    pub fn work(&self) -> Result<&WorkDir> {
        self.work.as_ref().ok_or(Errno::ROFS)
    }

    /// The right to change a directory of the upper or the init layer.
    ///
    /// # Errors
    /// EROFS for a lower and on a read-only stack.
    pub fn writable(&self, dir: &Arc<Dir>) -> Result<Writable> {
        if self.in_place(dir.layer()) { Ok(Writable::new(dir.clone())) } else { Err(Errno::ROFS) }
    }

    /// Inode numbers of the union.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What the upper permits.
    pub fn abilities(&self) -> &Abilities {
        &self.abilities
    }

    /// Whether syncs are skipped.
    pub fn volatile(&self) -> bool {
        self.volatile
    }

    /// A whiteout in the work directory, in the form that is permitted, to be renamed to its place
    /// in a directory that [`Self::allow_whiteouts`] has prepared.
    pub fn make_whiteout(&self) -> Result<std::ffi::OsString> {
        let work = self.work()?;
        if self.abilities.whiteout_device {
            return work.make_whiteout_device();
        }
        // overlayfs.rst, "Whiteouts and opaque directories": a zero-size regular file with the
        // "overlay.whiteout" xattr, in a directory whose "overlay.opaque" is "x".
        let temp = work.temp_name();
        let staging = work.staging();
        let flags = rustix::fs::OFlags::WRONLY;
        staging.create(&temp, flags, FileType::RegularFile.as_raw_mode(), &Caller::root())?;
        staging.set_mark(&temp, Mark::Whiteout, self.abilities.namespace, b"y").inspect_err(|_| {
            work.purge(&temp);
        })?;
        Ok(temp)
    }

    /// Marks a directory as one that may hold whiteouts of the permitted form.
    pub fn allow_whiteouts(&self, dir: &Writable) -> Result<()> {
        if self.abilities.whiteout_device {
            return Ok(());
        }
        let ns = self.abilities.namespace;
        let fd = dir.fd()?;
        match xattr::get_opt(Target::Fd(fd.as_fd()), Mark::Opaque.name(ns))? {
            Some(_) => Ok(()),
            None => dir.set_own_mark(Mark::Opaque, ns, b"x"),
        }
    }
}

/// Tries on the work directory what its filesystem and our rights permit.
fn probe(work: &WorkDir, userxattr: Option<bool>) -> Result<Abilities> {
    let staging = work.staging();
    let fd = staging.fd()?;
    let temp = work.temp_name();
    staging.mkdir(&temp, 0o700, &Caller::root())?;
    let settable = |ns: Namespace| {
        let target = Target::At(fd.as_fd(), &temp);
        xattr::set(target, Mark::Opaque.name(ns), b"n", XattrFlags::empty()).is_ok()
    };
    let candidates: &[Namespace] = match userxattr {
        Some(true) => &[Namespace::User],
        Some(false) => &[Namespace::Trusted],
        None => &[Namespace::Trusted, Namespace::User],
    };
    let namespace = candidates.iter().copied().find(|ns| settable(*ns));
    let _ = file::rmdir(&fd, &temp);
    let device = work.make_whiteout_device();
    let mut rename_whiteout = false;
    if let Ok(name) = &device {
        let other = work.temp_name();
        rename_whiteout = staging.rename(name, staging, &other, RenameFlags::WHITEOUT).is_ok();
        let _ = staging.unlink(name);
        let _ = staging.unlink(if rename_whiteout { &other } else { OsStr::new(name) });
    }
    Ok(Abilities {
        namespace: namespace.or(candidates.first().copied()).unwrap_or(Namespace::Trusted),
        xattrs: namespace.is_some(),
        whiteout_device: device.is_ok(),
        rename_whiteout,
        nameless: file::create_nameless(&fd, 0o600).is_ok(),
    })
}
