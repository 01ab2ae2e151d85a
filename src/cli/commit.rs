//! `unionfs commit`: an upper as a layer of an image.

use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::diff::printed_all;
use super::layers::UpperArgs;
use super::progress::Progress;
use crate::error::{MountError, Outcome};
use crate::oci::Watch;
use crate::oci::codec::{Compression, Encoded, Encoder};
use crate::oci::commit::{self, Written};
use crate::oci::delta::Upper;

/// Arguments of `commit`.
#[derive(Debug, clap::Args)]
#[command(
    override_usage = "unionfs commit [OPTIONS] -o FILE --upper DIR --lower LOWER[:LOWER...] [--init DIR]"
)]
#[command(
    after_help = "Writes what the upper layer changes, as unionfs diff tells it, in the form of an OCI image layer,
and prints its digest, its diff ID (the digest of the archive before compression) and its size in
bytes. The same layers give the same archive.

Examples:
  unionfs commit -o layer.tar.gz /mnt/root
  unionfs commit --upper container/upper --lower image2:image1:base -o layer.tar.zst"
)]
pub struct CommitArgs {
    #[command(flatten)]
    layers: UpperArgs,

    /// The archive to write; its name ends in .tar, .tar.gz, .tgz or .tar.zst
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,

    /// Let nothing be newer than this time, in seconds since 1970, so that the same work done at
    /// another time gives the same archive
    #[arg(long, value_name = "SECONDS", allow_negative_numbers = true)]
    mtime: Option<i64>,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

/// What is printed.
#[derive(Serialize)]
struct Report {
    digest: String,
    diff_id: String,
    size: u64,
    archive_size: u64,
    media_type: &'static str,
    entries: u64,
    left_out: Vec<String>,
}

/// Writes the layer.
///
/// # Errors
/// Layers that cannot be read, an archive that cannot be written. The archive is there whole or not at all.
pub fn run(args: &CommitArgs) -> Outcome<()> {
    let Some(compression) = Compression::of_name(&args.output) else {
        let reason = "has a name that says no form; let it end in .tar, .tar.gz, .tgz or .tar.zst";
        return Err(MountError::path("archive", &args.output, reason));
    };
    let (layers, options) = args.layers.find()?;
    let changes = Upper::open(&layers, &options)?.changes()?;
    let watch = Progress::bars();
    let (written, encoded) = stored(&args.output, |out| {
        let unwritable = |e: io::Error| unwritable(&args.output, &e);
        let mut encoder = Encoder::new(out, compression).map_err(unwritable)?;
        watch.begin("writing", Some(commit::content_size(&changes)));
        let written = commit::write(&changes, &mut encoder, args.mtime, &watch)?;
        watch.end();
        let (_, encoded) = encoder.finish().map_err(unwritable)?;
        Ok((written, encoded))
    })?;
    for path in &written.left_out {
        super::say(&format!("left out: /{} is a socket, which has no form in an archive", path.display()));
    }
    printed_all(report(args.json, compression, &written, &encoded))
}

fn report(json: bool, compression: Compression, written: &Written, encoded: &Encoded) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if !json {
        let Encoded { digest, diff_id, size, .. } = encoded;
        return writeln!(out, "digest {digest}\ndiff-id {diff_id}\nsize {size}");
    }
    let report = Report {
        digest: encoded.digest.to_string(),
        diff_id: encoded.diff_id.to_string(),
        size: encoded.size,
        archive_size: encoded.archive_size,
        media_type: compression.media_type(),
        entries: written.entries,
        left_out: written.left_out.iter().map(|p| Path::new("/").join(p).to_string_lossy().into()).collect(),
    };
    serde_json::to_writer_pretty(&mut out, &report)?;
    out.write_all(b"\n")
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
