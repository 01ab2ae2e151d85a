//! Operations that fewer programs use, and those of another user and of another process.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::sample::select;
use rustix::fs::{CWD, FallocateFlags, FileType, Mode, OFlags, RenameFlags, SeekFrom, XattrFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::acl::{self, Acl};
use crate::layers::mode;
use crate::mapper::Mapper;
use crate::ops::{self, Handles, Listing, Op, Pick, Seen};

/// An operation of either kind.
#[derive(Debug, Clone)]
pub enum Step {
    Plain(Op),
    Special(Special),
}

/// An operation.
#[derive(Debug, Clone)]
pub enum Special {
    Exchange {
        a: Pick,
        b: Pick,
    },
    Tmpfile(Pick),
    Device {
        path: Pick,
        minor: u32,
    },
    SetAcl {
        path: Pick,
        name: &'static str,
        acl: Acl,
    },
    SetXattr {
        path: Pick,
        name: &'static str,
        value: &'static str,
        flags: u32,
    },
    RemoveXattr {
        path: Pick,
        name: &'static str,
    },
    Xattrs(Pick),
    Allocate {
        path: Pick,
        mode: u32,
        at: u64,
        len: u64,
    },
    Segments(Pick),
    WriteFar {
        path: Pick,
        at: u64,
    },
    /// An operation by an unprivileged user.
    As {
        user: u32,
        group: u32,
        op: Box<Op>,
    },
    Map {
        slot: usize,
        path: Pick,
        writable: bool,
    },
    MapRead {
        slot: usize,
        at: u64,
        len: usize,
    },
    MapWrite {
        slot: usize,
        at: u64,
        len: usize,
    },
    Unmap {
        slot: usize,
    },
    Remount {
        option: &'static str,
    },
}

/// What a caller sees of one.
#[derive(Debug, PartialEq, Eq)]
pub enum Saw {
    Plain(Seen),
    Xattrs(Vec<(OsString, Vec<u8>)>),
    /// Where the data is.
    Segments(Vec<(u64, u64)>),
}

/// A process on one side: what it holds.
#[derive(Default)]
pub struct Process {
    handles: Handles,
    mapper: Option<Mapper>,
    /// Space was allocated that nothing is written to: it is told as data or not as the page cache is.
    allocated: bool,
}

impl Process {
    /// Closes and unmaps all.
    pub fn let_go(&mut self) {
        self.handles = Handles::default();
        self.mapper = None;
    }
}

impl Step {
    /// The paths that it is about.
    pub fn paths(&self, listing: &Listing) -> Vec<PathBuf> {
        let picks = match self {
            Self::Plain(op) => return op.paths(listing),
            Self::Special(Special::As { op, .. }) => return op.paths(listing),
            Self::Special(special) => match special {
                Special::Exchange { a, b } => vec![a, b],
                Special::Device { path, .. }
                | Special::SetAcl { path, .. }
                | Special::SetXattr { path, .. }
                | Special::RemoveXattr { path, .. }
                | Special::Allocate { path, .. }
                | Special::WriteFar { path, .. }
                | Special::Map { path, .. }
                | Special::Tmpfile(path)
                | Special::Xattrs(path)
                | Special::Segments(path) => vec![path],
                _ => vec![],
            },
        };
        picks.into_iter().map(|p| p.find(listing)).collect()
    }

    /// Whether it leaves nothing open and means the same whoever serves the mount.
    pub fn is_of_one_moment(&self) -> bool {
        let moment = |op: &Op| !matches!(op, Op::Remount | Op::Check | Op::Open { .. } | Op::Close { .. });
        match self {
            Self::Plain(op) => moment(op),
            Self::Special(Special::As { op, .. }) => moment(op),
            Self::Special(Special::SetXattr { name, .. } | Special::RemoveXattr { name, .. }) => {
                !name.contains(".overlay.")
            }
            Self::Special(special) => matches!(
                special,
                Special::Exchange { .. }
                    | Special::SetAcl { .. }
                    | Special::Allocate { .. }
                    | Special::WriteFar { .. }
            ),
        }
    }
}

const SLOTS: usize = 3;
const XATTRS: [&str; 8] = [
    "trusted.layer",
    "trusted.a",
    "trusted.overlay.opaque",
    "trusted.overlay.redirect",
    "user.overlay.whiteout",
    "security.a",
    acl::ACCESS,
    acl::DEFAULT,
];

/// Any operation, of both kinds.
pub fn step() -> impl Strategy<Value = Step> {
    // Boxed: the types grow with each choice, beyond what a stack holds.
    prop_oneof![3 => ops::op().prop_map(Step::Plain).boxed(), 2 => special().prop_map(Step::Special).boxed()]
}

fn special() -> impl Strategy<Value = Special> {
    let slot = || 0..SLOTS;
    let at = || prop_oneof![8 => 0..10_000_u64, 1 => 100_000..300_000_u64];
    let thing = ops::there;
    let names = prop_oneof![
        6 => (thing(), thing()).prop_map(|(a, b)| Special::Exchange { a, b }),
        2 => (ops::dir(), ops::dir()).prop_map(|(a, b)| Special::Exchange { a, b }),
        1 => ops::dir().prop_map(Special::Tmpfile),
        1 => (ops::place(), select(vec![0, 3])).prop_map(|(path, minor)| Special::Device { path, minor }),
    ];
    let acls = prop_oneof![
        2 => (thing(), acl::acl()).prop_map(|(path, acl)| Special::SetAcl { path, name: acl::ACCESS, acl }),
        3 => (ops::dir(), acl::acl()).prop_map(|(path, acl)| Special::SetAcl { path, name: acl::DEFAULT, acl }),
    ];
    let xattrs = prop_oneof![
        // ACLs have their own.
        3 => (thing(), select(&XATTRS[..6]), select(vec!["y", "", "x/a", "/a"]), 0..3_u32)
            .prop_map(|(path, name, value, flags)| Special::SetXattr { path, name, value, flags }),
        2 => (thing(), select(&XATTRS)).prop_map(|(path, name)| Special::RemoveXattr { path, name }),
        2 => thing().prop_map(Special::Xattrs),
    ];
    let holes = prop_oneof![
        // Modes: a hole (PUNCH_HOLE | KEEP_SIZE), KEEP_SIZE, none, ZERO_RANGE with KEEP_SIZE and without.
        4 => (ops::file(), select(vec![3, 3, 3, 1, 0, 0x11, 0x10]), at(), 1..20_000_u64)
            .prop_map(|(path, mode, at, len)| Special::Allocate { path, mode, at, len }),
        3 => ops::file().prop_map(Special::Segments),
        1 => (ops::file(), 400_000..3_000_000_u64).prop_map(|(path, at)| Special::WriteFar { path, at }),
    ];
    let user = (select(vec![7, 1000, 1000, 12345]), select(vec![7, 1000, 12345]), as_op())
        .prop_map(|(user, group, op)| Special::As { user, group, op: Box::new(op) });
    let maps = prop_oneof![
        3 => (slot(), ops::file(), any::<bool>())
            .prop_map(|(slot, path, writable)| Special::Map { slot, path, writable }),
        3 => (slot(), at(), 0..6000_usize).prop_map(|(slot, at, len)| Special::MapRead { slot, at, len }),
        3 => (slot(), at(), 0..6000_usize).prop_map(|(slot, at, len)| Special::MapWrite { slot, at, len }),
        1 => slot().prop_map(|slot| Special::Unmap { slot }),
    ];
    let remount = select(vec!["passthrough=on", "passthrough=off", "metacopy=on", "io_uring=off"])
        .prop_map(|option| Special::Remount { option });
    prop_oneof![
        12 => names.boxed(),
        7 => acls.boxed(),
        9 => xattrs.boxed(),
        12 => holes.boxed(),
        16 => user.boxed(),
        14 => maps.boxed(),
        1 => remount.boxed(),
    ]
}

/// What a user may do to files of his own and of others.
fn as_op() -> impl Strategy<Value = Op> {
    let write = (ops::file(), 0..9000_u64, 0..3000_usize).prop_map(|(path, offset, len)| Op::Write {
        path,
        offset,
        len,
    });
    let truncate = (ops::file(), 0..9000_u64).prop_map(|(path, size)| Op::Truncate { path, size });
    let chmod = (ops::there(), mode()).prop_map(|(path, mode)| Op::Chmod { path, mode });
    let looks = |op: &Op| !matches!(op, Op::Remount | Op::Check);
    prop_oneof![2 => write, 1 => truncate, 1 => chmod, 3 => ops::op().prop_filter("of a user", looks).boxed()]
}

/// Runs `f` in a thread without privileges.
fn as_user<T: Send>(user: u32, group: u32, f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let (uid, gid) = (Uid::from_raw(user), Gid::from_raw(group));
            rustix::thread::set_thread_groups(&[gid]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            f()
        });
        thread.join().unwrap()
    })
}

