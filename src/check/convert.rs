//! Whiteouts and opaque marks from the form of the kernel's overlayfs to that of AUFS and of image layers, and back.
//!
//! Each name is converted in steps of which every state says the same to a mount that has the layer as a lower, and
//! what was converted before is passed over. So an interrupted run harms nothing, and the next one goes on.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags, RenameFlags};

use super::{NAMESPACES, Report, remove_opaque};
use crate::error::{Errno, MountError, Outcome, Result};
use crate::format::names::{self, Mark, Namespace};
use crate::layer::at_rest::AtRest;
use crate::layer::marks;
use crate::layer::upper::Writable;
use crate::sys::cred::{self, Caller};
use crate::sys::file::{self, Stat};
use crate::sys::xattr::{self, Target};

/// Entries between two reports of progress.
const STEP: u64 = 1000;
/// Permissions of whiteouts by name, as AUFS gives them.
const WH_MODE: u32 = 0o444;

/// A form of whiteouts and opaque marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Devices 0:0, or attributes where these may not be made; opaque marks are attributes.
    Overlay,
    /// `.wh.NAME` and `.wh..wh..opq`.
    Aufs,
}

/// What was done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Converted {
    /// Whiteouts.
    pub whiteouts: u64,
    /// Opaque marks.
    pub opaque: u64,
}

/// Converts an upper, or any other layer, that no mount uses.
///
/// # Errors
/// A layer in use; a name or mark that the form has no word for, which is looked for before anything is changed;
/// what cannot be read or changed.
pub fn convert(
    upper: &Path,
    work: Option<&Path>,
    userxattr: bool,
    to: Form,
    report: &mut dyn Report,
) -> Outcome<Converted> {
    let rest = AtRest::open(upper, work, true)?;
    let own = if userxattr || !cred::is_host_admin() { Namespace::User } else { Namespace::Trusted };
    let failed = |e: Trouble| match e.reason {
        Reason::Errno(errno) => {
            MountError::path("path", absolute(&e.path), format!("cannot be converted: {errno}"))
        }
        Reason::Said(reason) => MountError::path("path", absolute(&e.path), reason),
    };
    let root = rest.upper();
    if to == Form::Aufs {
        if let Some(index) = rest.work().and_then(|w| w.index.as_ref()) {
            refuse_index(index)?;
        }
        let plain = root.fd().and_then(marks::has_plain_names).map_err(|e| failed(Trouble::new(&[], e)))?;
        walk(root, report, &mut Look { plain }).map_err(failed)?;
        for ns in NAMESPACES {
            root.remove_attribute(None, Mark::PlainNames.name(ns))
                .or_else(|e| if e == Errno::OPNOTSUPP || e == Errno::PERM { Ok(()) } else { Err(e) })
                .map_err(|e| failed(Trouble::new(&[], e)))?;
        }
        let mut change = ToAufs { done: Converted::default() };
        walk(root, report, &mut change).map_err(failed)?;
        return end(&rest, upper, change.done);
    }
    if root.fd().and_then(marks::has_plain_names).map_err(|e| failed(Trouble::new(&[], e)))? {
        // No name of it is a whiteout.
        return Ok(Converted::default());
    }
    let mut change = ToOverlay { own, done: Converted::default() };
    walk(root, report, &mut change).map_err(failed)?;
    end(&rest, upper, change.done)
}

fn end(rest: &AtRest, upper: &Path, done: Converted) -> Outcome<Converted> {
    rest.sync().map_err(|e| MountError::path("upper layer", upper, format!("cannot be synced: {e}")))?;
    Ok(done)
}

fn absolute(path: &[u8]) -> PathBuf {
    Path::new("/").join(OsStr::from_bytes(path))
}

