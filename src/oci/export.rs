//! Exporting an image as an OCI archive: an image layout in a tar file.

use std::fs::File;
use std::io::{self, Write};

use oci_spec::image::ImageIndexBuilder;

use super::attributes::Xattrs;
use super::store::{Image, REF_NAME, Store, digest_of};
use super::tar::{Entry, EntryKind, Writer};
use super::{Watch, Watched};
use crate::error::{MountError, Outcome};

/// Writes the archive of an image.
///
/// # Errors
/// A blob that is missing, an archive that cannot be written.
pub fn export(store: &Store, image: &Image, out: impl Write, watch: &dyn Watch) -> Outcome<()> {
    let mut archive = Writer::new(io::BufWriter::with_capacity(256 << 10, out));
    let failed = |e: io::Error| MountError::System(format!("the archive cannot be written: {e}"));
    let mut named = image.descriptor.clone();
    named.set_annotations(Some([(REF_NAME.to_owned(), image.name.clone())].into()));
    let index = ImageIndexBuilder::default()
        .schema_version(2_u32)
        .manifests(vec![named])
        .build()
        .and_then(|index| index.to_string())
        .map_err(|e| MountError::System(format!("an index cannot be written: {e}")))?;
    for (name, content) in [("oci-layout", "{\"imageLayoutVersion\":\"1.0.0\"}"), ("index.json", &index)] {
        archive.append(&entry(name.into(), content.len() as u64), content.as_bytes()).map_err(failed)?;
    }
    let manifest = &image.manifest;
    let blobs: Vec<_> = [&image.descriptor, manifest.config()].into_iter().chain(manifest.layers()).collect();
    watch.begin(&format!("writing {}", image.name), Some(blobs.iter().map(|b| b.size()).sum()));
    let mut seen = std::collections::HashSet::new();
    for blob in blobs {
        let digest = digest_of(blob).map_err(MountError::System)?;
        if !seen.insert(digest) {
            continue;
        }
        let path = store.blob(&digest);
        let missing = |e: io::Error| MountError::path("image store", &path, format!("cannot be read: {e}"));
        let file = File::open(&path).map_err(missing)?;
        let size = file.metadata().map_err(missing)?.len();
        let content = Watched::new(file, watch);
        archive.append(&entry(format!("blobs/sha256/{}", digest.hex()), size), content).map_err(failed)?;
    }
    watch.end();
    archive.finish().and_then(|out| Ok(out.into_inner().map(drop)?)).map_err(failed)
}

fn entry(path: String, size: u64) -> Entry {
    Entry {
        path: path.into(),
        kind: EntryKind::File(size),
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        xattrs: Xattrs::new(),
    }
}
