//! `unionfs image`: a store of images.

use std::ffi::OsString;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use clap::Subcommand;
use oci_spec::image::Descriptor;

use super::args::MountArgs;
use super::commit::stored;
use super::diff::printed_all;
use super::layer_list::join_layers;
use super::layers::of_mount;
use super::live;
use super::made::Made;
use super::mount;
use super::progress::Progress;
use crate::config::LayerPaths;
use crate::error::{MountError, Outcome};
use crate::oci::change::{Change, Upper};
use crate::oci::codec::{Compression, Encoder};
use crate::oci::digest::Digest;
use crate::oci::store::{Image, Store, descriptor, short};
use crate::oci::{Watch, commit, export, import};

/// Arguments of `image`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The store is /var/lib/unionfs for root, $XDG_DATA_HOME/unionfs or ~/.local/share/unionfs for others.
Layers are kept by their diff ID, and shared between images.

Example:
  unionfs image import debian.tar --name debian:12
  unionfs image mount debian:12 container/upper /mnt/root
  unionfs image commit /mnt/root mine:1
  unionfs image export mine:1 -o mine.tar"
)]
pub struct ImageArgs {
    /// The store of images
    #[arg(long, value_name = "DIR", global = true)]
    store: Option<PathBuf>,

    /// What to do
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Take images into the store
    Import {
        /// An OCI image layout, as a directory or an archive, or an archive of docker save or podman save
        #[arg(value_name = "IMAGE")]
        from: PathBuf,
        /// What to call it, when there is one
        #[arg(long)]
        name: Option<String>,
    },
    /// List the images of the store
    Ls {
        /// Print a JSON array
        #[arg(long)]
        json: bool,
    },
    /// Show an image: its layers by diff ID, the lowest first, its configuration and history
    Inspect {
        /// Its name
        name: String,
    },
    /// Mount an image below an upper layer, with an init layer made for it
    Mount {
        /// Its name
        name: String,
        /// Upper layer, made if it is missing
        upper: PathBuf,
        /// Directory where the tree appears, made if it is missing
        mountpoint: PathBuf,
        /// Init layer [default: UPPER-init]; made if it is missing, with etc/hosts, etc/hostname,
        /// etc/resolv.conf and the places for dev, proc and sys
        #[arg(long, value_name = "DIR")]
        init: Option<PathBuf>,
        /// Mount options, as for unionfs mount
        #[arg(short = 'o', value_name = "OPT[,OPT]...")]
        options: Vec<OsString>,
    },
    /// Make a new image of one that is mounted, with what its upper layer has changed, and the layers
    /// frozen or mounted above it
    Commit {
        /// Where the image is mounted
        mountpoint: PathBuf,
        /// What to call the new one
        name: String,
        /// A line for the history of the image
        #[arg(long, short = 'm')]
        message: Option<String>,
        /// Let nothing in the layer be newer than this time, in seconds since 1970; it is the time of
        /// the image as well
        #[arg(long, value_name = "SECONDS")]
        mtime: Option<u32>,
    },
    /// Write an image as an OCI archive
    Export {
        /// Its name
        name: String,
        /// The archive to write
        #[arg(short, long, value_name = "FILE")]
        output: PathBuf,
    },
}

/// Does what the arguments say.
///
/// # Errors
/// A sentence that names the image, layer or path.
pub fn run(args: ImageArgs) -> Outcome<()> {
    let root = match args.store {
        Some(root) => root,
        None => default_store()?,
    };
    // Layers are named by absolute paths from here on.
    let root = std::path::absolute(&root)
        .map_err(|e| MountError::path("image store", &root, format!("cannot be used: {e}")))?;
    match args.command {
        ImageCommand::Import { from, name } => {
            crate::sys::process::raise_open_files();
            let watch = Progress::bars_or_lines();
            let names = import::import(&Store::change(&root)?, &from, name.as_deref(), &watch)?;
            let mut out = io::stdout().lock();
            printed_all(names.iter().try_for_each(|name| writeln!(out, "{name}")))
        }
        ImageCommand::Ls { json } => printed_all(ls(&images(&root)?, json)),
        ImageCommand::Inspect { name } => {
            let store = Store::open(&root)?;
            let image = store.find(&name)?;
            let layers = store.layers(&image.diff_ids)?;
            printed_all(inspect(&image, &layers))
        }
        ImageCommand::Mount { name, upper, mountpoint, init, options } => {
            let store = Store::open(&root)?;
            let layers = store.layers(&store.find(&name)?.diff_ids)?;
            mount_image(&layers, upper, mountpoint, init, options)
        }
        ImageCommand::Commit { mountpoint, name, message, mtime } => {
            commit_image(&Store::change(&root)?, &mountpoint, &name, message, mtime)
        }
        ImageCommand::Export { name, output } => {
            let store = Store::open(&root)?;
            let image = store.find(&name)?;
            stored(&output, |out| export::export(&store, &image, out, &Progress::bars()))
        }
    }
}

