//! What is done with an input: the targets of the fuzzer, and the tests that replay what it was given.
//!
//! An input fails by a panic: of the program, or of a check here. All is done below a temporary directory, best on a
//! tmpfs: the directory that `UNIONFS_FUZZ_DIR` names, `/dev/shm` unless set.

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::XattrFlags;
use tempfile::TempDir;
use unionfs::check::{Check, Finding, Repair, Report};
use unionfs::config::{LayerPaths, Options};
use unionfs::format::names::{Mark, Namespace};
use unionfs::format::{acl, mountinfo, names, nlink, origin, override_stat, redirect};
use unionfs::layer::look::look;
use unionfs::layer::stack::Stack;
use unionfs::merge::listing;
use unionfs::merge::lookup::{Found, lookup, root};
use unionfs::merge::lowers::Parts;
use unionfs::oci::Watch;
use unionfs::oci::apply::apply;
use unionfs::oci::tar::{Entry, EntryKind, Limits, Writer};
use unionfs::oci::wanted::Wanted;

/// A directory with something beside that must stay as it is.
struct Yard(TempDir);

thread_local! {
    static YARD: OnceCell<Yard> = const { OnceCell::new() };
}

impl Yard {
    fn new() -> Self {
        let below =
            std::env::var_os("UNIONFS_FUZZ_DIR").map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from);
        let below = if below.is_dir() { below } else { std::env::temp_dir() };
        let dir = tempfile::Builder::new().prefix("unionfs-fuzz").tempdir_in(below).unwrap();
        std::fs::create_dir(dir.path().join("outside")).unwrap();
        std::fs::write(dir.path().join("outside/secret"), "secret").unwrap();
        Self(dir)
    }

    fn with(run: impl FnOnce(&Path)) {
        YARD.with(|yard| {
            let yard = yard.get_or_init(Self::new);
            run(yard.0.path());
            yard.check();
        });
    }

    fn check(&self) {
        let secret = self.0.path().join("outside/secret");
        let meta = secret.symlink_metadata().unwrap();
        assert!(meta.is_file() && meta.nlink() == 1 && meta.len() == 6, "what lies outside was changed");
        assert_eq!(std::fs::read(secret).unwrap(), b"secret");
        assert_eq!(std::fs::read_dir(self.0.path().join("outside")).unwrap().count(), 1);
        assert_eq!(std::fs::read_dir(self.0.path()).unwrap().count(), 1, "something is left behind");
    }
}

#[derive(Debug)]
struct Silent;

impl Watch for Silent {
    fn begin(&self, _what: &str, _bytes: Option<u64>) {}
    fn step(&self, _bytes: u64) {}
    fn end(&self) {}
}

impl Report for Silent {
    fn found(&mut self, finding: Finding) {
        let line = format!("{} {}", finding.place, finding.says);
        assert!(!line.contains(char::is_control), "a line of text has control characters: {line:?}");
    }
    fn looked_at(&mut self, _entries: u64) {}
}

/// Applies an archive; it comes about whole, or nothing is left.
fn apply_bytes(bytes: &[u8], limits: Limits, rootless: bool) {
    Yard::with(|yard| {
        let target = yard.join("layer");
        let wanted = Wanted { limits, rootless, ..Wanted::default() };
        let applied = apply(bytes, Path::new("input"), &target, &wanted, &Silent);
        assert_eq!(applied.is_ok(), target.exists(), "{applied:?}");
        if applied.is_ok() {
            // What was made can be read as a layer, and no symlink in it is followed.
            walk_layers(std::slice::from_ref(&target), None);
            remove(&target);
        }
    });
}

fn remove(tree: &Path) {
    // Immutable flags and the like are not set by archives; directories may be without permissions, which only
    // an ordinary user notices.
    if std::fs::remove_dir_all(tree).is_err() {
        let _ = std::process::Command::new("chmod").args(["-R", "u+rwx"]).arg(tree).status();
        std::fs::remove_dir_all(tree).unwrap();
    }
}

const LIMITS: Limits = Limits { entries: 500, content: 1 << 18, records: 1 << 14 };

