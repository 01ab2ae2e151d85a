//! How much the upper may hold (`size=`, `inodes=`): counted here, since nothing else limits one directory.
//!
//! Counted are the objects of the upper, whiteouts aside, and the blocks of its regular files, as st_blocks tells them. They
//! are counted once when the layers are opened, and then by what each change of an object made of its blocks. What is
//! removed while it is in use counts until it is not. Over the limit is ENOSPC, as of tmpfs(5): statfs(2) tells of a
//! filesystem of this size, and that is what a full one says. EDQUOT would be of a user's quota, which this is not.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{FileType, SeekFrom, StatVfs};

use super::UnionFs;
use crate::config::{Options, Size};
use crate::error::{Errno, Result};
use crate::layer::dir::{Dir, LayerId};
use crate::layer::stack::{Role, Stack};
use crate::merge::whiteout::is_whiteout;
use crate::node::Node;
use crate::sys::file::{self, Stat};

/// Bytes of a block as st_blocks counts them (stat(2)).
const SECTOR: u64 = 512;
/// In such pieces, in bytes, filesystems give space to files; more is right, too.
const PIECE: u64 = 4096;
/// So many files can be written at the same time without waiting for each other by chance.
const LOCKS: usize = 64;
/// So many removed objects are remembered before it is looked which of them are free.
const SWEEP_AT: usize = 128;

/// How long it is waited for the kernel to tell us that a removed file is used no more, and how often, before a mount
/// counts as full: who removes a file expects its room at once.
const WAIT: Duration = Duration::from_millis(2);
const WAITS: usize = 25;

/// What objects take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of the blocks of regular files.
    pub bytes: u64,
    /// Number of objects.
    pub objects: u64,
}

/// An object without a name, which takes its space until nobody uses it.
#[derive(Debug)]
struct Removed {
    node: Weak<Node>,
    bytes: u64,
}

/// The limits, and what is used of them.
#[derive(Debug)]
pub struct Quota {
    size: u64,
    inodes: u64,
    bytes: AtomicU64,
    objects: AtomicU64,
    /// By number.
    removed: Mutex<HashMap<u64, Removed>>,
    /// Held while the blocks of a file change, so that each change is seen once.
    changing: [Mutex<()>; LOCKS],
}

/// Room that was set aside. What is not made use of goes back.
#[derive(Debug)]
pub(super) struct Room<'a> {
    quota: Option<&'a Quota>,
    bytes: u64,
    objects: u64,
}

/// An object that may be about to lose its last name.
pub(super) struct Losing<'a> {
    quota: &'a Quota,
    node: Arc<Node>,
    fd: Arc<std::os::fd::OwnedFd>,
}

fn bytes_of(st: &Stat) -> u64 {
    if st.kind() == FileType::RegularFile { st.blocks * SECTOR } else { 0 }
}

impl Quota {
    /// What the options limit; `None`: nothing. Counts what is there.
    ///
    /// # Errors
    /// Those of reading the upper.
    pub(super) fn open(stack: &Stack, options: &Options) -> Result<Option<Self>> {
        if (options.size.is_none() && options.inodes.is_none()) || !stack.is_writable() {
            return Ok(None);
        }
        let root = stack.roots().next().ok_or(Errno::IO)?;
        let size = match options.size {
            None => u64::MAX,
            Some(Size::Bytes(bytes)) => bytes,
            Some(Size::Percent(percent)) => {
                let whole = file::statfs(root.fd()?)?;
                let bytes =
                    u128::from(whole.f_blocks) * u128::from(whole.f_frsize) * u128::from(percent) / 100;
                u64::try_from(bytes).unwrap_or(u64::MAX)
            }
        };
        let used = count(stack, root)?;
        Ok(Some(Self {
            size,
            inodes: options.inodes.unwrap_or(u64::MAX),
            bytes: AtomicU64::new(used.bytes),
            objects: AtomicU64::new(used.objects),
            removed: Mutex::default(),
            changing: [const { Mutex::new(()) }; LOCKS],
        }))
    }

