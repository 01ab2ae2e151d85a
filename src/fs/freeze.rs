//! Freezing: the upper becomes a layer that never changes, and an empty one takes its place, under a live mount.

use std::collections::HashSet;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{FileType, OFlags};

use super::UnionFs;
use crate::copy_up::metadata;
use crate::error::{Errno, Result};
use crate::format::names::Mark;
use crate::format::nlink::{Base, NlinkDiff};
use crate::format::origin::Origin;
use crate::layer::dir::{Dir, LayerId};
use crate::layer::marks;
use crate::layer::stack::Role;
use crate::merge::listing;
use crate::node::{Link, Node};
use crate::sys::file;

/// A directory's parts in the upper and in the init layer.
type Both = (Arc<Dir>, Arc<Dir>);

/// A file that is open for writing.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Writer {
    /// Its path from the root of the mount, without a leading slash.
    pub path: PathBuf,
    /// The kernel writes to it without us.
    pub passed: bool,
    /// No descriptor is open, but a mapping writes to it.
    pub mapped: bool,
}

/// Numbers of files; `None` when one has a number that is not known.
type Numbers = Option<HashSet<u64>>;

/// Why the upper was not frozen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The kernel writes to these files without us.
    Busy(Vec<Writer>),
    /// The upper hides this path of the init layer, which would be seen in a mount of the new stack.
    Hides(PathBuf),
    /// Without an index the names of a hardlink would part.
    NoIndex,
    /// A system call failed.
    Failed(Errno),
}

impl From<Errno> for Refused {
    fn from(e: Errno) -> Self {
        Self::Failed(e)
    }
}

impl UnionFs {
    fn nodes(&self) -> Vec<Arc<Node>> {
        self.table.all().into_iter().map(|(node, _)| node).collect()
    }

    /// The files of the upper and the init layer that are open for writing and have a name, by path.
    pub fn writers(&self) -> Vec<Writer> {
        let open = self.files.all().into_iter().map(|(_, open)| open).filter(|open| open.writes());
        let mut all: Vec<Writer> = open
            .filter_map(|open| {
                Some(Writer { path: path_of(&open.node)?, passed: open.passed, mapped: false })
            })
            .collect();
        all.sort();
        all.dedup();
        all
    }

    /// Those that the kernel may write to in the upper without us: by a handle, or by a mapping, which outlives it.
    fn unstoppable(&self, nodes: &[Arc<Node>]) -> Result<Vec<Writer>> {
        let in_upper = |node: &Node| node.layer() == self.upper() && node.with(|s| s.pinned.is_none());
        let mut all = Vec::new();
        let mut known = HashSet::new();
        for (_, open) in self.files.all() {
            if open.writes() && open.passed && in_upper(&open.node) && known.insert(open.node.ino) {
                let path = path_of(&open.node).unwrap_or_default();
                all.push(Writer { path, passed: true, mapped: false });
            }
        }
        for node in nodes.iter().filter(|node| node.kind == FileType::RegularFile && in_upper(node)) {
            if !node.io().is_mappable() || known.contains(&node.ino) {
                continue;
            }
            let (fd, _) = node.open_here(self.index(), OFlags::RDONLY, true)?;
            if file::is_open_for_writing(&fd)? {
                all.push(Writer { path: path_of(node).unwrap_or_default(), passed: true, mapped: true });
            }
        }
        all.sort();
        Ok(all)
    }

