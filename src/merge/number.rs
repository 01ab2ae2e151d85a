//! Inode numbers: an object keeps the number of what it was copied up from.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::sync::Arc;

use crate::error::Result;
use crate::format::names::Mark;
use crate::format::origin::Origin;
use crate::layer::dir::Dir;
use crate::layer::marks;
use crate::layer::stack::{Role, Stack};
use crate::merge::lookup::{DirFound, Other};

/// The number of a directory: that of its topmost part below the upper, since the part in the upper
/// comes and goes; a purely upper one has its own, and keeps it when the upper is frozen and it gets a part in the
/// next one.
pub fn of_dir(stack: &Stack, dir: &DirFound) -> u64 {
    let is_lasting = |part: &&Arc<Dir>| matches!(stack.role(part.layer()), Role::Init | Role::Lower);
    // Subvolumes of a layer come to light with their directories: origins may name what is in them.
    for part in dir.parts.iter().filter(is_lasting).filter(|part| !stack.identity().knows(part.id().0)) {
        if let Ok(fd) = part.fd() {
            stack.identity().add(part.id().0, &*fd);
        }
    }
    let lasting = dir.parts.iter().find(is_lasting);
    let (dev, ino) = lasting.or(dir.parts.last()).map_or((0, 0), |p| p.id());
    stack.identity().compose(dev, ino)
}

/// The origin recorded for the entry `name` of an upper directory.
pub fn origin(stack: &Stack, dir: impl AsFd, name: &OsStr) -> Result<Option<Origin>> {
    let value = marks::of_entry(dir, name, Mark::Origin, stack.namespace())?;
    Ok(value.and_then(|v| Origin::decode(&v)))
}

/// The object's own number.
pub fn own(stack: &Stack, other: &Other) -> u64 {
    stack.identity().compose(other.stat.dev, other.stat.ino)
}
