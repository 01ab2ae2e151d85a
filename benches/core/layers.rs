//! Layers on the disk filesystem, and a union of them without a mount.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use tempfile::TempDir;
use unionfs::config::Options;
use unionfs::fs::{LayerFds, ROOT, UnionFs};

/// An upper, a work directory and lowers.
pub struct Layers {
    dir: TempDir,
    lowers: usize,
}

fn open(path: &Path) -> OwnedFd {
    File::open(path).unwrap().into()
}

/// A temporary directory, not on a tmpfs.
pub fn temp_dir() -> TempDir {
    tempfile::Builder::new().prefix("bench").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

impl Layers {
    /// So many lowers on the disk, each with a directory `d`.
    pub fn new(lowers: usize) -> Self {
        Self::below(temp_dir(), lowers)
    }

    /// The same on a tmpfs, if there is one: there, making and removing a file costs little beside what we do. ext4
    /// without a journal takes the longer, the more files were removed in the last minutes.
    pub fn in_memory(lowers: usize) -> Self {
        let dir = tempfile::Builder::new().prefix("bench").tempdir_in("/dev/shm");
        Self::below(dir.unwrap_or_else(|_| temp_dir()), lowers)
    }

    fn below(dir: TempDir, lowers: usize) -> Self {
        let layers = Self { dir, lowers };
        for i in 0..lowers {
            std::fs::create_dir_all(layers.lower(i).join("d")).unwrap();
        }
        layers
    }

    /// A lower's root; 0 is the topmost.
    pub fn lower(&self, i: usize) -> PathBuf {
        self.dir.path().join(format!("l{i}"))
    }

    /// The union of the lowers and a new, empty upper, which goes with the directory that is given too.
    pub fn union(&self, options: &Options) -> (UnionFs, TempDir) {
        let top = tempfile::Builder::new().tempdir_in(self.dir.path()).unwrap();
        let (upper, work) = (top.path().join("upper"), top.path().join("work"));
        std::fs::create_dir(&upper).unwrap();
        std::fs::create_dir(&work).unwrap();
        let fds = LayerFds {
            upper: Some((open(&upper), open(&work))),
            lowers: (0..self.lowers).map(|i| open(&self.lower(i))).collect(),
            ..LayerFds::default()
        };
        (UnionFs::open(fds, options).unwrap(), top)
    }
}

/// The number of a name in the root. Counts one lookup.
pub fn at_root(fs: &UnionFs, name: &str) -> u64 {
    fs.lookup(ROOT, OsStr::new(name)).unwrap().ino
}
