//! What is wrong with an upper layer on disk, and how it is mended; and whiteouts from one form to another.
//!
//! A layer is walked once, entry by entry; in memory is the way down, the names of the directories that are still
//! to be visited on it, and one record for each hardlink of the index.

pub mod convert;
mod finding;
mod links;
mod origins;
mod upper;
mod work;

pub use finding::{Class, Finding, Level, Place};

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::path::Path;

use crate::config::{LayerPaths, Options};
use crate::error::{Errno, MountError, Outcome, Result};
use crate::format::names::{self, Mark, Namespace};
use crate::layer::at_rest::AtRest;
use crate::layer::look::look;
use crate::layer::stack::Stack;
use crate::layer::upper::Writable;
use crate::sys::xattr::{self, Target};
use origins::Origins;

/// Is told what is found.
pub trait Report {
    /// Something was found.
    fn found(&mut self, finding: Finding);
    /// So many entries more were looked at.
    fn looked_at(&mut self, entries: u64);
}

/// What is done about findings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Nothing.
    No,
    /// What cannot lose anything, whatever lower layers were named.
    Safe,
    /// Also marks that hide nothing are removed: right only if the lower layers are those of the mount.
    Tidy,
}

/// What a check needs to know.
#[derive(Debug)]
pub struct Check<'a> {
    /// The layers. Without lowers, what depends on them is left out.
    pub layers: &'a LayerPaths,
    /// How the marks are read.
    pub options: &'a Options,
    /// What is done.
    pub repair: Repair,
}

/// Checks an upper and its work directory. Gives whether a live mount uses them, whose work directory then was left
/// out.
///
/// # Errors
/// Layers that cannot be opened, or are in use when something is to be repaired; a root that cannot be read. What else
/// cannot be read is a finding.
pub fn run(check: &Check<'_>, report: &mut dyn Report) -> Outcome<bool> {
    let Some(upper) = &check.layers.upper else {
        return Err(MountError::option("--upper", "is missing; name the upper layer"));
    };
    let change = check.repair != Repair::No;
    let rest = AtRest::open(upper, check.layers.work.as_deref(), change)?;
    // An upper without lowers is looked at on top of an empty one.
    let nothing = tempfile::tempdir()
        .map_err(|e| MountError::System(format!("no temporary directory can be made: {e}; see TMPDIR")))?;
    let mut layers = check.layers.clone();
    let lowers_known = !layers.lowers.is_empty();
    if !lowers_known {
        layers.lowers.push(nothing.path().to_owned());
    }
    let (fd, init, mut fds) = look(&layers)?;
    fds.init = init;
    let unusable = |e| MountError::System(format!("the layers cannot be put together: {e}"));
    let stack = Stack::open_unchanged(fd, fds, check.options).map_err(unusable)?;
    if stack.roots().next().map(|r| r.id()) != Some(rest.upper().dir().id()) {
        return Err(MountError::path("upper layer", upper, "was replaced by another directory; try again"));
    }
    let origins = Origins::new(&stack).map_err(unusable)?;
    let mut context =
        Context { stack: &stack, rest: &rest, origins, lowers_known, repair: check.repair, report };
    let failed = |e| unreadable(upper, e);
    upper::walk(&mut context).map_err(failed)?;
    if !rest.is_busy() {
        work::check(&mut context).map_err(failed)?;
    }
    if change {
        rest.sync().map_err(|e| MountError::path("upper layer", upper, format!("cannot be synced: {e}")))?;
    }
    Ok(rest.is_busy())
}

fn unreadable(upper: &Path, e: Errno) -> MountError {
    let reason = match e {
        Errno::ACCESS | Errno::PERM => "may not be read by this user; run as root".to_owned(),
        e => format!("or a layer below it cannot be read: {e}"),
    };
    MountError::path("upper layer", upper, reason)
}

/// Where marks may be.
const NAMESPACES: [Namespace; 2] = [Namespace::Trusted, Namespace::User];

/// Takes all opaque marks from a directory.
fn remove_opaque(dir: &Writable) -> Result<()> {
    let attributes = NAMESPACES.map(|ns| Mark::Opaque.name(ns));
    for attribute in attributes.into_iter().chain([OsStr::new(names::FUSE_OVERLAYFS_OPAQUE)]) {
        let fd = dir.fd()?;
        // Asked for first: what cannot be seen cannot be removed either.
        if xattr::get_opt(Target::Fd(fd.as_fd()), attribute)?.is_some() {
            dir.remove_attribute(None, attribute)?;
        }
    }
    Ok(())
}

/// What all parts of a check share.
struct Context<'a> {
    stack: &'a Stack,
    rest: &'a AtRest,
    origins: Origins,
    lowers_known: bool,
    repair: Repair,
    report: &'a mut dyn Report,
}

impl Context<'_> {
    /// Tells of something that is not mended.
    fn tell(&mut self, class: Class, place: Place, says: impl Into<String>) {
        self.report.found(Finding { class, place, says: says.into(), mended: false });
    }

    /// Tells of something, and mends it when that is asked for. One step each: a crash leaves the state before it or
    /// after it.
    fn mend(
        &mut self,
        class: Class,
        place: Place,
        says: impl Into<String>,
        step: impl FnOnce() -> Result<()>,
    ) {
        let mut says = says.into();
        let wanted = match self.repair {
            Repair::No => false,
            Repair::Safe => !class.needs_tidy(),
            Repair::Tidy => true,
        };
        let mended = wanted
            && match step() {
                Ok(()) => true,
                Err(e) => {
                    says.push_str(&format!("; it cannot be mended: {e}"));
                    false
                }
            };
        self.report.found(Finding { class, place, says, mended });
    }
}
