//! Who lists directories for names alone, and who goes on to look at the files.
//!
//! The kernel asks for names with attributes whenever a listing begins (`fuse_use_readdirplus`). For find(1) the
//! attributes of files are wasted, and where the layers are cold each costs a read of the device; for ls(1) -l and grep(1)
//! -r they save a request each. So a reader gets names first, with attributes of directories alone; when he looks files
//! up in what he has listed, he gets attributes in the directories that follow.

use std::num::NonZero;

use lru::LruCache;
use parking_lot::Mutex;

/// So many readers are remembered.
const READERS: NonZero<usize> = NonZero::new(64).unwrap();
/// So many directories are remembered of each: who walks a tree comes back to those above.
const DIRECTORIES: usize = 8;
/// After so many files that were looked up a reader gets attributes.
const ENOUGH: u32 = 2;
/// After so many listings with attributes a reader is tried again without.
const TRY_AGAIN: u32 = 256;

#[derive(Debug, Default)]
struct Reader {
    /// Listed without attributes of files, the last in turn.
    listed: [u64; DIRECTORIES],
    next: usize,
    looked_up: u32,
    with_attributes: u32,
}

/// The readers of late.
#[derive(Debug)]
pub struct Readers(Mutex<LruCache<u32, Reader>>);

impl Default for Readers {
    fn default() -> Self {
        Self(Mutex::new(LruCache::new(READERS)))
    }
}

impl Readers {
    /// Whether a thread that begins to list a directory should get the attributes of files.
    pub fn lists(&self, thread: u32, directory: u64) -> bool {
        let mut readers = self.0.lock();
        let reader = readers.get_or_insert_mut(thread, Reader::default);
        if reader.looked_up >= ENOUGH && reader.with_attributes < TRY_AGAIN {
            reader.with_attributes += 1;
            return true;
        }
        if reader.with_attributes > 0 {
            (reader.looked_up, reader.with_attributes) = (0, 0);
        }
        reader.listed[reader.next] = directory;
        reader.next = (reader.next + 1) % DIRECTORIES;
        false
    }

    /// Notes that a thread looks up a file in a directory.
    pub fn looks_up(&self, thread: u32, directory: u64) {
        if let Some(reader) = self.0.lock().get_mut(&thread)
            && reader.listed.contains(&directory)
        {
            reader.looked_up = reader.looked_up.saturating_add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_for_those_who_look() {
        let readers = Readers::default();
        assert!(!readers.lists(1, 10));
        assert!(!readers.lists(1, 11));
        readers.looks_up(1, 99);
        readers.looks_up(2, 11);
        readers.looks_up(1, 11);
        assert!(!readers.lists(1, 12));
        readers.looks_up(1, 10);
        assert!(readers.lists(1, 13));
        assert!(!readers.lists(2, 13));
    }

    #[test]
    fn they_are_tried_again_without() {
        let readers = Readers::default();
        readers.lists(1, 10);
        (0..ENOUGH).for_each(|_| readers.looks_up(1, 10));
        assert!((0..TRY_AGAIN).all(|i| readers.lists(1, u64::from(i))));
        assert!(!readers.lists(1, 20));
        assert!(!readers.lists(1, 21));
    }
}
