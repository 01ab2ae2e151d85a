//! What a daemon does, seen and disturbed by strace(1).

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use super::{Union, daemon_of, skip, wait_at_most};

/// strace(1) on a daemon.
pub struct Trace {
    strace: Child,
    pub log: PathBuf,
}

impl Trace {
    /// Of these calls.
    pub fn begin(u: &Union, calls: &str) -> Self {
        Self::with(u, &["-e", calls])
    }

    /// With these arguments. All threads are traced.
    pub fn with(u: &Union, arguments: &[&str]) -> Self {
        let log = u.dir().join("strace");
        let said = u.dir().join("strace.said");
        let pid = daemon_of(&u.mnt()).unwrap().to_string();
        let begin = || {
            let strace = Command::new("strace")
                .args(["-f", "-qq", "-y"])
                .args(arguments)
                .args(["-p", &pid, "-o"])
                .arg(&log)
                .stderr(std::fs::File::create(&said).unwrap())
                .spawn()
                .unwrap();
            Self { strace, log: log.clone() }
        };
        // It attaches to the threads that it finds listed, and so can miss one that another begins meanwhile; a daemon
        // begins some after its mount is there.
        for _ in 0..4 {
            let trace = begin();
            if wait_at_most(Duration::from_secs(10), || untraced(&pid).is_empty()) {
                return trace;
            }
            let missed = untraced(&pid);
            trace.detach();
            let said = std::fs::read_to_string(&said).unwrap_or_default();
            let _ = writeln!(std::io::stderr(), "strace has not attached to {missed:?}: {said}");
        }
        panic!("strace cannot attach");
    }

    /// Ends it.
    fn detach(mut self) {
        let pid = rustix::process::Pid::from_child(&self.strace);
        // It may have ended by itself.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::INT);
        self.strace.wait().unwrap();
    }

    /// The system calls, but for those that wait for the kernel and answer it, and those of the threads that
    /// watch the mount table, which other tests change meanwhile, and wait for signals.
    pub fn end(self) -> Vec<String> {
        let log = self.log.clone();
        self.detach();
        let log = std::fs::read_to_string(log).unwrap();
        let thread = |l: &str| l.split_ascii_whitespace().next().map(String::from);
        let watches = |l: &&str| l.contains("/mountinfo") || l.contains("recvfrom(");
        let watchers: Vec<_> = log.lines().filter(watches).map(thread).collect();
        let own = |l: &&str| {
            let waits = l.contains("/dev/fuse") || l.contains("futex(") || l.contains("io_uring_enter(");
            !waits && l.contains('(') && !watchers.contains(&thread(l))
        };
        log.lines().filter(own).map(String::from).collect()
    }
}

/// The threads of a process that nobody traces, by number and name.
fn untraced(pid: &str) -> Vec<String> {
    let status = |thread: &Path| std::fs::read_to_string(thread.join("status")).unwrap_or_default();
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    threads
        .map(|thread| (thread.file_name(), status(&thread.path())))
        .filter(|(_, status)| status.contains("TracerPid:\t0\n"))
        .map(|(number, status)| format!("{} {}", number.display(), status.lines().next().unwrap_or_default()))
        .collect()
}

/// Skips a test where there is no strace.
pub fn no_strace() -> bool {
    let missing = Command::new("strace").arg("-V").output().is_err();
    if missing {
        skip("there is no strace");
    }
    missing
}
