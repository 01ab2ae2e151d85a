//! Attributes of a layer's objects as the union shows them.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;

use crate::error::{Errno, Result};
use crate::format::{acl, names, override_stat};
use crate::layer::dir::Dir;
use crate::sys::file::Stat;
use crate::sys::xattr::{self, Target};

/// Extended attributes by name, in the order of their names.
pub type Xattrs = BTreeMap<OsString, Vec<u8>>;

/// What an image does not say of an object: labels that belong to the machine and are set by its policy.
const OF_THE_MACHINE: [&str; 3] = ["security.selinux", "security.ima", "security.evm"];

/// The extended attributes of an object, without the private ones, those of the machine, and those that keep owners.
///
/// # Errors
/// Those of listxattr(2) and getxattr(2).
pub fn xattrs(target: Target<'_>) -> Result<Xattrs> {
    let mut found = Xattrs::new();
    for stored in xattr::list(target)? {
        if OF_THE_MACHINE.iter().any(|name| stored == *name)
            || acl::is_of_xfs(&stored)
            || override_stat::names().any(|name| stored == name)
        {
            continue;
        }
        let Some(shown) = shown(&stored) else { continue };
        match xattr::get(target, &stored) {
            Ok(value) => drop(found.insert(shown, value)),
            // Removed since it was listed.
            Err(Errno::NODATA) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// The name in the union of an attribute that a layer holds; `None` for a private one.
fn shown(stored: &OsStr) -> Option<OsString> {
    names::from_layer(stored).or_else(|| (!names::is_private(stored)).then(|| stored.to_owned()))
}

/// The extended attributes of a directory.
///
/// # Errors
/// As for [`xattrs`].
pub fn of_dir(dir: &Dir) -> Result<Xattrs> {
    xattrs(Target::Fd(dir.fd()?.as_fd()))
}

/// The extended attributes of the entry `name` of a directory.
///
/// # Errors
/// As for [`xattrs`].
pub fn of_entry(dir: &Dir, name: &OsStr) -> Result<Xattrs> {
    xattrs(Target::At(dir.fd()?.as_fd(), name))
}

/// Whether type, permissions and owner are the same.
pub fn same_rights(a: &Stat, b: &Stat) -> bool {
    (a.mode, a.uid, a.gid) == (b.mode, b.uid, b.gid)
}

/// Whether two directories have the same permissions, owner and extended attributes. Times do not count:
/// they follow from what happens to the entries.
///
/// # Errors
/// Those of reading the attributes.
pub fn same_dirs(a: (&Dir, &Stat), b: (&Dir, &Stat)) -> Result<bool> {
    Ok(a.0.id() == b.0.id() || (same_rights(a.1, b.1) && of_dir(a.0)? == of_dir(b.0)?))
}
