//! Files that are made from the definition of the command line, for the installation.

use std::fs::File;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use super::args::{Args, GenerateArgs};
use super::helper;
use crate::error::MountError;

/// The program, as its users call it.
const PROGRAM: &str = "unionfs";
/// The helper of mount(8) that a manual page is named after.
const HELPER: &str = "mount.fuse.unionfs";

/// Writes completions for shells, and a manual page for each command and for the helper of mount(8). That of
/// the program itself is written by hand.
///
/// # Errors
/// A directory that is missing or cannot be written.
pub fn run(args: &GenerateArgs) -> Result<(), MountError> {
    let dir = &args.directory;
    write(dir)
        .map_err(|e| MountError::path("directory", dir, format!("cannot be written: {e}; name another")))
}

fn write(dir: &Path) -> std::io::Result<()> {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut Args::command(), PROGRAM, dir)?;
    }
    let mut program = Args::command();
    program.build();
    for command in program.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
        let name = format!("{PROGRAM}-{}", command.get_name());
        page(dir, command.clone(), &name, "1")?;
    }
    page(dir, helper::command().name(HELPER), HELPER, "8")
}

fn page(dir: &Path, command: Command, name: &str, section: &str) -> std::io::Result<()> {
    let mut file = File::create(dir.join(format!("{name}.{section}")))?;
    let command = command.version(env!("CARGO_PKG_VERSION"));
    clap_mangen::Man::new(command).title(name).section(section).manual("unionfs").render(&mut file)
}
