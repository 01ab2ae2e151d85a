//! What the mounted tests share: layers on disk, a mount that cannot outlive its test, and small
//! helpers for looking at both.
//!
//! `UNIONFS_TEST_BACKEND=overlayfs` lets the kernel's overlayfs stand in for ours, to try a test itself.
//! `UNIONFS_TEST_LIMIT` is the time limit of one mount in seconds (120 by default).

// Each test binary compiles this module for itself and uses a part of it.
#![allow(dead_code)]

pub mod disk;
pub mod files;
pub mod overlay;
pub mod trace;
pub mod tree;

use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags, fsconfig_create, fsmount, fsopen,
};
pub use tempfile::TempDir;

/// Leaves the test, saying why, where mounting is not possible.
#[macro_export]
macro_rules! need_mount {
    () => {
        if let Some(reason) = $crate::common::cannot_mount() {
            return $crate::common::skip(&reason);
        }
    };
}

/// Leaves the test, saying why, where what stands in for the union lacks the tested feature.
#[macro_export]
macro_rules! need_unionfs {
    () => {
        $crate::need_mount!();
        if $crate::common::overlay_backend() {
            return $crate::common::skip("tests what the kernel's overlayfs does not have");
        }
    };
}

/// Says past the capture of test output that a test is skipped.
pub fn skip(reason: &str) {
    let name = std::thread::current().name().unwrap_or("test").to_owned();
    let _ = writeln!(std::io::stderr(), "SKIP: {name}: {reason}");
}

/// Why nothing can be mounted here, if so.
pub fn cannot_mount() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("mounting needs root".into());
    }
    if !overlay_backend() && !Path::new("/dev/fuse").exists() {
        return Some("there is no /dev/fuse".into());
    }
    None
}

/// Whether the kernel's overlayfs stands in for ours.
pub fn overlay_backend() -> bool {
    std::env::var_os("UNIONFS_TEST_BACKEND").is_some_and(|v| v == "overlayfs")
}

