//! Extended attributes. Private ones are never shown; those of the same names that a program in the
//! mount sets are stored escaped.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, XattrFlags};

use super::up::Need;
use super::{Caller, UnionFs};
use crate::error::{Errno, Result};
use crate::format::{acl, names, override_stat};
use crate::node::Node;
use crate::sys::file;
use crate::sys::xattr::{self, Target};

const CAPABILITY: &str = "security.capability";

/// The name in the layer of an attribute of the mount.
///
/// # Errors
/// EOPNOTSUPP for a private one that has no escaped form.
fn stored(name: &OsStr) -> Result<OsString> {
    let stored = names::to_layer(name);
    if names::is_private(&stored) { Err(Errno::OPNOTSUPP) } else { Ok(stored) }
}

impl UnionFs {
    /// Refuses an ACL where there are none, and what layers keep owners in.
    fn check(&self, name: &OsStr) -> Result<()> {
        let kept = self.stack.has_owner_attributes() && override_stat::names().any(|own| own == name);
        if kept || (acl::is_name(name) && !self.acl) { Err(Errno::OPNOTSUPP) } else { Ok(()) }
    }

    /// The value of an attribute.
    ///
    /// # Errors
    /// ENODATA when there is none; those of getxattr(2).
    pub fn getxattr(&self, ino: u64, name: &OsStr) -> Result<Vec<u8>> {
        let node = self.node(ino)?;
        self.check(name)?;
        if name == CAPABILITY && node.kind == FileType::RegularFile {
            return self.capability(&node);
        }
        let name = stored(name).map_err(|_| Errno::NODATA)?;
        let fd = node.refer(self.index())?;
        let mut value = xattr::get(Target::Fd(fd.as_fd()), &name)?;
        if acl::is_name(&name) {
            self.stack.unmap_acl(node.layer(), &mut value);
            self.shown_acl(&mut value);
        }
        Ok(value)
    }

    /// The capability of a regular file, which the kernel asks for before it changes one: that it has none is
    /// remembered.
    fn capability(&self, node: &Node) -> Result<Vec<u8>> {
        if node.is_powerless() {
            return Err(Errno::NODATA);
        }
        let fd = node.refer(self.index())?;
        let _io = node.io();
        let found = xattr::get(Target::Fd(fd.as_fd()), OsStr::new(CAPABILITY));
        if matches!(found, Err(Errno::NODATA)) {
            node.set_powerless(true);
        }
        found
    }

    /// The names of all attributes, each ended by a NUL. `trusted.` ones are for the privileged only
    /// (xattr(7)).
    ///
    /// # Errors
    /// Those of listxattr(2).
    pub fn listxattr(&self, caller: &Caller, ino: u64) -> Result<Vec<u8>> {
        let node = self.node(ino)?;
        let fd = node.refer(self.index())?;
        let mut out = Vec::new();
        for name in xattr::list(Target::Fd(fd.as_fd()))? {
            if names::is_private(&name)
                || self.check(&name).is_err()
                || (caller.uid != 0 && name.as_bytes().starts_with(b"trusted."))
            {
                continue;
            }
            let shown = names::from_layer(&name).unwrap_or(name);
            out.extend_from_slice(shown.as_bytes());
            out.push(0);
        }
        Ok(out)
    }

    /// Sets an attribute; `flags` as in setxattr(2).
    ///
    /// # Errors
    /// Those of setxattr(2) and of copy-up.
    pub fn setxattr(
        &self,
        caller: &Caller,
        ino: u64,
        name: &OsStr,
        value: &[u8],
        flags: XattrFlags,
    ) -> Result<()> {
        let node = self.node(ino)?;
        self.check(name)?;
        let name = stored(name)?;
        if !flags.is_empty() {
            // Not worth a copy-up when it will fail.
            let fd = node.refer(self.index())?;
            match xattr::get(Target::Fd(fd.as_fd()), &name) {
                Err(Errno::NODATA) if flags.contains(XattrFlags::REPLACE) => return Err(Errno::NODATA),
                Ok(_) if flags.contains(XattrFlags::CREATE) => return Err(Errno::EXIST),
                _ => {}
            }
        }
        self.up(&node, Need::Attributes)?;
        let _still = node.hold_still();
        let fd = node.refer(self.index())?;
        if acl::is_name(&name) {
            let mut value = value.to_vec();
            self.stored_acl(&mut value);
            xattr::set(Target::Fd(fd.as_fd()), &name, &value, flags)?;
        } else if name == CAPABILITY {
            let _io = node.io();
            xattr::set(Target::Fd(fd.as_fd()), &name, value, flags)?;
            node.set_powerless(false);
        } else {
            xattr::set(Target::Fd(fd.as_fd()), &name, value, flags)?;
        }
        if name == acl::ACCESS {
            // acl_set in the kernel: the set-group-ID bit is for members of the group.
            let st = file::stat_fd(&*fd)?;
            if st.mode & 0o2000 != 0 && !caller.keeps_setid() && !self.is_member(caller, st.gid) {
                file::chmod_fd(&*fd, st.mode & !0o2000)?;
            }
        }
        Ok(())
    }

    /// Removes an attribute. An ACL need not be there.
    ///
    /// # Errors
    /// Those of removexattr(2) and of copy-up.
    pub fn removexattr(&self, ino: u64, name: &OsStr) -> Result<()> {
        let node = self.node(ino)?;
        self.check(name)?;
        let name = stored(name).map_err(|_| Errno::NODATA)?;
        if !self.stack.in_place(node.layer()) {
            let fd = node.refer(self.index())?;
            match xattr::get(Target::Fd(fd.as_fd()), &name) {
                // vfs_remove_acl in the kernel: there may be none.
                Err(Errno::NODATA) if acl::is_name(&name) => return Ok(()),
                found => found?,
            };
        }
        self.up(&node, Need::Attributes)?;
        let _still = node.hold_still();
        let fd = node.refer(self.index())?;
        xattr::remove(Target::Fd(fd.as_fd()), &name)
    }
}
