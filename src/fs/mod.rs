//! The union filesystem as a set of operations on inode numbers, free of FUSE: complete and testable
//! without a mount.
//!
//! One file for each group of operations; every one is a method of [`UnionFs`]. Only this module changes
//! the live state in [`crate::node`].

mod attr;
mod create;
mod dir_io;
mod file_io;
mod flags;
mod freeze;
pub mod gate;
mod lookup;
mod open;
mod owner;
mod quota;
mod relief;
mod remove;
mod rename;
pub mod snapshot;
mod up;
mod xattr;

use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::RwLockWriteGuard;
use rustix::fs::FileType;

use crate::config::{Atime, Options, RedirectDir};
use crate::error::{Errno, Result};
use crate::layer::dir::{Dir, LayerId};
pub use crate::layer::stack::LayerFds;
use crate::layer::stack::Stack;
use crate::merge;
pub use crate::merge::attr::Attr;
use crate::node::files::{Handles, OpenFile};
use crate::node::listings::Listings;
use crate::node::{Missing, Node, State, Table};
pub use crate::sys::Backing;
use crate::sys::cred;
pub use crate::sys::cred::Caller;
pub use crate::sys::file::SetTime;
pub use crate::sys::flags::Extended;
pub use freeze::{Refused, Writer};

pub use quota::{Quota, Usage};
use relief::Relief;

/// Inode number of the root, as FUSE fixes it.
pub const ROOT: u64 = 1;

/// Registers an open file with the kernel for I/O without us; `None` where that is not permitted.
pub type MakeBacking<'a> = &'a mut dyn FnMut(BorrowedFd<'_>) -> Option<Backing>;

/// An open file.
#[derive(Clone)]
pub struct Opened {
    /// The handle for later calls.
    pub fh: u64,
    /// Set when the kernel does reads and writes itself, on this.
    pub backing: Option<Backing>,
    /// Pages that the kernel already has for the inode are still right.
    pub keep_cache: bool,
    /// The kernel's copy of the attributes must be dropped: opening changed the mode (O_TRUNC clears
    /// set-ID bits), or a mapping may change times and blocks from now on.
    pub attributes_changed: bool,
    /// Opened to be read, and not in memory: the directory that it is in. Of a lower file that is opened later, the first
    /// [`UnionFs::read`] tells.
    pub cold: Option<u64>,
}

/// Attributes to set; `None` and `Keep` leave one as it is.
#[derive(Debug, Clone, Copy)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Size in bytes.
    pub size: Option<u64>,
    /// Access time.
    pub atime: SetTime,
    /// Modification time.
    pub mtime: SetTime,
}

/// An entry of a directory listing.
#[derive(Debug, Clone, Copy)]
pub struct DirEntry<'a> {
    /// Inode number.
    pub ino: u64,
    /// Where a listing goes on behind this entry.
    pub next: u64,
    /// File type.
    pub kind: FileType,
    /// Name.
    pub name: &'a OsStr,
}

/// The union filesystem.
#[derive(Debug)]
pub struct UnionFs {
    stack: Stack,
    table: Arc<Table>,
    root: Arc<Node>,
    missing: Missing,
    files: Handles<OpenFile>,
    listings: Listings,
    metacopy: bool,
    /// Directories with lower parts are renamed by redirects.
    redirect_dir: bool,
    /// Names of lower files stay together when these are copied up.
    keep_links: bool,
    /// Files are opened so that each write is on the device before it returns.
    sync: bool,
    noatime: bool,
    /// Lower files are opened when they are read: they are not passed through, and nothing forbids to.
    opens_later: bool,
    /// How often a mode was changed, each time under the lock on the file's I/O.
    chmods: AtomicU64,
    /// There are POSIX ACLs.
    acl: bool,
    quota: Option<Quota>,
    /// Every directory has one link.
    static_nlink: bool,
    /// Times without a part of a second are shown one nanosecond later.
    for_comparison: bool,
    copied: Copied,
    relief: Relief,
}

