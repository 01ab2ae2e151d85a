//! The kernel's overlayfs and we read and write the same layers: what one has made, the other shows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "differential/acl.rs"]
mod acl;
mod common;
#[path = "differential/extras.rs"]
mod extras;
#[path = "differential/layers.rs"]
mod layers;
#[path = "differential/mapper.rs"]
mod mapper;
#[path = "differential/ops.rs"]
mod ops;
#[path = "differential/special.rs"]
#[allow(dead_code)] // A part of it is for others.
mod special;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::Union;
use common::files::{chmod, exists, get, list, put, set_times, set_xattr};
use common::overlay;
use common::tree::{self, Tree};
use ops::Listing;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};
use special::{Process, Step};

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

/// Overlayfs makes a file new when its data follows a copy-up of the attributes. Nobody wrote to it.
#[test]
fn data_that_follows_the_attributes_keeps_the_time() {
    need_unionfs!();
    let mut u = Union::new(1).option("metacopy=on");
    put(u.lower(0, "f"), "text");
    set_times(u.lower(0, "f"), (1_000_000_000, 5), (1_100_000_000, 7));
    in_union(&mut u, |root| {
        chmod(root.join("f"), 0o600);
        drop(std::fs::OpenOptions::new().write(true).open(root.join("f")).unwrap());
        let meta = root.join("f").metadata().unwrap();
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_100_000_000, 7));
    });
    assert_eq!(get(u.upper("f")), "text");
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
fn changes(most: usize) -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(special::step().prop_filter("of one moment", Step::is_of_one_moment), 0..most)
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

fn build(options: Options, layers: &[Vec<layers::Entry>], extras: &[extras::Extra]) -> Union {
    let u = Union::new(layers.len());
    let paths: Vec<_> = (0..u.lowers()).map(|i| u.lower(i, "")).collect();
    for (path, entries) in paths.iter().zip(layers) {
        layers::build(path, entries, options != PLAIN);
    }
    extras::add(&paths, extras);
    // For operations of other users.
    chmod(u.dir(), 0o755);
    u
}

/// Does operations, and logs what came of them.
fn work(who: &str, root: &Path, steps: &[Step], log: &mut Vec<String>) {
    let mut process = Process::default();
    for step in steps {
        let listing = Listing::new(root);
        let got = special::apply(step, root, &listing, &mut process, i64::MAX);
        let got = got.map_or_else(|e| format!("{e:?}"), |_| "ok".into());
        log.push(format!("{who}: {step:?} {:?}: {got}", step.paths(&listing)));
    }
}

fn alternate(
    options: Options,
    layers: &[Vec<layers::Entry>],
    extras: &[extras::Extra],
    rounds: &[Vec<Step>],
    log: &mut Vec<String>,
) -> Result<(), String> {
    let mut u = build(options, layers, extras);
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
            work(who, root, changes, log);
            Ok(comparable(read(root)))
        };
        before =
            Some(if kernel { in_kernel(&mut u, options, &mut round) } else { in_union(&mut u, &mut round) }?);
    }
    Ok(())
}

/// The script by each of the two on layers of its own; then each shows what the other has made.
fn side_by_side(
    layers: &[Vec<layers::Entry>],
    extras: &[extras::Extra],
    steps: &[Step],
    log: &mut Vec<String>,
) -> Result<(), String> {
    let begin =
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64 - 2;
    let timeless = |tree: &Tree| {
        let mut tree = tree.clone();
        for node in tree.values_mut() {
            node.mtime = ops::coarse(node.mode, node.mtime, begin);
        }
        tree
    };
    let same = |what: &str, left: &Tree, right: &Tree| {
        let lines = tree::diff(left, right);
        if lines.is_empty() { Ok(()) } else { Err(format!("{what}\n{}", lines.join("\n"))) }
    };
    let (mut a, mut b) = (build(FULL, layers, extras), build(FULL, layers, extras));
    let mut wrong = Ok(());
    let ours = in_union(&mut a, |root| {
        work("the union", root, steps, log);
        comparable(tree::read(root))
    });
    let theirs = in_kernel(&mut b, FULL, |root| {
        work("overlayfs", root, steps, log);
        comparable(tree::read_overlay(root))
    });
    // Overlayfs makes a file new in time when the data follows a copy-up that left it below.
    let (mut left, right) = (timeless(&ours), timeless(&theirs));
    for (path, node) in &mut left {
        if let Some(other) = right.get(path).filter(|other| other.mtime.0 == i64::MAX) {
            node.mtime = other.mtime;
        }
    }
    wrong = wrong.and(same("the union left, overlayfs right:", &left, &right));
    let shown = in_kernel(&mut a, FULL, |root| comparable(tree::read_overlay(root)));
    wrong = wrong.and(same("the union left, right overlayfs on its layers:", &ours, &shown));
    let shown = in_union(&mut b, |root| comparable(tree::read(root)));
    wrong.and(same("overlayfs left, right the union on its layers:", &theirs, &shown))
}

fn turns(options: Options, seed: u8) {
    if !kernel_has(options) {
        return;
    }
    random(options, seed, prop::collection::vec(changes(25), 4..=5), |layers, extras, rounds, log| {
        alternate(options, layers, extras, rounds, log)
    });
}

/// Runs random cases; a failure is shrunk and shown.
fn random<T: std::fmt::Debug>(
    options: Options,
    seed: u8,
    steps: impl Strategy<Value = T>,
    run: impl Fn(&[Vec<layers::Entry>], &[extras::Extra], &T, &mut Vec<String>) -> Result<(), String>,
) {
    let number = |name: &str| std::env::var(name).ok().and_then(|s| s.parse::<u64>().ok());
    let config = Config {
        cases: number("UNIONFS_DIFF_CASES").map_or(24, |n| n as u32),
        failure_persistence: None,
        max_shrink_iters: 1000,
        max_shrink_time: 60_000,
        ..Config::default()
    };
    let mut bytes = [seed; 32];
    if let Some(seed) = number("UNIONFS_DIFF_SEED") {
        bytes[..8].copy_from_slice(&seed.to_le_bytes());
    }
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let layers = prop::collection::vec(prop::collection::vec(layers::entry(), 0..10), 1..=3);
    let extras = prop::collection::vec(extras::extra(), 0..8);
    let result = runner.run(&(layers, extras, steps), |(layers, extras, steps)| {
        let mut log = Vec::new();
        run(&layers, &extras, &steps, &mut log)
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

#[test]
fn side_by_side_with_index_redirects_and_metacopy() {
    need_unionfs!();
    if !kernel_has(FULL) {
        return;
    }
    random(FULL, 4, changes(100), |layers, extras, steps, log| side_by_side(layers, extras, steps, log));
}
