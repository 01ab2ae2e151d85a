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

impl FileHandle {
    /// The subvolume inside the handle, of Btrfs: inode numbers are of one subvolume, the UUID of all.
    pub fn subvolume(&self) -> Option<u64> {
        // FILEID_BTRFS_WITHOUT_PARENT and its kin: inode, root, generation.
        matches!(self.kind, 0x4d..=0x4f).then(|| self.u64_at(8)).flatten()
    }

    fn u32_at(&self, at: usize) -> Option<u64> {
        Some(u64::from(u32::from_ne_bytes(self.bytes.get(at..at + 4)?.try_into().ok()?)))
    }

    fn u64_at(&self, at: usize) -> Option<u64> {
        Some(u64::from_ne_bytes(self.bytes.get(at..at + 8)?.try_into().ok()?))
    }
}

/// What tells a filesystem from others in origins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Volume {
    /// Its UUID.
    pub uuid: [u8; 16],
    /// The subvolume, of Btrfs.
    pub subvolume: Option<u64>,
}

impl Volume {
    /// Whether the object that an origin names lies there.
    pub fn holds(&self, origin: &Origin) -> bool {
        self.uuid == origin.uuid && self.subvolume == origin.handle.subvolume()
    }
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
        let handle = &self.handle;
        match (handle.kind, handle.bytes.len()) {
            // FILEID_INO32_GEN: inode, generation.
            (0x01, 8) => handle.u32_at(0),
            // shmem_encode_fh: generation, inode low, inode high.
            (0x01, 12) => Some(handle.u32_at(4)? | (handle.u32_at(8)? << 32)),
            // FILEID_INO64_GEN of xfs and FILEID_BTRFS_WITHOUT_PARENT begin with a 64-bit number.
            (0x81, 12) | (0x4d, 20) => handle.u64_at(0),
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
                let _ = (origin.inode(), origin.index_name(), origin.handle.subvolume());
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

    #[test]
    fn subvolumes_are_told_apart() {
        let mut bytes = 257_u64.to_ne_bytes().to_vec();
        bytes.extend(5_u64.to_ne_bytes());
        bytes.extend(7_u32.to_ne_bytes());
        let uuid = [1; 16];
        let origin = Origin { uuid, handle: FileHandle { kind: 0x4d, bytes } };
        assert_eq!(origin.inode(), Some(257));
        assert!(Volume { uuid, subvolume: Some(5) }.holds(&origin));
        assert!(!Volume { uuid, subvolume: Some(6) }.holds(&origin));
        assert!(!Volume { uuid: [2; 16], subvolume: Some(5) }.holds(&origin));
    }
}