/// A temporary directory on the disk filesystem (not a tmpfs, which lacks features of the real ones).
pub fn temp_dir() -> TempDir {
    tempfile::Builder::new().prefix("u").tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// The command under test.
pub fn unionfs() -> Command {
    Command::new(env!("CARGO_BIN_EXE_unionfs"))
}

/// Layers and the place of their mount, in a temporary directory.
pub struct Union {
    dir: TempDir,
    lowers: usize,
    init: bool,
    read_only: bool,
    /// How often the upper was frozen.
    frozen: usize,
    options: Vec<String>,
    watchdog: Option<Watchdog>,
}

impl Union {
    /// Empty layers, not mounted: `lowers` of them below an upper.
    pub fn new(lowers: usize) -> Self {
        let dir = temp_dir();
        for name in (0..lowers).map(|i| format!("l{i}")).chain(["upper", "work", "mnt"].map(String::from)) {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let watchdog = Some(Watchdog::new(dir.path()));
        Self { dir, lowers, init: false, read_only: false, frozen: 0, options: Vec::new(), watchdog }
    }

    /// The layers of another one, its upper the topmost, as the lowers below a new upper.
    pub fn stacked(of: &Self) -> Self {
        let mut union = Self::new(0);
        for layer in std::iter::once(of.upper("")).chain((0..of.lowers).map(|i| of.lower(i, ""))) {
            let name = format!("l{}", union.lowers);
            std::os::unix::fs::symlink(layer, union.dir.path().join(name)).unwrap();
            union.lowers += 1;
        }
        union
    }

    /// Adds an init layer.
    pub fn with_init(mut self) -> Self {
        std::fs::create_dir(self.dir.path().join("init")).unwrap();
        self.init = true;
        self
    }

    /// Adds a mount option.
    pub fn option(mut self, option: &str) -> Self {
        self.options.push(option.into());
        self
    }

    /// Sets the mount options for the next mount.
    pub fn set_options(&mut self, options: &[&str]) {
        self.options = options.iter().map(|o| (*o).to_owned()).collect();
    }

    /// Whether it is mounted with this option.
    pub fn has_option(&self, option: &str) -> bool {
        self.options.iter().any(|o| o == option)
    }

    /// Without an upper.
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// Whether it has no upper.
    pub fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The directory that holds everything.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A path in lower layer `i`; 0 is the topmost.
    pub fn lower(&self, i: usize, rel: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join(format!("l{i}")).join(rel)
    }

    /// The number of lower layers.
    pub fn lowers(&self) -> usize {
        self.lowers
    }

    /// A path in the upper layer.
    pub fn upper(&self, rel: impl AsRef<Path>) -> PathBuf {
        self.past_upper(self.frozen, rel)
    }

    /// A path in what was the upper when it had been frozen `n` times.
    pub fn past_upper(&self, n: usize, rel: impl AsRef<Path>) -> PathBuf {
        let name = if n == 0 { "upper".to_owned() } else { format!("upper.{n}") };
        self.dir.path().join(name).join(rel)
    }

    /// Freezes the upper of the mount.
    pub fn freeze(&mut self) -> Output {
        let out = unionfs().args(["commit", "--freeze", "--json"]).arg(self.mnt()).output().unwrap();
        self.frozen += usize::from(out.status.success());
        out
    }

    /// A path in the init layer.
    pub fn init(&self, rel: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join("init").join(rel)
    }

    /// A path in the work directory.
    pub fn work(&self, rel: impl AsRef<Path>) -> PathBuf {
        let name = if self.frozen == 0 { "work".to_owned() } else { format!(".upper.{}.work", self.frozen) };
        self.dir.path().join(name).join(rel)
    }

    /// A path in the mount.
    pub fn at(&self, rel: impl AsRef<Path>) -> PathBuf {
        self.dir.path().join("mnt").join(rel)
    }

    /// The mount point.
    pub fn mnt(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    /// The lowers as the command line takes them.
    pub fn lower_list(&self) -> OsString {
        let mut list = OsString::new();
        let frozen = (0..self.frozen).rev().map(|n| self.past_upper(n, ""));
        for layer in frozen.chain((0..self.lowers).map(|i| self.lower(i, ""))) {
            if !list.is_empty() {
                list.push(":");
            }
            list.push(layer);
        }
        list
    }

    /// The command that mounts.
    pub fn command(&self) -> Command {
        let mut command = unionfs();
        command.arg("mount");
        if !self.options.is_empty() {
            command.arg("-o").arg(self.options.join(","));
        }
        if self.read_only {
            command.arg("--read-only").arg(self.lower_list()).arg(self.mnt());
            return command;
        }
        if self.init {
            command.arg("--init").arg(self.init(""));
        }
        command.arg("--work").arg(self.work("")).arg(self.lower_list()).arg(self.upper("")).arg(self.mnt());
        command
    }

    /// The command that mounts and serves, as process 1 of a process namespace. The leader of its session is above.
    pub fn command_inside(&self) -> Command {
        let serve = self.command();
        let mut command = Command::new("timeout");
        command.args(["60", "unshare", "--pid", "--fork", "--kill-child"]).arg(serve.get_program());
        command.args(serve.get_args()).arg("--foreground");
        command
    }

    /// Mounts.
    pub fn mount(&mut self) {
        if overlay_backend() {
            overlay::mount(self, &[]);
        } else {
            let out = self.command().output().unwrap();
            assert!(out.status.success(), "cannot mount: {}", text(&out));
        }
        assert!(is_mounted(&self.mnt()), "the command succeeded but nothing is mounted");
    }

    /// Mounts and gives itself, for one-line setups.
    pub fn mounted(mut self) -> Self {
        self.mount();
        self
    }

    /// Unmounts, and waits until the process that served the mount is gone.
    pub fn unmount(&self) {
        let (daemon, line) = (daemon_of(&self.mnt()), mount_line(&self.mnt()));
        // A process that another test has just forked holds our open files until its exec.
        let mut result = Ok(());
        wait_at_most(Duration::from_secs(3), || {
            result = rustix::mount::unmount(self.mnt(), UnmountFlags::empty());
            result != Err(Errno::BUSY)
        });
        result.unwrap();
        if let Some(pid) = daemon {
            // How soon is for tests/mounting.rs. A process that has made a mount namespace of its own in
            // the meantime (a build in a container on the same machine) holds a copy of the mount.
            if !wait_at_most(Duration::from_secs(3), || has_ended(pid)) {
                let _ = writeln!(std::io::stderr(), "another mount namespace holds {}", self.mnt().display());
                line.iter().for_each(|l| abort(l));
            }
            assert!(wait_for(|| has_ended(pid)), "the daemon stays after the unmount");
        }
    }

    /// Unmounts and mounts.
    pub fn remount(&mut self) {
        self.unmount();
        self.mount();
    }
}

impl Drop for Union {
    fn drop(&mut self) {
        if let Some(watchdog) = self.watchdog.take() {
            watchdog.stop();
        }
        tear_down(self.dir.path());
    }
}

/// Ends mounts that live longer than a test may take, so that no test hangs.
struct Watchdog {
    done: Sender<()>,
    thread: JoinHandle<()>,
}

impl Watchdog {
    fn new(dir: &Path) -> Self {
        let (done, wait) = channel();
        let dir = dir.to_owned();
        let limit = std::env::var("UNIONFS_TEST_LIMIT").ok().and_then(|s| s.parse().ok()).unwrap_or(120);
        let thread = std::thread::spawn(move || {
            if wait.recv_timeout(Duration::from_secs(limit)) == Err(RecvTimeoutError::Timeout) {
                let _ = writeln!(std::io::stderr(), "TIMEOUT: {} after {limit} s", dir.display());
                tear_down(&dir);
            }
        });
        Self { done, thread }
    }

    fn stop(self) {
        let _ = self.done.send(());
        let _ = self.thread.join();
    }
}

/// Unmounts whatever is mounted below `dir`, in use or not, and ends its connections: requests that
/// hang fail. Reads the table only, since touching a hung mount hangs.
fn tear_down(dir: &Path) {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    for line in table.lines().rev() {
        let Some(at) = line.split_ascii_whitespace().nth(4).filter(|at| Path::new(at).starts_with(dir))
        else {
            continue;
        };
        // In this order: once it is unmounted, its number may be that of another mount.
        abort(line);
        let _ = rustix::mount::unmount(at, UnmountFlags::DETACH);
    }
}

/// Ends the connection of a FUSE mount, given as a line of /proc/self/mountinfo. By a private mount of the
/// control filesystem, which may not be mounted at its place.
fn abort(line: &str) {
    let minor = line.split_ascii_whitespace().nth(2).and_then(|d| d.split_once(':')).map_or("", |(_, m)| m);
    let end = || {
        let control = fsopen("fusectl", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&control)?;
        let control = fsmount(&control, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?;
        let abort = rustix::fs::openat(&control, format!("{minor}/abort"), OFlags::WRONLY, Mode::empty())?;
        rustix::io::write(abort, b"1")
    };
    if line.contains(" - fuse")
        && let Err(e) = end()
    {
        let _ = writeln!(std::io::stderr(), "cannot end the connection {minor}: {e}");
    }
}

/// Whether something is mounted at exactly `mnt`.
pub fn is_mounted(mnt: &Path) -> bool {
    mount_line(mnt).is_some()
}

/// The line of /proc/self/mountinfo for the topmost mount at `mnt`.
pub fn mount_line(mnt: &Path) -> Option<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let mnt = mnt.to_str().unwrap();
    table.lines().rev().find(|l| l.split_ascii_whitespace().nth(4) == Some(mnt)).map(String::from)
}

/// The process that serves the mount: the one of our command whose arguments name the mount point.
pub fn daemon_of(mnt: &Path) -> Option<u32> {
    let exe = Path::new(env!("CARGO_BIN_EXE_unionfs")).canonicalize().unwrap();
    std::fs::read_dir("/proc").unwrap().flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let proc = entry.path();
        (std::fs::read_link(proc.join("exe")).ok()? == exe).then_some(())?;
        let args = std::fs::read(proc.join("cmdline")).ok()?;
        args.split(|&b| b == 0).any(|a| a == mnt.as_os_str().as_encoded_bytes()).then_some(pid)
    })
}

/// Where the state of root's mount is recorded that this process serves.
pub fn record_of(pid: u32) -> PathBuf {
    use std::os::unix::fs::MetadataExt;
    let namespace = std::fs::metadata("/proc/self/ns/pid").unwrap().ino();
    PathBuf::from(format!("/run/unionfs/{namespace}-{pid}.json"))
}

/// How long a test waits for what has to come: much longer than it takes, also on a busy machine where other tests have
/// mount namespaces of their own meanwhile, with copies of our mounts in them.
const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `done`, within patience; gives whether it was done.
pub fn wait_for(done: impl FnMut() -> bool) -> bool {
    wait_at_most(PATIENCE, done)
}

/// Waits until `done` or the time is over; gives whether it was done.
pub fn wait_at_most(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + limit;
    while !done() {
        if Instant::now() > end {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Whether a process has ended, whether or not its parent has asked for it.
pub fn has_ended(pid: u32) -> bool {
    // The state comes behind the name, which may contain anything (proc_pid_stat(5)).
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']))
}

/// What a command said.
pub fn text(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

/// Runs a command that must succeed; gives its standard output.
pub fn run(program: impl AsRef<OsStr>, args: &[&OsStr]) -> String {
    let out = Command::new(program.as_ref()).args(args).output().unwrap();
    assert!(out.status.success(), "{:?} {args:?}: {}", program.as_ref(), text(&out));
    String::from_utf8_lossy(&out.stdout).into_owned()
}
