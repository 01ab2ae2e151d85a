//! The walk over the upper.

use std::ffi::{OsStr, OsString};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use rustix::fs::FileType;

use super::finding::quoted;
use super::origins::Target as Leads;
use super::{Class, Context, NAMESPACES, Place, remove_opaque};
use crate::error::{Errno, Result};
use crate::format::names::{self, Mark, Namespace};
use crate::format::origin::Origin;
use crate::format::redirect::Redirect;
use crate::layer::dir::Dir;
use crate::layer::marks;
use crate::layer::stack::UPPER;
use crate::layer::upper::Writable;
use crate::merge::lookup::{Found, hidden_below, lookup, root};
use crate::merge::lowers::Parts;
use crate::sys::file;
use crate::sys::xattr::{self, Target};

/// Entries between two reports of progress.
const STEP: u64 = 1000;

/// The marks that a check looks at.
const MARKS: [Mark; 7] = [
    Mark::Opaque,
    Mark::Redirect,
    Mark::Origin,
    Mark::Impure,
    Mark::Whiteout,
    Mark::Metacopy,
    Mark::PlainNames,
];

/// A directory on the way down.
struct Frame {
    path_len: usize,
    parts: Parts,
    dir: Arc<Dir>,
    /// The same directory, to be changed.
    here: Writable,
    subdirs: Vec<OsString>,
    marks: DirMarks,
    /// Entries have marks that are looked for in impure directories alone.
    needs_impure: bool,
}

/// What the attributes of a directory say.
#[derive(Debug, Clone, Default)]
struct DirMarks {
    opaque: bool,
    xattr_whiteouts: bool,
    impure: bool,
    origin: bool,
    /// `Some(None)`: malformed.
    redirect: Option<Option<Redirect>>,
}

struct Walk<'a, 'b> {
    context: &'a mut Context<'b>,
    own: Namespace,
    path: Vec<u8>,
    frames: Vec<Frame>,
    /// No name is a whiteout by its spelling.
    plain: bool,
    devices: u64,
    attributes: u64,
    names: u64,
    foreign: u64,
    entries: u64,
}

/// Which mark an attribute is, and in which namespace.
fn mark_of(attribute: &OsStr) -> Option<(Mark, Namespace)> {
    MARKS.iter().find_map(|mark| {
        let ns = NAMESPACES.into_iter().find(|ns| mark.name(*ns) == attribute)?;
        Some((*mark, ns))
    })
}

/// Checks the upper.
///
/// # Errors
/// Those of reading its root.
pub(super) fn walk(context: &mut Context<'_>) -> Result<()> {
    let found = root(context.stack)?;
    let dir = found.parts.first().cloned().ok_or(Errno::NOENT)?;
    let own = context.stack.namespace();
    let plain = marks::has_plain_names(dir.fd()?)?;
    let here = context.rest.upper().clone();
    let mut walk = Walk {
        context,
        own,
        path: Vec::new(),
        frames: Vec::new(),
        plain,
        devices: 0,
        attributes: 0,
        names: 0,
        foreign: 0,
        entries: 0,
    };
    let marks = walk.dir_marks(&dir, &here)?;
    walk.enter(Parts::from(found.parts), dir, here, marks);
    walk.run();
    walk.finish();
    Ok(())
}

impl Walk<'_, '_> {
    fn place(&self) -> Place {
        Place::Upper(self.path.clone())
    }

    fn push(&mut self, name: &OsStr) {
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        self.path.extend_from_slice(name.as_bytes());
    }

    fn unreadable(&mut self, e: Errno) {
        // What vanishes while it is looked at belongs to a live mount.
        if !(e == Errno::NOENT && self.context.rest.is_busy()) {
            let place = self.place();
            self.context.tell(Class::Unreadable, place, format!("cannot be read: {e}"));
        }
    }

