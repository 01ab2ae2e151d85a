//! Owner, mode, times and extended attributes of a copy.

use std::os::fd::AsFd;

use rustix::fs::{FileType, XattrFlags};

use crate::error::{Errno, Result};
use crate::format::{acl, names, override_stat};
use crate::layer::dir::LayerId;
use crate::layer::owner;
use crate::layer::stack::Stack;
use crate::sys::file::{self, SetTime, Stat};
use crate::sys::xattr::{self, Target};

/// Gives the object behind `to`, of layer `layer`, all metadata of the one behind `from`, of layer `origin`, whose
/// attributes are `st`. Descriptors may be O_PATH.
///
/// The order matters: chown(2) clears set-ID bits and capabilities, so it comes before them; an ACL
/// changes the mode's group bits, so the mode comes after it; times come last.
///
/// # Errors
/// Of what cannot be kept: the copy must not be published then.
pub fn copy(
    stack: &Stack,
    (origin, layer): (LayerId, LayerId),
    from: impl AsFd,
    to: impl AsFd,
    st: &Stat,
) -> Result<()> {
    if let Some(attribute) = stack.owner_attribute(layer) {
        xattrs(stack, origin, &from, &to)?;
        owner::keep(Target::fd(&to), attribute, st)?;
        if st.kind() != FileType::Symlink {
            file::chmod_fd(&to, override_stat::inode_mode(st.mode))?;
        }
        return times(to, st);
    }
    let now = file::stat_fd(&to)?;
    if (now.uid, now.gid) != (st.uid, st.gid) {
        file::chown_fd(&to, Some(st.uid), Some(st.gid))?;
    }
    xattrs(stack, origin, &from, &to)?;
    if st.kind() != FileType::Symlink {
        file::chmod_fd(&to, st.mode)?;
    }
    times(to, st)
}

/// Copies every attribute but the private ones, which say something of the place of an object.
/// Nor those that layers keep owners in, and ACLs once more.
fn xattrs(stack: &Stack, origin: LayerId, from: impl AsFd, to: impl AsFd) -> Result<()> {
    let owners = stack.has_owner_attributes();
    let (from, to) = (Target::Fd(from.as_fd()), Target::Fd(to.as_fd()));
    for name in xattr::list(from)? {
        if names::is_private(&name)
            || acl::is_of_xfs(&name)
            || (owners && override_stat::names().any(|own| own == name))
        {
            continue;
        }
        match xattr::get(from, &name) {
            Ok(mut value) if acl::is_name(&name) => {
                stack.unmap_acl(origin, &mut value);
                xattr::set(to, &name, &value, XattrFlags::empty())?;
            }
            Ok(value) => xattr::set(to, &name, &value, XattrFlags::empty())?,
            // Removed since it was listed.
            Err(Errno::NODATA) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Sets the access and modification times of `st`.
pub fn times(to: impl AsFd, st: &Stat) -> Result<()> {
    let time = |(s, n)| SetTime::At(s, n);
    file::utimes_fd(to, time(st.atime), time(st.mtime))
}
