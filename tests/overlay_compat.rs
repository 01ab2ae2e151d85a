//! The kernel's overlayfs and we read and write the same layers: what one has made, the other shows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;
#[path = "differential/layers.rs"]
mod layers;
#[path = "differential/ops.rs"]
mod ops;

use std::path::Path;

use common::Union;
use common::files::{chmod, exists, get, list, put, set_xattr};
use common::overlay;
use common::tree::{self, Tree};
use ops::{Handles, Listing, Op};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

type Options = &'static [(&'static str, &'static str)];

const PLAIN: Options = &[];
const INDEX: Options = &[("index", "on")];
const FULL: Options = &[("index", "on"), ("redirect_dir", "on"), ("metacopy", "on")];

/// Whether the kernel mounts overlayfs with these options; says so if not.
fn kernel_has(options: Options) -> bool {
    let supported = std::fs::read_to_string("/proc/filesystems").unwrap().contains("\toverlay")
        || std::process::Command::new("modprobe").arg("overlay").status().is_ok_and(|s| s.success());
    let known = options.iter().all(|(k, _)| Path::new("/sys/module/overlay/parameters").join(k).exists());
    if !(supported && known) {
        common::skip(&format!("the kernel has no overlayfs with {options:?}"));
    }
    supported && known
}

/// Has overlayfs mount the layers while `f` looks at or changes them.
fn in_kernel<T>(u: &mut Union, options: Options, f: impl FnOnce(&Path) -> T) -> T {
    overlay::mount(u, options);
    let result = f(&u.mnt());
    u.unmount();
    result
}

/// Has the union mounted meanwhile.
fn in_union<T>(u: &mut Union, f: impl FnOnce(&Path) -> T) -> T {
    u.mount();
    let result = f(&u.mnt());
    u.unmount();
    result
}

/// Layers with something of each kind.
fn sample() -> Union {
    let u = Union::new(3);
    for i in 0..3 {
        put(u.lower(i, format!("d/only{i}")), format!("{i}"));
        put(u.lower(i, "d/all"), format!("{i}"));
        put(u.lower(i, format!("tree/{i}/deep/file")), vec![b'x'; 100_000]);
        put(u.lower(i, format!("gone{i}")), "gone");
    }
    put(u.lower(2, "h/one"), "hardlinked");
    std::fs::hard_link(u.lower(2, "h/one"), u.lower(2, "h/two")).unwrap();
    std::os::unix::fs::symlink("d/all", u.lower(1, "link")).unwrap();
    put(u.lower(1, "attr"), "attr");
    u
}

/// A change of each kind.
fn change(root: &Path) {
    let at = |rel: &str| root.join(rel);
    put(at("d/all"), "changed");
    put(at("new/dir/file"), "new");
    std::fs::remove_file(at("gone0")).unwrap();
    std::fs::remove_file(at("gone2")).unwrap();
    std::fs::remove_dir_all(at("tree/1")).unwrap();
    put(at("tree/1/replaced"), "opaque");
    std::fs::rename(at("d/only1"), at("d/renamed")).unwrap();
    put(at("h/two"), "changed by one name");
    std::fs::hard_link(at("attr"), at("attr2")).unwrap();
    chmod(at("attr"), 0o4711);
    set_xattr(at("attr"), "user.k", b"v");
    set_xattr(at("d"), "user.dir", b"v");
    chmod(at("tree/0"), 0o700);
    std::os::unix::fs::lchown(at("link"), Some(3), Some(4)).unwrap();
}

#[test]
fn the_kernel_shows_what_we_wrote() {
    need_unionfs!();
    // Without an index the kernel splits a hardlinked lower file of which one name was copied up.
    for (options, hardlinks) in [(PLAIN, false), (INDEX, true), (FULL, true)] {
        if !kernel_has(options) {
            continue;
        }
        let mut u = sample();
        let ours = in_union(&mut u, |root| {
            change(root);
            tree::read(root)
        });
        let mut ours = ours;
        let mut theirs = in_kernel(&mut u, options, tree::read_overlay);
        if !hardlinks {
            for tree in [&mut ours, &mut theirs] {
                tree.retain(|path, _| !path.starts_with("h/"));
            }
        }
        tree::assert_same(&format!("ours left, overlayfs {options:?} right"), &ours, &theirs);
    }
}

#[test]
fn we_show_what_the_kernel_wrote() {
    need_unionfs!();
    for options in [PLAIN, INDEX, FULL] {
        if !kernel_has(options) {
            continue;
        }
        let mut u = sample();
        let theirs = in_kernel(&mut u, options, |root| {
            change(root);
            if options == FULL {
                std::fs::rename(root.join("tree/2"), root.join("d/moved")).unwrap();
                chmod(root.join("d/moved/deep/file"), 0o600);
                chmod(root.join("tree/0/deep/file"), 0o600);
            }
            tree::read_overlay(root)
        });
        let ours = in_union(&mut u, tree::read);
        tree::assert_same(&format!("overlayfs {options:?} left, ours right"), &theirs, &ours);
        // And we can go on from there.
        in_union(&mut u, |root| {
            put(root.join("d/all"), "again");
            put(root.join("h/one"), "again");
            put(root.join("tree/0/deep/file"), "again");
            std::fs::remove_dir_all(root.join("tree/1")).unwrap();
        });
        in_kernel(&mut u, options, |root| {
            assert_eq!(get(root.join("d/all")), "again", "{options:?}");
            assert_eq!(get(root.join("tree/0/deep/file")), "again", "{options:?}");
            assert!(!exists(root.join("tree/1")), "{options:?}");
            if options == INDEX || options == FULL {
                assert_eq!(get(root.join("h/two")), "again", "{options:?}");
            }
        });
    }
}

