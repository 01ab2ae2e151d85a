//! What an operation costs the daemon, in system calls.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::common::files::{dir, exists, is_whiteout, put};
use crate::common::trace::{Trace, no_strace};
use crate::common::{Union, skip, wait_for};
use crate::{MOUNTS, need_unionfs};

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
fn names_alone_do_not_cost_a_look_at_the_files() {
    need_unionfs!();
    if no_strace() {
        return;
    }
    let u = Union::new(1);
    for d in ["a", "b", "c"] {
        fill(&u.lower(0, d), 30);
        dir(u.lower(0, format!("{d}/sub")));
    }
    let u = u.mounted();
    let looks = |d: &str| {
        let trace = Trace::begin(&u, "newfstatat,statx");
        assert_eq!(std::fs::read_dir(u.at(d)).unwrap().count(), 31);
        trace.end().iter().filter(|call| call.contains("\"entry")).count()
    };
    // As find(1) does: the type is in the listing.
    assert_eq!(looks("a"), 0);
    assert_eq!(looks("b"), 0);
    // As ls(1) -l does: who looks at files gets attributes with the next listing, by one request.
    for i in 0..2 {
        u.at(format!("b/entry{i}")).symlink_metadata().unwrap();
    }
    assert_eq!(looks("c"), 30);
}

#[test]
fn files_to_come_are_read_ahead() {
    need_unionfs!();
    if no_strace() {
        return;
    }
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = kernel.split(['.', '-']).map_while(|n| n.parse::<u32>().ok());
    if (numbers.next(), numbers.next()) < (Some(6), Some(5)) {
        return skip("before Linux 6.5 the kernel does not tell what is in memory (cachestat)");
    }
    // In a writable mount files are opened when they are read, in others at once.
    for read_only in [false, true] {
        let mut u = Union::new(1);
        for name in (0..2).flat_map(|d| (0..30).map(move |f| format!("d{d}/f{f}"))) {
            put(u.lower(0, &name), "x");
            let file = File::open(u.lower(0, &name)).unwrap();
            file.sync_all().unwrap();
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
        }
        if read_only {
            u = u.read_only();
        }
        let u = u.mounted();
        let trace = Trace::begin(&u, "fadvise64");
        let listed =
            |d: &str| -> Vec<_> { std::fs::read_dir(u.at(d)).unwrap().map(|e| e.unwrap().path()).collect() };
        for path in listed("d0").iter().take(3) {
            std::fs::read(path).unwrap();
        }
        listed("d1");
        let lines = |trace: &Trace| std::fs::read_to_string(&trace.log).unwrap_or_default();
        let all = wait_for(|| lines(&trace).matches("FADV_WILLNEED").count() >= 57);
        let log = lines(&trace);
        trace.end();
        // Those behind the three in the first directory, and all of the second.
        assert!(all && log.matches("/d1/f").count() == 30, "{log}");
    }
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