    /// Begins anew with the upper that has taken the place of another one. What is in use without a name goes on to
    /// count.
    ///
    /// # Errors
    /// Those of reading the upper.
    pub(super) fn restart(&self, stack: &Stack) -> Result<()> {
        let root = stack.roots().next().ok_or(Errno::IO)?;
        let used = count(stack, root)?;
        let removed = self.removed.lock();
        let nameless: u64 = removed.values().map(|removed| removed.bytes).sum();
        self.bytes.store(used.bytes + nameless, Ordering::Relaxed);
        self.objects.store(used.objects + removed.len() as u64, Ordering::Relaxed);
        Ok(())
    }

    /// What is used now.
    pub fn usage(&self) -> Usage {
        self.sweep();
        Usage { bytes: self.bytes.load(Ordering::Relaxed), objects: self.objects.load(Ordering::Relaxed) }
    }

    /// Sets room aside.
    ///
    /// # Errors
    /// ENOSPC.
    fn reserve(&self, bytes: u64, objects: u64) -> Result<Room<'_>> {
        let once = || {
            take(&self.bytes, bytes, self.size)?;
            take(&self.objects, objects, self.inodes).inspect_err(|_| give_back(&self.bytes, bytes))
        };
        let mut result = once();
        for _ in 0..WAITS {
            if result.is_ok() {
                break;
            }
            self.sweep();
            result = once();
            if result.is_ok() || !self.is_more_coming() {
                break;
            }
            std::thread::sleep(WAIT);
        }
        result?;
        Ok(Room { quota: Some(self), bytes, objects })
    }

    /// Takes out what was removed and is used no more.
    fn sweep(&self) {
        self.removed.lock().retain(|_, removed| {
            let used = removed.node.strong_count() > 0;
            if !used {
                self.free(removed);
            }
            used
        });
    }

    fn free(&self, removed: &Removed) {
        give_back(&self.bytes, removed.bytes);
        give_back(&self.objects, 1);
    }

    /// Whether something was removed that nobody has open: it will be free as soon as the kernel tells us.
    fn is_more_coming(&self) -> bool {
        let nodes: Vec<_> = self.removed.lock().values().map(|removed| removed.node.clone()).collect();
        nodes.iter().any(|node| node.upgrade().is_none_or(|node| !node.io().is_open()))
    }

    /// Counts what has become of a file's bytes.
    fn changed(&self, ino: u64, before: u64, after: &Stat) {
        let now = bytes_of(after);
        add(&self.bytes, now.saturating_sub(before));
        give_back(&self.bytes, before.saturating_sub(now));
        if after.nlink == 0
            && let Some(removed) = self.removed.lock().get_mut(&ino)
        {
            removed.bytes = now;
        }
    }

    /// An object of the upper has lost its last name.
    fn lost(&self, node: &Arc<Node>, st: &Stat) {
        let count = {
            let mut all = self.removed.lock();
            let removed = Removed { node: Arc::downgrade(node), bytes: bytes_of(st) };
            // One whose number has gone to this one since is free.
            if let Some(old) = all.insert(node.ino, removed).filter(|old| old.node.strong_count() == 0) {
                self.free(&old);
            }
            all.len()
        };
        if count >= SWEEP_AT {
            self.sweep();
        }
    }

    fn lock_of(&self, ino: u64) -> &Mutex<()> {
        &self.changing[ino as usize % LOCKS]
    }
}

fn take(counter: &AtomicU64, count: u64, limit: u64) -> Result<()> {
    if count == 0 {
        return Ok(());
    }
    let more = |used: u64| used.checked_add(count).filter(|sum| *sum <= limit);
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more).map(drop).map_err(|_| Errno::NOSPC)
}

fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

