//! Names moved.

use std::ffi::OsStr;
use std::os::fd::AsFd;

use rustix::fs::RenameFlags;

use crate::copy_up::{self, Content, Staged};
use crate::error::Result;
use crate::format::names::Mark;
use crate::layer::stack::Stack;
use crate::layer::upper::Writable;
use crate::sys::file;

/// A name in a writable directory, and the object behind it.
#[derive(Debug, Clone, Copy)]
pub struct Side<'a> {
    /// The directory.
    pub dir: &'a Writable,
    /// The name.
    pub name: &'a OsStr,
    /// The object, when it is a directory.
    pub object: Option<&'a Writable>,
}

/// What has the target name in the target's layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Nothing.
    Free,
    /// A whiteout.
    Whiteout,
    /// Anything but a directory.
    File,
    /// A directory, empty but for whiteouts.
    Dir,
}

/// Renames `from` to `to_name` in `to_dir`, replacing what is there; with `whiteout`, leaves one in
/// the old place.
///
/// # Errors
/// Those of rename(2); EXDEV between layers on different mounts.
pub fn rename(
    stack: &Stack,
    from: Side<'_>,
    to_dir: &Writable,
    to_name: &OsStr,
    target: Target,
    whiteout: bool,
) -> Result<()> {
    let work = stack.work(from.dir.dir().layer())?;
    if whiteout {
        work.allow_whiteouts(from.dir)?;
    }
    let at_once = whiteout && work.abilities().rename_whiteout;
    let flags = if at_once { RenameFlags::WHITEOUT } else { RenameFlags::empty() };
    match (from.object, target) {
        // A directory cannot replace a whiteout: the two change places.
        (Some(_), Target::Whiteout) => change_places(stack, from, to_dir, to_name, whiteout),
        // As for a file where no whiteout can be left behind in the same step.
        (None, Target::Whiteout) if whiteout && !at_once => {
            change_places(stack, from, to_dir, to_name, whiteout)
        }
        (_, Target::Free) if whiteout && !at_once => {
            work.new_whiteout(to_dir, to_name)?;
            change_places(stack, from, to_dir, to_name, whiteout).inspect_err(|_| {
                left(to_dir, to_name, to_dir.unlink(to_name));
            })
        }
        (Some(object), Target::Dir) => {
            let cleared = clear(stack, to_dir, to_name)?;
            let renamed = if whiteout && !at_once {
                over_dir(stack, from, object, to_dir, to_name)
            } else {
                from.dir.rename_dir(from.name, object, to_dir, to_name, flags)
            };
            renamed.inspect_err(|_| {
                if let Some(cleared) = &cleared {
                    left(to_dir, to_name, cleared.swap(to_dir, to_name));
                }
            })
        }
        (Some(object), _) => from.dir.rename_dir(from.name, object, to_dir, to_name, flags),
        (None, _) if whiteout && !at_once => over_file(stack, from, to_dir, to_name),
        (None, _) => from.dir.rename(from.name, to_dir, to_name, flags),
    }
}

/// Exchanges an object with the whiteout that has its new name; with `keep`, the whiteout stays in the old place.
fn change_places(
    stack: &Stack,
    from: Side<'_>,
    to_dir: &Writable,
    to_name: &OsStr,
    keep: bool,
) -> Result<()> {
    // Also where it stays but for a moment: a crash may make that longer, and there an empty file would show.
    stack.work(from.dir.dir().layer())?.allow_whiteouts(from.dir)?;
    match from.object {
        Some(object) => from.dir.rename_dir(from.name, object, to_dir, to_name, RenameFlags::EXCHANGE)?,
        None => from.dir.rename(from.name, to_dir, to_name, RenameFlags::EXCHANGE)?,
    }
    if !keep {
        // One that hides nothing is harmless.
        left(from.dir, from.name, from.dir.unlink(from.name));
    }
    Ok(())
}

/// Renames a directory over an empty one and leaves a whiteout, where that takes two steps. Between them the empty one
/// has the old name: what is below must not come back.
fn over_dir(
    stack: &Stack,
    from: Side<'_>,
    object: &Writable,
    to_dir: &Writable,
    to_name: &OsStr,
) -> Result<()> {
    let flags = RenameFlags::EXCHANGE;
    from.dir.rename_dir(from.name, object, to_dir, to_name, flags)?;
    super::remove::remove(stack, from.dir, from.name, true, true).inspect_err(|_| {
        left(to_dir, to_name, to_dir.rename_dir(to_name, object, from.dir, from.name, flags));
    })
}

/// Renames a file over another and leaves a whiteout, where that takes two steps. Between them the file has both names,
/// rather than the old name what is below.
fn over_file(stack: &Stack, from: Side<'_>, to_dir: &Writable, to_name: &OsStr) -> Result<()> {
    let work = stack.work(from.dir.dir().layer())?;
    let staging = work.staging();
    // All that takes room comes first.
    let whiteout = work.make_whiteout()?;
    let temp = work.temp_name();
    let renamed = file::open_path(from.dir.fd()?, from.name)
        .and_then(|fd| staging.link(&fd, &temp))
        .and_then(|()| {
            staging.rename(&temp, to_dir, to_name, RenameFlags::empty()).inspect_err(|_| work.purge(&temp))
        })
        .and_then(|()| staging.rename(&whiteout, from.dir, from.name, RenameFlags::empty()));
    renamed.inspect_err(|_| work.purge(&whiteout))
}

/// Tells of what could not be put back or taken away.
fn left(dir: &Writable, name: &OsStr, result: Result<()>) {
    if let Err(e) = result {
        tracing::warn!("left in {:?} by a rename: {name:?}: {e}", dir.dir().path());
    }
}

/// Exchanges two names.
///
/// # Errors
/// Those of rename(2).
pub fn exchange(a: Side<'_>, b: Side<'_>) -> Result<()> {
    let flags = RenameFlags::EXCHANGE;
    match (a.object, b.object) {
        (Some(object), None) => a.dir.rename_dir(a.name, object, b.dir, b.name, flags),
        (None, Some(object)) => b.dir.rename_dir(b.name, object, a.dir, a.name, flags),
        (Some(x), Some(y)) => a.dir.exchange_dirs(a.name, x, b.dir, b.name, y),
        (None, None) => a.dir.rename(a.name, b.dir, b.name, flags),
    }
}

/// Makes a directory that is empty but for whiteouts really empty: an opaque one takes its place, so
/// that it looks empty at any instant. Gives what can put the old one back, and deletes it when dropped; `None` where
/// it was empty.
fn clear<'a>(stack: &'a Stack, dir: &Writable, name: &OsStr) -> Result<Option<Staged<'a>>> {
    let old = file::open_dir(dir.fd()?, name)?;
    let mut empty = true;
    file::list(&old, |_, _, _| {
        empty = false;
        Ok(())
    })?;
    if empty {
        return Ok(None);
    }
    let layer = dir.dir().layer();
    let st = stack.stat(layer, &old)?;
    let staged = copy_up::stage(stack, (layer, layer), old.as_fd(), &st, Content::Empty, None)?;
    staged.mark(Mark::Opaque, b"y")?;
    staged.swap(dir, name)?;
    Ok(Some(staged))
}
