//! What the fuzzer was given and has found (`fuzz/corpus`), once more, without it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A failed test is what they are for.

#[path = "../fuzz/harness.rs"]
mod harness;

use std::path::Path;

fn replay(target: &str, run: impl Fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", dir.display());
    for file in files {
        // Said only when it fails.
        println!("{}", file.display());
        run(&std::fs::read(&file).unwrap());
    }
}

#[test]
fn archives() {
    replay("archive", harness::archive);
}

#[test]
fn entries() {
    replay("entries", harness::entries);
}

#[test]
fn formats() {
    replay("formats", harness::formats);
}

#[test]
fn layers() {
    replay("layers", harness::layers);
}