fn give_back(counter: &AtomicU64, count: u64) {
    // Never below zero: a layer that others change behind our back must not make it endless.
    let _ =
        counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| Some(used.saturating_sub(count)));
}

impl Room<'_> {
    /// An object was made of it, which takes so many bytes. The rest goes back.
    pub(super) fn used(mut self, st: &Stat) {
        if let Some(quota) = self.quota {
            let bytes = bytes_of(st);
            add(&quota.bytes, bytes.saturating_sub(self.bytes));
            self.bytes = self.bytes.saturating_sub(bytes);
            self.objects = 0;
        }
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if let Some(quota) = self.quota {
            give_back(&quota.bytes, self.bytes);
            give_back(&quota.objects, self.objects);
        }
    }
}

impl Losing<'_> {
    /// The name is gone.
    pub(super) fn done(self) {
        match file::stat_fd(&*self.fd) {
            Ok(st) if st.nlink == 0 => self.quota.lost(&self.node, &st),
            Ok(_) => {}
            Err(e) => tracing::warn!("what a removed file took is not known: {e}"),
        }
    }
}

impl UnionFs {
    /// The limits on the upper, if there are any.
    pub fn quota(&self) -> Option<&Quota> {
        self.quota.as_ref()
    }

    fn quota_of(&self, layer: LayerId) -> Option<&Quota> {
        self.quota.as_ref().filter(|_| self.stack.role(layer) == Role::Upper)
    }

    /// Sets room aside for a new object in a layer, with so many bytes.
    ///
    /// # Errors
    /// ENOSPC.
    pub(super) fn room(&self, layer: LayerId, bytes: u64) -> Result<Room<'_>> {
        match self.quota_of(layer) {
            Some(quota) => quota.reserve(bytes.next_multiple_of(PIECE), 1),
            None => Ok(Room { quota: None, bytes: 0, objects: 0 }),
        }
    }

    /// To be called before a name of an object goes; what it gives, after.
    pub(super) fn losing(&self, node: &Arc<Node>) -> Result<Option<Losing<'_>>> {
        let Some(quota) = self.quota_of(node.layer()) else { return Ok(None) };
        Ok(Some(Losing { quota, node: node.clone(), fd: node.refer(self.index())? }))
    }

    /// Counts an object without a name in the upper.
    pub(super) fn count_nameless(&self, node: &Arc<Node>, st: &Stat) {
        if let Some(quota) = self.quota_of(node.layer()) {
            quota.lost(node, st);
        }
    }

    /// An object has moved between the upper and the init layer.
    pub(super) fn moved_between(&self, from: LayerId, to: LayerId, st: &Stat) {
        let Some(quota) = self.quota.as_ref().filter(|_| from != to) else { return };
        if self.stack.role(to) == Role::Upper {
            add(&quota.bytes, bytes_of(st));
            add(&quota.objects, 1);
        } else {
            give_back(&quota.bytes, bytes_of(st));
            give_back(&quota.objects, 1);
        }
    }

    /// Does something to a file that gives it at most `growth` bytes more.
    ///
    /// # Errors
    /// ENOSPC; those of `change`.
    pub(super) fn change_blocks<T>(
        &self,
        node: &Node,
        fd: impl AsFd,
        growth: u64,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        self.change_blocks_in(node.content_layer(), node, fd, growth, change)
    }

    /// The same for a file whose data goes to `layer`.
    ///
    /// # Errors
    /// As for [`Self::change_blocks`].
    pub(super) fn change_blocks_in<T>(
        &self,
        layer: LayerId,
        node: &Node,
        fd: impl AsFd,
        growth: u64,
        change: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let Some(quota) = self.quota_of(layer) else { return change() };
        let _one = quota.lock_of(node.ino).lock();
        let before = bytes_of(&file::stat_fd(&fd)?);
        let room = quota.reserve(if growth == 0 { 0 } else { growth.saturating_add(PIECE) }, 0)?;
        let done = change();
        quota.changed(node.ino, before, &file::stat_fd(&fd)?);
        drop(room);
        done
    }

    /// Writes `length` bytes at `offset` by `write`, which is told how many of them there is room for.
    ///
    /// # Errors
    /// ENOSPC, when there is room for none; those of `write`.
    pub(super) fn write_blocks(
        &self,
        node: &Node,
        fd: impl AsFd,
        (offset, length): (u64, usize),
        write: impl FnOnce(usize) -> Result<usize>,
    ) -> Result<usize> {
        let Some(quota) = self.quota_of(node.content_layer()) else { return write(length) };
        let _one = quota.lock_of(node.ino).lock();
        let before = bytes_of(&file::stat_fd(&fd)?);
        let first = offset / PIECE * PIECE;
        let end = offset.saturating_add(length as u64);
        let (room, length) = match quota.reserve(end.next_multiple_of(PIECE) - first, 0) {
            Ok(room) => (room, length),
            // What has its blocks already takes none.
            Err(_) if is_allocated(&fd, offset, end) => (quota.reserve(0, 0)?, length),
            Err(full) => {
                let left = quota.size.saturating_sub(quota.bytes.load(Ordering::Relaxed)) / PIECE * PIECE;
                let fits = (first.saturating_add(left)).min(end).saturating_sub(offset);
                let fits = usize::try_from(fits).ok().filter(|fits| *fits > 0).ok_or(full)?;
                (quota.reserve(left, 0)?, fits)
            }
        };
        let done = write(length);
        quota.changed(node.ino, before, &file::stat_fd(&fd)?);
        drop(room);
        done
    }

    /// What statfs(2) of the upper's filesystem says, made smaller by the limits.
    pub(super) fn limited(&self, mut st: StatVfs) -> StatVfs {
        let Some(quota) = &self.quota else { return st };
        let used = quota.usage();
        let unit = st.f_frsize.max(1);
        if quota.size != u64::MAX {
            st.f_blocks = quota.size / unit;
            let free = quota.size.saturating_sub(used.bytes) / unit;
            st.f_bfree = free.min(st.f_bfree);
            st.f_bavail = free.min(st.f_bavail);
        }
        if quota.inodes != u64::MAX {
            st.f_files = quota.inodes;
            let free = quota.inodes.saturating_sub(used.objects);
            // Some filesystems make inodes as they need them and tell of none.
            let real = if st.f_ffree == 0 { free } else { st.f_ffree };
            st.f_ffree = free.min(real);
            st.f_favail = st.f_ffree;
        }
        st
    }
}

