//! What a merged directory lists.

use std::collections::HashSet;
use std::ffi::OsStr;

use rustix::fs::FileType;

use crate::error::Result;
use crate::format::names;
use crate::layer::dir::LayerId;
use crate::layer::stack::{Role, Stack};
use crate::merge::lowers::{Lowers, Parts};
use crate::merge::whiteout::visible;
use crate::sys::file;

/// An entry of a listing.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The name.
    pub name: Box<OsStr>,
    /// The number in the union; `None` when only a lookup tells it.
    pub ino: Option<u64>,
    /// The type.
    pub kind: FileType,
    /// The layer that the entry comes from.
    pub layer: LayerId,
}

/// Lists the directory made of `parts`, topmost first, without `.` and `..`. `for_user`: as a user's reading,
/// which sets the access time of a part in a writable layer.
///
/// # Errors
/// Those of reading the layers.
pub fn list(stack: &Stack, parts: &Parts, for_user: bool) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    let mut seen: HashSet<Box<OsStr>> = HashSet::new();
    let dirs = parts.dirs();
    let known = parts.lowers().map_or(0, Lowers::parts);
    let (asked, lower) = dirs.split_at(dirs.len().saturating_sub(known));
    for (i, dir) in asked.iter().enumerate() {
        let last = i + 1 == dirs.len();
        let role = stack.role(dir.layer());
        let dev = dir.id().0;
        // What this layer hides in those below it, where it says so by other names.
        let mut hidden: Vec<Box<OsStr>> = Vec::new();
        let fd = dir.fd()?;
        let each = |name: &OsStr, ino, kind| {
            if stack.is_mark(dir.layer(), name) {
                hidden.extend(names::wh_target(name).map(Into::into));
                return Ok(());
            }
            if i > 0 && seen.contains(name) {
                return Ok(());
            }
            let Some(kind) = visible(dir, name, kind)? else {
                seen.insert(name.into());
                return Ok(());
            };
            if !last {
                seen.insert(name.into());
            }
            // The number of an upper directory is that of a part below, if there is one: a redirect may lead there
            // from anywhere. That of an upper file is its origin's.
            // Init files that came from the upper have one as well; there are few.
            let is_dir = kind == FileType::Directory;
            let indirect = match role {
                Role::Upper => dir.impure() || is_dir,
                Role::Init => !is_dir,
                Role::Lower => false,
            };
            let ino = (!indirect).then(|| stack.identity().compose(dev, ino));
            entries.push(Entry { name: name.into(), ino, kind, layer: dir.layer() });
            Ok(())
        };
        if for_user && stack.in_place(dir.layer()) {
            file::list_for_user(&fd, each)?;
        } else {
            file::list(&fd, each)?;
        }
        seen.extend(hidden);
    }
    for (name, row) in parts.lowers().into_iter().flat_map(Lowers::tops) {
        let (Some(kind), Some(dir)) = (row.kind, lower.get(usize::from(row.part))) else { continue };
        if !seen.contains(name) {
            let ino = Some(stack.identity().compose(dir.id().0, row.ino));
            entries.push(Entry { name: name.into(), ino, kind, layer: dir.layer() });
        }
    }
    Ok(entries)
}

/// Whether the directory made of `parts` has no entry.
pub fn is_empty(stack: &Stack, parts: &Parts) -> Result<bool> {
    list(stack, parts, false).map(|entries| entries.is_empty())
}
