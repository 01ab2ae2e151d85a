//! Copy-up: from a plan by the live state, through [`crate::copy_up`], to a changed live state.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, OFlags};

use crate::copy_up::{self, Content};
use crate::error::{Errno, Result};
use crate::format::names::Mark;
use crate::format::nlink::{Base, NlinkDiff};
use crate::format::origin::Origin;
use crate::layer::dir::{Dir, LayerId};
use crate::layer::stack::Role;
use crate::layer::upper::Writable;
use crate::merge::index::{self, Indexed};
use crate::merge::lookup::Data;
use crate::node::{Link, Node, State};
use crate::sys::file::{self, Stat};
use crate::sys::flags;

use super::UnionFs;

/// What of an object must be changeable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Its attributes.
    Attributes,
    /// Its data too: the first bytes of it, or all.
    Data(Option<u64>),
    /// Its attributes and data, even when flags protect it: in order to change these.
    Everything,
}

/// The data of a file that is about to be copied.
pub(super) struct Source {
    fd: Option<OwnedFd>,
    len: u64,
}

impl Source {
    /// How many bytes a copy takes of a file of this size.
    fn bytes(&self, size: u64) -> u64 {
        if self.fd.is_some() { self.len.min(size) } else { 0 }
    }

    pub(super) fn as_content(&self) -> Content<'_> {
        self.fd.as_ref().map_or(Content::Empty, |fd| Content::Copy(fd.as_fd(), self.len))
    }

    /// The most bytes that a copy of it takes. `st`: the attributes of the file.
    fn most(&self, st: &Stat) -> u64 {
        if self.fd.is_some() { self.len.min(st.size).min(st.blocks.saturating_mul(512)) } else { 0 }
    }
}

/// Refuses to change an object of a lower that is immutable or append-only: a copy could not be so
/// while it is made, and in a directory that is, nothing could be copied up.
fn check_unprotected(lower: impl AsFd, need: Need) -> Result<()> {
    if need != Need::Everything && flags::is_protected(lower)? { Err(Errno::PERM) } else { Ok(()) }
}

impl UnionFs {
    /// Makes an object changeable: copies it up unless it lies in a writable layer already. No lock on
    /// names may be held.
    ///
    /// When only the first bytes of its data are needed and had to be copied, the copy has exactly these from its first
    /// instant: it is truncated, and its descriptor for reading and writing is given. Nothing more can fail then.
    ///
    /// # Errors
    /// EROFS on a read-only stack; EPERM for a lower object that its flags protect; those of copying.
    pub(super) fn up(&self, node: &Arc<Node>, need: Need) -> Result<Option<OwnedFd>> {
        if !self.stack.is_writable() {
            return Err(Errno::ROFS);
        }
        let mut made = None;
        if !self.stack.in_place(node.layer()) {
            if node.is_dir() {
                self.part_up(node, need)?;
            } else {
                made = self.file_up(node, need)?;
            }
        }
        match need {
            Need::Data(len) if node.with(|s| s.data.is_some()) => self.data_up(node, len),
            Need::Everything if node.with(|s| s.data.is_some()) => self.data_up(node, None),
            _ => Ok(made),
        }
    }

    /// Refuses to take a name of an object away when that lies in a lower and is protected. In other
    /// layers the filesystem refuses it.
    pub(super) fn check_removable(&self, node: &Node, holder: LayerId) -> Result<()> {
        if self.stack.in_place(holder) || self.stack.in_place(node.layer()) {
            return Ok(());
        }
        check_unprotected(&*node.pin(None)?, Need::Attributes)
    }

    /// Opens what must be copied of a file's data.
    pub(super) fn content(&self, node: &Node, st: &Stat, len: u64) -> Result<Source> {
        if node.kind != FileType::RegularFile || len == 0 || st.size == 0 {
            return Ok(Source { fd: None, len: 0 });
        }
        let noatime = !self.stack.in_place(node.content_layer());
        let (fd, _) = node.open(self.index(), OFlags::RDONLY, noatime)?;
        Ok(Source { fd: Some(fd), len })
    }

    /// The upper part of a directory; made, with those of all its parents, where there is none. No lock
    /// on names may be held.
    ///
    /// # Errors
    /// ENOENT for a removed directory; those of copying.
    pub(super) fn dir_up(&self, node: &Arc<Node>) -> Result<Arc<Dir>> {
        self.part_up(node, Need::Attributes)
    }

