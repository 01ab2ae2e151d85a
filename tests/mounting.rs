//! Making and ending mounts: many layers, options, refusals in one sentence, and a daemon that is
//! gone with its mount.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::ffi::OsString;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::files::{dir, errno, exists, get, list, put, whiteout};
use common::{Union, daemon_of, wait_at_most, wait_for};

/// How soon the daemon must be gone after its mount is.
const GONE: Duration = Duration::from_secs(2);

#[test]
fn five_hundred_lowers() {
    need_mount!();
    let u = Union::new(500);
    for i in 0..500 {
        put(u.lower(i, format!("d/f{i}")), format!("{i}"));
        put(u.lower(i, "d/all"), format!("{i}"));
        if i % 2 == 1 {
            whiteout(u.lower(i - 1, format!("d/f{i}")));
        }
    }
    let mut u = u.mounted();
    for _ in 0..2 {
        assert_eq!(list(u.at("d")).len(), 251);
        assert_eq!(get(u.at("d/all")), "0");
        assert_eq!(get(u.at("d/f498")), "498");
        assert!(!exists(u.at("d/f499")));
        u.remount();
    }
    put(u.at("d/f498"), "changed");
    put(u.at("d/f499"), "again");
    std::fs::remove_file(u.at("d/all")).unwrap();
    u.remount();
    assert_eq!((get(u.at("d/f498")), get(u.at("d/f499"))), ("changed".into(), "again".into()));
    assert!(!exists(u.at("d/all")));
}

#[test]
fn too_many_lowers_are_refused() {
    need_unionfs!();
    let u = Union::new(501);
    refused(&u, u.command().output().unwrap(), "500");
}

#[test]
fn a_read_only_mount() {
    need_unionfs!();
    let u = Union::new(2).read_only();
    put(u.lower(0, "d/a"), "a");
    put(u.lower(1, "d/b"), "b");
    let u = u.mounted();
    assert_eq!(list(u.at("d")), ["a", "b"]);
    assert_eq!(get(u.at("d/b")), "b");
    assert_eq!(errno(std::fs::write(u.at("d/b"), "x")), libc::EROFS);
    assert_eq!(errno(std::fs::write(u.at("new"), "x")), libc::EROFS);
    assert_eq!(errno(std::fs::remove_file(u.at("d/b"))), libc::EROFS);
    assert_eq!(errno(std::fs::rename(u.at("d/b"), u.at("d/c"))), libc::EROFS);
    assert_eq!(errno(std::fs::create_dir(u.at("x"))), libc::EROFS);
    assert!(common::mount_line(&u.mnt()).unwrap().contains(" ro,"));
}

#[test]
fn the_option_ro_is_a_read_only_mount_too() {
    need_unionfs!();
    let u = Union::new(1).option("ro");
    put(u.lower(0, "f"), "x");
    put(u.upper("g"), "y");
    let u = u.mounted();
    assert_eq!(get(u.at("g")), "y");
    assert_eq!(errno(std::fs::write(u.at("f"), "x")), libc::EROFS);
}

#[test]
fn generic_options_reach_the_kernel() {
    need_unionfs!();
    let u = Union::new(1).option("nodev,nosuid").option("noexec").option("fsname=mine").mounted();
    let line = common::mount_line(&u.mnt()).unwrap();
    for option in ["nodev", "nosuid", "noexec"] {
        assert!(line.contains(option), "{option} not in {line}");
    }
    assert!(line.contains(" - fuse.unionfs mine "), "{line}");
}

#[test]
fn the_root_shows_the_attributes_of_the_layers() {
    need_mount!();
    let u = Union::new(1).mounted();
    let meta = u.mnt().metadata().unwrap();
    assert_eq!(meta.mode(), u.upper("").metadata().unwrap().mode());
}

