//! The layers of a mount, topmost first, and what their filesystems permit.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::config::ids::Ids;
use crate::config::{Options, Permissions, RedirectDir};
use crate::error::{Errno, Result};
use crate::format::names::{self, Namespace};
use crate::format::{acl, override_stat};
use crate::layer::dir::{Dir, LayerId};
use crate::layer::fd_cache::FdCache;
use crate::layer::identity::Identity;
use crate::layer::upper::Writable;
use crate::layer::work::WorkDir;
use crate::layer::{marks, owner, volatile};
use crate::sys::file::{self, Stat};
use crate::sys::xattr::Target;
use crate::sys::{cred, mount, place, process};

/// The upper's place in a writable stack that was just put together. Later it is [`Stack::upper`].
pub const UPPER: LayerId = 0;

/// What a layer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Takes all that is new or changed.
    Upper,
    /// Was the upper, and never changes any more (see [`Stack::freeze`]).
    Frozen,
    /// Belongs to the container: writable in place, below the upper.
    Init,
    /// Never changes.
    Lower,
}

/// The open directories that a stack is made of.
#[derive(Debug, Default)]
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
    /// Data-only lowers: they hold data that files of the lowers name by path, and show nothing.
    pub data: Vec<OwnedFd>,
    /// Nothing but to be closed some time, as for [`crate::sys::mount::clone_read_only`].
    pub trees: Vec<OwnedFd>,
}

#[derive(Debug)]
struct Layer {
    role: Role,
    root: Arc<Dir>,
    /// All names are names: none is a whiteout by its spelling.
    plain_names: AtomicBool,
    /// The attribute that owners and permissions are kept in.
    owner: Option<&'static OsStr>,
    /// Its mount translates owners, so that they are those that our mount shows.
    idmapped: bool,
}

/// The layers of a mount.
#[derive(Debug)]
pub struct Stack {
    layers: Vec<Layer>,
    /// The place of the topmost layer.
    first: LayerId,
    cache: Arc<FdCache>,
    data: Vec<Arc<Dir>>,
    work: Option<WorkDir>,
    init_work: Option<WorkDir>,
    identity: Identity,
    namespace: Namespace,
    ids: Ids,
    volatile: bool,
    /// The work directories have the mark of [`volatile`].
    marked: AtomicBool,
    follow_redirects: bool,
    wh_upper: bool,
    /// As in [`LayerFds::trees`].
    trees: Mutex<Vec<OwnedFd>>,
}

/// Directory descriptors kept open at most, by a limit of open files.
fn fd_budget() -> usize {
    usize::try_from(process::open_files() / 4).unwrap_or(16_384).clamp(64, 16_384)
}

impl Stack {
    /// Builds the stack. Lowers are cloned as private read-only mounts where permitted.
    ///
    /// # Errors
    /// Those of preparing the work directory.
    pub fn open(fds: LayerFds, options: &Options) -> Result<Self> {
        Self::assemble(fds, None, options)
    }

    /// Builds a stack in which nothing can be changed, yet the upper counts as what it is: its names that
    /// begin with `.wh.` are names. `fds` has no upper of its own.
    ///
    /// # Errors
    /// Those of reading the layers' roots.
    pub fn open_unchanged(upper: OwnedFd, mut fds: LayerFds, options: &Options) -> Result<Self> {
        let private = mount::clone_read_only(&upper, &mut fds.trees).unwrap_or(upper);
        Self::assemble(fds, Some(private), options)
    }