    fn part_up(&self, node: &Arc<Node>, need: Need) -> Result<Arc<Dir>> {
        if !self.stack.is_writable() {
            return Err(Errno::ROFS);
        }
        loop {
            if let Some(part) = node.part(self.upper()) {
                return Ok(part);
            }
            // The topmost directory on the way that is missing comes first.
            let mut missing = node.clone();
            let (link, parent) = loop {
                let link = missing.any_link().ok_or(Errno::NOENT)?;
                if let Some(parent) = link.parent.part(self.upper()) {
                    break (link, parent);
                }
                missing = link.parent;
            };
            let need = if missing.ino == node.ino { need } else { Need::Attributes };
            self.copy_dir(&missing, need, &link, &parent)?;
        }
    }

    /// Copies one directory up whose parent is up already. Does nothing when it was renamed meanwhile.
    fn copy_dir(&self, node: &Arc<Node>, need: Need, link: &Link, parent: &Arc<Dir>) -> Result<()> {
        let _one = node.copying.lock();
        if node.part(self.upper()).is_some() {
            return Ok(());
        }
        let top = node.parts()?.dirs().first().cloned().ok_or(Errno::NOENT)?;
        let fd = top.fd()?;
        check_unprotected(&*fd, need)?;
        let st = self.stack.stat(top.layer(), &*fd)?;
        let origin = index::origin_of(&self.stack, &top, OsStr::new(""))?;
        let room = self.room(self.upper(), 0)?;
        let staged = copy_up::stage(
            &self.stack,
            (top.layer(), self.upper()),
            fd.as_fd(),
            &st,
            Content::Empty,
            origin.as_ref(),
        )?;
        let _names = self.change_names(&link.parent);
        if !self.still(node, link) {
            return Ok(());
        }
        let to = self.stack.writable(parent)?;
        self.set_impure(&to)?;
        self.note_name(self.upper(), &link.name)?;
        let new = staged.publish(&to, &link.name)?;
        room.used(&new);
        let part = Dir::below(parent, &link.name, &new);
        self.copied.add(1, 0);
        node.relocate(self.upper(), |s| {
            s.id = (new.dev, new.ino);
            s.parts = s.parts.with_top(part);
            s.redirect = None;
            s.links.iter_mut().for_each(|l| l.layer = self.upper());
        });
        Ok(())
    }

    fn still(&self, node: &Node, link: &Link) -> bool {
        let named = |s: &State| s.links.iter().any(|l| l.is(&link.parent, &link.name));
        node.with(|s| named(s) && (s.pinned.is_none() || !node.is_dir()))
    }

