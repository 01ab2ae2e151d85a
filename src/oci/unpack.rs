//! Entries of an archive as objects of a layer. The archive is not trusted: every name is a single component below
//! a directory that was opened without following symlinks, and nothing outside is ever named.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use rustix::fs::{FileType, OFlags, XattrFlags, makedev};

use super::attributes::{Xattrs, of_entry};
use super::change::open_data;
use super::tar::{Entry, EntryKind, Fault};
use super::wanted::Wanted;
use crate::config::Permissions;
use crate::error::{Errno, Result};
use crate::format::names::{self, Mark};
use crate::format::override_stat;
use crate::layer::stack::Stack;
use crate::layer::upper::Writable;
use crate::layer::work::WorkDir;
use crate::merge::lookup::{Data, Found, lookup, root};
use crate::merge::whiteout::is_whiteout;
use crate::sys::copy::{copy_data, write_some_at};
use crate::sys::cred::Caller;
use crate::sys::file::{self, SetTime};
use crate::sys::xattr::{self, Target};

/// The deepest path: more than any tree has, few enough to be walked for each entry.
const MAX_DEPTH: usize = 2048;
/// Permissions of a directory that the archive does not mention.
const DIR_MODE: u32 = 0o755;
/// Attributes that tools keep for themselves.
const OF_TOOLS: [&str; 3] = ["user.containers.override_", "user.fuseoverlayfs.", "security.fuseoverlayfs."];
/// Bytes of content handled at once.
const BUFFER: usize = 256 << 10;

/// Makes a layer from entries.
pub(super) struct Unpack<'a> {
    work: &'a WorkDir,
    root: Writable,
    lowers: Option<&'a Stack>,
    wanted: &'a Wanted,
    /// The directory of the last entry, with those above it.
    way: Vec<(OsString, Writable)>,
    /// Directories by path, whose attributes are set at the end: what is made in them changes their times, and their
    /// modes may forbid it.
    dirs: HashMap<Vec<u8>, usize>,
    pending: Vec<(Writable, Entry)>,
    notes: Vec<String>,
    /// Whether anything is as it is because of the layers below.
    depends: bool,
    buffer: Vec<u8>,
}

/// Why an entry was not made.
enum Why {
    Refused(String),
    Failed(Errno),
    Archive(std::io::Error),
}

impl From<Errno> for Why {
    fn from(e: Errno) -> Self {
        Self::Failed(e)
    }
}

fn refused<T>(reason: impl Into<String>) -> std::result::Result<T, Why> {
    Err(Why::Refused(reason.into()))
}

type Done<T = ()> = std::result::Result<T, Why>;

impl<'a> Unpack<'a> {
    pub(super) fn new(
        work: &'a WorkDir,
        root: Writable,
        lowers: Option<&'a Stack>,
        wanted: &'a Wanted,
    ) -> Self {
        let mut unpack = Self {
            work,
            root,
            lowers,
            wanted,
            way: Vec::new(),
            dirs: HashMap::new(),
            pending: Vec::new(),
            notes: Vec::new(),
            depends: false,
            buffer: vec![0; BUFFER],
        };
        // Unless the archive has it: that of the layers below, or what a new directory has.
        unpack.later(Vec::new(), unpack.root.clone(), None);
        unpack
    }

    /// Makes an entry, with the content that follows it.
    pub(super) fn entry(&mut self, entry: &Entry, content: &mut impl Read) -> std::result::Result<(), Fault> {
        self.make(entry, content).map_err(|why| explain(&entry.path, why))
    }

    /// Sets what was put off; gives notes of what was left out, and whether anything depends on the layers below.
    pub(super) fn finish(mut self) -> std::result::Result<(Vec<String>, bool), Fault> {
        // From the deepest: a directory may forbid to be entered.
        while let Some((dir, entry)) = self.pending.pop() {
            let fd = match dir.fd() {
                Ok(fd) => fd,
                // Replaced by a later entry.
                Err(Errno::NOENT | Errno::STALE | Errno::NOTDIR) => continue,
                Err(e) => return Err(explain(&entry.path, e.into())),
            };
            self.attributes(&*fd, &entry).map_err(|why| explain(&entry.path, why))?;
        }
        Ok((self.notes, self.depends))
    }

