//! `unionfs check`: finds and mends what is wrong on disk, finds nothing where nothing is, converts whiteouts.
//!
//! `UNIONFS_CHECK_CASES` random cases for each author of layers (6) from `UNIONFS_CHECK_SEED`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A failed test is what they are for.

#[path = "../common/mod.rs"]
mod common;
mod convert;
mod healthy;
#[path = "../differential/layers.rs"]
#[allow(dead_code)]
mod layers;
#[path = "../differential/ops.rs"]
#[allow(dead_code)] // A part of it is for others.
mod ops;
#[path = "../exchange/peer.rs"]
#[allow(dead_code)]
mod peer;
mod wrong;

use std::process::{Command, Output};

use common::{Union, text, unionfs};

/// The command for the layers of a union.
pub fn command(union: &Union) -> Command {
    let mut command = unionfs();
    command.arg("check").arg("--upper").arg(union.upper("")).arg("--work").arg(union.work(""));
    command.arg("--lower").arg(union.lower_list());
    if union.init("").exists() {
        command.arg("--init").arg(union.init(""));
    }
    command
}

/// Runs a check with more arguments.
pub fn check(union: &Union, args: &[&str]) -> Output {
    command(union).args(args).output().unwrap()
}

/// The findings, without what they mean: "fault CLASS PATH", and "(mended)".
pub fn findings(out: &Output) -> Vec<String> {
    let said = String::from_utf8(out.stdout.clone()).unwrap();
    let mut found: Vec<String> = said
        .lines()
        .map(|line| {
            let (head, rest) = line.split_once(": ").unwrap_or_else(|| panic!("{line}"));
            if rest.ends_with("(mended)") { format!("{head} (mended)") } else { head.to_owned() }
        })
        .collect();
    found.sort();
    found
}

/// Fails unless a check ended with this status and told of exactly this.
#[track_caller]
pub fn assert_found(out: &Output, status: i32, expected: &[&str]) {
    let mut expected: Vec<String> = expected.iter().map(|e| (*e).to_owned()).collect();
    expected.sort();
    assert_eq!(findings(out), expected, "{}", text(out));
    assert_eq!(out.status.code(), Some(status), "{}", text(out));
}
