//! rename and exchange.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::sync::Arc;

use parking_lot::RwLockWriteGuard;
use rustix::fs::RenameFlags;

use super::UnionFs;
use super::quota::Losing;
use super::remove::{First, PATIENCE};
use super::up::Need;
use crate::copy_up;
use crate::edit::create::slot;
use crate::edit::rename::{Side, Target, exchange, rename};
use crate::error::{Errno, Result};
use crate::format::names::Mark;
use crate::format::redirect::Redirect;
use crate::layer::dir::LayerId;
use crate::layer::upper::Writable;
use crate::merge::index;
use crate::merge::listing;
use crate::merge::lookup::{Found, hidden_below};
use crate::merge::whiteout::is_whiteout;
use crate::node::{Link, Node};
use crate::sys::file;

/// The locks on the names of one or two directories.
type Names<'a> = (RwLockWriteGuard<'a, ()>, Option<RwLockWriteGuard<'a, ()>>);

/// How often to look, with [`PATIENCE`] between, whether a file that the kernel writes to by itself was closed.
const RELEASE_TRIES: u32 = 50;

/// One name of a rename, with what is there.
struct Place {
    parent: Arc<Node>,
    name: OsString,
    node: Arc<Node>,
    /// The layer that holds the entry.
    holder: LayerId,
}

impl UnionFs {
    /// Locks the names of two directories to change them, in the order of their numbers.
    fn lock<'a>(&self, a: &'a Node, b: &'a Node) -> Names<'a> {
        match a.ino.cmp(&b.ino) {
            std::cmp::Ordering::Equal => (self.change_names(a), None),
            std::cmp::Ordering::Less => {
                let first = self.change_names(a);
                (first, Some(self.change_names(b)))
            }
            std::cmp::Ordering::Greater => {
                let first = self.change_names(b);
                (first, Some(self.change_names(a)))
            }
        }
    }

    /// Renames. Of the flags of renameat2(2), NOREPLACE and EXCHANGE are known, as to overlayfs.
    ///
    /// # Errors
    /// Those of renameat2(2); EXDEV for a directory of the init layer or over one of its names, and for
    /// a directory with lower parts where no redirect can or shall be recorded.
    pub fn rename(
        &self,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        flags: RenameFlags,
    ) -> Result<()> {
        if !(RenameFlags::NOREPLACE | RenameFlags::EXCHANGE).contains(flags) {
            return Err(Errno::INVAL);
        }
        let (from, to) = (self.node(parent)?, self.node(new_parent)?);
        loop {
            let names = self.lock(&from, &to);
            let first = if flags.contains(RenameFlags::EXCHANGE) {
                self.try_exchange(&from, name, &to, new_name)?
            } else {
                self.try_rename(&from, name, &to, new_name, flags.contains(RenameFlags::NOREPLACE))?
            };
            drop(names);
            match first {
                Some(first) => first(self)?,
                None => return Ok(()),
            }
        }
    }

    /// The object that was found under a name.
    fn place(&self, parent: &Arc<Node>, name: &OsStr, found: Found) -> Result<Option<Place>> {
        let Some(holder) = found.layer().filter(|_| found.is_some()) else { return Ok(None) };
        let (node, _) = self.admit(parent, name, found)?;
        Ok(Some(Place { parent: parent.clone(), name: name.to_owned(), node, holder }))
    }

    fn find(&self, parent: &Arc<Node>, name: &OsStr) -> Result<Place> {
        let found = self.resolve(parent, name)?;
        self.place(parent, name, found)?.ok_or(Errno::NOENT)
    }

    /// Whether an object can be moved: a directory with lower parts needs a redirect.
    fn may_move(&self, place: &Place) -> Result<()> {
        let node = &place.node;
        let has_lower = || !self.stack.in_place(node.layer()) || node.with(|s| s.parts.dirs().len() > 1);
        if !self.redirect_dir && node.is_dir() && has_lower() { Err(Errno::XDEV) } else { Ok(()) }
    }

