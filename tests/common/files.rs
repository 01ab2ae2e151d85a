//! Small helpers for files, on the mount and in the layers. They panic on failure.

use std::ffi::OsString;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

/// Writes a file, with the directories on the way to it.
pub fn put(path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
    let path = path.as_ref();
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, content).unwrap();
}

/// The content of a file.
pub fn get(path: impl AsRef<Path>) -> String {
    let bytes = std::fs::read(path.as_ref()).unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()));
    String::from_utf8(bytes).unwrap()
}

/// Makes a directory and its parents.
pub fn dir(path: impl AsRef<Path>) {
    std::fs::create_dir_all(path).unwrap();
}

/// Makes a whiteout as overlayfs has it.
pub fn whiteout(path: impl AsRef<Path>) {
    std::fs::create_dir_all(path.as_ref().parent().unwrap()).unwrap();
    rustix::fs::mknodat(CWD, path.as_ref(), FileType::CharacterDevice, Mode::empty(), 0).unwrap();
}

/// Whether there is a whiteout.
pub fn is_whiteout(path: impl AsRef<Path>) -> bool {
    path.as_ref().symlink_metadata().is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

/// Whether the name is there, whatever it is.
pub fn exists(path: impl AsRef<Path>) -> bool {
    path.as_ref().symlink_metadata().is_ok()
}

/// Makes a directory opaque as overlayfs has it.
pub fn make_opaque(path: impl AsRef<Path>) {
    set_xattr(path, "trusted.overlay.opaque", b"y");
}

/// Whether a directory is opaque.
pub fn is_opaque(path: impl AsRef<Path>) -> bool {
    xattr(path, "trusted.overlay.opaque").as_deref() == Some(b"y")
}

/// Sets an xattr, not following symlinks.
pub fn set_xattr(path: impl AsRef<Path>, name: &str, value: &[u8]) {
    rustix::fs::lsetxattr(path.as_ref(), name, value, XattrFlags::empty()).unwrap();
}

/// The value of an xattr.
pub fn xattr(path: impl AsRef<Path>, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 65536];
    match rustix::fs::lgetxattr(path.as_ref(), name, &mut value[..]) {
        Ok(n) => {
            value.truncate(n);
            Some(value)
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => None,
        Err(e) => panic!("xattr {name} of {}: {e}", path.as_ref().display()),
    }
}

/// The names of the xattrs, sorted.
pub fn xattr_names(path: impl AsRef<Path>) -> Vec<OsString> {
    use std::os::unix::ffi::OsStringExt;
    let mut list = vec![0; 65536];
    let n = rustix::fs::llistxattr(path.as_ref(), &mut list[..]).unwrap();
    let mut names: Vec<_> = list[..n]
        .split(|&b| b == 0)
        .filter(|s| !s.is_empty())
        .map(|s| OsString::from_vec(s.to_vec()))
        .collect();
    names.sort();
    names
}

/// Sets permission bits.
pub fn chmod(path: impl AsRef<Path>, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Permission bits.
pub fn mode(path: impl AsRef<Path>) -> u32 {
    path.as_ref().symlink_metadata().unwrap().mode() & 0o7777
}

/// Sets access and modification times, in seconds and nanoseconds, not following symlinks.
pub fn set_times(path: impl AsRef<Path>, atime: (i64, i64), mtime: (i64, i64)) {
    let times = Timestamps {
        last_access: Timespec { tv_sec: atime.0, tv_nsec: atime.1 },
        last_modification: Timespec { tv_sec: mtime.0, tv_nsec: mtime.1 },
    };
    rustix::fs::utimensat(CWD, path.as_ref(), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// The names in a directory, sorted, as readdir gives them.
pub fn list(path: impl AsRef<Path>) -> Vec<String> {
    let mut names: Vec<_> = std::fs::read_dir(path.as_ref())
        .unwrap_or_else(|e| panic!("{}: {e}", path.as_ref().display()))
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// The errno of a failed operation.
pub fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> i32 {
    result.unwrap_err().raw_os_error().unwrap()
}

/// A POSIX ACL in its xattr form (`linux/posix_acl_xattr.h`) that gives `uid` rwx besides `mode`.
pub fn acl_for(uid: u32, mode: u32) -> Vec<u8> {
    let mut acl = 2_u32.to_le_bytes().to_vec();
    let bits = |shift: u32| (mode >> shift & 7) as u16;
    for (tag, perm, id) in [
        (0x01_u16, bits(6), u32::MAX),
        (0x02, 7, uid),
        (0x04, bits(3), u32::MAX),
        (0x10, 7, u32::MAX),
        (0x20, bits(0), u32::MAX),
    ] {
        acl.extend(tag.to_le_bytes());
        acl.extend(perm.to_le_bytes());
        acl.extend(id.to_le_bytes());
    }
    acl
}

/// The xattr `security.capability` (version 2, `linux/capability.h`) with cap_net_raw, permitted and effective.
pub const CAPABILITY: [u8; 20] = {
    let mut v = [0; 20];
    v[0] = 1; // effective
    v[3] = 2; // VFS_CAP_REVISION_2
    v[5] = 0x20; // permitted: 1 << 13
    v
};
