//! The threads that serve a connection, by one of two ways: the device, which all read in turn, or rings, one or
//! more for each CPU (see [`crate::sys::ring`]).

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::thread::CpuSet;
use zerocopy::IntoBytes;

use super::adapter::Adapter;
use super::handshake::{MAX_WRITE, REQUEST_ROOM};
use super::message::{Outcome, Request};
use super::movers::Movers;
use super::wire::OutHeader;
use crate::error::{Errno, Result, errno};
use crate::sys::fuse::Device;
use crate::sys::ring::{Arrived, Ring};

/// Arguments up to this size are moved away, so that the answer can be written in their place. Longer ones are
/// data to be written, whose answer is short.
const ASIDE: usize = 16 << 10;
/// How long forgotten inodes are gathered: while nobody reads the device, the kernel has nobody to wake.
const GATHER: Duration = Duration::from_millis(2);
/// So many threads forget. That of a removed file is its end in the layer, which may wait for the disk, while others
/// go on to remove files: each holds a descriptor until then.
const FORGETTERS: usize = 4;
/// Where the kernel tells which CPUs there may ever be: it has as many queues.
const POSSIBLE_CPUS: &str = "/sys/devices/system/cpu/possible";

/// What all workers share.
#[derive(Debug)]
pub struct Workers {
    /// Serves the requests.
    pub adapter: Arc<Adapter>,
    /// The connection.
    pub device: Arc<Device>,
    /// How many threads there may be: in all for the device, for each CPU for rings.
    pub threads: usize,
    /// This process is alone in its scheduling group.
    pub alone: bool,
}

/// The workers of some queues.
#[derive(Debug)]
struct Team {
    queues: Vec<u16>,
    /// The CPU whose queue it is; `None` for a team of queues of CPUs that are not in use.
    cpu: Option<usize>,
    /// How many wait for a request.
    idle: AtomicUsize,
    /// How many there are.
    size: AtomicUsize,
    /// Where something can be done for callers that are moved about.
    movers: Option<Arc<Movers>>,
}

impl Workers {
    /// Serves until the connection ends. `ring`: it was agreed that requests come over io_uring. Blocks.
    ///
    /// # Errors
    /// A failure of the connection.
    pub fn run(self, ring: bool) -> io::Result<()> {
        let crew = Arc::new(self);
        let mut turn = None;
        if ring {
            match crew.start_teams() {
                Ok(()) => turn = Some(Arc::new(Mutex::new(()))),
                // The kernel then sends all by the device (`fuse_uring_cmd`).
                Err(e) => tracing::warn!("requests do not come over io_uring: {e}"),
            }
        }
        let readers = if turn.is_some() { FORGETTERS } else { crew.threads };
        for number in 1..readers {
            let (mate, turn) = (Arc::clone(&crew), turn.clone());
            thread::Builder::new().name(format!("worker-{number}")).spawn(move || {
                let own = mate.device.another();
                if let Err(e) = mate.serve_device(own.as_ref().unwrap_or(&mate.device), turn.as_deref()) {
                    tracing::error!("a worker ends: {e}");
                }
            })?;
        }
        crew.serve_device(&crew.device, turn.as_deref())
    }

    /// Serves from the device. `turn`: what comes there is only to be forgotten; who has the turn reads it, and gathers
    /// before he passes the turn on.
    fn serve_device(&self, device: &Device, turn: Option<&Mutex<()>>) -> io::Result<()> {
        let mut input = vec![0; REQUEST_ROOM];
        let mut output = vec![0; MAX_WRITE];
        loop {
            let turn = turn.map(Mutex::lock);
            let length = match device.read(&mut input) {
                Ok(length) => length,
                Err(Errno::NODEV) => return Ok(()),
                // Interrupted, or the request was taken back before it was read.
                Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => continue,
                Err(e) => return Err(e.into()),
            };
            if turn.is_some() {
                thread::sleep(GATHER);
            }
            drop(turn);
            let Ok(request) = Request::parse(&input[..length]) else { continue };
            let outcome = self.adapter.serve(&request, &mut output);
            if let Some((header, body)) = outcome.header(request.header.unique)
                && let Err(e) = device.write(header.as_bytes(), &output[..body])
                && e != Errno::NOENT
            {
                tracing::debug!("an answer was refused: {e}");
            }
        }
    }

    /// Starts one worker for each queue.
    fn start_teams(self: &Arc<Self>) -> Result<()> {
        let queues = possible_cpus()?;
        let usable = rustix::thread::sched_getaffinity(None).unwrap_or_default();
        let usable =
            |queue: &u16| usize::from(*queue) < CpuSet::MAX_CPU && usable.is_set(usize::from(*queue));
        let (own, others): (Vec<u16>, Vec<u16>) = (0..queues).partition(usable);
        let movers = self.alone.then(|| Arc::new(Movers::new(usize::from(queues))));
        let team = |queues: Vec<u16>, cpu| {
            let movers = movers.clone();
            Arc::new(Team { queues, cpu, idle: AtomicUsize::new(0), size: AtomicUsize::new(1), movers })
        };
        let mut teams: Vec<_> = own.into_iter().map(|queue| team(vec![queue], Some(queue.into()))).collect();
        if !others.is_empty() {
            // No request comes from a CPU that does not run.
            teams.push(team(others, None));
        }
        let (ready, started) = mpsc::channel();
        let count = teams.len();
        for team in teams {
            self.start_worker(team, Some(ready.clone()))?;
        }
        drop(ready);
        started.iter().take(count).collect::<Result<Vec<()>>>().map(drop)
    }

