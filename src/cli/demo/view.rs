//! Looks at layers from outside: what lies in one, and which of them a merged entry comes from.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use crate::format::names;
use crate::layer::marks;
use crate::sys::file;

/// An entry of a tree, for printing.
#[derive(Debug, PartialEq, Eq)]
pub struct Line {
    /// Path below the root of the tree.
    pub path: PathBuf,
    /// A directory.
    pub is_dir: bool,
}

impl Line {
    /// The name, indented by its depth, directories with a slash behind.
    pub fn label(&self) -> String {
        let depth = self.path.components().count().saturating_sub(1);
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        format!("{:indent$}{name}{}", "", if self.is_dir { "/" } else { "" }, indent = depth * 2)
    }
}

/// All entries below `root`, sorted by path.
///
/// # Errors
/// Those of reading the tree.
pub fn walk(root: &Path) -> io::Result<Vec<Line>> {
    let mut lines = Vec::new();
    let mut open = vec![PathBuf::new()];
    while let Some(dir) = open.pop() {
        for entry in fs::read_dir(root.join(&dir))? {
            let entry = entry?;
            let path = dir.join(entry.file_name());
            let is_dir = entry.file_type()?.is_dir();
            if is_dir {
                open.push(path.clone());
            }
            lines.push(Line { path, is_dir });
        }
    }
    lines.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(lines)
}

/// What an entry of a layer stands for if not for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// Deletes the name from the layers below.
    Whiteout,
    /// A directory that hides those of the same name below.
    Opaque,
}

/// Tells whether the entry at `path` is a whiteout or an opaque directory.
///
/// # Errors
/// Those of reading the layer.
pub fn special(path: &Path) -> io::Result<Option<Special>> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { return Ok(None) };
    if names::is_wh(name) {
        return Ok(Some(Special::Whiteout));
    }
    let dir = File::open(parent)?;
    let stat = file::stat_at(&dir, name)?;
    if stat.is_dir() {
        let dir = File::open(path)?;
        let opaque = marks::read(&dir, names::Namespace::Trusted)?.opaque || marks::has_wh_opaque(&dir)?;
        return Ok(opaque.then_some(Special::Opaque));
    }
    let empty = stat.kind() == rustix::fs::FileType::RegularFile && stat.size == 0;
    let whiteout = stat.is_whiteout_device() || (empty && marks::is_xattr_whiteout(&dir, name)?);
    Ok(whiteout.then_some(Special::Whiteout))
}

/// What one layer says about a path.
enum Answer {
    /// Nothing; the layers below are asked next.
    Absent,
    /// It has the entry, and whether the layers below add to it.
    Here { more: bool },
    /// The path is deleted, or hidden from the layers below.
    Hidden,
}

fn ask(layer: &Path, path: &Path) -> io::Result<Answer> {
    let mut here = layer.to_owned();
    let mut opaque = false;
    for component in path.components() {
        let Component::Normal(name) = component else { continue };
        if names::wh_name(name).is_some_and(|wh| here.join(wh).symlink_metadata().is_ok()) {
            return Ok(Answer::Hidden);
        }
        here.push(name);
        let Ok(metadata) = here.symlink_metadata() else {
            return Ok(if opaque { Answer::Hidden } else { Answer::Absent });
        };
        match special(&here)? {
            Some(Special::Whiteout) => return Ok(Answer::Hidden),
            Some(Special::Opaque) => opaque = true,
            None => {}
        }
        if !metadata.is_dir() {
            let last = here == layer.join(path);
            return Ok(if last { Answer::Here { more: false } } else { Answer::Hidden });
        }
    }
    Ok(Answer::Here { more: !opaque })
}

/// The layers, topmost first, that a merged entry comes from: one for a file, any number for a directory.
///
/// # Errors
/// Those of reading the layers.
pub fn sources<'a>(dir: &Path, layers: &[&'a str], entry: &Line) -> io::Result<Vec<&'a str>> {
    let mut found = Vec::new();
    for layer in layers {
        match ask(&dir.join(layer), &entry.path)? {
            Answer::Absent => {}
            // A file below a directory is hidden by it.
            Answer::Here { more: false }
                if !found.is_empty() && !is_dir(&dir.join(layer).join(&entry.path)) =>
            {
                break;
            }
            Answer::Here { more } => {
                found.push(*layer);
                if !more {
                    break;
                }
            }
            Answer::Hidden => break,
        }
    }
    Ok(found)
}

fn is_dir(path: &Path) -> bool {
    path.symlink_metadata().is_ok_and(|m| m.is_dir())
}

/// Everything about a tree that must not change: type, mode, owner, times, size and content by path.
pub type Snapshot = BTreeMap<PathBuf, (u32, u32, u32, i64, i64, u64, Vec<u8>)>;

/// Takes a snapshot of a tree.
///
/// # Errors
/// Those of reading the tree.
pub fn snapshot(root: &Path) -> io::Result<Snapshot> {
    let mut all = Snapshot::new();
    for line in walk(root)? {
        let path = root.join(&line.path);
        let m = path.symlink_metadata()?;
        let content = if m.is_file() { fs::read(&path)? } else { Vec::new() };
        let facts = (m.mode(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec(), m.rdev(), content);
        all.insert(line.path, facts);
    }
    Ok(all)
}

/// The content of a short text file, on one line; nothing for anything else.
pub fn excerpt(path: &Path) -> String {
    const LONGEST: usize = 60;
    if !path.symlink_metadata().is_ok_and(|m| m.is_file()) {
        return String::new();
    }
    let Ok(content) = fs::read(path) else { return String::new() };
    let text = String::from_utf8_lossy(&content);
    let line = text.trim_end().replace('\n', " | ");
    if line.chars().count() > LONGEST || OsStr::from_bytes(&content).is_empty() {
        return String::new();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::super::sample;
    use super::*;

    fn from(dir: &Path, path: &str, is_dir: bool) -> Vec<&'static str> {
        let layers = ["upper", "init", "image2", "image1", "base"];
        sources(dir, &layers, &Line { path: path.into(), is_dir }).unwrap()
    }

    #[test]
    fn finds_the_layers_of_the_sample() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        sample::build(dir).unwrap();
        assert_eq!(from(dir, "etc", true), ["init", "base"]);
        assert_eq!(from(dir, "etc/motd", false), ["base"]);
        assert_eq!(from(dir, "etc/hosts", false), ["init"]);
        assert_eq!(from(dir, "usr/bin", true), ["image1", "base"]);
        assert_eq!(from(dir, "usr/bin/oldtool", false), [""; 0]);
        assert_eq!(from(dir, "usr/share", true), ["image2", "base"]);
        assert_eq!(from(dir, "usr/share/doc", true), ["image2"]);
        assert_eq!(from(dir, "usr/share/doc/greet.txt", false), [""; 0]);
        fs::create_dir(dir.join("upper/etc")).unwrap();
        fs::write(dir.join("upper/etc/motd"), "new").unwrap();
        assert_eq!(from(dir, "etc", true), ["upper", "init", "base"]);
        assert_eq!(from(dir, "etc/motd", false), ["upper"]);
        fs::write(dir.join("upper/srv"), "a file over a directory").unwrap();
        assert_eq!(from(dir, "srv", false), ["upper"]);
        assert_eq!(from(dir, "srv/app", true), [""; 0]);
    }

    #[test]
    fn labels() {
        let line = Line { path: "a/b/c".into(), is_dir: true };
        assert_eq!(line.label(), "    c/");
    }
}