/// Files whose lower names are found by the index would part from these.
fn refuse_index(index: &Writable) -> Outcome<()> {
    let mut first: Option<OsString> = None;
    let listed = index.fd().and_then(|fd| {
        file::list(&*fd, |name, _, kind| {
            if kind != FileType::Directory && !file::stat_at(&*fd, name)?.is_whiteout_device() {
                first.get_or_insert_with(|| name.to_owned());
            }
            Ok(())
        })
    });
    let index = || Path::new("index").join(first.as_deref().unwrap_or_default());
    match listed {
        Err(e) => Err(MountError::path("work directory", index(), format!("cannot be read: {e}"))),
        Ok(()) if first.is_some() => {
            let reason =
                "keeps hardlinks together, which this form cannot say; make a layer by unionfs commit";
            Err(MountError::path("work directory", index(), reason))
        }
        Ok(()) => Ok(()),
    }
}

/// What stopped a walk, and where.
struct Trouble {
    path: Vec<u8>,
    reason: Reason,
}

enum Reason {
    Errno(Errno),
    Said(&'static str),
}

impl Trouble {
    fn new(path: &[u8], e: Errno) -> Self {
        Self { path: path.to_vec(), reason: Reason::Errno(e) }
    }
}

impl From<Errno> for Reason {
    fn from(e: Errno) -> Self {
        Self::Errno(e)
    }
}

/// What is done on a walk.
trait Visit {
    /// A directory, before its entries. Gives whether it was changed.
    fn enter(&mut self, dir: &Writable) -> std::result::Result<bool, Reason>;
    /// An entry. Gives whether the directory was changed.
    fn entry(&mut self, dir: &Writable, name: &OsStr, kind: FileType) -> std::result::Result<bool, Reason>;
    /// A directory, after its entries and before those of its subdirectories.
    fn leave(&mut self, dir: &Writable) -> Result<()>;
}

/// Walks over a layer; a directory that is changed keeps its times.
fn walk(root: &Writable, report: &mut dyn Report, visit: &mut dyn Visit) -> std::result::Result<(), Trouble> {
    let mut left = vec![(root.clone(), Vec::new())];
    let mut entries = 0_u64;
    while let Some((dir, path)) = left.pop() {
        let failed = |reason| Trouble { path: path.clone(), reason };
        let fd = dir.fd().map_err(|e| Trouble::new(&path, e))?;
        let before: Stat = file::stat_fd(&*fd).map_err(|e| Trouble::new(&path, e))?;
        let mut changed = visit.enter(&dir).map_err(failed)?;
        let mut trouble = None;
        let listed = file::list(&*fd, |name, _, kind| {
            entries += 1;
            if entries.is_multiple_of(STEP) {
                report.looked_at(STEP);
            }
            let mut at = path.clone();
            if !at.is_empty() {
                at.push(b'/');
            }
            at.extend_from_slice(name.as_bytes());
            let mut look = || -> std::result::Result<(), Reason> {
                let kind = match kind {
                    FileType::Unknown => file::stat_at(&*fd, name)?.kind(),
                    kind => kind,
                };
                changed |= visit.entry(&dir, name, kind)?;
                if kind == FileType::Directory {
                    match dir.below(name) {
                        Ok(below) => left.push((below, at.clone())),
                        // Empty ones of AUFS's own are removed.
                        Err(Errno::NOENT) => {}
                        Err(e) => return Err(e.into()),
                    }
                }
                Ok(())
            };
            look().map_err(|reason| {
                trouble = Some(Trouble { path: at.clone(), reason });
                Errno::CANCELED
            })
        });
        // What was changed so far stays; its times are kept in any case.
        let finished = match (trouble, listed) {
            (Some(trouble), _) => Err(trouble),
            (None, Err(e)) => Err(Trouble::new(&path, e)),
            (None, Ok(())) => visit.leave(&dir).map_err(|e| Trouble::new(&path, e)),
        };
        if changed {
            dir.set_own_times(&before).map_err(|e| Trouble::new(&path, e))?;
        }
        finished?;
    }
    report.looked_at(entries % STEP);
    Ok(())
}

fn opaque(dir: &Writable) -> Result<(bool, bool)> {
    // Which namespace redirects count in makes no difference: they are refused before.
    let fd = dir.fd()?;
    let target = Target::Fd(fd.as_fd());
    let mut found = (false, false);
    for ns in NAMESPACES {
        match xattr::get_opt(target, Mark::Opaque.name(ns))?.as_deref() {
            Some(b"y") => found.0 = true,
            Some(b"x") => found.1 = true,
            _ => {}
        }
    }
    found.0 |= xattr::get_opt(target, OsStr::new(names::FUSE_OVERLAYFS_OPAQUE))?.as_deref() == Some(b"y");
    Ok(found)
}

/// Whether an entry is a whiteout in a form of overlayfs.
fn is_whiteout(dir: &Writable, name: &OsStr, kind: FileType, attributes: bool) -> Result<bool> {
    let fd = dir.fd()?;
    match kind {
        FileType::CharacterDevice => Ok(file::stat_at(&*fd, name)?.is_whiteout_device()),
        FileType::RegularFile if attributes => {
            Ok(file::stat_at(&*fd, name)?.size == 0 && marks::is_xattr_whiteout(&*fd, name)?)
        }
        _ => Ok(false),
    }
}

/// Looks for what the form of AUFS has no word for.
struct Look {
    plain: bool,
}

impl Look {
    fn refuse(target: Target<'_>, marks: &[Mark]) -> std::result::Result<(), Reason> {
        for attribute in xattr::list(target)? {
            if marks.iter().any(|m| NAMESPACES.iter().any(|ns| m.name(*ns) == attribute)) {
                return Err(Reason::Said(
                    "has a redirect or data in a lower layer, which this form cannot say; make a layer by unionfs commit",
                ));
            }
        }
        Ok(())
    }
}

impl Visit for Look {
    fn enter(&mut self, dir: &Writable) -> std::result::Result<bool, Reason> {
        Self::refuse(Target::Fd(dir.fd()?.as_fd()), &[Mark::Redirect])?;
        Ok(false)
    }