    fn run(&mut self) {
        while let Some(frame) = self.frames.last_mut() {
            let len = frame.path_len;
            let Some(name) = frame.subdirs.pop() else {
                self.leave();
                continue;
            };
            let (parts, dir, here) = (frame.parts.clone(), frame.dir.clone(), frame.here.clone());
            self.path.truncate(len);
            self.push(&name);
            if let Err(e) = self.directory(&parts, &dir, &here, &name) {
                self.unreadable(e);
            }
        }
    }

    /// Looks at a directory and goes into it.
    fn directory(&mut self, parts: &Parts, dir: &Arc<Dir>, here: &Writable, name: &OsStr) -> Result<()> {
        let (part, _) = Dir::open_below(dir, name)?;
        let below = here.below(name)?;
        let marks = self.dir_marks(&part, &below)?;
        if marks.origin
            && let Some(parent) = self.frames.last_mut()
        {
            parent.needs_impure = true;
        }
        let alone = || Parts::from(vec![part.clone()]);
        let mut merged = alone();
        let place = self.place();
        let known = self.context.lowers_known;
        match &marks.redirect {
            Some(None) => {
                let says = "the directory cannot be opened: where its lower part is cannot be read";
                self.context.tell(Class::RedirectMalformed, place.clone(), says);
            }
            redirect => match lookup(self.context.stack, parts, name) {
                Ok(Found::Dir(found)) => {
                    merged = Parts::from(found.parts);
                    if let Some(Some(to)) = redirect
                        && merged.dirs().len() == 1
                        && !marks.opaque
                        && known
                    {
                        let says = format!(
                            "leads to {}, of which no layer below has a directory: its lower content is missing",
                            told(to)
                        );
                        self.context.tell(Class::RedirectDangling, place.clone(), says);
                    }
                }
                Ok(_) => {}
                Err(e) => {
                    self.context.tell(Class::Unreadable, place.clone(), format!("cannot be looked up: {e}"));
                }
            },
        }
        if marks.opaque && known && !self.hides(parts, name) {
            self.context.mend(Class::OpaqueOfNothing, place, "no layer below has anything there", || {
                remove_opaque(&below)
            });
        }
        let top = merged.dirs().first().cloned().unwrap_or(part);
        self.enter(merged, top, below, marks);
        Ok(())
    }

    /// Whether layers below show anything that an entry of the upper hides. What cannot be read counts as
    /// something.
    fn hides(&self, parts: &Parts, name: &OsStr) -> bool {
        hidden_below(self.context.stack, parts, UPPER, name).unwrap_or(true)
    }

    /// Lists a directory: looks at all that is no directory, and notes those.
    fn enter(&mut self, parts: Parts, dir: Arc<Dir>, here: Writable, marks: DirMarks) {
        // What the mark leads to is asked for in any case; that it is missing is told once.
        dir.note_impure();
        let path_len = self.path.len();
        let mut frame = Frame { path_len, parts, dir, here, subdirs: Vec::new(), marks, needs_impure: false };
        let mut opq = false;
        let listed = frame.dir.fd().and_then(|fd| {
            file::list(&*fd, |name, _, kind| {
                self.path.truncate(path_len);
                self.push(name);
                self.entries += 1;
                if self.entries.is_multiple_of(STEP) {
                    self.context.report.looked_at(STEP);
                }
                if !self.plain && name == names::WH_OPAQUE {
                    opq = true;
                } else if let Err(e) = self.entry(&mut frame, name, kind) {
                    self.unreadable(e);
                }
                Ok(())
            })
        });
        self.path.truncate(path_len);
        if let Err(e) = listed {
            self.unreadable(e);
        }
        if opq {
            // Beside the attribute that says the same, as fuse-overlayfs has it, it does not count.
            if !frame.marks.opaque {
                self.push(OsStr::new(names::WH_OPAQUE));
                let says = "marks its directory as opaque to others, but not in an upper; convert the layer";
                let place = self.place();
                self.context.tell(Class::WhName, place, says);
                self.path.truncate(path_len);
                self.names += 1;
            }
        }
        self.frames.push(frame);
    }

