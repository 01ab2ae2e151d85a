//! Limits under load, in their short form: `tools/limits` has the cases, and longer forms of them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::process::Command;

use common::{skip, temp_dir, text};

fn case(name: &str) {
    if Command::new("python3").arg("--version").output().is_err() {
        return skip("there is no python3");
    }
    let dir = temp_dir();
    let out = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tools/limits"))
        .args([
            "--quick",
            "--only",
            &format!("^{name}$"),
            "--program",
            env!("CARGO_BIN_EXE_unionfs"),
            "--dir",
        ])
        .arg(dir.path())
        .output()
        .unwrap();
    let said = text(&out);
    assert!(out.status.success() && said.contains(&format!("{name}: ok")), "{said}");
}

#[test]
fn ten_thousand_files_are_open_at_once() {
    need_unionfs!();
    case("open-files");
}

#[test]
fn a_directory_has_many_entries() {
    need_unionfs!();
    case("entries");
}

#[test]
fn names_and_trees_are_as_long_as_can_be() {
    need_unionfs!();
    case("names");
}

#[test]
fn five_hundred_layers_are_one_tree() {
    need_unionfs!();
    case("layers");
}

#[test]
fn sixty_four_programs_work_at_once() {
    need_unionfs!();
    case("clients");
}
