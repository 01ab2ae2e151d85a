//! `unionfs run`: a command in a mounted tree, in a mount namespace that ends with it.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, WaitStatus};
use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM};
use signal_hook::iterator::Signals;
use tempfile::TempDir;

use super::args::RunArgs;
use super::ids;
use super::mount::{self, Start};
use super::volume::{self, Volume};
use crate::config::MountConfig;
use crate::error::{Errno, MountError};
use crate::fuse::session;
use crate::sys::namespace;
use crate::sys::process::{self, Fork};

/// Exit status when there is no command's to pass through, as of chroot(1) and env(1).
const FAILED: u8 = 125;
/// The command is there but cannot be run.
const NOT_EXECUTABLE: u8 = 126;
/// There is no such command.
const NOT_FOUND: u8 = 127;
/// What a signal's number is added to for an exit status, as in a shell.
const SIGNALLED: i32 = 128;

/// How long the daemon may take to end once nobody has the tree any more.
const PATIENCE: Duration = Duration::from_secs(10);

/// Mounts, runs the command, unmounts. Gives the exit status of the command.
pub fn run(args: RunArgs) -> ExitCode {
    match attempt(args) {
        Ok(status) => ExitCode::from(status),
        Err(e) => {
            super::complain(&e);
            ExitCode::from(FAILED)
        }
    }
}

fn attempt(args: RunArgs) -> Result<u8, MountError> {
    let volumes = args.volumes.iter().map(|v| Volume::parse(v)).collect::<Result<Vec<_>, _>>()?;
    let create = args.mount.create;
    let (mount, command) = args.split()?;
    let config = mount::configure(mount)?;
    enter()?;
    // Before the tree is there: a copy of the directory that it is mounted in would have it too.
    let bindings = volume::prepare(volumes)?;
    let mounted = Mounted::new(config, create)?;
    // Those who lose their parent become children of this process, to be ended with the command.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let signals = Signals::new([SIGHUP, SIGINT, SIGQUIT, SIGTERM])
        .map_err(|e| MountError::System(format!("cannot catch signals: {e}")))?;
    let status = supervise(&mounted, bindings, command, signals);
    mounted.end_others();
    status
}

/// Goes into a mount namespace, and into a user namespace first where nothing else permits that.
fn enter() -> Result<(), MountError> {
    let refused = |e: Errno| {
        MountError::System(format!(
            "a mount namespace is not permitted here ({e}); run as root, or permit user namespaces"
        ))
    };
    match namespace::enter_mounts() {
        Err(Errno::PERM) => {
            ids::enter_user_namespace().map_err(refused)?;
            namespace::enter_mounts().map_err(refused)
        }
        other => other.map_err(refused),
    }
}

/// The tree in this process' mount namespace, and the daemon that serves it. Dropping unmounts.
struct Mounted {
    at: PathBuf,
    daemon: Pid,
    /// The mount point when the user has named none.
    _place: Option<TempDir>,
}

impl Mounted {
    fn new(mut config: MountConfig, create: bool) -> Result<Self, MountError> {
        let place = match config.mountpoint.as_os_str().is_empty() {
            true => Some(tempfile::Builder::new().prefix("unionfs-run.").tempdir().map_err(|e| {
                let reason =
                    format!("a mount point cannot be made in it ({e}); name a MOUNTPOINT, or set TMPDIR");
                MountError::path("temporary directory", std::env::temp_dir(), reason)
            })?),
            false => None,
        };
        if let Some(place) = &place {
            config.mountpoint = place.path().to_owned();
        }
        let at = config.mountpoint.clone();
        match process::fork() {
            Ok(Fork::Parent(verdict)) => {
                let daemon = verdict.child();
                verdict.wait().map_err(MountError::System)?;
                let at = at.canonicalize().unwrap_or(at);
                Ok(Self { at, daemon, _place: place })
            }
            Ok(Fork::Child(reporter)) => {
                // A mount that nobody can reach any more must not stay.
                let _ = rustix::process::set_parent_process_death_signal(Some(Signal::TERM));
                mount::daemon(Start { config, create, foreground: false, ignored: Vec::new() }, reporter)
            }
            Err(e) => Err(MountError::System(format!("cannot start a daemon: {e}"))),
        }
    }

