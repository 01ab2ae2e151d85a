//! The node table: which objects the kernel knows, by inode number.

use std::ffi::{OsStr, OsString};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use dashmap::DashMap;
use parking_lot::Mutex;
use rustix::fs::FileType;

use crate::layer::dir::LayerId;
use crate::node::by_number::ByNumber;
use crate::node::last_places::LastPlaces;
use crate::node::object::{Node, Registry, State};
use crate::sys::process;

/// Whether the kernel knows a node.
#[derive(Debug)]
enum Slot {
    /// It does: it was told so many times of it.
    Held(Arc<Node>, u64),
    /// It does not; a child or an open file may need it.
    Loose(Weak<Node>),
}

impl Slot {
    fn node(&self) -> Option<Arc<Node>> {
        match self {
            Self::Held(node, _) => Some(node.clone()),
            Self::Loose(node) => node.upgrade(),
        }
    }

    /// Whether its node is on its way out, in another thread.
    fn is_dead(&self) -> bool {
        matches!(self, Self::Loose(node) if node.strong_count() == 0)
    }
}

/// The table. A node is in it while anyone uses it: the kernel, a child, an open file.
#[derive(Debug, Default)]
pub struct Table {
    slots: DashMap<u64, Slot, ByNumber>,
    /// Where nodes were that are in it no more, by number: for file handles.
    gone: Mutex<LastPlaces>,
    /// Nodes that are live.
    live: AtomicUsize,
    /// The most that were since memory was last given back.
    peak: AtomicUsize,
}

/// So many nodes must have been for their memory to be worth giving back to the system, which takes milliseconds.
const MANY: usize = 1 << 14;
/// How long, and how often, is waited for a node that another thread lets go of.
const GOING_PAUSE: Duration = Duration::from_micros(50);
const GOING_PAUSES: usize = 200;

impl Table {
    /// The node with this number.
    pub fn get(&self, ino: u64) -> Option<Arc<Node>> {
        self.slots.get(&ino).and_then(|slot| slot.node())
    }

