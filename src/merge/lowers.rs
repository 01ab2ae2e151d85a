//! What the lower parts of a directory hold, read once: lowers do not change. A lookup then asks only
//! the layers that have the name, however many there are, and a listing asks none.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use rustix::fs::FileType;

use crate::error::{Errno, Result};
use crate::format::names;
use crate::layer::dir::Dir;
use crate::layer::stack::{Role, Stack};
use crate::merge::whiteout::visible;
use crate::sys::ahead::Watch;
use crate::sys::file;

/// The most rows that are kept of one directory; larger ones are asked each time.
pub const MAX_ROWS: usize = 200_000;
/// The most rows that are kept in all, of some 40 bytes each with their names.
const MAX_ROWS_IN_ALL: usize = 2_000_000;

/// With so many lower parts, lookups read what they hold instead of asking each.
const AT_ONCE: usize = 8;
/// So many rows are read in the time that a lookup takes to ask one part.
const ROWS_PER_QUESTION: usize = 4;

/// Rows kept by this process.
static KEPT: AtomicUsize = AtomicUsize::new(0);

/// A name in one of the lower parts.
#[derive(Debug, Clone, Copy)]
pub struct Row {
    name_at: u32,
    name_len: u16,
    /// Which of the lower parts holds it.
    pub part: u16,
    /// The inode number there.
    pub ino: u64,
    /// The type; `None` for a whiteout.
    pub kind: Option<FileType>,
}

/// The merged content of the lower parts of a directory.
#[derive(Debug)]
pub struct Lowers {
    parts: usize,
    names: Box<[u8]>,
    /// By name, then by part, topmost first: of each name what a lookup needs, which is all directories
    /// down to the first other object, or that object alone.
    rows: Box<[Row]>,
    /// Which parts hold names that hide others by their spelling.
    hiding: Box<[bool]>,
}

impl Lowers {
    /// Reads the lower parts among `dirs`, which are its tail. `None` when they hold `limit` rows or more, or too
    /// much is kept already.
    ///
    /// # Errors
    /// Those of reading the layers.
    pub fn read(stack: &Stack, dirs: &[Arc<Dir>], limit: usize) -> Result<Option<Self>> {
        let first = dirs.iter().position(|d| stack.role(d.layer()) == Role::Lower).unwrap_or(dirs.len());
        let mut all = Self {
            parts: dirs.len() - first,
            names: Box::default(),
            rows: Box::default(),
            hiding: vec![false; dirs.len() - first].into(),
        };
        let mut watch = Watch::new(dirs.len() - first);
        let (mut arena, mut rows): (Vec<u8>, Vec<Row>) = (Vec::new(), Vec::new());
        for (part, dir) in dirs[first..].iter().enumerate() {
            let rest = &dirs[first + part..];
            watch.step(|| rest.iter().filter_map(|d| Some((d.fd().ok()?, OsStr::new(".")))).collect());
            let hiding = &mut all.hiding[part];
            let part = u16::try_from(part).map_err(|_| Errno::TOOBIG)?;
            let wh_names = stack.has_wh_names(dir.layer());
            file::list(dir.fd()?, |name, ino, kind| {
                if rows.len() >= limit {
                    return Err(Errno::TOOBIG);
                }
                let (name, kind) = if wh_names && names::is_wh(name) {
                    *hiding = true;
                    match names::wh_target(name) {
                        Some(target) => (target, None),
                        None => return Ok(()),
                    }
                } else {
                    (name, visible(dir, name, kind)?)
                };
                let name_at = u32::try_from(arena.len()).map_err(|_| Errno::TOOBIG)?;
                let name_len = u16::try_from(name.len()).map_err(|_| Errno::NAMETOOLONG)?;
                arena.extend_from_slice(name.as_bytes());
                rows.push(Row { name_at, name_len, part, ino, kind });
                Ok(())
            })
            .or_else(|e| if e == Errno::TOOBIG { Ok(()) } else { Err(e) })?;
            if rows.len() >= limit {
                return Ok(None);
            }
        }
        all.names = arena.into();
        // Of an object and a whiteout by another name in one part, the object counts.
        rows.sort_unstable_by(|a, b| {
            (all.name(a), a.part, a.kind.is_none()).cmp(&(all.name(b), b.part, b.kind.is_none()))
        });
        all.rows = all.needed(&rows).into();
        // Given back when it is dropped.
        let kept = KEPT.fetch_add(all.rows.len(), Ordering::Relaxed);
        Ok((kept < MAX_ROWS_IN_ALL).then_some(all))
    }

    /// Of the sorted rows those that a lookup needs.
    fn needed(&self, rows: &[Row]) -> Vec<Row> {
        let mut out: Vec<Row> = Vec::with_capacity(rows.len());
        let mut ended = false;
        for row in rows {
            let same = out.last().filter(|last| self.name(last) == self.name(row));
            match same {
                None => ended = row.kind != Some(FileType::Directory),
                Some(last) if ended || last.part == row.part => continue,
                Some(_) if row.kind != Some(FileType::Directory) => {
                    // Ends the directory above it.
                    ended = true;
                    continue;
                }
                Some(_) => {}
            }
            out.push(*row);
        }
        out
    }