fn default_store() -> Outcome<PathBuf> {
    if rustix::process::geteuid().is_root() {
        return Ok("/var/lib/unionfs".into());
    }
    let data = std::env::var_os("XDG_DATA_HOME").map(PathBuf::from).filter(|p| p.is_absolute());
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".local/share"));
    data.or_else(home)
        .map(|dir| dir.join("unionfs"))
        .ok_or_else(|| MountError::option("--store", "is missing, and there is no HOME; name a directory"))
}

/// All images; none where there is no store yet.
fn images(root: &Path) -> Outcome<Vec<Image>> {
    if root.join("index.json").exists() { Store::open(root)?.images() } else { Ok(Vec::new()) }
}

fn size(image: &Image) -> u64 {
    image.manifest.layers().iter().map(Descriptor::size).sum()
}

fn ls(images: &[Image], json: bool) -> io::Result<()> {
    let mut out = io::stdout().lock();
    if json {
        let all: Vec<_> = images
            .iter()
            .map(|image| {
                serde_json::json!({
                    "name": image.name,
                    "id": image.manifest.config().digest().to_string(),
                    "layers": image.diff_ids.len(),
                    "size": size(image),
                    "created": image.config.created(),
                })
            })
            .collect();
        serde_json::to_writer_pretty(&mut out, &all)?;
        return out.write_all(b"\n");
    }
    let width = images.iter().map(|i| i.name.chars().count()).max().unwrap_or(0).max(4);
    writeln!(out, "{:width$}  {:12}  LAYERS  {:>10}  CREATED", "NAME", "ID", "SIZE")?;
    for image in images {
        let id = image.manifest.config().digest().digest().chars().take(12).collect::<String>();
        let size = indicatif::BinaryBytes(size(image)).to_string();
        let created = image.config.created().as_deref().unwrap_or("-");
        writeln!(out, "{:width$}  {id:12}  {:>6}  {size:>10}  {created}", image.name, image.diff_ids.len())?;
    }
    Ok(())
}

fn inspect(image: &Image, layers: &[PathBuf]) -> io::Result<()> {
    let field = |name: &str| image.raw_config.get(name).cloned().unwrap_or_default();
    let paths: Vec<String> = layers.iter().rev().map(|p| p.display().to_string()).collect();
    let text = serde_json::json!({
        "Id": image.manifest.config().digest().to_string(),
        "RepoTags": [image.name],
        "Created": field("created"),
        "Architecture": field("architecture"),
        "Os": field("os"),
        "Size": size(image),
        "RootFS": {
            "Type": "layers",
            "Layers": image.diff_ids.iter().map(ToString::to_string).collect::<Vec<_>>(),
        },
        "LayerPaths": paths,
        "Config": field("config"),
        "History": field("history"),
    });
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, &text)?;
    out.write_all(b"\n")
}

fn mount_image(
    layers: &[PathBuf],
    upper: PathBuf,
    mountpoint: PathBuf,
    init: Option<PathBuf>,
    options: Vec<OsString>,
) -> Outcome<()> {
    let init = match (init, upper.file_name()) {
        (Some(init), _) => init,
        (None, Some(name)) => {
            let mut name = name.to_owned();
            name.push("-init");
            upper.with_file_name(name)
        }
        (None, None) => {
            return Err(MountError::option("--init", "is missing; name a directory for the init layer"));
        }
    };
    if !init.exists() {
        make_init(&init)?;
    }
    mount::run(MountArgs {
        lowers: Some(join_layers(layers.iter().map(|l| l.as_os_str()))),
        upper: Some(upper),
        mountpoint: Some(mountpoint),
        read_only: false,
        init: Some(init),
        work: None,
        create: true,
        foreground: false,
        options,
    })
}

/// Makes an init layer as container engines do: files that are the container's own, and what they mount upon.
fn make_init(init: &Path) -> Outcome<()> {
    let mut made = Made::default();
    made.ensure("init layer", init, 0o755)?;
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let hosts =
        format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n");
    let resolv = fs::read("/etc/resolv.conf").unwrap_or_default();
    let fill = || -> io::Result<()> {
        for dir in ["dev/pts", "dev/shm", "proc", "sys", "etc"] {
            fs::create_dir_all(init.join(dir))?;
        }
        for (file, content) in [
            ("etc/hosts", hosts.as_bytes()),
            ("etc/hostname", format!("{hostname}\n").as_bytes()),
            ("etc/resolv.conf", &resolv),
            ("dev/console", b""),
            (".dockerenv", b""),
        ] {
            fs::write(init.join(file), content)?;
        }
        symlink("/proc/mounts", init.join("etc/mtab"))
    };
    let filled = fill().map_err(|e| {
        // It was not there before.
        let _ = fs::remove_dir_all(init);
        MountError::path("init layer", init, format!("cannot be made: {e}"))
    });
    made.keep();
    filled
}

