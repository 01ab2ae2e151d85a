//! What stays after crashes, on full disks, and when the daemon dies. The long forms are tools/crash, tools/power-loss and
//! tools/faults.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::disk::Disk;
use common::files::put;
use common::trace::{Trace, no_strace};
use common::{Union, daemon_of, run, unionfs, wait_for};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process};

/// A quota on a Btrfs subvolume, which holds upper and work directory.
struct Quota {
    disk: Disk,
}

impl Quota {
    /// Of so many MiB, where there can be one.
    fn new(limit: u64) -> Option<Self> {
        let disk = Disk::btrfs()?;
        disk.subvolume("limited");
        disk.btrfs_command(&["quota", "enable"], "");
        disk.btrfs_command(&["qgroup", "limit", &format!("{limit}M")], "limited");
        for name in ["upper", "work"] {
            fs::create_dir(disk.at.join("limited").join(name)).unwrap();
        }
        Some(Self { disk })
    }

    /// What was removed counts until the filesystem has committed it.
    fn settle(&self) {
        self.disk.btrfs_command(&["filesystem", "sync"], "");
    }
}

/// A mount whose upper lies somewhere else.
struct Elsewhere {
    union: Union,
    place: PathBuf,
}

impl Elsewhere {
    fn new(union: Union, place: &Path) -> Self {
        let it = Self { union, place: place.to_owned() };
        it.mount();
        it
    }

    fn mount(&self) {
        let mut command = unionfs();
        command.arg("mount").arg("--work").arg(self.place.join("work")).arg(self.union.lower_list());
        let out = command.arg(self.place.join("upper")).arg(self.union.mnt()).output().unwrap();
        assert!(out.status.success(), "{}", common::text(&out));
    }

    fn at(&self, name: &str) -> PathBuf {
        self.union.at(name)
    }

    fn remount(&mut self) {
        self.union.unmount();
        self.mount();
    }

    /// What is left in the work directory.
    fn leftovers(&self) -> Vec<PathBuf> {
        let work = fs::read_dir(self.place.join("work/work")).unwrap();
        work.map(|entry| entry.unwrap().path()).filter(|p| p.to_str().unwrap().contains('#')).collect()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.union.mnt()).status();
        // The daemon holds the filesystem below until it has ended.
        let mnt = self.union.mnt();
        wait_for(|| daemon_of(&mnt).is_none());
    }
}

fn raw(e: std::io::Error) -> Option<i32> {
    e.raw_os_error()
}

fn no_space<T: std::fmt::Debug>(result: std::io::Result<T>) {
    assert_eq!(raw(result.unwrap_err()), Some(Errno::NOSPC.raw_os_error()));
}

/// Writes until nothing more fits.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    for size in [1 << 16, 1 << 12, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
}

#[test]
fn what_does_not_fit_leaves_the_old_state() {
    need_unionfs!();
    let disk = Disk::ext4(8, 128);
    let union = Union::new(1);
    let old = vec![b'o'; 100_000];
    for name in ["d/large", "d/e/other", "d/e/to"] {
        put(union.lower(0, name), &old);
    }
    let mut union = Elsewhere::new(union, &disk.at);
    fill(&union.at("filler"));
    let open = |path: &Path| fs::OpenOptions::new().write(true).open(path);
    for round in 0..3 {
        no_space(open(&union.at("d/large")));
        no_space(fs::rename(union.at("d/large"), union.at("d/new")));
        no_space(fs::rename(union.at("d/e/other"), union.at("d/e/to")));
        no_space(fs::set_permissions(union.at("d/large"), fs::Permissions::from_mode(0o600)));
        for name in ["d/large", "d/e/other", "d/e/to"] {
            assert_eq!(fs::read(union.at(name)).unwrap(), old, "{name}");
        }
        assert!(!union.at("d/new").exists());
        assert_eq!(fs::metadata(union.at("d/large")).unwrap().mode() & 0o777, 0o644);
        assert_eq!(union.leftovers(), Vec::<PathBuf>::new());
        if round == 1 {
            union.remount();
        }
    }
    fs::remove_file(union.at("filler")).unwrap();
    // The device gives room back with its next commit.
    assert!(wait_for(|| open(&union.at("d/large")).is_ok()));
    open(&union.at("d/large")).unwrap().write_all_at(b"new", 0).unwrap();
    fs::rename(union.at("d/e/other"), union.at("d/e/to")).unwrap();
    assert_eq!(&fs::read(union.at("d/large")).unwrap()[..4], b"newo");
}

