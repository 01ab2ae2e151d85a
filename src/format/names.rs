//! Names of private xattrs and of whiteouts.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

/// Which xattr namespace holds the private attributes that we write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Namespace {
    /// `trusted.overlay.`: needs CAP_SYS_ADMIN in the initial user namespace.
    Trusted,
    /// `user.overlay.`: overlayfs.rst, "User xattr" (`-o userxattr`).
    User,
}

/// The private attributes, without their namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// `y` on a directory that hides the lower ones; `x` on one that holds xattr whiteouts.
    Opaque,
    /// The path under which lower layers know a renamed directory.
    Redirect,
    /// The lower object that an upper one was copied up from.
    Origin,
    /// On a directory with copied-up entries.
    Impure,
    /// Difference between the real and the union's link count of an indexed file.
    Nlink,
    /// On an empty regular file that stands for a whiteout.
    Whiteout,
    /// On a file whose data is still in a lower layer.
    Metacopy,
    /// On the root of a layer: names that begin with `.wh.` are names like any other. Our own.
    PlainNames,
}

impl Mark {
    /// The attribute's full name in a namespace.
    pub fn name(self, ns: Namespace) -> &'static OsStr {
        let name = match (ns, self) {
            (Namespace::Trusted, Self::Opaque) => "trusted.overlay.opaque",
            (Namespace::Trusted, Self::Redirect) => "trusted.overlay.redirect",
            (Namespace::Trusted, Self::Origin) => "trusted.overlay.origin",
            (Namespace::Trusted, Self::Impure) => "trusted.overlay.impure",
            (Namespace::Trusted, Self::Nlink) => "trusted.overlay.nlink",
            (Namespace::Trusted, Self::Whiteout) => "trusted.overlay.whiteout",
            (Namespace::Trusted, Self::Metacopy) => "trusted.overlay.metacopy",
            (Namespace::Trusted, Self::PlainNames) => "trusted.overlay.unionfs.plain",
            (Namespace::User, Self::Opaque) => "user.overlay.opaque",
            (Namespace::User, Self::Redirect) => "user.overlay.redirect",
            (Namespace::User, Self::Origin) => "user.overlay.origin",
            (Namespace::User, Self::Impure) => "user.overlay.impure",
            (Namespace::User, Self::Nlink) => "user.overlay.nlink",
            (Namespace::User, Self::Whiteout) => "user.overlay.whiteout",
            (Namespace::User, Self::Metacopy) => "user.overlay.metacopy",
            (Namespace::User, Self::PlainNames) => "user.overlay.unionfs.plain",
        };
        OsStr::new(name)
    }
}

/// Opaque mark of fuse-overlayfs without privilege.
pub const FUSE_OVERLAYFS_OPAQUE: &str = "user.fuseoverlayfs.opaque";

const PRIVATE: [&[u8]; 3] = [b"trusted.overlay.", b"user.overlay.", b"user.fuseoverlayfs."];
const ESCAPE: &[u8] = b"overlay.";

/// Whether an attribute found in a layer is private: never shown, never copied up as it stands.
/// Escaped ones (see [`to_layer`]) are not private.
pub fn is_private(name: &OsStr) -> bool {
    PRIVATE.iter().any(|p| name.as_bytes().starts_with(p)) && from_layer(name).is_none()
}

/// The name under which a layer stores attribute `name` of the mount: private namespaces are
/// escaped by a second `overlay.` (overlayfs.rst, "Nested overlayfs mounts").
pub fn to_layer(name: &OsStr) -> OsString {
    let bytes = name.as_bytes();
    for prefix in &PRIVATE[..2] {
        if let Some(rest) = bytes.strip_prefix(*prefix) {
            return OsString::from_vec([prefix, ESCAPE, rest].concat());
        }
    }
    name.to_owned()
}

/// The name in the mount of an attribute that a layer stores escaped; `None` for any other.
pub fn from_layer(name: &OsStr) -> Option<OsString> {
    let bytes = name.as_bytes();
    PRIVATE[..2].iter().find_map(|prefix| {
        let rest = bytes.strip_prefix(*prefix)?.strip_prefix(ESCAPE)?;
        Some(OsString::from_vec([prefix, rest].concat()))
    })
}

/// The number under which a layer keeps a character device 0:0 that a program made: as it stands it would
/// be a whiteout. Major 0 belongs to filesystems without a device (Documentation/admin-guide/devices.txt),
/// so no driver answers to this one either. XFS keeps 18 bits of the minor number and refuses what has more.
pub const ESCAPED_DEVICE: u64 = libc::makedev(0, 0x3_ffff);

/// Prefix of whiteouts in the AUFS and OCI form (OCI image spec, layer.md, "Whiteouts").
pub const WH_PREFIX: &str = ".wh.";
/// The opaque whiteout of the AUFS and OCI form.
pub const WH_OPAQUE: &str = ".wh..wh..opq";

/// Whether a name in a lower layer has the AUFS and OCI whiteout form, and so is never shown.
pub fn is_wh(name: &OsStr) -> bool {
    name.as_bytes().starts_with(WH_PREFIX.as_bytes())
}

/// The name that a whiteout in AUFS and OCI form hides; `None` for other names and for AUFS's own
/// bookkeeping (`.wh..wh.` names).
pub fn wh_target(name: &OsStr) -> Option<&OsStr> {
    let rest = name.as_bytes().strip_prefix(WH_PREFIX.as_bytes())?;
    (!rest.is_empty() && !rest.starts_with(b".wh.")).then(|| OsStr::from_bytes(rest))
}

/// The AUFS and OCI whiteout that would hide `name`; `None` when it would be too long a name.
pub fn wh_name(name: &OsStr) -> Option<OsString> {
    (name.len() + WH_PREFIX.len() <= 255).then(|| {
        let mut wh = OsString::from(WH_PREFIX);
        wh.push(name);
        wh
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_names_are_escaped_and_come_back() {
        for name in ["trusted.overlay.opaque", "user.overlay.redirect", "trusted.overlay.overlay.x"] {
            let stored = to_layer(OsStr::new(name));
            assert!(is_private(OsStr::new("trusted.overlay.opaque")));
            assert!(!is_private(&stored));
            assert_eq!(from_layer(&stored).as_deref(), Some(OsStr::new(name)));
        }
        assert_eq!(to_layer(OsStr::new("user.x")), "user.x");
        assert_eq!(from_layer(OsStr::new("user.x")), None);
    }

    #[test]
    fn aufs_whiteouts() {
        assert_eq!(wh_target(OsStr::new(".wh.a")), Some(OsStr::new("a")));
        assert_eq!(wh_target(OsStr::new(".wh..wh..opq")), None);
        assert_eq!(wh_target(OsStr::new(".wh.")), None);
        assert!(wh_name(OsStr::new(&"x".repeat(252))).is_none());
    }
}
