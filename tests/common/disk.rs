//! Filesystems in files.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::FsWord;

use super::{TempDir, run, skip, temp_dir};

/// Whether a path lies on a filesystem of this kind, as statfs(2) numbers them.
pub fn lies_on(path: impl AsRef<Path>, kind: FsWord) -> bool {
    rustix::fs::statfs(path.as_ref()).unwrap().f_type == kind
}

/// A filesystem in a file, mounted.
pub struct Disk {
    /// Where.
    pub at: PathBuf,
    _dir: TempDir,
}

impl Disk {
    /// ext4 of this size in MiB, with so many inodes, and with directories for upper and work.
    pub fn ext4(size: u64, inodes: u32) -> Self {
        let inodes = inodes.to_string();
        // Nothing is kept for root, which the tests run as.
        let disk = Self::new(size, &["mkfs.ext4", "-q", "-F", "-m", "0", "-N", &inodes]);
        for name in ["upper", "work"] {
            std::fs::create_dir(disk.at.join(name)).unwrap();
        }
        disk
    }

    /// Btrfs; where there can be none, says so as a skip.
    pub fn btrfs() -> Option<Self> {
        Self::known("btrfs", 256, &["mkfs.btrfs", "-q"])
    }

    /// XFS; where there can be none, says so as a skip.
    pub fn xfs() -> Option<Self> {
        Self::known("xfs", 320, &["mkfs.xfs", "-q"])
    }

    fn known(kind: &str, size: u64, make: &[&str]) -> Option<Self> {
        if !std::fs::read_to_string("/proc/filesystems").unwrap().lines().any(|line| line.trim() == kind) {
            skip(&format!("the kernel has no {kind}"));
            return None;
        }
        Some(Self::new(size, make))
    }

    fn new(size: u64, make: &[&str]) -> Self {
        let dir = temp_dir();
        let (image, at) = (dir.path().join("image"), dir.path().join("disk"));
        std::fs::create_dir(&at).unwrap();
        std::fs::File::create(&image).unwrap().set_len(size << 20).unwrap();
        let [program, options @ ..] = make else { panic!("no program") };
        let options: Vec<_> = options.iter().map(OsStr::new).chain([image.as_os_str()]).collect();
        run(program, &options);
        run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), at.as_ref()]);
        Self { at, _dir: dir }
    }

    /// Makes a subvolume of Btrfs.
    pub fn subvolume(&self, name: &str) -> PathBuf {
        self.btrfs_command(&["-q", "subvolume", "create"], name);
        self.at.join(name)
    }

    /// Runs btrfs(8) with a path below the mount at the end.
    pub fn btrfs_command(&self, args: &[&str], path: &str) {
        let at = self.at.join(path);
        let args: Vec<_> = args.iter().map(OsStr::new).chain([at.as_os_str()]).collect();
        run("btrfs", &args);
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}
