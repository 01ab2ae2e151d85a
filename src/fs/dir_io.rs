//! opendir, readdir, readdirplus, fsyncdir.

use std::ffi::OsStr;
use std::sync::Arc;

use rustix::fs::FileType;

use super::{Attr, DirEntry, ROOT, UnionFs};
use crate::error::{Errno, Result};
use crate::merge::listing::{self, Entry};
use crate::node::files::OpenDir;

/// `.` and `..` come before the entries.
const DOTS: usize = 2;

impl UnionFs {
    /// Opens a directory.
    ///
    /// # Errors
    /// ENOTDIR; ENOENT once it was removed.
    pub fn opendir(&self, ino: u64) -> Result<u64> {
        let node = self.node(ino)?;
        node.parts()?;
        Ok(self.dirs.add(OpenDir { node, listing: parking_lot::Mutex::new(None) }))
    }

    /// Lets go of an open directory.
    pub fn releasedir(&self, fh: u64) {
        self.dirs.remove(fh);
    }

    /// The listing that a handle goes by; made anew when read from the start.
    fn listing(&self, open: &OpenDir, offset: u64) -> Result<Arc<Vec<Entry>>> {
        let mut kept = open.listing.lock();
        if let Some(listing) = kept.as_ref().filter(|_| offset > 0) {
            return Ok(listing.clone());
        }
        let _names = open.node.names.read();
        let parts = self.parts(&open.node, true)?;
        let listing = Arc::new(listing::list(&self.stack, &parts, !self.noatime)?);
        *kept = Some(listing.clone());
        Ok(listing)
    }

    /// Gives the entries from `offset` on (0, or the `next` of an entry) until `sink` returns true: that
    /// entry did not fit. `.` and `..` come first.
    ///
    /// # Errors
    /// Those of reading the layers.
    pub fn readdir(&self, fh: u64, offset: u64, sink: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        self.walk(fh, offset, &mut |open, next, entry| {
            // A lower file may be one of several names that are told apart only when it is looked at.
            let told = entry
                .ino
                .filter(|_| entry.kind == FileType::Directory || !self.splits_any_links(entry.layer));
            let ino = match told {
                Some(ino) => ino,
                // Gone since it was listed, or not to be read: what it is no longer matters.
                None => match self.child(&open.node, &entry.name) {
                    Ok((node, _)) => node.ino,
                    Err(_) => return false,
                },
            };
            sink(DirEntry { ino, next, kind: entry.kind, name: &entry.name })
        })
    }

    /// Like [`Self::readdir`], with attributes; counts one lookup for each entry that fitted and had
    /// attributes, except `.` and `..`. `None` for those, and for entries that cannot be read.
    ///
    /// # Errors
    /// Those of reading the layers.
    pub fn readdirplus(
        &self,
        fh: u64,
        offset: u64,
        sink: &mut dyn FnMut(DirEntry<'_>, Option<&Attr>) -> bool,
    ) -> Result<()> {
        self.walk(fh, offset, &mut |open, next, entry| {
            if entry.name.as_encoded_bytes() == b"." || entry.name.as_encoded_bytes() == b".." {
                let ino = entry.ino.unwrap_or(ROOT);
                return sink(DirEntry { ino, next, kind: entry.kind, name: &entry.name }, None);
            }
            match self.child(&open.node, &entry.name) {
                Ok((node, st)) => {
                    let attr = self.attr(&node, &st);
                    let item = DirEntry { ino: node.ino, next, kind: attr.kind(), name: &entry.name };
                    let full = sink(item, Some(&attr));
                    if !full {
                        self.table.count(&node);
                    }
                    full
                }
                Err(Errno::NOENT) => false,
                Err(_) => {
                    let ino = entry.ino.unwrap_or(u64::MAX);
                    sink(DirEntry { ino, next, kind: entry.kind, name: &entry.name }, None)
                }
            }
        })
    }

    fn walk(&self, fh: u64, offset: u64, each: &mut dyn FnMut(&OpenDir, u64, &Entry) -> bool) -> Result<()> {
        let open = self.dirs.get(fh)?;
        let listing = self.listing(&open, offset)?;
        let parent = open.node.any_link().map_or(ROOT, |link| link.parent.ino);
        let dot = |name: &str, ino| Entry {
            name: OsStr::new(name).into(),
            ino: Some(ino),
            kind: FileType::Directory,
            layer: 0,
        };
        let dots = [dot(".", open.node.ino), dot("..", parent)];
        let start = usize::try_from(offset).map_err(|_| Errno::INVAL)?;
        let _names = open.node.names.read();
        let entries = listing.iter().skip(start.saturating_sub(DOTS));
        for (i, entry) in dots.iter().skip(start).chain(entries).enumerate() {
            if each(&open, (start + i + 1) as u64, entry) {
                break;
            }
        }
        Ok(())
    }

    /// Brings a directory's names to its device.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn fsyncdir(&self, fh: u64, _datasync: bool) -> Result<()> {
        let open = self.dirs.get(fh)?;
        if self.stack.volatile() {
            return Ok(());
        }
        // A removed directory has nothing left to bring.
        let Ok(parts) = open.node.parts() else { return Ok(()) };
        for part in parts.dirs().iter().filter(|p| self.stack.in_place(p.layer())) {
            rustix::fs::fsync(&*part.fd()?)?;
        }
        Ok(())
    }
}
