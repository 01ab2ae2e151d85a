//! The node table: which objects the kernel knows, by inode number.

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use dashmap::DashMap;
use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::FileType;

use crate::layer::dir::LayerId;
use crate::node::by_number::ByNumber;
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
}

/// The table. A node is in it while anyone uses it: the kernel, a child, an open file.
#[derive(Debug)]
pub struct Table {
    slots: DashMap<u64, Slot, ByNumber>,
    /// Where nodes were that are in it no more, by number: for file handles.
    gone: Mutex<LruCache<u64, (u64, Arc<OsStr>), ByNumber>>,
    /// Nodes that went since memory was last given back.
    dropped: AtomicUsize,
}

/// How many of the nodes that went are remembered, of some 100 bytes each.
const REMEMBERED: usize = 1 << 16;
/// When so many nodes have gone, their memory is given back to the system.
const GIVE_BACK: usize = 1 << 16;

impl Default for Table {
    fn default() -> Self {
        let remembered = NonZeroUsize::new(REMEMBERED).unwrap_or(NonZeroUsize::MIN);
        // Grows as needed: its bound is not worth its memory from the beginning.
        let mut gone = LruCache::unbounded_with_hasher(ByNumber::default());
        gone.resize(remembered);
        Self { slots: DashMap::default(), gone: Mutex::new(gone), dropped: AtomicUsize::new(0) }
    }
}

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

    /// Whether the kernel knows the node.
    pub fn is_held(&self, ino: u64) -> bool {
        self.slots.get(&ino).is_some_and(|slot| matches!(*slot, Slot::Held(..)))
    }

    /// The directory and name that a node had when it went, if it is remembered.
    pub fn last_place(&self, ino: u64) -> Option<(u64, Arc<OsStr>)> {
        self.gone.lock().get(&ino).cloned()
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

    /// Gives memory back to the system once many nodes have gone.
    fn give_back(&self) {
        if self.dropped.fetch_add(1, Ordering::Relaxed) + 1 < GIVE_BACK {
            return;
        }
        // Of several threads that come here, one does it.
        if self.dropped.swap(0, Ordering::Relaxed) >= GIVE_BACK {
            if self.slots.capacity() > 4 * self.slots.len() {
                self.slots.shrink_to_fit();
            }
            process::give_back_memory();
        }
    }
}

impl Registry for Table {
    fn remove_dead(&self, ino: u64) {
        let is_dead = |slot: &Slot| matches!(slot, Slot::Loose(node) if node.strong_count() == 0);
        if self.slots.remove_if(&ino, |_, slot| is_dead(slot)).is_some() {
            self.give_back();
        }
    }

    fn remember(&self, ino: u64, place: Option<(u64, Arc<OsStr>)>) {
        let mut gone = self.gone.lock();
        // Dropped when the lock is released.
        let _old = match place {
            Some(place) => gone.push(ino, place).map(|(_, place)| place),
            None => gone.pop(&ino),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::object::Link;

    fn admit(table: &Arc<Table>, ino: u64, parent: Option<&Arc<Node>>) -> Arc<Node> {
        let links = parent
            .map(|p| Link { parent: p.clone(), name: Arc::from(OsStr::new("n")), layer: 0 });
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
