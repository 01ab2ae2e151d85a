//! New names.

use std::ffi::OsStr;

use rustix::fs::RenameFlags;

use crate::error::Result;
use crate::format::names::Mark;
use crate::layer::dir::LayerId;
use crate::layer::stack::Stack;
use crate::layer::upper::Writable;

/// Where a new name goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// The layer.
    pub layer: LayerId,
    /// A whiteout of that layer has the name.
    pub whiteout: bool,
}

/// Where a new name goes that has a whiteout in layer `whiteout`, if any: a name that was deleted in
/// the init layer belongs to the init layer still; all others go to the upper.
pub fn slot(stack: &Stack, whiteout: Option<LayerId>) -> Slot {
    match whiteout {
        Some(layer) if stack.in_place(layer) => Slot { layer, whiteout: true },
        _ => Slot { layer: stack.upper(), whiteout: false },
    }
}

/// Makes a new object `name` in `dir` by `make`, which is given a directory and a name to make it
/// under: `dir` itself, or, when a whiteout must give way in the same step or `make` itself takes `several` steps, a
/// place to prepare it that inherits like `top`, the topmost part of the directory: what is made shows that it was made
/// there, also when it goes to the init layer.
///
/// # Errors
/// Those of `make`; EEXIST when something else has the name.
pub fn place<T>(
    stack: &Stack,
    (dir, top): (&Writable, &Writable),
    slot: Slot,
    name: &OsStr,
    (is_dir, several): (bool, bool),
    make: impl FnOnce(&Writable, &OsStr) -> Result<T>,
) -> Result<T> {
    if !slot.whiteout && !several {
        return make(dir, name);
    }
    let work = stack.work(slot.layer)?;
    let nursery = work.nursery(top)?;
    let made = make(nursery.dir(), name)?;
    if !slot.whiteout {
        nursery.dir().rename(name, dir, name, RenameFlags::NOREPLACE)?;
    } else if is_dir {
        // What the whiteout hid must not show through.
        nursery.dir().set_mark(name, Mark::Opaque, work.abilities().namespace, b"y")?;
        nursery.dir().rename(name, dir, name, RenameFlags::EXCHANGE)?;
    } else {
        nursery.dir().rename(name, dir, name, RenameFlags::empty())?;
    }
    Ok(made)
}
