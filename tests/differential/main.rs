//! Random operations on a union and on a plain directory that starts as a flat copy of it: results,
//! errno, content and listings agree after each operation and after a remount.
//!
//! `UNIONFS_DIFF_CASES` cases (64) of up to `UNIONFS_DIFF_OPS` operations (120) from `UNIONFS_DIFF_SEED` (a
//! number, or `random`). A failure is shrunk and shown with its layers and operations.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod acl;
#[path = "../common/mod.rs"]
mod common;
mod extras;
mod flat;
mod freeze;
mod layers;
mod mapper;
mod ops;
#[allow(dead_code)] // A part of it is for others.
mod special;
mod two;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::{SystemTime, UNIX_EPOCH};

use common::{Union, tree};
use ops::{Listing, Op};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use rustix::io::Errno;
use special::{Process, Special, Step};

/// One case: what the layers hold, and what is done.
#[derive(Debug, Clone)]
struct Case {
    /// Topmost first. With `init`, the first one is the init layer.
    layers: Vec<Vec<layers::Entry>>,
    init: bool,
    /// A mount option.
    option: &'static str,
    extras: Vec<extras::Extra>,
    ops: Vec<Step>,
}

fn case(ops: usize) -> impl Strategy<Value = Case> {
    let layer = || prop::collection::vec(layers::entry(), 0..14);
    // Lookups and listings go other ways when there are many.
    let layers = prop_oneof![
        3 => prop::collection::vec(layer(), 2..=5),
        1 => prop::collection::vec(layer(), 6..=20),
    ];
    // Overlayfs, when it stands in, has no init layer.
    let init =
        if common::overlay_backend() { Just(false).boxed() } else { prop::bool::weighted(0.2).boxed() };
    let option = prop::sample::select(vec![
        "passthrough=on",
        "passthrough=off",
        "metacopy=on",
        "io_uring=off",
        NO_REDIRECTS,
    ]);
    let extras = prop::collection::vec(extras::extra(), 0..16);
    (layers, init, option, extras, prop::collection::vec(special::step(), 0..=ops))
        .prop_map(|(layers, init, option, extras, ops)| Case { layers, init, option, extras, ops })
}

const NO_REDIRECTS: &str = "redirect_dir=off";

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |s| s.parse().unwrap_or_else(|_| panic!("{name}: {s}")))
}

#[test]
fn agrees_with_a_plain_directory() {
    need_mount!();
    check(&case(number("UNIONFS_DIFF_OPS", 120) as usize), 1, run);
    println!("{}", tally(None));
}

/// Runs cases; one in `share` of as many as the environment says. A failure is shrunk and shown.
fn check<C: std::fmt::Debug>(
    strategy: &impl Strategy<Value = C>,
    share: u64,
    run: impl Fn(&C) -> Result<(), String>,
) {
    let seed = match std::env::var("UNIONFS_DIFF_SEED").as_deref() {
        Ok("random") => SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos() as u64,
        _ => number("UNIONFS_DIFF_SEED", 20),
    };
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: number("UNIONFS_DIFF_CASES", 64).div_ceil(share) as u32,
        failure_persistence: None,
        max_shrink_iters: 2000,
        max_shrink_time: 90_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    match runner.run(strategy, |case| run(&case).map_err(TestCaseError::fail)) {
        Ok(()) => {}
        Err(TestError::Fail(reason, case)) => {
            panic!("seed {seed}: {reason}\nshrunk to {case:#?}");
        }
        Err(TestError::Abort(reason)) => panic!("seed {seed}: {reason}"),
    }
}

