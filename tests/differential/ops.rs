//! Operations as system calls below some root, with all that a caller sees of them.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

use proptest::prelude::*;
use proptest::sample::select;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::layers::{Rel, content, mode, rel, target};

/// An operation.
#[derive(Debug, Clone)]
pub enum Op {
    Create { path: Rel, mode: u32, exclusive: bool },
    Mkdir { path: Rel, mode: u32 },
    Symlink { path: Rel, target: String },
    Link { from: Rel, to: Rel },
    Mkfifo { path: Rel, mode: u32 },
    Unlink(Rel),
    Rmdir(Rel),
    Rename { from: Rel, to: Rel, noreplace: bool },
    Write { path: Rel, at: u64, len: usize },
    Append { path: Rel, len: usize },
    Truncate { path: Rel, size: u64 },
    OpenTruncating(Rel),
    Chmod { path: Rel, mode: u32 },
    Chown { path: Rel, uid: u32, gid: u32 },
    Times { path: Rel, mtime: i64 },
    SetXattr { path: Rel, name: &'static str, len: usize, flags: u32 },
    RemoveXattr { path: Rel, name: &'static str },
    Readlink(Rel),
    List(Rel),
    Read(Rel),
    Stat { path: Rel, follow: bool },
    Open { slot: usize, path: Rel, write: bool, read: bool },
    HandleRead { slot: usize, at: u64, len: usize },
    HandleWrite { slot: usize, at: u64, len: usize },
    HandleTruncate { slot: usize, size: u64 },
    HandleChmod { slot: usize, mode: u32 },
    HandleStat { slot: usize },
    Close { slot: usize },
    Remount,
    Check,
}

const SLOTS: usize = 4;
const XATTRS: [&str; 3] = ["user.layer", "user.a", "user.b"];

/// Open files by slot.
#[derive(Default)]
pub struct Handles([Option<OwnedFd>; SLOTS]);

/// Any operation.
pub fn op() -> impl Strategy<Value = Op> {
    let (slot, len) = (|| 0..SLOTS, || 0..6000_usize);
    let at = || prop_oneof![8 => 0..10_000_u64, 1 => 100_000..300_000_u64];
    let name = || select(&XATTRS);
    let names = prop_oneof![
        4 => (rel(), mode(), any::<bool>()).prop_map(|(path, mode, exclusive)| Op::Create { path, mode, exclusive }),
        4 => (rel(), mode()).prop_map(|(path, mode)| Op::Mkdir { path, mode }),
        2 => (rel(), target()).prop_map(|(path, target)| Op::Symlink { path, target }),
        4 => (rel(), rel()).prop_map(|(from, to)| Op::Link { from, to }),
        1 => (rel(), mode()).prop_map(|(path, mode)| Op::Mkfifo { path, mode }),
        5 => rel().prop_map(Op::Unlink),
        4 => rel().prop_map(Op::Rmdir),
        8 => (rel(), rel(), prop::bool::weighted(0.2))
            .prop_map(|(from, to, noreplace)| Op::Rename { from, to, noreplace }),
    ];
    let files = prop_oneof![
        4 => (rel(), at(), len()).prop_map(|(path, at, len)| Op::Write { path, at, len }),
        2 => (rel(), len()).prop_map(|(path, len)| Op::Append { path, len }),
        2 => (rel(), at()).prop_map(|(path, size)| Op::Truncate { path, size }),
        2 => rel().prop_map(Op::OpenTruncating),
        2 => (rel(), mode()).prop_map(|(path, mode)| Op::Chmod { path, mode }),
        2 => (rel(), select(vec![0, 7, 1000]), select(vec![0, 7, 1000]))
            .prop_map(|(path, uid, gid)| Op::Chown { path, uid, gid }),
        2 => (rel(), -1000..900_000_000_i64).prop_map(|(path, mtime)| Op::Times { path, mtime }),
        3 => (rel(), name(), 0..300_usize, 0..3_u32)
            .prop_map(|(path, name, len, flags)| Op::SetXattr { path, name, len, flags }),
        2 => (rel(), name()).prop_map(|(path, name)| Op::RemoveXattr { path, name }),
    ];
    let looks = prop_oneof![
        rel().prop_map(Op::Readlink),
        rel().prop_map(Op::List),
        rel().prop_map(Op::Read),
        (rel(), any::<bool>()).prop_map(|(path, follow)| Op::Stat { path, follow }),
    ];
    let handles = prop_oneof![
        4 => (slot(), rel(), any::<bool>(), any::<bool>())
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
fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, flags | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())
}

fn read_at(fd: &OwnedFd, mut at: u64, len: usize) -> Result<Vec<u8>, Errno> {
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
    handles.0[slot].as_ref().map_or(Ok(Seen::Done), f)
}

/// Does an operation below `root`.
pub fn apply(op: &Op, root: &Path, handles: &mut Handles, begin: i64) -> Result<Seen, Errno> {
    let done = |()| Seen::Done;
    match op {
        Op::Create { path, mode, exclusive } => {
            let mut flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            flags.set(OFlags::EXCL, *exclusive);
            rustix::fs::open(path.at(root), flags, Mode::from(*mode)).map(|_| Seen::Done)
        }
        Op::Mkdir { path, mode } => rustix::fs::mkdir(path.at(root), Mode::from(*mode)).map(done),
        Op::Symlink { path, target } => rustix::fs::symlink(target, path.at(root)).map(done),
        Op::Link { from, to } => rustix::fs::link(from.at(root), to.at(root)).map(done),
        Op::Mkfifo { path, mode } => {
            rustix::fs::mknodat(CWD, path.at(root), FileType::Fifo, Mode::from(*mode), 0).map(done)
        }
        Op::Unlink(path) => rustix::fs::unlink(path.at(root)).map(done),
        Op::Rmdir(path) => rustix::fs::rmdir(path.at(root)).map(done),
        Op::Rename { from, to, noreplace } => {
            let flags = if *noreplace { RenameFlags::NOREPLACE } else { RenameFlags::empty() };
            rustix::fs::renameat_with(CWD, from.at(root), CWD, to.at(root), flags).map(done)
        }
        Op::Write { path, at, len } => {
            let fd = open(&path.at(root), OFlags::WRONLY)?;
            rustix::io::pwrite(&fd, &content(*len, *at), *at).map(Seen::Count)
        }
        Op::Append { path, len } => {
            let fd = open(&path.at(root), OFlags::WRONLY | OFlags::APPEND)?;
            rustix::io::write(&fd, &content(*len, 3)).map(Seen::Count)
        }
        Op::Truncate { path, size } => {
            let fd = open(&path.at(root), OFlags::WRONLY)?;
            rustix::fs::ftruncate(&fd, *size).map(done)
        }
        Op::OpenTruncating(path) => open(&path.at(root), OFlags::RDWR | OFlags::TRUNC).map(|_| Seen::Done),
        Op::Chmod { path, mode } => rustix::fs::chmod(path.at(root), Mode::from(*mode)).map(done),
        Op::Chown { path, uid, gid } => {
            let (uid, gid) = (rustix::fs::Uid::from_raw(*uid), rustix::fs::Gid::from_raw(*gid));
            rustix::fs::chownat(CWD, path.at(root), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW).map(done)
        }
        Op::Times { path, mtime } => {
            let time = Timespec { tv_sec: *mtime, tv_nsec: 250_000_000 };
            let times = Timestamps { last_access: time, last_modification: time };
            rustix::fs::utimensat(CWD, path.at(root), &times, AtFlags::SYMLINK_NOFOLLOW).map(done)
        }
        Op::SetXattr { path, name, len, flags } => {
            let flags = XattrFlags::from_bits_retain(*flags);
            rustix::fs::lsetxattr(path.at(root), *name, &content(*len, 1), flags).map(done)
        }
        Op::RemoveXattr { path, name } => rustix::fs::lremovexattr(path.at(root), *name).map(done),
        Op::Readlink(path) => {
            rustix::fs::readlink(path.at(root), Vec::new()).map(|t| Seen::Bytes(t.into_bytes()))
        }
        Op::List(path) => {
            let fd = open(&path.at(root), OFlags::RDONLY | OFlags::DIRECTORY)?;
            let mut names = Vec::new();
            for entry in rustix::fs::Dir::new(fd)? {
                let entry = entry?;
                names.push((OsString::from_vec(entry.file_name().to_bytes().to_vec()), entry.file_type()));
            }
            names.sort_by(|a, b| a.0.cmp(&b.0));
            Ok(Seen::Names(names))
        }
        Op::Read(path) => read_at(&open(&path.at(root), OFlags::RDONLY)?, 0, 1 << 20).map(Seen::Bytes),
        Op::Stat { path, follow } => {
            let flags = if *follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
            rustix::fs::statat(CWD, path.at(root), flags).map(|st| seen(&st, begin))
        }
        Op::Open { slot, path, write, read } => {
            let flags = match (read, write) {
                (true, true) => OFlags::RDWR,
                (false, true) => OFlags::WRONLY,
                _ => OFlags::RDONLY,
            };
            handles.0[*slot] = None;
            handles.0[*slot] = Some(open(&path.at(root), flags)?);
            Ok(Seen::Done)
        }
        Op::Close { slot } => {
            handles.0[*slot] = None;
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
            on(handles, *slot, |fd| rustix::fs::fchmod(fd, Mode::from(*mode)).map(done))
        }
        Op::HandleStat { slot } => on(handles, *slot, |fd| rustix::fs::fstat(fd).map(|st| seen(&st, begin))),
        Op::Remount | Op::Check => Ok(Seen::Done),
    }
}