    /// Copies up anything but a directory.
    fn file_up(&self, node: &Arc<Node>, need: Need) -> Result<Option<OwnedFd>> {
        let _one = node.copying.lock();
        loop {
            if self.stack.in_place(node.layer()) {
                return Ok(None);
            }
            let Some(link) = node.any_link() else {
                return self.nameless_up(node, need).map(|()| None);
            };
            let parent = self.dir_up(&link.parent)?;
            let holder = link.parent.part(link.layer).ok_or(Errno::STALE)?;
            let from = node.pin(None)?;
            check_unprotected(&*from, need)?;
            let st = self.stack.stat(node.layer(), &*from)?;
            // Copies of two names must not claim one origin.
            let split = self.splits_links(link.layer, &st);
            let origin = if split { None } else { index::origin_of(&self.stack, &holder, &link.name)? };
            let hard = self.wants_index(&st);
            if let Some(origin) = origin.as_ref().filter(|_| hard)
                && let Some((entry, copy)) = index::find(&self.stack, origin, st.kind())?
                && !index::lacks_data(&self.stack, &entry, &copy)?
            {
                // Another of its names was, while this node was not known.
                self.keep_number(node, &Some(origin.clone()));
                node.relocate(self.upper(), |s| {
                    s.id = (copy.dev, copy.ino);
                    s.indexed = Some(entry);
                    s.gone = 0;
                    s.data = None;
                });
                return Ok(None);
            }
            let later = need == Need::Attributes && !hard && self.may_postpone_data(node, &st);
            let source = match need {
                _ if later => Source { fd: None, len: 0 },
                Need::Data(Some(len)) => self.content(node, &st, len)?,
                _ => self.content(node, &st, u64::MAX)?,
            };
            let content = if later { Content::Later } else { source.as_content() };
            let room = self.room(self.upper(), source.most(&st))?;
            let staged = copy_up::stage(
                &self.stack,
                (node.layer(), self.upper()),
                from.as_fd(),
                &st,
                content,
                origin.as_ref(),
            )?;
            let truncated = match need {
                Need::Data(Some(len)) => Some(staged.truncated(len)?),
                _ => None,
            };
            let _names = self.change_names(&link.parent);
            if !self.still(node, &link) {
                continue;
            }
            let to = self.stack.writable(&parent)?;
            self.set_impure(&to)?;
            self.note_name(self.upper(), &link.name)?;
            let _counting = node.counting.lock();
            let entry = match &origin {
                Some(origin) if hard => self.add_to_index(&staged, origin, node, &st)?,
                _ => None,
            };
            let new = staged.publish(&to, &link.name).inspect_err(|_| {
                if let Some(entry) = &entry {
                    let _ = index::remove(&self.stack, &entry.name);
                }
            })?;
            self.copied.add(1, source.bytes(st.size));
            room.used(&new);
            if split {
                self.stack.identity().adopt(new.dev, new.ino, node.ino);
            }
            let entry = entry.map(|entry| self.counted(entry, -1));
            self.keep_number(node, &origin);
            node.relocate(self.upper(), |s| {
                if later && s.data.is_none() {
                    let name = link.name.clone();
                    s.data = Some(Data { dir: holder, name, id: s.id, blocks: st.blocks });
                } else if !later {
                    s.data = None;
                }
                s.id = (new.dev, new.ino);
                s.indexed = entry;
                s.gone = 0;
                s.pinned = None;
                // Other names stay where they are, and find the copy by the index.
                for l in s.links.iter_mut().filter(|l| l.is(&link.parent, &link.name)) {
                    l.layer = self.upper();
                }
            });
            if let Some(origin) = origin.filter(|_| hard)
                && let Err(e) = index::store_gone(&self.stack, &origin, 0)
            {
                // Not looked at while there is an index entry.
                tracing::warn!("left in the work directory: a count of removed names: {e}");
            }
            return Ok(truncated);
        }
    }

    /// What was in a frozen upper may have the number of what it was copied up from there. The copy that has it as
    /// its origin gets the same.
    fn keep_number(&self, node: &Node, origin: &Option<Origin>) {
        if self.stack.role(node.layer()) == Role::Frozen && origin.is_some() {
            let (dev, ino) = node.with(|s| s.id);
            if self.stack.identity().compose(dev, ino) != node.ino {
                self.stack.identity().adopt(dev, ino, node.ino);
            }
        }
    }

    /// Whether the data of a file may stay behind when only its attributes change.
    fn may_postpone_data(&self, node: &Node, st: &Stat) -> bool {
        self.metacopy
            && node.kind == FileType::RegularFile
            && st.size > 0
            && self.stack.work(self.upper()).is_ok_and(|w| w.abilities().xattrs)
    }

    /// Brings the data of a file up whose attributes are up already.
    fn data_up(&self, node: &Arc<Node>, len: Option<u64>) -> Result<Option<OwnedFd>> {
        let _one = node.copying.lock();
        if node.with(|s| s.data.is_none()) {
            return Ok(None);
        }
        let before = node.stat(self.index())?;
        let source = self.content(node, &before, len.unwrap_or(u64::MAX))?;
        let (copy, _) = node.open_here(self.index(), OFlags::RDWR, false)?;
        self.complete_up(node, &source, &copy, &before, len)?;
        self.copied.add(0, source.bytes(before.size));
        node.relocate(node.layer(), |s| s.data = None);
        Ok(len.map(|_| copy))
    }

    fn complete_up(
        &self,
        node: &Node,
        source: &Source,
        copy: &OwnedFd,
        before: &Stat,
        len: Option<u64>,
    ) -> Result<()> {
        let complete =
            || copy_up::complete(&self.stack, self.upper(), source.as_content(), copy, before, len);
        self.change_blocks_in(self.upper(), node, copy, source.most(before), complete)
    }