    /// Gives all names of copied-up hardlinks that are still lower their names in the upper: without the index, which
    /// belongs to the upper and its work directory, they would be files of their own.
    ///
    /// # Errors
    /// Those of reading the layers and of copying directories up.
    pub fn join_links(&self) -> Result<()> {
        let Some(numbers) = self.parted_links()? else { return Ok(()) };
        let mut dirs = vec![self.root.clone()];
        while let Some(dir) = dirs.pop() {
            let entries = {
                let _names = dir.names.read();
                match self.parts(&dir, true).and_then(|parts| listing::list(&self.stack, &parts, false)) {
                    // Removed meanwhile.
                    Err(Errno::NOENT) => continue,
                    other => other?,
                }
            };
            for entry in entries {
                let is_dir = entry.kind == FileType::Directory;
                let possible = match (&numbers, entry.ino) {
                    (Some(numbers), Some(ino)) => numbers.contains(&ino),
                    _ => true,
                };
                if !is_dir && (!possible || self.stack.in_place(entry.layer)) {
                    continue;
                }
                let found = {
                    let _names = dir.names.read();
                    self.child(&dir, &entry.name)
                };
                match found {
                    Ok((child, _)) if is_dir && child.is_dir() => dirs.push(child),
                    Ok((child, _)) if !is_dir => self.join_name(&dir, &child, &entry.name)?,
                    Ok(_) | Err(Errno::NOENT) => {}
                    Err(e) => return Err(e),
                }
            }
        }
        Ok(())
    }

    fn join_name(&self, dir: &Arc<Node>, node: &Arc<Node>, name: &OsStr) -> Result<()> {
        let parted = |node: &Node| {
            let link = node.with(|s| s.links.iter().find(|l| l.is(dir, name)).cloned());
            link.filter(|l| node.with(|s| s.indexed.is_some()) && !self.stack.in_place(l.layer))
        };
        if parted(node).is_none() {
            return Ok(());
        }
        self.dir_up(dir)?;
        let _names = self.change_names(dir);
        // By now it may be joined, or gone.
        let Some(link): Option<Link> = parted(node) else { return Ok(()) };
        match self.link_up(node, &link) {
            Err(Errno::STALE) => Ok(()),
            other => other,
        }
    }

    /// The files with names that are not in the upper yet; `None` when there is none.
    fn parted_links(&self) -> Result<Option<Numbers>> {
        let Some(index) = self.index() else { return Ok(None) };
        let namespace = self.stack.namespace();
        let mut names: Vec<OsString> = Vec::new();
        file::list(index.fd()?, |name, _, kind| {
            if !matches!(kind, FileType::Directory | FileType::CharacterDevice) {
                names.push(name.to_owned());
            }
            Ok(())
        })?;
        let (mut any, mut numbers) = (false, Some(HashSet::new()));
        for name in names {
            let mark = marks::of_entry(index.fd()?, &name, Mark::Nlink, namespace)?;
            // Names in the union less names of the copy, of which the index entry is one.
            if let Some(NlinkDiff { base: Base::Upper, diff }) = mark.as_deref().and_then(NlinkDiff::decode)
                && diff < 0
            {
                continue;
            }
            any = true;
            let origin = hex::decode(name.as_bytes()).ok().and_then(|bytes| Origin::decode(&bytes));
            match (&mut numbers, origin.and_then(|origin| self.stack.identity().of_origin(&origin))) {
                (Some(numbers), Some(number)) => drop(numbers.insert(number)),
                _ => numbers = None,
            }
        }
        Ok(any.then_some(numbers))
    }

    /// Makes the upper a layer that never changes, and goes on in `upper`, an empty directory on the same mount, with
    /// the work directory `work`. What is seen stays as it is; open files stay open. One that was opened for writing
    /// is copied up by its next write. `before` is called when nothing is left that could refuse it but the new
    /// directories themselves. Refused, all is as before.
    ///
    /// # Errors
    /// Why it is not possible, or not now.
    pub fn freeze(
        &mut self,
        upper: OwnedFd,
        work: OwnedFd,
        before: impl FnOnce() -> Result<()>,
    ) -> std::result::Result<(), Refused> {
        let old = self.upper();
        if !self.stack.is_writable() || self.stack.role(old) != Role::Upper {
            return Err(Errno::ROFS.into());
        }
        if !self.keep_links {
            return Err(Refused::NoIndex);
        }
        let nodes = self.nodes();
        let busy = self.unstoppable(&nodes)?;
        if !busy.is_empty() {
            return Err(Refused::Busy(busy));
        }
        let root = self.stack.roots().next().cloned().ok_or(Errno::IO)?;
        let shared = self.shared_with_init(&root)?;
        self.join_links()?;
        let copy = |from: &Dir, to: &OwnedFd, layer: LayerId| -> Result<()> {
            let from = from.fd()?;
            let st = self.stack.stat(old, &*from)?;
            metadata::copy(&self.stack, (old, layer), &*from, to, &st)
        };
        copy(&root, &upper, old)?;
        // In the new stack the init layer's directories lie above those of the frozen one.
        for (ours, init) in shared {
            copy(&ours, &*init.fd()?, init.layer())?;
        }
        let nodes = self.nodes();
        self.leave_index(&nodes)?;
        before()?;
        self.stack.freeze(upper, work)?;
        self.settle_nodes(&nodes, old);
        if let Some(quota) = self.quota()
            && let Err(e) = quota.restart(&self.stack)
        {
            // It is frozen all the same; what the old upper held goes on to count.
            tracing::warn!("the new upper cannot be counted: {e}");
        }
        Ok(())
    }

