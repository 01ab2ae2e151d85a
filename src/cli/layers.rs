//! Which layers a command is about: those of a mount, or those that its options name.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use super::layer_list::{Lowers, split_layers};
use crate::config::{LayerPaths, Options};
use crate::error::{MountError, Outcome};

/// Names an upper and the layers below it.
#[derive(Debug, clap::Args)]
pub struct UpperArgs {
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
    /// The layers as the options name them; `None` without options.
    ///
    /// # Errors
    /// A list of lowers that cannot be read.
    pub fn named(&self) -> Outcome<Option<(LayerPaths, Options)>> {
        let (Some(upper), Some(lower)) = (&self.upper, &self.lower) else { return Ok(None) };
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
        Ok(Some((layers, options)))
    }
}

/// Where a mount of this upper keeps its work directory unless told otherwise, if it is there.
fn default_work(upper: &Path) -> Option<PathBuf> {
    let real = upper.canonicalize().ok()?;
    let mut hidden = OsString::from(".");
    hidden.push(real.file_name()?);
    hidden.push(".work");
    Some(real.parent()?.join(hidden)).filter(|work| work.is_dir())
}
