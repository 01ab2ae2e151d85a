//! What a name stands for in a merged directory.

use std::ffi::{OsStr, OsString};
use std::sync::Arc;

use rustix::fs::FileType;

use crate::error::{Errno, Result};
use crate::format::redirect::Redirect;
use crate::layer::dir::{Dir, LayerId};
use crate::layer::marks;
use crate::layer::stack::{Role, Stack};
use crate::merge::lowers::{Lowers, Parts, Row};
use crate::merge::whiteout::is_whiteout;
use crate::sys::ahead::Watch;
use crate::sys::file::{self, Stat};

/// How many absolute redirects one lookup follows: more than any stack made by renames has, few
/// enough that crafted layers cannot keep a worker busy.
const MAX_REDIRECTS: u32 = 128;

/// What a name stands for.
#[derive(Debug)]
pub enum Found {
    /// No object; `whiteout` tells the layer of the whiteout that says so, if one does.
    Nothing {
        /// The layer that holds a whiteout of the name.
        whiteout: Option<LayerId>,
    },
    /// A directory.
    Dir(DirFound),
    /// Any other object.
    Other(Other),
}

/// A directory with its parts in the layers.
#[derive(Debug)]
pub struct DirFound {
    /// Its parts, topmost first; at least one.
    pub parts: Vec<Arc<Dir>>,
    /// The topmost part.
    pub stat: Stat,
    /// Where the topmost part says that lower layers keep the rest.
    pub redirect: Option<Redirect>,
}

/// Anything but a directory.
#[derive(Debug, Clone)]
pub struct Other {
    /// The directory that holds the name.
    pub dir: Arc<Dir>,
    /// The name there, which a redirect may have changed.
    pub name: Arc<OsStr>,
    /// The object.
    pub stat: Stat,
    /// Where the data of a regular file is, when the object has only its attributes (metacopy).
    pub data: Option<Data>,
}

/// Where the data of a file is.
#[derive(Debug, Clone)]
pub struct Data {
    /// The directory, in a lower or data-only layer.
    pub dir: Arc<Dir>,
    /// The name in it.
    pub name: Arc<OsStr>,
    /// Device and inode number.
    pub id: (u64, u64),
    /// Allocated 512-byte blocks.
    pub blocks: u64,
}

impl Data {
    /// The data of a file that has it itself, or of what that one refers to.
    pub fn of(other: &Other) -> Self {
        other.data.clone().unwrap_or_else(|| Self {
            dir: other.dir.clone(),
            name: other.name.clone(),
            id: (other.stat.dev, other.stat.ino),
            blocks: other.stat.blocks,
        })
    }
}

/// Completes a regular file that has only attributes by where its data is (overlayfs.rst, "Metadata only
/// copy up" and "Data-only lower layers").
///
/// # Errors
/// EIO when the data is missing: an empty file in its place would be wrong.
fn with_data(stack: &Stack, mut other: Other, below: &[Arc<Dir>], budget: &mut u32) -> Result<Other> {
    let layer = other.dir.layer();
    let may_lack = other.stat.kind() == FileType::RegularFile
        && other.stat.size > 0
        && (!stack.is_bottom(layer) || stack.has_data_only())
        && (other.dir.impure() || (stack.has_data_only() && stack.role(layer) == Role::Lower));
    if !may_lack || !marks::is_metacopy(other.dir.fd()?, &other.name, stack.namespace())? {
        return Ok(other);
    }
    *budget = budget.checked_sub(1).ok_or(Errno::LOOP)?;
    let redirect = marks::file_redirect(other.dir.fd()?, &other.name, stack.namespace())?;
    let found = match &redirect {
        None => lookup_bounded(stack, below, None, &other.name, budget)?,
        Some(Redirect::Absolute(path)) if !stack.follows_redirects() && stack.role(layer) == Role::Lower => {
            // As to the kernel, one from a lower to a data-only layer is no way around permissions: what
            // is there is nowhere else to be seen.
            match data_only(stack, path, budget)? {
                Found::Nothing { .. } => return Err(Errno::PERM),
                found => found,
            }
        }
        Some(_) if !stack.follows_redirects() => return Err(Errno::PERM),
        Some(Redirect::Sibling(name)) => lookup_bounded(stack, below, None, name, budget)?,
        Some(Redirect::Absolute(path)) => {
            let roots: Vec<Arc<Dir>> = stack.roots().filter(|r| r.layer() > layer).cloned().collect();
            let found = walk(stack, roots, path, budget)?;
            if found.is_some() { found } else { data_only(stack, path, budget)? }
        }
    };
    let Found::Other(found) = found else { return Err(Errno::IO) };
    if found.stat.kind() != FileType::RegularFile {
        return Err(Errno::IO);
    }
    other.data = Some(Data::of(&found));
    Ok(other)
}

