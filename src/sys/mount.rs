//! Mounting, and private clones of layers.
#![allow(unsafe_code)] // mount_setattr(2) has no safe wrapper.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, OpenTreeFlags, UnmountFlags};

use crate::error::{Errno, Result};

/// `MOUNT_ATTR_RDONLY` in mount_setattr(2).
pub(super) const ATTR_RDONLY: u64 = 0x1;
/// `MOUNT_ATTR_NODEV`.
const ATTR_NODEV: u64 = 0x4;
/// `MOUNT_ATTR_NOATIME`.
const ATTR_NOATIME: u64 = 0x10;
/// `MOUNT_ATTR__ATIME`: the field of access time settings, cleared before one is set.
const ATTR_ATIME: u64 = 0x70;

/// `struct mount_attr`.
#[derive(Debug, Default)]
#[repr(C)]
pub(super) struct MountAttr {
    pub(super) attr_set: u64,
    pub(super) attr_clr: u64,
    pub(super) propagation: u64,
    pub(super) userns_fd: u64,
}

/// `mount_setattr(2)` on the mount behind a descriptor; `flags` is `AT_EMPTY_PATH`, and `AT_RECURSIVE` for those in
/// it too.
pub(super) fn set_attributes(tree: impl AsFd, flags: libc::c_int, attr: &MountAttr) -> Result<()> {
    // SAFETY: mount_setattr(2) reads one struct mount_attr of the given size.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    if rc == 0 { Ok(()) } else { Err(super::last_errno()) }
}

/// A detached, read-only, noatime clone of the mount beneath `dir`, rooted at `dir`: what lies below
/// cannot be written through it by any mistake, and the original mount stays free to be unmounted. The directory
/// keeps the clone; the descriptor that made it, which goes to `trees`, is needed no more. But closing it takes some
/// milliseconds (the kernel waits for all CPUs): a moment should be chosen when nobody waits for that.
///
/// # Errors
/// EPERM without CAP_SYS_ADMIN, ENOSYS on kernels before 5.12: use `dir` itself then.
pub fn clone_read_only(dir: impl AsFd, trees: &mut Vec<OwnedFd>) -> Result<OwnedFd> {
    let tree = match clone(&dir, ATTR_RDONLY | ATTR_NODEV | ATTR_NOATIME, ATTR_ATIME) {
        // In a user namespace the access time settings of outer mounts are locked (mount_namespaces(7)).
        Err(Errno::PERM) => clone(&dir, ATTR_RDONLY | ATTR_NODEV, 0)?,
        other => other?,
    };
    // The descriptor of a clone is O_PATH: open its root for listing and xattrs.
    let dir = super::file::open_dir(&tree, std::ffi::OsStr::new("."));
    trees.push(tree);
    dir
}

/// A detached clone of the mount beneath `dir` with the same settings, rooted at `dir`, for searching alone. As
/// with [`clone_read_only`], what is opened by way of it keeps it.
///
/// # Errors
/// As for [`clone_read_only`].
pub fn clone_as_is(dir: impl AsFd, trees: &mut Vec<OwnedFd>) -> Result<OwnedFd> {
    let tree = clone(dir, 0, 0)?;
    let dir = rustix::fs::openat(&tree, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    trees.push(tree);
    dir
}

fn clone(dir: impl AsFd, attr_set: u64, attr_clr: u64) -> Result<OwnedFd> {
    let tree = rustix::mount::open_tree(
        dir.as_fd(),
        "",
        OpenTreeFlags::AT_EMPTY_PATH | OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC,
    )?;
    let attr = MountAttr {
        attr_set,
        attr_clr,
        // A clone of a shared mount is its peer: what is mounted later below the original, our own
        // mount above all, would appear in the clone too (mount_namespaces(7)).
        propagation: libc::MS_PRIVATE,
        userns_fd: 0,
    };
    set_attributes(&tree, libc::AT_EMPTY_PATH, &attr)?;
    Ok(tree)
}

/// Options of a FUSE mount that the kernel takes.
#[derive(Debug, Clone)]
pub struct FuseMount<'a> {
    /// Shown as the source in the mount table.
    pub source: &'a str,
    /// Let other users in.
    pub allow_other: bool,
    /// The label of all files for SELinux, without quotes.
    pub context: Option<&'a str>,
    /// Generic flags of mount(2).
    pub flags: MountFlags,
}

/// Opens /dev/fuse and mounts it at `at`, whose root is a directory.
///
/// # Errors
/// ENOENT or ENODEV: no /dev/fuse; EPERM: no right to mount.
pub fn mount_fuse(at: &Path, options: &FuseMount<'_>) -> Result<OwnedFd> {
    let dev = super::fuse::Device::open()?;
    let mut data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions",
        dev.as_raw_fd(),
        rustix::process::getuid().as_raw(),
        rustix::process::getgid().as_raw(),
    );
    if options.allow_other {
        data.push_str(",allow_other");
    }
    if let Some(label) = options.context {
        data.push_str(&format!(",context=\"{label}\""));
    }
    let data = std::ffi::CString::new(data).map_err(|_| Errno::INVAL)?;
    rustix::mount::mount(options.source, at, "fuse.unionfs", options.flags, data.as_c_str())?;
    Ok(dev)
}

/// Gives the mount at `at` other flags.
///
/// # Errors
/// Those of mount(2).
pub fn remount(at: &Path, flags: MountFlags) -> Result<()> {
    rustix::mount::mount_remount(at, flags, c"")
}

/// Ends the propagation between the mount at `at` and its peers.
///
/// # Errors
/// Those of mount(2).
pub fn make_private(at: &Path) -> Result<()> {
    rustix::mount::mount_change(at, rustix::mount::MountPropagationFlags::PRIVATE)
}

/// Unmounts; `lazy` detaches at once even when busy.
pub fn unmount(at: &Path, lazy: bool) -> Result<()> {
    let mut flags = UnmountFlags::NOFOLLOW;
    flags.set(UnmountFlags::DETACH, lazy);
    rustix::mount::unmount(at, flags)
}
