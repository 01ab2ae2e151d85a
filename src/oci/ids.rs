//! Owners of an image's files on this machine.

use crate::config::ids::{Range, Ranges};

/// Ranges of numbers in an image and the ranges that they are on this machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMap(Ranges);

impl IdMap {
    /// Adds a range, written `IMAGE:HOST:COUNT` as in user_namespaces(7).
    ///
    /// # Errors
    /// What is wrong with the text.
    pub fn add(&mut self, text: &str) -> Result<(), &'static str> {
        let wrong = "is no range; write IMAGE:HOST:COUNT with three numbers";
        let numbers: Vec<u32> =
            text.split(':').map(str::parse).collect::<Result<_, _>>().map_err(|_| wrong)?;
        let [image, host, count] = numbers[..] else { return Err(wrong) };
        if count == 0 || image.checked_add(count).is_none() || host.checked_add(count).is_none() {
            return Err("is an impossible range; numbers go up to 4294967294, and COUNT is at least 1");
        }
        self.0.push(Range { layer: image, shown: host, len: count });
        Ok(())
    }

    /// The number on this machine. Without any range all stay as they are; with ranges, `None` for what is
    /// in none of them.
    pub fn host(&self, id: u32) -> Option<u32> {
        if self.0.is_empty() { Some(id) } else { self.0.shown(id) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_ranges() {
        let mut map = IdMap::default();
        assert_eq!(map.host(7), Some(7));
        map.add("0:1000:1").unwrap();
        map.add("1:100000:65535").unwrap();
        assert_eq!(
            [0, 1, 65535, 65536].map(|id| map.host(id)),
            [Some(1000), Some(100000), Some(165534), None]
        );
        for bad in ["", "1", "1:2", "1:2:3:4", "a:b:c", "1:2:0", "4294967295:0:1", "-1:0:1"] {
            assert!(map.add(bad).is_err(), "{bad}");
        }
    }
}
