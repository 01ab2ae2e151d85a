//! Owners and attributes on their way out of the layers and into them: the one place where they are
//! translated.

use rustix::fs::FileType;

use super::{Attr, Caller, UnionFs};
use crate::config::ids::IdMap;
use crate::format::acl;
use crate::node::Node;
use crate::sys::file::Stat;

impl UnionFs {
    /// The attributes to show for a node with real attributes `st`, as [`Node::stat`] gives them.
    pub(super) fn attr(&self, node: &Node, st: &Stat) -> Attr {
        let mut attr = Attr::new(node.ino, st);
        attr.uid = self.ids.users.shown(st.uid);
        attr.gid = self.ids.groups.shown(st.gid);
        if self.static_nlink && node.is_dir() {
            attr.nlink = attr.nlink.min(1);
        }
        if node.kind == FileType::RegularFile {
            // A passthrough write may clear set-ID bits without our knowing, and one to a mapping changes
            // times and blocks.
            let io = node.io();
            attr.cacheable = !(io.is_mappable() || (st.has_setid() && io.is_passed()));
        }
        attr
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
        if !self.ids.is_identity() {
            let users = |id| translate(&self.ids.users, id);
            acl::map_ids(value, users, |id| translate(&self.ids.groups, id));
        }
    }

    /// The caller as the owner of what it makes in the layers.
    pub(super) fn maker(&self, caller: &Caller) -> Caller {
        let (uid, gid) = (self.ids.users.stored(caller.uid), self.ids.groups.stored(caller.gid));
        Caller { uid, gid, ..*caller }
    }

    /// Whether the caller belongs to a group of the layers.
    pub(super) fn is_member(&self, caller: &Caller, gid: u32) -> bool {
        caller.in_group(self.ids.groups.shown(gid))
    }
}