/// Looks a path up from merged roots.
fn walk(stack: &Stack, mut parts: Vec<Arc<Dir>>, path: &[OsString], budget: &mut u32) -> Result<Found> {
    let Some((last, ancestors)) = path.split_last() else { return Err(Errno::IO) };
    for ancestor in ancestors {
        parts = match lookup_bounded(stack, &parts, None, ancestor, budget)? {
            Found::Dir(dir) => dir.parts,
            _ => return Ok(Found::Nothing { whiteout: None }),
        };
    }
    lookup_bounded(stack, &parts, None, last, budget)
}

/// Looks a path up in the data-only layers, one after the other: they are not merged.
fn data_only(stack: &Stack, path: &[OsString], budget: &mut u32) -> Result<Found> {
    for root in stack.data_roots() {
        let found = walk(stack, vec![root.clone()], path, budget)?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(Found::Nothing { whiteout: None })
}

impl Found {
    /// The layer of the topmost entry of the name, a whiteout too.
    pub fn layer(&self) -> Option<LayerId> {
        match self {
            Self::Nothing { whiteout } => *whiteout,
            Self::Dir(d) => d.parts.first().map(|p| p.layer()),
            Self::Other(o) => Some(o.dir.layer()),
        }
    }

    /// Whether the name stands for an object.
    pub fn is_some(&self) -> bool {
        !matches!(self, Self::Nothing { .. })
    }
}

/// Looks `name` up in a merged directory.
///
/// # Errors
/// Those of the layers (EIO, ENAMETOOLONG...); EIO for a malformed redirect, ELOOP for too many, EPERM
/// for one that is not to be followed.
pub fn lookup(stack: &Stack, parts: &Parts, name: &OsStr) -> Result<Found> {
    lookup_bounded(stack, parts.dirs(), parts.lowers(), name, &mut MAX_REDIRECTS.clone())
}

/// The places where a name may be, topmost first.
struct Places<'a> {
    dirs: &'a [Arc<Dir>],
    /// The next one to ask; those that `rows` covers are not asked one by one.
    next: usize,
    covered: usize,
    rows: Option<&'a [Row]>,
    lowers: Option<&'a Lowers>,
}

/// One of the places.
struct Place<'a> {
    dir: &'a Arc<Dir>,
    /// What it is known to hold under the name: `None` for a whiteout.
    known: Option<Option<FileType>>,
    /// It is known to hold no name that hides others by its spelling.
    hides_nothing: bool,
}

impl<'a> Places<'a> {
    fn new(dirs: &'a [Arc<Dir>], lowers: Option<&'a Lowers>, name: &OsStr) -> Self {
        let covered = dirs.len() - lowers.map_or(0, Lowers::parts).min(dirs.len());
        Self { dirs, next: 0, covered, rows: lowers.map(|l| l.rows(name)), lowers }
    }

    /// From now on another name: what is known of the lowers says nothing of it.
    fn change_name(&mut self) {
        self.rows = None;
    }

    /// The directories that are known to hold a directory of the name, of those not given yet.
    fn known(&self) -> impl Iterator<Item = &'a Arc<Dir>> {
        let rows = self.rows.unwrap_or_default().iter().filter(|r| r.kind == Some(FileType::Directory));
        let (dirs, covered) = (self.dirs, self.covered);
        rows.filter_map(move |row| dirs.get(covered + usize::from(row.part)))
    }

    /// All directories below the last one given.
    fn below(&self) -> &'a [Arc<Dir>] {
        &self.dirs[self.next.min(self.dirs.len())..]
    }
}

impl<'a> Iterator for Places<'a> {
    type Item = Place<'a>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut known = None;
        if let Some(rows) = self.rows
            && self.next >= self.covered
        {
            let (row, rest) = rows.split_first()?;
            self.rows = Some(rest);
            self.next = self.covered + usize::from(row.part);
            known = Some(row.kind);
        }
        let dir = self.dirs.get(self.next)?;
        let part = self.next.checked_sub(self.covered);
        let hides_nothing = self.lowers.zip(part).is_some_and(|(l, part)| !l.hides_by_names(part));
        self.next += 1;
        Some(Place { dir, known, hides_nothing })
    }
}

