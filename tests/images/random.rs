//! Random layers and random changes, the same for the same seed.

use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, RenameFlags};

use crate::common::files::{chmod, set_times, set_xattr};

/// A generator of numbers (splitmix64).
pub struct Random(u64);

const NAMES: [&str; 7] = ["a", "b", "c", "d", "e", "f", ".wh-no"];

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }

    fn path(&mut self, root: &Path) -> PathBuf {
        let depth = 1 + self.below(3);
        (0..depth).fold(root.to_owned(), |path, _| path.join(NAMES[self.below(NAMES.len())]))
    }

    /// Does something below `root`, which may fail: names are taken at random.
    pub fn change(&mut self, root: &Path) {
        let path = self.path(root);
        let other = self.path(root);
        let size = self.below(3000);
        match self.below(16) {
            // A FIFO would be waited for.
            0 | 1 if path.metadata().map_or(true, |m| m.is_file()) => {
                drop(std::fs::write(&path, vec![b'x'; size]));
            }
            2 | 3 => drop(std::fs::create_dir_all(&path)),
            4 => drop(std::fs::remove_file(&path)),
            5 => drop(std::fs::remove_dir_all(&path)),
            6..=8 => drop(std::fs::rename(&path, &other)),
            9 => drop(rustix::fs::renameat_with(CWD, &path, CWD, &other, RenameFlags::EXCHANGE)),
            10 | 11 => drop(std::fs::hard_link(&path, &other)),
            12 => drop(std::os::unix::fs::symlink("../target", &path)),
            13 if path.symlink_metadata().is_ok_and(|m| !m.is_symlink()) => {
                chmod(&path, if size.is_multiple_of(2) { 0o700 } else { 0o755 });
            }
            14 => drop(rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0)),
            15 if path.symlink_metadata().is_ok_and(|m| m.is_file() || m.is_dir()) => match size % 3 {
                0 => set_xattr(&path, "user.x", b"value\nwith lines"),
                1 => set_times(&path, (7, 0), (size as i64, 5)),
                _ => drop(rustix::fs::removexattr(&path, "user.x")),
            },
            _ => {}
        }
    }
}