#[test]
fn what_a_quota_does_not_allow_leaves_the_old_state() {
    need_unionfs!();
    let Some(quota) = Quota::new(16) else { return };
    let union = Union::new(1);
    let old = vec![b'o'; 300_000];
    for name in ["d/large", "d/e/other", "d/e/to", "d/gone"] {
        put(union.lower(0, name), &old);
    }
    let mut union = Elsewhere::new(union, &quota.disk.at.join("limited"));
    let refused = |result: std::io::Result<()>| {
        assert_eq!(raw(result.unwrap_err()), Some(Errno::DQUOT.raw_os_error()));
    };
    let open = |path: &Path| fs::OpenOptions::new().write(true).open(path).map(drop);
    // As a crash leaves it; without room it may have to stay.
    let left = quota.disk.at.join("limited/work/work/#0");
    put(left.join("deep/file"), "x");
    fill(&union.at("filler"));
    quota.settle();
    for round in 0..3 {
        refused(open(&union.at("d/large")));
        refused(fs::rename(union.at("d/large"), union.at("d/new")));
        refused(fs::rename(union.at("d/e/other"), union.at("d/e/to")));
        refused(fs::set_permissions(union.at("d/large"), fs::Permissions::from_mode(0o600)));
        refused(fs::write(union.at("d/more"), &old));
        for name in ["d/large", "d/e/other", "d/e/to"] {
            assert_eq!(fs::read(union.at(name)).unwrap(), old, "{name}");
        }
        assert!(!union.at("d/new").exists());
        assert_eq!(fs::metadata(union.at("d/large")).unwrap().mode() & 0o777, 0o644);
        if round == 1 {
            union.remount();
        }
    }
    fs::remove_file(union.at("filler")).unwrap();
    assert!(wait_for(|| {
        quota.settle();
        open(&union.at("d/large")).is_ok()
    }));
    union.remount();
    assert_eq!(union.leftovers(), Vec::<PathBuf>::new());
    fs::remove_file(union.at("d/gone")).unwrap();
    fs::rename(union.at("d/e/other"), union.at("d/e/to")).unwrap();
    union.remount();
    assert!(!union.at("d/gone").exists());
    assert_eq!(fs::read(union.at("d/e/to")).unwrap(), old);
}

#[test]
fn without_inodes_names_stay() {
    need_unionfs!();
    let disk = Disk::ext4(8, 64);
    let union = Union::new(1);
    for name in ["a/f", "b/f", "c/d/f", "e/f"] {
        put(union.lower(0, name), "old");
    }
    let mut union = Elsewhere::new(union, &disk.at);
    let mut made = 0;
    let refused = loop {
        match fs::File::create(union.at(&format!("filler{made}"))) {
            Ok(_) => made += 1,
            Err(e) => break e,
        }
    };
    assert_eq!(raw(refused), Some(Errno::NOSPC.raw_os_error()));
    for round in 0..2 {
        // Copies, whiteouts, and directories to put them in need an inode each.
        no_space(fs::remove_file(union.at("a/f")));
        no_space(fs::rename(union.at("b/f"), union.at("b/g")));
        no_space(fs::rename(union.at("c"), union.at("g")));
        no_space(fs::create_dir(union.at("e/new")));
        no_space(fs::write(union.at("e/f"), "new"));
        for name in ["a/f", "b/f", "c/d/f", "e/f"] {
            assert_eq!(fs::read(union.at(name)).unwrap(), b"old", "{name}");
        }
        assert!(!union.at("g").exists() && !union.at("b/g").exists() && !union.at("e/new").exists());
        assert_eq!(union.leftovers(), Vec::<PathBuf>::new());
        if round == 0 {
            union.remount();
        }
    }
    for n in 0..made {
        fs::remove_file(union.at(&format!("filler{n}"))).unwrap();
    }
    // What is removed ends when the kernel has told the daemon that nobody uses it.
    assert!(wait_for(|| fs::remove_file(union.at("a/f")).is_ok()));
    assert!(wait_for(|| fs::rename(union.at("c"), union.at("g")).is_ok()));
    assert!(wait_for(|| fs::write(union.at("e/f"), "new").is_ok()));
    union.remount();
    assert!(!union.at("a/f").exists() && !union.at("c").exists());
    assert_eq!(fs::read(union.at("g/d/f")).unwrap(), b"old");
    assert_eq!(fs::read(union.at("e/f")).unwrap(), b"new");
}

/// An upper whose filesystem leaves no whiteout behind in the step of a rename, and takes none as a device.
#[test]
fn renames_where_no_whiteout_is_left_behind_in_one_step() {
    need_unionfs!();
    let below = common::temp_dir();
    let at = |name: &str| below.path().join(name);
    for name in ["lower", "upper", "work", "disk"] {
        fs::create_dir(at(name)).unwrap();
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        at("lower").display(),
        at("upper").display(),
        at("work").display()
    );
    let mount = ["-t", "overlay", "overlay", "-o", &options];
    let mount: Vec<_> =
        mount.iter().map(|a| a.as_ref()).chain([at("disk").into_os_string().leak() as &_]).collect();
    run("mount", &mount);
    for name in ["upper", "work"] {
        fs::create_dir(at("disk").join(name)).unwrap();
    }
    let union = Union::new(2);
    for name in ["f1", "f2", "f3", "f4", "gone1", "d1/x", "d2/x", "d3/x", "gone2/y", "e/y", "sub/f"] {
        put(union.lower(1, name), name);
    }
    let mut union = Elsewhere::new(union, &at("disk"));
    fs::remove_file(union.at("gone1")).unwrap();
    fs::remove_file(union.at("gone2/y")).unwrap();
    fs::remove_dir(union.at("gone2")).unwrap();
    fs::remove_file(union.at("e/y")).unwrap();
    for (from, to) in
        [("f1", "sub/free"), ("f2", "gone1"), ("f3", "f4"), ("d1", "sub/d"), ("d2", "gone2"), ("d3", "e")]
    {
        fs::rename(union.at(from), union.at(to)).unwrap();
    }
    for _ in 0..2 {
        for (name, content) in [
            ("sub/free", "f1"),
            ("gone1", "f2"),
            ("f4", "f3"),
            ("sub/d/x", "d1/x"),
            ("gone2/x", "d2/x"),
            ("e/x", "d3/x"),
            ("sub/f", "sub/f"),
        ] {
            assert_eq!(fs::read_to_string(union.at(name)).unwrap(), content, "{name}");
        }
        let mut names: Vec<_> = fs::read_dir(union.at(""))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["e", "f4", "gone1", "gone2", "sub"]);
        assert_eq!(fs::read_dir(union.at("e")).unwrap().count(), 1);
        assert_eq!(union.leftovers(), Vec::<PathBuf>::new());
        union.remount();
    }
    drop(union);
    run("umount", &[at("disk").as_ref()]);
}