    fn make(&mut self, entry: &Entry, content: &mut impl Read) -> Done {
        let components = components(&entry.path)?;
        let Some((name, above)) = components.split_last() else {
            if entry.kind != EntryKind::Dir {
                return refused("is the root and no directory");
            }
            self.later(Vec::new(), self.root.clone(), Some(entry));
            return Ok(());
        };
        if let Some(wh) = above.iter().find(|c| names::is_wh(c)) {
            // What AUFS keeps for itself.
            if wh.as_bytes().starts_with(b".wh..wh.") {
                return Ok(());
            }
            return refused("lies in a whiteout");
        }
        let dir = self.enter(above)?;
        if names::is_wh(name) {
            return self.whiteout(&dir, name);
        }
        match &entry.kind {
            EntryKind::Dir => {
                self.directory(&dir, name)?;
                let path = join(&components);
                let made = dir.below(name)?;
                self.later(path, made, Some(entry));
                Ok(())
            }
            EntryKind::Hardlink(target) => self.hardlink(&dir, name, target),
            _ => self.other(&dir, name, entry, content),
        }
    }

    /// Notes the attributes of a directory; the last ones count.
    fn later(&mut self, path: Vec<u8>, dir: Writable, entry: Option<&Entry>) {
        let entry = match entry {
            Some(entry) => entry.clone(),
            None => self.implied(&path),
        };
        match self.dirs.get(&path) {
            Some(&at) => self.pending[at] = (dir, entry),
            None => {
                self.dirs.insert(path, self.pending.len());
                self.pending.push((dir, entry));
            }
        }
    }

    /// What a directory that the archive does not mention is like: as below, where it is merged with that.
    fn implied(&mut self, path: &[u8]) -> Entry {
        let new = Entry {
            path: path.to_vec(),
            kind: EntryKind::Dir,
            mode: DIR_MODE,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            xattrs: Xattrs::new(),
        };
        let Some(Ok(Found::Dir(dir))) = self.lowers.map(|stack| find(stack, path)) else { return new };
        let xattrs = dir.parts.first().and_then(|part| super::attributes::of_dir(part).ok());
        let st = dir.stat;
        let below = Entry {
            mode: st.mode & 0o7777,
            uid: st.uid,
            gid: st.gid,
            xattrs: xattrs.unwrap_or_default(),
            ..new.clone()
        };
        self.depends |= below != new;
        below
    }

    /// Goes to a directory, making what is missing.
    fn enter(&mut self, path: &[&OsStr]) -> Done<Writable> {
        let common = self.way.iter().zip(path).take_while(|((name, _), wanted)| name == *wanted).count();
        self.way.truncate(common);
        for (i, name) in path.iter().enumerate().skip(common) {
            let dir = self.way.last().map_or(&self.root, |(_, dir)| dir).clone();
            let next = match dir.below(name) {
                Ok(next) => next,
                Err(Errno::NOENT) => {
                    dir.mkdir(name, 0o700, &Caller::daemon())?;
                    let made = dir.below(name)?;
                    self.later(join(&path[..=i]), made.clone(), None);
                    made
                }
                Err(Errno::NOTDIR) if self.is_whiteout(&dir, name)? => {
                    self.directory(&dir, name)?;
                    let made = dir.below(name)?;
                    self.later(join(&path[..=i]), made.clone(), None);
                    made
                }
                Err(Errno::NOTDIR) => {
                    return refused(format!("has {} on its way, which is no directory", Shown(&path[..=i])));
                }
                Err(e) => return Err(e.into()),
            };
            self.way.push(((*name).to_owned(), next));
        }
        Ok(self.way.last().map_or(&self.root, |(_, dir)| dir).clone())
    }

    fn is_whiteout(&self, dir: &Writable, name: &OsStr) -> Result<bool> {
        let st = file::stat_at(dir.fd()?, name)?;
        is_whiteout(dir.dir(), name, &st)
    }

    /// Makes a directory, unless it is there.
    fn directory(&mut self, dir: &Writable, name: &OsStr) -> Done {
        match dir.mkdir(name, 0o700, &Caller::daemon()) {
            Err(Errno::EXIST) => {}
            other => return Ok(other?),
        }
        if file::stat_at(dir.fd()?, name)?.is_dir() {
            return Ok(());
        }
        let hides = self.is_whiteout(dir, name)?;
        dir.unlink(name)?;
        dir.mkdir(name, 0o700, &Caller::daemon())?;
        // Together with its whiteout, it hides what is below.
        if hides { self.opaque(&dir.below(name)?) } else { Ok(()) }
    }

    fn opaque(&self, dir: &Writable) -> Done {
        Ok(dir.set_own_mark(Mark::Opaque, self.work.abilities().namespace, b"y")?)
    }

