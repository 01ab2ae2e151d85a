//! Mounting the kernel's overlayfs on the same layers.

use std::path::Path;

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount,
};

use super::Union;

/// Mounts the layers of `union` at its mount point by overlayfs; an init layer becomes the topmost lower.
/// An option with an empty value is a flag.
pub fn mount(union: &Union, options: &[(&str, &str)]) {
    let init = union.init.then(|| union.init(""));
    let lowers: Vec<_> = init.into_iter().chain((0..union.lowers).map(|i| union.lower(i, ""))).collect();
    mount_lowers(&lowers, union, options);
}

/// The same with other lowers.
pub fn mount_lowers(lowers: &[impl AsRef<Path>], union: &Union, options: &[(&str, &str)]) {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).unwrap();
    for lower in lowers {
        fsconfig_set_string(&fs, "lowerdir+", lower.as_ref()).unwrap();
    }
    if !union.read_only {
        fsconfig_set_string(&fs, "upperdir", union.upper("")).unwrap();
        fsconfig_set_string(&fs, "workdir", union.work("")).unwrap();
    }
    for (key, value) in options {
        if value.is_empty() {
            fsconfig_set_flag(&fs, *key).unwrap();
        } else {
            fsconfig_set_string(&fs, *key, *value).unwrap();
        }
    }
    fsconfig_create(&fs).unwrap();
    let mount = fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty()).unwrap();
    move_mount(&mount, "", rustix::fs::CWD, union.mnt(), MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).unwrap();
}