#[test]
fn nobody_waits_for_a_dead_daemon() {
    need_unionfs!();
    let union = Union::new(1).option("passthrough=off");
    put(union.lower(0, "d/f"), vec![b'x'; 100_000]);
    let union = union.mounted();
    let pid = Pid::from_raw(daemon_of(&union.mnt()).unwrap().cast_signed()).unwrap();
    let open = fs::File::open(union.at("d/f")).unwrap();
    kill_process(pid, Signal::STOP).unwrap();
    // Each waits for an answer that will not come.
    let waiting: Vec<_> = ["cat d/f", "ls d/none", "cd d && touch new", "mkdir e", "rm d/f", "mv d g"]
        .into_iter()
        .map(|script| {
            let mut command = Command::new("sh");
            command.arg("-c").arg(format!("cd d0 2>/dev/null; {script}")).current_dir(union.at(""));
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
        })
        .collect();
    std::thread::sleep(Duration::from_millis(100));
    kill_process(pid, Signal::KILL).unwrap();
    let begin = Instant::now();
    for mut child in waiting {
        assert!(wait_for(|| child.try_wait().unwrap().is_some()), "a process hangs");
        assert!(!child.wait().unwrap().success());
    }
    assert!(begin.elapsed() < Duration::from_secs(20));
    let dead = [Errno::NOTCONN, Errno::CONNABORTED, Errno::CANCELED].map(|e| Some(e.raw_os_error()));
    assert!(dead.contains(&raw(open.read_at(&mut [0; 10], 90_000).unwrap_err())));
    assert!(dead.contains(&raw(fs::metadata(union.at("d/other")).unwrap_err())));
}

/// The attributes of a file whose data is in a lower are brought to the device by fsync(2), too.
#[test]
fn fsync_reaches_attributes_that_were_copied_up_alone() {
    need_unionfs!();
    if no_strace() {
        return;
    }
    let union = Union::new(1).option("metacopy=on").option("io_uring=off");
    put(union.lower(0, "f"), "data");
    let union = union.mounted();
    fs::set_permissions(union.at("f"), fs::Permissions::from_mode(0o600)).unwrap();
    let trace = Trace::begin(&union, "fsync,fdatasync");
    fs::File::open(union.at("f")).unwrap().sync_all().unwrap();
    let calls = trace.end();
    assert!(calls.iter().any(|call| call.contains("upper/f>")), "{calls:?}");
}

/// As on ext4, where a file that lost a name has changed: the whiteout is on the device after an fsync(2) of the file, of
/// which nothing else is in the upper.
#[test]
fn fsync_of_a_lower_file_reaches_the_names_that_it_lost() {
    need_unionfs!();
    if no_strace() {
        return;
    }
    let union = Union::new(1);
    put(union.lower(0, "d/a"), "data");
    fs::hard_link(union.lower(0, "d/a"), union.lower(0, "b")).unwrap();
    put(union.lower(0, "d/alone"), "data");
    let union = union.mounted();
    let synced = |file: &fs::File| {
        let trace = Trace::begin(&union, "fsync,fdatasync,syncfs");
        file.sync_all().unwrap();
        trace.end().iter().any(|call| call.contains("syncfs("))
    };
    let (linked, open) =
        (fs::File::open(union.at("b")).unwrap(), fs::File::open(union.at("d/alone")).unwrap());
    assert!(!synced(&linked) && !synced(&open));
    fs::remove_file(union.at("d/a")).unwrap();
    fs::remove_file(union.at("d/alone")).unwrap();
    assert!(synced(&linked) && synced(&open));
}

#[test]
fn what_a_crash_left_in_the_work_directory_is_removed() {
    need_unionfs!();
    let union = Union::new(1);
    put(union.work("work/#1/deep/down/file"), "x");
    put(union.work("work/#2f"), "x");
    put(union.work("work/of the user"), "x");
    let union = union.mounted();
    let names: Vec<_> = fs::read_dir(union.work("work")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["of the user"]);
}