fn commit_image(
    store: &Store,
    mountpoint: &Path,
    name: &str,
    message: Option<String>,
    mtime: Option<u32>,
) -> Outcome<()> {
    let (layers, options) = of_mount(mountpoint)?;
    let Some((base, above)) = image_of(store, &layers.lowers)? else {
        let reason =
            "has no image of this store mounted; mount one by unionfs image mount, or use unionfs commit";
        return Err(MountError::path("mount point", mountpoint, reason));
    };
    let mut added = Added { store, mtime, ids: base.diff_ids.clone(), blobs: base.manifest.layers().clone() };
    // The lowest first, each over what is below it.
    for at in (0..above).rev() {
        added.layer(&Upper::open(&lower_as_upper(&layers, at), &options)?.changes()?)?;
    }
    let moment = live::changes(mountpoint, &layers, &options)?;
    // Frozen layers may have left the upper without a change; without them an image has one layer more in any case.
    if above == 0 || !moment.changes.is_empty() {
        added.layer(&moment.changes)?;
    }
    moment.tell();
    let ids = added.ids.get(base.diff_ids.len()..).unwrap_or_default();
    let time = mtime.map_or_else(SystemTime::now, |seconds| {
        SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds.into())
    });
    let created = humantime::format_rfc3339_seconds(time).to_string();
    let config = new_config(&base, &added.ids, ids.len(), &created, message);
    let entry = import::new_manifest(store, config.to_string().as_bytes(), added.blobs)?;
    store.name(name, entry)?;
    let ids = ids.iter().map(short).collect::<Vec<_>>().join(" ");
    printed_all(writeln!(io::stdout().lock(), "{name} {ids} on {}", base.name))
}

/// The image whose layers are the lowest of these lowers, with how many lie above them: uppers that were frozen, or
/// what the user has mounted over it. Of several images the one that has most layers.
fn image_of(store: &Store, lowers: &[PathBuf]) -> Outcome<Option<(Image, usize)>> {
    let resolved =
        |paths: Vec<PathBuf>| paths.iter().map(|p| p.canonicalize().ok()).collect::<Option<Vec<_>>>();
    let mut best = None;
    for image in store.images()? {
        let Some(own) = store.layers(&image.diff_ids).ok().and_then(resolved) else { continue };
        let above = lowers.len().saturating_sub(own.len());
        let closer = best.as_ref().is_none_or(|&(_, other)| above < other);
        if closer && !own.is_empty() && lowers.ends_with(&own) {
            best = Some((image, above));
        }
    }
    Ok(best)
}

/// A lower as if it were the upper of those below it: what it changes is to be told.
fn lower_as_upper(layers: &LayerPaths, at: usize) -> LayerPaths {
    LayerPaths {
        upper: layers.lowers.get(at).cloned(),
        lowers: layers.lowers.iter().skip(at.saturating_add(1)).cloned().collect(),
        work: None,
        ..layers.clone()
    }
}

/// An image that grows.
struct Added<'a> {
    store: &'a Store,
    mtime: Option<u32>,
    ids: Vec<Digest>,
    blobs: Vec<Descriptor>,
}

impl Added<'_> {
    /// Adds a layer with these changes.
    fn layer(&mut self, changes: &[Change]) -> Outcome<()> {
        let watch = Progress::bars();
        watch.begin("writing", Some(commit::content_size(changes)));
        let failed = |e: io::Error| {
            MountError::path("image store", self.store.root(), format!("cannot be written: {e}"))
        };
        let (written, encoded) = self.store.put_by(
            |out| {
                let mut encoder = Encoder::new(out, Compression::Gzip).map_err(failed)?;
                let written = commit::write(changes, &mut encoder, self.mtime.map(i64::from), &watch)?;
                let (_, encoded) = encoder.finish().map_err(failed)?;
                Ok((written, encoded))
            },
            |(_, encoded)| encoded.digest,
        )?;
        watch.end();
        super::commit::tell(&written);
        self.ids.push(encoded.diff_id);
        self.blobs.push(descriptor(Compression::Gzip.media_type(), &encoded.digest, encoded.size)?);
        self.store.add_layer(&encoded.digest, &self.ids, &watch)
    }
}

/// The configuration of an image that has these layers, the last `added` of them new.
fn new_config(
    base: &Image,
    ids: &[Digest],
    added: usize,
    created: &str,
    message: Option<String>,
) -> serde_json::Value {
    let mut config = base.raw_config.clone();
    let ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
    let entry = serde_json::json!({
        "created": created,
        "created_by": "unionfs image commit",
        "comment": message.unwrap_or_default(),
    });
    if let Some(fields) = config.as_object_mut() {
        fields.insert("created".into(), created.into());
        fields.insert("rootfs".into(), serde_json::json!({"type": "layers", "diff_ids": ids}));
        match fields.get_mut("history").and_then(serde_json::Value::as_array_mut) {
            Some(history) => history.extend(vec![entry; added]),
            None => drop(fields.insert("history".into(), vec![entry; added].into())),
        }
    }
    config
}
