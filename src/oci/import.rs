//! Importing images: OCI image layouts, as directories or archives, and archives of `docker save`.

use std::fs::{self, File};
use std::path::{Component, Path, PathBuf};

use oci_spec::image::{
    Descriptor, ImageConfiguration, ImageIndex, ImageManifest, ImageManifestBuilder, MediaType,
};
use serde::Deserialize;

use super::Watch;
use super::apply::apply;
use super::codec::Compression;
use super::digest::Digest;
use super::store::{Store, descriptor, diff_ids, digest_of, name_of};
use super::wanted::Wanted;
use crate::error::{MountError, Outcome};

/// How deep indexes may refer to indexes.
const MAX_DEPTH: usize = 4;
/// The annotation by which containerd names images; docker writes it too.
const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// An entry of `manifest.json` in an archive of `docker save`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: PathBuf,
    repo_tags: Option<Vec<String>>,
    layers: Vec<PathBuf>,
}

/// Imports all images of `from`, a directory or an archive; gives their names. `name`: what to call it, when there is
/// one.
///
/// # Errors
/// A sentence that names what is wrong with it. Layers that are complete stay in the store, so that the next try goes
/// on from there.
pub fn import(store: &Store, from: &Path, name: Option<&str>, watch: &dyn Watch) -> Outcome<Vec<String>> {
    let missing = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound => MountError::path("image", from, "does not exist; correct the path"),
        _ => MountError::path("image", from, format!("cannot be read: {e}")),
    };
    let meta = fs::metadata(from).map_err(missing)?;
    let source = if meta.is_dir() {
        from.to_owned()
    } else {
        let file = File::open(from).map_err(missing)?;
        watch.begin(&format!("reading {}", from.display()), Some(meta.len()));
        let wanted = Wanted { rootless: true, userxattr: Some(true), ..Wanted::default() };
        let applied = apply(file, from, &store.incoming(), &wanted, watch);
        watch.end();
        applied?;
        store.incoming()
    };
    let source = Source { root: source.canonicalize().map_err(missing)?, shown: from };
    let names = if source.root.join("index.json").exists() {
        source.layout(store, name, watch)
    } else if source.root.join("manifest.json").exists() {
        source.saved(store, name, watch)
    } else {
        Err(source.wrong("is no image: it has neither an index.json (OCI) nor a manifest.json (docker save)"))
    };
    if !meta.is_dir() {
        let _ = fs::remove_dir_all(store.incoming());
    }
    names
}

/// Where an image comes from. It is not trusted: nothing outside of it is read.
struct Source<'a> {
    root: PathBuf,
    shown: &'a Path,
}

