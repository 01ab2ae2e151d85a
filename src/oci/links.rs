//! Hardlinks among the changes: names of one file come together, also those that lie in a lower layer still
//! and are found by the index.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::change::{Change, Kind, Upper, What, same, unreadable};
use crate::error::{MountError, Outcome, Result};
use crate::format::names::Mark;
use crate::format::nlink::{Base, NlinkDiff};
use crate::format::origin::Origin;
use crate::layer::dir::Dir;
use crate::layer::marks;
use crate::layer::stack::UPPER;
use crate::merge::lookup::{Data, Found, Other};
use crate::merge::lowers::Parts;
use crate::merge::{index, listing};
use crate::sys::file;
use crate::sys::xattr::Target;

/// Adds to the changes what belongs to them by hardlinks, with the directories on the way, in order.
pub(super) fn complete(upper: &Upper, changes: &mut Vec<Change>, unchanged: Vec<Change>) -> Outcome<()> {
    let linked: HashSet<(u64, u64)> = changes.iter().filter_map(identity).collect();
    let more = unchanged.into_iter().filter(|c| identity(c).is_some_and(|id| linked.contains(&id)));
    let before = changes.len();
    changes.extend(more);
    let found = by_index(upper, changes)?;
    if changes.len() > before || found {
        add_parents(upper, changes)?;
        changes.sort_by(|a, b| order(&a.path, &b.path));
    }
    Ok(())
}

/// The order of a walk: by the names on the way, not by the paths as a whole.
fn order(a: &Path, b: &Path) -> std::cmp::Ordering {
    a.iter().cmp(b.iter())
}

/// What tells that two names are one file.
pub(super) fn identity(change: &Change) -> Option<(u64, u64)> {
    match &change.what {
        What::Other(other) if other.stat.nlink > 1 => Some((other.stat.dev, other.stat.ino)),
        _ => None,
    }
}

/// A copied-up file of which some names are still lower.
struct Wanted {
    copy: Other,
    lacks_data: bool,
    /// How many of its names are lower; `None` when that is not recorded.
    left: Option<i64>,
}

/// Adds the names that are still lower of files that were copied up by another name: without the index,
/// which no image has, they would be files of their own.
fn by_index(upper: &Upper, changes: &mut Vec<Change>) -> Outcome<bool> {
    let Some(dir) = &upper.index else { return Ok(false) };
    let mut wanted = wanted(upper, dir).map_err(|e| {
        MountError::System(format!("the index in the work directory cannot be read: {e}; name it by --work"))
    })?;
    if wanted.is_empty() {
        return Ok(false);
    }
    let mut search = Search::new(upper, &wanted);
    let mut at: HashMap<PathBuf, usize> =
        changes.iter().enumerate().map(|(i, c)| (c.path.clone(), i)).collect();
    let mut any = false;
    while let Some((path, lower, origin)) = search.next().map_err(|e| unreadable(&search.path, e))? {
        let Some(entry) = wanted.get_mut(&origin) else { continue };
        let mut copy = entry.copy.clone();
        if entry.lacks_data {
            copy.data = Some(Data::of(&lower));
        }
        let changed = !same(&copy, &lower).map_err(|e| unreadable(path.as_os_str().as_bytes(), e))?;
        any = true;
        match at.get(&path) {
            // It is told already, since its directory has moved.
            Some(&at) => changes[at].what = What::Other(copy),
            None => {
                at.insert(path.clone(), changes.len());
                changes.push(Change {
                    path,
                    kind: changed.then_some(Kind::Changed),
                    what: What::Other(copy),
                });
            }
        }
        if let Some(left) = &mut entry.left {
            *left -= 1;
            if *left <= 0 {
                wanted.remove(&origin);
                if wanted.is_empty() {
                    break;
                }
            }
        }
    }
    Ok(any)
}

