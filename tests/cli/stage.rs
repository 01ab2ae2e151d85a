//! A place to run the command in: layers, time limits, and an eye on what is left behind.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

pub const LIMIT: Duration = Duration::from_secs(20);
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_unionfs");

/// A temporary directory with layers in it. Dropping ends every mount below it.
pub struct Stage {
    pub dir: tempfile::TempDir,
}

pub struct Outcome {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Stage {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a/sub", "b", "u/sub", "i", "m"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("a/file"), "from a\n").unwrap();
        fs::write(dir.path().join("b/other"), "from b\n").unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        std::os::unix::fs::symlink("a", dir.path().join("link")).unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(PROGRAM);
        command.args(args).current_dir(self.dir.path());
        command
    }

    pub fn run(&self, args: &[&str]) -> Outcome {
        finish(self.command(args))
    }

    /// Runs a command that must succeed without a word.
    pub fn ok(&self, args: &[&str]) {
        let outcome = self.run(args);
        assert_eq!(
            (outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()),
            (Some(0), "", ""),
            "{args:?}"
        );
    }

    /// Runs a command that must fail with one sentence that contains all of `says`, and leave nothing.
    pub fn fails(&self, args: &[&str], says: &[&str]) {
        let before = self.tree();
        let mounts = self.mounts();
        let outcome = self.run(args);
        assert_refused(&outcome, args, says);
        assert_eq!(self.tree(), before, "{args:?} left something behind");
        assert_eq!(self.mounts(), mounts, "{args:?} left a mount behind");
    }

    /// Everything below the stage, without a look into mounts.
    pub fn tree(&self) -> BTreeSet<PathBuf> {
        let mounts = self.mounts();
        let mut found = BTreeSet::new();
        let mut open = vec![self.path("")];
        while let Some(dir) = open.pop() {
            for entry in fs::read_dir(dir).unwrap() {
                let entry = entry.unwrap();
                let path = entry.path();
                if !mounts.contains(&path) && entry.file_type().unwrap().is_dir() {
                    open.push(path.clone());
                }
                found.insert(path);
            }
        }
        found
    }

    /// Mount points below the stage.
    pub fn mounts(&self) -> Vec<PathBuf> {
        self.mount_lines().into_iter().map(|(_, at)| at).collect()
    }

    /// Device numbers and mount points below the stage. The names here need no escapes.
    fn mount_lines(&self) -> Vec<(String, PathBuf)> {
        let root = self.path("");
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table
            .lines()
            .filter_map(|line| {
                let fields: Vec<&str> = line.split(' ').collect();
                let at = PathBuf::from(fields[4]);
                at.starts_with(&root).then(|| (fields[2].to_owned(), at))
            })
            .collect()
    }

    /// Process ids of living daemons that hold something below the stage open.
    pub fn daemons(&self) -> Vec<u32> {
        // By what they are: a daemon reaches its layers by clones of their mounts, which have no paths.
        let id = |path: &Path| fs::metadata(path).ok().map(|m| (m.dev(), m.ino()));
        let below = ["a", "b", "u", "i", ".u.work", ".u.work/work", ".u.work/index", ".i.work"];
        let below: Vec<_> = below.iter().filter_map(|name| id(&self.path(name))).collect();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").unwrap().flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
            let Ok(fds) = fs::read_dir(entry.path().join("fd")) else { continue };
            let is_ours = fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == Path::new(PROGRAM));
            let holds = |fd: fs::DirEntry| id(&fd.path()).is_some_and(|id| below.contains(&id));
            if is_ours && fds.flatten().any(holds) {
                found.push(pid);
            }
        }
        found
    }

    pub fn wait_until(&self, what: &str, mut done: impl FnMut(&Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < LIMIT, "waited in vain: {what}");
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        for (device, at) in self.mount_lines().into_iter().rev() {
            // A daemon that hangs must not make us hang.
            if let Some((_, minor)) = device.split_once(':') {
                let _ = fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1");
            }
            let _ = Command::new("umount").arg("-l").arg(at).status();
        }
    }
}

pub fn assert_refused(outcome: &Outcome, args: &[&str], says: &[&str]) {
    let said = &outcome.stderr;
    assert_eq!(outcome.code, Some(1), "{args:?}: {said}");
    assert!(said.starts_with("unionfs: ") && said.ends_with('\n'), "{args:?}: {said:?}");
    assert_eq!(said.lines().count(), 1, "{args:?}: {said:?}");
    for part in says {
        assert!(said.contains(part), "{args:?}: {said:?} lacks {part:?}");
    }
    assert_eq!(outcome.stdout, "", "{args:?}");
}

/// Runs to the end, output read until it is closed by all who have it, within the limit.
pub fn finish(mut command: Command) -> Outcome {
    let shown = format!("{command:?}");
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    finish_child(child, &shown)
}

fn finish_child(mut child: Child, shown: &str) -> Outcome {
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let status = wait(&mut child, shown);
    let limit = |out: mpsc::Receiver<String>| {
        out.recv_timeout(LIMIT).unwrap_or_else(|_| panic!("{shown}: someone keeps the output open"))
    };
    Outcome { code: status.code(), stdout: limit(stdout), stderr: limit(stderr) }
}

pub fn wait(child: &mut Child, shown: &str) -> std::process::ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            assert_eq!(status.signal(), None, "{shown}");
            return status;
        }
        if start.elapsed() > LIMIT {
            child.kill().unwrap();
            panic!("{shown}: not done after {LIMIT:?}");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn drain(from: Option<impl Read + Send + 'static>) -> mpsc::Receiver<String> {
    let (send, receive) = mpsc::channel();
    thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(mut from) = from {
            from.read_to_end(&mut text).unwrap();
        }
        let _ = send.send(String::from_utf8_lossy(&text).into_owned());
    });
    receive
}

pub fn signal(pid: u32, name: &str) {
    let status = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status().unwrap();
    assert!(status.success());
}

/// Whether mounts can be made here; says why not.
pub fn can_mount() -> bool {
    let reason = if !rustix::process::geteuid().is_root() {
        "not root"
    } else if !fs::metadata("/dev/fuse").is_ok_and(|m| m.file_type().is_char_device()) {
        "no /dev/fuse"
    } else {
        return true;
    };
    eprintln!("skipped: {reason}");
    false
}

/// The directory to try "another filesystem" with, if there is one.
pub fn other_filesystem(stage: &Stage) -> Option<tempfile::TempDir> {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::metadata(path).ok().map(|m| m.dev());
    let shm = Path::new("/dev/shm");
    if device(shm).is_none() || device(shm) == device(stage.dir.path()) {
        eprintln!("skipped: /dev/shm is no other filesystem");
        return None;
    }
    tempfile::tempdir_in(shm).ok()
}

/// Runs a script in a mount namespace of its own, in which every mount ends with it.
pub fn in_namespace(stage: &Stage, script: &str) -> Outcome {
    let mut command = Command::new("unshare");
    command.args(["--mount", "timeout", "20", "sh", "-exc", script, "sh", PROGRAM]);
    command.current_dir(stage.dir.path());
    finish(command)
}
