//! Which layers have something of a path, and which one is seen.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::FileType;

use crate::config::{LayerPaths, Options};
use crate::error::{Errno, MountError, Outcome, Result};
use crate::format::redirect::Redirect;
use crate::layer::claim;
use crate::layer::dir::{Dir, LayerId};
use crate::layer::look::look;
use crate::layer::marks;
use crate::layer::stack::Stack;
use crate::merge::lookup::{Found, lookup, root};
use crate::merge::whiteout::is_whiteout;
use crate::sys::file;

/// What a layer has at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The layer's place in the stack, 0 the topmost, the init layer included.
    pub layer: LayerId,
    /// The path in that layer, which a redirect may have changed.
    pub path: std::path::PathBuf,
    /// What it has there.
    pub what: What,
    /// Whether it is seen: it is the object itself, or one of the parts of a merged directory.
    pub seen: bool,
}

/// What a layer has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// An object.
    Object {
        /// Its type.
        kind: FileType,
        /// A directory that hides those below.
        opaque: bool,
        /// Where layers below have the rest of a directory.
        redirect: Option<String>,
        /// A file that has only attributes, and its data below.
        metacopy: bool,
    },
    /// A whiteout.
    Whiteout,
}

/// What the layers have at `path`, which is relative to the root of the mount, topmost first.
///
/// # Errors
/// Layers that cannot be read.
pub fn held(layers: &LayerPaths, options: &Options, path: &Path) -> Outcome<Vec<Held>> {
    let mut layers = layers.clone();
    let init = layers.init.take();
    layers.lowers.splice(0..0, init);
    let failed = |e: Errno| MountError::path("path", path, format!("cannot be looked up in the layers: {e}"));
    let stack = if layers.upper.is_some() {
        let (upper, _, fds) = look(&layers)?;
        Stack::open_unchanged(upper, fds, options)
    } else {
        let mut claim = claim::claim(&layers)?;
        claim.take_fds().ok_or(Errno::IO).and_then(|fds| Stack::open(fds, options))
    };
    search(&stack.map_err(failed)?, path).map_err(failed)
}

fn search(stack: &Stack, path: &Path) -> Result<Vec<Held>> {
    let mut found = root(stack)?;
    let Some(name) = path.file_name() else {
        return found.parts.iter().map(|part| whole(part, part.path(), true)).collect();
    };
    for step in path.parent().into_iter().flat_map(Path::iter) {
        match lookup(stack, &found.parts.into(), step)? {
            Found::Dir(dir) => found = dir,
            _ => return Err(Errno::NOENT),
        }
    }
    let parts = found.parts;
    let seen = lookup(stack, &parts.clone().into(), name)?;
    let mut all = Vec::new();
    // A redirect leads away from the name: what is seen comes first, then what else has the name.
    if let Found::Dir(dir) = &seen {
        for part in &dir.parts {
            all.push(whole(part, part.path(), true)?);
        }
    }
    for dir in &parts {
        let st = match file::stat_at(dir.fd()?, name) {
            Ok(st) => st,
            Err(Errno::NOENT) => {
                if stack.has_wh_names(dir.layer()) && marks::has_wh(dir.fd()?, name)? {
                    all.push(held_at(dir, name, What::Whiteout, false));
                }
                continue;
            }
            Err(e) => return Err(e),
        };
        if is_whiteout(dir, name, &st)? {
            all.push(held_at(dir, name, What::Whiteout, false));
            continue;
        }
        if st.is_dir() {
            let part = Dir::below(dir, name, &st);
            if !all.iter().any(|h| (h.layer, &h.path) == (part.layer(), &joined(part.path()))) {
                all.push(whole(&part, part.path(), false)?);
            }
            continue;
        }
        let is_seen = matches!(&seen, Found::Other(o) if o.dir.layer() == dir.layer());
        let metacopy =
            st.kind() == FileType::RegularFile && marks::is_metacopy(dir.fd()?, name, stack.namespace())?;
        let what = What::Object { kind: st.kind(), opaque: false, redirect: None, metacopy };
        all.push(held_at(dir, name, what, is_seen));
        if is_seen
            && let Found::Other(other) = &seen
            && let Some(data) = &other.data
        {
            let what =
                What::Object { kind: FileType::RegularFile, opaque: false, redirect: None, metacopy: false };
            all.push(held_at(&data.dir, &data.name, what, true));
        }
    }
    all.sort_by_key(|h| h.layer);
    all.dedup();
    Ok(all)
}

fn joined(names: Vec<Box<std::ffi::OsStr>>) -> std::path::PathBuf {
    names.iter().map(|n| Path::new(&**n)).collect()
}

fn held_at(dir: &Arc<Dir>, name: &std::ffi::OsStr, what: What, seen: bool) -> Held {
    Held { layer: dir.layer(), path: joined(dir.path()).join(name), what, seen }
}

/// A directory of a layer.
fn whole(part: &Dir, path: Vec<Box<std::ffi::OsStr>>, seen: bool) -> Result<Held> {
    let mut found = marks::Marks::default();
    for ns in [crate::format::names::Namespace::Trusted, crate::format::names::Namespace::User] {
        match marks::read(part.fd()?.as_fd(), ns) {
            Ok(marks) => {
                found.opaque |= marks.opaque;
                found.redirect = found.redirect.or(marks.redirect);
            }
            // A malformed redirect, which is not for us to judge.
            Err(Errno::IO) => {}
            Err(e) => return Err(e),
        }
    }
    let redirect = found.redirect.map(|redirect| match redirect {
        Redirect::Sibling(name) => name.to_string_lossy().into_owned(),
        Redirect::Absolute(names) => names.iter().map(|n| format!("/{}", n.display())).collect::<String>(),
    });
    let what = What::Object { kind: FileType::Directory, opaque: found.opaque, redirect, metacopy: false };
    Ok(Held { layer: part.layer(), path: joined(path), what, seen })
}