/// What was copied up so far.
#[derive(Debug, Default)]
struct Copied {
    objects: AtomicU64,
    bytes: AtomicU64,
}

impl Copied {
    fn add(&self, objects: u64, bytes: u64) {
        self.objects.fetch_add(objects, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl UnionFs {
    /// Opens the layers. A stack without an upper, or with the option `ro`, is read-only.
    ///
    /// # Errors
    /// Those of preparing the work directory and of reading the layers' roots.
    pub fn open(mut layers: LayerFds, options: &Options) -> Result<Self> {
        if options.read_only
            && let Some((upper, _work)) = layers.upper.take()
        {
            // The same tree, with the upper as one more lower.
            layers.lowers.splice(0..0, [Some(upper), layers.init.take()].into_iter().flatten());
        }
        let stack = Stack::open(layers, options)?;
        let quota = Quota::open(&stack, options)?;
        let found = merge::lookup::root(&stack)?;
        let table = Arc::new(Table::default());
        let layer = found.parts.first().map_or(stack.upper(), |p| p.layer());
        let mut state = State::new([], (found.stat.dev, found.stat.ino));
        state.parts = found.parts.into();
        let (root, _) = table.admit(ROOT, FileType::Directory, layer, || state);
        let for_comparison = options.for_comparison && !stack.is_writable();
        let opens_later = stack.is_writable() && cred::is_host_admin();
        Ok(Self {
            stack,
            table,
            root,
            missing: Missing::default(),
            files: Handles::default(),
            listings: Listings::default(),
            metacopy: options.metacopy,
            redirect_dir: options.redirect_dir == RedirectDir::On,
            keep_links: options.index,
            sync: options.sync && !options.volatile,
            noatime: options.atime == Atime::No,
            opens_later,
            chmods: AtomicU64::new(0),
            acl: options.acl,
            quota,
            static_nlink: options.static_nlink,
            for_comparison,
            copied: Copied::default(),
            relief: Relief::default(),
        })
    }

    /// The layers.
    pub fn stack(&self) -> &Stack {
        &self.stack
    }

    /// How many objects and open files are live, and how many listings of directories are being read.
    pub fn counts(&self) -> (usize, usize, usize) {
        (self.table.len(), self.files.len(), self.listings.len())
    }

    /// How many objects were copied up, and how many bytes of data the copies took over, those too that they share
    /// with what they were copied from.
    pub fn copied(&self) -> (u64, u64) {
        (self.copied.objects.load(Ordering::Relaxed), self.copied.bytes.load(Ordering::Relaxed))
    }

    /// How many descriptors of directories are kept open, and how many names of lower directories are kept.
    pub fn caches(&self) -> (usize, usize) {
        (self.stack.open_directories(), merge::lowers::kept_rows())
    }

    /// Bytes of memory that the live objects take. Looks at each of them.
    pub fn memory(&self) -> usize {
        self.table.memory()
    }

    fn node(&self, ino: u64) -> Result<Arc<Node>> {
        if ino == ROOT { Ok(self.root.clone()) } else { self.table.get(ino).ok_or(Errno::STALE) }
    }

    /// Locks the names of a directory to change them.
    fn change_names<'a>(&self, dir: &'a Node) -> RwLockWriteGuard<'a, ()> {
        let guard = dir.names.write();
        self.missing.forget(dir.ino);
        guard
    }

    /// The same, unless the lock cannot be had within `patience`.
    fn try_change_names<'a>(&self, dir: &'a Node, patience: Duration) -> Option<RwLockWriteGuard<'a, ()>> {
        let guard = dir.names.try_write_for(patience)?;
        self.missing.forget(dir.ino);
        Some(guard)
    }

    /// The upper's place in the stack.
    fn upper(&self) -> LayerId {
        self.stack.upper()
    }

    /// The index directory, where copied-up hardlinks are found.
    fn index(&self) -> Option<&Arc<Dir>> {
        self.stack.work(self.upper()).ok().map(|work| work.index().dir())
    }
}