/// Whether a range of a file has all its blocks.
fn is_allocated(fd: impl AsFd, offset: u64, end: u64) -> bool {
    // The end of the file is a hole, too (lseek(2)).
    rustix::fs::seek(fd, SeekFrom::Hole(offset)).is_ok_and(|hole| hole >= end)
}

/// What the upper holds: each object once, however many names it has, in the index as well.
fn count(stack: &Stack, root: &Arc<Dir>) -> Result<Usage> {
    let index = stack.work(stack.upper())?.index().dir().clone();
    let mut usage = Usage::default();
    let mut seen = std::collections::HashSet::new();
    let mut left = vec![root.clone(), index];
    while let Some(dir) = left.pop() {
        let fd = dir.fd()?;
        let mut names = Vec::new();
        file::list(&*fd, |name, _, _| {
            names.push(name.to_owned());
            Ok(())
        })?;
        for name in names {
            let st = match file::stat_at(&*fd, &name) {
                Err(Errno::NOENT) => continue,
                other => other?,
            };
            if is_whiteout(&dir, &name, &st)?
                || (st.nlink > 1 && !st.is_dir() && !seen.insert((st.dev, st.ino)))
            {
                continue;
            }
            usage.objects += 1;
            usage.bytes += bytes_of(&st);
            if st.is_dir() {
                left.push(Dir::below(&dir, &name, &st));
            }
        }
    }
    Ok(usage)
}