    fn entry(&mut self, dir: &Writable, name: &OsStr, kind: FileType) -> std::result::Result<bool, Reason> {
        if self.plain && names::is_wh(name) {
            return Err(Reason::Said(
                "is a name like any other, and would be a whiteout; rename it in a mount",
            ));
        }
        let attributes = opaque(dir)?.1;
        if is_whiteout(dir, name, kind, attributes)? {
            if names::wh_name(name).is_none() {
                return Err(Reason::Said("is a whiteout whose name is too long for this form"));
            }
        } else if kind == FileType::RegularFile {
            Self::refuse(Target::At(dir.fd()?.as_fd(), name), &[Mark::Metacopy])?;
        }
        Ok(false)
    }

    fn leave(&mut self, _dir: &Writable) -> Result<()> {
        Ok(())
    }
}

struct ToAufs {
    done: Converted,
}

fn make_wh(dir: &Writable, name: &OsStr) -> Result<()> {
    match dir.create(name, OFlags::WRONLY, WH_MODE, &Caller::daemon()) {
        Ok(_) | Err(Errno::EXIST) => Ok(()),
        Err(e) => Err(e),
    }
}

impl Visit for ToAufs {
    fn enter(&mut self, dir: &Writable) -> std::result::Result<bool, Reason> {
        if !opaque(dir)?.0 {
            return Ok(false);
        }
        make_wh(dir, OsStr::new(names::WH_OPAQUE))?;
        remove_opaque(dir)?;
        self.done.opaque += 1;
        Ok(true)
    }

    fn entry(&mut self, dir: &Writable, name: &OsStr, kind: FileType) -> std::result::Result<bool, Reason> {
        let attributes = opaque(dir)?.1;
        if !is_whiteout(dir, name, kind, attributes)? {
            return Ok(false);
        }
        let wh = names::wh_name(name).ok_or(Errno::NAMETOOLONG)?;
        make_wh(dir, &wh)?;
        dir.unlink(name)?;
        self.done.whiteouts += 1;
        Ok(true)
    }

