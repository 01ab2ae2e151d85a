//! What a mount has served and what it holds, as text.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Instant;

use super::handshake::Wanted;
use super::stats::Stats;
use crate::fs::gate::Gate;

/// Gives the statistics of a mount while it is served.
#[derive(Debug, Clone)]
pub struct Report {
    gate: Arc<Gate>,
    stats: Arc<Stats>,
    ways: Wanted,
    since: Instant,
    start_kib: u64,
}

impl Report {
    /// Statistics from now on.
    pub fn new(gate: Arc<Gate>, stats: Arc<Stats>, ways: Wanted) -> Self {
        Self { gate, stats, ways, since: Instant::now(), start_kib: memory("VmRSS:") }
    }

    /// One line for each number, ended by the total of all requests:
    ///
    /// - `seconds` since the mount; `io_uring` and `passthrough`, 1 when they are used, else 0;
    /// - `nodes`, `open_files`, `listings` (of directories that are being read) that are live, and `node_bytes`, the
    ///   bytes that a node takes on average;
    /// - `copied_up`, objects that were copied up, and `copied_bytes`, the bytes of data that they took over;
    /// - `open_directories`, descriptors of directories that are kept open, and `kept_names`, names of lower directories
    ///   that are kept;
    /// - `resident_kib`, `start_kib`, `peak_kib`: resident memory of the process in KiB now, at the
    ///   mount and at most;
    /// - `request NAME` for each kind of request that came, and `requests`.
    pub fn text(&self) -> String {
        let fs = self.gate.enter();
        let (nodes, files, listings) = fs.counts();
        let (copied_up, copied_bytes) = fs.copied();
        let (open_directories, kept_names) = fs.caches();
        let mut text = format!(
            "seconds {:.3}\nio_uring {}\npassthrough {}\nnodes {nodes}\nnode_bytes {}\nopen_files {files}\nlistings {listings}\n\
             copied_up {copied_up}\ncopied_bytes {copied_bytes}\nopen_directories {open_directories}\nkept_names {kept_names}\n\
             resident_kib {}\nstart_kib {}\npeak_kib {}\n",
            self.since.elapsed().as_secs_f64(),
            u8::from(self.ways.ring),
            u8::from(self.ways.passthrough),
            fs.memory() / nodes.max(1),
            memory("VmRSS:"),
            self.start_kib,
            memory("VmHWM:"),
        );
        let mut total = 0;
        for (op, count) in self.stats.seen() {
            total += count;
            // Writing to a String cannot fail.
            let _ = writeln!(text, "request {} {count}", op.name());
        }
        let _ = writeln!(text, "requests {total}");
        text
    }
}

/// A figure of /proc/self/status (proc_pid_status(5)) in KiB; 0 when it cannot be read.
fn memory(field: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    line.and_then(|l| l.split_whitespace().next()).and_then(|kib| kib.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read() {
        assert!(memory("VmRSS:") > 0);
        assert!(memory("VmHWM:") >= memory("VmRSS:") / 2);
        assert_eq!(memory("NoSuchField:"), 0);
    }
}
