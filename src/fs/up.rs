//! Copy-up: from a plan by the live state, through [`crate::copy_up`], to a changed live state.

use std::os::fd::AsFd;
use std::sync::Arc;

use crate::copy_up;
use crate::error::{Errno, Result};
use crate::format::names::Mark;
use crate::format::nlink::{Base, NlinkDiff};
use crate::layer::dir::{Dir, LayerId};
use crate::layer::stack::UPPER;
use crate::layer::upper::Writable;
use crate::merge::index::{self, Indexed};
use crate::node::{Link, Node};
use crate::sys::file::{self, Stat};

use super::UnionFs;

impl UnionFs {
    /// Makes an object changeable: copies it up unless it lies in a writable layer already.
    ///
    /// `len`: how much of a file's data is needed, in bytes; `None` for all. No lock on names may be
    /// held.
    ///
    /// # Errors
    /// EROFS on a read-only stack; those of copying.
    pub(super) fn up(&self, node: &Arc<Node>, len: Option<u64>) -> Result<()> {
        if !self.stack.is_writable() {
            return Err(Errno::ROFS);
        }
        if self.stack.in_place(node.layer()) {
            return Ok(());
        }
        if node.is_dir() { self.dir_up(node).map(drop) } else { self.file_up(node, len.unwrap_or(u64::MAX)) }
    }

    /// The upper part of a directory; made, with those of all its parents, where there is none. No lock
    /// on names may be held.
    ///
    /// # Errors
    /// ENOENT for a removed directory; those of copying.
    pub(super) fn dir_up(&self, node: &Arc<Node>) -> Result<Arc<Dir>> {
        if !self.stack.is_writable() {
            return Err(Errno::ROFS);
        }
        loop {
            if let Some(part) = node.part(UPPER) {
                return Ok(part);
            }
            // The topmost directory on the way that is missing comes first.
            let mut missing = node.clone();
            let (link, parent) = loop {
                let link = missing.any_link().ok_or(Errno::NOENT)?;
                if let Some(parent) = link.parent.part(UPPER) {
                    break (link, parent);
                }
                missing = link.parent;
            };
            self.copy_dir(&missing, &link, &parent)?;
        }
    }

    /// Copies one directory up whose parent is up already. Does nothing when it was renamed meanwhile.
    fn copy_dir(&self, node: &Arc<Node>, link: &Link, parent: &Arc<Dir>) -> Result<()> {
        let _one = node.copying.lock();
        if node.part(UPPER).is_some() {
            return Ok(());
        }
        let top = node.parts()?.into_iter().next().ok_or(Errno::NOENT)?;
        let fd = top.fd()?;
        let st = file::stat_fd(&fd)?;
        let origin = index::origin_of(&self.stack, &top, std::ffi::OsStr::new(""))?;
        let staged = copy_up::stage(&self.stack, UPPER, fd.as_fd(), &st, 0, origin.as_ref())?;
        let _names = link.parent.names.write();
        if !self.still(node, link) {
            return Ok(());
        }
        let to = self.stack.writable(parent)?;
        self.set_impure(&link.parent, &to)?;
        let new = staged.publish(&to, &link.name)?;
        let part = Dir::below(parent, &link.name, &new);
        node.relocate(UPPER, |s| {
            s.id = (new.dev, new.ino);
            s.parts.insert(0, part);
            s.impure = false;
            s.redirect = None;
            s.links.iter_mut().for_each(|l| l.layer = UPPER);
        });
        Ok(())
    }

    fn still(&self, node: &Node, link: &Link) -> bool {
        node.with(|s| s.pinned.is_none() && s.links.iter().any(|l| l.is(&link.parent, &link.name)))
    }

