//! Names of hardlinks that were copied up, or lost names, counted in the merged tree.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;

use rustix::fs::FileType;

use super::{Class, Context, Place};
use crate::format::nlink::NlinkDiff;
use crate::format::origin::Origin;
use crate::layer::stack::UPPER;
use crate::merge::listing;
use crate::merge::lookup::{Found, lookup, root};
use crate::merge::lowers::Parts;

/// The most records that are kept. What is beyond is not counted: some 300 MB.
const MOST: usize = 1_000_000;

/// Device and inode number.
type Id = (u64, u64);

/// An entry of the index.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Box<OsStr>,
    pub(super) origin: Origin,
    pub(super) upper: Id,
    pub(super) lower: Option<Id>,
    /// Its real names, this one among them.
    pub(super) nlink: u32,
    /// What is recorded; `Some(None)` when it is malformed.
    pub(super) diff: Option<Option<NlinkDiff>>,
}

/// A count of removed names.
#[derive(Debug)]
pub(super) struct Gone {
    pub(super) name: Box<OsStr>,
    pub(super) origin: Origin,
    pub(super) lower: Option<Id>,
    pub(super) count: u32,
}

/// What is recorded of hardlinks, and how many names show.
#[derive(Debug, Default)]
pub(super) struct Links {
    pub(super) entries: Vec<Entry>,
    pub(super) gone: Vec<Gone>,
    /// Names of the index, some of which have a count of removed names as well.
    indexed: HashSet<Box<OsStr>>,
    /// Names that show, of the objects that are recorded.
    shown: HashMap<Id, u32>,
    counted: bool,
}

impl Links {
    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.gone.is_empty()
    }

    pub(super) fn add_entry(&mut self, entry: Entry) {
        if self.entries.len() >= MOST {
            return;
        }
        self.shown.insert(entry.upper, 0);
        self.shown.extend(entry.lower.map(|id| (id, 0)));
        self.indexed.insert(entry.name.clone());
        self.entries.push(entry);
    }

    pub(super) fn add_gone(&mut self, gone: Gone) {
        if self.gone.len() < MOST {
            self.shown.extend(gone.lower.map(|id| (id, 0)));
            self.gone.push(gone);
        }
    }

    pub(super) fn is_indexed(&self, name: &OsStr) -> bool {
        self.indexed.contains(name)
    }

    /// How many names of a copied-up file show; `None` when they were not counted.
    pub(super) fn seen(&self, entry: &Entry) -> Option<i64> {
        let of = |id: Id| self.shown.get(&id).copied().unwrap_or(0);
        self.counted.then(|| i64::from(of(entry.upper)) + entry.lower.map_or(0, |id| i64::from(of(id))))
    }

    /// How many names of a lower file show, of those that were counted.
    pub(super) fn seen_of_lower(&self, id: Option<Id>) -> u32 {
        id.and_then(|id| self.shown.get(&id).copied()).unwrap_or(0)
    }
}

/// Walks the merged tree and counts. Directories that cannot be read were told of, or are below the upper's: then
/// nothing is counted.
pub(super) fn count(context: &mut Context<'_>, links: &mut Links) {
    let stack = context.stack;
    let mut walk = || {
        let mut left = vec![Parts::from(root(stack)?.parts)];
        while let Some(parts) = left.pop() {
            let entries = listing::list(stack, &parts, false)?;
            context.report.looked_at(entries.len() as u64);
            for entry in entries {
                if entry.kind == FileType::Directory {
                    if let Ok(Found::Dir(dir)) = lookup(stack, &parts, &entry.name) {
                        left.push(Parts::from(dir.parts));
                    }
                    continue;
                }
                let Ok(Found::Other(other)) = lookup(stack, &parts, &entry.name) else { continue };
                if (other.stat.nlink > 1 || other.dir.layer() == UPPER)
                    && let Some(shown) = links.shown.get_mut(&(other.stat.dev, other.stat.ino))
                {
                    *shown += 1;
                }
            }
        }
        Ok(())
    };
    let walked: crate::error::Result<()> = walk();
    match walked {
        Ok(()) => links.counted = true,
        Err(e) => {
            let says = format!("the names of hardlinks cannot be counted: {e}");
            context.tell(Class::Unreadable, Place::Upper(Vec::new()), says);
        }
    }
}
