//! The work directory: leftovers, the index of hardlinks, counts of removed names.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{FileType, RenameFlags};

use super::links::{self, Entry, Gone, Links};
use super::origins::Target as Leads;
use super::{Class, Context, Place};
use crate::error::{Errno, Result};
use crate::format::names::{Mark, Namespace};
use crate::format::nlink::{Base, NlinkDiff};
use crate::format::origin::Origin;
use crate::layer::upper::Writable;
use crate::layer::work::{leftovers, remove_leftover};
use crate::sys::cred::Caller;
use crate::sys::file;
use crate::sys::xattr::{self, Target};

/// Checks the work directory. The upper was checked before.
pub(super) fn check(context: &mut Context<'_>) -> Result<()> {
    let rest = context.rest;
    let Some(work) = rest.work() else { return Ok(()) };
    if rest.is_volatile()? {
        let says = "the last mount was volatile, so that a crash may have left files empty or torn; if there was none \
                    since, remove this directory";
        context.tell(Class::Volatile, Place::Work(b"work/incompat/volatile".to_vec()), says);
    }
    if let Some(staging) = &work.staging {
        check_leftovers(context, staging)?;
    }
    let mut links = Links::default();
    if let Some(index) = &work.index {
        read_index(context, index, &mut links)?;
    }
    if let Some(gone) = &work.gone {
        read_gone(context, gone, &mut links)?;
    }
    if links.is_empty() {
        return Ok(());
    }
    if context.lowers_known {
        links::count(context, &mut links);
    }
    if let Some(index) = &work.index {
        for entry in std::mem::take(&mut links.entries) {
            check_entry(context, index, &links, &entry);
        }
    }
    if let Some(gone) = &work.gone {
        for record in &links.gone {
            check_gone(context, gone, &links, record);
        }
    }
    Ok(())
}

fn place(dir: &str, name: &OsStr) -> Place {
    Place::Work([dir.as_bytes(), b"/", name.as_bytes()].concat())
}

fn check_leftovers(context: &mut Context<'_>, staging: &Writable) -> Result<()> {
    let own = context.stack.namespace();
    for name in leftovers(staging)? {
        let at = place("work", &name);
        let fd = staging.fd()?;
        let copy = xattr::get_opt(Target::At(fd.as_fd(), &name), Mark::Origin.name(own))?.is_some();
        let spare = file::stat_at(&*fd, &name)?.is_whiteout_device();
        let (class, says) = if spare {
            (Class::SpareWhiteout, "kept by the last mount to make whiteouts from")
        } else if copy {
            (Class::HalfCopy, "a copy-up that was not finished; the original shows")
        } else {
            (Class::Leftover, "left by a crash; nothing refers to it")
        };
        context.mend(class, at, says, || remove_leftover(staging, &name));
    }
    Ok(())
}

/// The origin that a name in the index or among the counts stands for.
fn origin_of(name: &OsStr) -> Option<Origin> {
    Origin::decode(&hex::decode(name.as_bytes()).ok()?)
}

fn read_index(context: &mut Context<'_>, index: &Writable, links: &mut Links) -> Result<()> {
    let own = context.stack.namespace();
    let fd = index.fd()?;
    file::list(&*fd, |name, _, _| {
        let stat = file::stat_at(&*fd, name)?;
        // These serve NFS export in the kernel's overlayfs. What has another name is under construction there.
        if stat.is_dir() || stat.is_whiteout_device() || name.as_bytes().starts_with(b"#") {
            return Ok(());
        }
        let at = || place("index", name);
        let Some(origin) = origin_of(name) else {
            context.tell(Class::IndexMismatch, at(), "the name is that of no origin: nothing leads to it");
            return Ok(());
        };
        let target = Target::At(fd.as_fd(), name);
        let marked = xattr::get_opt(target, Mark::Origin.name(own))?;
        if marked.is_some_and(|m| Origin::decode(&m).is_some_and(|m| m != origin)) {
            context.tell(Class::IndexMismatch, at(), "was copied up from another file than its name says");
            return Ok(());
        }
        let value = xattr::get_opt(target, Mark::Nlink.name(own))?;
        let diff = value.as_deref().map(NlinkDiff::decode);
        let lower = context.origins.id(&origin);
        links.add_entry(Entry {
            name: name.into(),
            origin,
            upper: (stat.dev, stat.ino),
            lower,
            nlink: stat.nlink,
            diff,
        });
        Ok(())
    })
}

