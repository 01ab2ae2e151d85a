//! What an upper changes about the layers below it: the whole of `unionfs diff`, and the list of what a
//! layer archive must hold.
//!
//! Two merged trees are compared, the one with the upper and the one without it, but only where the upper
//! says that they may differ: below its own directories, and below those that lead elsewhere (redirects) or
//! hide everything (opaque ones). The init layer is in neither tree: it belongs to one container.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use super::attributes::same_dirs;
use super::change::{Change, Kind, Upper, What, same, unreadable};
use super::links;
use crate::error::{Errno, Outcome, Result};
use crate::format::names;
use crate::layer::dir::{Dir, LayerId};
use crate::layer::stack::UPPER;
use crate::merge::listing;
use crate::merge::lookup::{DirFound, Found, Other, lookup};
use crate::merge::lowers::Parts;
use crate::sys::file::{self, Stat};

impl Upper {
    /// All changes, in the order of a walk that lists each directory by the bytes of its names.
    ///
    /// # Errors
    /// A sentence that names what cannot be read.
    pub fn changes(&self) -> Outcome<Vec<Change>> {
        let mut walk = Walk { upper: self, path: Vec::new(), frames: Vec::new(), found: Noted::default() };
        walk.run().map_err(|e| unreadable(&walk.path, e))?;
        let Noted { mut changes, unchanged_links } = walk.found;
        links::complete(self, &mut changes, unchanged_links)?;
        Ok(changes)
    }
}

/// What a walk has come across.
#[derive(Debug, Default)]
struct Noted {
    changes: Vec<Change>,
    /// Objects in the upper that are as they were, and have further names.
    unchanged_links: Vec<Change>,
}

/// A directory that is being compared.
struct Frame {
    path_len: usize,
    new: Parts,
    old: Option<Parts>,
    init: Option<Arc<Dir>>,
    names: std::vec::IntoIter<OsString>,
    /// Everything in it must be in an archive.
    whole: bool,
    /// Its own change: told when there is one, or one in it.
    own: Change,
    /// Where its own change is told.
    told: Option<usize>,
}

struct Walk<'a> {
    upper: &'a Upper,
    path: Vec<u8>,
    frames: Vec<Frame>,
    found: Noted,
}

