//! Which layers a command is about: those of a mount, or those that its options name.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::layer_list::{Lowers, split_layers, work_name};
use super::umount;
use crate::config::{LayerPaths, Options};
use crate::error::{MountError, Outcome};
use crate::fuse::mounts;
use crate::inspect::state::{self, MountState, Recorded};

/// Names an upper and the layers below it.
#[derive(Debug, clap::Args)]
pub struct UpperArgs {
    /// Where the tree is mounted
    #[arg(value_name = "MOUNTPOINT", required_unless_present = "upper", conflicts_with = "upper")]
    pub mountpoint: Option<PathBuf>,

    /// Upper layer
    #[arg(long, value_name = "DIR", requires = "lower")]
    pub upper: Option<PathBuf>,

    /// Lower layers below it, topmost first, as for mount
    #[arg(long, value_name = "LOWER[:LOWER...]", requires = "upper")]
    pub lower: Option<OsString>,

    /// Init layer between the two; what it has does not count
    #[arg(long, value_name = "DIR", requires = "upper")]
    pub init: Option<PathBuf>,

    /// Work directory of the upper layer, where hardlinks are recorded [default: .NAME.work beside it]
    #[arg(long, value_name = "DIR", requires = "upper")]
    pub work: Option<PathBuf>,

    /// Redirects and the like are in user.overlay. attributes (default: root takes trusted.overlay.)
    #[arg(long, requires = "upper")]
    pub userxattr: bool,
}

impl UpperArgs {
    /// The layers of the mount, or as the options name them.
    ///
    /// # Errors
    /// No mount of ours, or one without an upper; a list of lowers that cannot be read.
    pub fn find(&self) -> Outcome<(LayerPaths, Options)> {
        let (upper, lower) = match (&self.upper, &self.lower, &self.mountpoint) {
            (Some(upper), Some(lower), _) => (upper, lower),
            (_, _, Some(mountpoint)) => return of_mount(mountpoint),
            _ => {
                let reason = "is missing; name a mount, or layers by --upper and --lower";
                return Err(MountError::option("MOUNTPOINT", reason));
            }
        };
        let Lowers { merged: lowers, data } = split_layers(lower)?;
        let work = self.work.clone().or_else(|| default_work(upper));
        if let Some(work) = &self.work
            && !work.is_dir()
        {
            return Err(MountError::path("work directory", work, "does not exist; correct the path"));
        }
        let layers = LayerPaths {
            lowers,
            data,
            init: self.init.clone(),
            upper: Some(upper.clone()),
            work,
            init_work: None,
        };
        let options = Options { userxattr: self.userxattr.then_some(true), ..Options::default() };
        Ok((layers, options))
    }
}

/// The state of the mount at a path.
///
/// # Errors
/// No mount of ours, or one that has left no word of its layers.
pub fn state_of(mountpoint: &Path) -> Outcome<(Recorded, MountState)> {
    let at = umount::find(mountpoint)?;
    let mount = mounts::top_at(&at).ok().flatten();
    mount.and_then(|mount| state::at(&at, &mount)).ok_or_else(|| {
        let reason = "has a mount that is not recorded for this user; ask as the user who mounted it, or name the \
                      layers by options";
        MountError::path("mount point", mountpoint, reason)
    })
}

/// Refuses to read the layers that another user's record names: root would read for him what he may not.
///
/// # Errors
/// A mount of another user.
pub fn refuse_foreign(recorded: &Recorded, mountpoint: &Path) -> Outcome<()> {
    if !recorded.is_foreign() {
        return Ok(());
    }
    let reason = "is another user's mount, whose word for what its layers are is not taken; ask as that user, or name \
                  the layers by options";
    Err(MountError::path("mount point", mountpoint, reason))
}

/// The layers of a mount that has an upper, and how to read them.
///
/// # Errors
/// Those of [`state_of`]; a mount without an upper.
pub fn of_mount(mountpoint: &Path) -> Outcome<(LayerPaths, Options)> {
    let (recorded, state) = state_of(mountpoint)?;
    refuse_foreign(&recorded, mountpoint)?;
    let layers = state.layers();
    if layers.upper.is_none() {
        return Err(MountError::path(
            "mount point",
            mountpoint,
            "has no upper layer, so nothing can have changed",
        ));
    }
    Ok((layers, state.reading()))
}

/// Where a mount of this upper keeps its work directory unless told otherwise, if it is there.
pub fn default_work(upper: &Path) -> Option<PathBuf> {
    let real = upper.canonicalize().ok()?;
    Some(real.parent()?.join(work_name(real.file_name()?))).filter(|work| work.is_dir())
}
