//! Layer archives: the interchange format of POSIX.1-2008 (pax), and in reading also those of ustar and GNU tar.
//!
//! Headers are the `tar` crate's. Extended records are read and written here: their values are bytes that may
//! contain any byte, a newline too, and what an archive of unknown origin makes us keep must be bounded.

mod pax;
mod read;
mod write;

use crate::oci::attributes::Xattrs;

pub use read::{Fault, Limits, Reader};
pub use write::Writer;

/// The unit of an archive.
const BLOCK: usize = 512;

/// The prefix of extended records that hold an extended attribute, as in tar(1), Go and libarchive.
const XATTR: &[u8] = b"SCHILY.xattr.";

/// A member of an archive, but for its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path, without a slash at its end.
    pub path: Vec<u8>,
    /// What it is.
    pub kind: EntryKind,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of the content: seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file with its size in bytes; the content follows.
    File(u64),
    /// A directory.
    Dir,
    /// A symlink to this target.
    Symlink(Vec<u8>),
    /// Another name of the member with this path.
    Hardlink(Vec<u8>),
    /// A character device: major and minor number.
    Char(u32, u32),
    /// A block device.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Read;

    fn read_all(archive: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, Fault> {
        let mut reader = Reader::new(archive, Limits { entries: 100, content: 1 << 20, records: 1 << 16 });
        let mut found = Vec::new();
        while let Some(entry) = reader.next_entry()? {
            let mut content = Vec::new();
            reader.read_to_end(&mut content)?;
            found.push((entry, content));
        }
        reader.finish()?;
        Ok(found)
    }

    fn kinds() -> impl Strategy<Value = EntryKind> {
        let name = || proptest::collection::vec(1_u8.., 1..300);
        prop_oneof![
            (0..2000_u64).prop_map(EntryKind::File),
            Just(EntryKind::Dir),
            name().prop_map(EntryKind::Symlink),
            name().prop_map(EntryKind::Hardlink),
            (0..4096_u32, 0..1_048_576_u32).prop_map(|(a, b)| EntryKind::Char(a, b)),
            Just(EntryKind::Fifo),
        ]
    }

    fn entries() -> impl Strategy<Value = Entry> {
        let xattrs = proptest::collection::btree_map(
            "user[.][a-z]{1,9}",
            proptest::collection::vec(any::<u8>(), 0..70),
            0..3,
        );
        let path = proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'a'), 0x80_u8..], 1..300);
        (path, kinds(), 0..0o10000_u32, 0..u32::MAX, 0..u32::MAX, any::<i32>(), 0..1_000_000_000_u32, xattrs)
            .prop_map(|(mut path, kind, mode, uid, gid, seconds, nanos, xattrs)| {
                while path.ends_with(b"/") {
                    path.pop();
                }
                path.push(b'x');
                let xattrs = xattrs.into_iter().map(|(k, v)| (k.into(), v)).collect();
                Entry { path, kind, mode, uid, gid, mtime: (i64::from(seconds), nanos), xattrs }
            })
    }

    proptest! {
        #[test]
        fn round_trip(entries in proptest::collection::vec(entries(), 0..8)) {
            let mut archive = Writer::new(Vec::new());
            for entry in &entries {
                archive.append(entry, std::io::repeat(7)).unwrap();
            }
            let archive = archive.finish().unwrap();
            let found = read_all(&archive).unwrap();
            prop_assert_eq!(found.len(), entries.len());
            for (entry, (mut found, content)) in entries.into_iter().zip(found) {
                if found.kind == EntryKind::Dir {
                    prop_assert_eq!(found.path.pop(), Some(b'/'));
                }
                let size = if let EntryKind::File(size) = entry.kind { size } else { 0 };
                prop_assert_eq!(content, vec![7; size as usize]);
                prop_assert_eq!(found, entry);
            }
        }

        #[test]
        fn damaged_archives_never_panic(entry in entries(), at in any::<prop::sample::Index>(), value: u8, cut in any::<prop::sample::Index>()) {
            let mut archive = Writer::new(Vec::new());
            archive.append(&entry, std::io::repeat(7)).unwrap();
            let mut archive = archive.finish().unwrap();
            let at = at.index(archive.len());
            archive[at] = value;
            let _ = read_all(&archive);
            archive.truncate(cut.index(archive.len()));
            let _ = read_all(&archive);
        }
    }

    #[test]
    fn limits_hold() {
        let file = |size| Entry {
            path: b"a".to_vec(),
            kind: EntryKind::File(size),
            mode: 0,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            xattrs: Xattrs::new(),
        };
        let mut archive = Writer::new(Vec::new());
        for _ in 0..101 {
            archive.append(&file(0), std::io::empty()).unwrap();
        }
        let error = read_all(&archive.finish().unwrap()).unwrap_err().to_string();
        assert!(error.contains("more than 100 entries"), "{error}");
        let mut archive = Writer::new(Vec::new());
        archive.append(&file(2 << 20), std::io::repeat(0)).unwrap();
        let error = read_all(&archive.finish().unwrap()).unwrap_err().to_string();
        assert!(error.contains("entry a: ") && error.contains("--max-size"), "{error}");
        let mut big = file(0);
        big.xattrs.insert("user.x".into(), vec![0; 1 << 17]);
        let mut archive = Writer::new(Vec::new());
        archive.append(&big, std::io::empty()).unwrap();
        let error = read_all(&archive.finish().unwrap()).unwrap_err().to_string();
        assert!(error.contains("excessive size"), "{error}");
    }
}
