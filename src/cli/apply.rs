//! `unionfs apply`: a layer of an image as a directory.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use serde::Serialize;

use super::diff::printed_all;
use super::layer_list::split_layers;
use super::progress::Progress;
use crate::error::{MountError, Outcome};
use crate::oci::Watch;
use crate::oci::apply::{Applied, apply};
use crate::oci::digest::Digest;
use crate::oci::ids::IdMap;
use crate::oci::tar::Limits;
use crate::oci::wanted::Wanted;

/// Arguments of `apply`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The archive may be compressed by gzip or zstd. The directory appears when it is complete, with the
whiteouts of the archive in the form of overlayfs, and can be mounted as a lower layer by unionfs and
by the kernel. An archive with an entry that leads out of the directory is refused.

Example:
  unionfs apply layer.tar.zst layers/app"
)]
pub struct ApplyArgs {
    /// The archive of an OCI or Docker image layer; - reads standard input
    #[arg(value_name = "LAYER")]
    layer: PathBuf,

    /// The directory to make; it must not be there, or be empty
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// Refuse an archive whose file has another digest
    #[arg(long, value_name = "sha256:HEX", value_parser = digest)]
    digest: Option<Digest>,

    /// Refuse an archive that has another digest before compression
    #[arg(long, value_name = "sha256:HEX", value_parser = digest)]
    diff_id: Option<Digest>,

    /// Layers below, topmost first: where hardlinks lead to files of these, copies are made
    #[arg(long, value_name = "LOWER[:LOWER...]")]
    lower: Option<OsString>,

    /// Owners: so many from IMAGE on are on this machine those from HOST on; may be given again
    #[arg(long, value_name = "IMAGE:HOST:COUNT", conflicts_with = "rootless")]
    uid_map: Vec<String>,

    /// The same for groups
    #[arg(long, value_name = "IMAGE:HOST:COUNT", conflicts_with = "rootless")]
    gid_map: Vec<String>,

    /// Keep owners, modes and devices in user.containers.override_stat, as users without privilege can
    #[arg(long)]
    rootless: bool,

    /// Private attributes in user.overlay. (default: what is permitted)
    #[arg(long)]
    userxattr: bool,

    /// Refuse an archive with more entries
    #[arg(long, value_name = "N", default_value_t = Limits::default().entries)]
    max_entries: u64,

    /// Refuse an archive with more bytes of content
    #[arg(long, value_name = "BYTES")]
    max_size: Option<u64>,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

fn digest(text: &str) -> Result<Digest, String> {
    text.parse().map_err(|e: crate::oci::digest::NoDigest| e.to_string())
}

fn id_map(option: &str, ranges: &[String]) -> Outcome<IdMap> {
    let mut map = IdMap::default();
    for range in ranges {
        map.add(range).map_err(|reason| MountError::option(format!("{option} {range}"), reason))?;
    }
    Ok(map)
}

/// What is printed.
#[derive(Serialize)]
struct Report {
    digest: String,
    diff_id: String,
    size: u64,
    archive_size: u64,
    notes: Vec<String>,
}

/// Applies the layer.
///
/// # Errors
/// An archive that is refused; a directory that cannot be made. Nothing is left then.
pub fn run(args: &ApplyArgs) -> Outcome<()> {
    crate::sys::process::raise_open_files();
    let lowers = args.lower.as_deref().map(split_layers).transpose()?.unwrap_or_default();
    let default = Limits::default();
    let wanted = Wanted {
        digest: args.digest,
        diff_id: args.diff_id,
        limits: Limits {
            entries: args.max_entries,
            content: args.max_size.unwrap_or(default.content),
            ..default
        },
        uids: id_map("--uid-map", &args.uid_map)?,
        gids: id_map("--gid-map", &args.gid_map)?,
        rootless: args.rootless,
        userxattr: (args.userxattr || args.rootless).then_some(true),
        lowers: lowers.merged,
    };
    let watch = Progress::bars();
    let applied = if args.layer.as_os_str() == "-" {
        watch.begin("applying", None);
        apply(io::stdin(), &PathBuf::from("standard input"), &args.dir, &wanted, &watch)
    } else {
        let unreadable = |e: io::Error| {
            let reason = match e.kind() {
                io::ErrorKind::NotFound => "does not exist; correct the path".to_owned(),
                _ => format!("cannot be read: {e}"),
            };
            MountError::path("layer", &args.layer, reason)
        };
        let file = File::open(&args.layer).map_err(unreadable)?;
        let size = file.metadata().map_err(unreadable)?.len();
        watch.begin("applying", Some(size));
        apply(file, &args.layer, &args.dir, &wanted, &watch)
    };
    watch.end();
    let applied = applied?;
    for note in &applied.notes {
        super::say(note);
    }
    printed_all(report(args.json, &applied))
}

fn report(json: bool, applied: &Applied) -> io::Result<()> {
    let text = |digest: Option<Digest>| digest.map(|d| d.to_string()).unwrap_or_default();
    let (digest, diff_id) = (text(applied.digest), text(applied.diff_id));
    let mut out = io::stdout().lock();
    if !json {
        return writeln!(out, "digest {digest}\ndiff-id {diff_id}\nsize {}", applied.size);
    }
    let Applied { archive_size, size, notes, .. } = applied;
    let report = Report { digest, diff_id, size: *size, archive_size: *archive_size, notes: notes.clone() };
    serde_json::to_writer_pretty(&mut out, &report)?;
    out.write_all(b"\n")
}
