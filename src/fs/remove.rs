//! unlink, rmdir.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::UnionFs;
use super::quota::Losing;
use crate::edit::remove::remove;
use crate::error::{Errno, Result};
use crate::layer::dir::LayerId;
use crate::layer::stack::Role;
use crate::merge::index::{self, Indexed};
use crate::merge::listing;
use crate::merge::lookup::{Found, hidden_below};
use crate::node::Node;
use crate::sys::file;

/// Something to do without locks on names before a change of names can go on.
pub(super) type First = Box<dyn FnOnce(&UnionFs) -> Result<()>>;

/// How long to wait for a lock whose holder may wait for one of ours, before letting go of that.
pub(super) const PATIENCE: Duration = Duration::from_millis(2);

impl UnionFs {
    /// Removes a name of anything but a directory.
    ///
    /// # Errors
    /// Those of unlink(2).
    pub fn unlink(&self, parent: u64, name: &OsStr) -> Result<()> {
        let parent = self.node(parent)?;
        loop {
            let names = self.change_names(&parent);
            let found = self.resolve(&parent, name)?;
            if matches!(found, Found::Dir(_)) {
                return Err(Errno::ISDIR);
            }
            let holder = found.layer().filter(|_| found.is_some()).ok_or(Errno::NOENT)?;
            let (node, _) = self.admit(&parent, name, found)?;
            if let Some(first) = self.before_losing(&parent, holder)? {
                drop(names);
                first(self)?;
                continue;
            }
            self.check_removable(&node, holder)?;
            let _count = node.counting.lock();
            let pinned = self.keep_object(&node, &parent, name)?;
            let losing = self.losing(&node)?;
            self.take_name(&parent, name, holder, false)?;
            self.lost(&node, &parent, name, holder, pinned);
            losing.into_iter().for_each(Losing::done);
            return Ok(());
        }
    }

    /// Removes a directory that is empty in the union.
    ///
    /// # Errors
    /// Those of rmdir(2).
    pub fn rmdir(&self, parent: u64, name: &OsStr) -> Result<()> {
        let parent = self.node(parent)?;
        loop {
            let names = self.change_names(&parent);
            let found = self.resolve(&parent, name)?;
            let holder = match &found {
                Found::Nothing { .. } => return Err(Errno::NOENT),
                Found::Other(_) => return Err(Errno::NOTDIR),
                Found::Dir(_) => found.layer().ok_or(Errno::NOENT)?,
            };
            let (node, _) = self.admit(&parent, name, found)?;
            // Whoever holds it may wait for the parent: see the order of locks in crate::node.
            let Some(own_names) = self.try_change_names(&node, PATIENCE) else {
                drop(names);
                continue;
            };
            let parts = node.parts()?;
            // The filesystem tells of a directory that is nowhere else.
            let alone = parts.dirs().len() == 1
                && self.stack.role(holder) == Role::Upper
                && self.stack.is_writable()
                && !hidden_below(&self.stack, &parent.parts()?, holder, name)?;
            if alone {
                let pinned = self.pin(&node)?;
                let losing = self.losing(&node)?;
                match self.writable(&parent, holder)?.rmdir(name) {
                    Ok(()) => {
                        losing.into_iter().for_each(Losing::done);
                        node.update(|s| s.pinned = Some(pinned));
                        node.remove_link(&parent, name);
                        return Ok(());
                    }
                    // Perhaps there are only whiteouts in it, of what lies no more below.
                    Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                    Err(e) => return Err(e),
                }
            }
            if !listing::is_empty(&self.stack, &parts)? {
                return Err(Errno::NOTEMPTY);
            }
            if let Some(first) = self.before_losing(&parent, holder)? {
                drop((own_names, names));
                first(self)?;
                continue;
            }
            self.check_removable(&node, holder)?;
            let pinned = self.pin(&node)?;
            let losing = self.losing(&node)?;
            self.take_name(&parent, name, holder, true)?;
            losing.into_iter().for_each(Losing::done);
            node.update(|s| s.pinned = Some(pinned));
            node.remove_link(&parent, name);
            return Ok(());
        }
    }

    /// What must happen before a name in `parent` whose entry is in layer `holder` can go, without locks
    /// on names; `None` when nothing must.
    pub(super) fn before_losing(&self, parent: &Arc<Node>, holder: LayerId) -> Result<Option<First>> {
        if !self.stack.is_writable() {
            return Err(Errno::ROFS);
        }
        if self.stack.in_place(holder) {
            return Ok(None);
        }
        if parent.part(self.upper()).is_none() {
            let parent = parent.clone();
            return Ok(Some(Box::new(move |fs| fs.dir_up(&parent).map(drop))));
        }
        Ok(None)
    }

