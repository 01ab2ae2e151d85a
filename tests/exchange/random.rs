//! Random operations on random layers, by one and shown by another.

use std::path::Path;
use std::process::Command;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::common::{Union, skip, text, tree};
use crate::flat::flatten;
use crate::formats::{Form, convert};
use crate::layers;
use crate::need_unionfs;
use crate::ops::{self, Handles, Listing, Op};
use crate::peer::{Peer, ours, with_dir_times};

/// What the layers hold, what the author does, and what the next one does.
#[derive(Debug, Clone)]
struct Case {
    layers: Vec<Vec<layers::Entry>>,
    ops: Vec<Op>,
    more: Vec<Op>,
}

fn case() -> impl Strategy<Value = Case> {
    let layers = prop::collection::vec(prop::collection::vec(layers::entry(), 0..14), 2..=4);
    let ops = || prop::collection::vec(ops::op(), 0..=80);
    (layers, ops(), ops()).prop_map(|(layers, ops, more)| Case { layers, ops, more })
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |s| s.parse().unwrap_or_else(|_| panic!("{name}: {s}")))
}

/// Runs random cases. A failure is shrunk and shown.
fn random(peer: Peer, run: impl Fn(Peer, &Case) -> Result<(), String>) {
    need_unionfs!();
    if let Some(reason) = peer.missing() {
        return skip(&reason);
    }
    let seed = number("UNIONFS_EXCHANGE_SEED", 7);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: number("UNIONFS_EXCHANGE_CASES", 12) as u32,
        failure_persistence: None,
        max_shrink_iters: 1000,
        max_shrink_time: 60_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    match runner.run(&case(), |case| run(peer, &case).map_err(TestCaseError::fail)) {
        Ok(()) => {}
        Err(TestError::Fail(reason, case)) => {
            panic!("{}, seed {seed}: {reason}\nshrunk to {case:#?}", peer.name())
        }
        Err(TestError::Abort(reason)) => panic!("{}, seed {seed}: {reason}", peer.name()),
    }
}

/// The layers, on disk. Hardlinks only for peers that keep them together; and with all their names in
/// sight, since who reads the layers cannot know how many the author counted.
fn build(peer: Peer, case: &Case) -> Union {
    let union = Union::new(case.layers.len());
    let paths: Vec<_> = (0..union.lowers()).map(|i| union.lower(i, "")).collect();
    for (path, entries) in paths.iter().zip(&case.layers) {
        layers::build(path, entries, peer.keeps_hardlinks());
    }
    flatten(&paths, &union.dir().join("flat"));
    if peer == Peer::KernelUser {
        paths.iter().for_each(|path| convert(path, Form::DeviceUser));
    }
    if !peer.bears_fifos() {
        paths.iter().for_each(|path| remove_hard_ones(path));
    }
    union
}

/// Removes what fuse-overlayfs 1.10 stumbles over: FIFOs, which it waits for, and symlinks that lead to
/// themselves, for which it shows nothing when another layer has a directory of the name.
fn remove_hard_ones(dir: &Path) {
    use std::os::unix::fs::FileTypeExt;
    for entry in std::fs::read_dir(dir).unwrap().map(|e| e.unwrap()) {
        let kind = entry.file_type().unwrap();
        if kind.is_fifo() || kind.is_symlink() {
            std::fs::remove_file(entry.path()).unwrap();
        } else if kind.is_dir() {
            remove_hard_ones(&entry.path());
        }
    }
}

fn can_be_listed(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| {
        entries.all(|entry| {
            entry.is_ok_and(|e| !e.file_type().is_ok_and(|kind| kind.is_dir()) || can_be_listed(&e.path()))
        })
    })
}

/// Does operations, as far as the peer is able to bear them and the reader to understand what they leave.
fn work(peer: Peer, root: &Path, ops: &[Op], directories: bool) {
    let mut handles = Handles::default();
    for op in ops {
        if !can_be_listed(root) {
            // fuse-overlayfs 1.10 answers ENOMEM at times.
            break;
        }
        let listing = Listing::new(root);
        if let Op::Rename { from, .. } = op
            && !directories
            && root.join(from.find(&listing)).symlink_metadata().is_ok_and(|m| m.is_dir())
        {
            continue;
        }
        if matches!(op, Op::Mkfifo { .. }) && !peer.bears_fifos() {
            continue;
        }
        let _ = ops::apply(op, root, &listing, &mut handles, 0);
    }
}

fn same(what: &str, author: &tree::Tree, reader: &tree::Tree) -> Result<(), String> {
    let lines = tree::diff(author, reader);
    if lines.is_empty() { Ok(()) } else { Err(format!("{what}, author left:\n{}", lines.join("\n"))) }
}

fn copy(from: &Path, to: &Path) {
    let out = Command::new("rsync").arg("-aHAX").arg(from.join("")).arg(to.join("")).output().unwrap();
    // 24: the kernel's overlayfs lists what is not there.
    assert!(matches!(out.status.code(), Some(0 | 24)), "{}", text(&out));
}

/// What the peer shows of the layers, without what it tells differently from one time to the next.
fn by_peer(peer: Peer, union: &mut Union) -> tree::Tree {
    peer.mount(union);
    let tree = peer.read(union);
    peer.unmount(union);
    fair(peer, tree)
}