impl Source<'_> {
    fn wrong(&self, reason: impl Into<String>) -> MountError {
        MountError::path("image", self.shown, reason)
    }

    /// A file of the source. A symlink, as old versions of docker put in place of equal layers, may not lead out.
    fn file(&self, path: &Path) -> Outcome<PathBuf> {
        let plain = path.components().all(|c| matches!(c, Component::Normal(_)));
        let real = plain.then(|| self.root.join(path).canonicalize().ok()).flatten();
        real.filter(|real| real.starts_with(&self.root) && real.is_file())
            .ok_or_else(|| self.wrong(format!("lacks {}", path.display())))
    }

    fn read(&self, path: &Path) -> Outcome<Vec<u8>> {
        fs::read(self.file(path)?).map_err(|e| self.wrong(format!("cannot be read: {}: {e}", path.display())))
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, what: &Path, bytes: &[u8]) -> Outcome<T> {
        serde_json::from_slice(bytes)
            .map_err(|e| self.wrong(format!("has a malformed {}: {e}", what.display())))
    }

    fn blob(&self, descriptor: &Descriptor) -> Outcome<(Digest, PathBuf)> {
        let digest = digest_of(descriptor).map_err(|e| self.wrong(e))?;
        Ok((digest, Path::new("blobs/sha256").join(digest.hex())))
    }

    /// A small blob, checked.
    fn read_blob(&self, descriptor: &Descriptor) -> Outcome<Vec<u8>> {
        let (digest, path) = self.blob(descriptor)?;
        let bytes = self.read(&path)?;
        if Digest::of(&bytes) != digest {
            return Err(self.wrong(format!("is damaged: {} has another digest; get it anew", path.display())));
        }
        Ok(bytes)
    }

    fn layout(&self, store: &Store, name: Option<&str>, watch: &dyn Watch) -> Outcome<Vec<String>> {
        let path = Path::new("index.json");
        let index: ImageIndex = self.parse(path, &self.read(path)?)?;
        let mut names = Vec::new();
        let single = index.manifests().len() == 1;
        for entry in index.manifests() {
            let containerd = || entry.annotations().as_ref()?.get(CONTAINERD_NAME).map(String::as_str);
            let own = containerd().or_else(|| name_of(entry));
            let Some(name) = name.filter(|_| single).or(own) else {
                return Err(self.wrong("has an image without a name; give it one by --name"));
            };
            let manifest = self.manifest(entry, MAX_DEPTH)?;
            self.image(store, name, &manifest, watch)?;
            names.push(name.to_owned());
        }
        Ok(names)
    }

    /// The manifest that an entry of an index stands for, on this machine.
    fn manifest(&self, entry: &Descriptor, depth: usize) -> Outcome<Descriptor> {
        if !matches!(entry.media_type(), MediaType::ImageIndex)
            && entry.media_type().to_string() != "application/vnd.docker.distribution.manifest.list.v2+json"
        {
            return Ok(entry.clone());
        }
        let depth = depth.checked_sub(1).ok_or_else(|| self.wrong("has indexes that refer to each other"))?;
        let (_, path) = self.blob(entry)?;
        let index: ImageIndex = self.parse(&path, &self.read_blob(entry)?)?;
        let here = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let fits = |d: &&Descriptor| {
            d.platform()
                .as_ref()
                .is_some_and(|p| p.architecture().to_string() == here && p.os().to_string() == "linux")
        };
        let all = index.manifests();
        let entry = all.iter().find(fits).or(all.first().filter(|_| all.len() == 1));
        let entry = entry.ok_or_else(|| self.wrong(format!("has no image for linux/{here}")))?;
        self.manifest(entry, depth)
    }

    /// Imports the image with this manifest.
    fn image(&self, store: &Store, name: &str, entry: &Descriptor, watch: &dyn Watch) -> Outcome<()> {
        let bytes = self.read_blob(entry)?;
        let (_, path) = self.blob(entry)?;
        let manifest: ImageManifest = self.parse(&path, &bytes)?;
        let config = self.read_blob(manifest.config())?;
        let (_, path) = self.blob(manifest.config())?;
        let ids = self.diff_ids(&path, &config, manifest.layers().len())?;
        for (i, layer) in manifest.layers().iter().enumerate() {
            let (digest, path) = self.blob(layer)?;
            let file = self.file(&path);
            // One that the store has need not be in the source.
            if file.is_ok() || !store.blob(&digest).exists() {
                watch.begin(&format!("copying {}", super::store::short(&digest)), Some(layer.size()));
                let copied = store.put_file(&file?, Some(digest), watch);
                watch.end();
                copied?;
            }
            store.add_layer(&digest, &ids[..=i], watch)?;
        }
        store.put(&config)?;
        store.put(&bytes)?;
        let mut named = entry.clone();
        named.set_annotations(None);
        store.name(name, named)
    }

    fn diff_ids(&self, path: &Path, config: &[u8], layers: usize) -> Outcome<Vec<Digest>> {
        let config: ImageConfiguration = self.parse(path, config)?;
        let ids = diff_ids(&config).map_err(|e| self.wrong(e))?;
        if ids.len() == layers {
            Ok(ids)
        } else {
            Err(self.wrong(format!("has {layers} layers, and {} diff IDs in its configuration", ids.len())))
        }
    }

    fn saved(&self, store: &Store, name: Option<&str>, watch: &dyn Watch) -> Outcome<Vec<String>> {
        let path = Path::new("manifest.json");
        let all: Vec<Saved> = self.parse(path, &self.read(path)?)?;
        let mut names = Vec::new();
        for saved in &all {
            let config = self.read(&saved.config)?;
            let ids = self.diff_ids(&saved.config, &config, saved.layers.len())?;
            let mut layers = Vec::new();
            for (i, layer) in saved.layers.iter().enumerate() {
                let file = self.file(layer)?;
                let size = file.metadata().map(|m| m.len()).ok();
                watch.begin(&format!("copying {}", super::store::short(&ids[i])), size);
                let copied = store.put_file(&file, None, watch);
                watch.end();
                let (digest, size) = copied?;
                let mut start = [0; 4];
                let read = File::open(&file).and_then(|mut f| std::io::Read::read(&mut f, &mut start));
                let n = read.map_err(|e| self.wrong(format!("cannot be read: {}: {e}", layer.display())))?;
                layers.push(descriptor(Compression::of_content(&start[..n]).media_type(), &digest, size)?);
                store.add_layer(&digest, &ids[..=i], watch)?;
            }
            let entry = new_manifest(store, &config, layers)?;
            let tags = saved.repo_tags.clone().unwrap_or_default();
            let given: Vec<&str> = match name.filter(|_| all.len() == 1) {
                Some(name) => vec![name],
                None => tags.iter().map(String::as_str).collect(),
            };
            if given.is_empty() {
                return Err(self.wrong("has an image without a name; give it one by --name"));
            }
            for name in given {
                store.name(name, entry.clone())?;
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }
}

/// Stores a configuration, and a manifest with these layers; gives the descriptor of that.
///
/// # Errors
/// Those of writing.
pub fn new_manifest(store: &Store, config: &[u8], layers: Vec<Descriptor>) -> Outcome<Descriptor> {
    let digest = store.put(config)?;
    let config = descriptor("application/vnd.oci.image.config.v1+json", &digest, config.len() as u64)?;
    let failed = |e: oci_spec::OciSpecError| MountError::System(format!("a manifest cannot be written: {e}"));
    let manifest = ImageManifestBuilder::default()
        .schema_version(2_u32)
        .media_type(MediaType::ImageManifest)
        .config(config)
        .layers(layers)
        .build()
        .map_err(failed)?;
    let text = manifest.to_string().map_err(failed)?;
    let digest = store.put(text.as_bytes())?;
    descriptor("application/vnd.oci.image.manifest.v1+json", &digest, text.len() as u64)
}
