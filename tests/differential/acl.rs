//! POSIX ACLs in the form that the xattrs have (`linux/posix_acl_xattr.h`).

use proptest::prelude::*;
use proptest::sample::select;

/// The xattr of the ACL that is checked.
pub const ACCESS: &str = "system.posix_acl_access";
/// The xattr of the ACL that new objects in a directory get.
pub const DEFAULT: &str = "system.posix_acl_default";

/// An ACL. One without named entries is the same as a mode.
#[derive(Debug, Clone)]
pub struct Acl {
    owner: u16,
    users: Vec<(u32, u16)>,
    group: u16,
    groups: Vec<(u32, u16)>,
    mask: u16,
    other: u16,
}

impl Acl {
    /// The value of the xattr.
    pub fn encode(&self) -> Vec<u8> {
        const NONE: u32 = u32::MAX;
        let mut entries = vec![(0x01, self.owner, NONE)];
        entries.extend(self.users.iter().map(|&(id, bits)| (0x02, bits, id)));
        entries.push((0x04, self.group, NONE));
        entries.extend(self.groups.iter().map(|&(id, bits)| (0x08, bits, id)));
        if !self.users.is_empty() || !self.groups.is_empty() {
            entries.push((0x10, self.mask, NONE));
        }
        entries.push((0x20_u16, self.other, NONE));
        let mut value = 2_u32.to_le_bytes().to_vec();
        for (tag, bits, id) in entries {
            value.extend(tag.to_le_bytes());
            value.extend(bits.to_le_bytes());
            value.extend(id.to_le_bytes());
        }
        value
    }
}

/// Any valid ACL.
pub fn acl() -> impl Strategy<Value = Acl> {
    let bits = || select(vec![7_u16, 6, 5, 4, 0]);
    let named = || {
        prop::collection::btree_map(select(vec![7_u32, 1000]), bits(), 0..=2)
            .prop_map(|m| m.into_iter().collect::<Vec<_>>())
    };
    (bits(), named(), bits(), named(), bits(), bits()).prop_map(
        |(owner, users, group, groups, mask, other)| Acl { owner, users, group, groups, mask, other },
    )
}
