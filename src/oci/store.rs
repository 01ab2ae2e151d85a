//! A store of images on this machine: an OCI image layout (image-layout.md) with, beside its blobs, each layer as a
//! directory to be mounted. Layers are found by their diff ID and shared between images.
//!
//! ```text
//! oci-layout, index.json    the images by name (org.opencontainers.image.ref.name)
//! blobs/sha256/HEX          manifests, configurations, layer archives as they came
//! layers/HEX                a layer by its diff ID, or by its chain ID if it has copies of files below
//! incoming                  what an import is about to take apart
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use oci_spec::image::{
    Descriptor, ImageConfiguration, ImageIndex, ImageIndexBuilder, ImageManifest, MediaType,
};

use super::Watch;
use super::apply::apply;
use super::digest::{Digest, Digesting};
use super::wanted::Wanted;
use crate::error::{MountError, Outcome};
use crate::sys::place;

/// The annotation that names an image (annotations.md, "Pre-Defined Annotation Keys").
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";

const WHAT: &str = "image store";
/// The content of `oci-layout`.
const LAYOUT: &str = "{\"imageLayoutVersion\":\"1.0.0\"}";

/// An open store. Whoever changes it holds a lock on it.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    _lock: Option<OwnedFd>,
}

/// An image in the store.
#[derive(Debug, Clone)]
pub struct Image {
    /// Its name, such as `debian:12`.
    pub name: String,
    /// Where its manifest is.
    pub descriptor: Descriptor,
    /// Its manifest.
    pub manifest: ImageManifest,
    /// Its configuration.
    pub config: ImageConfiguration,
    /// The configuration as it is stored: what the type above does not know is kept.
    pub raw_config: serde_json::Value,
    /// The diff IDs of its layers, the lowest first.
    pub diff_ids: Vec<Digest>,
}

impl Store {
    /// Opens a store to look into it.
    ///
    /// # Errors
    /// A directory that is no store.
    pub fn open(root: &Path) -> Outcome<Self> {
        if !root.join("index.json").is_file() {
            let reason =
                "has no images; import one by unionfs image import, or name another store by --store";
            return Err(MountError::path(WHAT, root, reason));
        }
        Ok(Self { root: root.to_owned(), _lock: None })
    }

    /// Opens a store to change it; makes it if there is none.
    ///
    /// # Errors
    /// A directory that cannot be made or is being changed by another process.
    pub fn change(root: &Path) -> Outcome<Self> {
        let complain = |e: io::Error| MountError::path(WHAT, root, format!("cannot be made: {e}"));
        for dir in ["blobs/sha256", "layers"] {
            fs::create_dir_all(root.join(dir)).map_err(complain)?;
        }
        let lock = place::open_named_dir(root).map_err(|e| complain(e.into()))?;
        place::lock(&lock).map_err(|_| {
            MountError::path(WHAT, root, "is being changed by another process; wait for that to end")
        })?;
        let store = Self { root: root.to_owned(), _lock: Some(lock) };
        let _ = fs::remove_dir_all(store.incoming());
        if !root.join("index.json").exists() {
            store.replace("oci-layout", LAYOUT.as_bytes())?;
            let index = ImageIndexBuilder::default().schema_version(2_u32).manifests(Vec::new()).build();
            store.write_index(&index.map_err(|e| store.damaged("index.json", &e))?)?;
        }
        Ok(store)
    }

    /// Where an archive of images is taken apart; removed by whoever changes the store next.
    pub(super) fn incoming(&self) -> PathBuf {
        self.root.join("incoming")
    }