/// Counts operations by kind, all and successful, so that one can see whether the cases do anything.
fn tally(count: Option<(&Step, bool)>) -> String {
    static TALLY: Mutex<BTreeMap<String, (u32, u32)>> = Mutex::new(BTreeMap::new());
    let mut tally = TALLY.lock().unwrap();
    if let Some((step, done)) = count {
        let (name, prefix) = match step {
            Step::Plain(op) => (format!("{op:?}"), ""),
            Step::Special(Special::As { op, .. }) => (format!("{op:?}"), "As "),
            Step::Special(special) => (format!("{special:?}"), ""),
        };
        let name: String = name.chars().take_while(|c| c.is_alphanumeric()).collect();
        let name = format!("{prefix}{name}");
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

impl Pair {
    /// The layers of a case, mounted, and a flat copy.
    fn new(case: &Case) -> Self {
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
        extras::add(&paths, &case.extras);
        let flat = union.dir().join("flat");
        flat::flatten(&paths, &flat);
        // For operations of other users.
        common::files::chmod(union.dir(), 0o755);
        for root in [&union.upper(""), &flat] {
            common::files::chmod(root, 0o777);
        }
        union.mount();
        let begin = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 - 2;
        Self { union, flat, begin }
    }

    /// Remounts, if that is what is to be done.
    fn remounts(
        &mut self,
        case: &Case,
        op: &Step,
        processes: &mut (Process, Process),
        log: &mut Vec<String>,
    ) -> bool {
        if !matches!(op, Step::Plain(Op::Remount) | Step::Special(Special::Remount { .. })) {
            return false;
        }
        processes.0.let_go();
        processes.1.let_go();
        log.push(format!("{op:?}"));
        if let Step::Special(Special::Remount { option }) = op
            && case.option != NO_REDIRECTS
        {
            self.union.set_options(&[option]);
        }
        self.union.remount();
        true
    }
}

fn attempt(case: &Case, log: &mut Vec<String>) -> Result<(), String> {
    let mut pair = Pair::new(case);
    let mut processes = (Process::default(), Process::default());
    pair.compare("before any operation")?;
    for (i, op) in case.ops.iter().enumerate() {
        if pair.remounts(case, op, &mut processes, log) {
            continue;
        }
        pair.step(case, op, &mut processes, log).map_err(|e| format!("operation {i}, {op:?}: {e}"))?;
    }
    pair.compare("at the end")?;
    drop(processes);
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
        step: &Step,
        processes: &mut (Process, Process),
        log: &mut Vec<String>,
    ) -> Result<(), String> {
        if matches!(step, Step::Plain(Op::Check)) {
            return self.compare("before");
        }
        let listing = Listing::new(&self.flat);
        let here = special::apply(step, &self.union.mnt(), &listing, &mut processes.0, self.begin);
        let result = here.as_ref().map_or_else(|e| format!("{e:?}"), |_| "ok".into());
        log.push(format!("{step:?} {:?}: {result}", step.paths(&listing)));
        if here == Err(Errno::XDEV) && may_cross(case, step, &listing, &self.flat) {
            return Ok(());
        }
        let there = special::apply(step, &self.flat, &listing, &mut processes.1, self.begin);
        tally(Some((step, here.is_ok())));
        let not_there = matches!(step, Step::Special(Special::Tmpfile(_)))
            && here == Err(Errno::OPNOTSUPP)
            && there.is_ok();
        if here == there || not_there { Ok(()) } else { Err(format!("union {here:?}, plain {there:?}")) }
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

/// Whether an operation may be answered EXDEV where a plain directory does it: with an init layer whatever
/// would span two layers, and directories that have a lower part when there shall be no redirects.
fn may_cross(case: &Case, step: &Step, listing: &Listing, flat: &Path) -> bool {
    let op = match step {
        Step::Plain(op) => op,
        Step::Special(Special::As { op, .. }) => op,
        Step::Special(Special::Exchange { .. }) => {
            let dir = |p: PathBuf| flat.join(p).symlink_metadata().is_ok_and(|m| m.is_dir());
            return case.init || (case.option == NO_REDIRECTS && step.paths(listing).into_iter().any(dir));
        }
        Step::Special(_) => return false,
    };
    match op {
        Op::Rename { from, .. } => {
            let is_dir = || flat.join(from.find(listing)).symlink_metadata().is_ok_and(|m| m.is_dir());
            case.init || (case.option == NO_REDIRECTS && is_dir())
        }
        Op::Link { .. } => case.init,
        _ => false,
    }
}
