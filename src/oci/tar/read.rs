//! Reading an archive of unknown origin: what it makes us keep is bounded, what it says is checked.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;

use tar::{EntryType, Header};

use super::{BLOCK, Entry, EntryKind, XATTR, pax};
use crate::oci::attributes::Xattrs;

/// The field of a header that holds its sum.
const CHECKSUM: std::ops::Range<usize> = 148..156;

/// How much an archive may ask for.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Members.
    pub entries: u64,
    /// Bytes of content of all members.
    pub content: u64,
    /// Bytes of extended records and long names of one member.
    pub records: u64,
}

impl Default for Limits {
    /// More than any image has: 10 million members, content without a limit, records of 8 MiB.
    fn default() -> Self {
        Self { entries: 10_000_000, content: u64::MAX, records: 8 << 20 }
    }
}

/// Why an archive cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// What a member says is wrong or not permitted.
    #[error("entry {}: {reason}", OsStr::from_bytes(path).display())]
    Entry {
        /// Its path as the archive has it.
        path: Vec<u8>,
        /// What is wrong.
        reason: String,
    },
    /// The archive itself cannot be read.
    #[error("{0}")]
    Archive(String),
}

impl Fault {
    /// A complaint about a member.
    pub fn entry(path: &[u8], reason: impl Into<String>) -> Self {
        Self::Entry { path: path.to_vec(), reason: reason.into() }
    }
}

impl From<io::Error> for Fault {
    fn from(e: io::Error) -> Self {
        Self::Archive(match e.kind() {
            io::ErrorKind::UnexpectedEof => "ends in the middle; get it anew".into(),
            _ => format!("cannot be read: {e}"),
        })
    }
}

fn wrong_sum() -> Fault {
    Fault::Archive("is no archive, or is damaged: a header has a wrong checksum".into())
}

/// Reads an archive, member by member.
#[derive(Debug)]
pub struct Reader<R: Read> {
    from: R,
    limits: Limits,
    entries: u64,
    content: u64,
    /// Bytes of the current member's content that were not read, and of the padding behind it.
    left: u64,
    padding: u64,
    ended: bool,
}

/// What extended headers say about the member that follows.
#[derive(Debug, Default)]
struct Extended {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u32>,
    gid: Option<u32>,
    mtime: Option<(i64, u32)>,
    xattrs: Xattrs,
}

impl<R: Read> Reader<R> {
    /// Starts at the beginning of an archive.
    pub fn new(from: R, limits: Limits) -> Self {
        Self { from, limits, entries: 0, content: 0, left: 0, padding: 0, ended: false }
    }

    /// The next member; `None` at the end. Its content is then to be had by reading.
    ///
    /// # Errors
    /// A header that makes no sense, or asks for more than the limits permit.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Fault> {
        let mut extended = Extended::default();
        let mut records = 0;
        loop {
            self.skip()?;
            let Some(header) = self.header()? else { return Ok(None) };
            self.entries += 1;
            if self.entries > self.limits.entries {
                return Err(Fault::Archive(format!(
                    "has more than {} entries; raise the limit by --max-entries if that is right",
                    self.limits.entries
                )));
            }
            let kind = header.entry_type();
            let describes_next = kind.is_pax_local_extensions()
                || kind.is_pax_global_extensions()
                || kind.is_gnu_longname()
                || kind.is_gnu_longlink();
            if !describes_next {
                return self.entry(&header, extended).map(Some);
            }
            let size = header.entry_size().map_err(|e| malformed(&header, &e))?;
            records += size;
            if records > self.limits.records {
                return Err(Fault::entry(&header.path_bytes(), "has an extended header of excessive size"));
            }
            self.expect(size);
            let mut bytes = Vec::new();
            Read::read_to_end(self, &mut bytes)?;
            if bytes.len() as u64 != size {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            match kind {
                EntryType::XHeader => {
                    extended.read(&bytes).map_err(|r| Fault::entry(&header.path_bytes(), r))?
                }
                EntryType::GNULongName => extended.path = Some(until_nul(bytes)),
                EntryType::GNULongLink => extended.target = Some(until_nul(bytes)),
                // Said of the archive as a whole, such as the commit that it was made from.
                _ => {}
            }
        }
    }

    /// Reads what is left of the archive and what follows it; gives the source.
    ///
    /// # Errors
    /// Those of reading.
    pub fn finish(mut self) -> Result<R, Fault> {
        self.skip()?;
        io::copy(&mut self.from, &mut io::sink())?;
        Ok(self.from)
    }

    /// Sets out to read so many bytes of content.
    fn expect(&mut self, size: u64) {
        self.left = size;
        self.padding = (BLOCK as u64 - size % BLOCK as u64) % BLOCK as u64;
    }

