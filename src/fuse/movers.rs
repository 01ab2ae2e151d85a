//! Callers that are moved to another CPU by the answers to their requests, and what is done about it.
//!
//! It takes an idle CPU, and a caller who is in another scheduling group than we are (see [`crate::sys::scheduling`]).
//! Then each of his requests is served on another CPU than the one before, and waking that takes longer than serving.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Instant;

use crate::sys::scheduling;

/// After so many moves it is looked at how long they took.
const ENOUGH: u32 = 16;
/// Moves at shorter intervals than this, in microseconds on average, come from answers.
const OFTEN: u64 = 500;

/// Who was served last on a CPU. A cache line for each: they change all the time.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Last(AtomicU32);

/// Watches the callers of a connection.
#[derive(Debug)]
pub struct Movers {
    /// By CPU.
    last: Box<[Last]>,
    begun: Instant,
    moves: AtomicU32,
    /// When they were looked at last, in microseconds.
    looked: AtomicU64,
    done: AtomicBool,
}

impl Movers {
    /// Watches what happens on so many CPUs.
    pub fn new(cpus: usize) -> Self {
        Self {
            last: (0..cpus).map(|_| Last::default()).collect(),
            begun: Instant::now(),
            moves: AtomicU32::new(0),
            looked: AtomicU64::new(0),
            done: AtomicBool::new(false),
        }
    }

    /// A request of a thread is served on a CPU. Once callers are moved about, all threads of this process stand back.
    pub fn served(&self, cpu: usize, thread: u32) {
        if self.is_moved(cpu, thread) && self.is_often() && !self.done.swap(true, Ordering::Relaxed) {
            match scheduling::step_back() {
                Ok(()) => tracing::debug!("callers keep their CPUs from now on"),
                Err(e) => tracing::debug!("callers are moved from CPU to CPU: {e}"),
            }
        }
    }

    /// Whether the last request of this thread was served elsewhere.
    fn is_moved(&self, cpu: usize, thread: u32) -> bool {
        let Some(Last(here)) = self.last.get(cpu) else { return false };
        // 0 is who has no number in our process namespace.
        if here.load(Ordering::Relaxed) == thread || thread == 0 || self.done.load(Ordering::Relaxed) {
            return false;
        }
        here.store(thread, Ordering::Relaxed);
        let mut others = self.last.iter().enumerate().filter(|(other, _)| *other != cpu);
        let there = others.find(|(_, last)| last.0.load(Ordering::Relaxed) == thread);
        there.is_some_and(|(_, last)| {
            last.0.store(0, Ordering::Relaxed);
            true
        })
    }

    /// Counts a move.
    fn is_often(&self) -> bool {
        if !self.moves.fetch_add(1, Ordering::Relaxed).wrapping_add(1).is_multiple_of(ENOUGH) {
            return false;
        }
        let now = u64::try_from(self.begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        now.saturating_sub(self.looked.swap(now, Ordering::Relaxed)) < OFTEN * u64::from(ENOUGH)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_from_elsewhere_was_moved() {
        let movers = Movers::new(3);
        assert!(!movers.is_moved(0, 7) && !movers.is_moved(0, 7));
        assert!(movers.is_moved(2, 7) && !movers.is_moved(2, 7) && movers.is_moved(0, 7));
        // Two that share a CPU were not.
        assert!(!movers.is_moved(0, 8) && !movers.is_moved(0, 7) && !movers.is_moved(0, 8));
        // Unknown ones, and CPUs that came later.
        assert!(!movers.is_moved(0, 0) && !movers.is_moved(1, 0) && !movers.is_moved(3, 8));
    }

    #[test]
    fn many_moves_in_a_short_time_are_often() {
        let movers = Movers::new(2);
        assert_eq!((0..ENOUGH * 3).filter(|_| movers.is_often()).count(), 3);
        std::thread::sleep(std::time::Duration::from_micros(OFTEN * u64::from(ENOUGH)));
        assert_eq!((0..ENOUGH).filter(|_| movers.is_often()).count(), 0);
    }
}
