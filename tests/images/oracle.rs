//! What has changed between two trees, by reading both in full: what `unionfs diff` must say as well.

use std::collections::BTreeSet;
use std::path::Path;

use crate::common::tree::{Node, Tree};

/// The lines that tell how `new` came from `old`.
pub fn changes(old: &Tree, new: &Tree) -> BTreeSet<String> {
    let mut lines = BTreeSet::new();
    let mut tell = |kind: char, path: &Path| {
        lines.insert(format!("{kind} /{}", path.display()));
        path.to_owned()
    };
    let mut changed = Vec::new();
    for (path, node) in new {
        match old.get(path) {
            None => changed.push(tell('A', path)),
            Some(before) if differ(before, node) => changed.push(tell('C', path)),
            Some(_) => {}
        }
    }
    for path in old.keys().filter(|path| !new.contains_key(*path)) {
        // What was in it goes with a directory.
        if path.parent().and_then(|p| new.get(p)).is_some_and(is_dir) {
            changed.push(tell('D', path));
        }
    }
    for path in changed {
        for above in path.ancestors().skip(1).filter(|p| !p.as_os_str().is_empty()) {
            if old.get(above).is_some_and(is_dir) {
                tell('C', above);
            }
        }
    }
    lines
}

fn is_dir(node: &Node) -> bool {
    node.mode & libc::S_IFMT == libc::S_IFDIR
}

/// Whether an object was changed: not by its link count, nor a directory by its times.
fn differ(old: &Node, new: &Node) -> bool {
    let plain = |node: &Node| Node { nlink: 0, same_as: "".into(), ..node.clone() };
    plain(old) != plain(new)
}
