//! Files that are made from the definition of the command line, for the installation.

use std::fs::File;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use super::args::GenerateArgs;
use super::command::Args;
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
    for (name, command) in commands(&program) {
        page(dir, command.clone(), &name, "1")?;
    }
    page(dir, helper::command().name(HELPER), HELPER, "8")
}

/// All commands, those of commands among them, with the names of their manual pages: `unionfs-image-ls`.
fn commands(program: &Command) -> Vec<(String, &Command)> {
    let mut found = Vec::new();
    let mut left = vec![(PROGRAM.to_owned(), program)];
    while let Some((name, command)) = left.pop() {
        for sub in command.get_subcommands().filter(|c| !c.is_hide_set() && c.get_name() != "help") {
            let name = format!("{name}-{}", sub.get_name());
            found.push((name.clone(), sub));
            left.push((name, sub));
        }
    }
    found
}

fn page(dir: &Path, command: Command, name: &str, section: &str) -> std::io::Result<()> {
    let mut file = File::create(dir.join(format!("{name}.{section}")))?;
    let command = command.version(env!("CARGO_PKG_VERSION"));
    clap_mangen::Man::new(command).title(name).section(section).manual("unionfs").render(&mut file)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command as Process;

    const MAIN_PAGE: &str = include_str!("../../docs/unionfs.1");

    fn program() -> Command {
        let mut program = Args::command();
        program.build();
        program
    }

    /// Whether a word stands in the text, and not as a part of a longer one.
    fn has_word(text: &str, word: &str) -> bool {
        text.match_indices(word).any(|(at, _)| {
            let next = text[at + word.len()..].chars().next();
            !next.is_some_and(|c| c.is_alphanumeric() || c == '-' || c == '_')
        })
    }

    #[test]
    fn the_main_page_has_every_command_and_option() {
        for (name, command) in commands(&program()) {
            let last = command.get_name();
            assert!(has_word(MAIN_PAGE, &format!("Cm {last}")), "docs/unionfs.1 lacks the command {name}");
            for argument in command.get_arguments().filter(|a| !a.is_hide_set()) {
                let Some(long) = argument.get_long().filter(|l| !["help", "version"].contains(l)) else {
                    let short = argument.get_short().filter(|s| *s != 'h');
                    let there = short.is_none_or(|s| MAIN_PAGE.contains(&format!("Fl {s} ")));
                    assert!(there, "docs/unionfs.1 lacks -{short:?} of {name}");
                    continue;
                };
                let there = has_word(MAIN_PAGE, &format!("Fl -{long}"));
                assert!(there, "docs/unionfs.1 lacks --{long} of {name}");
            }
        }
    }

    #[test]
    fn the_main_page_has_every_mount_option() {
        let program = program();
        let mount = program.find_subcommand("mount").unwrap();
        let help = mount.get_after_help().unwrap().to_string();
        let (options, _) = help.split_once("In a value, ").unwrap();
        let lines =
            options.lines().skip(1).filter_map(|l| l.strip_prefix("  ")).filter(|l| !l.starts_with(' '));
        let mut count = 0;
        for entry in lines.flat_map(|l| l.split("  ").next().unwrap().split(", ")) {
            let name = entry.split(['=', '[', ' ', '+']).next().unwrap();
            // In a list such as `ro, rw`, of one entry in the page each.
            let there =
                has_word(MAIN_PAGE, &format!("Cm {name}")) || has_word(MAIN_PAGE, &format!(", {name}"));
            assert!(there, "docs/unionfs.1 lacks the mount option {name}");
            count += 1;
        }
        assert!(count > 40, "{count} options: the help has another form");
    }

    #[test]
    fn every_command_has_a_page_and_completions() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name)).unwrap();
        let completions = ["unionfs.bash", "_unionfs", "unionfs.fish"].map(read);
        let program = program();
        let all = commands(&program);
        assert!(all.iter().any(|(name, _)| name == "unionfs-image-import"));
        for (name, command) in all {
            let page = read(&format!("{name}.1"));
            // In roff a hyphen is escaped.
            let page = page.replace('\\', "");
            for text in &completions {
                assert!(text.contains(command.get_name()), "no completion of {name}");
            }
            for argument in command.get_arguments().filter(|a| !a.is_hide_set()) {
                let Some(long) = argument.get_long() else { continue };
                assert!(page.contains(&format!("--{long}")), "{name}.1 lacks --{long}");
                assert!(completions.iter().all(|c| c.contains(long)), "no completion of --{long} of {name}");
            }
        }
        // Hidden from users, and so from these.
        assert!(!dir.path().join("unionfs-generate.1").exists());
        let helper = read(&format!("{HELPER}.8"));
        assert!(helper.contains("TARGET"));
        for shell in ["bash", "zsh", "fish"] {
            let name = if shell == "zsh" { "_unionfs".to_owned() } else { format!("unionfs.{shell}") };
            // Those that are not installed cannot tell.
            if let Ok(out) = Process::new(shell).arg("-n").arg(dir.path().join(name)).output() {
                assert!(out.status.success(), "{shell}: {}", String::from_utf8_lossy(&out.stderr));
            }
        }
    }

    #[test]
    fn bash_completes() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path()).unwrap();
        let complete = |words: &str| {
            let script = format!(
                "source {}/unionfs.bash; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
                 _unionfs unionfs \"${{COMP_WORDS[COMP_CWORD]}}\" \"${{COMP_WORDS[COMP_CWORD-1]}}\"; \
                 printf '%s\\n' \"${{COMPREPLY[@]}}\"",
                dir.path().display()
            );
            let out = Process::new("bash").args(["--norc", "-c", &script]).output().unwrap();
            String::from_utf8(out.stdout).unwrap().lines().map(String::from).collect::<Vec<_>>()
        };
        assert_eq!(complete("unionfs che"), ["check"]);
        assert!(complete("unionfs check --").contains(&"--repair".to_owned()));
        assert!(complete("unionfs image ''").contains(&"import".to_owned()));
        assert!(complete("unionfs image import --").contains(&"--name".to_owned()));
    }
}