    /// The directory of the store.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn damaged(&self, name: &str, e: &dyn std::fmt::Display) -> MountError {
        MountError::path(WHAT, self.root.join(name), format!("cannot be used: {e}"))
    }

    /// Writes a file of the store, whole or not at all.
    fn replace(&self, name: &str, content: &[u8]) -> Outcome<()> {
        let path = self.root.join(name);
        let write = || -> io::Result<()> {
            let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&self.root)?;
            file.write_all(content)?;
            file.as_file().sync_all()?;
            fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
            file.persist(&path).map_err(|e| e.error)?;
            Ok(())
        };
        write().map_err(|e| self.damaged(name, &e))
    }

    /// Where the blob with this digest is.
    pub fn blob(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Reads a small blob, and checks it.
    pub(super) fn read_blob(&self, descriptor: &Descriptor) -> Outcome<Vec<u8>> {
        let digest = digest_of(descriptor).map_err(|e| self.damaged("blobs", &e))?;
        let path = self.blob(&digest);
        let bytes =
            fs::read(&path).map_err(|e| self.damaged("blobs", &format!("{}: {e}", path.display())))?;
        if Digest::of(&bytes) != digest {
            return Err(self.damaged("blobs", &format!("{digest} is damaged; import the image anew")));
        }
        Ok(bytes)
    }

    /// Stores a small blob.
    ///
    /// # Errors
    /// Those of writing.
    pub fn put(&self, bytes: &[u8]) -> Outcome<Digest> {
        let digest = Digest::of(bytes);
        if !self.blob(&digest).exists() {
            self.replace(&format!("blobs/sha256/{}", digest.hex()), bytes)?;
        }
        Ok(digest)
    }

    /// Stores what `write` writes, and gives its result. The blob has the digest that `digest` finds in that.
    ///
    /// # Errors
    /// Those of `write`, and of the store.
    pub fn put_by<T>(
        &self,
        write: impl FnOnce(&mut File) -> Outcome<T>,
        digest: impl FnOnce(&T) -> Digest,
    ) -> Outcome<T> {
        let failed = |e: io::Error| self.damaged("blobs", &e);
        let mut file = tempfile::Builder::new().prefix(".new-").tempfile_in(&self.root).map_err(failed)?;
        let result = write(file.as_file_mut())?;
        file.as_file().sync_all().map_err(failed)?;
        fs::set_permissions(file.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .map_err(failed)?;
        file.persist(self.blob(&digest(&result))).map_err(|e| failed(e.error))?;
        Ok(result)
    }

    /// Stores a copy of a file; `wanted`: with this digest.
    pub(super) fn put_file(
        &self,
        path: &Path,
        wanted: Option<Digest>,
        watch: &dyn Watch,
    ) -> Outcome<(Digest, u64)> {
        let unreadable = |e: io::Error| MountError::path("layer", path, format!("cannot be read: {e}"));
        if let Some(wanted) = wanted
            && let Ok(there) = self.blob(&wanted).metadata()
        {
            return Ok((wanted, there.len()));
        }
        let copy = |to: &mut File| {
            let mut from = Digesting::new(File::open(path).map_err(unreadable)?);
            let mut buffer = vec![0; 256 << 10];
            loop {
                let n = from.read(&mut buffer).map_err(unreadable)?;
                if n == 0 {
                    break;
                }
                to.write_all(&buffer[..n]).map_err(|e| self.damaged("blobs", &e))?;
                watch.step(n as u64);
            }
            let (_, digest, size) = from.finish();
            match wanted.filter(|wanted| *wanted != digest) {
                Some(wanted) => {
                    let reason = format!("has the digest {digest}, not {wanted}; get the image anew");
                    Err(MountError::path("layer", path, reason))
                }
                None => Ok((digest, size)),
            }
        };
        self.put_by(copy, |(digest, _)| *digest)
    }

    /// The directories of an image's layers, topmost first.
    ///
    /// # Errors
    /// A layer that is not there.
    pub fn layers(&self, diff_ids: &[Digest]) -> Outcome<Vec<PathBuf>> {
        let mut paths = Vec::new();
        for (i, diff_id) in diff_ids.iter().enumerate() {
            let there = self.layer(diff_id, &chain_id(&diff_ids[..=i]));
            paths.push(there.ok_or_else(|| {
                self.damaged("layers", &format!("{diff_id} is missing; import the image anew"))
            })?);
        }
        paths.reverse();
        Ok(paths)
    }

    fn layer(&self, diff_id: &Digest, chain_id: &Digest) -> Option<PathBuf> {
        // What was made for this chain fits better.
        [chain_id, diff_id]
            .map(|id| self.root.join("layers").join(id.hex()))
            .into_iter()
            .find(|path| path.is_dir())
    }

    /// Makes the directory of a layer, the last of `diff_ids`, from its blob, unless it is there.
    ///
    /// # Errors
    /// An archive that is refused.
    pub fn add_layer(&self, blob: &Digest, diff_ids: &[Digest], watch: &dyn Watch) -> Outcome<()> {
        let Some((diff_id, below)) = diff_ids.split_last() else { return Ok(()) };
        let chain_id = chain_id(diff_ids);
        if self.layer(diff_id, &chain_id).is_some() {
            return Ok(());
        }
        let path = self.blob(blob);
        let file =
            File::open(&path).map_err(|e| self.damaged("blobs", &format!("{}: {e}", path.display())))?;
        let rootless = !rustix::process::geteuid().is_root();
        let wanted = Wanted {
            digest: Some(*blob),
            diff_id: Some(*diff_id),
            lowers: self.layers(below)?,
            rootless,
            userxattr: rootless.then_some(true),
            ..Wanted::default()
        };
        let size = file.metadata().map(|m| m.len()).ok();
        let target = self.root.join("layers").join(chain_id.hex());
        watch.begin(&format!("unpacking {}", short(diff_id)), size);
        let applied = apply(file, &path, &target, &wanted, watch);
        watch.end();
        if !applied?.depends && chain_id != *diff_id {
            // The same above any other layers.
            fs::rename(&target, self.root.join("layers").join(diff_id.hex()))
                .map_err(|e| self.damaged("layers", &e))?;
        }
        Ok(())
    }

    fn index(&self) -> Outcome<ImageIndex> {
        let path = self.root.join("index.json");
        ImageIndex::from_file(&path).map_err(|e| self.damaged("index.json", &e))
    }

    fn write_index(&self, index: &ImageIndex) -> Outcome<()> {
        let text = index.to_string_pretty().map_err(|e| self.damaged("index.json", &e))?;
        self.replace("index.json", text.as_bytes())
    }

    /// Gives an image a name; an image that had it loses it.
    ///
    /// # Errors
    /// Those of writing.
    pub fn name(&self, name: &str, mut descriptor: Descriptor) -> Outcome<()> {
        let mut index = self.index()?;
        let mut annotations = descriptor.annotations().clone().unwrap_or_default();
        annotations.insert(REF_NAME.to_owned(), name.to_owned());
        descriptor.set_annotations(Some(annotations));
        let mut manifests = index.manifests().clone();
        manifests.retain(|there| name_of(there) != Some(name));
        manifests.push(descriptor);
        index.set_manifests(manifests);
        self.write_index(&index)
    }

    /// All images, in the order in which they came.
    ///
    /// # Errors
    /// A store that is damaged.
    pub fn images(&self) -> Outcome<Vec<Image>> {
        self.index()?
            .manifests()
            .iter()
            .filter_map(|d| Some((d, name_of(d)?)))
            .map(|(d, n)| self.image(n, d))
            .collect()
    }

    /// The image of this name; `:latest` may be left out.
    ///
    /// # Errors
    /// A name that no image has.
    pub fn find(&self, name: &str) -> Outcome<Image> {
        let index = self.index()?;
        let latest = format!("{name}:latest");
        let found = index.manifests().iter().find_map(|d| {
            let its = name_of(d)?;
            (its == name || its == latest).then_some((its, d))
        });
        match found {
            Some((name, descriptor)) => self.image(name, descriptor),
            None => {
                Err(MountError::path("image", name, "is not in the store; unionfs image ls shows what is"))
            }
        }
    }

    fn image(&self, name: &str, descriptor: &Descriptor) -> Outcome<Image> {
        let manifest: ImageManifest = self.parse(&self.read_blob(descriptor)?)?;
        let bytes = self.read_blob(manifest.config())?;
        let config: ImageConfiguration = self.parse(&bytes)?;
        let diff_ids = diff_ids(&config).map_err(|e| self.damaged("blobs", &e))?;
        Ok(Image {
            name: name.to_owned(),
            descriptor: descriptor.clone(),
            manifest,
            config,
            raw_config: self.parse(&bytes)?,
            diff_ids,
        })
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, bytes: &[u8]) -> Outcome<T> {
        serde_json::from_slice(bytes).map_err(|e| self.damaged("blobs", &e))
    }
}

/// The name of an image in an index.
pub(super) fn name_of(descriptor: &Descriptor) -> Option<&str> {
    descriptor.annotations().as_ref()?.get(REF_NAME).map(String::as_str)
}

/// The digest that a descriptor names.
pub(super) fn digest_of(descriptor: &Descriptor) -> Result<Digest, String> {
    let text = descriptor.digest().to_string();
    text.parse().map_err(|e| format!("{text}: {e}"))
}

/// The diff IDs of a configuration, the lowest first.
pub(super) fn diff_ids(config: &ImageConfiguration) -> Result<Vec<Digest>, String> {
    config.rootfs().diff_ids().iter().map(|id| id.parse().map_err(|e| format!("diff ID {id}: {e}"))).collect()
}

/// What identifies a stack of layers (OCI image spec, config.md, "Layer ChainID").
pub fn chain_id(diff_ids: &[Digest]) -> Digest {
    let mut ids = diff_ids.iter();
    let first = ids.next().copied().unwrap_or_else(|| Digest::of(b""));
    ids.fold(first, |chain, id| Digest::of(format!("{chain} {id}").as_bytes()))
}

/// The first digits, enough for a message.
pub fn short(digest: &Digest) -> String {
    digest.hex().chars().take(12).collect()
}

/// A descriptor of a blob.
pub fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Outcome<Descriptor> {
    let text = digest.to_string();
    let digest: oci_spec::image::Digest =
        text.parse().map_err(|e| MountError::System(format!("{text} is no digest: {e}")))?;
    Ok(Descriptor::new(MediaType::from(media_type), size, digest))
}
