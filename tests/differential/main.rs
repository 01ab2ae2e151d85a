//! Random operations on a union and on a plain directory that starts as a flat copy of it: results,
//! errno, content and listings agree after each operation and after a remount.
//!
//! `UNIONFS_DIFF_CASES` cases (64) of up to `UNIONFS_DIFF_OPS` operations (120) from `UNIONFS_DIFF_SEED` (a
//! number, or `random`). A failure is shrunk and shown with its layers and operations.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod layers;
mod ops;

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use common::{Union, tree};
use ops::{Handles, Op};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

/// One case: what the layers hold, and what is done.
#[derive(Debug, Clone)]
struct Case {
    /// Topmost first. With `init`, the first one is the init layer.
    layers: Vec<Vec<layers::Entry>>,
    init: bool,
    ops: Vec<Op>,
}

fn case(ops: usize) -> impl Strategy<Value = Case> {
    let layers = prop::collection::vec(prop::collection::vec(layers::entry(), 0..14), 2..=5);
    // Overlayfs, when it stands in, has no init layer.
    let init =
        if common::overlay_backend() { Just(false).boxed() } else { prop::bool::weighted(0.25).boxed() };
    (layers, init, prop::collection::vec(ops::op(), 0..=ops)).prop_map(|(layers, init, ops)| Case {
        layers,
        init,
        ops,
    })
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |s| s.parse().unwrap_or_else(|_| panic!("{name}: {s}")))
}

#[test]
fn agrees_with_a_plain_directory() {
    need_mount!();
    let seed = match std::env::var("UNIONFS_DIFF_SEED").as_deref() {
        Ok("random") => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
        _ => number("UNIONFS_DIFF_SEED", 20),
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: number("UNIONFS_DIFF_CASES", 64) as u32,
        failure_persistence: None,
        max_shrink_iters: 2000,
        max_shrink_time: 90_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let strategy = case(number("UNIONFS_DIFF_OPS", 120) as usize);
    match runner.run(&strategy, |case| run(&case).map_err(TestCaseError::fail)) {
        Ok(()) => {}
        Err(TestError::Fail(reason, case)) => {
            panic!("seed {seed}: {reason}\nshrunk to {case:#?}");
        }
        Err(TestError::Abort(reason)) => panic!("seed {seed}: {reason}"),
    }
}

struct Pair {
    union: Union,
    flat: PathBuf,
    /// Seconds since the epoch; later times are "now".
    begin: i64,
}

fn run(case: &Case) -> Result<(), String> {
    let lowers = case.layers.len() - usize::from(case.init);
    let mut union = Union::new(lowers);
    if case.init {
        union = union.with_init();
    }
    let mut paths: Vec<_> = case.init.then(|| union.init("")).into_iter().collect();
    paths.extend((0..lowers).map(|i| union.lower(i, "")));
    for (i, (path, entries)) in paths.iter().zip(&case.layers).enumerate() {
        // A hardlinked file of an init layer cannot leave it, which a flat directory does not know.
        layers::build(path, entries, !(case.init && i == 0));
    }
    let flat = union.dir().join("flat");
    layers::flatten(&paths, &flat);
    union.mount();
    let begin = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 - 2;
    let mut pair = Pair { union, flat, begin };
    let mut handles = (Handles::default(), Handles::default());
    pair.compare("before any operation")?;
    for (i, op) in case.ops.iter().enumerate() {
        match op {
            Op::Remount => {
                handles = Default::default();
                pair.union.remount();
            }
            Op::Check => pair.compare(&format!("before operation {i}"))?,
            op => pair.step(case, op, &mut handles).map_err(|e| format!("operation {i}, {op:?}: {e}"))?,
        }
    }
    pair.compare("at the end")?;
    drop(handles);
    pair.union.remount();
    pair.compare("after a remount")?;
    pair.union.unmount();
    Ok(())
}

impl Pair {
    /// Does one operation on both sides.
    fn step(&self, case: &Case, op: &Op, handles: &mut (Handles, Handles)) -> Result<(), String> {
        let here = ops::apply(op, &self.union.mnt(), &mut handles.0, self.begin);
        if here == Err(rustix::io::Errno::XDEV) && may_cross(case, op, &self.flat) {
            return Ok(());
        }
        let there = ops::apply(op, &self.flat, &mut handles.1, self.begin);
        if here == there { Ok(()) } else { Err(format!("union {here:?}, plain {there:?}")) }
    }

    fn compare(&self, when: &str) -> Result<(), String> {
        let read = |root: &Path| {
            let mut tree = tree::read(root);
            tree.remove(Path::new(""));
            for node in tree.values_mut() {
                node.mtime = ops::coarse(node.mode, node.mtime, self.begin);
            }
            tree
        };
        let lines = tree::diff(&read(&self.union.mnt()), &read(&self.flat));
        if lines.is_empty() {
            Ok(())
        } else {
            Err(format!("{when}, union left, plain right:\n{}", lines.join("\n")))
        }
    }
}

/// Whether an operation may be answered EXDEV where a plain directory does it.
fn may_cross(case: &Case, op: &Op, flat: &Path) -> bool {
    match op {
        // Directories that a lower has a part in; and with an init layer hardlinks that would span two.
        Op::Rename { from, .. } => case.init || from.at(flat).symlink_metadata().is_ok_and(|m| m.is_dir()),
        Op::Link { .. } => case.init,
        _ => false,
    }
}
