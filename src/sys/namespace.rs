//! Namespaces of a command that has a mounted tree as its root: a mount namespace, a user namespace where only
//! that permits one, and the trees that are bound in it.
#![allow(unsafe_code)] // unshare(2) and mount_setattr(2) have no safe wrapper.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::mount::{MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::thread::UnshareFlags;

use super::mount::{ATTR_RDONLY, MountAttr};
use crate::error::{Errno, Result};

/// Goes into a new mount namespace. Mounts made outside appear in it, those made in it stay in it.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN: [`enter_user`] first.
pub fn enter_mounts() -> Result<()> {
    unshare(UnshareFlags::NEWNS)?;
    rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
}

/// Goes into a new user namespace, with all capabilities in it and no id mapped yet.
///
/// # Errors
/// EPERM, ENOSPC or EUSERS: user namespaces are not permitted (user_namespaces(7)).
pub fn enter_user() -> Result<()> {
    unshare(UnshareFlags::NEWUSER)
}

fn unshare(flags: UnshareFlags) -> Result<()> {
    // SAFETY: none of the flags used here takes descriptors away from the rest of the process (CLONE_FILES does).
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// A detached copy of what is mounted at `path` and below it, writable as it is or not at all.
///
/// # Errors
/// ENOENT and others of resolving the path; EPERM without CAP_SYS_ADMIN; ENOSYS before Linux 5.2, or 5.12 when
/// it is to be read-only.
pub fn clone_tree(path: &Path, read_only: bool) -> Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(CWD, path, flags)?;
    if read_only {
        let attr = MountAttr { attr_set: ATTR_RDONLY, ..MountAttr::default() };
        super::mount::set_attributes(&tree, libc::AT_EMPTY_PATH | libc::AT_RECURSIVE, &attr)?;
    }
    Ok(tree)
}

/// Mounts a detached tree on what `onto` refers to.
///
/// # Errors
/// ENOTDIR: one is a directory and the other is not.
pub fn attach(tree: impl AsFd, onto: impl AsFd) -> Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree.as_fd(), "", onto.as_fd(), "", flags)
}

/// Opens the directory at `path`, to be a root.
///
/// # Errors
/// Those of open(2).
pub fn open_root(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// What `path` means for a process whose root is `root`: no symlink and no `..` leads out of it. Symlinks at the
/// end are followed. Gives an O_PATH descriptor.
///
/// # Errors
/// Those of openat2(2); EXDEV with `one_mount` when the path crosses into another mount.
pub fn open_below(root: impl AsFd, path: &Path, one_mount: bool) -> Result<OwnedFd> {
    let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    resolve.set(ResolveFlags::NO_XDEV, one_mount);
    loop {
        match rustix::fs::openat2(root.as_fd(), path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
        {
            // A rename somewhere has crossed the walk (openat2(2)).
            Err(Errno::AGAIN) => {}
            other => return other,
        }
    }
}

/// What `path` means for a process whose root is `root`. Where there is nothing, makes directories, and for anything
/// but a directory an empty file at the end; but in the mount of `root` alone, never in one that lies in it.
///
/// # Errors
/// Those of openat2(2) and mkdirat(2); EROFS in a tree that cannot be changed; EXDEV for what is missing in another
/// mount.
pub fn ensure_below(root: impl AsFd, path: &Path, directory: bool) -> Result<OwnedFd> {
    let root = root.as_fd();
    match open_below(root, path, false) {
        Err(Errno::NOENT) => {}
        other => return other,
    }
    let names: Vec<&OsStr> = path
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            Component::ParentDir => Some(OsStr::new("..")),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect();
    let mut so_far = PathBuf::from("/");
    for (i, name) in names.iter().enumerate() {
        let above = so_far.clone();
        so_far.push(name);
        match open_below(root, &so_far, false) {
            Ok(_) => continue,
            Err(Errno::NOENT) => {}
            Err(e) => return Err(e),
        }
        let above = open_below(root, &above, true)?;
        let last = i + 1 == names.len();
        let made = if directory || !last {
            super::file::mkdir(&above, name, 0o755)
        } else {
            super::file::mknod(&above, name, FileType::RegularFile.as_raw_mode() | 0o644, 0)
        };
        match made {
            // A symlink that leads nowhere, or someone was faster: opening tells.
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e),
        }
    }
    open_below(root, path, false)
}

/// Goes into a mount namespace of its own in which the mount that `root` is the root of is all there is.
///
/// # Errors
/// Those of pivot_root(2).
pub fn change_root(root: impl AsFd) -> Result<()> {
    rustix::process::fchdir(root)?;
    // pivot_root(2), "pivot_root(".", ".")": the old root comes to lie on the new one, and off it goes.
    match rustix::process::pivot_root(".", ".") {
        Ok(()) => rustix::mount::unmount(".", UnmountFlags::DETACH)?,
        // The first root of all, of an initramfs, stays where it is.
        Err(Errno::INVAL) => rustix::process::chroot(".")?,
        Err(e) => return Err(e),
    }
    rustix::process::chdir("/")
}