    fn assemble(fds: LayerFds, unchanged_upper: Option<OwnedFd>, options: &Options) -> Result<Self> {
        let userxattr = options.userxattr;
        let cache = Arc::new(FdCache::new(fd_budget()));
        let identity = Identity::default();
        let mut layers: Vec<Layer> = Vec::new();
        let writable = fds.upper.is_some();
        // Container engines give lowers on mounts that translate owners already, and our options besides.
        let idmapped = if options.ids.is_identity() { HashSet::new() } else { owner::idmapped_mounts() };
        let translates = |fd: &OwnedFd| place::mount_id(fd).is_some_and(|id| idmapped.contains(&id));
        let mut push = |role, fd: OwnedFd, idmapped: bool| -> Result<()> {
            let id = LayerId::try_from(layers.len()).map_err(|_| Errno::TOOBIG)?;
            let root = Dir::root(id, fd, &cache)?;
            identity.add(root.id().0, root.fd()?.as_fd());
            // Unpacked image layers and those of AUFS; what we wrote ourselves says that it is not one.
            let plain_names = AtomicBool::new(marks::has_plain_names(root.fd()?)?);
            // A writable layer gets the attribute by the options; what has one already goes on with it.
            let chosen = if role == Role::Lower { None } else { override_stat::chosen(options.permissions) };
            // Any owner of a layer can set `user.` ones: to a mount of the system's root they count only when it
            // says so, lest they make a file a set-user-ID program of root.
            let trusted = options.permissions == Permissions::Containers || !cred::is_host_admin();
            let found =
                owner::attribute(root.fd()?)?.filter(|name| trusted || !override_stat::is_of_user(name));
            let owner = match (found, chosen) {
                (None, Some(chosen)) if writable => {
                    owner::mark_root(root.fd()?, chosen)?;
                    Some(chosen)
                }
                (found, _) => found,
            };
            // A clone of a mount translates as that does, but is in no table: asked before.
            layers.push(Layer { role, root, plain_names, owner, idmapped });
            Ok(())
        };
        let mut work = None;
        if let Some((upper, workdir)) = fds.upper {
            push(Role::Upper, upper, false)?;
            work = Some(WorkDir::open(workdir, &cache, userxattr)?);
        } else if let Some(upper) = unchanged_upper {
            push(Role::Upper, upper, false)?;
        }
        if let Some(init) = fds.init {
            push(Role::Init, init, false)?;
        }
        let mut trees = fds.trees;
        let idmapped: Vec<bool> = fds.lowers.iter().map(translates).collect();
        for (lower, idmapped) in place::detach_read_only(fds.lowers, &mut trees).into_iter().zip(idmapped) {
            push(Role::Lower, lower, idmapped)?;
        }
        let bottom = LayerId::try_from(layers.len()).map_err(|_| Errno::TOOBIG)?;
        let data = place::detach_read_only(fds.data, &mut trees)
            .into_iter()
            .map(|layer| Dir::root(bottom, layer, &cache))
            .collect::<Result<Vec<_>>>()?;
        let init_work = match (fds.init_work, &work) {
            (Some(dir), Some(_)) => Some(WorkDir::open(dir, &cache, userxattr)?),
            _ => None,
        };
        let namespace = match (&work, userxattr) {
            (Some(work), _) => work.abilities().namespace,
            (None, Some(user)) => {
                if user {
                    Namespace::User
                } else {
                    Namespace::Trusted
                }
            }
            // Only an administrator sees trusted ones.
            (None, None) => {
                if cred::is_host_admin() {
                    Namespace::Trusted
                } else {
                    Namespace::User
                }
            }
        };
        Ok(Self {
            layers,
            first: UPPER,
            cache,
            data,
            work,
            init_work,
            identity,
            namespace,
            ids: options.ids.clone(),
            volatile: options.volatile,
            marked: AtomicBool::new(false),
            follow_redirects: options.redirect_dir != RedirectDir::NoFollow,
            wh_upper: options.wh_upper,
            trees: Mutex::new(trees),
        })
    }

    /// Ends what was needed to open the layers and takes time to be ended.
    pub fn let_trees_go(&self) {
        let trees = std::mem::take(&mut *self.trees.lock());
        drop(trees);
    }

    /// The number of layers.
    pub fn len(&self) -> usize {
        self.layers.len()
    }

    /// Never: a stack has a layer at least.
    pub fn is_empty(&self) -> bool {
        self.layers.is_empty()
    }

    /// The upper's place; of a stack without one that of the topmost layer.
    pub fn upper(&self) -> LayerId {
        self.first
    }

    /// How many layers lie above this one.
    pub fn position(&self, layer: LayerId) -> usize {
        usize::try_from(i32::from(layer) - i32::from(self.first)).unwrap_or(usize::MAX)
    }

    fn layer(&self, layer: LayerId) -> Option<&Layer> {
        self.layers.get(self.position(layer))
    }

    /// What a layer is for; anything unknown counts as a lower.
    pub fn role(&self, layer: LayerId) -> Role {
        self.layer(layer).map_or(Role::Lower, |l| l.role)
    }

    /// Whether objects of a layer are changed where they are.
    pub fn in_place(&self, layer: LayerId) -> bool {
        self.work.is_some() && matches!(self.role(layer), Role::Upper | Role::Init)
    }

