//! What the lower parts of a directory hold, read once: lowers do not change. A lookup then asks only
//! the layers that have the name, however many there are, and a listing asks none.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::FileType;

use crate::error::{Errno, Result};
use crate::format::names;
use crate::layer::dir::Dir;
use crate::layer::stack::{Role, Stack};
use crate::merge::whiteout::visible;
use crate::sys::file;

/// The most rows that are kept of one directory; larger ones are asked each time.
const MAX_ROWS: usize = 200_000;
/// The most rows that are kept in all, of some 40 bytes each with their names.
const MAX_ROWS_IN_ALL: usize = 2_000_000;

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
}

impl Lowers {
    /// Reads the lower parts among `dirs`, which are its tail. `None` when they hold too much.
    ///
    /// # Errors
    /// Those of reading the layers.
    pub fn read(stack: &Stack, dirs: &[Arc<Dir>]) -> Result<Option<Self>> {
        let first = dirs.iter().position(|d| stack.role(d.layer()) == Role::Lower).unwrap_or(dirs.len());
        let mut all = Self { parts: dirs.len() - first, names: Box::default(), rows: Box::default() };
        let (mut arena, mut rows): (Vec<u8>, Vec<Row>) = (Vec::new(), Vec::new());
        for (part, dir) in dirs[first..].iter().enumerate() {
            let part = u16::try_from(part).map_err(|_| Errno::TOOBIG)?;
            let wh_names = stack.has_wh_names(dir.layer());
            file::list(dir.fd()?, |name, ino, kind| {
                if rows.len() >= MAX_ROWS {
                    return Err(Errno::TOOBIG);
                }
                let (name, kind) = if wh_names && names::is_wh(name) {
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
            if rows.len() >= MAX_ROWS {
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

impl Drop for Lowers {
    fn drop(&mut self) {
        KEPT.fetch_sub(self.rows.len(), Ordering::Relaxed);
    }
}

/// A directory's parts, topmost first, and what is known of the lower ones.
#[derive(Debug, Clone, Default)]
pub struct Parts {
    dirs: Arc<[Arc<Dir>]>,
    lowers: Option<Arc<Lowers>>,
    /// The lower ones hold too much to be kept.
    too_large: bool,
}

impl Parts {
    /// The parts.
    pub fn dirs(&self) -> &[Arc<Dir>] {
        &self.dirs
    }

    /// What the lower ones hold, if it was read.
    pub fn lowers(&self) -> Option<&Lowers> {
        self.lowers.as_deref()
    }

    fn lower_count(&self, stack: &Stack) -> usize {
        self.dirs.iter().rev().take_while(|d| stack.role(d.layer()) == Role::Lower).count()
    }

    /// Whether what the lower ones hold is worth reading: there are at least `many`, and it was not read, nor
    /// found too large.
    pub fn is_worth_reading(&self, stack: &Stack, many: usize) -> bool {
        self.lowers.is_none() && !self.too_large && self.lower_count(stack) >= many
    }

    /// With what the lower ones hold; `None`: too much.
    pub fn with_lowers(&self, lowers: Option<Lowers>) -> Self {
        Self { dirs: self.dirs.clone(), too_large: lowers.is_none(), lowers: lowers.map(Arc::new) }
    }

    /// With one more part on top.
    pub fn with_top(&self, top: Arc<Dir>) -> Self {
        let dirs = std::iter::once(top).chain(self.dirs.iter().cloned()).collect();
        Self { dirs, lowers: self.lowers.clone(), too_large: self.too_large }
    }
}

impl From<Vec<Arc<Dir>>> for Parts {
    fn from(dirs: Vec<Arc<Dir>>) -> Self {
        Self { dirs: dirs.into(), lowers: None, too_large: false }
    }
}