impl Walk<'_> {
    fn run(&mut self) -> Result<()> {
        let new = self.upper.root(UPPER)?;
        let old = self.upper.root(UPPER + 1)?;
        let init = self.upper.init.clone();
        self.enter(new, Some(old), init, false)?;
        while let Some(frame) = self.frames.last_mut() {
            self.path.truncate(frame.path_len);
            let Some(name) = frame.names.next() else {
                self.frames.pop();
                continue;
            };
            let (new, old) = (frame.new.clone(), frame.old.clone());
            let (init, whole) = (frame.init.clone(), frame.whole);
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(name.as_bytes());
            let now = self.upper.lookup(&new, &name)?;
            let before = match &old {
                Some(old) => self.upper.lookup(old, &name)?,
                None => Found::Nothing { whiteout: None },
            };
            match (now, before) {
                (Found::Nothing { .. }, Found::Nothing { .. }) => {}
                (Found::Nothing { .. }, _) => {
                    self.tell(Some(Kind::Deleted), What::Nothing { whiteout: !whole });
                }
                (Found::Dir(now), before) => {
                    let init = init.map(|dir| below(&dir, &name)).transpose()?.flatten();
                    let before = match before {
                        Found::Dir(before) => Some(before),
                        Found::Other(_) => {
                            // Told here, since the directory alone looks like an addition.
                            self.enter_replaced(now, whole)?;
                            continue;
                        }
                        Found::Nothing { .. } => None,
                    };
                    self.enter(now, before, init, whole)?;
                }
                (Found::Other(now), before) => self.other(now, before, whole)?,
            }
        }
        Ok(())
    }

    /// Tells of a change at the current path, and of the directories on the way to it.
    fn tell(&mut self, kind: Option<Kind>, what: What) -> usize {
        for frame in &mut self.frames {
            match frame.told {
                None if frame.path_len == 0 => {}
                None => {
                    let mut own = frame.own.clone();
                    own.kind = kind.map(|_| Kind::Changed);
                    frame.told = Some(self.found.changes.len());
                    self.found.changes.push(own);
                }
                Some(at) => {
                    let told = &mut self.found.changes[at];
                    // The root is no change for what is in it.
                    if frame.path_len > 0 && told.kind.is_none() && kind.is_some() {
                        told.kind = Some(Kind::Changed);
                    }
                }
            }
        }
        self.found.changes.push(self.change(kind, what));
        self.found.changes.len() - 1
    }

    fn change(&self, kind: Option<Kind>, what: What) -> Change {
        Change { path: PathBuf::from(OsStr::from_bytes(&self.path)), kind, what }
    }

    /// A directory where something else was.
    fn enter_replaced(&mut self, now: DirFound, whole: bool) -> Result<()> {
        self.enter(now, None, None, whole)?;
        if let Some(frame) = self.frames.last()
            && let Some(at) = frame.told
        {
            self.found.changes[at].kind = Some(Kind::Changed);
        }
        Ok(())
    }

    /// Goes into a directory, unless nothing in it can have changed.
    fn enter(
        &mut self,
        now: DirFound,
        before: Option<DirFound>,
        init: Option<Arc<Dir>>,
        whole: bool,
    ) -> Result<()> {
        let Some(part) = now.parts.first().cloned() else { return Err(Errno::IO) };
        let new = Parts::from(now.parts);
        let untouched = before.as_ref().is_some_and(|b| same_parts(new.dirs(), &b.parts));
        if untouched && !whole {
            return Ok(());
        }
        let (own, changed) = self.attributes(part, now.stat, before.as_ref(), init.as_deref())?;
        let kind = match &before {
            None => Some(Kind::Added),
            Some(_) => changed.then_some(Kind::Changed),
        };
        let old = before.map(|b| Parts::from(b.parts));
        let mut names = self.names(&new, old.as_ref(), whole)?;
        let opaque = !whole && self.needs_opaque(&new, old.as_ref(), &names)?;
        if opaque {
            names = self.names(&new, old.as_ref(), true)?;
        }
        let (part, stat) = own;
        let what = What::Dir { part, stat, opaque };
        let told = if kind.is_some() || whole || opaque { Some(self.tell(kind, what.clone())) } else { None };
        self.frames.push(Frame {
            path_len: self.path.len(),
            new,
            old,
            init,
            names: names.into_iter(),
            whole: whole || opaque,
            own: self.change(kind, what),
            told,
        });
        Ok(())
    }

    /// The attributes of a directory for an image, and whether they are other than before. A directory that
    /// was copied up from the init layer has the attributes of that; these are the container's, not the
    /// image's.
    fn attributes(
        &self,
        part: Arc<Dir>,
        stat: Stat,
        before: Option<&DirFound>,
        init: Option<&Dir>,
    ) -> Result<((Arc<Dir>, Stat), bool)> {
        let Some((before, old)) = before.and_then(|b| b.parts.first().map(|p| (b, p))) else {
            return Ok(((part, stat), false));
        };
        if same_dirs((&part, &stat), (old, &before.stat))? {
            return Ok(((part, stat), false));
        }
        if let Some(init) = init
            && part.layer() == UPPER
            && same_dirs((&part, &stat), (init, &file::stat_fd(init.fd()?)?))?
        {
            let stat = Stat { mtime: stat.mtime, ..before.stat };
            return Ok(((old.clone(), stat), false));
        }
        Ok(((part, stat), true))
    }

    /// The names of a directory that may have changed.
    fn names(&self, new: &Parts, old: Option<&Parts>, whole: bool) -> Result<Vec<OsString>> {
        let stack = &self.upper.stack;
        let mut names = BTreeSet::new();
        let (top, below) = match new.dirs().split_first() {
            Some((top, below)) if top.layer() == UPPER => (Some(top), below),
            _ => (None, new.dirs()),
        };
        if !whole && old.is_some_and(|old| same_parts(below, old.dirs())) {
            if let Some(top) = top {
                file::list(top.fd()?, |name, _, _| {
                    if !stack.is_mark(UPPER, name) {
                        names.insert(name.to_owned());
                    } else if let Some(hidden) = names::wh_target(name) {
                        names.insert(hidden.to_owned());
                    }
                    Ok(())
                })?;
            }
        } else {
            for parts in [Some(new), old].into_iter().flatten() {
                names.extend(listing::list(stack, parts, false)?.into_iter().map(|e| e.name.into()));
            }
        }
        Ok(names.into_iter().collect())
    }

    /// Whether a name is gone that no whiteout of an archive can name: it would be too long, or a whiteout
    /// itself.
    fn needs_opaque(&self, new: &Parts, old: Option<&Parts>, names: &[OsString]) -> Result<bool> {
        let Some(old) = old else { return Ok(false) };
        let stack = &self.upper.stack;
        for name in names.iter().filter(|n| names::is_wh(n) || names::wh_name(n).is_none()) {
            if lookup(stack, old, name)?.is_some() && !lookup(stack, new, name)?.is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn other(&mut self, now: Other, before: Found, whole: bool) -> Result<()> {
        let kind = match &before {
            Found::Nothing { .. } => Some(Kind::Added),
            Found::Dir(_) => Some(Kind::Changed),
            Found::Other(before) => (!same(&now, before)?).then_some(Kind::Changed),
        };
        let in_upper = now.dir.layer() == UPPER;
        if kind.is_some() || whole {
            self.tell(kind, What::Other(now));
        } else if in_upper && now.stat.nlink > 1 {
            let change = self.change(None, What::Other(now));
            self.found.unchanged_links.push(change);
        }
        Ok(())
    }
}

/// The directory `name` in one of the init layer.
fn below(dir: &Arc<Dir>, name: &OsStr) -> Result<Option<Arc<Dir>>> {
    match file::stat_at(dir.fd()?, name) {
        Ok(st) if st.is_dir() => Ok(Some(Dir::below(dir, name, &st))),
        Ok(_) | Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

fn place(dir: &Arc<Dir>) -> (LayerId, (u64, u64)) {
    (dir.layer(), dir.id())
}

/// Whether two directories are made of the same parts.
fn same_parts(a: &[Arc<Dir>], b: &[Arc<Dir>]) -> bool {
    a.iter().map(place).eq(b.iter().map(place))
}