/// An archive as it is, but for the check sums of its headers, which a fuzzer would not find.
pub fn archive(data: &[u8]) {
    let mut bytes = data.to_vec();
    for block in bytes.chunks_exact_mut(512).filter(|b| b[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    }
    apply_bytes(&bytes, LIMITS, false);
}

/// Gives bytes one by one, and zeros when there are none left.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn next(&mut self) -> u8 {
        match self.0.split_first() {
            Some((first, rest)) => {
                self.0 = rest;
                *first
            }
            None => 0,
        }
    }

    fn take(&mut self, n: usize) -> Vec<u8> {
        let n = n.min(self.0.len());
        let (first, rest) = self.0.split_at(n);
        self.0 = rest;
        first.to_vec()
    }

    /// A path of few names, so that entries meet, with the ways out that are known.
    fn path(&mut self) -> Vec<u8> {
        const NAMES: [&[u8]; 16] = [
            b"a",
            b"b",
            b"c",
            b".",
            b"..",
            b"",
            b".wh.a",
            b".wh.b",
            b".wh..wh..opq",
            b".wh.",
            b".wh...",
            b".wh..",
            b"outside",
            b"secret",
            b"#0",
            b"\xff\n",
        ];
        let byte = self.next();
        let depth = usize::from(byte & 3) + 1;
        let mut path = if byte & 0x40 != 0 { b"/".to_vec() } else { Vec::new() };
        for i in 0..depth {
            if i > 0 {
                path.push(b'/');
            }
            path.extend_from_slice(NAMES[usize::from(self.next() & 15)]);
        }
        path
    }

    fn entry(&mut self) -> Entry {
        let kind = self.next();
        let path = self.path();
        let kind = match kind & 7 {
            0 | 1 => EntryKind::File(u64::from(self.next()) * 7),
            2 | 3 => EntryKind::Dir,
            4 => EntryKind::Symlink(match self.next() & 3 {
                0 => b"../outside".to_vec(),
                1 => b"../../../../../../../../dev/shm".to_vec(),
                _ => self.path(),
            }),
            5 => EntryKind::Hardlink(self.path()),
            6 => EntryKind::Char(u32::from(self.next() & 1), u32::from(self.next() & 3)),
            _ => EntryKind::Fifo,
        };
        let mut entry = Entry {
            path,
            kind,
            mode: u32::from(self.next()) << 4,
            uid: u32::from(self.next()),
            gid: 0,
            mtime: (i64::from(self.next()), 0),
            xattrs: Default::default(),
        };
        let attribute = self.next();
        if attribute & 0x80 != 0 {
            const ATTRIBUTES: [&str; 8] = [
                "user.x",
                "trusted.overlay.opaque",
                "trusted.overlay.redirect",
                "user.overlay.whiteout",
                "security.capability",
                "system.posix_acl_access",
                "user.containers.override_stat",
                "trusted.overlay.overlay.x",
            ];
            let value = self.take(usize::from(attribute & 0x38));
            entry.xattrs.insert(ATTRIBUTES[usize::from(attribute & 7)].into(), value);
        }
        entry
    }
}

/// An archive of entries that the input chooses: what a fuzzer reaches late by bytes.
pub fn entries(data: &[u8]) {
    let mut bytes = Bytes(data);
    let rootless = bytes.next() & 1 == 1;
    let mut writer = Writer::new(Vec::new());
    for _ in 0..24 {
        if bytes.0.is_empty() {
            break;
        }
        // One that cannot be written is none.
        if writer.append(&bytes.entry(), std::io::repeat(b'x')).is_err() {
            return;
        }
    }
    if let Ok(archive) = writer.finish() {
        apply_bytes(&archive, LIMITS, rootless);
    }
}

/// What is on disk, or comes from the kernel, as bytes: nothing panics, and what was read is written the same.
pub fn formats(data: &[u8]) {
    let Some((which, value)) = data.split_first() else { return };
    match which % 8 {
        0 => {
            if let Some(origin) = origin::Origin::decode(value) {
                let _ = (origin.inode(), origin.index_name());
                assert_eq!(origin.encode().and_then(|v| origin::Origin::decode(&v)), Some(origin));
            }
        }
        1 => match redirect::Redirect::decode(value) {
            Some(redirect::Redirect::Sibling(name)) => {
                assert!(!name.as_bytes().contains(&b'/') && name != ".." && name != ".");
                assert_eq!(name.as_bytes(), value);
            }
            Some(redirect::Redirect::Absolute(path)) => {
                assert!(
                    path.iter()
                        .all(|name| !name.as_bytes().contains(&b'/') && name != ".." && !name.is_empty())
                );
                let encoded = redirect::Redirect::encode_absolute(path.iter().map(AsRef::as_ref));
                assert!(encoded.is_none_or(|e| e == value));
            }
            None => {}
        },
        2 => {
            if let Some(found) = override_stat::Override::decode(value) {
                assert_eq!(override_stat::Override::decode(&found.encode()), Some(found));
            }
        }
        3 => {
            let mut acl = value.to_vec();
            acl::map_ids(&mut acl, |id| id.wrapping_add(1), |id| id.wrapping_add(1));
            acl::map_ids(&mut acl, |id| id.wrapping_sub(1), |id| id.wrapping_sub(1));
            assert_eq!(acl, value);
        }
        4 => {
            for entry in mountinfo::parse(value) {
                let _ = mountinfo::is_unionfs(&entry);
            }
        }
        5 => {
            let name = OsStr::from_bytes(value);
            let stored = names::to_layer(name);
            assert!(stored == name || names::from_layer(&stored).as_deref() == Some(name));
            assert!(!names::is_private(&stored) || stored == name);
            if let Some(target) = names::wh_target(name) {
                assert_eq!(names::wh_name(target).as_deref().unwrap_or(name), name);
            }
        }
        6 => {
            if let Some(diff) = nlink::NlinkDiff::decode(value) {
                let _ = (diff.apply(0), diff.apply(u32::MAX));
                assert_eq!(nlink::NlinkDiff::decode(&diff.encode()), Some(diff));
            }
        }
        _ => {
            let _ = mountinfo::top_at(&mountinfo::parse(value), Path::new("/"));
        }
    }
}

