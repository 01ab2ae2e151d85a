//! Nothing is found where nothing is wrong: uppers after random operations, by us, by the kernel, by fuse-overlayfs.

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::common::{self, Union, files, skip, text, tree};
use crate::ops::{self, Handles, Listing, Op};
use crate::peer::Peer;
use crate::{check, findings, layers, need_unionfs};

#[derive(Debug, Clone)]
struct Case {
    layers: Vec<Vec<layers::Entry>>,
    rounds: Vec<Vec<Op>>,
}

fn case() -> impl Strategy<Value = Case> {
    let layers = prop::collection::vec(prop::collection::vec(layers::entry(), 0..16), 1..=3);
    let ops = prop::collection::vec(ops::op(), 0..=80);
    (layers, prop::collection::vec(ops, 1..=3)).prop_map(|(layers, rounds)| Case { layers, rounds })
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().map_or(default, |s| s.parse().unwrap_or_else(|_| panic!("{name}: {s}")))
}

fn random(run: impl Fn(&Case) -> Result<(), String>) {
    let seed = number("UNIONFS_CHECK_SEED", 11);
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: number("UNIONFS_CHECK_CASES", 6) as u32,
        failure_persistence: None,
        max_shrink_iters: 300,
        max_shrink_time: 40_000,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    match runner.run(&case(), |case| run(&case).map_err(TestCaseError::fail)) {
        Ok(()) => {}
        Err(TestError::Fail(reason, case)) => panic!("seed {seed}: {reason}\nshrunk to {case:#?}"),
        Err(TestError::Abort(reason)) => panic!("seed {seed}: {reason}"),
    }
}

fn build(case: &Case, hardlinks: bool) -> Union {
    let union = Union::new(case.layers.len());
    for (i, entries) in case.layers.iter().enumerate() {
        layers::build(&union.lower(i, ""), entries, hardlinks);
    }
    union
}

fn work(union: &Union, ops: &[Op], bears_fifos: bool) {
    let root = union.mnt();
    let mut handles = Handles::default();
    for op in ops {
        if matches!(op, Op::Mkfifo { .. }) && !bears_fifos {
            continue;
        }
        let listing = Listing::new(&root);
        let _ = ops::apply(op, &root, &listing, &mut handles, 0);
    }
}

/// Only what `expected` names is found.
fn clean(union: &Union, args: &[&str], expected: &[&str]) -> Result<(), String> {
    let out = check(union, args);
    let wrong: Vec<String> =
        findings(&out).into_iter().filter(|f| !expected.iter().any(|e| f.starts_with(e))).collect();
    if wrong.is_empty() && matches!(out.status.code(), Some(0 | 1)) {
        return Ok(());
    }
    Err(format!("{}: {}", wrong.join("; "), text(&out)))
}

/// A mark stays when what it hid is moved elsewhere with its directory.
const OURS: &[&str] = &["note opaque-of-nothing "];

fn ours(options: &[&str], init: bool) {
    need_unionfs!();
    random(|case| {
        let mut union = build(case, true);
        if init {
            union = union.with_init();
            layers::build(&union.init(""), &case.layers[0], false);
        }
        union.set_options(options);
        for ops in &case.rounds {
            union.mount();
            work(&union, ops, true);
            union.unmount();
            clean(&union, &[], OURS)?;
        }
        union.mount();
        let before = tree::read(&union.mnt());
        union.unmount();
        clean(&union, &["--repair", "--tidy"], OURS)?;
        union.mount();
        let lines = tree::diff(&before, &tree::read(&union.mnt()));
        union.unmount();
        if lines.is_empty() { Ok(()) } else { Err(format!("after tidying: {}", lines.join("\n"))) }
    });
}

#[test]
fn random_ours() {
    ours(&[], false);
}

#[test]
fn random_ours_with_metacopy() {
    ours(&["metacopy=on"], false);
}

#[test]
fn random_ours_with_an_init_layer() {
    ours(&[], true);
}

/// Opaque marks in the namespace that the kernel looks in with `userxattr`.
fn marks_of_users(union: &Union) {
    for path in (0..union.lowers()).flat_map(|i| layers::all(&union.lower(i, ""))) {
        if path.symlink_metadata().is_ok_and(|m| m.is_dir()) && files::is_opaque(&path) {
            rustix::fs::lremovexattr(&path, "trusted.overlay.opaque").unwrap();
            files::set_xattr(&path, "user.overlay.opaque", b"y");
        }
    }
}

fn theirs(peer: Peer, args: &[&str], expected: &[&str]) {
    need_unionfs!();
    if let Some(reason) = peer.missing() {
        return skip(&reason);
    }
    random(|case| {
        let mut union = build(case, peer.keeps_hardlinks());
        if peer == Peer::KernelUser {
            marks_of_users(&union);
        }
        for ops in &case.rounds {
            peer.mount(&union);
            work(&union, ops, peer.bears_fifos());
            peer.unmount(&mut union);
            clean(&union, args, expected)?;
        }
        Ok(())
    });
}

/// The kernel marks every directory of its own that it moves, and keeps a whiteout in its work directory.
const KERNEL: &[&str] = &["note opaque-of-nothing ", "note spare-whiteout "];

#[test]
fn random_kernel() {
    theirs(Peer::Kernel, &[], KERNEL);
}

#[test]
fn random_kernel_with_all() {
    theirs(Peer::KernelAll, &[], KERNEL);
}

#[test]
fn random_kernel_with_userxattr() {
    theirs(Peer::KernelUser, &["--userxattr"], KERNEL);
}

/// They hide names that no layer has, too.
const FUSE: &[&str] = &["note opaque-of-nothing ", "note whiteout-of-nothing "];

#[test]
fn random_fuse_overlayfs_1() {
    theirs(Peer::Fuse1, &[], FUSE);
}

#[test]
fn random_fuse_overlayfs_2() {
    theirs(Peer::Fuse2, &[], FUSE);
}

#[test]
fn turns_of_us_and_the_kernel_random() {
    need_unionfs!();
    random(|case| {
        let mut union = build(case, true);
        for (i, ops) in case.rounds.iter().enumerate() {
            if i % 2 == 0 {
                union.mount();
            } else {
                let options = [("redirect_dir", "on"), ("index", "on"), ("metacopy", "on")];
                common::overlay::mount(&union, &options);
            }
            work(&union, ops, true);
            union.unmount();
            // The kernel does not know our counts of removed names, and leaves them.
            clean(&union, &[], &[KERNEL, &["note gone-stale "]].concat())?;
        }
        Ok(())
    });
}
