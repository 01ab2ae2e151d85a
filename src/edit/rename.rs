//! Names moved.

use std::ffi::OsStr;

use rustix::fs::RenameFlags;

use crate::copy_up::{self, Content};
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
        (Some(object), Target::Whiteout) => {
            // A directory cannot replace a whiteout: the two change places.
            from.dir.rename_dir(from.name, object, to_dir, to_name, RenameFlags::EXCHANGE)?;
            return if whiteout { Ok(()) } else { from.dir.unlink(from.name) };
        }
        (Some(object), Target::Dir) => {
            clear(stack, to_dir, to_name)?;
            from.dir.rename_dir(from.name, object, to_dir, to_name, flags)?;
        }
        (Some(object), _) => from.dir.rename_dir(from.name, object, to_dir, to_name, flags)?,
        (None, _) if whiteout && !at_once => {
            // Both names for a moment rather than the old object back for a moment.
            let temp = work.temp_name();
            let fd = file::open_path(from.dir.fd()?, from.name)?;
            work.staging().link(&fd, &temp)?;
            work.staging().rename(&temp, to_dir, to_name, RenameFlags::empty()).inspect_err(|_| {
                work.purge(&temp);
            })?;
            return super::remove::remove(stack, from.dir, from.name, false, true);
        }
        (None, _) => from.dir.rename(from.name, to_dir, to_name, flags)?,
    }
    if whiteout && !at_once { work.new_whiteout(from.dir, from.name) } else { Ok(()) }
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
/// that it looks empty at any instant.
fn clear(stack: &Stack, dir: &Writable, name: &OsStr) -> Result<()> {
    let old = file::open_dir(dir.fd()?, name)?;
    let mut empty = true;
    file::list(&old, |_, _, _| {
        empty = false;
        Ok(())
    })?;
    if empty {
        return Ok(());
    }
    let layer = dir.dir().layer();
    let st = stack.stat(layer, &old)?;
    let staged =
        copy_up::stage(stack, (layer, layer), std::os::fd::AsFd::as_fd(&old), &st, Content::Empty, None)?;
    staged.mark(Mark::Opaque, b"y")?;
    staged.swap(dir, name)
}
