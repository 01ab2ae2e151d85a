//! A mount tells others that it is there. That it cannot is no reason not to mount.

use crate::config::MountConfig;
use crate::fuse::session::Mounted;
use crate::inspect::control;
use crate::inspect::state::{self, MountState, Recorded};

/// The state of a mount that is about to be made.
pub fn prepare(config: &MountConfig) -> Option<MountState> {
    MountState::new(config).map_err(not_listed).ok()
}

fn not_listed(e: std::io::Error) {
    tracing::warn!("unionfs list will not show this mount: {e}");
}

/// Records the mount, and answers questions about it from now on.
pub fn record(state: Option<MountState>, mounted: &Mounted) -> Option<Recorded> {
    let state = MountState { mount_id: mounted.id(), ..state? };
    let recorded = state::record(&state).map_err(not_listed).ok()??;
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