fn check_entry(context: &mut Context<'_>, index: &Writable, links: &Links, entry: &Entry) {
    let own = context.stack.namespace();
    let at = place("index", &entry.name);
    let upper_names = i64::from(entry.nlink) - 1;
    let target = context.origins.target(&entry.origin);
    if matches!(target, Leads::Gone) {
        let says = "the file that it was copied up from is gone: nothing leads to it";
        if upper_names > 0 {
            // The data has other names.
            context.mend(Class::IndexStale, at, says, || index.unlink(&entry.name));
        } else {
            context.tell(Class::IndexStale, at, format!("{says}, and it is the last name of its data"));
        }
        return;
    }
    let lower_names = match target {
        Leads::Object(stat) => Some(i64::from(stat.nlink)),
        _ => None,
    };
    let seen = links.seen(entry);
    let recorded = match entry.diff {
        None => Some(upper_names),
        Some(Some(NlinkDiff { base: Base::Upper, diff })) => Some(i64::from(entry.nlink) + diff),
        Some(Some(NlinkDiff { base: Base::Lower, diff })) => lower_names.map(|n| n + diff),
        Some(Some(NlinkDiff { base: Base::Zero, diff })) => Some(diff),
        Some(None) => {
            let count = seen.unwrap_or(upper_names).max(upper_names);
            let says = "how many names the file has cannot be read";
            context.mend(Class::NlinkMalformed, at, says, || store(index, entry, own, count));
            return;
        }
    };
    let Some(recorded) = recorded else { return };
    if recorded <= 0 && upper_names <= 0 && seen.is_none_or(|n| n == 0) {
        let says = "all names of the file are removed";
        context.mend(Class::IndexStale, at, says, || index.unlink(&entry.name));
        return;
    }
    // Names that other layers hide count as well, so more may be recorded than show.
    let least = seen.unwrap_or(0).max(upper_names);
    let most = lower_names.map(|n| (n + upper_names).max(least));
    if recorded < least || most.is_some_and(|most| recorded > most) {
        let right = most.map_or(least, |most| recorded.clamp(least, most));
        let says = format!("the file shows {recorded} names, but has {least} to {}", most.unwrap_or(least));
        context.mend(Class::NlinkWrong, at, says, || store(index, entry, own, right));
    }
}

fn store(index: &Writable, entry: &Entry, own: Namespace, count: i64) -> Result<()> {
    // Leftovers that were names of it may be gone by now.
    let nlink = file::stat_at(&*index.fd()?, &entry.name)?.nlink;
    let value = NlinkDiff { base: Base::Upper, diff: count - i64::from(nlink) }.encode();
    index.set_mark(&entry.name, Mark::Nlink, own, &value)
}

fn read_gone(context: &mut Context<'_>, gone: &Writable, links: &mut Links) -> Result<()> {
    let fd = gone.fd()?;
    file::list(&*fd, |name, _, kind| {
        let at = place("gone", name);
        let kind = if kind == FileType::Unknown { file::stat_at(&*fd, name)?.kind() } else { kind };
        let count = match kind {
            FileType::Symlink => match file::readlink(&*fd, name) {
                Ok(count) => count.to_str().and_then(|c| c.parse::<u32>().ok()).filter(|n| *n > 0),
                Err(Errno::NOENT) => return Ok(()),
                Err(e) => return Err(e),
            },
            _ => None,
        };
        let (Some(count), Some(origin)) = (count, origin_of(name)) else {
            if kind == FileType::Directory {
                context.tell(Class::GoneWrong, at, "no count of removed names, but a directory");
            } else {
                let says = "how many names of a lower file are removed cannot be read: all of them count";
                context.mend(Class::GoneWrong, at, says, || gone.unlink(name));
            }
            return Ok(());
        };
        let lower = context.origins.id(&origin);
        links.add_gone(Gone { name: name.into(), origin, lower, count });
        Ok(())
    })
}

fn check_gone(context: &mut Context<'_>, gone: &Writable, links: &Links, record: &Gone) {
    let at = place("gone", &record.name);
    if links.is_indexed(&record.name) {
        let says = "the file was copied up since, and has a count of its own";
        context.mend(Class::GoneStale, at, says, || gone.unlink(&record.name));
        return;
    }
    let stat = match context.origins.target(&record.origin) {
        Leads::Object(stat) => stat,
        Leads::Gone => {
            context.mend(Class::GoneStale, at, "the lower file is gone", || gone.unlink(&record.name));
            return;
        }
        _ => return,
    };
    let most = stat.nlink.saturating_sub(links.seen_of_lower(record.lower));
    if record.count > most {
        let says = format!("{} names are recorded as removed, but at most {most} can be", record.count);
        let rest = context.rest;
        context.mend(Class::GoneWrong, at, says, || {
            if most == 0 {
                return gone.unlink(&record.name);
            }
            // Made among the things in the making and put in place in one step.
            let staging = rest.work().and_then(|w| w.staging.as_ref()).ok_or(Errno::NOENT)?;
            let temp = OsStr::new("#check");
            remove_leftover(staging, temp).or_else(|e| if e == Errno::NOENT { Ok(()) } else { Err(e) })?;
            staging.symlink(temp, OsStr::new(&most.to_string()), &Caller::daemon())?;
            staging.rename(temp, gone, &record.name, RenameFlags::empty())
        });
    }
}
