//! The flat tree that layers amount to, made without any union filesystem.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, SeekFrom};

use crate::common::files::{self, is_opaque, is_whiteout};
use crate::layers::all;

/// Copies what the layers amount to, topmost first, into a new directory. A name of a hardlinked file
/// that no union shows becomes a file of its own: it would count for `st_nlink` in the layer alone.
pub fn flatten(layers: &[PathBuf], flat: &Path) {
    std::fs::create_dir(flat).unwrap();
    let mut copies = HashMap::new();
    merge(layers, flat, &mut copies);
    let shown: BTreeSet<PathBuf> = copies.values().flat_map(|(_, sources)| sources.iter().cloned()).collect();
    for path in layers.iter().flat_map(|l| all(l)) {
        let meta = path.symlink_metadata().unwrap();
        if meta.is_file() && meta.nlink() > 1 && !shown.contains(&path) {
            let parent = path.parent().unwrap();
            let before = parent.metadata().unwrap();
            std::fs::remove_file(&path).unwrap();
            std::fs::write(&path, "hidden").unwrap();
            files::set_times(parent, (1_000_000_000, 5), (before.mtime(), before.mtime_nsec()));
        }
    }
}

/// By real inode: the copy and the names that are shown.
type Copies = HashMap<(u64, u64), (PathBuf, Vec<PathBuf>)>;

/// Copies the content of a file. Holes stay holes.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    let (from, to) = (File::open(from)?, File::create(to)?);
    to.set_len(from.metadata()?.len())?;
    let mut at = 0;
    while let Ok(start) = rustix::fs::seek(&from, SeekFrom::Data(at)) {
        at = rustix::fs::seek(&from, SeekFrom::Hole(start))?;
        let mut bytes = vec![0; (at - start) as usize];
        from.read_exact_at(&mut bytes, start)?;
        to.write_all_at(&bytes, start)?;
    }
    Ok(())
}

fn merge(dirs: &[PathBuf], flat: &Path, copies: &mut Copies) {
    let names: BTreeSet<OsString> = dirs.iter().flat_map(files::list).map(OsString::from).collect();
    for name in names {
        let mut found = dirs.iter().map(|d| d.join(&name)).filter(|p| files::exists(p));
        let Some(top) = found.next() else { continue };
        if is_whiteout(&top) {
            continue;
        }
        let to = flat.join(&name);
        let meta = top.symlink_metadata().unwrap();
        if meta.is_dir() {
            let mut below = vec![top.clone()];
            if !is_opaque(&top) {
                for path in found {
                    if !path.symlink_metadata().unwrap().is_dir() {
                        break;
                    }
                    let last = is_opaque(&path);
                    below.push(path);
                    if last {
                        break;
                    }
                }
            }
            std::fs::create_dir(&to).unwrap();
            merge(&below, &to, copies);
        } else if let Some((first, shown)) = copies.get_mut(&(meta.dev(), meta.ino())) {
            std::fs::hard_link(first, &to).unwrap();
            shown.push(top);
            continue;
        } else if meta.is_symlink() {
            symlink(std::fs::read_link(&top).unwrap(), &to).unwrap();
        } else if meta.file_type().is_fifo() {
            rustix::fs::mknodat(CWD, &to, FileType::Fifo, Mode::empty(), 0).unwrap();
        } else {
            copy(&top, &to).unwrap();
            copies.insert((meta.dev(), meta.ino()), (to.clone(), vec![top.clone()]));
        }
        lchown(&to, Some(meta.uid()), Some(meta.gid())).unwrap();
        if !meta.is_symlink() {
            files::chmod(&to, meta.mode() & 0o7777);
        }
        for name in files::xattr_names(&top) {
            let name = name.to_str().unwrap();
            if !name.starts_with("trusted.overlay.")
                && let Some(value) = files::xattr(&top, name)
            {
                files::set_xattr(&to, name, &value);
            }
        }
        files::set_times(&to, (1_000_000_000, 5), (meta.mtime(), meta.mtime_nsec()));
    }
}
