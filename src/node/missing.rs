//! Names that were just found missing. A program that makes a file asks for the name first, and is told that it is
//! not there: the creation that follows need not ask the layers again.

use std::ffi::OsStr;

use parking_lot::Mutex;

use crate::layer::dir::LayerId;

/// So many directories are remembered, the last name of each.
const SLOTS: usize = 64;

#[derive(Debug)]
struct Entry {
    parent: u64,
    name: Box<OsStr>,
    whiteout: Option<LayerId>,
}

/// What was last found missing, by directory.
#[derive(Debug)]
pub struct Missing {
    slots: [Mutex<Option<Entry>>; SLOTS],
}

impl Default for Missing {
    fn default() -> Self {
        Self { slots: [const { Mutex::new(None) }; SLOTS] }
    }
}

impl Missing {
    fn slot(&self, parent: u64) -> &Mutex<Option<Entry>> {
        &self.slots[parent as usize % SLOTS]
    }

    /// Records that `name` is not in directory `parent`, because of a whiteout in layer `whiteout` if there is one.
    /// The directory's names must be locked.
    pub fn note(&self, parent: u64, name: &OsStr, whiteout: Option<LayerId>) {
        let entry = Entry { parent, name: name.into(), whiteout };
        let old = self.slot(parent).lock().replace(entry);
        drop(old);
    }

    /// Forgets what is recorded of directory `parent`, whose names are locked to be changed. If it is that `name` is
    /// missing, gives the layer of the whiteout.
    pub fn take(&self, parent: u64, name: &OsStr) -> Option<Option<LayerId>> {
        let entry = self.slot(parent).lock().take_if(|entry| entry.parent == parent)?;
        (*entry.name == *name).then_some(entry.whiteout)
    }

    /// Forgets what is recorded of directory `parent`.
    pub fn forget(&self, parent: u64) {
        let entry = self.slot(parent).lock().take_if(|entry| entry.parent == parent);
        drop(entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_name_is_known_until_names_change() {
        let missing = Missing::default();
        let (a, b) = (OsStr::new("a"), OsStr::new("b"));
        missing.note(5, a, Some(0));
        assert_eq!(missing.take(5 + SLOTS as u64, a), None);
        assert_eq!(missing.take(5, a), Some(Some(0)));
        assert_eq!(missing.take(5, a), None);
        missing.note(5, a, None);
        assert_eq!(missing.take(5, b), None, "another name");
        assert_eq!(missing.take(5, a), None, "forgotten with it");
        missing.note(5, a, None);
        missing.forget(5);
        assert_eq!(missing.take(5, a), None);
    }
}