    fn whiteout(&mut self, dir: &Writable, name: &OsStr) -> Done {
        if name == names::WH_OPAQUE {
            return self.opaque(dir);
        }
        if name.as_bytes().starts_with(b".wh..wh.") {
            return Ok(());
        }
        let target = names::wh_target(name).filter(|t| *t != "." && *t != "..");
        let Some(target) = target else { return refused("is no whiteout of a name") };
        match file::stat_at(dir.fd()?, target) {
            Err(Errno::NOENT) => {
                self.work.allow_whiteouts(dir)?;
                Ok(self.work.new_whiteout(dir, target)?)
            }
            // A whiteout is about the layers below, never about its own.
            Ok(st) if st.is_dir() => self.opaque(&dir.below(target)?),
            Ok(_) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Makes room for an entry: what a layer has twice, it has as it came last.
    fn clear(&mut self, dir: &Writable, name: &OsStr) -> Done {
        match file::stat_at(dir.fd()?, name) {
            Err(Errno::NOENT) => Ok(()),
            Err(e) => Err(e.into()),
            Ok(st) if st.is_dir() => {
                self.way.clear();
                Ok(self.work.discard(dir, name)?)
            }
            Ok(_) => Ok(dir.unlink(name)?),
        }
    }

    fn hardlink(&mut self, dir: &Writable, name: &OsStr, target: &[u8]) -> Done {
        let components = match components(target) {
            Ok(components) => components,
            Err(_) => {
                return refused(format!(
                    "is a link to {}, out of the layer",
                    OsStr::from_bytes(target).display()
                ));
            }
        };
        let missing =
            || Why::Refused(format!("is a link to {}, which is not in the layer", Shown(&components)));
        let Some((last, above)) = components.split_last() else { return Err(missing()) };
        let mut at = self.root.clone();
        for step in above {
            match at.below(step) {
                Ok(next) => at = next,
                Err(Errno::NOENT) => return self.link_below(dir, name, target),
                Err(Errno::NOTDIR) => {
                    return refused(format!(
                        "is a link to {} by way of what is no directory",
                        Shown(&components)
                    ));
                }
                Err(e) => return Err(e.into()),
            }
        }
        let st = match file::stat_at(at.fd()?, last) {
            Ok(st) => st,
            Err(Errno::NOENT) => return self.link_below(dir, name, target),
            Err(e) => return Err(e.into()),
        };
        if st.is_dir() || is_whiteout(at.dir(), last, &st)? {
            return Err(missing());
        }
        let object = file::open_path(at.fd()?, last)?;
        if file::stat_at(dir.fd()?, name).is_ok_and(|there| (there.dev, there.ino) == (st.dev, st.ino)) {
            return Ok(());
        }
        self.clear(dir, name)?;
        Ok(dir.link(&object, name)?)
    }

    /// A link to a file of a layer below becomes a copy: no link reaches into another layer.
    fn link_below(&mut self, dir: &Writable, name: &OsStr, target: &[u8]) -> Done {
        let found = match self.lowers {
            Some(stack) => find(stack, target)?,
            None => Found::Nothing { whiteout: None },
        };
        let Found::Other(lower) = found else {
            let target = OsStr::from_bytes(target).display();
            return refused(if self.lowers.is_some() {
                format!("is a link to {target}, which is in no layer")
            } else {
                format!("is a link to {target}, which is not in the layer; name the layers below by --lower")
            });
        };
        if lower.stat.kind() != FileType::RegularFile {
            return refused("is a link to what is no file of a layer below");
        }
        self.clear(dir, name)?;
        self.depends = true;
        let from = open_data(&Data::of(&lower))?;
        let to = dir.create(name, OFlags::RDWR, 0o600, &Caller::daemon())?;
        copy_data(&from, &to, lower.stat.size, true)?;
        let st = lower.stat;
        let entry = Entry {
            path: target.to_vec(),
            kind: EntryKind::File(st.size),
            mode: st.mode & 0o7777,
            uid: st.uid,
            gid: st.gid,
            mtime: st.mtime,
            xattrs: of_entry(&lower.dir, &lower.name)?,
        };
        self.attributes(&to, &entry)
    }

    fn other(&mut self, dir: &Writable, name: &OsStr, entry: &Entry, content: &mut impl Read) -> Done {
        let daemon = Caller::daemon();
        if let EntryKind::File(size) = entry.kind {
            // Most names are new: nothing must make room. With its mode at once, which nobody else gets to see.
            let mode = (entry.mode & 0o777) | 0o200;
            let fd = match dir.create(name, OFlags::WRONLY, mode, &daemon) {
                Err(Errno::EXIST) => {
                    self.clear(dir, name)?;
                    dir.create(name, OFlags::WRONLY, mode, &daemon)?
                }
                other => other?,
            };
            self.fill(&fd, size, content)?;
            return self.attributes(&fd, entry);
        }
        self.clear(dir, name)?;
        let device = |major: u32, minor: u32| match makedev(major, minor) {
            // As it stands it would be a whiteout.
            0 => names::ESCAPED_DEVICE,
            device => device,
        };
        let object: OwnedFd = match &entry.kind {
            EntryKind::Symlink(target) => {
                dir.symlink(name, OsStr::from_bytes(target), &daemon)?;
                file::open_path(dir.fd()?, name)?
            }
            EntryKind::Fifo => {
                dir.mknod(name, FileType::Fifo.as_raw_mode() | 0o600, 0, &daemon)?;
                file::open_path(dir.fd()?, name)?
            }
            EntryKind::Char(..) | EntryKind::Block(..) if self.wanted.rootless => {
                dir.create(name, OFlags::WRONLY, 0o600, &daemon)?
            }
            EntryKind::Char(major, minor) | EntryKind::Block(major, minor) => {
                let kind = match entry.kind {
                    EntryKind::Char(..) => FileType::CharacterDevice,
                    _ => FileType::BlockDevice,
                };
                match dir.mknod(name, kind.as_raw_mode() | 0o600, device(*major, *minor), &daemon) {
                    Err(Errno::PERM) => {
                        return refused(
                            "is a device, which this user may not make; run as root or use --rootless",
                        );
                    }
                    other => other?,
                }
                file::open_path(dir.fd()?, name)?
            }
            EntryKind::File(_) | EntryKind::Dir | EntryKind::Hardlink(_) => {
                return refused("has an impossible type");
            }
        };
        self.attributes(&object, entry)
    }

    fn fill(&mut self, fd: &OwnedFd, size: u64, content: &mut impl Read) -> Done {
        let mut at = 0;
        while at < size {
            let most = usize::try_from(size - at).map_or(BUFFER, |left| left.min(BUFFER));
            let n = content.read(&mut self.buffer[..most]).map_err(Why::Archive)?;
            if n == 0 {
                return Err(Why::Archive(std::io::ErrorKind::UnexpectedEof.into()));
            }
            let mut done = 0;
            while done < n {
                done += match write_some_at(fd, &self.buffer[done..n], at + done as u64)? {
                    0 => return Err(Errno::NOSPC.into()),
                    written => written,
                };
            }
            at += n as u64;
        }
        Ok(())
    }

    /// Sets owner, xattrs, mode and times, in this order: see [`crate::copy_up::metadata`].
    fn attributes(&mut self, object: impl AsFd, entry: &Entry) -> Done {
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
        let (atime, mtime) = (SetTime::Keep, SetTime::At(seconds, nanos));
        // The others are known by O_PATH descriptors.
        let set = match entry.kind {
            EntryKind::File(_) => file::utimes_open(object, atime, mtime),
            _ => file::utimes_fd(object, atime, mtime),
        };
        Ok(set?)
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

fn explain(path: &[u8], why: Why) -> Fault {
    match why {
        Why::Refused(reason) => Fault::entry(path, reason),
        Why::Failed(Errno::NOSPC) => Fault::Archive("cannot be unpacked: no space is left".into()),
        Why::Failed(e) => Fault::entry(path, format!("cannot be made: {e}")),
        Why::Archive(e) => e.into(),
    }
}

/// Takes a path of an archive apart, without `.` and empty components.
fn components(path: &[u8]) -> Done<Vec<&OsStr>> {
    if path.starts_with(b"/") {
        return refused("has an absolute path");
    }
    let mut components = Vec::new();
    for name in path.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return refused("leads out of the layer by `..`"),
            name if name.contains(&0) => return refused("has a NUL in its name"),
            name => components.push(OsStr::from_bytes(name)),
        }
    }
    if components.len() > MAX_DEPTH {
        return refused(format!("lies deeper than {MAX_DEPTH} directories"));
    }
    Ok(components)
}

fn join(components: &[&OsStr]) -> Vec<u8> {
    components.join(OsStr::new("/")).into_vec()
}

/// A path for a message.
struct Shown<'a>(&'a [&'a OsStr]);

impl std::fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", OsStr::from_bytes(&join(self.0)).display())
    }
}

/// What a path of the layers below stands for.
fn find(stack: &Stack, path: &[u8]) -> Result<Found> {
    let mut found = Found::Dir(root(stack)?);
    for name in path.split(|b| *b == b'/').filter(|n| !n.is_empty() && *n != b".") {
        found = match found {
            Found::Dir(dir) => lookup(stack, &dir.parts.into(), OsStr::from_bytes(name))?,
            _ => return Ok(Found::Nothing { whiteout: None }),
        };
    }
    Ok(found)
}
