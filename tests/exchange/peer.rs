//! Other union filesystems, mounted on the layers of a test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::{self, Union, files, is_mounted, overlay, text, tree};

/// Another union filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Peer {
    /// The kernel's overlayfs with its defaults.
    Kernel,
    /// The kernel's overlayfs with redirects, index and metacopy.
    KernelAll,
    /// The kernel's overlayfs with its private xattrs in `user.overlay.`.
    KernelUser,
    /// fuse-overlayfs 1.10, as Debian 12 packages it.
    Fuse1,
    /// fuse-overlayfs 2.0, the crate.
    Fuse2,
}

impl Peer {
    /// What a reader of a failure knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kernel => "overlayfs",
            Self::KernelAll => "overlayfs with redirect_dir, index, metacopy",
            Self::KernelUser => "overlayfs with userxattr",
            Self::Fuse1 => "fuse-overlayfs 1.10",
            Self::Fuse2 => "fuse-overlayfs 2.0",
        }
    }

    /// Whether it keeps the names of a lower hardlink together when one is copied up.
    pub fn keeps_hardlinks(self) -> bool {
        self == Self::KernelAll
    }

    /// Whether it finds the lower part of a directory that was renamed.
    pub fn follows_redirects(self) -> bool {
        matches!(self, Self::Kernel | Self::KernelAll)
    }

    /// Whether it gives the number of names of a file right.
    pub fn counts_names(self) -> bool {
        !matches!(self, Self::Fuse1 | Self::Fuse2)
    }

    /// Whether it does not hang on a FIFO in its layers.
    pub fn bears_fifos(self) -> bool {
        self != Self::Fuse1
    }

    /// Why it cannot be had here, if so.
    pub fn missing(self) -> Option<String> {
        let (program, version) = match self {
            Self::Fuse1 => (PathBuf::from("/usr/bin/fuse-overlayfs"), "1."),
            Self::Fuse2 => (fuse2(), "2."),
            _ => return None,
        };
        let said = Command::new(&program).arg("--version").output().map(|out| text(&out)).unwrap_or_default();
        let there = said.lines().any(|l| {
            let l = l.to_lowercase();
            l.contains("fuse-overlayfs") && l.split_whitespace().any(|w| w.starts_with(version))
        });
        (!there).then(|| format!("{} is not at {}: tools/peers installs it", self.name(), program.display()))
    }

    /// Mounts the layers of `union` at its mount point.
    pub fn mount(self, union: &Union) {
        match self {
            // Without an index the kernel takes no upper that had one.
            Self::Kernel => overlay::mount(union, &[("index", "off"), ("metacopy", "off")]),
            Self::KernelAll => {
                overlay::mount(union, &[("redirect_dir", "on"), ("index", "on"), ("metacopy", "on")]);
            }
            Self::KernelUser => overlay::mount(union, &[("userxattr", ""), ("index", "off")]),
            Self::Fuse1 => fuse(union, Path::new("/usr/bin/fuse-overlayfs")),
            Self::Fuse2 => fuse(union, &fuse2()),
        }
    }

    /// Unmounts, and waits for the daemon: that of fuse-overlayfs 2.0 unmounts what is at its mount point
    /// once more before it ends, whatever it is by then.
    pub fn unmount(self, union: &mut Union) {
        union.unmount();
        let mnt = union.mnt();
        let serves = |pid: std::fs::DirEntry| {
            let args = std::fs::read(pid.path().join("cmdline")).unwrap_or_default();
            let mut args = args.split(|&b| b == 0);
            args.next().is_some_and(|program| program.ends_with(b"fuse-overlayfs"))
                && args.any(|arg| arg == mnt.as_os_str().as_encoded_bytes())
        };
        let gone = || !std::fs::read_dir("/proc").unwrap().flatten().any(serves);
        assert!(common::wait_for(gone), "{} does not end", self.name());
    }

    /// Reads what it shows, leaving out what it is known to tell wrong.
    pub fn read(self, union: &Union) -> tree::Tree {
        let mut tree = with_dir_times(&union.mnt(), tree::read_overlay(&union.mnt()));
        self.forgive(&mut tree);
        tree
    }

    /// Takes out of a tree what this peer tells wrong.
    pub fn forgive(self, tree: &mut tree::Tree) {
        if !self.counts_names() {
            for node in tree.values_mut() {
                node.nlink = 0;
                // Times of what was just written come and go with its caches.
                if node.mtime.0 > 1_600_000_000 {
                    node.mtime = (i64::MAX, 0);
                }
            }
        }
    }
}

fn fuse2() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin/fuse-overlayfs")
}

fn fuse(union: &Union, program: &Path) {
    let mut options = format!("lowerdir={}", union.lower_list().to_str().unwrap());
    if !union.is_read_only() {
        // It leaves things in the work directory that are not for others.
        files::dir(union.dir().join("peer-work"));
        let (upper, work) = (union.upper(""), union.dir().join("peer-work"));
        options += &format!(",upperdir={},workdir={}", upper.display(), work.display());
    }
    let mut said = String::new();
    // Under load it gives up at times before the kernel has answered.
    for _ in 0..5 {
        let mut command = Command::new("timeout");
        let out = command.arg("20").arg(program).args(["-o", &options]).arg(union.mnt()).output().unwrap();
        if out.status.success() && common::wait_at_most(Duration::from_secs(5), || is_mounted(&union.mnt())) {
            return;
        }
        said = format!("{}: {}", out.status, text(&out));
    }
    panic!("{}: {said}", program.display());
}

/// The tree with the modification times of its directories.
pub fn with_dir_times(root: &Path, mut tree: tree::Tree) -> tree::Tree {
    use std::os::unix::fs::MetadataExt;
    for (rel, node) in &mut tree {
        // The root's own is that of the layer that was made last.
        if node.mode & libc::S_IFMT == libc::S_IFDIR && !rel.as_os_str().is_empty() {
            let meta = root.join(rel).symlink_metadata().unwrap();
            node.mtime = (meta.mtime(), meta.mtime_nsec());
        }
    }
    tree
}

/// What our mount shows.
pub fn ours(union: &Union) -> tree::Tree {
    let mnt = union.mnt();
    // A copy of a special file has no place for its origin in `user.` attributes, nor so for its number.
    let tree = if union.has_option("userxattr") { tree::read_overlay(&mnt) } else { tree::read(&mnt) };
    with_dir_times(&mnt, tree)
}