#[test]
fn overlayfs_mounts_on_top_of_us() {
    need_unionfs!();
    if !kernel_has(PLAIN) {
        return;
    }
    let u = Union::new(2);
    put(u.lower(0, "d/a"), "a");
    put(u.lower(1, "d/b"), "b");
    let u = u.mounted();
    put(u.at("d/c"), "c");
    let top = Union::new(0);
    overlay::mount_lowers(&[u.mnt()], &top, PLAIN);
    assert_eq!(list(top.at("d")), ["a", "b", "c"]);
    put(top.at("d/b"), "changed");
    std::fs::remove_file(top.at("d/a")).unwrap();
    assert_eq!((get(top.at("d/b")), get(u.at("d/b"))), ("changed".into(), "b".into()));
    assert_eq!(list(top.at("d")), ["b", "c"]);
    assert_eq!(get(u.at("d/a")), "a");
}

/// Operations of which nothing stays open.
fn changes() -> impl Strategy<Value = Vec<Op>> {
    let op = ops::op().prop_filter("of one moment", |op| {
        !matches!(op, Op::Remount | Op::Check | Op::Open { .. } | Op::Close { .. })
    });
    prop::collection::vec(op, 0..25)
}

/// What both must agree on. The kernel copies a hardlinked file up when one of its names is removed, to
/// count the rest; we count without that, in a way that it does not know.
fn comparable(mut tree: Tree) -> Tree {
    tree.remove(Path::new(""));
    for node in tree.values_mut() {
        node.nlink = 0;
    }
    tree
}

fn alternate(
    options: Options,
    layers: &[Vec<layers::Entry>],
    rounds: &[Vec<Op>],
    log: &mut Vec<String>,
) -> Result<(), String> {
    let mut u = Union::new(layers.len());
    for (i, entries) in layers.iter().enumerate() {
        layers::build(&u.lower(i, ""), entries, options != PLAIN);
    }
    let mut before: Option<Tree> = None;
    for (i, changes) in rounds.iter().enumerate() {
        let kernel = i % 2 == 1;
        let who = if kernel { "overlayfs" } else { "the union" };
        let read = if kernel { tree::read_overlay } else { tree::read };
        let mut round = |root: &Path| {
            let found = comparable(read(root));
            if let Some(before) = before.take() {
                let lines = tree::diff(&before, &found);
                if !lines.is_empty() {
                    return Err(format!("round {i}: {who} (right) sees\n{}", lines.join("\n")));
                }
            }
            let mut handles = Handles::default();
            for op in changes {
                let listing = Listing::new(root);
                let got = ops::apply(op, root, &listing, &mut handles, i64::MAX);
                let got = got.map_or_else(|e| format!("{e:?}"), |_| "ok".into());
                log.push(format!("{who}: {op:?} {:?}: {got}", op.paths(&listing)));
            }
            Ok(comparable(read(root)))
        };
        before =
            Some(if kernel { in_kernel(&mut u, options, &mut round) } else { in_union(&mut u, &mut round) }?);
    }
    Ok(())
}

fn turns(options: Options, seed: u8) {
    if !kernel_has(options) {
        return;
    }
    let cases = std::env::var("UNIONFS_DIFF_CASES").ok().and_then(|s| s.parse().ok()).unwrap_or(24);
    let config = Config {
        cases,
        failure_persistence: None,
        max_shrink_iters: 1000,
        max_shrink_time: 60_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]));
    let layers = prop::collection::vec(prop::collection::vec(layers::entry(), 0..10), 1..=3);
    let rounds = prop::collection::vec(changes(), 4..=5);
    let result = runner.run(&(layers, rounds), |(layers, rounds)| {
        let mut log = Vec::new();
        alternate(options, &layers, &rounds, &mut log)
            .map_err(|e| TestCaseError::fail(format!("{e}\nafter\n  {}", log.join("\n  "))))
    });
    if let Err(e) = result {
        panic!("{options:?}: {e}");
    }
}

#[test]
fn taking_turns() {
    need_unionfs!();
    turns(PLAIN, 1);
}

#[test]
fn taking_turns_with_an_index() {
    need_unionfs!();
    turns(INDEX, 2);
}

#[test]
fn taking_turns_with_index_redirects_and_metacopy() {
    need_unionfs!();
    turns(FULL, 3);
}
