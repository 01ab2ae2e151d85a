//! An object of the union that the kernel knows, or that is needed by one. There may be millions: what few of
//! them need is kept aside.

use std::ffi::OsStr;
use std::ops::{Deref, DerefMut};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicI16, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard};
use rustix::fs::FileType;
use smallvec::SmallVec;

use crate::error::{Errno, Result};
use crate::format::redirect::Redirect;
use crate::layer::dir::{Dir, LayerId};
use crate::merge::index::Indexed;
use crate::merge::lookup::Data;
use crate::merge::lowers::Parts;
use crate::node::io::{self, Io};
use crate::sys::file::{self, Stat};

/// A name of an object in the union.
#[derive(Debug, Clone)]
pub struct Link {
    /// The directory.
    pub parent: Arc<Node>,
    /// The name in it.
    pub name: Arc<OsStr>,
    /// The layer that holds the topmost entry of the name.
    pub layer: LayerId,
}

impl Link {
    /// Whether this is the name `name` in `parent`.
    pub fn is(&self, parent: &Node, name: &OsStr) -> bool {
        self.parent.ino == parent.ino && *self.name == *name
    }
}

/// Names of an object; most have one.
pub type Links = SmallVec<[Link; 1]>;

/// What changes in the life of an object.
#[derive(Debug, Default)]
pub struct State {
    /// Its names in the union, as far as they were looked up. A directory has one, the root none.
    pub links: Links,
    /// Device and inode number of the real object (of a directory's topmost part).
    pub id: (u64, u64),
    /// A directory's parts, topmost first.
    pub parts: Parts,
    /// `None` as long as there is nothing special.
    special: Option<Box<Special>>,
}

/// What is special about an object: nothing, of most of them. Reached by its [`State`].
#[derive(Debug, Default)]
pub struct Special {
    /// A directory in the upper: where lower layers keep the rest of it.
    pub redirect: Option<Redirect>,
    /// A copied-up hardlink.
    pub indexed: Option<Indexed>,
    /// A lower hardlink: how many of its names are gone from the union.
    pub gone: u32,
    /// A regular file that has only attributes where it is: where its data is.
    pub data: Option<Data>,
    /// Refers to the real object once it has no name left (O_PATH).
    pub pinned: Option<Arc<OwnedFd>>,
    /// The real object is in a lower and has names there, but none in the union.
    pub hidden: bool,
}

impl Special {
    fn is_nothing(&self) -> bool {
        self.redirect.is_none()
            && self.indexed.is_none()
            && self.gone == 0
            && self.data.is_none()
            && self.pinned.is_none()
            && !self.hidden
    }
}

static NOTHING: Special =
    Special { redirect: None, indexed: None, gone: 0, data: None, pinned: None, hidden: false };

impl Deref for State {
    type Target = Special;

    fn deref(&self) -> &Special {
        self.special.as_deref().unwrap_or(&NOTHING)
    }
}

impl DerefMut for State {
    fn deref_mut(&mut self) -> &mut Special {
        self.special.get_or_insert_default()
    }
}

/// What a node is registered in, and must be taken out of when it goes.
pub(super) trait Registry: std::fmt::Debug + Send + Sync {
    /// Takes out the node with this number, which is gone, unless a new one has the number already.
    fn remove_dead(&self, ino: u64);

    /// Remembers a name of a node that goes; none: it has lost all of them.
    fn remember(&self, ino: u64, place: Option<(u64, &OsStr)>);
}

/// An object.
#[derive(Debug)]
pub struct Node {
    /// Its inode number and node id.
    pub ino: u64,
    /// Its type.
    pub kind: FileType,
    /// Serialises copy-up of this object.
    pub copying: Mutex<()>,
    /// A directory: held for reading to look names up and list them, for writing to change them. A file: held
    /// for reading while its content changes, for writing while that moves to another mount.
    pub names: RwLock<()>,
    /// Anything but a directory: held while a name is added or taken away and the number of names with it.
    pub counting: Mutex<()>,
    layer: AtomicI16,
    content: AtomicI16,
    /// It goes, and its names with it.
    parted: bool,
    /// The file is known to have no `security.capability`.
    powerless: AtomicBool,
    state: RwLock<State>,
    io: Mutex<Option<Box<Io>>>,
    registry: Weak<dyn Registry>,
}

/// The state of I/O on a file while it is locked.
#[derive(Debug)]
pub struct IoGuard<'a>(MutexGuard<'a, Option<Box<Io>>>);

impl Deref for IoGuard<'_> {
    type Target = Io;

    fn deref(&self) -> &Io {
        self.0.as_deref().unwrap_or(&io::NOTHING)
    }
}

