//! Who lists directories for names alone, and who goes on to look at the files or to read them.
//!
//! The kernel asks for names with attributes whenever a listing begins (`fuse_use_readdirplus`). For find(1) the
//! attributes of files are wasted, and where the layers are cold each costs a read of the device; for ls(1) -l and grep(1)
//! -r they save a request each. So a reader gets names first, with attributes of directories alone; when he looks files
//! up in what he has listed, he gets attributes in the directories that follow.
//!
//! In the same way, for who reads one file after the other in the directories that he has listed, and has waited for the
//! device each time, the next ones are read ahead.

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
/// After so many files that were waited for, others are read ahead.
const WAITED: u32 = 3;
/// Who opens none in so many listings in a row does not read files any more.
const UNREAD: u32 = 16;

#[derive(Debug, Default)]
struct Reader {
    /// What was listed last, in turn.
    listed: [u64; DIRECTORIES],
    next: usize,
    looked_up: u32,
    with_attributes: u32,
    waited: u32,
    /// Listings since a file was opened.
    unread: u32,
}

/// What to do for a reader who begins to list a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// Give the attributes of files.
    pub attributes: bool,
    /// Read the files ahead.
    pub content: bool,
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
    /// Notes that a thread begins to list a directory.
    pub fn lists(&self, thread: u32, directory: u64) -> Wish {
        let mut readers = self.0.lock();
        let reader = readers.get_or_insert_mut(thread, Reader::default);
        reader.listed[reader.next] = directory;
        reader.next = (reader.next + 1) % DIRECTORIES;
        reader.unread += 1;
        if reader.unread > UNREAD {
            reader.waited = 0;
        }
        let content = reader.waited >= WAITED;
        let attributes = reader.looked_up >= ENOUGH && reader.with_attributes < TRY_AGAIN;
        if attributes {
            reader.with_attributes += 1;
        } else if reader.with_attributes > 0 {
            (reader.looked_up, reader.with_attributes) = (0, 0);
        }
        Wish { attributes, content }
    }

    /// Notes that a thread looks up a file in a directory.
    pub fn looks_up(&self, thread: u32, directory: u64) {
        if let Some(reader) = self.0.lock().get_mut(&thread)
            && reader.listed.contains(&directory)
        {
            reader.looked_up = reader.looked_up.saturating_add(1);
        }
    }

    /// Notes that a thread opens a file.
    pub fn opens(&self, thread: u32) {
        if let Some(reader) = self.0.lock().get_mut(&thread) {
            reader.unread = 0;
        }
    }

    /// Notes that a thread waits for a file in a directory to be read. Gives whether files after it should be read ahead.
    pub fn waits(&self, thread: u32, directory: u64) -> bool {
        let mut readers = self.0.lock();
        let Some(reader) = readers.get_mut(&thread) else { return false };
        let waits = reader.listed.contains(&directory);
        reader.waited = reader.waited.saturating_add(u32::from(waits));
        waits && reader.waited >= WAITED
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Wish = Wish { attributes: false, content: false };

    #[test]
    fn attributes_are_for_those_who_look() {
        let readers = Readers::default();
        assert_eq!(readers.lists(1, 10), NOTHING);
        assert_eq!(readers.lists(1, 11), NOTHING);
        readers.looks_up(1, 99);
        readers.looks_up(2, 11);
        readers.looks_up(1, 11);
        assert_eq!(readers.lists(1, 12), NOTHING);
        readers.looks_up(1, 10);
        assert_eq!(readers.lists(1, 13), Wish { attributes: true, content: false });
        assert_eq!(readers.lists(2, 13), NOTHING);
    }

    #[test]
    fn they_are_tried_again_without() {
        let readers = Readers::default();
        readers.lists(1, 10);
        (0..ENOUGH).for_each(|_| readers.looks_up(1, 10));
        assert!((0..TRY_AGAIN).all(|i| readers.lists(1, u64::from(i)).attributes));
        assert_eq!(readers.lists(1, 20), NOTHING);
        assert_eq!(readers.lists(1, 21), NOTHING);
    }

    #[test]
    fn content_is_for_those_who_waited() {
        let readers = Readers::default();
        assert!(!readers.waits(1, 10), "it has listed nothing");
        readers.lists(1, 10);
        assert!(![99, 10, 10].into_iter().any(|directory| readers.waits(1, directory)));
        assert!(readers.waits(1, 10));
        readers.opens(1);
        assert!((0..UNREAD).all(|_| readers.lists(1, 11).content));
        assert!(!readers.lists(1, 11).content);
    }
}