/// Does an operation below `root`.
pub fn apply(
    step: &Step,
    root: &Path,
    listing: &Listing,
    process: &mut Process,
    begin: i64,
) -> Result<Saw, Errno> {
    let handles = &mut process.handles;
    match step {
        Step::Plain(op) => ops::apply(op, root, listing, handles, begin).map(Saw::Plain),
        Step::Special(Special::As { user, group, op }) => {
            // With fs.protected_hardlinks the kernel goes by the mode that it last heard of.
            if let Op::Link { from, .. } = &**op {
                let _ = root.join(from.find(listing)).symlink_metadata();
            }
            as_user(*user, *group, || ops::apply(op, root, listing, handles, begin)).map(Saw::Plain)
        }
        Step::Special(
            special @ (Special::Map { .. }
            | Special::MapRead { .. }
            | Special::MapWrite { .. }
            | Special::Unmap { .. }),
        ) => map(special, root, listing, process).map(|bytes| Saw::Plain(Seen::Bytes(bytes))),
        Step::Special(special) => file(special, root, listing, &mut process.allocated),
    }
}

fn map(special: &Special, root: &Path, listing: &Listing, process: &mut Process) -> Result<Vec<u8>, Errno> {
    let mapper = match special {
        Special::Map { .. } => process.mapper.get_or_insert_with(Mapper::new),
        _ => match &mut process.mapper {
            Some(mapper) => mapper,
            None => return Ok(vec![]),
        },
    };
    process.handles.mapped = true;
    match special {
        Special::Map { slot, path, writable } => mapper.map(*slot, &root.join(path.find(listing)), *writable),
        Special::MapRead { slot, at, len } => mapper.read(*slot, *at, *len),
        Special::MapWrite { slot, at, len } => mapper.write(*slot, *at, *len),
        Special::Unmap { slot } => mapper.unmap(*slot),
        _ => Ok(vec![]),
    }
}

