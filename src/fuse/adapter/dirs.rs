//! Directories.

use std::ffi::OsStr;

use zerocopy::IntoBytes;

use super::{Adapter, convert};
use crate::error::Result;
use crate::fs::DirEntry;
use crate::fuse::message::{Body, Request};
use crate::fuse::wire::{self, Dirent, EntryOut};

/// Entries begin on multiples of this.
const ALIGN: usize = 8;

impl Adapter {
    pub(super) fn readdir(&self, request: &Request<'_>, body: &mut Body<'_>) -> Result<()> {
        let given: wire::ReadIn = request.fixed()?;
        self.fs.readdir(request.header.nodeid, given.offset, &mut |entry| {
            let dirent = dirent(&entry, convert::kind(entry.kind));
            !add(body, given.size as usize, dirent.as_bytes(), entry.name)
        })
    }

    pub(super) fn readdirplus(&self, request: &Request<'_>, body: &mut Body<'_>) -> Result<()> {
        let given: wire::ReadIn = request.fixed()?;
        let ino = request.header.nodeid;
        // Only the first part of a listing is asked for with attributes in any case.
        let files = given.offset > 0 || {
            let wish = self.readers.lists(request.header.pid, ino);
            if wish.content {
                self.ahead.read(&self.fs, ino, None);
            }
            wish.attributes
        };
        self.fs.readdirplus(ino, given.offset, files, &mut |entry, attr| {
            let dirent = dirent(&entry, convert::kind(entry.kind));
            // Of node 0 the kernel takes the name and the type alone (`fuse_direntplus_link`).
            let about = attr.map_or_else(EntryOut::default, |attr| self.ttl.entry(attr));
            let mut fixed = [0; size_of::<EntryOut>() + size_of::<Dirent>()];
            let (first, second) = fixed.split_at_mut(size_of::<EntryOut>());
            first.copy_from_slice(about.as_bytes());
            second.copy_from_slice(dirent.as_bytes());
            !add(body, given.size as usize, &fixed, entry.name)
        })
    }

    pub(super) fn fsyncdir(&self, request: &Request<'_>) -> Result<()> {
        let given: wire::FsyncIn = request.fixed()?;
        self.fs.fsyncdir(request.header.nodeid, given.fsync_flags & wire::FSYNC_FDATASYNC != 0)
    }
}

fn dirent(entry: &DirEntry<'_>, kind: u32) -> Dirent {
    let namelen = u32::try_from(entry.name.len()).unwrap_or(u32::MAX);
    Dirent { ino: entry.ino, off: entry.next, namelen, kind }
}

/// Adds an entry if it fits into `limit` bytes with those before it.
fn add(body: &mut Body<'_>, limit: usize, fixed: &[u8], name: &OsStr) -> bool {
    let name = name.as_encoded_bytes();
    let whole = (fixed.len() + name.len()).next_multiple_of(ALIGN);
    if body.len() + whole > limit || body.room().len() < whole {
        return false;
    }
    let padding = [0; ALIGN];
    let padding = &padding[..whole - fixed.len() - name.len()];
    // It fits.
    [fixed, name, padding].iter().all(|part| body.bytes(part).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_aligned_and_fit() {
        let mut buffer = [1; 64];
        let mut body = Body::new(&mut buffer);
        let fixed = [7; size_of::<Dirent>()];
        assert!(add(&mut body, 64, &fixed, OsStr::new("abc")));
        assert_eq!(body.len(), 32);
        assert!(!add(&mut body, 63, &fixed, OsStr::new("abcdefgh")));
        assert!(add(&mut body, 64, &fixed, OsStr::new("abcdefgh")));
        assert!(!add(&mut body, 100, &[], OsStr::new("a")));
        assert_eq!(&buffer[24..34], b"abc\0\0\0\0\0\x07\x07");
    }
}