/// Looks everything up that can be reached, within bounds.
fn walk_layers(lowers: &[PathBuf], upper: Option<&Path>) {
    let layers = LayerPaths {
        lowers: lowers.to_vec(),
        upper: Some(upper.map_or_else(|| lowers[0].with_file_name("empty"), Path::to_path_buf)),
        ..LayerPaths::default()
    };
    let empty = layers.upper.clone().filter(|_| upper.is_none());
    if let Some(empty) = &empty {
        std::fs::create_dir(empty).unwrap();
    }
    let walk = || -> Option<()> {
        let (upper, _, fds) = look(&layers).ok()?;
        let stack = Stack::open_unchanged(upper, fds, &Options::default()).ok()?;
        let mut left = vec![(Parts::from(root(&stack).ok()?.parts), 0)];
        let mut steps = 0;
        while let Some((parts, depth)) = left.pop() {
            for entry in listing::list(&stack, &parts, false).ok()? {
                steps += 1;
                if let Ok(Found::Dir(dir)) = lookup(&stack, &parts, &entry.name)
                    && depth < 12
                    && steps < 2000
                {
                    left.push((Parts::from(dir.parts), depth + 1));
                }
            }
        }
        Some(())
    };
    walk();
    if let Some(empty) = empty {
        std::fs::remove_dir(empty).unwrap();
    }
}

/// Two lowers and an upper with marks that the input chooses: looked up, checked, repaired, checked again.
pub fn layers(data: &[u8]) {
    const PATHS: [&str; 8] = ["", "a", "a/b", "c", "a/file", "file", "a/b/deep", "c/other"];
    const MARKS: [Mark; 8] = [
        Mark::Opaque,
        Mark::Redirect,
        Mark::Origin,
        Mark::Impure,
        Mark::Nlink,
        Mark::Whiteout,
        Mark::Metacopy,
        Mark::PlainNames,
    ];
    let mut bytes = Bytes(data);
    Yard::with(|yard| {
        let all = yard.join("layers");
        let layer = |i: u8| all.join(["upper", "l0", "l1"][usize::from(i % 3)]);
        for i in 0..3 {
            std::fs::create_dir_all(layer(i).join("a/b/deep")).unwrap();
            std::fs::create_dir_all(layer(i).join("c/other")).unwrap();
            for file in ["file", "a/file"] {
                std::fs::write(layer(i).join(file), if i == 1 { "" } else { "data" }).unwrap();
            }
        }
        for part in ["work", "index", "gone"] {
            std::fs::create_dir_all(all.join("work").join(part)).unwrap();
        }
        for _ in 0..12 {
            if bytes.0.is_empty() {
                break;
            }
            let what = bytes.next();
            let place = layer(what & 3).join(PATHS[usize::from(what >> 2 & 7)]);
            let how = bytes.next();
            let len = usize::from(bytes.next() & 0x3f);
            let value = bytes.take(len);
            match how & 0x30 {
                0x30 => {
                    // A name that the input chooses, in the layer or in the work directory.
                    let name: Vec<u8> = value.into_iter().filter(|b| *b != 0 && *b != b'/').collect();
                    let dir = if how & 8 != 0 {
                        all.join("work").join(["work", "index", "gone", "work"][usize::from(how & 3)])
                    } else {
                        place
                    };
                    if !name.is_empty() && name != b"." && name != b".." {
                        let path = dir.join(OsStr::from_bytes(&name));
                        match how & 7 {
                            0 => drop(std::fs::create_dir(path)),
                            1 => drop(std::os::unix::fs::symlink("../outside", path)),
                            2 => drop(std::os::unix::fs::symlink("3", path)),
                            _ => drop(std::fs::File::create_new(path)),
                        }
                    }
                }
                ns => {
                    let ns = if ns == 0 { Namespace::User } else { Namespace::Trusted };
                    let name = MARKS[usize::from(how & 7)].name(ns);
                    let _ = rustix::fs::lsetxattr(&place, name, &value, XattrFlags::empty());
                }
            }
        }
        let lowers = [layer(1), layer(2)];
        walk_layers(&lowers, Some(&layer(0)));
        let paths = LayerPaths {
            lowers: lowers.to_vec(),
            upper: Some(layer(0)),
            work: Some(all.join("work")),
            ..LayerPaths::default()
        };
        let options = Options::default();
        for repair in [Repair::No, Repair::Safe, Repair::Tidy] {
            let _ = unionfs::check::run(&Check { layers: &paths, options: &options, repair }, &mut Silent);
        }
        walk_layers(&lowers, Some(&layer(0)));
        remove(&all);
    });
}
