//! Operations as system calls below some root, with all that a caller sees of them.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::select;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::common::disk::lies_on;
use crate::layers::{NAMES, Rel, content, mode, rel, target};

/// A path, found when the operation is done: most random paths would hit nothing.
#[derive(Clone)]
pub enum Pick {
    /// Any path.
    Path(Rel),
    /// The `n`th of all objects.
    There(usize),
    /// The `n`th of all regular files.
    File(usize),
    /// The `n`th of all directories.
    Dir(usize),
    /// A name in the `n`th directory.
    In(usize, &'static str),
}

impl std::fmt::Debug for Pick {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(rel) => write!(f, "{rel:?}"),
            Self::There(n) => write!(f, "There({n})"),
            Self::File(n) => write!(f, "File({n})"),
            Self::Dir(n) => write!(f, "Dir({n})"),
            Self::In(n, name) => write!(f, "In({n}, {name:?})"),
        }
    }
}

/// What there is, to pick from: paths relative to the root, sorted.
#[derive(Debug, Default)]
pub struct Listing {
    all: Vec<PathBuf>,
    files: Vec<PathBuf>,
    /// The root, too.
    dirs: Vec<PathBuf>,
}

impl Listing {
    /// Reads a tree.
    pub fn new(root: &Path) -> Self {
        let mut listing = Self::default();
        listing.walk(root, Path::new(""));
        listing
    }

    fn walk(&mut self, root: &Path, rel: &Path) {
        self.dirs.push(rel.to_owned());
        let mut entries: Vec<_> = std::fs::read_dir(root.join(rel)).unwrap().map(|e| e.unwrap()).collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let (path, kind) = (rel.join(entry.file_name()), entry.file_type().unwrap());
            if root.join(&path).symlink_metadata().is_err() {
                // A whiteout that the kernel's overlayfs lists.
                continue;
            }
            self.all.push(path.clone());
            if kind.is_file() {
                self.files.push(path);
            } else if kind.is_dir() {
                self.walk(root, &path);
            }
        }
    }
}

impl Pick {
    /// The path relative to the root.
    pub fn find(&self, listing: &Listing) -> PathBuf {
        let nth = |list: &[PathBuf], n: usize| {
            if list.is_empty() { PathBuf::from("nothing") } else { list[n % list.len()].clone() }
        };
        match self {
            Self::Path(rel) => rel.at(Path::new("")),
            Self::There(n) => nth(&listing.all, *n),
            Self::File(n) => nth(&listing.files, *n),
            Self::Dir(n) => nth(&listing.dirs[1..], *n),
            Self::In(n, name) => nth(&listing.dirs, *n).join(name),
        }
    }
}

/// Most often something of the wanted kind, sometimes anything.
fn pick(wanted: fn(usize) -> Pick) -> impl Strategy<Value = Pick> {
    prop_oneof![
        1 => rel().prop_map(Pick::Path),
        1 => (0..64_usize).prop_map(Pick::There),
        6 => (0..64_usize).prop_map(wanted),
    ]
}

/// Anything that is there.
pub fn there() -> impl Strategy<Value = Pick> {
    pick(Pick::There)
}

/// A regular file.
pub fn file() -> impl Strategy<Value = Pick> {
    pick(Pick::File)
}

/// A directory.
pub fn dir() -> impl Strategy<Value = Pick> {
    pick(Pick::Dir)
}

/// A name, most often in a directory that is there, taken or not.
pub fn place() -> impl Strategy<Value = Pick> {
    prop_oneof![
        1 => rel().prop_map(Pick::Path),
        2 => (0..64_usize).prop_map(Pick::There),
        6 => (0..64_usize, select(&NAMES)).prop_map(|(n, name)| Pick::In(n, name)),
    ]
}

