//! The `nlink` xattr of an indexed hardlink: how far the union's link count is from a real one
//! (fs/overlayfs/util.c, `ovl_set_nlink_common`): `U+2`, `U-1`, `L+0`.

/// Which real inode the difference counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The upper inode.
    Upper,
    /// The lower inode.
    Lower,
}

/// The stored difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NlinkDiff {
    /// What it counts from.
    pub base: Base,
    /// Union link count minus the base's.
    pub diff: i64,
}

impl NlinkDiff {
    /// The xattr value.
    pub fn encode(self) -> Vec<u8> {
        let base = match self.base {
            Base::Upper => 'U',
            Base::Lower => 'L',
        };
        format!("{base}{:+}", self.diff).into_bytes()
    }

    /// Reads the xattr value; `None` when it is malformed.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let base = match bytes.first()? {
            b'U' => Base::Upper,
            b'L' => Base::Lower,
            _ => return None,
        };
        let diff = std::str::from_utf8(&bytes[1..]).ok()?.trim_end_matches('\0').parse::<i32>().ok()?;
        Some(Self { base, diff: i64::from(diff) })
    }

    /// The union's link count, given the base's; at least one, since an object that is found has a
    /// name.
    pub fn apply(self, real: u32) -> u32 {
        u32::try_from((i64::from(real) + self.diff).max(1)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip() {
        for (base, diff, text) in [(Base::Upper, 2, "U+2"), (Base::Upper, -1, "U-1"), (Base::Lower, 0, "L+0")]
        {
            let d = NlinkDiff { base, diff };
            assert_eq!(d.encode(), text.as_bytes());
            assert_eq!(NlinkDiff::decode(text.as_bytes()), Some(d));
        }
        for bad in ["", "U", "X+1", "U+99999999999", "U1x"] {
            assert_eq!(NlinkDiff::decode(bad.as_bytes()), None);
        }
    }
}