    /// Whether a layer is the last one: nothing lies below it.
    pub fn is_bottom(&self, layer: LayerId) -> bool {
        self.position(layer).saturating_add(1) >= self.layers.len()
    }

    /// Whether names of a layer that begin with `.wh.` are whiteouts, in the form of AUFS and of the OCI
    /// image spec (layer.md, "Whiteouts").
    pub fn has_wh_names(&self, layer: LayerId) -> bool {
        self.layer(layer).is_some_and(|l| {
            let by_role = match l.role {
                Role::Lower => true,
                Role::Upper | Role::Frozen => self.wh_upper,
                Role::Init => false,
            };
            by_role && !l.plain_names.load(Ordering::Relaxed)
        })
    }

    /// Whether a layer's entry of this name is a mark, not an entry. In a writable layer only the opaque
    /// whiteout is one: fuse-overlayfs puts it beside the xattr that says the same.
    pub fn is_mark(&self, layer: LayerId, name: &OsStr) -> bool {
        names::is_wh(name)
            && (self.has_wh_names(layer)
                || (name == names::WH_OPAQUE
                    && self.layer(layer).is_some_and(|l| !l.plain_names.load(Ordering::Relaxed))))
    }

    /// Records that a layer has the mark [`Mark::PlainNames`](names::Mark::PlainNames) now.
    pub fn note_plain_names(&self, layer: LayerId) {
        if let Some(layer) = self.layer(layer) {
            layer.plain_names.store(true, Ordering::Relaxed);
        }
    }