    /// The node with this number; a new one with `state` when there is none. The second value tells
    /// whether it is new.
    pub fn admit(
        self: &Arc<Self>,
        ino: u64,
        kind: FileType,
        layer: LayerId,
        state: impl FnOnce() -> State,
    ) -> (Arc<Node>, bool) {
        // Nothing below blocks or uses the table while the shard is locked.
        let mut slot = self.slots.entry(ino).or_insert_with(|| Slot::Loose(Weak::new()));
        if let Some(node) = slot.node() {
            return (node, false);
        }
        let registry: Weak<dyn Registry> = Arc::<Self>::downgrade(self);
        let node = Arc::new(Node::new(registry, ino, kind, layer, state()));
        *slot = Slot::Loose(Arc::downgrade(&node));
        let live = self.live.fetch_add(1, Ordering::Relaxed) + 1;
        if live > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(live, Ordering::Relaxed);
        }
        (node, true)
    }

    /// Counts a lookup that the kernel is told of.
    pub fn count(&self, node: &Arc<Node>) {
        if let Some(mut slot) = self.slots.get_mut(&node.ino) {
            match &mut *slot {
                Slot::Held(_, lookups) => *lookups += 1,
                loose @ Slot::Loose(_) => *loose = Slot::Held(node.clone(), 1),
            }
        }
    }

    /// Takes back lookups that the kernel forgets.
    pub fn forget(&self, ino: u64, lookups: u64) {
        let Some(mut slot) = self.slots.get_mut(&ino) else { return };
        let Slot::Held(node, left) = &mut *slot else { return };
        *left = left.saturating_sub(lookups);
        if *left > 0 {
            return;
        }
        let loose = Slot::Loose(Arc::downgrade(node));
        let held = std::mem::replace(&mut *slot, loose);
        // May be the last reference, whose end takes the slot away: not under the shard's lock.
        drop(slot);
        drop(held);
    }

    /// Counts so many lookups at once, of a node that another process has told the kernel of.
    pub fn hold(&self, node: &Arc<Node>, lookups: u64) {
        if let Some(mut slot) = self.slots.get_mut(&node.ino)
            && lookups > 0
        {
            match &mut *slot {
                Slot::Held(_, count) => *count += lookups,
                loose @ Slot::Loose(_) => *loose = Slot::Held(node.clone(), lookups),
            }
        }
    }

    /// All nodes, with the lookups that the kernel counts on each.
    pub fn all(&self) -> Vec<(Arc<Node>, u64)> {
        let each = |slot: &Slot| match slot {
            Slot::Held(node, lookups) => Some((node.clone(), *lookups)),
            Slot::Loose(node) => node.upgrade().map(|node| (node, 0)),
        };
        self.slots.iter().filter_map(|slot| each(&slot)).collect()
    }

    /// Whether the kernel knows the node.
    pub fn is_held(&self, ino: u64) -> bool {
        self.slots.get(&ino).is_some_and(|slot| matches!(*slot, Slot::Held(..)))
    }

    /// The directory and name that a node had when it went, if it is remembered.
    pub fn last_place(&self, ino: u64) -> Option<(u64, OsString)> {
        // One that is going is remembered before its slot goes. Until then there is none, or an older one.
        for _ in 0..GOING_PAUSES {
            if !self.slots.get(&ino).is_some_and(|slot| slot.is_dead()) {
                break;
            }
            thread::sleep(GOING_PAUSE);
        }
        self.gone.lock().get(ino)
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Memory that the nodes take in bytes, with their names and what is known of the layers' directories.
    /// Looks at each of them.
    pub fn memory(&self) -> usize {
        // A byte for each slot tells the map what is in it.
        let mut bytes = self.slots.capacity() * (size_of::<(u64, Slot)>() + 1);
        // May be the last references, whose ends take the slots away: not while they are gone through.
        let mut loose = Vec::new();
        for slot in &self.slots {
            match &*slot {
                Slot::Held(node, _) => bytes += node.memory(),
                Slot::Loose(node) => loose.extend(node.upgrade().inspect(|node| bytes += node.memory())),
            }
        }
        bytes
    }

    /// Records that a node has gone. Each time half of many have, their memory is given back to the system.
    fn went(&self) {
        let live = self.live.fetch_sub(1, Ordering::Relaxed).saturating_sub(1);
        let peak = self.peak.load(Ordering::Relaxed);
        if peak < MANY || live > peak / 2 {
            return;
        }
        // Of several threads that come here, one does it.
        if self.peak.compare_exchange(peak, live, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.slots.shrink_to_fit();
            process::give_back_memory();
        }
    }
}

impl Registry for Table {
    fn remove_dead(&self, ino: u64) {
        if self.slots.remove_if(&ino, |_, slot| slot.is_dead()).is_some() {
            self.went();
        }
    }

    fn remember(&self, ino: u64, place: Option<(u64, &OsStr)>) {
        let mut gone = self.gone.lock();
        match place {
            Some((parent, name)) => gone.remember(ino, parent, name),
            None => gone.forget(ino),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::object::Link;

    fn admit(table: &Arc<Table>, ino: u64, parent: Option<&Arc<Node>>) -> Arc<Node> {
        let links = parent.map(|p| Link { parent: p.clone(), name: Arc::from(OsStr::new("n")), layer: 0 });
        table.admit(ino, FileType::Directory, 0, || State::new(links, (0, ino))).0
    }

    #[test]
    fn a_node_lives_while_the_kernel_or_a_child_needs_it() {
        let table = Arc::new(Table::default());
        let parent = admit(&table, 2, None);
        table.count(&parent);
        table.count(&parent);
        let child = admit(&table, 3, Some(&parent));
        table.count(&child);
        drop((parent, child));
        table.forget(2, 1);
        assert!(table.is_held(2));
        table.forget(2, 1);
        assert!(!table.is_held(2));
        assert!(table.get(2).is_some(), "the child needs it");
        table.forget(3, 1);
        assert!(table.is_empty());
    }

    #[test]
    fn deep_trees_end_without_recursion() {
        let table = Arc::new(Table::default());
        let mut node = admit(&table, 2, None);
        for ino in 3..200_000 {
            node = admit(&table, ino, Some(&node));
        }
        drop(node);
        assert!(table.is_empty());
    }
}