    /// Gets an object ready to be moved by its name: it and the name must lie in a writable layer.
    fn before_moving(&self, place: &Place) -> Result<Option<First>> {
        let Place { parent, node, holder, .. } = place;
        if !self.stack.is_writable() {
            return Err(Errno::ROFS);
        }
        if self.stack.in_place(*holder) && node.with(|s| s.data.is_none()) {
            return Ok(None);
        }
        if node.with(|s| s.data.is_some()) {
            // Where its data is follows from its name.
            let node = node.clone();
            return Ok(Some(Box::new(move |fs| fs.up(&node, Need::Data(None)).map(drop))));
        }
        if !self.stack.in_place(node.layer()) {
            let node = node.clone();
            return Ok(Some(Box::new(move |fs| fs.up(&node, Need::Attributes).map(drop))));
        }
        if parent.part(self.upper()).is_none() {
            let parent = parent.clone();
            return Ok(Some(Box::new(move |fs| fs.dir_up(&parent).map(drop))));
        }
        // Copied up by another of its names.
        let link = Link { parent: parent.clone(), name: place.name.as_os_str().into(), layer: *holder };
        self.link_up(node, &link)?;
        Ok(None)
    }

    fn try_rename(
        &self,
        from: &Arc<Node>,
        name: &OsStr,
        to: &Arc<Node>,
        new_name: &OsStr,
        noreplace: bool,
    ) -> Result<Option<First>> {
        let source = self.find(from, name)?;
        let node = source.node.clone();
        let found = self.resolve(to, new_name)?;
        if noreplace && found.is_some() {
            return Err(Errno::EXIST);
        }
        // A name whose topmost entry is in a writable layer stays there; others go to the upper.
        let home = slot(&self.stack, found.layer()).layer;
        let target = self.place(to, new_name, found)?;
        self.may_move(&source)?;
        if let Some(target) = &target {
            match (node.is_dir(), target.node.is_dir()) {
                (true, false) => return Err(Errno::NOTDIR),
                (false, true) => return Err(Errno::ISDIR),
                _ if target.node.ino == node.ino => return Ok(None),
                _ => {}
            }
            self.check_removable(&target.node, target.holder)?;
            if let Some(first) = self.before_losing(to, target.holder)? {
                return Ok(Some(first));
            }
        }
        if let Some(first) = self.before_moving(&source)? {
            return Ok(Some(first));
        }
        let layer = if self.stack.in_place(source.holder) { source.holder } else { self.upper() };
        if node.is_dir() && (self.is_init(layer) || self.is_init(home)) {
            return Err(Errno::XDEV);
        }
        if layer != home && !node.is_dir() && self.getattr(node.ino, None)?.nlink > 1 {
            // Its other names would stay behind in the other layer: as with link(2) between the two.
            return Err(Errno::XDEV);
        }
        if to.part(home).is_none() {
            let to = to.clone();
            return Ok(Some(Box::new(move |fs| fs.dir_up(&to).map(drop))));
        }
        let target_names = match &target {
            Some(target) if target.node.is_dir() => match self.try_change_names(&target.node, PATIENCE) {
                Some(guard) => Some(guard),
                // Its holder may wait for what we hold.
                None => return Ok(Some(Box::new(|_| Ok(())))),
            },
            _ => None,
        };
        if let Some(target) = target.as_ref().filter(|t| t.node.is_dir())
            && !listing::is_empty(&self.stack, &target.node.parts()?)?
        {
            return Err(Errno::NOTEMPTY);
        }
        self.note_name(home, new_name)?;
        self.perform(&source, layer, to, new_name, home, target.as_ref())?;
        drop(target_names);
        Ok(None)
    }

