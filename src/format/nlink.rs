//! The `nlink` xattr of an indexed hardlink: how far the union's link count is from a real one
//! (fs/overlayfs/util.c, `ovl_set_nlink_common`): `U+2`, `U-1`, `L+0`. While a real name is added, and after a crash then,
//! it is the count itself, which that does not change: `N+3`. This is our own; overlayfs then counts real names alone.

/// Which real inode the difference counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Base {
    /// The upper inode.
    Upper,
    /// The lower inode.
    Lower,
    /// None: it is the count.
    Zero,
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
            Base::Zero => 'N',
        };
        format!("{base}{:+}", self.diff).into_bytes()
    }

    /// Reads the xattr value; `None` when it is malformed.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let base = match bytes.first()? {
            b'U' => Base::Upper,
            b'L' => Base::Lower,
            b'N' => Base::Zero,
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
        for (base, diff, text) in [
            (Base::Upper, 2, "U+2"),
            (Base::Upper, -1, "U-1"),
            (Base::Lower, 0, "L+0"),
            (Base::Zero, 3, "N+3"),
        ] {
            let d = NlinkDiff { base, diff };
            assert_eq!(d.encode(), text.as_bytes());
            assert_eq!(NlinkDiff::decode(text.as_bytes()), Some(d));
        }
        for bad in ["", "U", "X+1", "U+99999999999", "U1x"] {
            assert_eq!(NlinkDiff::decode(bad.as_bytes()), None);
        }
    }
}
