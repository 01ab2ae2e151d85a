//! The `origin` xattr: which lower object an upper one was copied up from, as a file handle with the
//! filesystem's UUID (fs/overlayfs/overlayfs.h, `struct ovl_fb`). Also the name of an index entry.

use std::ffi::OsString;
use std::fmt::Write;

const VERSION: u8 = 0;
const MAGIC: u8 = 0xfb;
const FLAG_BIG_ENDIAN: u8 = 1 << 0;
const FLAG_ANY_ENDIAN: u8 = 1 << 1;
const HEADER: usize = 21;

/// A file handle as of name_to_handle_at(2): opaque bytes that name an inode of one filesystem for
/// good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileHandle {
    /// The form of the bytes, as the filesystem defines it; fits a byte in practice.
    pub kind: i32,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// A decoded origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// UUID of the lower's filesystem; zero when it has none.
    pub uuid: [u8; 16],
    /// Handle of the lower object on that filesystem.
    pub handle: FileHandle,
}

impl Origin {
    /// The xattr value; `None` when the handle does not fit the format.
    pub fn encode(&self) -> Option<Vec<u8>> {
        let len = u8::try_from(HEADER + self.handle.bytes.len()).ok()?;
        let kind = u8::try_from(self.handle.kind).ok()?;
        let flags = if cfg!(target_endian = "big") { FLAG_BIG_ENDIAN } else { 0 };
        let mut out = vec![VERSION, MAGIC, len, flags, kind];
        out.extend_from_slice(&self.uuid);
        out.extend_from_slice(&self.handle.bytes);
        Some(out)
    }

    /// Reads the xattr value. `None` for an empty one ("origin unknown"), for one of another byte
    /// order and for anything malformed.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        if bytes.len() < HEADER || bytes[0] != VERSION || bytes[1] != MAGIC {
            return None;
        }
        if usize::from(bytes[2]) != bytes.len() {
            return None;
        }
        let big = bytes[3] & FLAG_BIG_ENDIAN != 0;
        if bytes[3] & FLAG_ANY_ENDIAN == 0 && big != cfg!(target_endian = "big") {
            return None;
        }
        let uuid = bytes[5..HEADER].try_into().ok()?;
        let handle = FileHandle { kind: i32::from(bytes[4]), bytes: bytes[HEADER..].to_vec() };
        Some(Self { uuid, handle })
    }

    /// The name of the object's entry in the index directory: the encoded bytes in lower-case hex.
    pub fn index_name(&self) -> Option<OsString> {
        let mut name = String::new();
        for byte in self.encode()? {
            let _ = write!(name, "{byte:02x}");
        }
        (name.len() <= 255).then(|| name.into())
    }

    /// The inode number inside the handle, for the handle forms of exportfs.h that carry one:
    /// 32-bit (ext4 and most others), 64-bit (xfs), btrfs, and tmpfs with its own order.
    pub fn inode(&self) -> Option<u64> {
        let b = &self.handle.bytes;
        let u32_at = |i: usize| Some(u64::from(u32::from_ne_bytes(b.get(i..i + 4)?.try_into().ok()?)));
        let u64_at = |i: usize| Some(u64::from_ne_bytes(b.get(i..i + 8)?.try_into().ok()?));
        match (self.handle.kind, b.len()) {
            // FILEID_INO32_GEN: inode, generation.
            (0x01, 8) => u32_at(0),
            // shmem_encode_fh: generation, inode low, inode high.
            (0x01, 12) => Some(u32_at(4)? | (u32_at(8)? << 32)),
            // FILEID_INO64_GEN of xfs and FILEID_BTRFS_WITHOUT_PARENT begin with a 64-bit number.
            (0x81, 12) | (0x4d, 20) => u64_at(0),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn round_trip(uuid: [u8; 16], kind in 0..=255_i32, bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let origin = Origin { uuid, handle: FileHandle { kind, bytes } };
            let encoded = origin.encode().unwrap();
            prop_assert_eq!(Origin::decode(&encoded), Some(origin));
        }

        #[test]
        fn any_bytes_are_harmless(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(origin) = Origin::decode(&bytes) {
                let _ = (origin.inode(), origin.index_name());
            }
        }
    }

    #[test]
    fn inode_of_an_ext4_handle() {
        let mut bytes = 12_u32.to_ne_bytes().to_vec();
        bytes.extend(7_u32.to_ne_bytes());
        let origin = Origin { uuid: [0; 16], handle: FileHandle { kind: 1, bytes } };
        assert_eq!(origin.inode(), Some(12));
    }
}