#[test]
fn umount_ends_the_daemon_at_once() {
    need_unionfs!();
    let ways: [(&str, &[&str]); 3] =
        [(env!("CARGO_BIN_EXE_unionfs"), &["umount"]), ("umount", &[]), ("fusermount3", &["-u"])];
    let mut u = Union::new(1);
    put(u.lower(0, "f"), "x");
    for (program, args) in ways {
        if program == "fusermount3" && Command::new(program).arg("-V").output().is_err() {
            common::skip("no fusermount3");
            continue;
        }
        u.mount();
        put(u.at("f"), program);
        let daemon = daemon_of(&u.mnt()).expect("a daemon");
        let out = Command::new(program).args(args).arg(u.mnt()).output().unwrap();
        assert!(out.status.success(), "{program}: {}", common::text(&out));
        assert!(!common::is_mounted(&u.mnt()));
        assert!(wait_at_most(GONE, || common::has_ended(daemon)), "the daemon outlives {program}");
        assert_eq!(get(u.upper("f")), program);
    }
}

#[test]
fn a_busy_mount_stays_until_it_is_free() {
    need_unionfs!();
    let u = Union::new(1).mounted();
    put(u.at("f"), "x");
    let open = std::fs::File::open(u.at("f")).unwrap();
    let out = common::unionfs().arg("umount").arg(u.mnt()).output().unwrap();
    assert!(!out.status.success());
    assert!(common::is_mounted(&u.mnt()));
    drop(open);
    let out = common::unionfs().arg("umount").arg(u.mnt()).output().unwrap();
    assert!(out.status.success(), "{}", common::text(&out));
    let out = common::unionfs().arg("umount").arg(u.mnt()).output().unwrap();
    assert!(!out.status.success() && one_sentence(&out, u.mnt().to_str().unwrap()));
}

#[test]
fn the_layers_are_free_after_umount() {
    need_unionfs!();
    // A layer on a mount of its own can be unmounted right after the union.
    let mut u = Union::new(1);
    let tmpfs = u.lower(0, "");
    rustix::mount::mount("none", &tmpfs, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    put(u.lower(0, "f"), "x");
    u.mount();
    get(u.at("f"));
    u.unmount();
    let free =
        wait_at_most(GONE, || rustix::mount::unmount(&tmpfs, rustix::mount::UnmountFlags::empty()).is_ok());
    if !free {
        let _ = rustix::mount::unmount(&tmpfs, rustix::mount::UnmountFlags::DETACH);
    }
    assert!(free, "the lower is still in use");
}

#[test]
fn foreground_ends_on_a_signal() {
    need_unionfs!();
    let u = Union::new(1);
    put(u.lower(0, "f"), "x");
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let mut child = u.command().arg("--foreground").stderr(Stdio::null()).spawn().unwrap();
        let up = wait_for(|| common::is_mounted(&u.mnt()));
        let read = up.then(|| get(u.at("f")));
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), signal).unwrap();
        let done = wait_for(|| child.try_wait().unwrap().is_some());
        if !done {
            child.kill().unwrap();
        }
        assert!(up && done, "mounted: {up}, ended: {done}");
        assert_eq!(read.as_deref(), Some("x"));
        assert!(child.wait().unwrap().success(), "{signal:?}");
        assert!(!common::is_mounted(&u.mnt()));
    }
}

#[test]
fn serves_where_its_session_began_outside() {
    need_unionfs!();
    // Of a process whose session's leader is in the process namespace above, getsid(2) says 0.
    let u = Union::new(1);
    put(u.lower(0, "f"), "x");
    let mut child = u.command_inside().spawn().unwrap();
    let up = wait_for(|| common::is_mounted(&u.mnt()));
    let read = up.then(|| std::fs::read(u.at("f")));
    if up {
        u.unmount();
    }
    assert!(child.wait().unwrap().success());
    assert_eq!(read.and_then(Result::ok).as_deref(), Some(&b"x"[..]));
}

/// Asks a mount for its statistics, for the nth time; gives its log then.
fn ask_for_statistics(u: &Union, log: &Path, times: usize) -> String {
    let pid = daemon_of(&u.mnt()).unwrap();
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
    let totals = || get(log).lines().filter(|l| l.starts_with("requests ")).count();
    assert!(wait_for(|| totals() == times), "{}", get(log));
    get(log)
}

