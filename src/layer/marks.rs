//! The private attributes of a layer's objects: what they say about the layers below.

use std::ffi::OsStr;
use std::os::fd::AsFd;

use crate::error::{Errno, Result};
use crate::format::names::{self, Mark, Namespace};
use crate::format::redirect::Redirect;
use crate::sys::file;
use crate::sys::xattr::{self, Target};

/// What a directory's marks say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    /// Nothing of lower layers shows through.
    pub opaque: bool,
    /// Empty regular files in it may be whiteouts.
    pub xattr_whiteouts: bool,
    /// Lower layers know the directory by another name.
    pub redirect: Option<Redirect>,
    /// Some entries carry an origin.
    pub impure: bool,
    /// On the root of a layer: no name in it is a whiteout by its spelling.
    pub plain_names: bool,
}

const NAMESPACES: [Namespace; 2] = [Namespace::Trusted, Namespace::User];

/// Reads the marks of the directory behind `fd`, in every namespace that a peer may have used; redirects
/// in the mount's `own` alone (see [`is_metacopy`]).
///
/// # Errors
/// EIO for a redirect that could lead out of the layer or is otherwise malformed.
pub fn read(fd: impl AsFd, own: Namespace) -> Result<Marks> {
    let target = Target::fd(&fd);
    let mut marks = Marks::default();
    // Most directories have no attribute at all: one call tells.
    for name in xattr::list(target)? {
        for ns in NAMESPACES {
            if name == Mark::Opaque.name(ns) {
                match xattr::get_opt(target, &name)?.as_deref() {
                    Some(b"y") => marks.opaque = true,
                    Some(b"x") => marks.xattr_whiteouts = true,
                    _ => {}
                }
            } else if ns == own && name == Mark::Redirect.name(ns) {
                if let Some(value) = xattr::get_opt(target, &name)? {
                    marks.redirect = Some(Redirect::decode(&value).ok_or(Errno::IO)?);
                }
            } else if name == Mark::Impure.name(ns) {
                marks.impure = true;
            } else if name == Mark::PlainNames.name(ns) {
                marks.plain_names = true;
            }
        }
        if name == names::FUSE_OVERLAYFS_OPAQUE {
            marks.opaque |= xattr::get_opt(target, &name)?.as_deref() == Some(b"y");
        }
    }
    Ok(marks)
}

/// Whether the directory behind `fd` may hold whiteouts in xattr form.
pub fn has_xattr_whiteouts(fd: impl AsFd) -> Result<bool> {
    // Which namespace redirects count in makes no difference here.
    Ok(read(fd, Namespace::Trusted)?.xattr_whiteouts)
}

/// Whether the layer with this root says that no name in it is a whiteout by its spelling.
pub fn has_plain_names(root: impl AsFd) -> Result<bool> {
    Ok(read(root, Namespace::Trusted)?.plain_names)
}

/// Whether a directory of a lower layer holds the opaque whiteout of the AUFS and OCI form.
pub fn has_wh_opaque(fd: impl AsFd) -> Result<bool> {
    exists(fd, OsStr::new(names::WH_OPAQUE))
}

/// Whether a directory of a lower layer hides `name` in the AUFS and OCI form.
pub fn has_wh(fd: impl AsFd, name: &OsStr) -> Result<bool> {
    match names::wh_name(name) {
        Some(wh) => exists(fd, &wh),
        None => Ok(false),
    }
}

fn exists(fd: impl AsFd, name: &OsStr) -> Result<bool> {
    match file::stat_at(fd, name) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Whether the empty regular file `name` in `dir` is a whiteout by its xattr.
pub fn is_xattr_whiteout(dir: impl AsFd, name: &OsStr) -> Result<bool> {
    Ok(in_any_namespace(dir, name, Mark::Whiteout)?.is_some())
}

/// The value of a mark of the entry `name` in `dir`, in the namespace `own`.
pub fn of_entry(dir: impl AsFd, name: &OsStr, mark: Mark, own: Namespace) -> Result<Option<Vec<u8>>> {
    xattr::get_opt(Target::At(dir.as_fd(), name), mark.name(own))
}

/// Whether the regular file `name` in `dir` has only attributes, and its data elsewhere.
///
/// `own`: the namespace of this mount. Marks that lead to other places count in no other: `user.` ones are
/// set by any owner of a file, and must not lead a privileged mount anywhere (overlayfs.rst, "User xattr").
pub fn is_metacopy(dir: impl AsFd, name: &OsStr, own: Namespace) -> Result<bool> {
    Ok(of_entry(dir, name, Mark::Metacopy, own)?.is_some())
}

/// Where lower layers keep the file `name` in `dir`, if its marks say so.
///
/// # Errors
/// EIO for a malformed mark.
pub fn file_redirect(dir: impl AsFd, name: &OsStr, own: Namespace) -> Result<Option<Redirect>> {
    let value = of_entry(dir, name, Mark::Redirect, own)?;
    value.map(|v| Redirect::decode(&v).ok_or(Errno::IO)).transpose()
}

fn in_any_namespace(dir: impl AsFd, name: &OsStr, mark: Mark) -> Result<Option<Vec<u8>>> {
    for ns in NAMESPACES {
        let value = of_entry(&dir, name, mark, ns)?;
        if value.is_some() {
            return Ok(value);
        }
    }
    Ok(None)
}
