//! What an object of an archive gets once it is there: content, owner, extended attributes, mode and times. Files that
//! are not large get it on a thread of its own, while the next ones are made.

use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::mpsc::{Receiver, SyncSender};

use rustix::fs::{FileType, XattrFlags};

use super::tar::{Entry, EntryKind, Fault};
use super::wanted::Wanted;
use crate::config::Permissions;
use crate::error::Errno;
use crate::format::{names, override_stat};
use crate::sys::copy::write_some_at;
use crate::sys::file::{self, SetTime};
use crate::sys::xattr::{self, Target};

/// Attributes that tools keep for themselves.
const OF_TOOLS: [&str; 3] = ["user.containers.override_", "user.fuseoverlayfs.", "security.fuseoverlayfs."];
/// Bytes of content handled at once.
const BUFFER: usize = 256 << 10;
/// Files handed over at once, each with a descriptor.
const FILES: usize = 32;
/// How often so many may wait.
pub(super) const WAITING: usize = 2;

/// Why an entry was not made.
pub(super) enum Why {
    /// It says what may not be, or what this user cannot make.
    Refused(String),
    /// By an error of the layer's filesystem.
    Failed(Errno),
    /// By an error of the archive.
    Archive(io::Error),
}

impl From<Errno> for Why {
    fn from(e: Errno) -> Self {
        Self::Failed(e)
    }
}

/// What came of it.
pub(super) type Done<T = ()> = Result<T, Why>;

/// Refuses an entry, by a reason that goes on behind its name.
pub(super) fn refused<T>(reason: impl Into<String>) -> Done<T> {
    Err(Why::Refused(reason.into()))
}

/// The fault of the archive that it is.
pub(super) fn explain(path: &[u8], why: Why) -> Fault {
    match why {
        Why::Refused(reason) => Fault::entry(path, reason),
        Why::Failed(Errno::NOSPC) => Fault::Archive("cannot be unpacked: no space is left".into()),
        Why::Failed(e) => Fault::entry(path, format!("cannot be made: {e}")),
        Why::Archive(e) => e.into(),
    }
}

/// Gives objects what they are to have.
pub(super) struct Finish<'a> {
    wanted: &'a Wanted,
    notes: Vec<String>,
}

impl<'a> Finish<'a> {
    pub(super) fn new(wanted: &'a Wanted) -> Self {
        Self { wanted, notes: Vec::new() }
    }

    /// What was left out.
    pub(super) fn into_notes(self) -> Vec<String> {
        self.notes
    }

    /// Sets owner, xattrs, mode and times, in this order: see [`crate::copy_up::metadata`].
    pub(super) fn attributes(&mut self, object: impl AsFd, entry: &Entry) -> Done {
        let now = file::stat_fd(&object)?;
        let mapped = (self.wanted.uids.host(entry.uid), self.wanted.gids.host(entry.gid));
        let (Some(uid), Some(gid)) = mapped else {
            return refused(format!(
                "belongs to {}:{}, which is not in the ranges given",
                entry.uid, entry.gid
            ));
        };
        if self.wanted.rootless {
            return self.rootless_attributes(object, entry);
        }
        if (now.uid, now.gid) != (uid, gid) {
            match file::chown_fd(&object, Some(uid), Some(gid)) {
                Err(Errno::PERM) => {
                    return refused(format!(
                        "belongs to {uid}:{gid}, and this user may not give files away; run as root, or use --rootless"
                    ));
                }
                other => other?,
            }
        }
        self.xattrs(&object, entry)?;
        // chown(2) clears bits, an ACL changes them.
        let changed = (now.uid, now.gid) != (uid, gid) || !entry.xattrs.is_empty();
        if now.kind() != FileType::Symlink && (changed || now.mode & 0o7777 != entry.mode) {
            file::chmod_fd(&object, entry.mode)?;
        }
        let (seconds, nanos) = entry.mtime;
        Ok(file::utimes_fd(object, SetTime::Keep, SetTime::At(seconds, nanos))?)
    }

    /// What a user without privilege can keep of an object, and the rest in an attribute.
    fn rootless_attributes(&mut self, object: impl AsFd, entry: &Entry) -> Done {
        let kind = match &entry.kind {
            EntryKind::File(_) | EntryKind::Hardlink(_) => Some("file".to_owned()),
            EntryKind::Dir => Some("dir".to_owned()),
            EntryKind::Char(major, minor) => Some(format!("char-{major}-{minor}")),
            EntryKind::Block(major, minor) => Some(format!("block-{major}-{minor}")),
            // They take no such attribute (xattr(7)).
            EntryKind::Symlink(_) | EntryKind::Fifo => None,
        };
        self.xattrs(&object, entry)?;
        if let (Some(kind), Some(name)) = (kind, override_stat::chosen(Permissions::Containers)) {
            let value = format!("{}:{}:0{:o}:{kind}", entry.uid, entry.gid, entry.mode);
            xattr::set(Target::Fd(object.as_fd()), name, value.as_bytes(), XattrFlags::empty())?;
            // The owner can read and enter everything, as root can.
            let least = if entry.kind == EntryKind::Dir { 0o700 } else { 0o600 };
            file::chmod_fd(&object, (entry.mode & 0o777) | least)?;
        }
        let (seconds, nanos) = entry.mtime;
        Ok(file::utimes_fd(object, SetTime::Keep, SetTime::At(seconds, nanos))?)
    }