#[test]
fn statistics_on_a_signal() {
    need_unionfs!();
    let mut u = Union::new(1);
    put(u.lower(0, "d/f"), "content");
    let log = u.dir().join("log");
    u = u.option(&format!("log={}", log.display()));
    u.mount();
    get(u.at("d/f"));
    ask_for_statistics(&u, &log, 1);
    let text = ask_for_statistics(&u, &log, 2);
    assert!(text.contains("io_uring ") && text.contains("passthrough "), "{text}");
    for line in ["nodes ", "resident_kib ", "request lookup ", "request open 1"] {
        assert!(text.lines().any(|l| l.starts_with(line)), "no line {line:?} in:\n{text}");
    }
    assert_eq!(get(u.at("d/f")), "content", "the mount goes on");
}

#[test]
fn files_of_a_read_only_mount_are_read_by_the_kernel() {
    need_unionfs!();
    let mut u = Union::new(1);
    put(u.lower(0, "d/f"), "content");
    let log = u.dir().join("log");
    u = u.option(&format!("log={}", log.display())).option("ro");
    u.mount();
    for _ in 0..2 {
        assert_eq!(get(u.at("d/f")), "content");
    }
    let text = ask_for_statistics(&u, &log, 1);
    let passed = text.lines().any(|l| l == "passthrough 1");
    assert_eq!(text.lines().any(|l| l.starts_with("request read ")), !passed, "{text}");
}

/// Whether the kernel lets requests come over io_uring.
fn uring_is_enabled() -> bool {
    std::fs::read_to_string("/sys/module/fuse/parameters/enable_uring").is_ok_and(|text| text.trim() == "Y")
}

/// The names of a mount's serving threads.
fn threads(mnt: &Path) -> Vec<String> {
    let tasks = format!("/proc/{}/task", daemon_of(mnt).unwrap());
    let name =
        |task: std::io::Result<std::fs::DirEntry>| get(task.unwrap().path().join("comm")).trim().to_owned();
    std::fs::read_dir(tasks).unwrap().map(name).collect()
}

#[test]
fn requests_come_over_io_uring_or_by_the_device() {
    need_unionfs!();
    for way in ["on", "off", "auto"] {
        if !uring_is_enabled() && way == "on" {
            common::skip("the kernel's fuse module has enable_uring off");
            continue;
        }
        let mut u = Union::new(1).option(&format!("io_uring={way}"));
        put(u.lower(0, "d/f"), "content");
        u.mount();
        assert_eq!(get(u.at("d/f")), "content");
        let ring = threads(&u.mnt()).iter().any(|name| name.starts_with("ring-"));
        assert_eq!(ring, way != "off" && uring_is_enabled(), "io_uring={way}: {:?}", threads(&u.mnt()));
    }
}

/// Why the daemon is not alone in a scheduling group here, if so.
fn no_group_of_its_own() -> Option<&'static str> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    if read("/proc/sys/kernel/sched_autogroup_enabled").trim() != "1" {
        return Some("the kernel makes no scheduling groups of sessions");
    }
    let shared = |line: &str| !line.ends_with(":/") && (line.starts_with("0:") || line.contains("cpu"));
    let first = std::fs::read_link("/proc/self/ns/cgroup").unwrap();
    if first != Path::new("cgroup:[4026531835]") || read("/proc/self/cgroup").lines().any(shared) {
        return Some("the kernel may share the CPU among control groups here");
    }
    std::thread::available_parallelism()
        .is_ok_and(|cpus| cpus.get() < 2)
        .then_some("the kernel has one CPU here")
}

/// Answers wake callers of other scheduling groups on idle CPUs, unless the daemon's threads stand behind all others.
#[test]
fn callers_that_are_moved_about_keep_their_cpu_in_the_end() {
    const SCHED_IDLE: &str = "5";
    need_unionfs!();
    let u = Union::new(1).mounted();
    let daemon = daemon_of(&u.mnt()).unwrap();
    // proc_pid_stat(5), from the third field on.
    let fields = |stat: String| -> Vec<String> {
        stat.rsplit_once(") ").unwrap().1.split(' ').map(str::to_owned).collect()
    };
    let session = || fields(get(format!("/proc/{daemon}/stat"))).swap_remove(3);
    assert!(wait_at_most(GONE, || session() == daemon.to_string()), "the daemon is in session {}", session());
    if !uring_is_enabled() {
        return common::skip("the kernel's fuse module has enable_uring off");
    }
    if let Some(reason) = no_group_of_its_own() {
        return common::skip(reason);
    }
    let policies = || -> Vec<String> {
        let tasks = std::fs::read_dir(format!("/proc/{daemon}/task")).unwrap();
        let stats = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("stat")).ok());
        stats.map(|stat| fields(stat).swap_remove(38)).collect()
    };
    assert!(policies().iter().all(|policy| policy == "0"), "{:?}", policies());
    // Moves by itself between two requests.
    let program = "import os\ncpus = sorted(os.sched_getaffinity(0))[:2]\nfor i in range(400): \
                   os.sched_setaffinity(0, {cpus[i % 2]}); assert not os.path.exists(f'none{i}')";
    let moved = || Command::new("python3").args(["-c", program]).current_dir(u.mnt()).status().unwrap();
    let stood_back = wait_for(|| {
        assert!(moved().success());
        policies().iter().all(|policy| policy == SCHED_IDLE)
    });
    assert!(stood_back, "{:?}", policies());
    assert!(moved().success());
}

