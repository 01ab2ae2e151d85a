//! Listings of directories that are being read, by the places that readers go on at.
//!
//! A reader must get each name that is there all the time exactly once (readdir(3p)), while others come and go: so
//! he gets what was there when he began. The kernel gives back the place of the last entry that he got, and no
//! more: which listing that was must be in it.

use std::sync::Arc;

use lru::LruCache;
use parking_lot::Mutex;

use crate::merge::listing::Entry;

/// The place behind the last entry of any listing.
pub const END: u64 = 0x7fff_ffff;

/// Places in listings that are shorter than 2^20 entries have 31 bits, for programs whose `off_t` has no more.
const SHORT_BITS: u32 = 20;
/// The numbers of listings run from 1 to this one. It keeps `END` out of the reach of places.
const MOST_NUMBERS: u32 = 2046;
/// So many listings are kept at most: far less than there are numbers.
const MOST_LISTINGS: usize = 256;
/// So many entries all but the newest have together at most.
const MOST_ENTRIES: usize = 1 << 20;

/// A place in a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The number of the listing; 0 at the beginning of any.
    pub listing: u32,
    /// How many entries come before.
    pub index: usize,
}

impl Place {
    /// The place that [`Self::offset`] gave; `None` behind the last entry. What was not made by that is some place.
    pub fn at(offset: u64) -> Option<Self> {
        if offset == END {
            return None;
        }
        let bits = if offset < 1 << 31 { SHORT_BITS } else { 32 };
        // 31 bits are left at most: an offset is positive as an off_t.
        let listing = ((offset >> bits) & 0x7fff_ffff) as u32;
        Some(Self { listing, index: (offset & ((1 << bits) - 1)) as usize })
    }

    /// The place as a number that is positive as an `off_t`.
    pub fn offset(self) -> u64 {
        let index = self.index as u64;
        let bits = if index < 1 << SHORT_BITS { SHORT_BITS } else { 32 };
        u64::from(self.listing) << bits | index
    }
}

#[derive(Debug)]
struct Kept {
    ino: u64,
    entries: Arc<Vec<Entry>>,
}

#[derive(Debug)]
struct State {
    last: u32,
    kept: LruCache<u32, Kept>,
    entries: usize,
}

/// The listings that are being read.
#[derive(Debug)]
pub struct Listings(Mutex<State>);

impl Default for Listings {
    fn default() -> Self {
        Self(Mutex::new(State { last: 0, kept: LruCache::unbounded(), entries: 0 }))
    }
}

impl State {
    fn shrink(&mut self) {
        let newest = self.kept.peek_mru().map_or(0, |(_, kept)| kept.entries.len());
        while self.kept.len() > MOST_LISTINGS || self.entries - newest > MOST_ENTRIES {
            let Some((_, oldest)) = self.kept.pop_lru() else { break };
            self.entries -= oldest.entries.len();
        }
    }
}

impl Listings {
    /// A number that no listing which is kept has.
    pub fn number(&self) -> u32 {
        let mut state = self.0.lock();
        state.last = state.last % MOST_NUMBERS + 1;
        state.last
    }

    /// Keeps the listing of a directory for a reader who goes on.
    pub fn keep(&self, number: u32, ino: u64, entries: Arc<Vec<Entry>>) {
        let mut state = self.0.lock();
        state.entries += entries.len();
        if let Some((_, old)) = state.kept.push(number, Kept { ino, entries }) {
            state.entries -= old.entries.len();
        }
        state.shrink();
    }

    /// A listing of the directory, if it is still kept.
    pub fn get(&self, number: u32, ino: u64) -> Option<Arc<Vec<Entry>>> {
        let mut state = self.0.lock();
        state.kept.get(&number).filter(|kept| kept.ino == ino).map(|kept| kept.entries.clone())
    }

    /// Lets go of a listing: it was read to the end.
    pub fn remove(&self, number: u32) {
        let mut state = self.0.lock();
        if let Some(kept) = state.kept.pop(&number) {
            state.entries -= kept.entries.len();
        }
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.0.lock().kept.len()
    }

    /// Whether none is kept.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::FileType;

    #[test]
    fn places_come_back() {
        for listing in [1, 2, MOST_NUMBERS] {
            for index in [0, 1, 0xf_fffe, 0xf_ffff, 0x10_0000, 0x7fff_ffff, 0xffff_ffff] {
                let place = Place { listing, index };
                assert_eq!(Place::at(place.offset()), Some(place), "{:x}", place.offset());
                assert!(place.offset() > 0 && i64::try_from(place.offset()).is_ok());
                assert_eq!(place.offset() < 1 << 31, index < 1 << 20);
            }
        }
        assert_eq!(Place::at(0), Some(Place { listing: 0, index: 0 }));
        assert_eq!(Place::at(END), None);
        // Nothing that a program may seek to does harm.
        for offset in [1, 1 << 31, u64::MAX, i64::MAX.cast_unsigned()] {
            Place::at(offset);
        }
    }

    fn entries(count: usize) -> Arc<Vec<Entry>> {
        let one = Entry {
            name: std::ffi::OsStr::new("x").into(),
            ino: None,
            kind: FileType::RegularFile,
            layer: 0,
        };
        Arc::new(vec![one; count])
    }

    #[test]
    fn some_are_kept() {
        let listings = Listings::default();
        let numbers: Vec<u32> = (0..MOST_LISTINGS + 2).map(|_| listings.number()).collect();
        for number in &numbers {
            listings.keep(*number, 7, entries(1));
        }
        assert_eq!(listings.len(), MOST_LISTINGS);
        assert!(listings.get(numbers[0], 7).is_none());
        assert!(listings.get(numbers[2], 8).is_none());
        assert!(listings.get(numbers[2], 7).is_some());
        listings.remove(numbers[2]);
        assert!(listings.get(numbers[2], 7).is_none());
        // The newest is kept, however large.
        let big = listings.number();
        listings.keep(big, 7, entries(MOST_ENTRIES + 1));
        assert!(listings.get(big, 7).is_some());
        let small = listings.number();
        listings.keep(small, 7, entries(1));
        assert!(listings.get(big, 7).is_none() && listings.get(small, 7).is_some());
    }

    #[test]
    fn numbers_come_again_late() {
        let listings = Listings::default();
        let first = listings.number();
        let all: std::collections::HashSet<u32> = (1..MOST_NUMBERS).map(|_| listings.number()).collect();
        assert!(!all.contains(&first) && !all.contains(&0));
        assert_eq!(listings.number(), first);
    }
}