    fn xattrs(&mut self, object: impl AsFd, entry: &Entry) -> Done {
        for (name, value) in &entry.xattrs {
            if OF_TOOLS.iter().any(|prefix| name.as_bytes().starts_with(prefix.as_bytes())) {
                self.note(
                    entry,
                    &format!(
                        "without the attribute {}, which other tools keep for themselves",
                        name.display()
                    ),
                );
                continue;
            }
            // One of the private names is a program's own: escaped, it says nothing about layers.
            let stored = names::to_layer(name);
            match xattr::set(Target::Fd(object.as_fd()), &stored, value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(Errno::PERM | Errno::OPNOTSUPP) if self.wanted.rootless => {
                    self.note(
                        entry,
                        &format!("without the attribute {}, which this user may not set", name.display()),
                    );
                }
                Err(e) => {
                    return refused(format!(
                        "has the attribute {}, which cannot be set: {e}",
                        name.display()
                    ));
                }
            }
        }
        Ok(())
    }

    fn note(&mut self, entry: &Entry, what: &str) {
        self.notes.push(format!("entry {}: {what}", OsStr::from_bytes(&entry.path).display()));
    }
}

fn write_all(fd: &OwnedFd, data: &[u8], at: u64) -> Done {
    let mut done = 0;
    while done < data.len() {
        done += match write_some_at(fd, &data[done..], at + done as u64)? {
            0 => return Err(Errno::NOSPC.into()),
            written => written,
        };
    }
    Ok(())
}

fn ended() -> Why {
    Why::Archive(io::ErrorKind::UnexpectedEof.into())
}

/// New files with their content, to be finished in this order.
#[derive(Default)]
pub(super) struct Batch {
    files: Vec<(OwnedFd, Entry, usize)>,
    /// One after the other.
    content: Vec<u8>,
}

/// Fills new files, or lets them be filled.
pub(super) struct Fill {
    to: SyncSender<Batch>,
    batch: Batch,
    buffer: Vec<u8>,
}

impl Fill {
    /// `to`: where [`finish_all`] receives.
    pub(super) fn new(to: SyncSender<Batch>) -> Self {
        Self { to, batch: Batch::default(), buffer: vec![0; BUFFER] }
    }

    /// A new file of so many bytes, and what it is to be like. A large one is filled here, and the rest is done by `finish`.
    pub(super) fn file(
        &mut self,
        fd: OwnedFd,
        entry: &Entry,
        size: u64,
        content: &mut impl Read,
        finish: &mut Finish<'_>,
    ) -> Done {
        let Some(small) = usize::try_from(size).ok().filter(|size| *size <= BUFFER) else {
            self.large(&fd, size, content)?;
            return finish.attributes(&fd, entry);
        };
        if self.batch.files.len() == FILES || self.batch.content.len() + small > BUFFER {
            self.hand_over()?;
        }
        let read = content.take(size).read_to_end(&mut self.batch.content).map_err(Why::Archive)?;
        if read != small {
            return Err(ended());
        }
        self.batch.files.push((fd, entry.clone(), small));
        Ok(())
    }

    fn large(&mut self, fd: &OwnedFd, size: u64, content: &mut impl Read) -> Done {
        let mut at = 0;
        while at < size {
            let most = usize::try_from(size - at).map_or(BUFFER, |left| left.min(BUFFER));
            let n = content.read(&mut self.buffer[..most]).map_err(Why::Archive)?;
            if n == 0 {
                return Err(ended());
            }
            write_all(fd, &self.buffer[..n], at)?;
            at += n as u64;
        }
        Ok(())
    }

    /// Lets what was taken be finished.
    pub(super) fn hand_over(&mut self) -> Done {
        let batch = std::mem::take(&mut self.batch);
        // Who has stopped receiving says why.
        self.to.send(batch).map_err(|_| Why::Archive(io::ErrorKind::BrokenPipe.into()))
    }
}

/// Finishes files until no more come; gives notes of what was left out.
///
/// # Errors
/// The first file that cannot be.
pub(super) fn finish_all(from: &Receiver<Batch>, wanted: &Wanted) -> Result<Vec<String>, Fault> {
    let mut finish = Finish::new(wanted);
    for Batch { files, content } in from {
        let mut at = 0;
        for (fd, entry, size) in files {
            let done =
                write_all(&fd, &content[at..at + size], 0).and_then(|()| finish.attributes(&fd, &entry));
            done.map_err(|why| explain(&entry.path, why))?;
            at += size;
        }
    }
    Ok(finish.into_notes())
}
