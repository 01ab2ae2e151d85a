//! mknod, mkdir, symlink, link: new names.

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::fs::{FileType, RenameFlags};

use super::up::Need;
use super::{Attr, Caller, UnionFs};
use crate::edit::create::{Slot, place, slot};
use crate::edit::remove::remove;
use crate::error::{Errno, Result};
use crate::format::names::{self, Mark};
use crate::layer::dir::{Dir, LayerId};
use crate::layer::upper::Writable;
use crate::merge::lookup::{DirFound, Found, Other};
use crate::node::{Link, Node};
use crate::sys::file::{self, Stat};

/// Type and permissions of symlinks.
const SYMLINK_MODE: u32 = libc::S_IFLNK | 0o777;

/// The attributes of an object that was made without being opened.
fn by_name((): &(), dir: &Writable, name: &OsStr) -> Result<Stat> {
    file::stat_at(dir.fd()?, name)
}

impl UnionFs {
    /// Makes a node of any type but a directory or symlink. `mode` with the type bits; the caller's
    /// umask applies unless the parent has a default ACL. Counts one lookup.
    ///
    /// # Errors
    /// Those of mknod(2).
    pub fn mknod(&self, caller: &Caller, parent: u64, name: &OsStr, mode: u32, rdev: u64) -> Result<Attr> {
        let would_hide = FileType::from_raw_mode(mode) == FileType::CharacterDevice && rdev == 0;
        let rdev = if would_hide { names::ESCAPED_DEVICE } else { rdev };
        let parent = self.node(parent)?;
        let (node, st, ()) = self.make(
            caller,
            &parent,
            name,
            mode,
            |dir, name| {
                let (mode, maker) = self.making(dir, caller, mode);
                dir.mknod(name, mode, rdev, &maker)
            },
            by_name,
        )?;
        self.told(&node, &st)
    }

    /// Makes a directory. Counts one lookup.
    ///
    /// # Errors
    /// Those of mkdir(2).
    pub fn mkdir(&self, caller: &Caller, parent: u64, name: &OsStr, mode: u32) -> Result<Attr> {
        let parent = self.node(parent)?;
        let (node, st, ()) = self.make(
            caller,
            &parent,
            name,
            mode | FileType::Directory.as_raw_mode(),
            |dir, name| {
                let (mode, maker) = self.making(dir, caller, mode);
                dir.mkdir(name, mode, &maker)
            },
            by_name,
        )?;
        self.told(&node, &st)
    }

    /// Makes a symlink to `target`. Counts one lookup.
    ///
    /// # Errors
    /// Those of symlink(2).
    pub fn symlink(&self, caller: &Caller, parent: u64, name: &OsStr, target: &OsStr) -> Result<Attr> {
        let parent = self.node(parent)?;
        let (node, st, ()) = self.make(
            caller,
            &parent,
            name,
            SYMLINK_MODE,
            |dir, name| {
                let (_, maker) = self.making(dir, caller, 0);
                dir.symlink(name, target, &maker)
            },
            by_name,
        )?;
        self.told(&node, &st)
    }

    /// Gives the object `ino` one more name. Counts one lookup.
    ///
    /// # Errors
    /// Those of link(2); EXDEV between the upper and the init layer.
    pub fn link(&self, ino: u64, parent: u64, name: &OsStr) -> Result<Attr> {
        let node = self.node(ino)?;
        let parent = self.node(parent)?;
        if node.is_dir() {
            return Err(Errno::PERM);
        }
        self.up(&node, Need::Data(None))?;
        loop {
            let names = self.change_names(&parent);
            let slot = match self.free_slot(&parent, name, None)? {
                Some(slot) => slot,
                None => {
                    drop(names);
                    self.dir_up(&parent)?;
                    continue;
                }
            };
            if node.layer() != slot.layer {
                return Err(Errno::XDEV);
            }
            let dir = self.writable(&parent, slot.layer)?;
            let _count = node.counting.lock();
            let fd = node.refer(self.index())?;
            if node.in_union(file::stat_fd(&*fd)?).nlink == 0 {
                return Err(Errno::NOENT);
            }
            if !self.is_init(slot.layer) && self.has_origin(&node) {
                self.set_impure(&dir)?;
            }
            if slot.whiteout {
                let work = self.stack.work(slot.layer)?;
                let temp = work.temp_name();
                work.staging().link(&*fd, &temp)?;
                work.staging().rename(&temp, &dir, name, RenameFlags::empty()).inspect_err(|_| {
                    work.purge(&temp);
                })?;
            } else {
                dir.link(&*fd, name)?;
            }
            node.add_link(Link { parent: parent.clone(), name: name.into(), layer: slot.layer });
            let st = node.in_union(file::stat_fd(&*fd)?);
            return self.told(&node, &st);
        }
    }

