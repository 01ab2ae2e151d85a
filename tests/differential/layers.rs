//! Random layers.

use std::os::unix::fs::{lchown, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::select;
use rustix::fs::{CWD, FileType, Mode};

use crate::common::files;

/// Names, few enough that layers and operations meet.
pub const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// A path of one to three names.
#[derive(Clone, PartialEq, Eq)]
pub struct Rel(Vec<&'static str>);

impl Rel {
    /// The path below a root.
    pub fn at(&self, root: &Path) -> PathBuf {
        self.0.iter().fold(root.to_owned(), |p, n| p.join(n))
    }
}

impl std::fmt::Debug for Rel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.0.join("/"))
    }
}

/// Any path.
pub fn rel() -> impl Strategy<Value = Rel> {
    prop::collection::vec(select(&NAMES), 1..=3).prop_map(Rel)
}

/// Where a symlink points: always inside, sometimes nowhere.
pub fn target() -> impl Strategy<Value = String> {
    select(vec!["a", "b/a", "c", "./d", "a/../b", "nowhere"]).prop_map(String::from)
}

/// Permission bits.
pub fn mode() -> impl Strategy<Value = u32> {
    select(vec![0o644, 0o600, 0o755, 0o700, 0o4755, 0o2750, 0o1777, 0o000])
}

/// Something in a layer.
#[derive(Debug, Clone)]
pub struct Entry {
    path: Rel,
    kind: Kind,
    mode: u32,
    owner: u32,
    xattr: bool,
}

#[derive(Debug, Clone)]
enum Kind {
    File(usize),
    Dir {
        opaque: bool,
    },
    Symlink(String),
    /// Another name of the `n`th file of the layer.
    Hardlink(usize),
    Fifo,
    Whiteout,
}

/// Any entry.
pub fn entry() -> impl Strategy<Value = Entry> {
    let kind = prop_oneof![
        5 => prop_oneof![9 => 0..9000_usize, 1 => 100_000..300_000_usize].prop_map(Kind::File),
        4 => prop::bool::weighted(0.25).prop_map(|opaque| Kind::Dir { opaque }),
        1 => target().prop_map(Kind::Symlink),
        2 => (0..8_usize).prop_map(Kind::Hardlink),
        1 => Just(Kind::Fifo),
        2 => Just(Kind::Whiteout),
    ];
    (rel(), kind, mode(), select(vec![0, 0, 1000, 12345]), prop::bool::weighted(0.3))
        .prop_map(|(path, kind, mode, owner, xattr)| Entry { path, kind, mode, owner, xattr })
}

/// Makes a layer. Entries whose place is taken, or not there, are left out.
pub fn build(root: &Path, entries: &[Entry], hardlinks: bool) {
    let mut made: Vec<PathBuf> = Vec::new();
    for (i, entry) in entries.iter().enumerate() {
        let path = entry.path.at(root);
        if std::fs::create_dir_all(path.parent().unwrap()).is_err() || files::exists(&path) {
            continue;
        }
        match &entry.kind {
            Kind::File(size) => {
                std::fs::write(&path, content(*size, root.as_os_str().len() as u64 + i as u64)).unwrap();
                made.push(path.clone());
            }
            Kind::Dir { opaque } => {
                std::fs::create_dir(&path).unwrap();
                if *opaque {
                    files::make_opaque(&path);
                }
            }
            Kind::Symlink(target) => symlink(target, &path).unwrap(),
            Kind::Hardlink(n) => {
                if hardlinks && !made.is_empty() {
                    std::fs::hard_link(&made[n % made.len()], &path).unwrap();
                }
                continue;
            }
            Kind::Fifo => rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::empty(), 0).unwrap(),
            Kind::Whiteout => {
                files::whiteout(&path);
                continue;
            }
        }
        lchown(&path, Some(entry.owner), Some(entry.owner)).unwrap();
        let link = matches!(entry.kind, Kind::Symlink(_));
        if !link {
            files::chmod(&path, entry.mode);
        }
        if entry.xattr && matches!(entry.kind, Kind::File(_) | Kind::Dir { .. }) {
            files::set_xattr(&path, "user.layer", format!("{i}").as_bytes());
        }
    }
    // Old times, last, when nothing changes them any more.
    for path in all(root) {
        files::set_times(&path, (1_000_000_000, 5), (1_100_000_000 + path.as_os_str().len() as i64, 7));
    }
}

/// Bytes that differ between files and along a file.
pub fn content(size: usize, seed: u64) -> Vec<u8> {
    (0..size as u64).map(|i| ((i * 31 + seed * 977) >> 3) as u8).collect()
}

/// All paths below a directory, children first.
pub fn all(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for name in files::list(root) {
        let path = root.join(name);
        if path.symlink_metadata().unwrap().is_dir() {
            found.extend(all(&path));
        }
        found.push(path);
    }
    found
}