    /// The attribute that a layer keeps owners and permissions in, if it does not keep them in the inodes.
    pub fn owner_attribute(&self, layer: LayerId) -> Option<&'static OsStr> {
        self.layer(layer)?.owner
    }

    /// Whether any layer has such an attribute.
    pub fn has_owner_attributes(&self) -> bool {
        self.layers.iter().any(|l| l.owner.is_some())
    }

    /// Whether a layer has the owners that the mount shows.
    pub fn is_idmapped(&self, layer: LayerId) -> bool {
        self.layer(layer).is_some_and(|l| l.idmapped)
    }

    /// How owners are translated between the layers and the mount.
    pub fn ids(&self) -> &Ids {
        &self.ids
    }

    /// Makes the owner of an object of a layer the one that it would have in the others.
    pub fn unmap(&self, layer: LayerId, st: &mut Stat) {
        if self.is_idmapped(layer) {
            (st.uid, st.gid) = (self.ids.users.stored(st.uid), self.ids.groups.stored(st.gid));
        }
    }

    /// The same for the value of an ACL.
    pub fn unmap_acl(&self, layer: LayerId, acl: &mut [u8]) {
        if self.is_idmapped(layer) {
            acl::map_ids(acl, |id| self.ids.users.stored(id), |id| self.ids.groups.stored(id));
        }
    }

    /// Attributes of the object of a layer behind `fd`, with the owner and permissions that the layer keeps.
    ///
    /// # Errors
    /// Those of fstat(2); EINVAL for malformed ones.
    pub fn stat(&self, layer: LayerId, fd: impl AsFd) -> Result<Stat> {
        let mut st = file::stat_fd(&fd)?;
        self.unmap(layer, &mut st);
        if let Some(name) = self.owner_attribute(layer) {
            owner::apply(Target::fd(&fd), name, &mut st)?;
        }
        Ok(st)
    }

    /// The roots of the layers, topmost first.
    pub fn roots(&self) -> impl ExactSizeIterator<Item = &Arc<Dir>> {
        self.layers.iter().map(|l| &l.root)
    }

    /// Whether there are data-only layers.
    pub fn has_data_only(&self) -> bool {
        !self.data.is_empty()
    }

    /// The roots of the data-only layers, in the order in which they are asked.
    pub fn data_roots(&self) -> impl Iterator<Item = &Arc<Dir>> {
        self.data.iter()
    }

    /// Whether anything can be changed.
    pub fn is_writable(&self) -> bool {
        self.work.is_some()
    }

    /// Where changes to a layer are prepared.
    ///
    /// # Errors
    /// EROFS for a lower and on a read-only stack.
    pub fn work(&self, layer: LayerId) -> Result<&WorkDir> {
        let work = match self.role(layer) {
            Role::Upper => self.work.as_ref(),
            Role::Init => self.init_work.as_ref().or(self.work.as_ref()),
            Role::Lower | Role::Frozen => None,
        };
        work.ok_or(Errno::ROFS)
    }

    /// The right to change a directory of the upper or the init layer.
    ///
    /// # Errors
    /// EROFS for a lower and on a read-only stack.
    pub fn writable(&self, dir: &Arc<Dir>) -> Result<Writable> {
        if self.in_place(dir.layer()) { Ok(Writable::new(dir.clone())) } else { Err(Errno::ROFS) }
    }

    /// Puts an empty upper on top, with its work directory; the one so far, which must have all names of its hardlinks,
    /// stays below it and never changes any more. Nothing of the tree changes but the attributes of the root, which are the new upper's from now on.
    ///
    /// # Errors
    /// EROFS for a stack without an upper; EOPNOTSUPP where the new directories permit less than the old ones; those
    /// of preparing them. The stack is as before then.
    pub fn freeze(&mut self, upper: OwnedFd, work: OwnedFd) -> Result<()> {
        let (Some(old), Some(top)) = (&self.work, self.layers.first().filter(|l| l.role == Role::Upper))
        else {
            return Err(Errno::ROFS);
        };
        let id = self.first.checked_sub(1).ok_or(Errno::TOOBIG)?;
        let root = Dir::root(id, upper, &self.cache)?;
        let owner = top.owner;
        let work = WorkDir::open(work, &self.cache, Some(self.namespace == Namespace::User))?;
        if !work.abilities().reach(old.abilities()) {
            return Err(Errno::OPNOTSUPP);
        }
        let marked = self.marked.load(Ordering::Relaxed);
        if marked {
            volatile::mark(work.staging())?;
        }
        work.take_gone(old)?;
        if let Some(owner) = owner {
            owner::mark_root(root.fd()?, owner)?;
        }
        self.identity.add(root.id().0, root.fd()?.as_fd());
        // What init changes is prepared where it was: in reach of a rename.
        let old = self.work.replace(work);
        if self.init_work.is_none() && self.layers.iter().any(|l| l.role == Role::Init) {
            self.init_work = old;
        } else if let Some(Err(e)) = old.filter(|_| marked).map(|old| volatile::settle(old.staging())) {
            tracing::warn!("the old work directory stays marked as that of a volatile mount: {e}");
        }
        if let Some(top) = self.layers.first_mut() {
            top.role = Role::Frozen;
        }
        let plain_names = AtomicBool::new(false);
        self.layers.insert(0, Layer { role: Role::Upper, root, plain_names, owner, idmapped: false });
        self.first = id;
        Ok(())
    }

    /// How many descriptors of directories are kept open.
    pub fn open_directories(&self) -> usize {
        self.cache.len()
    }

    /// Deletes what could not be deleted in the work directories for want of descriptors.
    pub fn purge_again(&self) {
        self.work.iter().chain(&self.init_work).for_each(WorkDir::purge_again);
    }

    /// Closes the descriptors of directories that nobody uses right now. They are opened again when needed.
    pub fn close_directories(&self) {
        self.cache.clear();
    }

    /// Inode numbers of the union.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The namespace of the mount's private xattrs.
    pub fn namespace(&self) -> Namespace {
        self.namespace
    }

    /// Whether redirects in the layers are followed.
    pub fn follows_redirects(&self) -> bool {
        self.follow_redirects
    }

    /// Whether syncs are skipped.
    pub fn volatile(&self) -> bool {
        self.volatile
    }

    /// Marks the work directories of a stack that skips syncs, so that they are refused after a crash; see
    /// [`volatile`].
    ///
    /// # Errors
    /// Those of making files in the work directory.
    pub fn mark_volatile(&self) -> Result<()> {
        self.marked.store(true, Ordering::Relaxed);
        self.work.iter().chain(&self.init_work).try_for_each(|work| volatile::mark(work.staging()))
    }

    /// Brings the writable layers of a stack that was marked to their device and takes the marks away. Nothing may
    /// change the layers any more.
    ///
    /// # Errors
    /// Those of syncfs(2); the mark stays then.
    pub fn settle_volatile(&self) -> Result<()> {
        self.work.iter().chain(&self.init_work).try_for_each(|work| volatile::settle(work.staging()))
    }
}