    /// Ends a directory all of whose entries were looked at.
    fn leave(&mut self) {
        let Some(frame) = self.frames.pop() else { return };
        self.path.truncate(frame.path_len);
        if frame.needs_impure && !frame.marks.impure {
            let (place, own, here) = (self.place(), self.own, frame.here);
            let says = "entries were copied up, but the directory does not say so: their inode numbers in listings, or \
                        their data, are wrong";
            self.context
                .mend(Class::ImpureMissing, place, says, || here.set_own_mark(Mark::Impure, own, b"y"));
        }
    }

    fn dir_marks(&mut self, dir: &Arc<Dir>, here: &Writable) -> Result<DirMarks> {
        let fd = dir.fd()?;
        let target = Target::Fd(fd.as_fd());
        let mut marks = DirMarks::default();
        for attribute in xattr::list(target)? {
            if attribute == names::FUSE_OVERLAYFS_OPAQUE {
                marks.opaque |= xattr::get_opt(target, &attribute)?.as_deref() == Some(b"y");
            }
            let Some((mark, ns)) = mark_of(&attribute) else { continue };
            let Some(value) = xattr::get_opt(target, &attribute)? else { continue };
            let place = self.place();
            let remove = || here.remove_attribute(None, &attribute);
            match mark {
                Mark::Opaque => match &*value {
                    b"y" => marks.opaque = true,
                    b"x" => marks.xattr_whiteouts = true,
                    other => {
                        let says = format!(
                            "the opaque mark is neither y nor x but {}: it has no effect",
                            quoted(other)
                        );
                        self.context.mend(Class::OpaqueMalformed, place, says, remove);
                    }
                },
                Mark::Impure => marks.impure = true,
                Mark::Whiteout | Mark::Metacopy => {
                    let says = format!(
                        "a directory has the attribute {}, which means nothing there",
                        quoted(attribute.as_bytes())
                    );
                    self.context.mend(Class::WhiteoutMalformed, place, says, remove);
                }
                Mark::Redirect | Mark::Origin if ns != self.own => self.foreign += 1,
                Mark::Redirect => marks.redirect = Some(Redirect::decode(&value)),
                Mark::Origin => {
                    marks.origin = true;
                    self.origin(&value, remove);
                }
                Mark::PlainNames | Mark::Nlink => {}
            }
        }
        Ok(marks)
    }

    /// Looks at an entry that is no directory.
    fn entry(&mut self, frame: &mut Frame, name: &OsStr, kind: FileType) -> Result<()> {
        let fd = frame.dir.fd()?;
        let kind = match kind {
            FileType::Unknown => file::stat_at(&*fd, name)?.kind(),
            kind => kind,
        };
        // fuse-overlayfs makes whiteouts of such names, too.
        let device = kind == FileType::CharacterDevice && file::stat_at(&*fd, name)?.is_whiteout_device();
        if !self.plain && !device && names::is_wh(name) {
            self.names += 1;
            let place = self.place();
            let says =
                "a whiteout by its name to others, but a name like any other in an upper; convert the layer";
            self.context.tell(Class::WhName, place, says);
        }
        if kind == FileType::Directory {
            frame.subdirs.push(name.to_owned());
            return Ok(());
        }
        if device {
            self.devices += 1;
            self.whiteout(frame, name);
            return Ok(());
        }
        let target = Target::At(fd.as_fd(), name);
        for attribute in xattr::list(target)? {
            let Some((mark, ns)) = mark_of(&attribute) else { continue };
            let here = frame.here.clone();
            let remove = || here.remove_attribute(Some(name), &attribute);
            let place = self.place();
            match mark {
                Mark::Whiteout => {
                    if kind != FileType::RegularFile || file::stat_at(&*fd, name)?.size != 0 {
                        let says = "has the mark of a whiteout, but is no empty file: it has no effect";
                        self.context.mend(Class::WhiteoutMalformed, place, says, remove);
                    } else if frame.marks.xattr_whiteouts {
                        self.attributes += 1;
                        self.whiteout(frame, name);
                    } else {
                        self.attributes += 1;
                        let says = "a whiteout that shows as an empty file: its directory does not say that it has such";
                        self.context.tell(Class::WhiteoutUnseen, place, says);
                    }
                }
                Mark::Opaque | Mark::Impure => {
                    let says = "a mark of directories, on none";
                    self.context.mend(Class::OpaqueMalformed, place, says, remove);
                }
                Mark::Redirect | Mark::Origin | Mark::Metacopy if ns != self.own => self.foreign += 1,
                Mark::Origin => {
                    frame.needs_impure = true;
                    if let Some(value) = xattr::get_opt(target, &attribute)? {
                        self.origin(&value, remove);
                    }
                }
                Mark::Metacopy => self.metacopy(frame, name)?,
                Mark::Redirect | Mark::PlainNames | Mark::Nlink => {}
            }
        }
        Ok(())
    }