fn by_ours(peer: Peer, union: &mut Union) -> tree::Tree {
    union.mount();
    let tree = ours(union);
    union.unmount();
    fair(peer, tree)
}

fn fair(peer: Peer, mut tree: tree::Tree) -> tree::Tree {
    peer.forgive(&mut tree);
    if peer == Peer::Fuse1 {
        // Which names are one file it does not always tell; the scripted cases have those that it does.
        tree.values_mut().for_each(|n| n.same_as = Default::default());
    }
    tree
}

/// The peer works, and we show its layers: as lowers, as lowers below an upper, and going on in its upper.
fn theirs(peer: Peer, case: &Case) -> Result<(), String> {
    let mut union = build(peer, case);
    peer.mount(&union);
    work(peer, &union.mnt(), &case.ops, true);
    peer.unmount(&mut union);

    let mut below = Union::stacked(&union).read_only();
    let shown = by_peer(peer, &mut below);
    same("as lowers", &shown, &by_ours(peer, &mut below))?;
    drop(below);
    let mut below = Union::stacked(&union);
    let shown = by_peer(peer, &mut below);
    below.mount();
    same("as lowers of an upper", &shown, &fair(peer, ours(&below)))?;
    go_on(peer, case, &below, "with their layers as lowers")?;
    below.unmount();
    drop(below);

    let shown = by_peer(peer, &mut union);
    union.mount();
    same("as upper", &shown, &fair(peer, ours(&union)))?;
    go_on(peer, case, &union, "in their upper")?;
    let shown = fair(peer, ours(&union));
    union.remount();
    same("after a remount", &shown, &fair(peer, ours(&union)))?;
    union.unmount();
    Ok(())
}

/// The same operations on the mount and on a copy of what it shows.
fn go_on(peer: Peer, case: &Case, union: &Union, what: &str) -> Result<(), String> {
    let (mnt, flat) = (&union.mnt(), &union.dir().join("copy"));
    copy(mnt, flat);
    let begin =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64 - 2;
    let mut handles = (Handles::default(), Handles::default());
    for (i, op) in case.more.iter().enumerate() {
        let listing = Listing::new(flat);
        let here = ops::apply(op, mnt, &listing, &mut handles.0, begin);
        if here == Err(rustix::io::Errno::XDEV) {
            continue;
        }
        let there = ops::apply(op, flat, &listing, &mut handles.1, begin);
        // How many names there were was not the peer's to tell.
        let loose = |seen| match seen {
            Ok(ops::Seen::Stat { mode, owner, size, .. }) => {
                Ok(ops::Seen::Stat { mode, owner, size, nlink: 0, mtime: (0, 0) })
            }
            other => other,
        };
        let (here, there) = (loose(here), loose(there));
        if here != there {
            return Err(format!("{what}: operation {i}, {op:?}: mount {here:?}, copy {there:?}"));
        }
    }
    let coarse = |root: &Path| {
        let mut tree = fair(peer, with_dir_times(root, tree::read_overlay(root)));
        tree.remove(Path::new(""));
        for node in tree.values_mut() {
            // Names that a layer above hides count in the layer, and not in the copy.
            node.nlink = 0;
            // Times of fifos and of what changed meanwhile.
            node.mtime = ops::coarse(node.mode, node.mtime, begin);
            if node.mode & libc::S_IFMT == libc::S_IFDIR {
                node.mtime = (0, 0);
            }
        }
        tree
    };
    same(&format!("{what}, after more operations, mount left"), &coarse(mnt), &coarse(flat))
}

/// We work, and the peer shows our layers; it goes on, and we show what it did.
fn by_us(peer: Peer, case: &Case) -> Result<(), String> {
    let mut union = build(peer, case);
    if peer == Peer::KernelUser {
        union = union.option("userxattr");
    }
    union.mount();
    work(peer, &union.mnt(), &case.ops, peer.follows_redirects());
    let shown = fair(peer, ours(&union));
    union.unmount();

    // Names that we deleted of a lower hardlink still count for the peer.
    let uncounted = |mut tree: tree::Tree| {
        tree.values_mut().for_each(|n| n.nlink = 0);
        tree
    };
    same("as upper", &uncounted(shown), &uncounted(by_peer(peer, &mut union)))?;
    peer.mount(&union);
    work(peer, &union.mnt(), &case.more, true);
    peer.unmount(&mut union);
    let then = by_peer(peer, &mut union);
    same("back with us", &uncounted(then), &uncounted(by_ours(peer, &mut union)))?;

    let mut below = Union::stacked(&union).read_only();
    if peer == Peer::KernelUser {
        below = below.option("userxattr");
    }
    let shown = by_ours(peer, &mut below);
    same("as lowers", &shown, &by_peer(peer, &mut below))
}

macro_rules! directions {
    ($($name:ident: $peer:expr;)*) => {$(
        mod $name {
            use super::*;

            #[test]
            fn random_shown_by_us() {
                random($peer, theirs);
            }

            #[test]
            fn random_shows_ours() {
                random($peer, by_us);
            }
        }
    )*};
}

directions! {
    kernel: Peer::Kernel;
    kernel_all: Peer::KernelAll;
    kernel_user: Peer::KernelUser;
    fuse_overlayfs_1: Peer::Fuse1;
    fuse_overlayfs_2: Peer::Fuse2;
}