    /// The rename itself, when all is in place.
    fn perform(
        &self,
        source: &Place,
        layer: LayerId,
        to: &Arc<Node>,
        new_name: &OsStr,
        home: LayerId,
        target: Option<&Place>,
    ) -> Result<()> {
        let Place { parent: from, name, node, .. } = source;
        let from_dir = self.writable(from, layer)?;
        let to_dir = self.writable(to, home)?;
        let whiteout = self.is_init(layer) || hidden_below(&self.stack, &from.parts()?, layer, name)?;
        let _count = target.map(|t| t.node.counting.lock());
        let kept = match target {
            Some(t) if t.node.is_dir() => Some(self.pin(&t.node)?),
            Some(t) => self.keep_object(&t.node, to, new_name)?,
            None => None,
        };
        let losing = target.map(|t| self.losing(&t.node)).transpose()?.flatten();
        let redirect = if node.is_dir() { self.detach(node, from, name, to, new_name)? } else { None };
        if !self.is_init(home) && (self.has_origin(node) || node.is_dir()) {
            self.set_impure(&to_dir)?;
        }
        let object = if node.is_dir() { Some(self.writable(node, layer)?) } else { None };
        let side = Side { dir: &from_dir, name, object: object.as_ref() };
        let physical = self.physical(&to_dir, new_name)?;
        match rename(&self.stack, side, &to_dir, new_name, physical, whiteout) {
            Err(Errno::XDEV) if layer != home => {
                self.copy_across(node, &from_dir, name, whiteout, &to_dir, new_name)?;
            }
            other => other?,
        }
        if layer != home
            && let Some(entry) = node.update(|s| s.indexed.take())
            && let Err(e) = index::remove(&self.stack, &entry.name)
        {
            // Its last name is the init layer's now: nothing is left in the upper to keep together.
            tracing::warn!("left in the index: {e}");
        }
        if let Some(target) = target {
            let (t, holder) = (&target.node, target.holder);
            if t.is_dir() {
                t.update(|s| s.pinned = kept);
                t.remove_link(to, new_name);
            } else {
                self.lost(t, to, new_name, holder, kept);
            }
        }
        losing.into_iter().for_each(Losing::done);
        if layer != home && self.quota().is_some() {
            self.moved_between(layer, home, &file::stat_at(to_dir.fd()?, new_name)?);
        }
        let link = Link { parent: to.clone(), name: new_name.into(), layer: home };
        self.moved(node, from, name, link, redirect);
        Ok(())
    }

    /// Records a rename in the node.
    fn moved(&self, node: &Arc<Node>, from: &Node, name: &OsStr, link: Link, redirect: Option<Redirect>) {
        let layer = link.layer;
        let gone = node.relocate(layer, |s| {
            let gone = s.take_links(|l| l.is(from, name));
            // The first is the one that lookups by name go by.
            s.links.insert(0, link);
            if redirect.is_some() {
                s.redirect = redirect;
            }
            gone
        });
        drop(gone);
    }

    fn physical(&self, dir: &Writable, name: &OsStr) -> Result<Target> {
        self.settle_whiteout(dir, name)?;
        match file::stat_at(dir.fd()?, name) {
            Err(Errno::NOENT) => Ok(Target::Free),
            Err(e) => Err(e),
            Ok(st) if st.is_dir() => Ok(Target::Dir),
            Ok(st) if is_whiteout(dir.dir(), name, &st)? => Ok(Target::Whiteout),
            Ok(_) => Ok(Target::File),
        }
    }

    /// Prepares a directory in the upper for another place, where other lower directories may lie below:
    /// a merged one gets a redirect to where its own lower parts are, a purely upper one is made opaque
    /// where that is needed. Harmless while it still has its old place.
    fn detach(
        &self,
        node: &Node,
        from: &Node,
        name: &OsStr,
        to: &Node,
        new_name: &OsStr,
    ) -> Result<Option<Redirect>> {
        let part = self.writable(node, self.upper())?;
        let abilities = self.stack.work(self.upper())?.abilities();
        let merged = node.with(|s| s.parts.dirs().len() > 1);
        if !merged {
            if hidden_below(&self.stack, &to.parts()?, self.upper(), new_name)? {
                part.set_own_mark(Mark::Opaque, abilities.namespace, b"y")?;
            }
            return Ok(None);
        }
        if !abilities.xattrs {
            return Err(Errno::XDEV);
        }
        let (redirect, value) = match node.with(|s| s.redirect.clone()) {
            // Where it came from does not change.
            Some(Redirect::Absolute(_)) => return Ok(None),
            known if from.ino == to.ino => {
                let lower = match known {
                    Some(Redirect::Sibling(lower)) => lower,
                    _ => name.to_owned(),
                };
                let value = lower.as_encoded_bytes().to_vec();
                (Redirect::Sibling(lower), value)
            }
            _ => {
                let path = self.lower_path(node)?;
                let value = Redirect::encode_absolute(path.iter().map(OsString::as_os_str));
                (Redirect::Absolute(path), value.ok_or(Errno::XDEV)?)
            }
        };
        part.set_own_mark(Mark::Redirect, abilities.namespace, &value)?;
        // From now on it is looked up by this, wherever it lies.
        node.update(|s| s.redirect = Some(redirect.clone()));
        Ok(Some(redirect))
    }