fn lookup_bounded(
    stack: &Stack,
    dirs: &[Arc<Dir>],
    lowers: Option<&Lowers>,
    name: &OsStr,
    budget: &mut u32,
) -> Result<Found> {
    let mut found: Option<DirFound> = None;
    // A redirect changes the name, or name and directories, for the layers below it.
    let mut name = std::borrow::Cow::Borrowed(name);
    let mut elsewhere: Vec<Arc<Dir>>;
    let mut places = Places::new(dirs, lowers, &name);
    let mut watch = Watch::new(places.known().count());
    while let Some(Place { dir, known, hides_nothing }) = places.next() {
        let layer = dir.layer();
        if known == Some(None) {
            if found.is_some() {
                break;
            }
            return Ok(Found::Nothing { whiteout: Some(layer) });
        }
        // The last layer hides nothing.
        let hides = !stack.is_bottom(layer);
        let wh_names = stack.has_wh_names(layer);
        if stack.is_mark(layer, &name) {
            continue;
        }
        // What is known to be a directory is opened at once.
        let mut opened = match known {
            Some(Some(FileType::Directory)) => Dir::open_below(dir, &name).ok(),
            _ => None,
        };
        let st = match opened.as_ref().map_or_else(|| file::stat_at(dir.fd()?, &name), |(_, st)| Ok(*st)) {
            Ok(st) => st,
            Err(Errno::NOENT) if wh_names && hides && !hides_nothing && marks::has_wh(dir.fd()?, &name)? => {
                if found.is_some() {
                    break;
                }
                return Ok(Found::Nothing { whiteout: Some(layer) });
            }
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(e),
        };
        if !st.is_dir() {
            if found.is_some() {
                // A lower file below a directory, or a whiteout: the directory ends here.
                break;
            }
            if is_whiteout(dir, &name, &st)? {
                return Ok(Found::Nothing { whiteout: Some(layer) });
            }
            let other = Other { dir: dir.clone(), name: Arc::from(&*name), stat: st, data: None };
            return with_data(stack, other, places.below(), budget).map(Found::Other);
        }
        let part = opened.take().map_or_else(|| Dir::below(dir, &name, &st), |(part, _)| part);
        // The last layer's marks say nothing.
        let mut marks =
            if hides { marks::read(part.fd()?, stack.namespace())? } else { marks::Marks::default() };
        if marks.impure {
            part.note_impure();
        }
        // A layer with both the directory and its whiteout has replaced what is below.
        marks.opaque |= wh_names
            && hides
            && (marks::has_wh_opaque(part.fd()?)? || (!hides_nothing && marks::has_wh(dir.fd()?, &name)?));
        match &mut found {
            None => {
                found = Some(DirFound { parts: vec![part], stat: st, redirect: marks.redirect.clone() });
            }
            Some(found) => found.parts.push(part),
        }
        if marks.opaque {
            break;
        }
        match marks.redirect {
            None => watch.step(|| places.known().filter_map(|d| Some((d.fd().ok()?, &*name))).collect()),
            // Where there is nothing to look for, it leads nowhere.
            Some(Redirect::Sibling(_)) if places.below().is_empty() => {}
            Some(_) if !stack.follows_redirects() => {
                tracing::debug!(name = %name.display(), "a redirect is not followed");
                return Err(Errno::PERM);
            }
            Some(Redirect::Sibling(other)) => {
                name = other.into();
                places.change_name();
            }
            Some(Redirect::Absolute(path)) => {
                *budget = budget.checked_sub(1).ok_or(Errno::LOOP)?;
                let Some((last, ancestors)) = path.split_last() else { return Err(Errno::IO) };
                elsewhere = stack.roots().filter(|r| r.layer() > layer).cloned().collect();
                if !ancestors.is_empty() {
                    elsewhere = match walk(stack, elsewhere, ancestors, budget)? {
                        Found::Dir(dir) => dir.parts,
                        _ => Vec::new(),
                    };
                }
                name = last.clone().into();
                places = Places::new(&elsewhere, None, &name);
            }
        }
    }
    Ok(match found {
        Some(dir) => Found::Dir(dir),
        None => Found::Nothing { whiteout: None },
    })
}

/// Whether layers below `layer` show anything under `name` of the directory made of `parts`: what a
/// removal in `layer` would uncover.
pub fn hidden_below(stack: &Stack, parts: &Parts, layer: LayerId, name: &OsStr) -> Result<bool> {
    let dirs = parts.dirs();
    let from = dirs.iter().position(|p| p.layer() > layer).unwrap_or(dirs.len());
    // Only writable layers are asked about, so all lowers are below.
    let found = lookup_bounded(stack, &dirs[from..], parts.lowers(), name, &mut MAX_REDIRECTS.clone())?;
    Ok(found.is_some())
}

/// The root directory's parts: those of all layers, down to the first that is opaque.
pub fn root(stack: &Stack) -> Result<DirFound> {
    root_from(stack, stack.upper())
}

/// The root directory as the layers from `first` down make it.
///
/// # Errors
/// ENOENT when there are none; those of reading the layers.
pub fn root_from(stack: &Stack, first: LayerId) -> Result<DirFound> {
    let mut found: Option<DirFound> = None;
    for root in stack.roots().filter(|root| root.layer() >= first) {
        let mut marks = marks::read(root.fd()?, stack.namespace())?;
        marks.opaque |= stack.has_wh_names(root.layer()) && marks::has_wh_opaque(root.fd()?)?;
        if marks.impure {
            root.note_impure();
        }
        match &mut found {
            None => {
                let stat = file::stat_fd(root.fd()?)?;
                found = Some(DirFound { parts: vec![root.clone()], stat, redirect: None });
            }
            Some(found) => found.parts.push(root.clone()),
        }
        if marks.opaque {
            break;
        }
    }
    found.ok_or(Errno::NOENT)
}
