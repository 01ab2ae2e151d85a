//! The changes of a live mount, as they were at one moment.

use std::path::{Path, PathBuf};

use super::layers::state_of;
use crate::config::{LayerPaths, Options};
use crate::error::{MountError, Outcome};
use crate::inspect::control::{self, Writer};
use crate::layer::located::explain;
use crate::oci::change::{Change, Upper};
use crate::sys::place;

/// The changes of a mount.
pub struct Moment {
    /// The changes.
    pub changes: Vec<Change>,
    /// The files that were open for writing.
    pub writers: Vec<Writer>,
    /// Nothing changed by way of the mount while they were looked for.
    pub held: bool,
}

/// Writes out what the kernel's cache for the mount holds, and looks for the changes while the mount changes nothing.
///
/// # Errors
/// A mount that does not answer, layers that cannot be read.
pub fn changes(mountpoint: &Path, layers: &LayerPaths, options: &Options) -> Outcome<Moment> {
    let (recorded, state) = state_of(mountpoint)?;
    write_out(&PathBuf::from(&state.mountpoint))?;
    let upper = Upper::open(layers, options)?;
    let held = control::hold(&recorded.socket());
    let changes = upper.changes()?;
    let (writers, held) = match held {
        Ok(mut held) => {
            let writers = std::mem::take(&mut held.writers);
            (writers, held.release())
        }
        Err(e) => {
            tracing::debug!("the mount is not held: {e}");
            (Vec::new(), false)
        }
    };
    Ok(Moment { changes, writers, held })
}

/// Brings what programs have written to the layers.
pub fn write_out(mountpoint: &Path) -> Outcome<()> {
    let complain = |e| explain("mount point", mountpoint, e);
    let root = place::open_named_dir(mountpoint).map_err(complain)?;
    rustix::fs::syncfs(root).map_err(|e| {
        MountError::path("mount point", mountpoint, format!("has data that cannot be written: {e}"))
    })
}

impl Moment {
    /// Tells the user what may not be of that moment.
    pub fn tell(&self) {
        if !self.held {
            super::say("the mount could not be held still: the archive may show several moments");
        }
        tell_writers(&self.writers);
    }
}

/// Names the files that are open for writing.
pub fn tell_writers(writers: &[Writer]) {
    for writer in writers {
        super::say(&format!("open for writing: {}{}", shown(writer), how(writer)));
    }
}

/// The path of a file as it is seen in the mount.
pub fn shown(writer: &Writer) -> String {
    Path::new("/").join(PathBuf::from(&writer.path)).display().to_string()
}

/// What is special about the way it is open.
pub fn how(writer: &Writer) -> &'static str {
    if writer.mapped { " (mapped)" } else { "" }
}