    /// Goes on without the index: all names of hardlinks are in the upper now, and in a layer without an index one more
    /// would count. This comes before the freezing is recorded; after a crash or a refusal in between they are hardlinks
    /// like any others in the upper.
    fn leave_index(&self, nodes: &[Arc<Node>]) -> Result<()> {
        for node in nodes.iter().filter(|node| node.with(|s| s.indexed.is_some())) {
            node.update(|s| s.indexed = None);
        }
        self.stack.work(self.upper())?.clear_index()
    }

    /// Tells the nodes that layer `old` was frozen.
    fn settle_nodes(&self, nodes: &[Arc<Node>], old: LayerId) {
        for node in nodes.iter().filter(|node| node.layer() == old && node.ino != super::ROOT) {
            if node.with(|s| s.pinned.is_some()) {
                // What has no name is in no layer: it goes on as it is.
                node.relocate(self.upper(), |_| ());
                continue;
            }
            if node.with(|s| s.redirect.is_some()) {
                // What is below has the name that is seen.
                node.update(|s| s.redirect = None);
            }
            if node.kind == FileType::RegularFile {
                node.io().freeze();
            }
        }
        if let Some(top) = self.stack.roots().next() {
            self.root.relocate(self.upper(), |s| {
                s.parts = s.parts.with_top(top.clone());
                s.id = top.id();
            });
        }
    }

    /// The directories that both the upper and the init layer have.
    fn shared_with_init(&self, root: &Arc<Dir>) -> std::result::Result<Vec<Both>, Refused> {
        let Some(init) = self.stack.roots().find(|r| self.stack.role(r.layer()) == Role::Init) else {
            return Ok(Vec::new());
        };
        let mut shared = vec![(root.clone(), init.clone())];
        let mut at = 0;
        while let Some((upper, init)) = shared.get(at).cloned() {
            at += 1;
            let mut names = Vec::new();
            file::list(init.fd()?, |name, _, kind| {
                names.push((name.to_owned(), kind));
                Ok(())
            })?;
            for (name, kind) in names {
                let path = || init.path().iter().map(|n| &**n).chain([name.as_os_str()]).collect::<PathBuf>();
                match file::stat_at(upper.fd()?, &name) {
                    Err(Errno::NOENT) => continue,
                    Err(e) => return Err(e.into()),
                    Ok(st) if st.is_dir() && kind == FileType::Directory => {}
                    Ok(_) => return Err(Refused::Hides(path())),
                }
                let (below, _) = Dir::open_below(&upper, &name)?;
                let marks = marks::read(below.fd()?, self.stack.namespace())?;
                if marks.opaque || marks.redirect.is_some() {
                    return Err(Refused::Hides(path()));
                }
                shared.push((below, Dir::open_below(&init, &name)?.0));
            }
        }
        Ok(shared)
    }
}

/// The path of an object from the root; `None` when it has no name.
fn path_of(node: &Node) -> Option<PathBuf> {
    let mut names: Vec<Arc<OsStr>> = Vec::new();
    let mut next = node.any_link()?;
    loop {
        names.push(next.name);
        match next.parent.any_link() {
            Some(link) => next = link,
            None if next.parent.ino == super::ROOT => break,
            None => return None,
        }
    }
    Some(names.iter().rev().map(|name| &**name).collect())
}
