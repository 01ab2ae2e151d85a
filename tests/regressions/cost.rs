//! What an operation costs the daemon, in system calls.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::common::files::{dir, exists, is_whiteout, put};
use crate::common::{Union, daemon_of, skip, wait_for};
use crate::{MOUNTS, need_unionfs};

/// strace(1) on a daemon.
struct Trace {
    strace: Child,
    log: std::path::PathBuf,
}

impl Trace {
    fn begin(u: &Union, calls: &str) -> Self {
        let log = u.dir().join("strace");
        let pid = daemon_of(&u.mnt()).unwrap().to_string();
        let strace = Command::new("strace")
            .args(["-f", "-qq", "-y", "-e", calls, "-p", &pid, "-o"])
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
    fn end(mut self) -> Vec<String> {
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

fn no_strace() -> bool {
    let missing = Command::new("strace").arg("-V").output().is_err();
    if missing {
        skip("there is no strace");
    }
    missing
}

fn fill(dir: &Path, entries: usize) {
    std::fs::create_dir_all(dir).unwrap();
    for i in 0..entries {
        File::create(dir.join(format!("entry{i}"))).unwrap();
    }
}

#[test]
fn stat_of_a_large_directory_costs_what_that_of_a_small_one_does() {
    need_unionfs!();
    if no_strace() {
        return;
    }
    let u = Union::new(2);
    for (name, entries) in [("small", 10), ("large", 10_000)] {
        fill(&u.lower(0, name), entries / 2);
        fill(&u.lower(1, name), entries);
        fill(&u.lower(1, format!("{name}-alone")), entries);
        fill(&u.upper(name), entries / 5);
    }
    let u = u.mounted();
    // The least of some times, each with the name unknown to the kernel: now and then something is done that
    // serves later requests.
    let cost = |name: &str| {
        let once = || {
            std::fs::write("/proc/sys/vm/drop_caches", "2").unwrap();
            let trace = Trace::begin(&u, "all");
            assert!(u.at(name).metadata().unwrap().is_dir());
            trace.end().len()
        };
        (0..5).map(|_| once()).min().unwrap()
    };
    for (small, large) in [("small", "large"), ("small-alone", "large-alone")] {
        let (small, large) = (cost(small), cost(large));
        // One more or less is what the daemon does now and then for itself.
        assert!(large > 0 && large.abs_diff(small) <= 2 && large < 30, "{small} and {large} calls");
    }
    // A name in it: no listing, either.
    let trace = Trace::begin(&u, "all");
    assert!(exists(u.at("large/entry7777")));
    assert!(!exists(u.at("large/nothing")));
    let calls = trace.end();
    assert!(calls.len() < 30 && !calls.iter().any(|c| c.contains("getdents")), "{calls:#?}");
}

#[test]
fn unlink_of_a_large_lower_file_writes_no_data() {
    need_unionfs!();
    if no_strace() {
        return;
    }
    for options in MOUNTS {
        let mut u = Union::new(1);
        u.set_options(options);
        dir(u.lower(0, "d"));
        for name in ["one", "d/linked", "over", "open"] {
            let file = File::create(u.lower(0, name)).unwrap();
            // Data all along, though not everywhere: what would copy it would have to write.
            for at in (0..1_u64 << 30).step_by(16 << 20) {
                file.write_all_at(&[1; 4096], at).unwrap();
            }
            file.set_len(1 << 30).unwrap();
        }
        for name in ["two", "three"] {
            std::fs::hard_link(u.lower(0, "d/linked"), u.lower(0, format!("d/{name}"))).unwrap();
        }
        u.mount();
        put(u.at("new"), "new");
        let open = File::open(u.at("open")).unwrap();
        let trace =
            Trace::begin(&u, "write,pwrite64,writev,pwritev,copy_file_range,sendfile,splice,ioctl,ftruncate");
        let begin = Instant::now();
        for name in ["one", "d/two", "d/linked", "d/three", "open"] {
            std::fs::remove_file(u.at(name)).unwrap();
        }
        std::fs::rename(u.at("new"), u.at("over")).unwrap();
        let time = begin.elapsed();
        let mut calls = trace.end();
        // Calls that strace does not know by name, it shows whatever is asked for; none of them writes data.
        calls.retain(|c| !c.contains("FS_IOC_GETFLAGS") && !c.contains("syscall_0x"));
        assert!(calls.is_empty(), "{options:?}: {calls:#?}");
        assert!(time < Duration::from_secs(2), "{time:?}");
        assert!(is_whiteout(u.upper("one")) && is_whiteout(u.upper("d/two")));
        let mut piece = [0; 1];
        open.read_exact_at(&mut piece, 512 << 20).unwrap();
        assert_eq!(piece, [1]);
    }
}