    /// Copies up anything but a directory, with the first `len` bytes of data.
    fn file_up(&self, node: &Arc<Node>, len: u64) -> Result<()> {
        let _one = node.copying.lock();
        loop {
            if self.stack.in_place(node.layer()) {
                return Ok(());
            }
            let Some(link) = node.any_link() else {
                return self.nameless_up(node, len);
            };
            let parent = self.dir_up(&link.parent)?;
            let holder = link.parent.part(link.layer).ok_or(Errno::STALE)?;
            let from = node.pin(None)?;
            let st = file::stat_fd(&*from)?;
            let origin = index::origin_of(&self.stack, &holder, &link.name)?;
            if let Some(origin) = origin.as_ref().filter(|_| self.wants_index(&st))
                && let Some((entry, copy)) = index::find(&self.stack, origin)?
            {
                // Another of its names was, while this node was not known.
                node.relocate(UPPER, |s| {
                    s.id = (copy.dev, copy.ino);
                    s.indexed = Some(entry);
                });
                return Ok(());
            }
            let staged = copy_up::stage(&self.stack, UPPER, from.as_fd(), &st, len, origin.as_ref())?;
            let _names = link.parent.names.write();
            if !self.still(node, &link) {
                continue;
            }
            let to = self.stack.writable(&parent)?;
            self.set_impure(&link.parent, &to)?;
            let entry = match origin.as_ref().and_then(|o| o.index_name()) {
                Some(name) if self.wants_index(&st) => Some(self.add_to_index(&staged, name.into(), &st)?),
                _ => None,
            };
            let new = staged.publish(&to, &link.name).inspect_err(|_| {
                if let Some(entry) = &entry {
                    let _ = index::remove(&self.stack, &entry.name);
                }
            })?;
            node.relocate(UPPER, |s| {
                s.id = (new.dev, new.ino);
                s.indexed = entry;
                // Other names stay where they are, and find the copy by the index.
                for l in s.links.iter_mut().filter(|l| l.is(&link.parent, &link.name)) {
                    l.layer = UPPER;
                }
            });
            return Ok(());
        }
    }

    fn add_to_index(
        &self,
        staged: &copy_up::Staged<'_>,
        name: Box<std::ffi::OsStr>,
        st: &Stat,
    ) -> Result<Indexed> {
        // The copy will have two names, this one and that of the file; the union counts the lower's.
        let diff = i64::from(st.nlink) - 2;
        staged.mark(Mark::Nlink, &NlinkDiff { base: Base::Upper, diff }.encode())?;
        staged.link(self.stack.work(UPPER)?.index(), &name)?;
        Ok(Indexed { name, diff })
    }

    /// Copies up an open file that has no name left.
    fn nameless_up(&self, node: &Arc<Node>, len: u64) -> Result<()> {
        let from = node.pin(None)?;
        let st = file::stat_fd(&*from)?;
        let staged = copy_up::stage(&self.stack, UPPER, from.as_fd(), &st, len, None)?;
        let fd = staged.keep_nameless()?;
        let new = file::stat_fd(&fd)?;
        node.relocate(UPPER, |s| {
            s.id = (new.dev, new.ino);
            s.pinned = Some(Arc::new(fd));
            s.hidden = true;
        });
        Ok(())
    }

    /// Marks an upper directory as one that has entries with an origin (overlayfs.rst has no word on
    /// it; fs/overlayfs/readdir.c explains the mark).
    pub(super) fn set_impure(&self, node: &Node, part: &Writable) -> Result<()> {
        let abilities = self.stack.work(UPPER)?.abilities();
        if node.with(|s| s.impure) || !abilities.xattrs {
            return Ok(());
        }
        part.set_own_mark(Mark::Impure, abilities.namespace, b"y")?;
        node.update(|s| s.impure = true);
        Ok(())
    }

    /// Gives a copied-up file whose name `link` is still lower an upper entry of that name. The names of
    /// the parent must be locked for writing and its upper part exist.
    pub(super) fn link_up(&self, node: &Arc<Node>, link: &Link) -> Result<()> {
        let to = self.writable(&link.parent, UPPER)?;
        let _count = node.counting.lock();
        let Some(entry) = node.with(|s| s.indexed.clone()) else { return Err(Errno::STALE) };
        let fd = node.pin(self.index())?;
        self.set_impure(&link.parent, &to)?;
        // What is recorded counts: the node may be newer than what it was made from.
        let entry = Indexed { diff: index::diff(&self.stack, &entry.name)?, ..entry };
        // One real name more, and as many in the union.
        let diff = entry.diff - 1;
        index::store_diff(&self.stack, &entry.name, diff)?;
        to.link(&*fd, &link.name).inspect_err(|_| {
            let _ = index::store_diff(&self.stack, &entry.name, entry.diff);
        })?;
        node.update(|s| {
            s.indexed = Some(Indexed { diff, ..entry });
            for l in s.links.iter_mut().filter(|l| l.is(&link.parent, &link.name)) {
                l.layer = UPPER;
            }
        });
        Ok(())
    }

    /// Whether the object was copied up: it does not have its own number.
    pub(super) fn has_origin(&self, node: &Node) -> bool {
        let (dev, ino) = node.with(|s| s.id);
        self.stack.identity().compose(dev, ino) != node.ino
    }

    /// A writable layer's role decides where changes of a name go.
    pub(super) fn is_init(&self, layer: LayerId) -> bool {
        self.stack.role(layer) == crate::layer::stack::Role::Init
    }
}