/// Each of them waits in the daemon, for a copy or for the disk, while others come.
#[test]
fn more_requests_wait_than_there_are_threads() {
    need_unionfs!();
    for way in ["auto", "off"] {
        let mut u = Union::new(1).option(&format!("io_uring={way}"));
        for i in 0..40 {
            std::fs::write(u.lower(0, format!("f{i}")), vec![7; 1 << 20]).unwrap();
        }
        u.mount();
        std::thread::scope(|s| {
            for i in 0..40 {
                let (u, name) = (&u, format!("f{i}"));
                s.spawn(move || {
                    let file = std::fs::OpenOptions::new().append(true).open(u.at(&name)).unwrap();
                    file.sync_all().unwrap();
                    assert_eq!(std::fs::read_dir(u.mnt()).unwrap().count(), 40);
                    std::fs::rename(u.at(&name), u.at(format!("g{i}"))).unwrap();
                });
            }
        });
        let names = |dir: &Path| std::fs::read_dir(dir).unwrap().count();
        assert_eq!(names(&u.mnt()), 40);
        assert_eq!(get(u.at("g7")).len(), 1 << 20);
    }
}

#[test]
fn an_upper_in_use_is_refused() {
    need_unionfs!();
    let mut u = Union::new(1);
    u.mount();
    let second = u.dir().join("mnt2");
    dir(&second);
    let out = common::unionfs()
        .arg("mount")
        .arg("--work")
        .arg(u.work(""))
        .arg(u.lower(0, ""))
        .arg(u.upper(""))
        .arg(&second)
        .output()
        .unwrap();
    assert!(!out.status.success(), "a second mount of one upper");
    assert!(one_sentence(&out, u.upper("").to_str().unwrap().trim_end_matches('/')));
    assert!(!common::is_mounted(&second));
    put(u.at("still"), "works");
    // Free again as soon as the first mount is gone.
    for _ in 0..5 {
        u.remount();
    }
    assert_eq!(get(u.at("still")), "works");
}

/// Whether the output is one line on standard error that names `what`.
fn one_sentence(out: &Output, what: &str) -> bool {
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(text.contains(what), "{what:?} is not named in {text:?}");
    assert_eq!(text.trim_end().lines().count(), 1, "not one sentence: {text:?}");
    assert!(!text.contains("panicked"));
    true
}

/// Asserts a refusal that names `what` and leaves nothing mounted.
fn refused(u: &Union, out: Output, what: &str) {
    assert!(!out.status.success(), "accepted: {}", common::text(&out));
    one_sentence(&out, what);
    assert!(!common::is_mounted(&u.mnt()));
}

/// Mounts by hand.
fn mount(args: &[&Path], mnt: &Path) -> Output {
    common::unionfs().arg("mount").args(args).arg(mnt).output().unwrap()
}