impl DerefMut for IoGuard<'_> {
    fn deref_mut(&mut self) -> &mut Io {
        self.0.get_or_insert_default()
    }
}

impl Drop for IoGuard<'_> {
    fn drop(&mut self) {
        self.0.take_if(|io| io.is_nothing());
    }
}

/// How long an object that is not where it was is waited for: at a time, and in all.
const MOVED_PAUSE: Duration = Duration::from_millis(5);
const MOVED_LIMIT: Duration = Duration::from_secs(2);

impl Node {
    /// A node not in any table yet; [`super::Table::admit`] puts it there.
    pub(super) fn new(
        registry: Weak<dyn Registry>,
        ino: u64,
        kind: FileType,
        layer: LayerId,
        state: State,
    ) -> Self {
        let content = state.content_layer(layer);
        Self {
            ino,
            kind,
            copying: Mutex::new(()),
            names: RwLock::new(()),
            counting: Mutex::new(()),
            layer: AtomicI16::new(layer),
            content: AtomicI16::new(content),
            parted: false,
            powerless: AtomicBool::new(false),
            state: RwLock::new(state),
            io: Mutex::new(None),
            registry,
        }
    }

    /// Bytes of memory that it takes, with its names and what is known of the layers' directories.
    pub fn memory(&self) -> usize {
        // What a shared allocation has before its content.
        const COUNTS: usize = 2 * size_of::<usize>();
        let state = self.state.read();
        let names: usize = state.links.iter().map(|link| COUNTS + link.name.len()).sum();
        let spilled = if state.links.spilled() { state.links.capacity() * size_of::<Link>() } else { 0 };
        let special = if state.special.is_some() { size_of::<Special>() } else { 0 };
        let io = if self.io.lock().is_some() { size_of::<Io>() } else { 0 };
        COUNTS + size_of::<Self>() + names + spilled + special + io + state.parts.memory()
    }

    /// Whether it is a directory.
    pub fn is_dir(&self) -> bool {
        self.kind == FileType::Directory
    }

    /// The layer that holds the real object (a directory's topmost part).
    pub fn layer(&self) -> LayerId {
        self.layer.load(Ordering::Acquire)
    }

