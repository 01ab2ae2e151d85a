//! `unionfs list`: the mounts of this machine.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::diff::printed_all;
use crate::error::Outcome;
use crate::inspect::state::{self, Listed};

/// Arguments of `list`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Root sees the mounts of all users, others their own and those of root. One whose process has died is listed as dead
until it is unmounted or another is mounted in its place. One in a process namespace that cannot be seen from here has
the number ?, and 0 with --json.

Example:
  unionfs list"
)]
pub struct ListArgs {
    /// Print a JSON array
    #[arg(long)]
    json: bool,
}

/// Prints the mounts.
///
/// # Errors
/// Output that cannot be written.
pub fn run(args: &ListArgs) -> Outcome<()> {
    let mounts = state::all();
    printed_all(if args.json { as_json(&mounts) } else { as_table(&mounts) })
}

fn as_json(mounts: &[Listed]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, mounts)?;
    out.write_all(b"\n")
}

fn as_table(mounts: &[Listed]) -> io::Result<()> {
    let mut rows = vec![["MOUNTPOINT".to_owned(), "PID".to_owned(), "FOR".to_owned(), "LAYERS".to_owned()]];
    rows.extend(mounts.iter().map(row));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths = [width(0), width(1), width(2)];
    let mut out = io::stdout().lock();
    for [mountpoint, pid, time, layers] in &rows {
        let [a, b, c] = widths;
        writeln!(out, "{mountpoint:a$}  {pid:>b$}  {time:>c$}  {layers}")?;
    }
    Ok(())
}

fn row(Listed { state: mount, live }: &Listed) -> [String; 4] {
    let upper = mount.upper.as_ref().map(|u| format!("upper {}", PathBuf::from(u).display()));
    let init = mount.init.as_ref().map(|_| "init".to_owned());
    let lowers = match mount.lowers.len() {
        1 => "1 lower".to_owned(),
        n => format!("{n} lowers"),
    };
    let layers: Vec<String> = [upper, init, Some(lowers)].into_iter().flatten().collect();
    let mountpoint = PathBuf::from(&mount.mountpoint).display().to_string();
    let line = |text: &str| printable(text).replace('\n', "?");
    let pid = match mount.pid {
        _ if !*live => "dead".to_owned(),
        0 => "?".to_owned(),
        pid => pid.to_string(),
    };
    [line(&mountpoint), pid, time(mount.since), line(&layers.join(", "))]
}

/// A text of another user's without what a terminal would take for commands. Line breaks stay.
pub fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}

/// How long ago that was.
pub fn time(since: u64) -> String {
    let age =
        SystemTime::now().duration_since(UNIX_EPOCH + Duration::from_secs(since)).map_or(0, |d| d.as_secs());
    match (age / 86400, age / 3600 % 24, age / 60 % 60) {
        (0, 0, 0) => format!("{age} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, minutes) => format!("{hours}:{minutes:02} h"),
        (days, ..) => format!("{days} d"),
    }
}
