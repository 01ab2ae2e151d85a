//! The program as the helper of container engines and of mount(8): the forms in which they call it, and what
//! they count on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;

mod contract;
mod forms;
mod owners;
mod rootless;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use common::Union;

/// The program, called as `name` says.
fn called_as(u: &Union, name: &str) -> Command {
    let link = u.dir().join(name);
    if !link.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_unionfs"), &link).unwrap();
    }
    let mut command = Command::new(link);
    command.current_dir(u.dir());
    command
}

/// The program, called by its own name in the directory of the layers.
fn helper(u: &Union, args: &[&str]) -> Command {
    let mut command = common::unionfs();
    command.args(args).current_dir(u.dir());
    command
}

/// Runs what must succeed in silence.
#[track_caller]
fn quiet(mut command: Command) {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", common::text(&out));
    assert_eq!(common::text(&out), "", "{command:?}");
}

/// Runs what must fail with one sentence that has these words.
#[track_caller]
fn refused(mut command: Command, words: &[&str]) {
    let out: Output = command.output().unwrap();
    let text = common::text(&out);
    assert!(!out.status.success() && out.stdout.is_empty(), "{command:?}: {text}");
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    for word in words {
        assert!(text.contains(word), "{word} is not in {text}");
    }
}

/// Runs a script of sh in the directory of the layers; gives what it wrote.
#[track_caller]
fn script(dir: &Path, prefix: &[&str], text: &str) -> String {
    let mut words = prefix.iter().copied().chain(["sh", "-euc", text]);
    let mut command = Command::new(words.next().unwrap());
    let out = command.args(words).current_dir(dir).output().unwrap();
    assert!(out.status.success(), "{text}: {}", common::text(&out));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

fn have(program: impl AsRef<OsStr>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(program.as_ref())).find(|file| file.exists())
}
