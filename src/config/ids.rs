//! Owners: numbers as the layers have them, and as the mount shows them.

use std::str::FromStr;

/// The number that stands for one without a place in the map, unless the system says otherwise
/// (proc_sys_kernel(5), `overflowuid` and `overflowgid`).
const DEFAULT_OVERFLOW: u32 = 65534;

/// A run of numbers: `layer..layer + len` in the layers is `shown..shown + len` in the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first number in the layers.
    pub layer: u32,
    /// The first number in the mount.
    pub shown: u32,
    /// How many there are.
    pub len: u32,
}

/// Ranges in the form of fuse-overlayfs(1): `LAYER:SHOWN:COUNT`, again and again, with colons between. Empty
/// fields count for nothing, so the list may begin with a colon, as container engines write it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges(Vec<Range>);

impl Ranges {
    /// Adds a range behind the others.
    pub fn push(&mut self, range: Range) {
        self.0.push(range);
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The number of the mount for one of the layers, by the first range that has it.
    pub fn shown(&self, id: u32) -> Option<u32> {
        self.find(id, |range| (range.layer, range.shown))
    }

    /// The number of the layers for one of the mount, by the first range that has it.
    pub fn stored(&self, id: u32) -> Option<u32> {
        self.find(id, |range| (range.shown, range.layer))
    }

    fn find(&self, id: u32, ends: impl Fn(&Range) -> (u32, u32)) -> Option<u32> {
        self.0.iter().find_map(|range| {
            let (from, to) = ends(range);
            let offset = id.checked_sub(from).filter(|offset| *offset < range.len)?;
            to.checked_add(offset)
        })
    }
}

impl FromStr for Ranges {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let fields: Vec<&str> = text.split(':').filter(|field| !field.is_empty()).collect();
        let (triples, []) = fields.as_chunks::<3>() else { return Err(()) };
        let number = |field: &str| field.parse::<u32>().map_err(drop);
        let range = |[layer, shown, len]: &[&str; 3]| {
            Ok(Range { layer: number(layer)?, shown: number(shown)?, len: number(len)? })
        };
        triples.iter().map(range).collect::<Result<_, ()>>().map(Self)
    }
}

/// How one kind of owner, users or groups, is translated. By default nothing is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMap {
    ranges: Ranges,
    squash: Option<u32>,
    overflow: u32,
}

impl Default for IdMap {
    fn default() -> Self {
        Self { ranges: Ranges::default(), squash: None, overflow: DEFAULT_OVERFLOW }
    }
}

impl IdMap {
    /// A translation by `ranges`; by none, numbers stay as they are.
    pub fn new(ranges: Ranges, squash: Option<u32>, overflow: u32) -> Self {
        Self { ranges, squash, overflow }
    }

    /// Whether every number stays as it is.
    pub fn is_identity(&self) -> bool {
        self.ranges.is_empty() && self.squash.is_none()
    }

    /// The number that the mount shows for one of the layers: the one that all are squashed to, or that of
    /// the first range that has it, or the overflow one.
    pub fn shown(&self, id: u32) -> u32 {
        self.squash.unwrap_or_else(|| self.translated(id, self.ranges.shown(id)))
    }

    /// The number that the layers keep for one of the mount. Squashing is for showing alone: what a caller
    /// makes belongs to the caller.
    pub fn stored(&self, id: u32) -> u32 {
        self.translated(id, self.ranges.stored(id))
    }

    fn translated(&self, id: u32, found: Option<u32>) -> u32 {
        if self.ranges.is_empty() { id } else { found.unwrap_or(self.overflow) }
    }
}

/// The translations of a mount (`uidmapping=`, `gidmapping=`, `squash_to_uid=`, `squash_to_gid=`,
/// `squash_to_root`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ids {
    /// Of users.
    pub users: IdMap,
    /// Of groups.
    pub groups: IdMap,
}

impl Ids {
    /// Whether every owner stays as it is.
    pub fn is_identity(&self) -> bool {
        self.users.is_identity() && self.groups.is_identity()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(text: &str) -> IdMap {
        IdMap::new(text.parse().unwrap(), None, 65534)
    }

    #[test]
    fn reads_ranges() {
        let one = Range { layer: 0, shown: 100_000, len: 65536 };
        let two = Range { layer: 65536, shown: 5, len: 1 };
        assert_eq!("0:100000:65536".parse(), Ok(Ranges(vec![one])));
        assert_eq!(":0:100000:65536".parse(), Ok(Ranges(vec![one])));
        assert_eq!(":0:100000:65536:65536:5:1".parse(), Ok(Ranges(vec![one, two])));
        assert_eq!("".parse(), Ok(Ranges::default()));
        for wrong in ["0", "0:1", "0:1:2:3", "a:1:2", "0:-1:2", "0:1:4294967296"] {
            assert_eq!(wrong.parse::<Ranges>(), Err(()), "{wrong}");
        }
    }

    #[test]
    fn translates_both_ways() {
        let map = map(":0:1000:1:1:110000:65536");
        for (layer, shown) in [(0, 1000), (1, 110_000), (65536, 175_535)] {
            assert_eq!((map.shown(layer), map.stored(shown)), (shown, layer));
        }
        // Those without a place.
        assert_eq!((map.shown(65537), map.stored(0), map.stored(109_999)), (65534, 65534, 65534));
        assert!(!map.is_identity() && IdMap::default().is_identity());
        assert_eq!(IdMap::default().shown(7), 7);
    }

    #[test]
    fn squashes_what_is_shown() {
        let squashed = IdMap::new("0:1000:10".parse().unwrap(), Some(3), 65534);
        assert_eq!((squashed.shown(0), squashed.shown(99)), (3, 3));
        assert_eq!((squashed.stored(1001), squashed.stored(3)), (1, 65534));
    }

    #[test]
    fn ends_of_the_numbers() {
        let map = map("4294967290:4294967295:10");
        assert_eq!((map.shown(4_294_967_290), map.shown(4_294_967_291)), (u32::MAX, 65534));
    }

    proptest! {
        #[test]
        fn what_is_shown_is_stored_as_it_was(
            start in 0_u32..1000, shown in 100_000_u32..200_000, len in 1_u32..70_000, offset in 0_u32..70_000,
        ) {
            let map = map(&format!("{start}:{shown}:{len}"));
            let id = start + offset % len;
            prop_assert_eq!(map.stored(map.shown(id)), id);
        }

        #[test]
        fn ranges_never_panic(text in "[0-9:x]{0,40}", id in any::<u32>()) {
            if let Ok(ranges) = text.parse() {
                let map = IdMap::new(ranges, None, 65534);
                map.shown(id);
                map.stored(id);
            }
        }
    }
}