    /// Passes over what is left of the current member.
    fn skip(&mut self) -> io::Result<()> {
        let rest = self.left.saturating_add(self.padding);
        (self.left, self.padding) = (0, 0);
        if io::copy(&mut self.from.by_ref().take(rest), &mut io::sink())? < rest {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(())
    }

    /// The next header; `None` at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>, Fault> {
        if self.ended {
            return Ok(None);
        }
        let mut block = [0; BLOCK];
        let mut have = 0;
        while have < BLOCK {
            match self.from.read(&mut block[have..]) {
                Ok(0) => break,
                Ok(n) => have += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        // An end without the two empty blocks is common enough.
        if have == 0 || (have == BLOCK && block == [0; BLOCK]) {
            self.ended = true;
            return Ok(None);
        }
        if have < BLOCK {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        let header = Header::from_byte_slice(&block).clone();
        let Ok(told) = header.cksum() else { return Err(wrong_sum()) };
        // The sum is made with spaces in its own field. Old archives have that of signed bytes.
        block[CHECKSUM].fill(b' ');
        let unsigned: u32 = block.iter().map(|b| u32::from(*b)).sum();
        let signed = || -> i32 { block.iter().map(|b| i32::from(b.cast_signed())).sum() };
        if told == unsigned || i64::from(told) == i64::from(signed()) {
            Ok(Some(header))
        } else {
            Err(wrong_sum())
        }
    }

    fn entry(&mut self, header: &Header, extended: Extended) -> Result<Entry, Fault> {
        let path = extended.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let wrong = |reason: &str| Fault::entry(&path, reason);
        let malformed = |e: io::Error| Fault::entry(&path, format!("has a malformed header: {e}"));
        let target = || {
            let in_header = || header.link_name_bytes().map(|t| t.into_owned());
            let target = extended.target.clone().or_else(in_header).unwrap_or_default();
            if target.is_empty() || target.contains(&0) {
                Err(wrong("has no usable link target"))
            } else {
                Ok(target)
            }
        };
        let device = || -> Result<(u32, u32), Fault> {
            let major = header.device_major().map_err(malformed)?;
            let minor = header.device_minor().map_err(malformed)?;
            Ok((major.unwrap_or(0), minor.unwrap_or(0)))
        };
        let id = |id: io::Result<u64>| {
            let id = id.map_err(malformed)?;
            // The largest number means "unchanged" to chown(2).
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| wrong("has an impossible owner"))
        };
        let size = match extended.size {
            Some(size) => size,
            None => header.entry_size().map_err(malformed)?,
        };
        let kind = match header.entry_type() {
            // In the oldest form a slash at the end makes a directory.
            EntryType::Regular if path.ends_with(b"/") => EntryKind::Dir,
            EntryType::Regular | EntryType::Continuous => EntryKind::File(size),
            EntryType::Directory => EntryKind::Dir,
            EntryType::Symlink => EntryKind::Symlink(target()?),
            EntryType::Link => EntryKind::Hardlink(target()?),
            EntryType::Char => device().map(|(major, minor)| EntryKind::Char(major, minor))?,
            EntryType::Block => device().map(|(major, minor)| EntryKind::Block(major, minor))?,
            EntryType::Fifo => EntryKind::Fifo,
            EntryType::GNUSparse => {
                return Err(wrong("is stored with holes; make the archive without --sparse"));
            }
            other => {
                let reason =
                    format!("has the type {:?}, which image layers do not have", char::from(other.as_byte()));
                return Err(Fault::entry(&path, reason));
            }
        };
        let (uid, gid) = (
            extended.uid.map_or_else(|| id(header.uid()), Ok)?,
            extended.gid.map_or_else(|| id(header.gid()), Ok)?,
        );
        let mode = header.mode().map_err(malformed)? & 0o7777;
        let mtime = match extended.mtime {
            Some(time) => time,
            None => (i64::try_from(header.mtime().map_err(malformed)?).unwrap_or(i64::MAX), 0),
        };
        if path.contains(&0) {
            return Err(wrong("has a NUL in its name"));
        }
        // Others have no content, whatever their size says.
        if let EntryKind::File(size) = kind {
            self.content = self.content.saturating_add(size);
            if self.content > self.limits.content {
                return Err(wrong("makes the layer larger than --max-size permits"));
            }
            self.expect(size);
        }
        Ok(Entry { path, kind, mode, uid, gid, mtime, xattrs: extended.xattrs })
    }
}

fn malformed(header: &Header, e: &io::Error) -> Fault {
    Fault::entry(&header.path_bytes(), format!("has a malformed header: {e}"))
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|b| *b == 0) {
        bytes.truncate(end);
    }
    bytes
}

impl Extended {
    fn read(&mut self, bytes: &[u8]) -> Result<(), String> {
        let records = pax::decode(bytes).ok_or("has a malformed extended header")?;
        for (key, value) in records {
            let number = || std::str::from_utf8(value).ok().and_then(|text| text.parse::<u64>().ok());
            let wrong = || format!("has a malformed record {:?}", String::from_utf8_lossy(key));
            let id = || {
                let id = number().and_then(|n| u32::try_from(n).ok()).filter(|id| *id != u32::MAX);
                id.map(Some).ok_or_else(wrong)
            };
            match key {
                // An empty value takes a record back (pax, "typeflag x").
                b"path" => self.path = Some(value.to_vec()).filter(|v| !v.is_empty()),
                b"linkpath" => self.target = Some(value.to_vec()).filter(|v| !v.is_empty()),
                b"size" => self.size = Some(number().ok_or_else(wrong)?),
                b"uid" => self.uid = id()?,
                b"gid" => self.gid = id()?,
                b"mtime" => self.mtime = Some(pax::decode_time(value).ok_or_else(wrong)?),
                _ if key.starts_with(b"GNU.sparse.") => {
                    return Err("is stored with holes; make the archive without --sparse".into());
                }
                _ => {
                    if let Some(name) = key.strip_prefix(XATTR) {
                        if name.is_empty() || name.contains(&0) {
                            return Err(wrong());
                        }
                        self.xattrs.insert(OsStr::from_bytes(name).to_owned(), value.to_vec());
                    }
                }
            }
        }
        Ok(())
    }
}

impl<R: Read> Read for Reader<R> {
    /// Reads the content of the current member.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(buf.len(), |left| left.min(buf.len()));
        if most == 0 {
            return Ok(0);
        }
        let n = self.from.read(&mut buf[..most])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}