    /// Keeps hold of an object that the kernel may still use and that is about to lose the name: `None`
    /// when it can be reached otherwise. Its names must be counted under the lock for it until
    /// [`Self::lost`] is done.
    pub(super) fn keep_object(
        &self,
        node: &Node,
        parent: &Node,
        name: &OsStr,
    ) -> Result<Option<Arc<OwnedFd>>> {
        let layer = node.layer();
        // Its names are counted by what it refers to.
        let indexed = node.with(|s| s.indexed.clone());
        let other_name = || node.with(|s| s.links.iter().any(|l| l.layer == layer && !l.is(parent, name)));
        match &indexed {
            Some(entry) => index::count_from_upper(&self.stack, &entry.name)?,
            None if other_name() || !self.table.is_held(node.ino) => return Ok(None),
            None => {}
        }
        self.pin(node).map(Some)
    }

    /// A descriptor to keep for an object that loses its name.
    pub(super) fn pin(&self, node: &Node) -> Result<Arc<OwnedFd>> {
        let pinned = node.pin(self.index())?;
        self.relief.note(&pinned, || self.files.len());
        Ok(pinned)
    }

    /// Removes the entry `name`, held by layer `holder`, from the tree.
    fn take_name(&self, parent: &Node, name: &OsStr, holder: LayerId, is_dir: bool) -> Result<()> {
        if !self.stack.in_place(holder) {
            let dir = self.writable(parent, self.upper())?;
            return self.stack.work(self.upper())?.new_whiteout(&dir, name);
        }
        let dir = self.writable(parent, holder)?;
        // A name of the init layer stays the container's own: its whiteout says so.
        let whiteout = self.is_init(holder) || hidden_below(&self.stack, &parent.parts()?, holder, name)?;
        remove(&self.stack, &dir, name, is_dir, whiteout)
    }

    /// Records that `node` lost its name, whose entry was in layer `holder`. The name is gone: what cannot
    /// be recorded is logged. Its lock for counting must be held, unless it is a directory.
    pub(super) fn lost(
        &self,
        node: &Arc<Node>,
        parent: &Node,
        name: &OsStr,
        holder: LayerId,
        pinned: Option<Arc<OwnedFd>>,
    ) {
        node.remove_link(parent, name);
        if node.is_dir() {
            node.update(|s| s.pinned = pinned);
            return;
        }
        if let Some(indexed) = node.with(|s| s.indexed.clone()) {
            if let Err(e) = self.lost_indexed(node, indexed, holder, pinned) {
                tracing::warn!("the number of names of a hardlink is not known: {e}");
            }
            return;
        }
        let lower = !self.stack.in_place(node.layer());
        // A lower object with names left in the union is not gone with this one.
        let hidden = lower
            && self.count_gone(node, parent, name, holder).unwrap_or_else(|e| {
                tracing::warn!("the removal of a hardlink's name could not be recorded: {e}");
                false
            });
        let layer = node.layer();
        node.update(|s| {
            // A name that was looked up meanwhile in another directory serves as well.
            if !s.links.iter().any(|l| l.layer == layer) {
                s.pinned = pinned;
            }
            s.hidden = hidden && s.links.is_empty();
        });
    }

    fn lost_indexed(
        &self,
        node: &Node,
        indexed: Indexed,
        holder: LayerId,
        pinned: Option<Arc<OwnedFd>>,
    ) -> Result<()> {
        let fd = pinned.map_or_else(|| self.pin(node), Ok)?;
        // A real name is gone together with the union's, or only the union's.
        let change = if self.stack.in_place(holder) { 0 } else { -1 };
        // What is recorded counts: the node may be newer than what it was made from.
        let indexed = Indexed { diff: index::diff(&self.stack, &indexed.name)?, ..indexed };
        let left = i64::from(file::stat_fd(&*fd)?.nlink) + indexed.diff + change;
        if left > 0 {
            let indexed = self.counted(indexed, change);
            node.update(|s| s.indexed = Some(indexed));
            return Ok(());
        }
        node.update(|s| {
            s.pinned = Some(fd);
            s.indexed = None;
            s.hidden = true;
        });
        index::remove(&self.stack, &indexed.name)
    }

    /// Records that a lower object lost one of its names; gives whether it was the last.
    fn count_gone(&self, node: &Node, parent: &Node, name: &OsStr, holder: LayerId) -> Result<bool> {
        let part = parent.part(holder).ok_or(Errno::STALE)?;
        let st = file::stat_at(part.fd()?, name)?;
        if !self.wants_index(&st) {
            return Ok(node.with(|s| s.links.is_empty()));
        }
        let origin = index::origin_of(&self.stack, &part, name)?;
        let before = match &origin {
            Some(origin) => index::gone(&self.stack, origin)?,
            None => node.with(|s| s.gone),
        };
        let last = before + 1 >= st.nlink;
        node.update(|s| s.gone = before + 1);
        if let Some(origin) = origin {
            index::store_gone(&self.stack, &origin, if last { 0 } else { before + 1 })?;
        }
        Ok(last)
    }
}
