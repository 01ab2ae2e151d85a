//! lookup, forget: from names to nodes.

use std::ffi::OsStr;
use std::sync::Arc;

use super::{Attr, ROOT, UnionFs};
use crate::error::{Errno, Result};
use crate::format::origin::Origin;
use crate::layer::dir::LayerId;
use crate::layer::stack::{Role, UPPER};
use crate::merge::lookup::{DirFound, Found, Other};
use crate::merge::{index, lookup, number};
use crate::node::{Link, Node, State};
use crate::sys::file::{self, Stat};

/// What has a number.
enum Admitted {
    /// Nothing had it: a new node.
    New(Arc<Node>),
    /// The object that was looked for.
    Same(Arc<Node>),
    /// What looks like another object.
    Other(Arc<Node>),
}

impl UnionFs {
    /// The object that `name` in directory `parent` stands for. Counts one lookup of it.
    ///
    /// # Errors
    /// ENOENT: the name is not there, and may be remembered so.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Attr> {
        let parent = self.node(parent)?;
        let (node, st) = match name.as_encoded_bytes() {
            // Asked by the kernel to find a directory again by its file handle.
            b"." => (parent.clone(), parent.stat(self.index())?),
            b".." => {
                let node = parent.any_link().map_or_else(|| self.root.clone(), |link| link.parent);
                let st = node.stat(self.index())?;
                (node, st)
            }
            _ => {
                let _names = parent.names.read();
                self.child(&parent, name)?
            }
        };
        if node.ino != ROOT {
            self.table.count(&node);
        }
        Ok(self.attr(&node, &st))
    }

    /// Takes back `lookups` lookups of an inode that the kernel forgets.
    pub fn forget(&self, ino: u64, lookups: u64) {
        self.table.forget(ino, lookups);
    }

    /// The attributes to show for a node with real attributes `st`, as [`Node::stat`] gives them.
    pub(super) fn attr(&self, node: &Node, st: &Stat) -> Attr {
        let mut attr = Attr::new(node.ino, st);
        // A passthrough write may clear set-ID bits without our knowing.
        attr.cacheable = !st.has_setid() || node.is_dir() || !node.io().is_passed();
        attr
    }

    /// What `name` stands for; the parent's names must be locked.
    pub(super) fn resolve(&self, parent: &Node, name: &OsStr) -> Result<Found> {
        lookup::lookup(&self.stack, &parent.parts()?, name)
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
        let layer = dir.parts.first().map_or(UPPER, |p| p.layer());
        let stat = dir.stat;
        let id = (stat.dev, stat.ino);
        let link = Link { parent: parent.clone(), name: name.into(), layer };
        let mut state = Some(State {
            links: vec![link],
            id,
            parts: dir.parts,
            impure: dir.impure,
            redirect: dir.redirect,
            ..State::default()
        });
        let node = match self.admit_state(ino, stat, layer, &mut state) {
            Admitted::New(node) | Admitted::Same(node) => node,
            Admitted::Other(_) => self.admit_alias(stat, layer, &mut state),
        };
        (node, stat)
    }

    fn admit_other(&self, parent: &Arc<Node>, name: &OsStr, other: Other) -> Result<(Arc<Node>, Stat)> {
        let holder = other.dir.layer();
        let role = self.stack.role(holder);
        let mut ino = number::own(&self.stack, &other);
        let (mut layer, mut stat, mut indexed) = (holder, other.stat, None);
        let mut linked = None;
        if role == Role::Lower && self.wants_index(&other.stat) {
            // Another name of the file may have been copied up.
            linked = index::origin_of(&self.stack, &other.dir, name)?;
            if let Some(origin) = &linked
                && let Some((entry, copy)) = index::find(&self.stack, origin)?
            {
                (layer, stat, indexed) = (UPPER, copy, Some(entry));
            }
        } else if role == Role::Init || role == Role::Upper && (parent.with(|s| s.impure) || stat.nlink > 1) {
            let origin = number::origin(&self.stack, other.dir.fd()?, name)?;
            if let Some(origin) = origin {
                ino = self.stack.identity().of_origin(&origin).unwrap_or(ino);
                if role == Role::Upper
                    && stat.nlink > 1
                    && let Some((entry, copy)) = index::find(&self.stack, &origin)?
                    && (copy.dev, copy.ino) == (stat.dev, stat.ino)
                {
                    indexed = Some(entry);
                    linked = Some(origin);
                }
            }
        }
        let link = Link { parent: parent.clone(), name: name.into(), layer: holder };
        let id = (stat.dev, stat.ino);
        let mut state = Some(State { links: vec![link.clone()], id, indexed, ..State::default() });
        let node = match self.admit_state(ino, stat, layer, &mut state) {
            Admitted::Same(node) => node,
            Admitted::New(node) => {
                if let Some(origin) = &linked {
                    stat = self.settle(&node, origin)?.unwrap_or(stat);
                }
                node
            }
            Admitted::Other(node) => {
                // In the middle of being copied up by another of its names, in another directory.
                let lower = (other.stat.dev, other.stat.ino);
                let meanwhile = match &linked {
                    Some(origin) => index::find(&self.stack, origin)?.map(|(_, copy)| (copy.dev, copy.ino)),
                    None => None,
                };
                let known = node.with(|s| s.id);
                if node.kind == stat.kind()
                    && (meanwhile == Some(known) || role == Role::Lower && linked.is_some() && lower == known)
                {
                    stat = file::stat_fd(&*node.pin(self.index())?)?;
                    node
                } else {
                    self.admit_alias(stat, layer, &mut state)
                }
            }
        };
        node.add_link(link);
        Ok((node, stat))
    }

    /// The node with number `ino`, a new one if there is none.
    fn admit_state(&self, ino: u64, stat: Stat, layer: LayerId, state: &mut Option<State>) -> Admitted {
        let id = (stat.dev, stat.ino);
        let (node, new) = self.table.admit(ino, stat.kind(), layer, || state.take().unwrap_or_default());
        if new {
            Admitted::New(node)
        } else if node.with(|s| s.id) == id && node.kind == stat.kind() {
            Admitted::Same(node)
        } else {
            Admitted::Other(node)
        }
    }

    /// Brings a new node of a hardlink up to date: another one may have changed the index since it was
    /// looked at, and be gone. From now on it changes by this node only. Gives the attributes of its copy,
    /// if there is one.
    fn settle(&self, node: &Node, origin: &Origin) -> Result<Option<Stat>> {
        // Whoever copies it up looks at the index first.
        let Some(_copying) = node.copying.try_lock() else { return Ok(None) };
        let _count = node.counting.lock();
        let Some((entry, copy)) = index::find(&self.stack, origin)? else { return Ok(None) };
        node.relocate(UPPER, |s| {
            s.id = (copy.dev, copy.ino);
            s.indexed = Some(entry);
        });
        Ok(Some(copy))
    }

    /// The node of an object whose number another one has (two that claim one origin).
    fn admit_alias(&self, stat: Stat, layer: LayerId, state: &mut Option<State>) -> Arc<Node> {
        let alias = self.stack.identity().alias(stat.dev, stat.ino);
        self.table.admit(alias, stat.kind(), layer, || state.take().unwrap_or_default()).0
    }

    /// Whether a lower file has other names that must be kept together with it when it is copied up.
    pub(super) fn wants_index(&self, stat: &Stat) -> bool {
        stat.nlink > 1 && !stat.is_dir() && index::usable(&self.stack, stat.kind())
    }

    /// The layer's part of a directory, writable.
    pub(super) fn writable(&self, node: &Node, layer: LayerId) -> Result<crate::layer::upper::Writable> {
        self.stack.writable(&node.part(layer).ok_or(Errno::NOENT)?)
    }
}
