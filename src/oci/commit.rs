//! Writing the changes of an upper as a layer archive (OCI image spec, layer.md).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, major, minor};

use super::attributes::{Xattrs, of_dir, of_entry};
use super::change::{Change, What, open_data, unreadable};
use super::links::identity;
use super::tar::{Entry, EntryKind, Writer};
use super::{Watch, Watched};
use crate::error::{Errno, MountError, Outcome};
use crate::format::names;
use crate::merge::attr::Attr;
use crate::merge::lookup::{Data, Other};
use crate::sys::file::{self, Stat};

/// The permissions of a whiteout: nobody has to open it.
const WHITEOUT_MODE: u32 = 0;

/// Bytes handed to a compressor at once.
const BUFFER: usize = 128 << 10;

/// What an archive was made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// Members of the archive.
    pub entries: u64,
    /// Sockets, which have no form in an archive.
    pub left_out: Vec<PathBuf>,
    /// Files that were changed after their attributes were read.
    pub changed: Vec<PathBuf>,
}

/// How many bytes of content the changes have.
pub fn content_size(changes: &[Change]) -> u64 {
    changes
        .iter()
        .map(|change| match &change.what {
            What::Other(other) if other.stat.kind() == FileType::RegularFile => other.stat.size,
            _ => 0,
        })
        .sum()
}

/// Writes the archive of some changes, which are in the order of a walk. `latest`: no member has a later
/// modification time, in seconds since the epoch.
///
/// # Errors
/// A sentence that names the path that cannot be read or has no form in an archive.
pub fn write(
    changes: &[Change],
    out: impl Write,
    latest: Option<i64>,
    watch: &dyn Watch,
) -> Outcome<Written> {
    let mut layer = Layer {
        archive: Writer::new(BufWriter::with_capacity(BUFFER, out)),
        first_names: HashMap::new(),
        latest,
        written: Written::default(),
        watch,
    };
    for change in changes {
        layer.append(change)?;
    }
    // Not flushed any further: a compressor would end a block.
    layer.archive.finish().and_then(|out| Ok(out.into_inner().map(drop)?)).map_err(unwritten)?;
    Ok(layer.written)
}

struct Layer<'a, W: Write> {
    archive: Writer<W>,
    /// Of each file with several names the one that has its content.
    first_names: HashMap<(u64, u64), Vec<u8>>,
    latest: Option<i64>,
    written: Written,
    watch: &'a dyn Watch,
}

/// Why something was not put into the archive.
enum Fault {
    Layer(Errno),
    Archive(io::Error),
}

impl From<Errno> for Fault {
    fn from(e: Errno) -> Self {
        Self::Layer(e)
    }
}

impl From<io::Error> for Fault {
    fn from(e: io::Error) -> Self {
        Self::Archive(e)
    }
}

fn unwritten(e: io::Error) -> MountError {
    MountError::System(format!("the archive cannot be written: {e}"))
}

