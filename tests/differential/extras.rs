//! More in the layers than names and content: ACLs, attributes, holes.

use std::path::PathBuf;

use proptest::prelude::*;

use crate::acl::{self, Acl};
use crate::common::files::{self, is_whiteout, set_times, set_xattr};
use crate::layers::all;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

/// Something that the `nth` object of a layer gets.
#[derive(Debug, Clone)]
pub struct Extra {
    layer: usize,
    nth: usize,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Acl(Acl),
    Default(Acl),
    Trusted,
    /// So many bytes of a hole behind the content.
    Hole(u64),
}

/// Anything.
pub fn extra() -> impl Strategy<Value = Extra> {
    let what = prop_oneof![
        2 => acl::acl().prop_map(What::Acl),
        2 => acl::acl().prop_map(What::Default),
        1 => Just(What::Trusted),
        3 => (1..200_000_u64).prop_map(What::Hole),
    ];
    (0..32_usize, 0..32_usize, what).prop_map(|(layer, nth, what)| Extra { layer, nth, what })
}

/// Gives the layers what they get, keeping the times.
pub fn add(layers: &[PathBuf], extras: &[Extra]) {
    for extra in extras {
        let objects = all(&layers[extra.layer % layers.len()]);
        let Some(path) = objects.get(extra.nth % objects.len().max(1)) else { continue };
        let meta = path.symlink_metadata().unwrap();
        if meta.is_symlink() || meta.file_type().is_fifo() || is_whiteout(path) {
            continue;
        }
        match &extra.what {
            What::Acl(acl) => set_xattr(path, acl::ACCESS, &acl.encode()),
            What::Default(acl) if meta.is_dir() => set_xattr(path, acl::DEFAULT, &acl.encode()),
            What::Trusted => set_xattr(path, "trusted.layer", b"value"),
            What::Hole(len) if meta.is_file() => {
                std::fs::OpenOptions::new()
                    .write(true)
                    .open(path)
                    .unwrap()
                    .set_len(meta.len() + len)
                    .unwrap();
            }
            _ => continue,
        }
        if meta.mode() & 0o6000 != 0 {
            files::chmod(path, path.metadata().unwrap().mode() & 0o777 | meta.mode() & 0o7000);
        }
        set_times(path, (1_000_000_000, 5), (meta.mtime(), meta.mtime_nsec()));
    }
}
