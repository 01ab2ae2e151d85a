//! The command line.

mod apply;
mod args;
mod check;
mod command;
mod commit;
mod demo;
mod diff;
mod freeze;
mod generate;
mod given;
mod helper;
mod ids;
mod image;
mod inspect;
pub mod layer_list;
mod layers;
mod list;
mod live;
mod logging;
mod made;
mod mount;
pub mod options;
mod progress;
mod record;
mod run;
mod umount;
mod volume;

use std::io::Write;
use std::process::ExitCode;

use crate::error::MountError;

/// Runs the command that the process was called with. A failure is told in one sentence on standard
/// error and by exit status 1, or 125 for `run`, which passes on the status of a command, or as fsck does for
/// `check`; clap tells of a wrong usage itself, with status 2, or 16 for `check`.
pub fn run() -> ExitCode {
    if helper::is_meant() {
        return end(helper::run());
    }
    end(match command::Args::read().command {
        command::Command::Mount(args) => mount::run(args),
        command::Command::Umount(args) => umount::run(&args),
        command::Command::Demo => demo::run(),
        command::Command::Run(args) => return run::run(args),
        command::Command::Generate(args) => generate::run(&args),
        command::Command::Apply(args) => apply::run(&args),
        command::Command::Commit(args) => commit::run(&args),
        command::Command::Image(args) => image::run(args),
        command::Command::List(args) => list::run(&args),
        command::Command::Inspect(args) => inspect::run(&args),
        command::Command::Diff(args) => diff::run(&args),
        command::Command::Check(args) => return check::run(&args),
    })
}

fn end(result: Result<(), MountError>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            complain(&e);
            ExitCode::FAILURE
        }
    }
}

/// Tells the user something that is no failure.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr(), "unionfs: {line}");
}

/// Tells the user what went wrong. That standard error may be closed is no reason to fail otherwise.
fn complain(error: &MountError) {
    let _ = writeln!(std::io::stderr(), "unionfs: {error}");
}
