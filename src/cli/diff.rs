//! `unionfs diff`: what an upper changes.

use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::FileType;
use serde::Serialize;

use super::layers::UpperArgs;
use crate::error::{MountError, Outcome};
use crate::oci::change::{Change, Upper, What};

/// Arguments of `diff`.
#[derive(Debug, clap::Args)]
#[command(override_usage = "unionfs diff [--json] MOUNTPOINT
       unionfs diff [--json] --upper DIR --lower LOWER[:LOWER...] [--init DIR]")]
#[command(after_help = "One line for each name, as docker diff prints them:
  A /path                added: the layers below have nothing of the name
  C /path                changed, or a directory with changes in it
  D /path                deleted
Only the upper layer is read, and what it says something about. The init layer and what is mounted
inside the tree do not appear.

Examples:
  unionfs diff /mnt/root
  unionfs diff --upper container/upper --lower image2:image1:base")]
pub struct DiffArgs {
    #[command(flatten)]
    layers: UpperArgs,

    /// Print a JSON array of objects with kind, path, type and size in bytes
    #[arg(long)]
    json: bool,
}

/// Prints the changes.
///
/// # Errors
/// Layers that cannot be read.
pub fn run(args: &DiffArgs) -> Outcome<()> {
    let (layers, options) = args.layers.find()?;
    let changes = Upper::open(&layers, &options)?.changes()?;
    let out = BufWriter::new(io::stdout().lock());
    let printed = if args.json { as_json(&changes, out) } else { as_lines(&changes, out) };
    printed_all(printed)
}

/// What comes of printing: a reader that has seen enough is no failure.
pub fn printed_all(result: io::Result<()>) -> Outcome<()> {
    match result {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            Err(MountError::System(format!("the output cannot be written: {e}")))
        }
        _ => Ok(()),
    }
}

fn absolute(path: &Path) -> PathBuf {
    Path::new("/").join(path)
}

fn as_lines(changes: &[Change], mut out: impl Write) -> io::Result<()> {
    for (change, kind) in changes.iter().filter_map(|c| Some((c, c.kind?))) {
        write!(out, "{} ", kind.letter())?;
        out.write_all(absolute(&change.path).as_os_str().as_bytes())?;
        out.write_all(b"\n")?;
    }
    out.flush()
}

/// A change as JSON has it.
#[derive(Serialize)]
struct Line<'a> {
    kind: char,
    path: std::borrow::Cow<'a, str>,
    /// The bytes of the path in hexadecimal, when they are not UTF-8.
    #[serde(skip_serializing_if = "Option::is_none")]
    path_hex: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    r#type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
}

fn as_json(changes: &[Change], mut out: impl Write) -> io::Result<()> {
    let paths: Vec<PathBuf> = changes.iter().map(|c| absolute(&c.path)).collect();
    let lines = changes.iter().zip(&paths).filter_map(|(change, path)| {
        let size = match &change.what {
            What::Other(other) if other.stat.kind() == FileType::RegularFile => Some(other.stat.size),
            _ => None,
        };
        Some(Line {
            kind: change.kind?.letter(),
            path: path.to_string_lossy(),
            path_hex: path.to_str().is_none().then(|| hex::encode(path.as_os_str().as_bytes())),
            r#type: change.file_type().map(type_name),
            size,
        })
    });
    serde_json::to_writer_pretty(&mut out, &lines.collect::<Vec<_>>())?;
    out.write_all(b"\n")?;
    out.flush()
}

/// The word for a type, as find(1) and stat(1) have it.
pub fn type_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "symlink",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Unknown => "unknown",
    }
}
