//! Writing an archive. The same members give the same bytes.

use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;

use tar::{EntryType, Header};

use super::{BLOCK, Entry, EntryKind, XATTR, pax};

/// The longest path and link target that a header of ustar has room for, in one field.
const NAME_MAX: usize = 100;
/// The largest number in the fields of owner and group, and in those of size and time.
const ID_MAX: u32 = 0o7_777_777;
const SIZE_MAX: u64 = 0o77_777_777_777;

/// Writes an archive.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// An archive without members.
    pub fn new(out: W) -> Self {
        Self { out }
    }

    /// Writes a member. For a regular file, exactly as many bytes as its size are taken from `content`.
    ///
    /// # Errors
    /// Those of reading and writing; `UnexpectedEof` when there is less content. `InvalidInput` when an attribute has
    /// a name that no record can have.
    pub fn append(&mut self, entry: &Entry, mut content: impl Read) -> io::Result<()> {
        let records = records(entry)?;
        if !records.is_empty() {
            let mut name = b"PaxHeaders/".to_vec();
            name.extend_from_slice(&entry.path[..entry.path.len().min(NAME_MAX - name.len())]);
            let mut header = Header::new_ustar();
            set_name(&mut header, &name);
            header.set_entry_type(EntryType::XHeader);
            header.set_mode(0o644);
            header.set_uid(0);
            header.set_gid(0);
            header.set_mtime(0);
            header.set_size(records.len() as u64);
            header.set_cksum();
            self.out.write_all(header.as_bytes())?;
            self.out.write_all(&records)?;
            self.pad(records.len() as u64)?;
        }
        self.out.write_all(header(entry)?.as_bytes())?;
        if let EntryKind::File(size) = entry.kind {
            if io::copy(&mut content.by_ref().take(size), &mut self.out)? < size {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            self.pad(size)?;
        }
        Ok(())
    }

    /// Fills the last block.
    fn pad(&mut self, size: u64) -> io::Result<()> {
        let rest = (size % BLOCK as u64) as usize;
        if rest > 0 { self.out.write_all(&[0; BLOCK][rest..]) } else { Ok(()) }
    }

    /// Writes the end of the archive; gives where it went.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        Ok(self.out)
    }
}

/// The path as the archive has it: a directory ends in a slash, the root is a dot.
fn stored_path(entry: &Entry) -> Vec<u8> {
    let mut path = entry.path.clone();
    if path.is_empty() {
        path.push(b'.');
    }
    if entry.kind == EntryKind::Dir {
        path.push(b'/');
    }
    path
}

fn target(entry: &Entry) -> &[u8] {
    match &entry.kind {
        EntryKind::Symlink(target) | EntryKind::Hardlink(target) => target,
        _ => b"",
    }
}

/// What the header has no room for, ordered by key.
fn records(entry: &Entry) -> io::Result<Vec<u8>> {
    let mut records = Vec::new();
    for (name, value) in &entry.xattrs {
        if name.as_bytes().contains(&b'=') {
            let reason = format!("the attribute {} has no form in an archive", name.display());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, reason));
        }
        pax::encode(&mut records, &[XATTR, name.as_bytes()].concat(), value);
    }
    if entry.gid > ID_MAX {
        pax::encode(&mut records, b"gid", entry.gid.to_string().as_bytes());
    }
    if target(entry).len() > NAME_MAX {
        pax::encode(&mut records, b"linkpath", target(entry));
    }
    if entry.mtime.1 != 0 || u64::try_from(entry.mtime.0).map_or(true, |seconds| seconds > SIZE_MAX) {
        pax::encode(&mut records, b"mtime", pax::encode_time(entry.mtime).as_bytes());
    }
    let path = stored_path(entry);
    if path.len() > NAME_MAX {
        pax::encode(&mut records, b"path", &path);
    }
    if let EntryKind::File(size) = entry.kind
        && size > SIZE_MAX
    {
        pax::encode(&mut records, b"size", size.to_string().as_bytes());
    }
    if entry.uid > ID_MAX {
        pax::encode(&mut records, b"uid", entry.uid.to_string().as_bytes());
    }
    Ok(records)
}

/// The header of a member. What does not fit is cut off or 0, and is in the records.
fn header(entry: &Entry) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    set_name(&mut header, &stored_path(entry));
    header.set_mode(entry.mode & 0o7777);
    header.set_uid(u64::from(if entry.uid > ID_MAX { 0 } else { entry.uid }));
    header.set_gid(u64::from(if entry.gid > ID_MAX { 0 } else { entry.gid }));
    header.set_mtime(u64::try_from(entry.mtime.0).ok().filter(|s| *s <= SIZE_MAX).unwrap_or(0));
    header.set_size(0);
    let (kind, device) = match &entry.kind {
        EntryKind::File(size) => {
            header.set_size(if *size > SIZE_MAX { 0 } else { *size });
            (EntryType::Regular, None)
        }
        EntryKind::Dir => (EntryType::Directory, None),
        EntryKind::Symlink(_) => (EntryType::Symlink, None),
        EntryKind::Hardlink(_) => (EntryType::Link, None),
        EntryKind::Char(major, minor) => (EntryType::Char, Some((*major, *minor))),
        EntryKind::Block(major, minor) => (EntryType::Block, Some((*major, *minor))),
        EntryKind::Fifo => (EntryType::Fifo, None),
    };
    header.set_entry_type(kind);
    if let Some((major, minor)) = device {
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
    }
    let target = target(entry);
    let len = target.len().min(NAME_MAX);
    header.as_old_mut().linkname[..len].copy_from_slice(&target[..len]);
    header.set_cksum();
    Ok(header)
}

fn set_name(header: &mut Header, name: &[u8]) {
    let len = name.len().min(NAME_MAX);
    header.as_old_mut().name[..len].copy_from_slice(&name[..len]);
}