impl<W: Write> Layer<'_, W> {
    fn append(&mut self, change: &Change) -> Outcome<()> {
        let path = change.path.as_os_str().as_bytes();
        let named = |reason: &str| MountError::path("path", Path::new("/").join(&change.path), reason);
        let gone = matches!(change.what, What::Nothing { .. });
        if !gone && change.path.file_name().is_some_and(names::is_wh) {
            return Err(named("begins with .wh., as whiteouts in image layers do; rename or remove it"));
        }
        self.append_change(change, path).map_err(|fault| match fault {
            Fault::Layer(e) => unreadable(path, e),
            Fault::Archive(e) => match e.kind() {
                io::ErrorKind::UnexpectedEof => unreadable(path, Errno::STALE),
                io::ErrorKind::InvalidInput => named(&format!("cannot be written: {e}")),
                _ => unwritten(e),
            },
        })
    }

    fn append_change(&mut self, change: &Change, path: &[u8]) -> Result<(), Fault> {
        match &change.what {
            What::Nothing { whiteout: true } => self.whiteout(&change.path),
            What::Nothing { whiteout: false } => Ok(()),
            What::Dir { part, stat, opaque } => {
                self.add(entry(path, EntryKind::Dir, stat, of_dir(part)?), io::empty())?;
                if *opaque {
                    let mark = change.path.join(names::WH_OPAQUE);
                    self.add(empty_file(mark.as_os_str().as_bytes().to_vec()), io::empty())?;
                }
                Ok(())
            }
            What::Other(other) if other.stat.kind() == FileType::Socket => {
                self.written.left_out.push(change.path.clone());
                // What it hides must stay hidden.
                if change.kind == Some(super::change::Kind::Changed) {
                    self.whiteout(&change.path)
                } else {
                    Ok(())
                }
            }
            What::Other(other) => self.other(change, path, other),
        }
    }

    fn other(&mut self, change: &Change, path: &[u8], other: &Other) -> Result<(), Fault> {
        let xattrs = of_entry(&other.dir, &other.name)?;
        if let Some(id) = identity(change) {
            if let Some(first) = self.first_names.get(&id) {
                let kind = EntryKind::Hardlink(first.clone());
                return self.add(entry(path, kind, &other.stat, Xattrs::new()), io::empty());
            }
            self.first_names.insert(id, path.to_vec());
        }
        let st = &other.stat;
        let device = Attr::new(0, st).rdev;
        let kind = match st.kind() {
            FileType::RegularFile => {
                let content = File::from(open_data(&Data::of(other))?);
                let real = content.try_clone()?;
                let content = Watched::new(content, self.watch);
                self.add(entry(path, EntryKind::File(st.size), st, xattrs), content)?;
                // Of one that has its data in a lower, the attributes are elsewhere.
                let now = file::stat_fd(&real)?;
                if other.data.is_none() && (now.size, now.mtime, now.ctime) != (st.size, st.mtime, st.ctime) {
                    self.written.changed.push(change.path.clone());
                }
                return Ok(());
            }
            FileType::Symlink => EntryKind::Symlink(file::readlink(other.dir.fd()?, &other.name)?.into_vec()),
            FileType::CharacterDevice => EntryKind::Char(major(device), minor(device)),
            FileType::BlockDevice => EntryKind::Block(major(device), minor(device)),
            FileType::Fifo => EntryKind::Fifo,
            _ => return Err(Errno::IO.into()),
        };
        self.add(entry(path, kind, st, xattrs), io::empty())
    }

    fn whiteout(&mut self, path: &Path) -> Result<(), Fault> {
        // Where the name is too long, the directory is opaque instead.
        let name = path.file_name().and_then(names::wh_name).ok_or(Errno::NAMETOOLONG)?;
        let path = path.with_file_name(name);
        self.add(empty_file(path.into_os_string().into_vec()), io::empty())
    }

    fn add(&mut self, mut entry: Entry, content: impl Read) -> Result<(), Fault> {
        if let Some(latest) = self.latest
            && entry.mtime > (latest, 0)
        {
            entry.mtime = (latest, 0);
        }
        self.archive.append(&entry, content)?;
        self.written.entries += 1;
        Ok(())
    }
}

fn entry(path: &[u8], kind: EntryKind, st: &Stat, xattrs: Xattrs) -> Entry {
    Entry {
        path: path.to_vec(),
        kind,
        mode: st.mode & 0o7777,
        uid: st.uid,
        gid: st.gid,
        mtime: st.mtime,
        xattrs,
    }
}

/// A whiteout or opaque mark: an empty file whose name says all.
fn empty_file(path: Vec<u8>) -> Entry {
    let kind = EntryKind::File(0);
    Entry { path, kind, mode: WHITEOUT_MODE, uid: 0, gid: 0, mtime: (0, 0), xattrs: Xattrs::new() }
}
