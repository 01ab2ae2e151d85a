//! `unionfs commit`: an upper as a layer of an image.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::diff::printed_all;
use super::freeze::{self, FreezeArgs, Frozen};
use super::layers::UpperArgs;
use super::live::{self, Moment};
use super::progress::Progress;
use crate::error::{MountError, Outcome};
use crate::oci::Watch;
use crate::oci::change::{Change, Upper};
use crate::oci::codec::{Compression, Encoded, Encoder};
use crate::oci::commit::{self, Written};

/// Arguments of `commit`.
#[derive(Debug, clap::Args)]
#[command(override_usage = "unionfs commit [OPTIONS] -o FILE MOUNTPOINT
       unionfs commit --freeze [OPTIONS] [-o FILE] MOUNTPOINT
       unionfs commit [OPTIONS] -o FILE --upper DIR --lower LOWER[:LOWER...] [--init DIR]")]
#[command(
    after_help = "Writes what the upper layer changes, as unionfs diff tells it, in the form of an OCI image layer,
and prints its digest, its diff ID (the digest of the archive before compression) and its size in
bytes. The same layers give the same archive.

Of a mount, what its programs have written so far is written out, and the changes are those of one
moment, in which the mount stands still. The files are read after it: those that are open for writing
are named, and those that were changed before they were read.

With --freeze the mount goes on in an empty upper, and the one so far is its topmost lower from then
on; the command that mounts the new layers later is printed. Files that the kernel writes to by itself
(passthrough) must be closed before.

Examples:
  unionfs commit -o layer.tar.gz /mnt/root
  unionfs commit --freeze -o layer.tar.zst /mnt/root
  unionfs commit --upper container/upper --lower image2:image1:base -o layer.tar.zst"
)]
pub struct CommitArgs {
    #[command(flatten)]
    layers: UpperArgs,

    #[command(flatten)]
    freeze: FreezeArgs,

    /// The archive to write; its name ends in .tar, .tar.gz, .tgz or .tar.zst
    #[arg(short, long, value_name = "FILE", required_unless_present = "freeze")]
    output: Option<PathBuf>,

