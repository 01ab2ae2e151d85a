//! readdir, readdirplus, fsyncdir. Directories are not opened: what a reader has begun to read is found again by
//! the place where he goes on.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustix::fs::FileType;

use super::{Attr, DirEntry, ROOT, UnionFs};
use crate::error::{Errno, Result};
use crate::layer::stack::Role;
use crate::merge::listing::{self, Entry};
use crate::merge::lowers::Parts;
use crate::node::Node;
use crate::node::listings::{END, Place};
use crate::sys::ahead::{self, Watch};
use crate::sys::file;
use crate::sys::sync;

/// So many entries of a directory are read ahead at a time.
const MOST_AHEAD: usize = 256;
/// So many names in its parts.
const MOST_IN_PARTS: usize = 1024;
/// `.` and `..` come before the entries.
const DOTS: usize = 2;

/// What is done with an entry of a directory. It is given the place behind the entry, and the entries from this one on.
type Each<'a> = dyn FnMut(&Arc<Node>, u64, &Entry, &[Entry]) -> bool + 'a;

impl UnionFs {
    /// Gives the entries of a directory from `offset` on (0, or the `next` of an entry) until `sink` returns true: that
    /// entry did not fit. `.` and `..` come first. Who goes on reads what was there when he began; where that is not
    /// kept any more ([`crate::node::listings::Listings`]), what is there now and did not come before.
    ///
    /// # Errors
    /// Those of reading the layers; ENOENT for a removed directory.
    pub fn readdir(&self, ino: u64, offset: u64, sink: &mut dyn FnMut(DirEntry<'_>) -> bool) -> Result<()> {
        self.walk(ino, offset, &mut |dir, next, entry, _| {
            let ino = match self.told_number(dir, entry) {
                Some(ino) => ino,
                // Gone since it was listed, or not to be read: what it is no longer matters.
                None => match self.child(dir, &entry.name) {
                    Ok((node, _)) => node.ino,
                    Err(_) => return false,
                },
            };
            sink(DirEntry { ino, next, kind: entry.kind, name: &entry.name })
        })
    }

    /// The number of an entry, when the listing tells it.
    fn told_number(&self, dir: &Node, entry: &Entry) -> Option<u64> {
        let ino = entry.ino?;
        if entry.kind == FileType::Directory {
            return Some(ino);
        }
        // A lower file may be one of several names that are told apart only when it is looked at. An upper one with
        // several may have an origin wherever others have put them: they do not mark directories.
        let is_told = match self.stack.role(entry.layer) {
            Role::Upper | Role::Frozen => {
                let part = dir.part(entry.layer)?;
                file::stat_at(part.fd().ok()?, &entry.name).is_ok_and(|st| st.nlink == 1)
            }
            Role::Lower => !self.splits_any_links(entry.layer),
            Role::Init => true,
        };
        is_told.then_some(ino)
    }

    /// Like [`Self::readdir`], with attributes, of files only with `files`; counts one lookup for each entry that
    /// fitted and had attributes. `None` for the others, for `.` and `..`, and for entries that cannot be read.
    ///
    /// # Errors
    /// Those of reading the layers.
    pub fn readdirplus(
        &self,
        ino: u64,
        offset: u64,
        files: bool,
        sink: &mut dyn FnMut(DirEntry<'_>, Option<&Attr>) -> bool,
    ) -> Result<()> {
        // Who lists a directory in another, most often goes on with the others in it.
        let mut watch = None;
        self.walk(ino, offset, &mut |dir, next, entry, rest| {
            if entry.name.as_encoded_bytes() == b"." || entry.name.as_encoded_bytes() == b".." {
                let ino = entry.ino.unwrap_or(ROOT);
                return sink(DirEntry { ino, next, kind: entry.kind, name: &entry.name }, None);
            }
            if !files
                && entry.kind != FileType::Directory
                && let Some(ino) = self.told_number(dir, entry)
            {
                return sink(DirEntry { ino, next, kind: entry.kind, name: &entry.name }, None);
            }
            let parts = || dir.parts().unwrap_or_default();
            let watch = watch.get_or_insert_with(|| Watch::of_merged(parts().dirs().len()));
            watch.step(|| in_parts(&parts(), rest.iter().filter(|e| files || e.kind == FileType::Directory)));
            let child = self.child(dir, &entry.name);
            match child.and_then(|(node, st)| self.attr(&node, &st).map(|attr| (node, attr))) {
                Ok((node, attr)) => {
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

    /// Calls `each` for the entries from `offset` on until it returns true.
    fn walk(&self, ino: u64, offset: u64, each: &mut Each<'_>) -> Result<()> {
        let Some(place) = Place::at(offset) else { return Ok(()) };
        let dir = self.node(ino)?;
        let kept = if offset == 0 { None } else { self.listings.get(place.listing, ino) };
        let is_kept = kept.is_some();
        let (listing, number, begin) = match kept {
            Some(listing) => (listing, place.listing, place.index),
            None => {
                let (listing, begin) = self.list_from(&dir, place)?;
                (listing, self.listings.number(), begin)
            }
        };
        let parent = dir.any_link().map_or(ROOT, |link| link.parent.ino);
        let dot = |name: &str, ino| Entry {
            name: OsStr::new(name).into(),
            ino: Some(ino),
            kind: FileType::Directory,
            layer: 0,
        };
        let dots = [dot(".", ino), dot("..", parent)];
        let last = DOTS + listing.len() - 1;
        let rest = listing.iter().skip(begin.saturating_sub(DOTS));
        let mut rest = dots.iter().skip(begin).chain(rest).zip(begin..);
        let all = {
            let _names = dir.names.read();
            rest.all(|(entry, at)| {
                let next = if at == last { END } else { Place { listing: number, index: at + 1 }.offset() };
                !each(&dir, next, entry, listing.get(at.saturating_sub(DOTS)..).unwrap_or_default())
            })
        };
        match (all, is_kept) {
            (true, _) => self.listings.finish(number, ino, &listing),
            (false, false) => self.listings.keep(number, ino, listing),
            (false, true) => {}
        }
        Ok(())
    }

    /// Makes the listing of a directory for a reader at this place of one that is not kept; and where he is in it.
    fn list_from(&self, dir: &Arc<Node>, place: Place) -> Result<(Arc<[Entry]>, usize)> {
        let now = {
            let _names = dir.names.read();
            let parts = self.parts(dir, true)?;
            listing::list(&self.stack, &parts, !self.noatime)?
        };
        let had = place.index.saturating_sub(DOTS);
        Ok(match self.listings.go_on(place.listing, dir.ino, had, &now) {
            Some((all, had)) => (all, had + place.index.min(DOTS)),
            None => (now.into(), place.index),
        })
    }

    /// Brings small files of a directory into memory, for someone who reads one after the other: those that are listed
    /// behind the file `after`, if that is given.
    ///
    /// # Errors
    /// Those of reading the layers.
    pub fn read_ahead(&self, ino: u64, after: Option<u64>) -> Result<()> {
        let dir = self.node(ino)?;
        let after = after.map(|file| self.node(file)).transpose()?.and_then(|node| node.any_link());
        let parts = dir.parts()?;
        let listing = listing::list(&self.stack, &parts, false)?;
        let behind = after.and_then(|link| listing.iter().position(|entry| *entry.name == *link.name));
        let files = listing[behind.map_or(0, |at| at + 1)..].iter();
        ahead::read_files(&in_parts(&parts, files.filter(|entry| entry.kind == FileType::RegularFile)));
        Ok(())
    }

    /// Brings a directory's names to its device.
    ///
    /// # Errors
    /// Those of fsync(2).
    pub fn fsyncdir(&self, ino: u64, _datasync: bool) -> Result<()> {
        let dir = self.node(ino)?;
        if self.stack.volatile() {
            return Ok(());
        }
        // A removed directory has nothing left to bring.
        let Ok(parts) = dir.parts() else { return Ok(()) };
        // Names in a frozen layer may have been made a moment ago.
        for part in parts.dirs().iter().filter(|p| self.stack.role(p.layer()) != Role::Lower) {
            sync::object(&*part.fd()?, false)?;
        }
        Ok(())
    }
}

/// The first of these entries of a merged directory as names in its parts: directories in all, others where they are.
fn in_parts<'a>(parts: &Parts, entries: impl Iterator<Item = &'a Entry>) -> Vec<(Arc<OwnedFd>, &'a OsStr)> {
    let fds: Vec<_> =
        parts.dirs().iter().filter_map(|part| part.fd().ok().map(|fd| (part.layer(), fd))).collect();
    let each = entries.take(MOST_AHEAD).flat_map(|entry| {
        let in_all = entry.kind == FileType::Directory;
        let fds = fds.iter().filter(move |(layer, _)| in_all || *layer == entry.layer);
        fds.map(move |(_, fd)| (Arc::clone(fd), &*entry.name))
    });
    each.take(MOST_IN_PARTS).collect()
}
