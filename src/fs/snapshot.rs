//! What the kernel knows of this filesystem, written out and read back: nodes by number with their names, open files by
//! handle. So that another process can go on where one has ended (docs/adr/0002-takeover.md).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::{Backing, ROOT, UnionFs};
use crate::error::{Errno, Result};
use crate::layer::dir::LayerId;
use crate::node::files::{OpenFile, Real};
use crate::node::{Node, State};
use crate::sys::file;

/// A node as the kernel knows it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// Its number.
    pub ino: u64,
    /// How many lookups the kernel counts on it; 0: a child or an open file needs it.
    pub lookups: u64,
    /// Its names: the number of the directory, and the bytes of the name. None for one that was removed while in use.
    pub places: Vec<(u64, Vec<u8>)>,
    /// The layer that has the real object.
    pub layer: LayerId,
    /// It has no name in the union, though in a lower.
    pub hidden: bool,
}

/// An open file as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRecord {
    /// The handle.
    pub fh: u64,
    /// What is open.
    pub ino: u64,
    /// Flags of the real file, as in open(2).
    pub flags: u32,
    /// The kernel does reads and writes by itself.
    pub passed: bool,
    /// The number that the connection knows the real file by, for those that are passed through.
    pub backing: Option<i32>,
}

/// All that a successor must know.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// All nodes but the root.
    pub nodes: Vec<NodeRecord>,
    /// All open files.
    pub files: Vec<FileRecord>,
}

/// What a successor could not find again: its users get errors, all others go on.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Lost {
    /// Numbers of nodes.
    pub nodes: Vec<u64>,
    /// Handles of files.
    pub files: Vec<u64>,
}

/// Where a restore gets what is no data.
pub trait Kept {
    /// A descriptor (O_PATH) of a node without a name.
    fn pin(&mut self, ino: u64) -> Option<OwnedFd>;
    /// The file that the connection knows by this number.
    fn backing(&mut self, id: i32) -> Option<Backing>;
}

impl UnionFs {
    /// The state now. Right only while no request is served. `id_of`: the number of a file that is passed through.
    pub fn snapshot(&self, id_of: impl Fn(&Backing) -> Option<i32>) -> Snapshot {
        let nodes = self
            .table
            .all()
            .into_iter()
            .filter(|(node, _)| node.ino != ROOT)
            .map(|(n, count)| record(&n, count));
        let files = self.files.all().into_iter().map(|(fh, open)| FileRecord {
            fh,
            ino: open.node.ino,
            flags: open.flags().bits(),
            passed: open.passed,
            backing: if open.passed { open.node.io().backing().and_then(&id_of) } else { None },
        });
        Snapshot { nodes: nodes.collect(), files: files.collect() }
    }

    /// The record of a node that has lost its last name, and a descriptor that keeps the object. `None` for others.
    pub fn nameless(&self, ino: u64) -> Option<(NodeRecord, Arc<OwnedFd>)> {
        let node = self.table.get(ino)?;
        let pinned = node.with(|s| s.pinned.clone())?;
        Some((record(&node, 1), pinned))
    }

    /// Reads back what the kernel knows, into a filesystem that it has asked nothing yet.
    pub fn restore(&self, snapshot: &Snapshot, kept: &mut dyn Kept) -> Lost {
        let mut records: HashMap<u64, &NodeRecord> = snapshot.nodes.iter().map(|r| (r.ino, r)).collect();
        // A child holds its parents, so all that is found stays; the lookups are counted at once.
        let mut lost = Lost::default();
        let mut found = HashMap::new();
        for ino in snapshot.nodes.iter().map(|r| r.ino) {
            // Parents first, without recursion: trees may be deep.
            let mut way = vec![ino];
            while let Some(&at) = way.last() {
                let Some(record) = records.get(&at) else {
                    way.pop();
                    continue;
                };
                match record.places.iter().map(|(parent, _)| *parent).find(|p| records.contains_key(p)) {
                    Some(parent) if !way.contains(&parent) => way.push(parent),
                    _ => {
                        match self.find_again(record, kept) {
                            Ok(node) => drop(found.insert(at, node)),
                            Err(_) => lost.nodes.push(at),
                        }
                        records.remove(&at);
                        way.pop();
                    }
                }
            }
        }
        for file in &snapshot.files {
            if self.open_again(file, kept).is_err() {
                lost.files.push(file.fh);
            }
        }
        drop(found);
        lost
    }

    fn find_again(&self, record: &NodeRecord, kept: &mut dyn Kept) -> Result<Arc<Node>> {
        let mut node = None;
        for (parent, name) in &record.places {
            let parent = self.node(*parent)?;
            let _names = parent.names.read();
            let (child, _) = self.child(&parent, OsStr::from_bytes(name))?;
            if child.ino != record.ino {
                return Err(Errno::STALE);
            }
            node = Some(child);
        }
        let node = match node {
            Some(node) => node,
            None => {
                let fd = kept.pin(record.ino).ok_or(Errno::STALE)?;
                let st = file::stat_fd(&fd)?;
                let mut state = State::new([], (st.dev, st.ino));
                state.pinned = Some(Arc::new(fd));
                state.hidden = record.hidden;
                self.table.admit(record.ino, st.kind(), record.layer, || state).0
            }
        };
        self.table.hold(&node, record.lookups);
        Ok(node)
    }

    fn open_again(&self, record: &FileRecord, kept: &mut dyn Kept) -> Result<()> {
        let node = self.node(record.ino)?;
        let flags = OFlags::from_bits_retain(record.flags) & !OFlags::TRUNC;
        let layer = node.content_layer();
        let (fd, st) = node.open(self.index(), flags, self.noatime || !self.stack.in_place(layer))?;
        let fd = Arc::new(fd);
        {
            let mut io = node.io();
            // One way at a time, and one real file: the handle takes part as if it had been opened now.
            io.adopt(
                record.passed,
                record.backing.and_then(|id| kept.backing(id)),
                flags.contains(OFlags::RDWR),
            );
            if self.stack.in_place(layer) {
                io.set_real((st.dev, st.ino), &fd);
            }
        }
        let real = Real { fd, layer, size: st.size };
        self.files.put(record.fh, OpenFile::new(node.clone(), flags, Some(real), record.passed));
        Ok(())
    }
}

/// The flags that the real file of an open file has, by those of a request: for who knows only the latter.
pub fn flags_of_request(flags: u32) -> u32 {
    super::open::real_flags(OFlags::from_bits_retain(flags), false).bits()
}

fn record(node: &Node, lookups: u64) -> NodeRecord {
    node.with(|s| NodeRecord {
        ino: node.ino,
        lookups,
        places: s.links.iter().map(|l| (l.parent.ino, l.name.as_bytes().to_vec())).collect(),
        layer: node.layer(),
        hidden: s.hidden,
    })
}
