//! Owner and permissions of an object in an attribute, in the form of fuse-overlayfs: `UID:GID:MODE`, the mode
//! octal and without the type. Storage libraries of containers add `:TYPE`, which says for objects of other
//! types what they stand for; it is kept, but not followed.

use std::ffi::OsStr;

use crate::config::Permissions;

/// The attribute that takes privilege.
const PRIVILEGED: &str = "security.fuseoverlayfs.override_stat";
/// The attribute that takes none.
const CONTAINERS: &str = "user.containers.override_stat";
/// An older one, which is read only.
const OLD: &str = "user.fuseoverlayfs.override_stat";

/// In the order in which the root of a layer is asked for them.
const ALL: [&str; 3] = [PRIVILEGED, CONTAINERS, OLD];

/// The attribute's names; the first that the root of a layer has is the one of the whole layer.
pub fn names() -> impl Iterator<Item = &'static OsStr> {
    ALL.iter().map(OsStr::new)
}

/// Whether this is an attribute that any owner of an object can set, for files and directories alone (xattr(7)).
pub fn is_of_user(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(b"user.")
}

/// The attribute that a writable layer has by the options; none when the inode has it all.
pub fn chosen(permissions: Permissions) -> Option<&'static OsStr> {
    match permissions {
        Permissions::Inode => None,
        Permissions::Privileged => Some(OsStr::new(PRIVILEGED)),
        Permissions::Containers => Some(OsStr::new(CONTAINERS)),
    }
}

/// What the attribute says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits, set-ID and sticky ones among them.
    pub mode: u32,
    /// What follows, from the third colon on.
    rest: String,
}

impl Override {
    /// One that says nothing of the type.
    pub fn new(uid: u32, gid: u32, mode: u32) -> Self {
        Self { uid, gid, mode: mode & 0o7777, rest: String::new() }
    }

    /// What a layer's root gets that has none: it says of the layer that it has them.
    pub fn of_root() -> Self {
        Self::new(0, 0, 0o555)
    }

    /// Reads a value; `None` for one of another form.
    pub fn decode(value: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(value).ok()?;
        let mut fields = text.splitn(4, ':');
        let (uid, gid, mode) = (fields.next()?, fields.next()?, fields.next()?);
        let (uid, gid) = (uid.parse().ok()?, gid.parse().ok()?);
        let mode = u32::from_str_radix(mode, 8).ok()? & 0o7777;
        let rest = fields.next().map(|rest| format!(":{rest}")).unwrap_or_default();
        Some(Self { uid, gid, mode, rest })
    }

    /// The value.
    pub fn encode(&self) -> Vec<u8> {
        format!("{}:{}:{:o}{}", self.uid, self.gid, self.mode, self.rest).into_bytes()
    }
}

/// The mode of the inode of an object whose permissions are `mode`: the daemon itself must get at it, and set-ID
/// bits would mean another owner.
pub fn inode_mode(mode: u32) -> u32 {
    (mode & 0o777) | 0o755
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back() {
        let read = |text: &str| Override::decode(text.as_bytes());
        assert_eq!(read("1000:7:4755"), Some(Override::new(1000, 7, 0o4755)));
        for text in ["0:0:555", "5:6:4755", "5:6:644:file", "0:6:666:char-1-3"] {
            assert_eq!(read(text).unwrap().encode(), text.as_bytes());
        }
        assert_eq!(read("0:0:0755:dir").unwrap().mode, 0o755);
        for wrong in ["", "0:0", "a:0:755", "0:0:8", "-1:0:7", "0:0:"] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
        assert_eq!(Override::decode(&[0xff]), None);
        assert_eq!((inode_mode(0o4600), inode_mode(0o1777)), (0o755, 0o777));
    }
}