/// The copies in the index that have names in the lowers.
fn wanted(upper: &Upper, dir: &Arc<Dir>) -> Result<HashMap<Vec<u8>, Wanted>> {
    let mut names = Vec::new();
    file::list(dir.fd()?, |name, _, _| {
        names.push(Arc::<OsStr>::from(name));
        Ok(())
    })?;
    let ns = upper.stack.namespace();
    let mut wanted = HashMap::new();
    for name in names {
        let stat = file::stat_at(dir.fd()?, &name)?;
        // Whiteouts and directories serve NFS export, which is not for us.
        let Ok(origin) = hex::decode(name.as_bytes()) else { continue };
        if stat.is_dir() || stat.is_whiteout_device() || Origin::decode(&origin).is_none() {
            continue;
        }
        let mark = marks::of_entry(dir.fd()?, &name, Mark::Nlink, ns)?;
        let left = match mark.as_deref().and_then(NlinkDiff::decode) {
            // Names in the union less names of the copy, of which the index entry is one.
            Some(NlinkDiff { base: Base::Upper, diff }) => Some(diff + 1),
            Some(NlinkDiff { base: Base::Zero, diff }) => Some(diff - i64::from(stat.nlink) + 1),
            _ => None,
        };
        if left.is_none_or(|left| left > 0) {
            let lacks_data = marks::is_metacopy(dir.fd()?, &name, ns)?;
            let mut stat = stat;
            upper.own(UPPER, Target::At(dir.fd()?.as_fd(), &name), &mut stat)?;
            let copy = Other { dir: dir.clone(), name, stat, data: None };
            wanted.insert(origin, Wanted { copy, lacks_data, left });
        }
    }
    Ok(wanted)
}

/// A walk over the whole merged tree for lower objects with certain origins.
struct Search<'a> {
    upper: &'a Upper,
    /// Inode numbers to look for; `None` when a handle does not tell one.
    numbers: Option<HashSet<u64>>,
    dirs: Vec<PathBuf>,
    here: Option<(Parts, std::vec::IntoIter<listing::Entry>)>,
    base: PathBuf,
    path: Vec<u8>,
}

impl<'a> Search<'a> {
    fn new(upper: &'a Upper, wanted: &HashMap<Vec<u8>, Wanted>) -> Self {
        let number = |o: &Vec<u8>| upper.stack.identity().of_origin(&Origin::decode(o)?);
        Self {
            upper,
            numbers: wanted.keys().map(number).collect(),
            dirs: vec![PathBuf::new()],
            here: None,
            base: PathBuf::new(),
            path: Vec::new(),
        }
    }

    /// The next lower file with several names that may be one of those wanted, and its origin.
    fn next(&mut self) -> Result<Option<(PathBuf, Other, Vec<u8>)>> {
        let stack = &self.upper.stack;
        loop {
            let Some((parts, entries)) = &mut self.here else {
                let Some(base) = self.dirs.pop() else { return Ok(None) };
                self.path = base.as_os_str().as_bytes().to_vec();
                if let Found::Dir(dir) = self.upper.find(&base)? {
                    let parts = Parts::from(dir.parts);
                    let entries = listing::list(stack, &parts, false)?.into_iter();
                    self.here = Some((parts, entries));
                }
                self.base = base;
                continue;
            };
            let Some(entry) = entries.next() else {
                self.here = None;
                continue;
            };
            if entry.kind == rustix::fs::FileType::Directory {
                self.dirs.push(self.base.join(&*entry.name));
                continue;
            }
            let possible = match (&self.numbers, entry.ino) {
                (Some(numbers), Some(ino)) => numbers.contains(&ino),
                _ => true,
            };
            if entry.layer == UPPER || !possible {
                continue;
            }
            let Found::Other(lower) = self.upper.lookup(parts, &entry.name)? else { continue };
            if lower.stat.nlink > 1
                && let Some(origin) =
                    index::origin_of(stack, &lower.dir, &lower.name)?.and_then(|o| o.encode())
            {
                return Ok(Some((self.base.join(&*entry.name), lower, origin)));
            }
        }
    }
}

/// Adds the directories on the way to what was added.
fn add_parents(upper: &Upper, changes: &mut Vec<Change>) -> Outcome<()> {
    let mut at: HashMap<PathBuf, usize> =
        changes.iter().enumerate().map(|(i, c)| (c.path.clone(), i)).collect();
    for i in 0..changes.len() {
        let kind = changes[i].kind.map(|_| Kind::Changed);
        let mut path = changes[i].path.clone();
        while path.pop() && !path.as_os_str().is_empty() {
            if let Some(&at) = at.get(&path) {
                let told = &mut changes[at];
                told.kind = told.kind.or(kind);
                continue;
            }
            let found = upper.find(&path).map_err(|e| unreadable(path.as_os_str().as_bytes(), e))?;
            let Found::Dir(dir) = found else { continue };
            let Some(part) = dir.parts.first().cloned() else { continue };
            at.insert(path.clone(), changes.len());
            let what = What::Dir { part, stat: dir.stat, opaque: false };
            changes.push(Change { path: path.clone(), kind, what });
        }
    }
    Ok(())
}
