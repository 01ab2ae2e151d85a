//! Owner and permissions of objects in layers that keep them in an attribute.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::AsFd;

use rustix::fs::{FileType, XattrFlags};

use crate::error::{Errno, Result};
use crate::format::mountinfo;
use crate::format::override_stat::{self, Override};
use crate::sys::file::Stat;
use crate::sys::xattr::{self, Target};

/// The mounts that translate owners, by their numbers; none where the table cannot be read.
pub fn idmapped_mounts() -> HashSet<u64> {
    let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
    mountinfo::parse(&table).into_iter().filter(|entry| entry.idmapped).map(|entry| entry.id).collect()
}

/// The attribute of a layer, if its root has one.
pub fn attribute(root: impl AsFd) -> Result<Option<&'static OsStr>> {
    for name in override_stat::names() {
        if xattr::get_opt(Target::fd(&root), name)?.is_some() {
            return Ok(Some(name));
        }
    }
    Ok(None)
}

/// Gives the root of a writable layer the attribute, unless it has it.
///
/// # Errors
/// Those of setxattr(2).
pub fn mark_root(root: impl AsFd, name: &OsStr) -> Result<()> {
    let target = Target::fd(&root);
    if xattr::get_opt(target, name)?.is_some() {
        return Ok(());
    }
    xattr::set(target, name, &Override::of_root().encode(), XattrFlags::empty())
}

/// Puts what the attribute `name` of an object says in the place of its inode's owner and permissions.
///
/// # Errors
/// EINVAL for a malformed value; those of getxattr(2).
pub fn apply(target: Target<'_>, name: &OsStr, st: &mut Stat) -> Result<()> {
    if let Some(kept) = read(target, name, st.kind())? {
        (st.uid, st.gid) = (kept.uid, kept.gid);
        st.mode = (st.mode & !0o7777) | kept.mode;
    }
    Ok(())
}

fn read(target: Target<'_>, name: &OsStr, kind: FileType) -> Result<Option<Override>> {
    if !takes(name, kind) {
        return Ok(None);
    }
    let value = xattr::get_opt(target, name)?;
    value.map(|value| Override::decode(&value).ok_or(Errno::INVAL)).transpose()
}

/// Whether objects of this type have the attribute.
fn takes(name: &OsStr, kind: FileType) -> bool {
    matches!(kind, FileType::RegularFile | FileType::Directory) || !override_stat::is_of_user(name)
}

/// Keeps the owner and permissions of `st` in the attribute. What takes no such attribute stays as it is, as with
/// fuse-overlayfs.
///
/// # Errors
/// Those of setxattr(2).
pub fn keep(target: Target<'_>, name: &OsStr, st: &Stat) -> Result<()> {
    if !takes(name, st.kind()) {
        return Ok(());
    }
    let mut kept = read(target, name, st.kind()).ok().flatten().unwrap_or_else(|| Override::new(0, 0, 0));
    (kept.uid, kept.gid, kept.mode) = (st.uid, st.gid, st.mode & 0o7777);
    xattr::set(target, name, &kept.encode(), XattrFlags::empty())
}