    /// Counts the lookup that a creation's answer stands for.
    pub(super) fn told(&self, node: &Arc<Node>, st: &Stat) -> Result<Attr> {
        let attr = self.attr(node, st)?;
        self.table.count(node);
        Ok(attr)
    }

    /// Before a name that looks like a whiteout of AUFS is given in a layer: records there that its names
    /// are to be taken as they are, for the day when it is a lower.
    pub(super) fn note_name(&self, layer: LayerId, name: &OsStr) -> Result<()> {
        let work = self.stack.work(layer)?;
        if !names::is_wh(name) || !work.abilities().xattrs {
            return Ok(());
        }
        let root = self.writable(&self.root, layer)?;
        root.set_own_mark(Mark::PlainNames, work.abilities().namespace, b"y")?;
        self.stack.note_plain_names(layer);
        Ok(())
    }

    /// Puts a whiteout under the name itself in the place of one that is a name beside it (`.wh.NAME`), which could not
    /// be told from that of a directory that has replaced another. Of writable layers, only an image layer of a
    /// container engine has such.
    pub(super) fn settle_whiteout(&self, dir: &Writable, name: &OsStr) -> Result<()> {
        let layer = dir.dir().layer();
        let Some(wh) = names::wh_name(name).filter(|_| self.stack.has_wh_names(layer)) else { return Ok(()) };
        let there = |name| match file::stat_at(dir.fd()?, name) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT) => Ok(false),
            Err(e) => Err(e),
        };
        if !there(&wh)? {
            return Ok(());
        }
        if !there(name)? {
            self.stack.work(layer)?.new_whiteout(dir, name)?;
        }
        dir.unlink(&wh)
    }

    /// Where the new name goes; `None` when the parent must be copied up for it first. The parent's names
    /// must be locked. `known`: the name is known to be missing, because of a whiteout in a layer if there is one.
    ///
    /// # Errors
    /// EEXIST when the name is there.
    fn free_slot(&self, parent: &Node, name: &OsStr, known: Option<Option<LayerId>>) -> Result<Option<Slot>> {
        if !self.stack.is_writable() {
            return Err(Errno::ROFS);
        }
        let whiteout = match known {
            Some(whiteout) => whiteout,
            None => match self.resolve(parent, name)? {
                Found::Nothing { whiteout } => whiteout,
                _ => return Err(Errno::EXIST),
            },
        };
        let slot = slot(&self.stack, whiteout);
        self.note_name(slot.layer, name)?;
        if parent.part(slot.layer).is_none() {
            return Ok(None);
        }
        if slot.whiteout {
            self.settle_whiteout(&self.writable(parent, slot.layer)?, name)?;
        }
        Ok(Some(slot))
    }

    /// Makes a new object for the caller by `make`, and its node. `mode`: type and permissions. `stat` gives the attributes
    /// of what was made, in the directory and under the name that it has at last.
    pub(super) fn make<T>(
        &self,
        caller: &Caller,
        parent: &Arc<Node>,
        name: &OsStr,
        mode: u32,
        mut make: impl FnMut(&Writable, &OsStr) -> Result<T>,
        stat: impl Fn(&T, &Writable, &OsStr) -> Result<Stat>,
    ) -> Result<(Arc<Node>, Stat, T)> {
        let is_dir = FileType::from_raw_mode(mode) == FileType::Directory;
        loop {
            let names = parent.names.write();
            let known = self.missing.take(parent.ino, name);
            let Some(slot) = self.free_slot(parent, name, known)? else {
                drop(names);
                self.dir_up(parent)?;
                continue;
            };
            let dir = self.writable(parent, slot.layer)?;
            let top = self.writable(parent, parent.layer())?;
            let room = self.room(slot.layer, 0)?;
            let several = self.stack.owner_attribute(slot.layer).is_some();
            let made = place(&self.stack, (&dir, &top), slot, name, (is_dir, several), |dir, name| {
                let made = make(dir, name)?;
                self.own(parent, slot.layer, (dir, name), caller, mode)?;
                Ok(made)
            })?;
            // Who gets an error has made nothing.
            let undo = |_: &Errno| {
                if let Err(e) = remove(&self.stack, &dir, name, is_dir, slot.whiteout) {
                    tracing::warn!("what could not be shown to its maker stays: {name:?}: {e}");
                }
            };
            let stat = stat(&made, &dir, name).inspect_err(undo)?;
            room.used(&stat);
            let found = if is_dir {
                let parts = vec![Dir::below(dir.dir(), name, &stat)];
                Found::Dir(DirFound { parts, stat, redirect: None })
            } else {
                Found::Other(Other { dir: dir.dir().clone(), name: name.into(), stat, data: None })
            };
            let (node, st) = self.admit(parent, name, found).inspect_err(undo)?;
            // A new object has no capability.
            node.set_powerless(true);
            return Ok((node, st, made));
        }
    }
}
