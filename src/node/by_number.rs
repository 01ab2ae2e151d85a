//! Maps by numbers of ours or of the layers' filesystems, which no user chooses: a hash that is cheap rather than
//! hard to guess.

use std::hash::{BuildHasherDefault, Hasher};

/// For maps whose keys are numbers.
pub type ByNumber = BuildHasherDefault<NumberHasher>;

/// Spreads numbers that differ in few bits over all bits of the hash.
#[derive(Debug, Default, Clone, Copy)]
pub struct NumberHasher(u64);

impl Hasher for NumberHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, number: u64) {
        // The golden ratio of 2^64; the product's upper half depends on all bits of the number, and the maps take
        // bits from both ends.
        let product = u128::from(self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835);
        self.0 = (product >> 64) as u64 ^ product as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::hash::BuildHasher;

    #[test]
    fn numbers_in_a_row_are_spread() {
        let hash = |n: u64| ByNumber::default().hash_one(n);
        for bits in [|h: u64| h >> 57, |h: u64| (h << 7) >> 57, |h: u64| h & 0x7f] {
            let seen: HashSet<u64> = (0..1024).map(|n| bits(hash(n))).collect();
            assert!(seen.len() > 100, "{}", seen.len());
            let seen: HashSet<u64> = (0..1024).map(|n| bits(hash(n << 40))).collect();
            assert!(seen.len() > 100, "{}", seen.len());
        }
    }
}
