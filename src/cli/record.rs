//! A mount tells others that it is there, and answers them. That it cannot is no reason not to mount.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::MountConfig;
use crate::error::{Errno, Result, errno};
use crate::fs::gate::Gate;
use crate::fs::{self, Refused};
use crate::fuse::report::Report;
use crate::fuse::session::Mounted;
use crate::inspect::control::{self, Answer, Asker, Next, Way};
use crate::inspect::state::{self, MountState, Recorded};
use crate::sys::place;

/// The state of a mount that is about to be made.
pub fn prepare(config: &MountConfig) -> Option<MountState> {
    MountState::new(config).map_err(not_listed).ok()
}

fn not_listed(e: io::Error) {
    tracing::warn!("unionfs list will not show this mount: {e}");
}

/// Records the mount, and answers questions about it from now on.
pub fn record(state: Option<MountState>, mounted: &Mounted) -> Option<Recorded> {
    let state = MountState { mount_id: mounted.id(), ..state? };
    let recorded = state::place_for(&state).map_err(not_listed).ok()??;
    let answers = Answers {
        report: mounted.report(),
        gate: mounted.gate(),
        known: Mutex::new(Known { state: state.clone(), locks: Vec::new() }),
    };
    // Before the state is there: who cannot see our process knows by the socket that it lives.
    if let Err(e) = control::serve(&recorded.socket(), move |request, asker| answers.answer(request, asker)) {
        tracing::warn!("unionfs inspect will not show the statistics of this mount: {e}");
    }
    match recorded.write(&state) {
        Ok(()) => Some(recorded),
        Err(e) => {
            not_listed(e);
            recorded.remove();
            None
        }
    }
}

/// The mount has ended.
pub fn forget(recorded: Option<&Recorded>) {
    if let Some(recorded) = recorded {
        recorded.remove();
    }
}

/// What a mount answers.
struct Answers {
    report: Report,
    gate: Arc<Gate>,
    known: Mutex<Known>,
}

struct Known {
    state: MountState,
    /// The writable directories that came later are locked by these, as long as the mount is.
    locks: Vec<OwnedFd>,
}

impl Answers {
    fn answer(&self, request: &str, asker: &mut Asker<'_>) -> io::Result<bool> {
        match request.split_once(' ').unwrap_or((request, "")) {
            (control::STATISTICS, "") => asker.say(&self.report.text())?,
            (control::WRITERS, "") => {
                let writers = self.gate.enter().writers();
                asker.say(&in_json(&listed(writers))?)?;
            }
            (control::HOLD, "") => {
                let held = self.gate.alone();
                asker.say(&in_json(&listed(held.writers()))?)?;
                asker.wait(control::LONGEST_HOLD);
            }
            (control::FREEZE, next) => {
                let next: Next = serde_json::from_str(next)?;
                asker.say(&in_json(&self.freeze(&next))?)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn freeze(&self, next: &Next) -> Answer {
        match self.try_freeze(next) {
            Ok(()) => Answer::Frozen,
            Err(Refused::Busy(writers)) => Answer::Busy(listed(writers)),
            Err(Refused::Hides(path)) => Answer::Hides((&*path).into()),
            Err(Refused::NoIndex) => Answer::Failed(
                "with index=off the names of a hardlink would become files of their own; mount with index=on"
                    .into(),
            ),
            Err(Refused::Failed(Errno::ROFS)) => Answer::Failed("the mount has no upper layer".into()),
            Err(Refused::Failed(e)) => Answer::Failed(e.to_string()),
        }
    }

    fn try_freeze(&self, next: &Next) -> std::result::Result<(), Refused> {
        let mut known = self.known.lock();
        let (old, syncs) = {
            let fs = self.gate.enter();
            let root = fs.stack().roots().next().ok_or(Errno::IO)?;
            (root.fd()?, !fs.stack().volatile())
        };
        // By ways that begin in the upper: paths may lead into our own mount, which would wait for itself.
        let (upper, work) = (reach(&old, &next.upper)?, reach(&old, &next.work)?);
        let locks = [&upper, &work].map(|dir| {
            place::check_writable(dir)?;
            place::lock(dir)?;
            dir.try_clone().map_err(|_| Errno::MFILE)
        });
        let [upper_lock, work_lock] = locks;
        let locks = [upper_lock?, work_lock?];
        // Ahead, while others work: the less is left to do when they must wait.
        if syncs {
            rustix::fs::syncfs(&old)?;
        }
        self.gate.enter().join_links()?;
        let state = known.state.frozen(&next.upper.path, &next.work.path);
        let mut fs = self.gate.alone();
        // The new stack has all that the old one has, so it is recorded first: whoever reads it after a crash in
        // between misses nothing.
        fs.freeze(upper, work, || note(&state)).inspect_err(|_| {
            if let Err(e) = note(&known.state) {
                tracing::error!("unionfs list shows an upper that was not taken: {e}");
            }
        })?;
        drop(fs);
        known.state = state;
        known.locks.extend(locks);
        if syncs && let Err(e) = rustix::fs::syncfs(&old) {
            tracing::error!("the frozen layer may not be on its device: {e}");
        }
        Ok(())
    }
}

fn note(state: &MountState) -> Result<()> {
    state::record(state).map_err(|e| errno(&e))
}

fn reach(from: &OwnedFd, way: &Way) -> Result<OwnedFd> {
    let fd = place::reach(from, way.up, &PathBuf::from(&way.below))?;
    if place::file_id(&fd)? == way.id { Ok(fd) } else { Err(Errno::STALE) }
}

fn listed(writers: Vec<fs::Writer>) -> Vec<control::Writer> {
    let listed =
        |w: fs::Writer| control::Writer { path: (&*w.path).into(), passed: w.passed, mapped: w.mapped };
    writers.into_iter().map(listed).collect()
}

fn in_json(value: &impl serde::Serialize) -> io::Result<String> {
    Ok(serde_json::to_string(value)? + "\n")
}
