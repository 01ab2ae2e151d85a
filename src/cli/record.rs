//! A mount tells others that it is there. That it cannot is no reason not to mount.

use crate::config::MountConfig;
use crate::fuse::session::Mounted;
use crate::inspect::control;
use crate::inspect::state::{self, MountState, Recorded};

/// Records the mount, and answers questions about it from now on.
pub fn record(config: &MountConfig, mounted: &Mounted) -> Option<Recorded> {
    let state = MountState::new(config, mounted.place());
    let recorded = state.and_then(|state| state::record(&state)).unwrap_or_else(|e| {
        tracing::warn!("unionfs list will not show this mount: {e}");
        None
    })?;
    let report = mounted.report();
    let answer = move |request: &str| (request == control::STATISTICS).then(|| report.text());
    if let Err(e) = control::serve(&recorded.socket(), answer) {
        tracing::warn!("unionfs inspect will not show the statistics of this mount: {e}");
    }
    Some(recorded)
}

/// The mount has ended.
pub fn forget(recorded: Option<&Recorded>) {
    if let Some(recorded) = recorded {
        recorded.remove();
    }
}
