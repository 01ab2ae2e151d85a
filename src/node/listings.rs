//! Listings of directories that are being read, by the places that readers go on at.
//!
//! A reader must get each name that is there all the time exactly once (readdir(3p)), while others come and go: so
//! he gets what was there when he began. The kernel gives back the place of the last entry that he got, and no
//! more: which listing that was must be in it.
//!
//! The kernel keeps listings as well, and asks for the rest of one that it has let go of, at a place that any earlier
//! reader was given. So of a listing that was read to its end, its order is remembered for a while: what a reader
//! has not got is then what is there now and did not come before his place.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
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
/// So many that were read to their end are remembered.
const MOST_PAST: usize = 1024;
/// The numbers of entries below this are not: any reader gets all of them at once.
const FEW: usize = 32;

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

/// Listings that may be asked for again, up to some number of them and of their entries. `L` is a list of entries.
#[derive(Debug)]
struct Shelf<L> {
    kept: LruCache<u32, (u64, Arc<[L]>)>,
    entries: usize,
    most: usize,
}

impl<L> Shelf<L> {
    fn new(most: usize) -> Self {
        Self { kept: LruCache::unbounded(), entries: 0, most }
    }

    /// Keeps a listing; gives one that is not kept any more.
    fn keep(&mut self, number: u32, ino: u64, entries: Arc<[L]>) {
        self.entries += entries.len();
        if let Some((_, (_, old))) = self.kept.push(number, (ino, entries)) {
            self.entries -= old.len();
        }
    }

    /// Takes the oldest listing out if there are too many.
    fn surplus(&mut self) -> Option<(u32, u64, Arc<[L]>)> {
        let newest = self.kept.peek_mru().map_or(0, |(_, (_, entries))| entries.len());
        if self.kept.len() <= self.most && self.entries - newest <= MOST_ENTRIES {
            return None;
        }
        let (number, (ino, entries)) = self.kept.pop_lru()?;
        self.entries -= entries.len();
        Some((number, ino, entries))
    }

    fn get(&mut self, number: u32, ino: u64) -> Option<Arc<[L]>> {
        self.kept.get(&number).filter(|(of, _)| *of == ino).map(|(_, entries)| Arc::clone(entries))
    }

    fn remove(&mut self, number: u32) {
        if let Some((_, entries)) = self.kept.pop(&number) {
            self.entries -= entries.len();
        }
    }
}

#[derive(Debug)]
struct State {
    last: u32,
    /// Those that are being read.
    current: Shelf<Entry>,
    /// Those that were, by the hashes of their names.
    past: Shelf<u64>,
}

/// The listings that are being read.
#[derive(Debug)]
pub struct Listings {
    state: Mutex<State>,
    hasher: RandomState,
}

impl Default for Listings {
    fn default() -> Self {
        let (current, past) = (Shelf::new(MOST_LISTINGS), Shelf::new(MOST_PAST));
        Self { state: Mutex::new(State { last: 0, current, past }), hasher: RandomState::new() }
    }
}

impl Listings {
    /// A number that no listing which is kept has.
    pub fn number(&self) -> u32 {
        let state = &mut *self.state.lock();
        loop {
            state.last = state.last % MOST_NUMBERS + 1;
            // There are more numbers than are kept.
            if !state.current.kept.contains(&state.last) {
                break;
            }
        }
        state.past.remove(state.last);
        state.last
    }

    fn hash(&self, name: &OsStr) -> u64 {
        self.hasher.hash_one(name)
    }

    /// Keeps the listing of a directory for a reader who goes on.
    pub fn keep(&self, number: u32, ino: u64, entries: Arc<[Entry]>) {
        let mut over = Vec::new();
        {
            let mut state = self.state.lock();
            state.current.keep(number, ino, entries);
            over.extend(std::iter::from_fn(|| state.current.surplus()));
        }
        for (number, ino, entries) in over {
            self.remember(number, ino, &entries);
        }
    }

    /// A listing of the directory, if it is still kept.
    pub fn get(&self, number: u32, ino: u64) -> Option<Arc<[Entry]>> {
        self.state.lock().current.get(number, ino)
    }