#[test]
fn refusals_name_the_path() {
    need_unionfs!();
    let u = Union::new(1);
    let (l0, upper, work) = (u.lower(0, ""), u.upper(""), u.work(""));
    put(u.dir().join("file"), "");
    let file = u.dir().join("file");
    let missing = u.dir().join("missing");
    let try_mount = |args: &[&Path]| mount(args, &u.mnt());

    refused(&u, try_mount(&[&missing, &upper]), "missing");
    refused(&u, try_mount(&[&file, &upper]), "file");
    refused(&u, try_mount(&[&l0, &missing]), "missing");
    refused(&u, try_mount(&[&l0, &file]), "file");
    refused(&u, try_mount(&["--init".as_ref(), &missing, &l0, &upper]), "missing");
    refused(&u, try_mount(&["--work".as_ref(), &missing.join("deep"), &l0, &upper]), "missing");
    refused(&u, mount(&[&l0, &upper], &missing), "missing");
    refused(&u, mount(&[&l0, &upper], &file), "file");
    assert!(!exists(&missing), "nothing is created without --create");

    refused(&u, try_mount(&[&l0, &l0]), "l0");
    dir(l0.join("inside"));
    refused(&u, try_mount(&[&l0, &l0.join("inside")]), "inside");
    refused(&u, try_mount(&["-o".as_ref(), "nonsense=1".as_ref(), &l0, &upper]), "nonsense");
    refused(&u, try_mount(&["-o".as_ref(), "threads=many".as_ref(), &l0, &upper]), "threads");

    if let Ok(other) = tempfile::tempdir_in("/dev/shm")
        && other.path().metadata().unwrap().dev() != upper.metadata().unwrap().dev()
    {
        let name = other.path().file_name().unwrap().to_str().unwrap().to_owned();
        refused(&u, try_mount(&["--work".as_ref(), other.path(), &l0, &upper]), &name);
    }
    // And without any of that it works.
    let out = try_mount(&["--work".as_ref(), &work, &l0, &upper]);
    assert!(out.status.success(), "{}", common::text(&out));
    assert!(common::is_mounted(&u.mnt()));
}

#[test]
fn missing_directories_are_created_when_asked() {
    need_unionfs!();
    let u = Union::new(1);
    put(u.lower(0, "f"), "x");
    std::fs::remove_dir(u.mnt()).unwrap();
    std::fs::remove_dir(u.upper("")).unwrap();
    std::fs::remove_dir(u.work("")).unwrap();
    let out = mount(&["--create".as_ref(), &u.lower(0, ""), &u.upper("")], &u.mnt());
    assert!(out.status.success(), "{}", common::text(&out));
    put(u.at("f"), "y");
    assert_eq!(get(u.upper("f")), "y");
}

#[test]
fn a_colon_in_a_name_is_escaped() {
    need_unionfs!();
    let u = Union::new(1);
    let odd = u.dir().join("with:colon");
    put(odd.join("f"), "odd");
    put(u.lower(0, "g"), "g");
    let mut lowers = OsString::from(odd.to_str().unwrap().replace(':', "\\:"));
    lowers.push(":");
    lowers.push(u.lower(0, ""));
    let out = mount(&["--work".as_ref(), &u.work(""), Path::new(&lowers), &u.upper("")], &u.mnt());
    assert!(out.status.success(), "{}", common::text(&out));
    assert_eq!(list(u.mnt()), ["f", "g"]);
}

#[test]
fn the_mount_point_may_lie_over_a_layer() {
    need_unionfs!();
    let mut u = Union::new(1);
    put(u.lower(0, "f"), "x");
    let l0 = u.lower(0, "");
    let out = mount(&["--work".as_ref(), &u.work(""), &l0, &u.upper("")], &l0);
    if out.status.success() {
        assert_eq!(get(l0.join("f")), "x");
        put(l0.join("g"), "y");
        assert_eq!(get(u.upper("g")), "y");
        rustix::mount::unmount(&l0, rustix::mount::UnmountFlags::empty()).unwrap();
    } else {
        // Refusing is fine, as long as nothing is left.
        assert!(!common::is_mounted(&l0));
    }
    assert_eq!(list(&l0), ["f"]);
    u.mount();
    assert_eq!(get(u.at("f")), "x");
}

#[test]
fn mounting_is_quick_and_answers_when_it_returns() {
    need_unionfs!();
    let mut u = Union::new(3);
    put(u.lower(2, "f"), "x");
    let begin = Instant::now();
    for _ in 0..10 {
        u.mount();
        assert_eq!(get(u.at("f")), "x");
        u.unmount();
    }
    assert!(begin.elapsed() < Duration::from_secs(20), "{:?} for ten mounts", begin.elapsed());
}
