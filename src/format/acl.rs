//! The value of the attributes `system.posix_acl_access` and `system.posix_acl_default`, as the kernel passes
//! it (`include/uapi/linux/posix_acl_xattr.h`): a version, and entries of tag, permissions and number.

use std::ffi::OsStr;

/// The attribute of the ACL that is checked.
pub const ACCESS: &str = "system.posix_acl_access";
/// The attribute of the ACL that what is made in a directory inherits.
pub const DEFAULT: &str = "system.posix_acl_default";

/// Whether this is the name of an ACL.
pub fn is_name(name: &OsStr) -> bool {
    name == ACCESS || name == DEFAULT
}

/// Whether this is where XFS keeps ACLs, and shows them to the privileged once more (fs/xfs/xfs_acl.h). Copied as it
/// stands, it would carry owners that are not translated, and mean nothing on other filesystems.
pub fn is_of_xfs(name: &OsStr) -> bool {
    name == "trusted.SGI_ACL_FILE" || name == "trusted.SGI_ACL_DEFAULT"
}

/// Before the entries: the version.
const HEADER: usize = 4;
/// The only version there is.
const VERSION: u32 = 2;
/// `ACL_USER`: a user by number.
const USER: u16 = 0x02;
/// `ACL_GROUP`: a group by number.
const GROUP: u16 = 0x08;

/// Replaces the numbers of users and groups in a value. Leaves a value of another form alone, which the
/// kernel refuses.
pub fn map_ids(value: &mut [u8], user: impl Fn(u32) -> u32, group: impl Fn(u32) -> u32) {
    if value.first_chunk().map(|version| u32::from_le_bytes(*version)) != Some(VERSION) {
        return;
    }
    let (entries, _) = value[HEADER..].as_chunks_mut::<8>();
    for [tag_low, tag_high, _, _, id @ ..] in entries {
        let number = u32::from_le_bytes(*id);
        match u16::from_le_bytes([*tag_low, *tag_high]) {
            USER => *id = user(number).to_le_bytes(),
            GROUP => *id = group(number).to_le_bytes(),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn value(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut value = VERSION.to_le_bytes().to_vec();
        for (tag, perm, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(perm.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }

    #[test]
    fn only_numbers_of_users_and_groups_change() {
        let none = u32::MAX;
        let mut acl =
            value(&[(1, 6, none), (USER, 7, 5), (4, 6, none), (GROUP, 4, 5), (16, 7, none), (32, 0, none)]);
        map_ids(&mut acl, |id| id + 100, |id| id + 200);
        let wanted = value(&[
            (1, 6, none),
            (USER, 7, 105),
            (4, 6, none),
            (GROUP, 4, 205),
            (16, 7, none),
            (32, 0, none),
        ]);
        assert_eq!(acl, wanted);
    }

    proptest! {
        #[test]
        fn any_value_is_survived(mut bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let len = bytes.len();
            map_ids(&mut bytes, |_| 0, |_| 0);
            prop_assert_eq!(bytes.len(), len);
        }
    }
}