    /// Keeps anything but a directory from being moved to another mount while it is changed; a directory
    /// never is.
    pub fn hold_still(&self) -> Option<RwLockReadGuard<'_, ()>> {
        (!self.is_dir()).then(|| self.names.read())
    }

    /// The layer that holds a file's data.
    pub fn content_layer(&self) -> LayerId {
        self.content.load(Ordering::Acquire)
    }

    /// Looks at the state.
    pub fn with<T>(&self, f: impl FnOnce(&State) -> T) -> T {
        f(&self.state.read())
    }

    /// Changes the state.
    pub fn update<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.write();
        let out = f(&mut state);
        state.tidy();
        out
    }

    /// Changes the state of an object that now lies in `layer`.
    pub fn relocate<T>(&self, layer: LayerId, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.state.write();
        let out = f(&mut state);
        state.tidy();
        self.layer.store(layer, Ordering::Release);
        self.content.store(state.content_layer(layer), Ordering::Release);
        out
    }

    /// Whether the file is known to have no `security.capability`, which the kernel asks for before it changes one.
    pub fn is_powerless(&self) -> bool {
        self.powerless.load(Ordering::Acquire)
    }

    /// Records whether the file is known to have no `security.capability`. The state of I/O must be locked from the
    /// moment when that is looked at or changed, or the file be new.
    pub fn set_powerless(&self, powerless: bool) {
        self.powerless.store(powerless, Ordering::Release);
    }

    /// The state of I/O on a file.
    pub fn io(&self) -> IoGuard<'_> {
        IoGuard(self.io.lock())
    }

    /// A directory's parts.
    ///
    /// # Errors
    /// ENOENT once it was removed, ENOTDIR for other objects.
    pub fn parts(&self) -> Result<Parts> {
        if !self.is_dir() {
            return Err(Errno::NOTDIR);
        }
        self.with(|s| if s.pinned.is_some() { Err(Errno::NOENT) } else { Ok(s.parts.clone()) })
    }

    /// A directory's part in `layer`, if it has one.
    pub fn part(&self, layer: LayerId) -> Option<Arc<Dir>> {
        self.with(|s| s.parts.dirs().iter().find(|p| p.layer() == layer).cloned())
    }

    /// A name of the object, if one is known and left.
    pub fn any_link(&self) -> Option<Link> {
        self.with(|s| s.links.first().cloned())
    }

    /// Adds a name, unless it is known.
    pub fn add_link(&self, link: Link) {
        let known =
            self.with(|s| s.links.iter().any(|l| l.is(&link.parent, &link.name) && l.layer == link.layer));
        if known {
            return;
        }
        let old = self.update(|s| {
            let old = s.take_links(|l| l.is(&link.parent, &link.name));
            s.links.push(link);
            // It has a name again: a directory's or a file's pin was for having none.
            if !self.is_dir() {
                s.pinned = None;
                s.hidden = false;
            }
            old
        });
        drop(old);
    }

    /// Forgets the name `name` in `parent`.
    pub fn remove_link(&self, parent: &Self, name: &OsStr) {
        // Dropped outside the lock: it may be the last reference to the parent.
        let gone = self.update(|s| s.take_links(|l| l.is(parent, name)));
        drop(gone);
    }

    /// Where the real object can be found by name: a layer's directory and a name in it.
    fn place(&self, index: Option<&Arc<Dir>>) -> Option<(Arc<Dir>, Arc<OsStr>)> {
        let layer = self.layer();
        let (link, indexed) = self.with(|s| {
            let link = s.links.iter().find(|l| l.layer == layer).cloned();
            (link, s.indexed.as_ref().map(|i| Arc::<OsStr>::from(&*i.name)))
        });
        let by_link = link.and_then(|l| Some((l.parent.part(layer)?, l.name)));
        by_link.or_else(|| Some((index?.clone(), indexed?)))
    }

    /// Runs `f` on the directory and name of the real object until it finds that very object there:
    /// others may rename it meanwhile. `f` gives what it found with its attributes; it is given an empty
    /// name when the descriptor is the object itself.
    fn by_name<T>(
        &self,
        index: Option<&Arc<Dir>>,
        mut f: impl FnMut(&OwnedFd, &OsStr) -> Result<(T, Stat)>,
    ) -> Result<T> {
        let mut once = || {
            if let Some(pinned) = self.with(|s| s.pinned.clone()) {
                return f(&pinned, OsStr::new("")).map(|(found, _)| found);
            }
            let (dir, name) = self.place(index).ok_or(Errno::STALE)?;
            match f(&*dir.fd()?, &name)? {
                (found, st) if (st.dev, st.ino) == self.with(|s| s.id) => Ok(found),
                _ => Err(Errno::STALE),
            }
        };
        let mut waited = Duration::ZERO;
        loop {
            match once() {
                Err(Errno::NOENT | Errno::STALE | Errno::NOTDIR | Errno::LOOP) => {}
                other => return other,
            }
            // Whoever moves it holds the names of its directory. With those in hand, what is found is
            // final. They may be in the hands of this very thread, though: never wait without a limit.
            let Some(link) = self.any_link() else { return once() };
            if let Some(_names) = link.parent.names.try_read_recursive_for(MOVED_PAUSE) {
                return once();
            }
            waited += MOVED_PAUSE;
            if waited > MOVED_LIMIT {
                return once();
            }
        }
    }

    /// Attributes of the real object, with its number of names in the union. `index`: the index
    /// directory.
    ///
    /// # Errors
    /// ESTALE or ENOENT when the layer was changed behind our back.
    pub fn stat(&self, index: Option<&Arc<Dir>>) -> Result<Stat> {
        if let Some(pinned) = self.with(|s| s.pinned.clone()) {
            return Ok(self.in_union(file::stat_fd(&*pinned)?));
        }
        if self.is_dir() {
            let part = self.with(|s| s.parts.dirs().first().cloned()).ok_or(Errno::NOENT)?;
            return Ok(self.in_union(file::stat_fd(part.fd()?)?));
        }
        self.stat_raw(index).map(|st| self.in_union(st))
    }

    /// The real file with its attributes, if it is open in a writable layer.
    fn real(&self) -> Option<Arc<OwnedFd>> {
        if self.kind != FileType::RegularFile {
            return None;
        }
        let id = self.with(|s| s.id);
        self.io().real(id)
    }

    /// Attributes of the real object, not a directory, as they are in its layer.
    ///
    /// # Errors
    /// As for [`Self::stat`].
    pub fn stat_raw(&self, index: Option<&Arc<Dir>>) -> Result<Stat> {
        if let Some(real) = self.real() {
            return file::stat_fd(&*real);
        }
        self.by_name(index, |dir, name| {
            let st = if name.is_empty() { file::stat_fd(dir)? } else { file::stat_at(dir, name)? };
            Ok((st, st))
        })
    }

    /// The attributes of the real object with its number of names in the union.
    pub fn in_union(&self, mut st: Stat) -> Stat {
        self.with(|s| {
            if s.hidden || (self.is_dir() && s.pinned.is_some()) {
                st.nlink = 0;
            } else if s.parts.dirs().len() > 1 {
                // As the kernel's overlayfs: counting subdirectories would take a listing.
                st.nlink = 1;
            } else if let Some(indexed) = &s.indexed {
                st.nlink = u32::try_from((i64::from(st.nlink) + indexed.diff).max(0)).unwrap_or(u32::MAX);
            } else {
                st.nlink = st.nlink.saturating_sub(s.gone);
            }
            if let Some(data) = &s.data {
                st.blocks = data.blocks;
            }
        });
        st
    }

    /// A descriptor that refers to the real object: of any kind, for the moment.
    ///
    /// # Errors
    /// As for [`Self::stat`].
    pub fn refer(&self, index: Option<&Arc<Dir>>) -> Result<Arc<OwnedFd>> {
        self.real().map_or_else(|| self.pin(index), Ok)
    }

    /// A descriptor that refers to the real object (O_PATH; a directory's is readable), also to keep.
    ///
    /// # Errors
    /// As for [`Self::stat`].
    pub fn pin(&self, index: Option<&Arc<Dir>>) -> Result<Arc<OwnedFd>> {
        if let Some(pinned) = self.with(|s| s.pinned.clone()) {
            return Ok(pinned);
        }
        if self.is_dir() {
            return self.with(|s| s.parts.dirs().first().cloned()).ok_or(Errno::NOENT)?.fd();
        }
        self.by_name(index, |dir, name| {
            let fd = if name.is_empty() {
                dir.try_clone().map_err(|_| Errno::MFILE)?
            } else {
                file::open_path(dir, name)?
            };
            let st = file::stat_fd(&fd)?;
            Ok((Arc::new(fd), st))
        })
    }

    /// Opens a regular file's data. `flags`: access mode and status flags.
    ///
    /// # Errors
    /// Those of open(2); ESTALE as for [`Self::stat`].
    pub fn open(
        &self,
        index: Option<&Arc<Dir>>,
        flags: rustix::fs::OFlags,
        noatime: bool,
    ) -> Result<(OwnedFd, Stat)> {
        if let Some(data) = self.with(|s| s.data.clone()) {
            let (fd, st) = file::open_regular(data.dir.fd()?, &data.name, flags, noatime)?;
            return if (st.dev, st.ino) == data.id { Ok((fd, st)) } else { Err(Errno::STALE) };
        }
        self.open_here(index, flags, noatime)
    }

    /// Opens the regular file where its attributes are.
    ///
    /// # Errors
    /// As for [`Self::open`].
    pub fn open_here(
        &self,
        index: Option<&Arc<Dir>>,
        flags: rustix::fs::OFlags,
        noatime: bool,
    ) -> Result<(OwnedFd, Stat)> {
        if let Some(pinned) = self.with(|s| s.pinned.clone()) {
            let fd = file::reopen(&*pinned, flags)?;
            let st = file::stat_fd(&fd)?;
            return Ok((fd, st));
        }
        self.by_name(index, |dir, name| {
            if !name.is_empty() {
                return file::open_regular(dir, name, flags, noatime).map(|(fd, st)| ((fd, st), st));
            }
            let fd = file::reopen(dir, flags)?;
            let st = file::stat_fd(&fd)?;
            Ok(((fd, st), st))
        })
    }
}

