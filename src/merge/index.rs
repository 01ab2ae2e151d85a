//! Hardlinks across copy-up. A lower file with several names is copied up once; its copy has a name in
//! the index directory made from the origin's file handle (overlayfs.rst, "Index feature"), by which
//! the names that are still lower find it.

use std::ffi::OsStr;

use rustix::fs::{FileType, RenameFlags};

use crate::error::{Errno, Result};
use crate::format::names::Mark;
use crate::format::nlink::{Base, NlinkDiff};
use crate::format::origin::Origin;
use crate::layer::dir::Dir;
use crate::layer::marks;
use crate::layer::stack::Stack;
use crate::sys::cred::Caller;
use crate::sys::file::{self, Stat};
use crate::sys::handle;

/// A copied-up hardlink.
#[derive(Debug, Clone)]
pub struct Indexed {
    /// Its name in the index directory.
    pub name: Box<OsStr>,
    /// Number of names in the union minus number of names of the upper inode (the index entry is one).
    pub diff: i64,
}

/// The origin of a lower object; `None` where its filesystem has no file handles.
pub fn origin_of(stack: &Stack, dir: &Dir, name: &OsStr) -> Result<Option<Origin>> {
    let fd = dir.fd()?;
    match handle::of(&*fd, name) {
        Ok(handle) => Ok(Some(Origin { uuid: stack.identity().uuid(dir.id().0, &*fd), handle })),
        Err(Errno::OPNOTSUPP | Errno::OVERFLOW | Errno::NOSYS | Errno::PERM) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The copy of the file of this type with this origin, if it was copied up: its index entry and state.
///
/// # Errors
/// EIO for an entry of another type, as with the kernel's overlayfs: no copy-up has made it.
pub fn find(stack: &Stack, origin: &Origin, kind: FileType) -> Result<Option<(Indexed, Stat)>> {
    let (Ok(work), Some(name)) = (stack.work(stack.upper()), origin.index_name()) else { return Ok(None) };
    let index = work.index().fd()?;
    match file::stat_at(&index, &name) {
        // Index entries that are whiteouts or directories serve NFS export, which is not for us.
        Ok(st) if !st.is_dir() && !st.is_whiteout_device() => {
            if st.kind() != kind {
                tracing::warn!(name = %name.display(), "an index entry is not of the type of its file");
                return Err(Errno::IO);
            }
            Ok(Some((Indexed { diff: diff(stack, &name)?, name: name.into() }, st)))
        }
        Ok(_) | Err(Errno::NOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// How far the number of names in the union is from the upper inode's, as recorded.
pub fn diff(stack: &Stack, name: &OsStr) -> Result<i64> {
    Ok(match recorded(stack, name)? {
        Some(NlinkDiff { base: Base::Upper, diff }) => diff,
        Some(NlinkDiff { base: Base::Zero, diff }) => from_count(stack, name, diff)?,
        // Counted from the lower inode, which is not at hand: all names but the index entry.
        Some(NlinkDiff { base: Base::Lower, .. }) | None => -1,
    })
}

fn recorded(stack: &Stack, name: &OsStr) -> Result<Option<NlinkDiff>> {
    let work = stack.work(stack.upper())?;
    let mark = marks::of_entry(work.index().fd()?, name, Mark::Nlink, work.abilities().namespace)?;
    Ok(mark.as_deref().and_then(NlinkDiff::decode))
}

/// How far a number of names is from the upper inode's.
fn from_count(stack: &Stack, name: &OsStr, count: i64) -> Result<i64> {
    let index = stack.work(stack.upper())?.index().fd()?;
    Ok(count - i64::from(file::stat_at(&index, name)?.nlink))
}

/// Whether a copy in the index has only attributes (metacopy).
pub fn lacks_data(stack: &Stack, entry: &Indexed, copy: &Stat) -> Result<bool> {
    if copy.kind() != FileType::RegularFile || copy.size == 0 {
        return Ok(false);
    }
    marks::is_metacopy(stack.work(stack.upper())?.index().fd()?, &entry.name, stack.namespace())
}

/// Records how far the number of names in the union is from the upper inode's.
pub fn store_diff(stack: &Stack, name: &OsStr, diff: i64) -> Result<()> {
    store(stack, name, NlinkDiff { base: Base::Upper, diff })
}

/// Records the number of names in the union, which stays what it is while the upper inode is given one more. To be
/// followed by [`store_diff`], or by [`count_from_upper`] when nothing came of it.
pub fn store_count(stack: &Stack, name: &OsStr, count: i64) -> Result<()> {
    store(stack, name, NlinkDiff { base: Base::Zero, diff: count })
}

/// What a crash may have left of [`store_count`] must not stay when names are taken away from both.
pub fn count_from_upper(stack: &Stack, name: &OsStr) -> Result<()> {
    match recorded(stack, name)? {
        Some(NlinkDiff { base: Base::Zero, diff }) => store_diff(stack, name, from_count(stack, name, diff)?),
        _ => Ok(()),
    }
}

fn store(stack: &Stack, name: &OsStr, value: NlinkDiff) -> Result<()> {
    let work = stack.work(stack.upper())?;
    work.index().set_mark(name, Mark::Nlink, work.abilities().namespace, &value.encode())
}

/// Drops the index entry of a file whose last name is gone.
pub fn remove(stack: &Stack, name: &OsStr) -> Result<()> {
    stack.work(stack.upper())?.index().unlink(name)
}

/// How many names of the lower file with this origin are gone from the union, while it is not copied up.
pub fn gone(stack: &Stack, origin: &Origin) -> Result<u32> {
    let (Ok(work), Some(name)) = (stack.work(stack.upper()), origin.index_name()) else { return Ok(0) };
    match file::readlink(work.gone().fd()?, &name) {
        Ok(count) => Ok(count.to_str().and_then(|c| c.parse().ok()).unwrap_or(0)),
        Err(Errno::NOENT | Errno::INVAL) => Ok(0),
        Err(e) => Err(e),
    }
}

/// Records how many names are gone; 0 removes the record. As the target of a symlink, it is written and
/// replaced in one step.
pub fn store_gone(stack: &Stack, origin: &Origin, count: u32) -> Result<()> {
    let (work, Some(name)) = (stack.work(stack.upper())?, origin.index_name()) else { return Ok(()) };
    if count == 0 {
        return match work.gone().unlink(&name) {
            Err(Errno::NOENT) => Ok(()),
            other => other,
        };
    }
    let temp = work.temp_name();
    work.staging().symlink(&temp, OsStr::new(&count.to_string()), &Caller::daemon())?;
    work.staging().rename(&temp, work.gone(), &name, RenameFlags::empty()).inspect_err(|_| work.purge(&temp))
}

/// Whether lower hardlinks of this type can be kept together: index entries need xattrs.
pub fn usable(stack: &Stack, kind: FileType) -> bool {
    stack.work(stack.upper()).is_ok_and(|w| w.abilities().marks(kind))
}