    fn start_worker(
        self: &Arc<Self>,
        team: Arc<Team>,
        ready: Option<mpsc::Sender<Result<()>>>,
    ) -> Result<()> {
        let crew = Arc::clone(self);
        let name = team.cpu.map_or("ring".to_owned(), |cpu| format!("ring-{cpu}"));
        let work = move || {
            if let Some(cpu) = team.cpu {
                let mut only = CpuSet::new();
                only.set(cpu);
                // Elsewhere it is slower, and right as well.
                let _ = rustix::thread::sched_setaffinity(None, &only);
                favour_this_thread();
            }
            let ring = Ring::new(crew.device.clone(), &team.queues, MAX_WRITE)
                .and_then(|mut ring| ring.register().map(|()| ring));
            let outcome = ring.as_ref().map(drop).map_err(|e| *e);
            if let Some(ready) = ready {
                // Who started us may have given up already.
                let _ = ready.send(outcome);
            }
            match ring.and_then(|ring| crew.serve_ring(ring, &team)) {
                Ok(()) => {}
                Err(e) => tracing::warn!("a worker ends: {e}"),
            }
        };
        thread::Builder::new().name(name).spawn(work).map(drop).map_err(|e| errno(&e))
    }

    /// Serves from a ring until the connection ends.
    fn serve_ring(self: &Arc<Self>, mut ring: Ring, team: &Arc<Team>) -> Result<()> {
        let mut aside = vec![0; ASIDE];
        loop {
            team.idle.fetch_add(1, Ordering::Relaxed);
            let waited = ring.wait();
            let was_last = team.idle.fetch_sub(1, Ordering::Relaxed) == 1;
            let place = match waited {
                Ok(place) => place,
                Err(Errno::NOTCONN | Errno::CONNABORTED | Errno::NODEV) => return Ok(()),
                Err(e) => return Err(e),
            };
            if was_last {
                self.reinforce(team);
            }
            let length = self.serve_place(ring.arrived(place), team, &mut aside);
            ring.commit(place, length)?;
        }
    }

    /// Serves the request in a place of a ring; gives the length of the answer's body.
    fn serve_place(&self, arrived: Arrived<'_>, team: &Team, aside: &mut [u8]) -> usize {
        let Arrived { header, fixed, payload, length } = arrived;
        let serve = |rest: &[u8], room: &mut [u8]| match Request::new(header, fixed, rest) {
            Ok(request) => {
                if let (Some(movers), Some(cpu)) = (&team.movers, team.cpu) {
                    movers.served(cpu, request.header.pid);
                }
                (request.header.unique, self.adapter.serve(&request, room))
            }
            Err(e) => (0, Outcome::Failed(e)),
        };
        let (unique, outcome) = if length <= aside.len() {
            aside[..length].copy_from_slice(&payload[..length]);
            serve(&aside[..length], payload)
        } else {
            let served = serve(&payload[..length], aside);
            if let (_, Outcome::Done(body)) = served {
                payload[..body].copy_from_slice(&aside[..body]);
            }
            served
        };
        // Each request in a ring has an answer.
        let (answer, body) = outcome.header(unique).unwrap_or((OutHeader { len: 16, error: 0, unique }, 0));
        header[..size_of::<OutHeader>()].copy_from_slice(answer.as_bytes());
        body
    }

    /// All workers of a team are busy, perhaps for long: one more takes the next request.
    fn reinforce(self: &Arc<Self>, team: &Arc<Team>) {
        let grow = |size| (size < self.threads).then_some(size + 1);
        if team.size.fetch_update(Ordering::Relaxed, Ordering::Relaxed, grow).is_err() {
            return;
        }
        if let Err(e) = self.start_worker(Arc::clone(team), None) {
            tracing::debug!("no more workers: {e}");
            team.size.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Gives this thread a bit more weight than those that it serves have, where that is permitted: for callers in its own
/// scheduling group.
///
/// Who waits for a request then has used more of his share of the CPU than we have of ours, and the scheduler (EEVDF,
/// Linux 6.12) keeps his place on it. Otherwise he is woken on an idle CPU, which takes much longer than the request.
fn favour_this_thread() {
    const BETTER_BY: i32 = 5;
    if let Ok(now) = rustix::process::getpriority_process(None) {
        let _ = rustix::process::setpriority_process(None, now - BETTER_BY);
    }
}

/// How many CPUs there may ever be.
fn possible_cpus() -> Result<u16> {
    let text = std::fs::read_to_string(POSSIBLE_CPUS).map_err(|e| errno(&e))?;
    highest_in_list(&text).and_then(|highest| highest.checked_add(1)).ok_or(Errno::INVAL)
}

/// The highest number in a list such as `0-3,8`.
fn highest_in_list(text: &str) -> Option<u16> {
    text.trim().split([',', '-']).filter_map(|number| number.parse().ok()).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_cpus_are_read() {
        assert_eq!(highest_in_list("0-1\n"), Some(1));
        assert_eq!(highest_in_list("0"), Some(0));
        assert_eq!(highest_in_list("0-3,8-11,16"), Some(16));
        assert_eq!(highest_in_list("\n"), None);
        assert!(possible_cpus().unwrap() > 0);
    }
}