impl State {
    /// The state of an object with these names and this real object.
    pub fn new(links: impl IntoIterator<Item = Link>, id: (u64, u64)) -> Self {
        Self { links: links.into_iter().collect(), id, ..Self::default() }
    }

    /// Takes out the names that `which` says.
    pub fn take_links(&mut self, which: impl Fn(&Link) -> bool) -> Links {
        let (taken, kept) = std::mem::take(&mut self.links).into_iter().partition(which);
        self.links = kept;
        taken
    }

    /// Drops what is kept for nothing.
    fn tidy(&mut self) {
        self.special.take_if(|special| special.is_nothing());
    }

    /// The layer that holds a file's data, when its attributes are in `layer`.
    fn content_layer(&self, layer: LayerId) -> LayerId {
        self.data.as_ref().map_or(layer, |data| data.dir.layer())
    }
}

impl Node {
    /// Gives up the names, the first of which is remembered.
    fn part_with_links(&mut self) -> Links {
        let links = std::mem::take(&mut self.state.get_mut().links);
        if !std::mem::replace(&mut self.parted, true)
            && let Some(registry) = self.registry.upgrade()
        {
            registry.remember(self.ino, links.first().map(|l| (l.parent.ino, &*l.name)));
        }
        links
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Parents one after the other, not one inside the other: trees may be deep.
        let mut links = self.part_with_links();
        while let Some(link) = links.pop() {
            if let Some(mut parent) = Arc::into_inner(link.parent) {
                links.extend(parent.part_with_links());
            }
        }
        if let Some(registry) = self.registry.upgrade() {
            registry.remove_dead(self.ino);
        }
    }
}