    fn name(&self, row: &Row) -> &[u8] {
        let at = row.name_at as usize;
        &self.names[at..at + usize::from(row.name_len)]
    }

    /// How many parts it covers.
    pub fn parts(&self) -> usize {
        self.parts
    }

    /// Whether a part holds names that hide others by their spelling.
    pub fn hides_by_names(&self, part: usize) -> bool {
        self.hiding.get(part).copied().unwrap_or(true)
    }

    /// The rows of a name, topmost first; none when no lower has it.
    pub fn rows(&self, name: &OsStr) -> &[Row] {
        let name = name.as_bytes();
        let start = self.rows.partition_point(|row| self.name(row) < name);
        let len = self.rows[start..].partition_point(|row| self.name(row) == name);
        &self.rows[start..start + len]
    }

    /// The topmost row of each name.
    pub fn tops(&self) -> impl Iterator<Item = (&OsStr, &Row)> {
        self.rows.chunk_by(|a, b| self.name(a) == self.name(b)).filter_map(|rows| {
            let row = rows.first()?;
            Some((OsStr::from_bytes(self.name(row)), row))
        })
    }
}

/// How many rows are kept by this process.
pub fn kept_rows() -> usize {
    KEPT.load(Ordering::Relaxed)
}

impl Drop for Lowers {
    fn drop(&mut self) {
        KEPT.fetch_sub(self.rows.len(), Ordering::Relaxed);
    }
}

/// A directory's parts, topmost first, and what is known of the lower ones. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Parts(Option<Arc<Known>>);

#[derive(Debug, Default)]
struct Known {
    dirs: Arc<[Arc<Dir>]>,
    lowers: Option<Arc<Lowers>>,
    /// The lower ones hold too much to be kept.
    too_large: bool,
    /// How many lookups have asked the lower ones.
    asked: AtomicU32,
}

impl Parts {
    fn from_known(known: Known) -> Self {
        Self(Some(Arc::new(known)))
    }

    /// The parts.
    pub fn dirs(&self) -> &[Arc<Dir>] {
        self.0.as_deref().map_or(&[], |known| &known.dirs)
    }

    /// What the lower ones hold, if it was read.
    pub fn lowers(&self) -> Option<&Lowers> {
        self.0.as_deref()?.lowers.as_deref()
    }

    /// How many rows of what the lower ones hold are worth reading at this moment, 0 for not at all. `listing`:
    /// for a listing, which needs all; otherwise for a lookup.
    ///
    /// A lookup asks each part. Reading is worth it at once when there are many; with few, when the lookups so far
    /// have cost as much as it will: so it costs twice what was right at most, be the directory small or large.
    pub fn worth_reading(&self, stack: &Stack, listing: bool) -> usize {
        let Some(known) = self.0.as_deref().filter(|k| k.lowers.is_none() && !k.too_large) else { return 0 };
        let lowers = known.dirs.iter().rev().take_while(|d| stack.role(d.layer()) == Role::Lower).count();
        if lowers < 2 {
            return 0;
        }
        if listing || lowers >= AT_ONCE {
            return MAX_ROWS;
        }
        let asked = known.asked.fetch_add(1, Ordering::Relaxed) as usize + 1;
        if asked.is_power_of_two() && asked * lowers >= AT_ONCE {
            asked * lowers * ROWS_PER_QUESTION
        } else {
            0
        }
    }

    /// With what the lower ones hold; `None`: too much.
    pub fn with_lowers(&self, lowers: Option<Lowers>) -> Self {
        let dirs = self.0.as_ref().map(|k| k.dirs.clone()).unwrap_or_default();
        let too_large = lowers.is_none();
        Self::from_known(Known { dirs, lowers: lowers.map(Arc::new), too_large, asked: AtomicU32::new(0) })
    }

    /// With one more part on top.
    pub fn with_top(&self, top: Arc<Dir>) -> Self {
        let dirs = std::iter::once(top).chain(self.dirs().iter().cloned()).collect();
        let known = self.0.as_deref();
        Self::from_known(Known {
            dirs,
            lowers: known.and_then(|k| k.lowers.clone()),
            too_large: known.is_some_and(|k| k.too_large),
            asked: AtomicU32::new(0),
        })
    }

    /// Bytes of memory that this takes, and the directories in it.
    pub fn memory(&self) -> usize {
        // What a shared allocation has before its content.
        const COUNTS: usize = 2 * size_of::<usize>();
        let Some(known) = self.0.as_deref() else { return 0 };
        let lowers = known.lowers.as_deref().map_or(0, |l| size_of_val(&*l.rows) + l.names.len() + COUNTS);
        let dirs = known.dirs.iter().map(|dir| dir.memory() + COUNTS + size_of::<usize>()).sum::<usize>();
        size_of::<Known>() + 2 * COUNTS + lowers + dirs
    }
}

impl From<Vec<Arc<Dir>>> for Parts {
    fn from(dirs: Vec<Arc<Dir>>) -> Self {
        Self::from_known(Known { dirs: dirs.into(), ..Known::default() })
    }
}
