//! Where nodes were that are gone, by number: for file handles of what the kernel has forgotten. Kept in few large
//! pieces: single allocations would lie scattered among those of the nodes, and keep their memory from being given
//! back.

use std::collections::{HashMap, VecDeque};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use crate::node::by_number::ByNumber;

/// How many are remembered; some 60 bytes each.
const REMEMBERED: usize = 1 << 16;

#[derive(Debug)]
struct Place {
    ino: u64,
    parent: u64,
    name_len: u16,
    /// Where its name begins, counted from the first name ever.
    name_at: u64,
}

/// The last places, by number.
#[derive(Debug, Default)]
pub(super) struct LastPlaces {
    places: VecDeque<Place>,
    names: VecDeque<u8>,
    /// The number of the first of `places`, counted from the first one ever.
    first: u64,
    /// Where `names` begins.
    names_begin: u64,
    index: HashMap<u64, u64, ByNumber>,
}

impl LastPlaces {
    /// Remembers the directory and name of a node.
    pub fn remember(&mut self, ino: u64, parent: u64, name: &OsStr) {
        // No filesystem has longer ones.
        let Ok(name_len) = u16::try_from(name.len()) else { return };
        if self.places.len() >= REMEMBERED {
            self.drop_first();
        }
        self.index.insert(ino, self.first + self.places.len() as u64);
        let name_at = self.names_begin + self.names.len() as u64;
        self.places.push_back(Place { ino, parent, name_len, name_at });
        self.names.extend(name.as_bytes());
    }

    fn drop_first(&mut self) {
        let Some(place) = self.places.pop_front() else { return };
        // It may have been remembered again since.
        if self.index.get(&place.ino) == Some(&self.first) {
            self.index.remove(&place.ino);
        }
        self.first += 1;
        self.names.drain(..usize::from(place.name_len).min(self.names.len()));
        self.names_begin += u64::from(place.name_len);
    }

    /// Forgets a node.
    pub fn forget(&mut self, ino: u64) {
        self.index.remove(&ino);
    }

    /// The directory and name that a node had.
    pub fn get(&self, ino: u64) -> Option<(u64, OsString)> {
        let number = self.index.get(&ino)?.checked_sub(self.first)?;
        let place = self.places.get(usize::try_from(number).ok()?)?;
        let begin = usize::try_from(place.name_at.checked_sub(self.names_begin)?).ok()?;
        let name = self.names.iter().skip(begin).take(usize::from(place.name_len)).copied().collect();
        Some((place.parent, OsString::from_vec(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_ones_are_remembered() {
        let mut places = LastPlaces::default();
        let count = REMEMBERED as u64 + 100;
        for ino in 0..count {
            places.remember(ino, ino + 1, OsStr::new(&format!("name{ino}")));
        }
        assert_eq!(places.get(99), None);
        for ino in [100, 101, count - 1] {
            assert_eq!(places.get(ino), Some((ino + 1, format!("name{ino}").into())));
        }
        places.forget(200);
        assert_eq!(places.get(200), None);
        // Again, elsewhere: the new place holds when the old one would go.
        places.remember(101, 5, OsStr::new(""));
        for ino in count..count + 1000 {
            places.remember(ino, 0, OsStr::new("x"));
        }
        assert_eq!(places.get(101), Some((5, OsString::new())));
        assert_eq!(places.places.len(), REMEMBERED);
        assert!(places.index.len() <= REMEMBERED);
    }
}