    /// Let nothing be newer than this time, in seconds since 1970, so that the same work done at
    /// another time gives the same archive
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    mtime: Option<i64>,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// What is printed.
#[derive(Serialize, Default)]
struct Report {
    #[serde(flatten)]
    archive: Option<Archive>,
    /// Of a mount: the files that were open for writing.
    #[serde(skip_serializing_if = "Option::is_none")]
    open_for_writing: Option<Vec<String>>,
    /// Of a mount: whether it stood still while the changes were looked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    one_moment: Option<bool>,
    #[serde(flatten)]
    frozen: Option<FrozenStack>,
}

#[derive(Serialize)]
struct Archive {
    digest: String,
    diff_id: String,
    size: u64,
    archive_size: u64,
    media_type: &'static str,
    entries: u64,
    left_out: Vec<String>,
    /// Files that were written to before they were read.
    changed: Vec<String>,
}

#[derive(Serialize)]
struct FrozenStack {
    frozen: String,
    upper: String,
    work: String,
    lowers: Vec<String>,
    mount_command: String,
}

/// Writes the layer.
///
/// # Errors
/// Layers that cannot be read, an archive that cannot be written, a mount that cannot be frozen. The archive is there
/// whole or not at all.
pub fn run(args: &CommitArgs) -> Outcome<()> {
    let output = match &args.output {
        None => None,
        Some(path) => match Compression::of_name(path) {
            Some(compression) => Some((path.as_path(), compression)),
            None => {
                let reason = "has a name that says no form; let it end in .tar, .tar.gz, .tgz or .tar.zst";
                return Err(MountError::path("archive", path, reason));
            }
        },
    };
    let (layers, options) = args.layers.find()?;
    let mut report = Report::default();
    if let (true, Some(mountpoint)) = (args.freeze.freeze, &args.layers.mountpoint) {
        let frozen = freeze::run(&args.freeze, mountpoint)?;
        live::tell_writers(&frozen.writers);
        report.open_for_writing = Some(frozen.writers.iter().map(live::shown).collect());
        report.frozen = Some(stack(&frozen));
        if let Some((path, compression)) = output {
            // It is a layer like any other now: nothing changes it.
            let changes = Upper::open(&frozen.before, &options)?.changes()?;
            report.archive = Some(archive(path, compression, &changes, args.mtime)?);
        }
        return printed_all(print(args.json, &report));
    }
    let Some((path, compression)) = output else { return Ok(()) };
    let moment = match &args.layers.mountpoint {
        Some(mountpoint) => live::changes(mountpoint, &layers, &options)?,
        None => {
            let changes = Upper::open(&layers, &options)?.changes()?;
            Moment { changes, writers: Vec::new(), held: true }
        }
    };
    let written = archive(path, compression, &moment.changes, args.mtime)?;
    if args.layers.mountpoint.is_some() {
        report.open_for_writing = Some(moment.writers.iter().map(live::shown).collect());
        report.one_moment = Some(moment.held);
    }
    moment.tell();
    report.archive = Some(written);
    printed_all(print(args.json, &report))
}

fn stack(frozen: &Frozen) -> FrozenStack {
    let shown = |path: &Option<PathBuf>| path.iter().map(|p| p.display().to_string()).collect();
    let now = frozen.state.layers();
    FrozenStack {
        frozen: shown(&frozen.before.upper),
        upper: shown(&now.upper),
        work: shown(&now.work),
        lowers: now.lowers.iter().map(|p| p.display().to_string()).collect(),
        mount_command: freeze::mount_command(&frozen.state).to_string_lossy().into_owned(),
    }
}

/// Writes the archive.
fn archive(
    path: &Path,
    compression: Compression,
    changes: &[Change],
    mtime: Option<i64>,
) -> Outcome<Archive> {
    let watch = Progress::bars();
    let (written, encoded): (Written, Encoded) = stored(path, |out| {
        let unwritable = |e: io::Error| unwritable(path, &e);
        let mut encoder = Encoder::new(out, compression).map_err(unwritable)?;
        watch.begin("writing", Some(commit::content_size(changes)));
        let written = commit::write(changes, &mut encoder, mtime, &watch)?;
        watch.end();
        let (_, encoded) = encoder.finish().map_err(unwritable)?;
        Ok((written, encoded))
    })?;
    tell(&written);
    let absolute =
        |paths: &[PathBuf]| paths.iter().map(|p| Path::new("/").join(p).to_string_lossy().into()).collect();
    Ok(Archive {
        digest: encoded.digest.to_string(),
        diff_id: encoded.diff_id.to_string(),
        size: encoded.size,
        archive_size: encoded.archive_size,
        media_type: compression.media_type(),
        entries: written.entries,
        left_out: absolute(&written.left_out),
        changed: absolute(&written.changed),
    })
}

/// Tells the user what an archive lacks.
pub fn tell(written: &Written) {
    for path in &written.left_out {
        super::say(&format!("left out: /{} is a socket, which has no form in an archive", path.display()));
    }
    for path in &written.changed {
        super::say(&format!("changed while it was archived: /{}", path.display()));
    }
}

fn print(json: bool, report: &Report) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        serde_json::to_writer_pretty(&mut out, report)?;
        return out.write_all(b"\n");
    }
    if let Some(Archive { digest, diff_id, size, .. }) = &report.archive {
        writeln!(out, "digest {digest}\ndiff-id {diff_id}\nsize {size}")?;
    }
    if let Some(stack) = &report.frozen {
        writeln!(out, "frozen {}\nupper {}\n{}", stack.frozen, stack.upper, stack.mount_command)?;
    }
    Ok(())
}

fn unwritable(path: &Path, e: &io::Error) -> MountError {
    MountError::path("archive", path, format!("cannot be written: {e}"))
}

/// Writes a file that has its name once it is whole and on the disk.
///
/// # Errors
/// Those of `write`, and of the file. Nothing is left then.
pub fn stored<T>(path: &Path, write: impl FnOnce(&mut std::fs::File) -> Outcome<T>) -> Outcome<T> {
    let unwritable = |e: io::Error| unwritable(path, &e);
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".unionfs-")
        .permissions(std::fs::Permissions::from_mode(0o644))
        .tempfile_in(parent)
        .map_err(unwritable)?;
    let result = write(file.as_file_mut())?;
    file.as_file().sync_all().map_err(unwritable)?;
    file.persist(path).map_err(|e| unwritable(e.error))?;
    Ok(result)
}