/// An operation.
#[derive(Debug, Clone)]
pub enum Op {
    Create { path: Pick, mode: u32, exclusive: bool },
    Mkdir { path: Pick, mode: u32 },
    Symlink { path: Pick, target: String },
    Link { from: Pick, to: Pick },
    Mkfifo { path: Pick, mode: u32 },
    Unlink(Pick),
    Rmdir(Pick),
    Rename { from: Pick, to: Pick, noreplace: bool },
    Write { path: Pick, offset: u64, len: usize },
    Append { path: Pick, len: usize },
    Truncate { path: Pick, size: u64 },
    OpenTruncating(Pick),
    Chmod { path: Pick, mode: u32 },
    Chown { path: Pick, uid: u32, gid: u32 },
    Times { path: Pick, mtime: i64 },
    SetXattr { path: Pick, name: &'static str, len: usize, flags: u32 },
    RemoveXattr { path: Pick, name: &'static str },
    Readlink(Pick),
    List(Pick),
    Read(Pick),
    Stat { path: Pick, follow: bool },
    Open { slot: usize, path: Pick, write: bool, read: bool },
    HandleRead { slot: usize, at: u64, len: usize },
    HandleWrite { slot: usize, at: u64, len: usize },
    HandleTruncate { slot: usize, size: u64 },
    HandleChmod { slot: usize, mode: u32 },
    HandleStat { slot: usize },
    Close { slot: usize },
    Remount,
    Check,
}

impl Op {
    /// The paths that it is about.
    pub fn paths(&self, listing: &Listing) -> Vec<PathBuf> {
        let picks = match self {
            Self::Link { from, to } | Self::Rename { from, to, .. } => vec![from, to],
            Self::Create { path, .. }
            | Self::Mkdir { path, .. }
            | Self::Symlink { path, .. }
            | Self::Mkfifo { path, .. }
            | Self::Write { path, .. }
            | Self::Append { path, .. }
            | Self::Truncate { path, .. }
            | Self::Chmod { path, .. }
            | Self::Chown { path, .. }
            | Self::Times { path, .. }
            | Self::SetXattr { path, .. }
            | Self::RemoveXattr { path, .. }
            | Self::Stat { path, .. }
            | Self::Open { path, .. }
            | Self::Unlink(path)
            | Self::Rmdir(path)
            | Self::OpenTruncating(path)
            | Self::Readlink(path)
            | Self::List(path)
            | Self::Read(path) => vec![path],
            _ => vec![],
        };
        picks.into_iter().map(|p| p.find(listing)).collect()
    }
}

const SLOTS: usize = 4;
const XATTRS: [&str; 3] = ["user.layer", "user.a", "user.b"];

/// Open files by slot.
#[derive(Default)]
pub struct Handles {
    slots: [Option<OwnedFd>; SLOTS],
    /// Whether a process has a file mapped.
    pub mapped: bool,
}

impl Handles {
    /// Set-ID bits that a file gets while it is open for I/O through the kernel go with the next write,
    /// even by root: no set-ID bits while anything is open.
    fn permitted(&self, mode: u32) -> Mode {
        let open = self.mapped || self.slots.iter().any(Option::is_some);
        Mode::from(if open { mode & 0o1777 } else { mode })
    }
}

/// Any operation.
pub fn op() -> impl Strategy<Value = Op> {
    let (slot, len) = (|| 0..SLOTS, || 0..6000_usize);
    let at = || prop_oneof![8 => 0..10_000_u64, 1 => 100_000..300_000_u64];
    let name = || select(&XATTRS);
    let names = prop_oneof![
        4 => (place(), mode(), any::<bool>()).prop_map(|(path, mode, exclusive)| Op::Create { path, mode, exclusive }),
        4 => (place(), mode()).prop_map(|(path, mode)| Op::Mkdir { path, mode }),
        2 => (place(), target()).prop_map(|(path, target)| Op::Symlink { path, target }),
        4 => (file(), place()).prop_map(|(from, to)| Op::Link { from, to }),
        1 => (place(), mode()).prop_map(|(path, mode)| Op::Mkfifo { path, mode }),
        5 => there().prop_map(Op::Unlink),
        4 => dir().prop_map(Op::Rmdir),
        8 => (there(), place(), prop::bool::weighted(0.2))
            .prop_map(|(from, to, noreplace)| Op::Rename { from, to, noreplace }),
    ];
    let files = prop_oneof![
        4 => (file(), at(), len()).prop_map(|(path, offset, len)| Op::Write { path, offset, len }),
        2 => (file(), len()).prop_map(|(path, len)| Op::Append { path, len }),
        2 => (file(), at()).prop_map(|(path, size)| Op::Truncate { path, size }),
        2 => file().prop_map(Op::OpenTruncating),
        2 => (there(), mode()).prop_map(|(path, mode)| Op::Chmod { path, mode }),
        2 => (there(), select(vec![0, 7, 1000]), select(vec![0, 7, 1000]))
            .prop_map(|(path, uid, gid)| Op::Chown { path, uid, gid }),
        2 => (there(), -1000..900_000_000_i64).prop_map(|(path, mtime)| Op::Times { path, mtime }),
        3 => (there(), name(), 0..300_usize, 0..3_u32)
            .prop_map(|(path, name, len, flags)| Op::SetXattr { path, name, len, flags }),
        2 => (there(), name()).prop_map(|(path, name)| Op::RemoveXattr { path, name }),
    ];
    let looks = prop_oneof![
        there().prop_map(Op::Readlink),
        dir().prop_map(Op::List),
        file().prop_map(Op::Read),
        (there(), any::<bool>()).prop_map(|(path, follow)| Op::Stat { path, follow }),
    ];
    let handles = prop_oneof![
        4 => (slot(), file(), any::<bool>(), any::<bool>())
            .prop_map(|(slot, path, write, read)| Op::Open { slot, path, write, read: read || !write }),
        3 => (slot(), at(), len()).prop_map(|(slot, at, len)| Op::HandleRead { slot, at, len }),
        3 => (slot(), at(), len()).prop_map(|(slot, at, len)| Op::HandleWrite { slot, at, len }),
        1 => (slot(), at()).prop_map(|(slot, size)| Op::HandleTruncate { slot, size }),
        1 => (slot(), mode()).prop_map(|(slot, mode)| Op::HandleChmod { slot, mode }),
        2 => slot().prop_map(|slot| Op::HandleStat { slot }),
        1 => slot().prop_map(|slot| Op::Close { slot }),
    ];
    // A failing case shrinks towards the first.
    prop_oneof![
        16 => looks,
        34 => names,
        21 => files,
        20 => handles,
        1 => Just(Op::Remount),
        4 => Just(Op::Check),
    ]
}

/// What a caller sees of an operation.
#[derive(Debug, PartialEq, Eq)]
pub enum Seen {
    Done,
    Count(usize),
    Bytes(Vec<u8>),
    Names(Vec<(OsString, FileType)>),
    Stat { mode: u32, owner: (u32, u32), size: i64, nlink: u64, mtime: (i64, i64) },
}

/// A modification time for comparison: what was set by no caller is "now" on both sides. That of a fifo
/// is left out: the kernel does not tell a FUSE filesystem of the bytes that go through one.
pub fn coarse(mode: u32, mtime: (i64, i64), begin: i64) -> (i64, i64) {
    match FileType::from_raw_mode(mode) {
        FileType::Fifo => (0, 0),
        _ if mtime.0 >= begin => (i64::MAX, 0),
        _ => mtime,
    }
}

fn seen(st: &Stat, begin: i64) -> Seen {
    let dir = FileType::from_raw_mode(st.st_mode) == FileType::Directory;
    let mtime = (st.st_mtime, st.st_mtime_nsec as i64);
    Seen::Stat {
        mode: st.st_mode,
        owner: (st.st_uid, st.st_gid),
        size: if dir { 0 } else { st.st_size },
        nlink: if dir { 0 } else { st.st_nlink },
        mtime: if dir { (0, 0) } else { coarse(st.st_mode, mtime, begin) },
    }
}

/// Opens without waiting for the other end of a fifo.
pub fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, flags | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

pub fn read_at(fd: &OwnedFd, mut at: u64, len: usize) -> Result<Vec<u8>, Errno> {
    let (mut buf, mut done) = (vec![0; len], 0);
    while done < len {
        let n = rustix::io::pread(fd, &mut buf[done..], at)?;
        if n == 0 {
            break;
        }
        done += n;
        at += n as u64;
    }
    buf.truncate(done);
    Ok(buf)
}

/// Does something with the file in a slot, if there is one.
fn on(
    handles: &Handles,
    slot: usize,
    f: impl FnOnce(&OwnedFd) -> Result<Seen, Errno>,
) -> Result<Seen, Errno> {
    handles.slots[slot].as_ref().map_or(Ok(Seen::Done), f)
}

/// Does an operation below `root`.
pub fn apply(
    op: &Op,
    root: &Path,
    listing: &Listing,
    handles: &mut Handles,
    begin: i64,
) -> Result<Seen, Errno> {
    let done = |()| Seen::Done;
    let at = |pick: &Pick| root.join(pick.find(listing));
    match op {
        Op::Create { path, mode, exclusive } => {
            let mut flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            flags.set(OFlags::EXCL, *exclusive);
            rustix::fs::open(at(path), flags, Mode::from(*mode)).map(|_| Seen::Done)
        }
        Op::Mkdir { path, mode } => rustix::fs::mkdir(at(path), Mode::from(*mode)).map(done),
        Op::Symlink { path, target } => rustix::fs::symlink(target, at(path)).map(done),
        Op::Link { from, to } => rustix::fs::link(at(from), at(to)).map(done),
        Op::Mkfifo { path, mode } => {
            rustix::fs::mknodat(CWD, at(path), FileType::Fifo, Mode::from(*mode), 0).map(done)
        }
        Op::Unlink(path) => rustix::fs::unlink(at(path)).map(done),
        Op::Rmdir(path) => rustix::fs::rmdir(at(path)).map(done),
        Op::Rename { from, to, noreplace } => {
            let flags = if *noreplace { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
            let renamed = rustix::fs::renameat_with(CWD, at(from), CWD, at(to), flags).map(done);
            // rename(2) permits both for a directory that is not empty; a plain one on XFS has the other.
            let other = |e| e == Errno::EXIST && !noreplace && lies_on(root, libc::XFS_SUPER_MAGIC);
            renamed.map_err(|e| if other(e) { Errno::NOTEMPTY } else { e })
        }
        Op::Write { path, offset, len } => {
            let fd = open(&at(path), OFlags::WRONLY)?;
            rustix::io::pwrite(&fd, &content(*len, *offset), *offset).map(Seen::Count)
        }
        Op::Append { path, len } => {
            let fd = open(&at(path), OFlags::WRONLY | OFlags::APPEND)?;
            rustix::io::write(&fd, &content(*len, 3)).map(Seen::Count)
        }
        Op::Truncate { path, size } => {
            let fd = open(&at(path), OFlags::WRONLY)?;
            rustix::fs::ftruncate(&fd, *size).map(done)
        }
        Op::OpenTruncating(path) => open(&at(path), OFlags::RDWR | OFlags::TRUNC).map(|_| Seen::Done),
        Op::Chmod { path, mode } => rustix::fs::chmod(at(path), handles.permitted(*mode)).map(done),
        Op::Chown { path, uid, gid } => {
            let (uid, gid) = (rustix::fs::Uid::from_raw(*uid), rustix::fs::Gid::from_raw(*gid));
            rustix::fs::chownat(CWD, at(path), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map(done)
        }
        Op::Times { path, mtime } => {
            let time = Timespec { tv_sec: *mtime, tv_nsec: 250_000_000 };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, at(path), &times, AtFlags::SYMLINK_NOFOLLOW).map(done)
        }
        Op::SetXattr { path, name, len, flags } => {
            let flags = XattrFlags::from_bits_retain(*flags);
            rustix::fs::lsetxattr(at(path), *name, &content(*len, 1), flags).map(done)
        }
        Op::RemoveXattr { path, name } => rustix::fs::lremovexattr(at(path), *name).map(done),
        Op::Readlink(path) => rustix::fs::readlink(at(path), Vec::new()).map(|t| Seen::Bytes(t.into_bytes())),
        Op::List(path) => {
            let fd = open(&at(path), OFlags::RDONLY | OFlags::DIRECTORY)?;
            let mut names = Vec::new();
            for entry in rustix::fs::Dir::new(fd)? {
                let entry = entry?;
                names.push((OsString::from_vec(entry.file_name().to_bytes().to_vec()), entry.file_type()));
            }
            names.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(Seen::Names(names))
        }
        Op::Read(path) => read_at(&open(&at(path), OFlags::RDONLY)?, 0, 1 << 20).map(Seen::Bytes),
        Op::Stat { path, follow } => {
            let flags = if *follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
            rustix::fs::statat(CWD, at(path), flags).map(|st| seen(&st, begin))
        }
        Op::Open { slot, path, write, read } => {
            let flags = match (read, write) {
                (true, true) => OFlags::RDWR,
                (false, true) => OFlags::WRONLY,
                _ => OFlags::RDONLY,
            };
            handles.slots[*slot] = None;
            handles.slots[*slot] = Some(open(&at(path), flags)?);
            Ok(Seen::Done)
        }
        Op::Close { slot } => {
            handles.slots[*slot] = None;
            Ok(Seen::Done)
        }
        Op::HandleRead { slot, at, len } => on(handles, *slot, |fd| read_at(fd, *at, *len).map(Seen::Bytes)),
        Op::HandleWrite { slot, at, len } => {
            on(handles, *slot, |fd| rustix::io::pwrite(fd, &content(*len, *at), *at).map(Seen::Count))
        }
        Op::HandleTruncate { slot, size } => {
            on(handles, *slot, |fd| rustix::fs::ftruncate(fd, *size).map(done))
        }
        Op::HandleChmod { slot, mode } => {
            on(handles, *slot, |fd| rustix::fs::fchmod(fd, handles.permitted(*mode)).map(done))
        }
        Op::HandleStat { slot } => on(handles, *slot, |fd| rustix::fs::fstat(fd).map(|st| seen(&st, begin))),
        Op::Remount | Op::Check => Ok(Seen::Done),
    }
}
