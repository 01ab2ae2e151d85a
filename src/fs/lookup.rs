//! lookup, forget: from names to nodes.

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::fs::FileType;

use super::{Attr, ROOT, UnionFs};
use crate::error::{Errno, Result};
use crate::format::origin::Origin;
use crate::layer::dir::LayerId;
use crate::layer::stack::Role;
use crate::merge::lookup::{Data, DirFound, Found, Other};
use crate::merge::lowers::{self, Lowers, Parts};
use crate::merge::{index, lookup, number};
use crate::node::{Link, Node, State};
use crate::sys::file::Stat;

/// How a node came to be the one of what was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Admitted {
    /// It is new.
    New,
    /// It has the real object that was found.
    Same,
    /// It is that object, which has another real one by now: it is being copied up.
    Otherwise,
}

/// The deepest directory that a file handle is followed to.
const MAX_DEPTH: usize = 4096;

impl UnionFs {
    /// The object that `name` in directory `parent` stands for. Counts one lookup of it.
    ///
    /// # Errors
    /// ENOENT: the name is not there, and may be remembered so.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Attr> {
        let parent = match (self.node(parent), name.as_encoded_bytes()) {
            // Asked by the kernel to find an object again by its file handle.
            (Err(_), b"." | b"..") => self.revive(parent)?,
            (known, _) => known?,
        };
        let (node, st) = match name.as_encoded_bytes() {
            // The kernel asks so only for an object that it has forgotten, which nobody has open then. That it
            // has may not have reached us yet.
            b"." if parent.ino != ROOT && parent.any_link().is_none() => return Err(Errno::STALE),
            b"." => (parent.clone(), parent.stat(self.index())?),
            b".." => {
                let node = parent.any_link().map_or_else(|| self.root.clone(), |link| link.parent);
                let st = node.stat(self.index())?;
                (node, st)
            }
            _ => {
                let _names = parent.names.read();
                let found = self.resolve(&parent, name)?;
                if let Found::Nothing { whiteout } = found {
                    self.missing.note(parent.ino, name, whiteout);
                }
                self.admit(&parent, name, found)?
            }
        };
        let attr = self.attr(&node, &st)?;
        if node.ino != ROOT {
            self.table.count(&node);
        }
        Ok(attr)
    }

    /// The node with this number that the kernel has forgotten: found by the name that it had last, if that
    /// is remembered and stands for it still.
    fn revive(&self, ino: u64) -> Result<Arc<Node>> {
        let mut way = Vec::new();
        let mut at = ino;
        let mut node = loop {
            if let Ok(known) = self.node(at) {
                break known;
            }
            let (parent, name) = self.table.last_place(at).ok_or(Errno::STALE)?;
            way.push((at, name));
            // Names that were remembered at different times may form a circle.
            if way.len() > MAX_DEPTH {
                return Err(Errno::STALE);
            }
            at = parent;
        };
        while let Some((ino, name)) = way.pop() {
            let next = {
                let _names = node.names.read();
                self.child(&node, &name).map_err(|_| Errno::STALE)?.0
            };
            if next.ino != ino {
                return Err(Errno::STALE);
            }
            node = next;
        }
        Ok(node)
    }

    /// Takes back `lookups` lookups of an inode that the kernel forgets.
    pub fn forget(&self, ino: u64, lookups: u64) {
        self.table.forget(ino, lookups);
    }

    /// What `name` stands for; the parent's names must be locked.
    pub(super) fn resolve(&self, parent: &Node, name: &OsStr) -> Result<Found> {
        lookup::lookup(&self.stack, &self.parts(parent, false)?, name)
    }

    /// A directory's parts. What several lower ones hold is read once, if that is worth it. `listing`: for a
    /// listing; otherwise for a lookup.
    pub(super) fn parts(&self, node: &Node, listing: bool) -> Result<Parts> {
        let parts = node.parts()?;
        let limit = parts.worth_reading(&self.stack, listing);
        if limit == 0 {
            return Ok(parts);
        }
        let lowers = Lowers::read(&self.stack, parts.dirs(), limit)?;
        if lowers.is_none() && limit < lowers::MAX_ROWS {
            // Worth it later, perhaps.
            return Ok(parts);
        }
        let parts = parts.with_lowers(lowers);
        // What was copied up meanwhile has another top part: its lowers are read when asked again.
        node.update(|s| {
            if s.parts.dirs().len() == parts.dirs().len() {
                s.parts = parts.clone();
            }
        });
        Ok(parts)
    }

    /// The node of the entry `name`, with its attributes; the parent's names must be locked.
    pub(super) fn child(&self, parent: &Arc<Node>, name: &OsStr) -> Result<(Arc<Node>, Stat)> {
        let found = self.resolve(parent, name)?;
        self.admit(parent, name, found)
    }

    /// The node of what was found under `name`; the parent's names must be locked.
    pub(super) fn admit(&self, parent: &Arc<Node>, name: &OsStr, found: Found) -> Result<(Arc<Node>, Stat)> {
        let (node, st) = match found {
            Found::Nothing { .. } => return Err(Errno::NOENT),
            Found::Dir(dir) => self.admit_dir(parent, name, dir),
            Found::Other(other) => self.admit_other(parent, name, other)?,
        };
        let st = node.in_union(st);
        Ok((node, st))
    }

    fn admit_dir(&self, parent: &Arc<Node>, name: &OsStr, dir: DirFound) -> (Arc<Node>, Stat) {
        let ino = number::of_dir(&self.stack, &dir);
        let layer = dir.parts.first().map_or(self.upper(), |p| p.layer());
        let stat = dir.stat;
        let id = (stat.dev, stat.ino);
        let link = Link { parent: parent.clone(), name: name.into(), layer };
        let mut state = State::new([link], id);
        state.parts = dir.parts.into();
        if dir.redirect.is_some() {
            state.redirect = dir.redirect;
        }
        let mut state = Some(state);
        let (node, _) = self.admit_state(ino, stat, layer, &mut state, |s| s.id == id);
        (node, stat)
    }

    fn admit_other(&self, parent: &Arc<Node>, name: &OsStr, other: Other) -> Result<(Arc<Node>, Stat)> {
        let holder = other.dir.layer();
        let role = self.stack.role(holder);
        let mut ino = number::own(&self.stack, &other);
        let own_id = (other.stat.dev, other.stat.ino);
        let (mut layer, mut stat, mut indexed, mut gone) = (holder, other.stat, None, 0);
        let mut data = other.data.clone();
        let shared = matches!(role, Role::Lower | Role::Frozen) && self.wants_index(&other.stat);
        let mut linked = None;
        if self.splits_links(holder, &other.stat) {
            ino = self.stack.identity().of_name(parent.ino, name);
        } else if shared {
            // Another name of the file may have been copied up, or removed.
            linked = index::origin_of(&self.stack, &other.dir, name)?;
            if let Some(origin) = &linked {
                if let Some((entry, copy)) = index::find(&self.stack, origin, stat.kind())? {
                    data = index::lacks_data(&self.stack, &entry, &copy)?.then(|| Data::of(&other));
                    (layer, stat, indexed) = (self.upper(), copy, Some(entry));
                } else {
                    gone = index::gone(&self.stack, origin)?;
                }
            }
            if role == Role::Frozen
                && let Some(origin) = number::origin(&self.stack, other.dir.fd()?, name)?
            {
                ino = self.stack.identity().of_origin(&origin).unwrap_or(ino);
            }
        } else if role == Role::Init
            || (matches!(role, Role::Upper | Role::Frozen) && (other.dir.impure() || stat.nlink > 1))
        {
            let origin = number::origin(&self.stack, other.dir.fd()?, name)?;
            if let Some(origin) = origin {
                ino = self.stack.identity().of_origin(&origin).unwrap_or(ino);
                if role == Role::Upper
                    && stat.nlink > 1
                    && let Some((entry, copy)) = index::find(&self.stack, &origin, stat.kind())?
                    && (copy.dev, copy.ino) == (stat.dev, stat.ino)
                {
                    indexed = Some(entry);
                    linked = Some(origin);
                }
            }
        }
        let link = Link { parent: parent.clone(), name: name.into(), layer: holder };
        let id = (stat.dev, stat.ino);
        let mut state = State::new([link.clone()], id);
        if indexed.is_some() || gone > 0 || data.is_some() {
            (state.indexed, state.gone, state.data) = (indexed, gone, data);
        }
        let mut state = Some(state);
        // A hardlink may be copied up by another of its names, under another directory's lock, at this
        // moment: whichever of the two the node is, it is this object.
        let is_it = |s: &State| s.id == id || (shared && (s.id == own_id || s.indexed.is_some()));
        let (node, admitted) = self.admit_state(ino, stat, layer, &mut state, is_it);
        node.add_link(link);
        let same = match (&linked, admitted) {
            (Some(origin), Admitted::New) => !self.settle(&node, origin, shared)?,
            (_, admitted) => admitted != Admitted::Otherwise,
        };
        let stat = if same { stat } else { node.stat_raw(self.index())? };
        Ok((node, stat))
    }

    /// The node with number `ino`, if that is the object by `is_it`; otherwise one under another number:
    /// two objects may claim one origin.
    fn admit_state(
        &self,
        ino: u64,
        stat: Stat,
        layer: LayerId,
        state: &mut Option<State>,
        is_it: impl Fn(&State) -> bool,
    ) -> (Arc<Node>, Admitted) {
        let mut take = || state.take().unwrap_or_default();
        let id = (stat.dev, stat.ino);
        let (node, new) = self.table.admit(ino, stat.kind(), layer, &mut take);
        if new {
            return (node, Admitted::New);
        }
        if node.kind == stat.kind() && node.with(&is_it) {
            let same = node.with(|s| s.id == id);
            return (node, if same { Admitted::Same } else { Admitted::Otherwise });
        }
        let alias = self.stack.identity().alias(stat.dev, stat.ino);
        (self.table.admit(alias, stat.kind(), layer, take).0, Admitted::Same)
    }

    /// Brings a new node of a hardlink up to date: another one may have changed what is recorded since that
    /// was looked at, and be gone. From now on it changes by this node only. Gives whether its real object
    /// turned out to be another.
    fn settle(&self, node: &Node, origin: &Origin, lower: bool) -> Result<bool> {
        // Whoever copies it up looks at the records first.
        let Some(_copying) = node.copying.try_lock() else { return Ok(true) };
        let _count = node.counting.lock();
        match index::find(&self.stack, origin, node.kind)? {
            Some((entry, copy)) => Ok(node.relocate(self.upper(), |s| {
                let id = (copy.dev, copy.ino);
                s.indexed = Some(entry);
                id != std::mem::replace(&mut s.id, id)
            })),
            None => {
                let gone = if lower { index::gone(&self.stack, origin)? } else { 0 };
                node.update(|s| s.gone = gone);
                Ok(false)
            }
        }
    }

    /// Whether a lower file has other names that must be kept together with it when it is copied up.
    pub(super) fn wants_index(&self, stat: &Stat) -> bool {
        self.keep_links && stat.nlink > 1 && !stat.is_dir() && index::usable(&self.stack, stat.kind())
    }

    /// Whether a file of `layer` has other names that will be other files once it is copied up: then each
    /// name is an object of its own from the beginning.
    pub(super) fn splits_links(&self, layer: LayerId, stat: &Stat) -> bool {
        stat.nlink > 1 && !stat.is_dir() && self.splits(layer, stat.kind())
    }

    /// Whether that can happen to a file of `layer` at all.
    pub(super) fn splits_any_links(&self, layer: LayerId) -> bool {
        // Without privilege symlinks are the first that cannot be kept together.
        self.splits(layer, FileType::Symlink)
    }

    fn splits(&self, layer: LayerId, kind: FileType) -> bool {
        self.stack.is_writable()
            && self.stack.role(layer) == Role::Lower
            && !(self.keep_links && index::usable(&self.stack, kind))
    }

    /// The layer's part of a directory, writable.
    pub(super) fn writable(&self, node: &Node, layer: LayerId) -> Result<crate::layer::upper::Writable> {
        self.stack.writable(&node.part(layer).ok_or(Errno::NOENT)?)
    }
}