    /// The path of a merged directory in the union of the layers below the upper.
    fn lower_path(&self, node: &Node) -> Result<Vec<OsString>> {
        let mut path: Vec<OsString> = Vec::new();
        let mut next = node.with(|s| (s.redirect.clone(), s.links.first().cloned()));
        loop {
            match next {
                (Some(Redirect::Absolute(mut whole)), _) => {
                    path.reverse();
                    whole.append(&mut path);
                    return Ok(whole);
                }
                (redirect, Some(link)) => {
                    path.push(match redirect {
                        Some(Redirect::Sibling(lower)) => lower,
                        _ => link.name.as_ref().to_owned(),
                    });
                    next = link.parent.with(|s| (s.redirect.clone(), s.links.first().cloned()));
                }
                (_, None) => break,
            }
        }
        path.reverse();
        if path.is_empty() { Err(Errno::NOENT) } else { Ok(path) }
    }

    /// Moves an object between the upper and the init layer when they lie on different mounts: a copy
    /// takes the new place, then the old entry goes.
    fn copy_across(
        &self,
        node: &Arc<Node>,
        from: &Writable,
        name: &OsStr,
        whiteout: bool,
        to: &Writable,
        new_name: &OsStr,
    ) -> Result<()> {
        let home = to.dir().layer();
        let fd = node.pin(self.index())?;
        let st = self.stack.stat(node.layer(), &*fd)?;
        // The kernel may not have told us yet that a file is closed.
        for _ in 0..RELEASE_TRIES {
            if !node.io().is_passed() {
                break;
            }
            std::thread::sleep(PATIENCE);
        }
        // Nobody writes to it nor opens it meanwhile.
        let _content = node.names.write();
        let io = node.io();
        if st.nlink > 1 || io.is_passed() {
            // Its other names, or what the kernel writes, would stay with the old copy.
            return Err(Errno::XDEV);
        }
        let content = self.content(node, &st, st.size)?;
        let staged =
            copy_up::stage(&self.stack, (node.layer(), home), fd.as_fd(), &st, content.as_content(), None)?;
        let free = file::stat_at(to.fd()?, new_name) == Err(Errno::NOENT);
        let new = staged.replace(to, new_name)?;
        // Another filesystem is written at another time: after a power loss the file would be in neither place.
        let synced = if self.stack.volatile() { Ok(()) } else { to.sync() };
        let moved = synced
            .and_then(|()| crate::edit::remove::remove(&self.stack, from, name, false, whiteout))
            .inspect_err(|_| {
                if free && let Err(e) = to.unlink(new_name) {
                    tracing::warn!("a file that could not be moved has two names, also {new_name:?}: {e}");
                }
            });
        moved?;
        node.relocate(home, |s| s.id = (new.dev, new.ino));
        Ok(())
    }

    fn try_exchange(
        &self,
        from: &Arc<Node>,
        name: &OsStr,
        to: &Arc<Node>,
        new_name: &OsStr,
    ) -> Result<Option<First>> {
        let a = self.find(from, name)?;
        let b = self.find(to, new_name)?;
        if a.node.ino == b.node.ino {
            return Ok(None);
        }
        for place in [&a, &b] {
            self.may_move(place)?;
        }
        for place in [&a, &b] {
            if let Some(first) = self.before_moving(place)? {
                return Ok(Some(first));
            }
            if self.is_init(place.holder) {
                return Err(Errno::XDEV);
            }
        }
        let (a_dir, b_dir) = (self.writable(from, self.upper())?, self.writable(to, self.upper())?);
        let detach = |x: &Place, y: &Place| {
            if x.node.is_dir() {
                self.detach(&x.node, &x.parent, &x.name, &y.parent, &y.name)
            } else {
                Ok(None)
            }
        };
        let (a_redirect, b_redirect) = (detach(&a, &b)?, detach(&b, &a)?);
        for (x, dir) in [(&a, &b_dir), (&b, &a_dir)] {
            if self.has_origin(&x.node) || x.node.is_dir() {
                self.set_impure(dir)?;
            }
        }
        let object = |x: &Place| x.node.is_dir().then(|| self.writable(&x.node, self.upper())).transpose();
        let (a_object, b_object) = (object(&a)?, object(&b)?);
        exchange(
            Side { dir: &a_dir, name, object: a_object.as_ref() },
            Side { dir: &b_dir, name: new_name, object: b_object.as_ref() },
        )?;
        let link = |parent: &Arc<Node>, name: &OsStr| Link {
            parent: parent.clone(),
            name: name.into(),
            layer: self.upper(),
        };
        self.moved(&a.node, from, name, link(to, new_name), a_redirect);
        self.moved(&b.node, to, new_name, link(from, name), b_redirect);
        Ok(None)
    }
}