    fn leave(&mut self, dir: &Writable) -> Result<()> {
        // Only now: as long as there are whiteouts by attribute, it says so.
        remove_opaque(dir)
    }
}

struct ToOverlay {
    own: Namespace,
    done: Converted,
}

impl ToOverlay {
    /// A whiteout that stands for itself, in place of the one by name.
    fn replace(&self, dir: &Writable, wh: &OsStr, name: &OsStr) -> Result<()> {
        let made = dir.mknod(name, FileType::CharacterDevice.as_raw_mode(), 0, &Caller::daemon());
        match made {
            Ok(()) => return dir.unlink(wh),
            Err(Errno::EXIST) => {}
            Err(Errno::PERM) => return self.replace_by_attribute(dir, wh, name),
            Err(e) => return Err(e),
        }
        // Beside an object of the name it says that nothing below shows; files do so by themselves, and so does
        // the device of an interrupted run.
        match dir.below(name) {
            Ok(below) => below.set_own_mark(Mark::Opaque, self.own, b"y")?,
            Err(Errno::NOTDIR) => {}
            Err(e) => return Err(e),
        }
        dir.unlink(wh)
    }

    /// Where devices may not be made, the file itself becomes the whiteout.
    fn replace_by_attribute(&self, dir: &Writable, wh: &OsStr, name: &OsStr) -> Result<()> {
        if file::stat_at(&*dir.fd()?, wh)?.size != 0 {
            return Err(Errno::PERM);
        }
        if opaque(dir)?.0 {
            // In an opaque directory there is nothing to hide.
            return dir.unlink(wh);
        }
        dir.set_own_mark(Mark::Opaque, self.own, b"x")?;
        dir.set_mark(wh, Mark::Whiteout, self.own, b"y")?;
        dir.rename(wh, dir, name, RenameFlags::NOREPLACE)
    }
}

impl Visit for ToOverlay {
    fn enter(&mut self, dir: &Writable) -> std::result::Result<bool, Reason> {
        if !marks::has_wh_opaque(&*dir.fd()?)? {
            return Ok(false);
        }
        dir.set_own_mark(Mark::Opaque, self.own, b"y")?;
        dir.unlink(OsStr::new(names::WH_OPAQUE))?;
        self.done.opaque += 1;
        Ok(true)
    }

    fn entry(&mut self, dir: &Writable, name: &OsStr, kind: FileType) -> std::result::Result<bool, Reason> {
        if !names::is_wh(name) {
            return Ok(false);
        }
        let Some(target) = names::wh_target(name) else {
            // What AUFS keeps for itself shows in a mount of the kernel. What has something in it stays.
            let removed = if kind == FileType::Directory { dir.rmdir(name) } else { remove_empty(dir, name) };
            return match removed {
                Ok(()) => Ok(true),
                Err(Errno::NOTEMPTY | Errno::NOENT) => Ok(false),
                Err(e) => Err(e.into()),
            };
        };
        if kind == FileType::Directory {
            return Err(Reason::Said("is a directory with the name of a whiteout; rename it"));
        }
        let target = OsString::from_vec(target.as_bytes().to_vec());
        self.replace(dir, name, &target)?;
        self.done.whiteouts += 1;
        Ok(true)
    }

    fn leave(&mut self, _dir: &Writable) -> Result<()> {
        Ok(())
    }
}

fn remove_empty(dir: &Writable, name: &OsStr) -> Result<()> {
    let stat = file::stat_at(&*dir.fd()?, name)?;
    if stat.kind() == FileType::RegularFile && stat.size == 0 {
        dir.unlink(name)
    } else {
        Err(Errno::NOTEMPTY)
    }
}
