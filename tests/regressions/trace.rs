//! What a daemon does, seen and disturbed by strace(1).

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::common::{Union, daemon_of, skip, wait_for};

/// strace(1) on a daemon.
pub struct Trace {
    strace: Child,
    pub log: std::path::PathBuf,
}

impl Trace {
    /// Of these calls.
    pub fn begin(u: &Union, calls: &str) -> Self {
        Self::with(u, &["-e", calls])
    }

    /// With these arguments.
    pub fn with(u: &Union, arguments: &[&str]) -> Self {
        let log = u.dir().join("strace");
        let pid = daemon_of(&u.mnt()).unwrap().to_string();
        let strace = Command::new("strace")
            .args(["-f", "-qq", "-y"])
            .args(arguments)
            .args(["-p", &pid, "-o"])
            .arg(&log)
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // All threads are traced.
        let traced = || {
            let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            tasks.flatten().all(|t| {
                let status = std::fs::read_to_string(t.path().join("status")).unwrap_or_default();
                !status.contains("TracerPid:\t0")
            })
        };
        assert!(wait_for(Duration::from_secs(10), traced), "strace cannot attach");
        Self { strace, log }
    }

    /// The system calls, but for those that wait for the kernel and answer it, and those of the threads that
    /// watch the mount table, which other tests change meanwhile, and wait for signals.
    pub fn end(mut self) -> Vec<String> {
        let pid = rustix::process::Pid::from_child(&self.strace);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
        self.strace.wait().unwrap();
        let log = std::fs::read_to_string(&self.log).unwrap();
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

/// Skips a test where there is no strace.
pub fn no_strace() -> bool {
    let missing = Command::new("strace").arg("-V").output().is_err();
    if missing {
        skip("there is no strace");
    }
    missing
}