fn file(special: &Special, root: &Path, listing: &Listing, allocated: &mut bool) -> Result<Saw, Errno> {
    let done = |()| Saw::Plain(Seen::Done);
    let at = |pick: &Pick| root.join(pick.find(listing));
    match special {
        Special::Exchange { a, b } => {
            rustix::fs::renameat_with(CWD, at(a), CWD, at(b), RenameFlags::EXCHANGE).map(done)
        }
        Special::Tmpfile(path) => {
            let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
            rustix::fs::open(at(path), flags, Mode::from(0o600)).map(|_| Saw::Plain(Seen::Done))
        }
        Special::Device { path, minor } => {
            let device = rustix::fs::makedev(if *minor == 0 { 0 } else { 1 }, *minor);
            rustix::fs::mknodat(CWD, at(path), FileType::CharacterDevice, Mode::from(0o640), device).map(done)
        }
        Special::SetAcl { path, name, acl } => {
            rustix::fs::lsetxattr(at(path), *name, &acl.encode(), XattrFlags::empty()).map(done)
        }
        Special::SetXattr { path, name, value, flags } => {
            let flags = XattrFlags::from_bits_retain(*flags);
            rustix::fs::lsetxattr(at(path), *name, value.as_bytes(), flags).map(done)
        }
        Special::RemoveXattr { path, name } => rustix::fs::lremovexattr(at(path), *name).map(done),
        Special::Xattrs(path) => xattrs(&at(path)).map(Saw::Xattrs),
        Special::Allocate { path, mode, at: offset, len } => {
            let fd = ops::open(&at(path), OFlags::RDWR)?;
            *allocated |= *mode != 3;
            rustix::fs::fallocate(&fd, FallocateFlags::from_bits_retain(*mode), *offset, *len).map(done)
        }
        Special::Segments(path) => {
            let found = segments(&ops::open(&at(path), OFlags::RDONLY)?)?;
            Ok(Saw::Segments(if *allocated { vec![] } else { found }))
        }
        Special::WriteFar { path, at: offset } => {
            let fd = ops::open(&at(path), OFlags::WRONLY)?;
            rustix::io::pwrite(&fd, b"far", *offset).map(|n| Saw::Plain(Seen::Count(n)))
        }
        _ => Ok(Saw::Plain(Seen::Done)),
    }
}

/// All attributes, sorted by name.
fn xattrs(path: &Path) -> Result<Vec<(OsString, Vec<u8>)>, Errno> {
    let mut list = vec![0; 65536];
    let n = rustix::fs::llistxattr(path, &mut list[..])?;
    let mut found = Vec::new();
    for name in list[..n].split(|&b| b == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65536];
        let n = rustix::fs::lgetxattr(path, name, &mut value[..])?;
        found.push((OsString::from_vec(name.to_vec()), value[..n].to_vec()));
    }
    found.sort();
    Ok(found)
}

/// Where the data of a file is. Between it are zeros.
fn segments(fd: &OwnedFd) -> Result<Vec<(u64, u64)>, Errno> {
    let (mut found, mut at) = (Vec::new(), 0);
    let st = rustix::fs::fstat(fd)?;
    if FileType::from_raw_mode(st.st_mode) != FileType::RegularFile {
        return Ok(found);
    }
    let size = st.st_size as u64;
    loop {
        let start = match rustix::fs::seek(fd, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => size,
            Err(e) => return Err(e),
        };
        let hole = ops::read_at(fd, at, (start - at) as usize)?;
        assert!(hole.iter().all(|&b| b == 0), "data in the hole {at}..{start}");
        if start == size {
            return Ok(found);
        }
        at = rustix::fs::seek(fd, SeekFrom::Hole(start))?;
        found.push((start, at));
    }
}
