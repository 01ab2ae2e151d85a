//! Owners and attributes on their way out of the layers and into them: the one place where they are
//! translated.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;

use rustix::fs::FileType;

use super::{Attr, Caller, SetAttr, UnionFs};
use crate::config::ids::IdMap;
use crate::error::Result;
use crate::format::{acl, override_stat};
use crate::layer::dir::LayerId;
use crate::layer::owner;
use crate::layer::upper::Writable;
use crate::node::Node;
use crate::sys::file::{self, Stat};
use crate::sys::xattr::Target;

impl UnionFs {
    /// The attributes to show for a node with real attributes `st`, as [`Node::stat`] gives them.
    ///
    /// # Errors
    /// Those of reading where the layer keeps owners, if not in the inodes.
    pub(super) fn attr(&self, node: &Node, st: &Stat) -> Result<Attr> {
        let mut st = *st;
        self.stack.unmap(node.layer(), &mut st);
        if let Some(name) = self.stack.owner_attribute(node.layer()) {
            owner::apply(Target::fd(&*node.refer(self.index())?), name, &mut st)?;
        }
        let mut attr = Attr::new(node.ino, &st);
        attr.uid = self.stack.ids().users.shown(st.uid);
        attr.gid = self.stack.ids().groups.shown(st.gid);
        if self.static_nlink && node.is_dir() {
            attr.nlink = attr.nlink.min(1);
        }
        if node.kind == FileType::RegularFile {
            // A passthrough write may clear set-ID bits without our knowing, and one to a mapping changes
            // times and blocks.
            let io = node.io();
            attr.cacheable = !(io.is_mappable() || (st.has_setid() && io.is_passed()));
            if self.for_comparison && attr.mtime.1 == 0 {
                attr.mtime.1 = 1;
            }
        }
        Ok(attr)
    }

    /// Sets owner, group and mode of a node, in the numbers of the mount.
    ///
    /// # Errors
    /// Those of chown(2), chmod(2) and setxattr(2).
    pub(super) fn set_owner(&self, caller: &Caller, node: &Node, fd: &OwnedFd, set: &SetAttr) -> Result<()> {
        let uid = set.uid.map(|uid| self.stack.ids().users.stored(uid));
        let gid = set.gid.map(|gid| self.stack.ids().groups.stored(gid));
        if uid.is_some() || gid.is_some() {
            // By the group that the file has still; what chown(2) clears for anybody, it clears itself.
            self.clear_setid(caller, node, fd, || caller.keeps_setid())?;
        }
        if let Some(name) = self.stack.owner_attribute(node.layer()) {
            if uid.is_some() || gid.is_some() || set.mode.is_some() {
                let mut st = self.stack.stat(node.layer(), fd)?;
                (st.uid, st.gid) = (uid.unwrap_or(st.uid), gid.unwrap_or(st.gid));
                st.mode = set.mode.map_or(st.mode, |mode| (st.mode & !0o7777) | (mode & 0o7777));
                let _io = node.io();
                self.chmods.fetch_add(1, Ordering::Release);
                owner::keep(Target::fd(fd), name, &st)?;
            }
            return Ok(());
        }
        if uid.is_some() || gid.is_some() {
            file::chown_fd(fd, uid, gid)?;
        }
        if let Some(mode) = set.mode {
            // Whether a file may be passed through is decided by its mode when it is opened.
            let _io = node.io();
            self.chmods.fetch_add(1, Ordering::Release);
            file::chmod_fd(fd, mode)?;
        }
        Ok(())
    }

    /// Clears the set-ID bits that a change by a caller clears; see [`file::clear_setid`].
    pub(super) fn clear_setid(
        &self,
        caller: &Caller,
        node: &Node,
        fd: impl AsFd,
        keeps: impl FnOnce() -> bool,
    ) -> Result<bool> {
        let member = |gid| self.is_member(caller, gid);
        let Some(name) = self.stack.owner_attribute(node.layer()) else {
            return file::clear_setid(fd, keeps, member);
        };
        let mut st = self.stack.stat(node.layer(), &fd)?;
        let clear = file::setid_to_clear(&st, keeps, member);
        if clear == 0 {
            return Ok(false);
        }
        st.mode &= !clear;
        owner::keep(Target::fd(&fd), name, &st)?;
        Ok(true)
    }

    /// Gives what was just made as `name` in `dir` its owner and permissions, where the layer keeps these in an
    /// attribute. `mode`: as the caller wants it.
    ///
    /// # Errors
    /// Those of setxattr(2).
    pub(super) fn own(
        &self,
        parent: &Node,
        layer: LayerId,
        (dir, name): (&Writable, &OsStr),
        caller: &Caller,
        mode: u32,
    ) -> Result<()> {
        let Some(attribute) = self.stack.owner_attribute(layer) else { return Ok(()) };
        let fd = dir.fd()?;
        let mut st = file::stat_at(&fd, name)?;
        let maker = self.maker(caller);
        (st.uid, st.gid) = (maker.uid, maker.gid);
        st.mode = (st.mode & !0o7777) | (mode & 0o7777 & !caller.umask);
        // As the kernel does it (inode_init_owner): the group of a set-group-ID directory is inherited, and by
        // directories the bit.
        let above = self.stack.stat(parent.layer(), &*parent.pin(self.index())?)?;
        if above.mode & 0o2000 != 0 {
            st.gid = above.gid;
            st.mode |= if st.is_dir() { 0o2000 } else { 0 };
        }
        owner::keep(Target::At(fd.as_fd(), name), attribute, &st)
    }

    /// The mode and the identity for making an object in a layer: of the caller, or of the daemon when the layer
    /// keeps the caller's in an attribute.
    pub(super) fn making(&self, dir: &Writable, caller: &Caller, mode: u32) -> (u32, Caller) {
        match self.stack.owner_attribute(dir.dir().layer()) {
            None => (mode, self.maker(caller)),
            Some(_) => ((mode & !0o7777) | override_stat::inode_mode(mode), Caller::daemon()),
        }
    }

    /// The value of an ACL as the mount shows it.
    pub(super) fn shown_acl(&self, value: &mut [u8]) {
        self.translate_acl(value, IdMap::shown);
    }

    /// The value of an ACL as the layers keep it.
    pub(super) fn stored_acl(&self, value: &mut [u8]) {
        self.translate_acl(value, IdMap::stored);
    }

    fn translate_acl(&self, value: &mut [u8], translate: impl Fn(&IdMap, u32) -> u32) {
        if !self.stack.ids().is_identity() {
            let users = |id| translate(&self.stack.ids().users, id);
            acl::map_ids(value, users, |id| translate(&self.stack.ids().groups, id));
        }
    }

    /// The caller as the owner of what it makes in the layers.
    pub(super) fn maker(&self, caller: &Caller) -> Caller {
        let (uid, gid) =
            (self.stack.ids().users.stored(caller.uid), self.stack.ids().groups.stored(caller.gid));
        Caller { uid, gid, ..*caller }
    }

    /// Whether the caller belongs to a group of the layers.
    pub(super) fn is_member(&self, caller: &Caller, gid: u32) -> bool {
        caller.in_group(self.stack.ids().groups.shown(gid))
    }
}
