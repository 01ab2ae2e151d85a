//! Opens the layers of an upper that is looked at and stays as it is.

use std::os::fd::OwnedFd;

use crate::config::LayerPaths;
use crate::error::{MountError, Outcome};
use crate::layer::claim::check_stacking;
use crate::layer::located::open;
use crate::layer::stack::LayerFds;

/// The upper, its init layer, and the layers below.
///
/// # Errors
/// A layer that is missing or overlaps with another. Nothing is locked: a mount may be using the upper.
pub fn look(layers: &LayerPaths) -> Outcome<(OwnedFd, Option<OwnedFd>, LayerFds)> {
    let without = LayerPaths { work: None, init_work: None, ..layers.clone() };
    let opened = open(&without)?;
    check_stacking(&opened.map(|o| o.at.clone()))?;
    let Some(upper) = opened.upper else {
        return Err(MountError::option("--upper", "is missing; name the upper layer"));
    };
    let fds = LayerFds {
        lowers: opened.lowers.into_iter().map(|o| o.fd).collect(),
        data: opened.data.into_iter().map(|o| o.fd).collect(),
        ..LayerFds::default()
    };
    Ok((upper.fd, opened.init.map(|o| o.fd), fds))
}