    fn add_to_index(
        &self,
        staged: &copy_up::Staged<'_>,
        origin: &Origin,
        node: &Node,
        st: &Stat,
    ) -> Result<Option<Indexed>> {
        let Some(name) = origin.index_name() else { return Ok(None) };
        // The copy has one name now, this one; the union counts the lower's, whatever real names there are when
        // a crash comes before the file's own name is counted.
        let names = i64::from(node.in_union(*st).nlink);
        staged.mark(Mark::Nlink, &NlinkDiff { base: Base::Zero, diff: names }.encode())?;
        match staged.link(self.stack.work(self.upper())?.index(), &name) {
            Ok(()) => Ok(Some(Indexed { name: name.into(), diff: names - 1 })),
            // Kept there for NFS by the kernel's overlayfs: the names part ways, as without an index.
            Err(Errno::EXIST) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Records that the union has `change` more names of a copied-up hardlink than real names came with
    /// them. What is already done cannot be undone for a count: failing to store it is logged.
    pub(super) fn counted(&self, entry: Indexed, change: i64) -> Indexed {
        let diff = entry.diff + change;
        if change != 0
            && let Err(e) = index::store_diff(&self.stack, &entry.name, diff)
        {
            tracing::warn!("the number of names of a hardlink could not be stored: {e}");
        }
        Indexed { diff, ..entry }
    }

    /// Copies up an open file that has no name left.
    fn nameless_up(&self, node: &Arc<Node>, need: Need) -> Result<()> {
        let from = node.pin(None)?;
        check_unprotected(&*from, need)?;
        let st = self.stack.stat(node.layer(), &*from)?;
        let len = if let Need::Data(Some(len)) = need { len } else { u64::MAX };
        let source = self.content(node, &st, len)?;
        let room = self.room(self.upper(), source.most(&st))?;
        let staged = copy_up::stage(
            &self.stack,
            (node.layer(), self.upper()),
            from.as_fd(),
            &st,
            source.as_content(),
            None,
        )?;
        let fd = staged.keep_nameless()?;
        self.copied.add(1, source.bytes(st.size));
        let new = file::stat_fd(&fd)?;
        node.relocate(self.upper(), |s| {
            s.id = (new.dev, new.ino);
            s.pinned = Some(Arc::new(fd));
            s.data = None;
            s.hidden = true;
        });
        room.used(&new);
        self.count_nameless(node, &new);
        Ok(())
    }

    /// Marks an upper directory as one that has entries with an origin (overlayfs.rst has no word on
    /// it; fs/overlayfs/readdir.c explains the mark).
    pub(super) fn set_impure(&self, dir: &Writable) -> Result<()> {
        let abilities = self.stack.work(self.upper())?.abilities();
        if dir.dir().impure() || !abilities.xattrs {
            return Ok(());
        }
        dir.set_own_mark(Mark::Impure, abilities.namespace, b"y")?;
        dir.dir().note_impure();
        Ok(())
    }

    /// Gives a copied-up file whose name `link` is still lower an upper entry of that name. The names of
    /// the parent must be locked for writing and its upper part exist.
    pub(super) fn link_up(&self, node: &Arc<Node>, link: &Link) -> Result<()> {
        let to = self.writable(&link.parent, self.upper())?;
        let fd = node.refer(self.index())?;
        self.set_impure(&to)?;
        let _counting = node.counting.lock();
        let Some(entry) = node.with(|s| s.indexed.clone()) else { return Err(Errno::STALE) };
        // What is recorded counts: the node may be newer than what it was made from.
        let entry = Indexed { diff: index::diff(&self.stack, &entry.name)?, ..entry };
        // One real name more, and as many in the union: whatever happens between the two steps, that is what is recorded.
        let names = i64::from(file::stat_fd(&*fd)?.nlink) + entry.diff;
        index::store_count(&self.stack, &entry.name, names)?;
        if let Err(e) = to.link(&*fd, &link.name) {
            index::count_from_upper(&self.stack, &entry.name)?;
            return Err(e);
        }
        let entry = self.counted(entry, -1);
        node.update(|s| {
            s.indexed = Some(entry);
            for l in s.links.iter_mut().filter(|l| l.is(&link.parent, &link.name)) {
                l.layer = self.upper();
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
        self.stack.role(layer) == Role::Init
    }
}