    fn metacopy(&mut self, frame: &mut Frame, name: &OsStr) -> Result<()> {
        if file::stat_at(&*frame.dir.fd()?, name)?.size == 0 {
            return Ok(());
        }
        frame.needs_impure = true;
        if !self.context.lowers_known {
            return Ok(());
        }
        let says = match lookup(self.context.stack, &frame.parts, name) {
            Ok(_) => return Ok(()),
            Err(Errno::IO) => "has only attributes, and no layer below has its data".to_owned(),
            Err(e) => format!("has only attributes, and its data cannot be found: {e}"),
        };
        let place = self.place();
        self.context.tell(Class::MetacopyWithoutData, place, says);
        Ok(())
    }

    fn whiteout(&mut self, frame: &Frame, name: &OsStr) {
        if self.context.lowers_known && !self.hides(&frame.parts, name) {
            let place = self.place();
            let here = &frame.here;
            self.context
                .mend(Class::WhiteoutOfNothing, place, "no layer below has the name", || here.unlink(name));
        }
    }

    fn origin(&mut self, value: &[u8], remove: impl FnOnce() -> Result<()>) {
        let place = self.place();
        // An empty one says that it is not known.
        if value.is_empty() {
            return;
        }
        let Some(origin) = Origin::decode(value) else {
            let says = "the origin cannot be read: the inode number is that of the copy";
            self.context.mend(Class::OriginMalformed, place, says, remove);
            return;
        };
        let says = match self.context.origins.target(&origin) {
            Leads::Gone => "was copied up from an object that is gone: its inode number may be another's",
            Leads::Elsewhere if self.context.lowers_known => {
                "was copied up from a filesystem that none of the layers is on: its inode number is that of the copy"
            }
            _ => return,
        };
        self.context.mend(Class::OriginDangling, place, says, remove);
    }

    /// What concerns the layer as a whole.
    fn finish(&mut self) {
        self.path.clear();
        self.context.report.looked_at(self.entries % STEP);
        let forms = [(self.devices, "devices"), (self.attributes, "attributes"), (self.names, "names")];
        let used: Vec<String> =
            forms.iter().filter(|(n, _)| *n > 0).map(|(n, form)| format!("{n} as {form}")).collect();
        let place = self.place();
        if used.len() > 1 {
            let says = format!("whiteouts of several forms: {}", used.join(", "));
            self.context.tell(Class::MixedWhiteouts, place.clone(), says);
        }
        if self.foreign > 0 {
            let (theirs, option) = match self.own {
                Namespace::Trusted => ("user.overlay.", "only with userxattr"),
                Namespace::User => ("trusted.overlay.", "only without userxattr"),
            };
            let says = format!(
                "{} redirects, origins or metacopies in {theirs}, which a mount follows {option}",
                self.foreign
            );
            self.context.tell(Class::ForeignMarks, place, says);
        }
    }
}

/// A redirect as a line of text may hold it.
fn told(redirect: &Redirect) -> String {
    let mut path = Vec::new();
    match redirect {
        Redirect::Sibling(name) => path.extend_from_slice(name.as_bytes()),
        Redirect::Absolute(names) => {
            for name in names {
                path.push(b'/');
                path.extend_from_slice(name.as_bytes());
            }
        }
    }
    quoted(&path)
}