    /// Kills what the command has left running, also what those leave.
    fn end_others(&self) {
        loop {
            let others: Vec<Pid> =
                process::children().into_iter().filter(|&pid| pid != self.daemon).collect();
            if others.is_empty() {
                return;
            }
            for pid in others {
                let _ = rustix::process::kill_process(pid, Signal::KILL);
                // It may have become a zombie, or not be ours to wait for.
                let _ = rustix::process::waitpid(Some(pid), WaitOptions::empty());
            }
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(e) = session::unmount(&self.at, true) {
            super::complain(&MountError::path("mount point", &self.at, format!("cannot be unmounted: {e}")));
        }
        // Its end is what frees the layers. Somebody outside may have a file of the tree open.
        let begin = Instant::now();
        while let Ok(None) = rustix::process::waitpid(Some(self.daemon), WaitOptions::NOHANG) {
            if begin.elapsed() > PATIENCE {
                let _ = rustix::process::kill_process(self.daemon, Signal::TERM);
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Runs the command in the tree, hands signals on to it, waits for it.
fn supervise(
    mounted: &Mounted,
    bindings: Vec<volume::Binding>,
    command: Vec<OsString>,
    mut signals: Signals,
) -> Result<u8, MountError> {
    let verdict = match process::split() {
        Ok(Fork::Parent(verdict)) => verdict,
        Ok(Fork::Child(reporter)) => {
            // When this program is killed, nobody else would end the command, whose tree is gone then.
            let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
            let (status, message) = become_command(mounted, bindings, &command);
            reporter.failed(&message);
            // No destructors: the mount is the parent's.
            std::process::exit(status.into());
        }
        Err(e) => return Err(MountError::System(format!("cannot start a process: {e}"))),
    };
    let pid = verdict.child();
    // A descriptor, since the number may be another process' by the time a signal comes.
    if let Ok(target) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
        let handed_on =
            std::thread::Builder::new().name("signals".into()).spawn(move || hand_on(&mut signals, &target));
        handed_on.map_err(|e| MountError::System(format!("cannot start a thread: {e}")))?;
    }
    let told = verdict.started();
    let status =
        wait_for(pid).map_err(|e| MountError::System(format!("cannot wait for the command: {e}")))?;
    if let Err(message) = told {
        super::complain(&MountError::System(message));
    }
    Ok(exit_status(status))
}

/// Hands signals on. Those of the terminal's keys are sent to the command by the terminal itself.
fn hand_on(signals: &mut Signals, target: &OwnedFd) {
    for signal in signals.forever() {
        let signal = match signal {
            SIGTERM => Signal::TERM,
            SIGHUP => Signal::HUP,
            _ => continue,
        };
        // It may be gone.
        let _ = rustix::process::pidfd_send_signal(target, signal);
    }
}

/// Waits for one child, and takes note of the end of others meanwhile.
fn wait_for(command: Pid) -> Result<WaitStatus, Errno> {
    loop {
        match rustix::process::wait(WaitOptions::empty()) {
            Ok(Some((pid, status))) if pid == command => return Ok(status),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

fn exit_status(status: WaitStatus) -> u8 {
    let code = match status.terminating_signal() {
        Some(signal) => SIGNALLED + signal,
        None => status.exit_status().unwrap_or_else(|| FAILED.into()),
    };
    u8::try_from(code).unwrap_or(FAILED)
}

/// Makes this process the command, with the tree as its root. Comes back only when that fails, with an exit status
/// and the reason.
fn become_command(mounted: &Mounted, bindings: Vec<volume::Binding>, command: &[OsString]) -> (u8, String) {
    let failed = |message: String| (FAILED, message);
    // With this namespace goes what is bound in it: the parent has the tree alone.
    if let Err(e) = namespace::enter_mounts() {
        return failed(format!("a mount namespace is not permitted here: {e}"));
    }
    let root = match namespace::open_root(&mounted.at) {
        Ok(root) => root,
        Err(e) => return failed(MountError::path("mount point", &mounted.at, e.to_string()).to_string()),
    };
    for binding in bindings {
        if let Err(e) = binding.attach(&root) {
            return failed(e.to_string());
        }
    }
    if let Err(e) = namespace::change_root(&root) {
        return failed(format!("cannot make the tree the root directory: {e}"));
    }
    drop(root);
    let Some((program, args)) = command.split_first() else {
        return failed("there is no command to run".into());
    };
    // The signals have handlers, which execve(2) undoes.
    let error = Command::new(program).args(args).exec();
    let program = program.to_string_lossy();
    match error.kind() {
        io::ErrorKind::NotFound => {
            (NOT_FOUND, format!("command {program}: is not found in the tree; correct the name or its PATH"))
        }
        _ => (NOT_EXECUTABLE, format!("command {program}: cannot be run: {error}")),
    }
}