    /// Lets go of a listing that was read to its end, whether it was kept or not; remembers its order.
    pub fn finish(&self, number: u32, ino: u64, entries: &[Entry]) {
        self.state.lock().current.remove(number);
        if entries.len() >= FEW {
            self.remember(number, ino, entries);
        }
    }

    fn remember(&self, number: u32, ino: u64, entries: &[Entry]) {
        let hashes = entries.iter().map(|entry| self.hash(&entry.name)).collect();
        let mut state = self.state.lock();
        state.past.keep(number, ino, hashes);
        while state.past.surplus().is_some() {}
    }

    /// Puts what is there `now` into an order for a reader who has had the first `index` entries of a listing that is
    /// not kept any more: the entries that were among them come first; so many are they. `None` if its order is not
    /// remembered.
    pub fn go_on(&self, number: u32, ino: u64, index: usize, now: &[Entry]) -> Option<(Arc<[Entry]>, usize)> {
        let past = self.state.lock().past.get(number, ino)?;
        let had: HashSet<u64> = past.iter().take(index).copied().collect();
        let (before, behind): (Vec<&Entry>, _) =
            now.iter().partition(|entry| had.contains(&self.hash(&entry.name)));
        let index = before.len();
        Some((before.into_iter().chain(behind).cloned().collect(), index))
    }

    /// How many are kept.
    pub fn len(&self) -> usize {
        self.state.lock().current.kept.len()
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

    fn entries(count: usize) -> Arc<[Entry]> {
        named(std::iter::repeat_n("x".to_owned(), count))
    }

    fn named(names: impl Iterator<Item = String>) -> Arc<[Entry]> {
        let entry = |name: String| Entry {
            name: OsStr::new(&name).into(),
            ino: None,
            kind: FileType::RegularFile,
            layer: 0,
        };
        names.map(entry).collect()
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
        let third = listings.get(numbers[2], 7).unwrap();
        listings.finish(numbers[2], 7, &third);
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
    fn what_is_not_kept_goes_on_with_what_had_not_come() {
        let listings = Listings::default();
        let all = named((0..100).map(|i| format!("f{i}")));
        let finished = listings.number();
        listings.finish(finished, 7, &all);
        let crowded_out = listings.number();
        listings.keep(crowded_out, 7, Arc::clone(&all));
        for _ in 0..MOST_LISTINGS {
            listings.keep(listings.number(), 8, entries(1));
        }
        // Some that came before are gone, some that come later, and one is new.
        let now = named((5..90).map(|i| format!("f{i}")).chain(["new".to_owned()]));
        for number in [finished, crowded_out] {
            assert!(listings.get(number, 7).is_none() && listings.go_on(number, 8, 10, &now).is_none());
            let (all, index) = listings.go_on(number, 7, 10, &now).unwrap();
            assert_eq!((all.len(), index), (now.len(), 5));
            let names: Vec<_> = all[index..].iter().map(|entry| entry.name.to_str().unwrap()).collect();
            assert_eq!(
                names,
                (10..90).map(|i| format!("f{i}")).chain(["new".to_owned()]).collect::<Vec<_>>()
            );
        }
        // Not of all that ever were.
        for _ in 0..MOST_PAST {
            listings.finish(listings.number(), 9, &all);
        }
        assert!(listings.go_on(finished, 7, 10, &now).is_none());
        assert_eq!(listings.state.lock().past.entries, MOST_PAST * 100);
    }

    #[test]
    fn numbers_come_again_late() {
        let listings = Listings::default();
        let first = listings.number();
        let all: HashSet<u32> = (1..MOST_NUMBERS).map(|_| listings.number()).collect();
        assert!(!all.contains(&first) && !all.contains(&0));
        assert_eq!(listings.number(), first);
        // Not while it is in use; and then the former listing with this number is forgotten.
        let second = listings.number();
        listings.keep(second, 7, entries(1));
        listings.finish(first, 7, &entries(FEW));
        let all: HashSet<u32> = (2..MOST_NUMBERS).map(|_| listings.number()).collect();
        assert!(!all.contains(&second));
        assert!(listings.go_on(first, 7, 1, &entries(1)).is_some());
        assert_eq!(listings.number(), first);
        assert!(listings.go_on(first, 7, 1, &entries(1)).is_none());
    }
}
