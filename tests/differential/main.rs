//! Random operations on a union and on a plain directory that starts as a flat copy of it: results,
//! errno, content and listings agree after each operation and after a remount.
//!
//! `UNIONFS_DIFF_CASES` cases (64) of up to `UNIONFS_DIFF_OPS` operations (120) from `UNIONFS_DIFF_SEED` (a
//! number, or `random`). A failure is shrunk and shown with its layers and operations.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod flat;
mod layers;
mod ops;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use common::{Union, tree};
use ops::{Handles, Listing, Op};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

/// One case: what the layers hold, and what is done.
#[derive(Debug, Clone)]
struct Case {
    /// Topmost first. With `init`, the first one is the init layer.
    layers: Vec<Vec<layers::Entry>>,
    init: bool,
    /// A mount option.
    option: &'static str,
    ops: Vec<Op>,
}

fn case(ops: usize) -> impl Strategy<Value = Case> {
    let layers = prop::collection::vec(prop::collection::vec(layers::entry(), 0..14), 2..=5);
    // Overlayfs, when it stands in, has no init layer.
    let init =
        if common::overlay_backend() { Just(false).boxed() } else { prop::bool::weighted(0.25).boxed() };
    let option = prop::sample::select(vec!["passthrough=on", "passthrough=off", "metacopy=on"]);
    (layers, init, option, prop::collection::vec(ops::op(), 0..=ops))
        .prop_map(|(layers, init, option, ops)| Case { layers, init, option, ops })
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
        Ok(()) => println!("{}", tally(None)),
        Err(TestError::Fail(reason, case)) => {
            panic!("seed {seed}: {reason}\nshrunk to {case:#?}");
        }
        Err(TestError::Abort(reason)) => panic!("seed {seed}: {reason}"),
    }
}

/// Counts operations by kind, all and successful, so that one can see whether the cases do anything.
fn tally(count: Option<(&Op, bool)>) -> String {
    static TALLY: Mutex<BTreeMap<String, (u32, u32)>> = Mutex::new(BTreeMap::new());
    let mut tally = TALLY.lock().unwrap();
    if let Some((op, done)) = count {
        let name = format!("{op:?}").chars().take_while(|c| c.is_alphanumeric()).collect();
        let entry = tally.entry(name).or_default();
        entry.0 += 1;
        entry.1 += u32::from(done);
        return String::new();
    }
    let all: u32 = tally.values().map(|t| t.0).sum();
    tally.iter().fold(format!("{all} operations"), |s, (name, t)| s + &format!(", {name} {}/{}", t.1, t.0))
}

struct Pair {
    union: Union,
    flat: PathBuf,
    /// Seconds since the epoch; later times are "now".
    begin: i64,
}

/// Runs a case. The error tells what was done, with the paths.
fn run(case: &Case) -> Result<(), String> {
    let mut done = Vec::new();
    attempt(case, &mut done).map_err(|e| format!("{e}\nafter\n  {}", done.join("\n  ")))
}

fn attempt(case: &Case, log: &mut Vec<String>) -> Result<(), String> {
    let lowers = case.layers.len() - usize::from(case.init);
    let mut union = Union::new(lowers).option(case.option);
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
    flat::flatten(&paths, &flat);
    union.mount();
    let begin = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 - 2;
    let mut pair = Pair { union, flat, begin };
    let mut handles = (Handles::default(), Handles::default());
    pair.compare("before any operation")?;
    for (i, op) in case.ops.iter().enumerate() {
        match op {
            Op::Remount => {
                handles = Default::default();
                log.push("remount".into());
                pair.union.remount();
            }
            Op::Check => pair.compare(&format!("before operation {i}"))?,
            op => {
                pair.step(case, op, &mut handles, log).map_err(|e| format!("operation {i}, {op:?}: {e}"))?
            }
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
    fn step(
        &self,
        case: &Case,
        op: &Op,
        handles: &mut (Handles, Handles),
        log: &mut Vec<String>,
    ) -> Result<(), String> {
        let listing = Listing::new(&self.flat);
        let here = ops::apply(op, &self.union.mnt(), &listing, &mut handles.0, self.begin);
        let result = here.as_ref().map_or_else(|e| format!("{e:?}"), |_| "ok".into());
        log.push(format!("{op:?} {:?}: {result}", op.paths(&listing)));
        if here == Err(rustix::io::Errno::XDEV) && may_cross(case, op, &listing, &self.flat) {
            return Ok(());
        }
        let there = ops::apply(op, &self.flat, &listing, &mut handles.1, self.begin);
        tally(Some((op, here.is_ok())));
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
fn may_cross(case: &Case, op: &Op, listing: &Listing, flat: &Path) -> bool {
    match op {
        // Directories that a lower has a part in; and with an init layer hardlinks that would span two.
        Op::Rename { from, .. } => {
            case.init || flat.join(from.find(listing)).symlink_metadata().is_ok_and(|m| m.is_dir())
        }
        Op::Link { .. } => case.init,
        _ => false,
    }
}
