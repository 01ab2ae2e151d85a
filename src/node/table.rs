//! The node table: which objects the kernel knows, by inode number.

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::sync::{Arc, Weak};

use dashmap::DashMap;
use lru::LruCache;
use parking_lot::Mutex;
use rustix::fs::FileType;

use crate::layer::dir::LayerId;
use crate::node::object::{Node, Registry, State};

#[derive(Debug)]
struct Slot {
    node: Weak<Node>,
    /// Keeps the node as long as the kernel counts lookups on it.
    held: Option<Arc<Node>>,
    lookups: u64,
}

/// The table. A node is in it while anyone uses it: the kernel, a child, an open file.
#[derive(Debug)]
pub struct Table {
    slots: DashMap<u64, Slot>,
    /// Where nodes were that are in it no more, by number: for file handles.
    gone: Mutex<LruCache<u64, (u64, Arc<OsStr>)>>,
}

/// How many of the nodes that went are remembered, of some 100 bytes each.
const REMEMBERED: usize = 1 << 16;

impl Default for Table {
    fn default() -> Self {
        let remembered = NonZeroUsize::new(REMEMBERED).unwrap_or(NonZeroUsize::MIN);
        // Grows as needed: its bound is not worth its memory from the beginning.
        let mut gone = LruCache::unbounded();
        gone.resize(remembered);
        Self { slots: DashMap::new(), gone: Mutex::new(gone) }
    }
}

impl Table {
    /// The node with this number.
    pub fn get(&self, ino: u64) -> Option<Arc<Node>> {
        self.slots.get(&ino).and_then(|slot| slot.node.upgrade())
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
        let mut slot =
            self.slots.entry(ino).or_insert_with(|| Slot { node: Weak::new(), held: None, lookups: 0 });
        if let Some(node) = slot.node.upgrade() {
            return (node, false);
        }
        let registry: Weak<dyn Registry> = Arc::<Self>::downgrade(self);
        let node = Arc::new(Node::new(registry, ino, kind, layer, state()));
        slot.node = Arc::downgrade(&node);
        (node, true)
    }

    /// Counts a lookup that the kernel is told of.
    pub fn count(&self, node: &Arc<Node>) {
        if let Some(mut slot) = self.slots.get_mut(&node.ino) {
            slot.lookups += 1;
            if slot.held.is_none() {
                slot.held = Some(node.clone());
            }
        }
    }

    /// Takes back lookups that the kernel forgets.
    pub fn forget(&self, ino: u64, lookups: u64) {
        let dropped = self.slots.get_mut(&ino).and_then(|mut slot| {
            slot.lookups = slot.lookups.saturating_sub(lookups);
            if slot.lookups == 0 { slot.held.take() } else { None }
        });
        // May be the last reference, whose end takes the slot away: not under the shard's lock.
        drop(dropped);
    }

    /// Whether the kernel knows the node.
    pub fn is_held(&self, ino: u64) -> bool {
        self.slots.get(&ino).is_some_and(|slot| slot.held.is_some())
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
}

impl Registry for Table {
    fn remove_dead(&self, ino: u64) {
        self.slots.remove_if(&ino, |_, slot| slot.node.strong_count() == 0);
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
            .map(|p| vec![Link { parent: p.clone(), name: Arc::from(OsStr::new("n")), layer: 0 }])
            .unwrap_or_default();
        table.admit(ino, FileType::Directory, 0, || State { links, ..State::default() }).0
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
