//! The daemon's process: detaching from the caller, standard descriptors, limits.
#![allow(unsafe_code)] // fork(2), close_range(2), mallopt(3) and malloc_trim(3) have no safe wrapper; SO_PEERCRED: see peer.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Resource, Rlimit, WaitOptions};

use crate::error::{Errno, Result};

/// The two processes after [`fork`] and [`split`].
#[derive(Debug)]
pub enum Fork {
    /// The caller's process, which waits for the verdict.
    Parent(Verdict),
    /// The new process.
    Child(Reporter),
}

/// The parent's end: what became of the child.
#[derive(Debug)]
pub struct Verdict {
    pipe: OwnedFd,
    child: Pid,
}

/// The child's end.
#[derive(Debug)]
pub struct Reporter {
    pipe: std::fs::File,
}

const READY: u8 = b'+';
const FAILED: u8 = b'-';

/// Splits off a daemon: with umask 0 and without inherited descriptors but the standard ones. It is in its starter's
/// session, within reach of the terminal, until it calls [`leave_session`]. To be called while the process has one
/// thread only.
///
/// # Errors
/// Those of pipe(2) and fork(2).
pub fn fork() -> Result<Fork> {
    let fork = split()?;
    if let Fork::Child(reporter) = &fork {
        rustix::process::umask(Mode::empty());
        close_all_but(&reporter.pipe);
    }
    Ok(fork)
}

/// Puts the process into a session of its own: out of reach of the terminal, and in a scheduling group of its own where
/// sessions are such groups ([`super::scheduling`]). A new group gets less of a busy CPU at first, so this comes last.
///
/// # Errors
/// EPERM for the leader of a process group.
pub fn leave_session() -> Result<()> {
    rustix::process::setsid().map(drop)
}

/// Splits off a process that is as its parent. To be called while the process has one thread only.
///
/// # Errors
/// Those of pipe(2) and fork(2).
pub fn split() -> Result<Fork> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    // SAFETY: the process has a single thread (the contract above), so that no lock can be left held
    // in the child.
    let pid = unsafe { libc::fork() };
    match pid {
        -1 => Err(super::last_errno()),
        0 => Ok(Fork::Child(Reporter { pipe: write.into() })),
        pid => {
            let child = Pid::from_raw(pid).ok_or(Errno::CHILD)?;
            Ok(Fork::Parent(Verdict { pipe: read, child }))
        }
    }
}

/// Closes what the caller left open above the standard descriptors: a daemon that kept, say, the
/// descriptor of a lock file would hold the lock for its whole life.
fn close_all_but(keep: &impl AsRawFd) {
    let close = |from: libc::c_uint, to: libc::c_uint| {
        if from <= to {
            // SAFETY: closes descriptors that nothing in this process owns: right after the fork, only
            // `keep` has been opened by us. Failure (before Linux 5.9) leaves them open, no harm.
            unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
        }
    };
    let Ok(keep) = libc::c_uint::try_from(keep.as_raw_fd()) else { return };
    if keep >= 3 {
        close(3, keep - 1);
    }
    close((keep + 1).max(3), libc::c_uint::MAX);
}

impl Verdict {
    /// The child's number.
    pub fn child(&self) -> Pid {
        self.child
    }

    /// Waits until the child has become another program (execve(2)), or has told why it could not. One that has
    /// ended without a word counts as started: waiting for it tells.
    ///
    /// # Errors
    /// What the child has told.
    pub fn started(self) -> std::result::Result<(), String> {
        let mut report = Vec::new();
        let _ = std::fs::File::from(self.pipe).read_to_end(&mut report);
        match report.split_first() {
            None => Ok(()),
            Some((_, message)) => Err(String::from_utf8_lossy(message).into_owned()),
        }
    }

    /// Waits until the child has reported or ended. The error is the child's message, or how it ended
    /// without one.
    ///
    /// # Errors
    /// Why the child failed.
    pub fn wait(self) -> std::result::Result<(), String> {
        let mut report = Vec::new();
        // What a broken read leaves unread is treated as an end without a word.
        let _ = std::fs::File::from(self.pipe).read_to_end(&mut report);
        if let Some((&READY, _)) = report.split_first() {
            return Ok(());
        }
        // It is at its end: its locks are free once it is gone.
        let end = rustix::process::waitpid(Some(self.child), WaitOptions::empty()).ok().flatten();
        match report.split_first() {
            Some((_, message)) => Err(String::from_utf8_lossy(message).into_owned()),
            None => Err(match end.and_then(|(_, status)| status.terminating_signal()) {
                Some(signal) => format!("the daemon was killed by signal {signal} before the mount answered"),
                None => "the daemon ended before the mount answered".into(),
            }),
        }
    }
}

impl Reporter {
    /// Tells the parent that all is well.
    ///
    /// # Errors
    /// EPIPE when the parent is gone.
    pub fn ready(mut self) -> std::io::Result<()> {
        self.pipe.write_all(&[READY])
    }

    /// Tells the parent what went wrong.
    pub fn failed(mut self, message: &str) {
        let mut report = vec![FAILED];
        report.extend_from_slice(message.as_bytes());
        // A parent that is gone has nobody to tell.
        let _ = self.pipe.write_all(&report);
    }
}

/// The processes whose parent this one is, as /proc shows them now.
pub fn children() -> Vec<Pid> {
    let own = rustix::process::getpid().as_raw_nonzero().to_string();
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let is_child = |pid: &Pid| {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap_or_default();
        // proc_pid_stat(5): the name, in parentheses, may contain anything; state and parent follow.
        stat.rsplit_once(") ").and_then(|(_, rest)| rest.split(' ').nth(1)) == Some(&own)
    };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(Pid::from_raw).filter(is_child).collect()
}

/// Puts /dev/null in the place of standard input, output and error.
///
/// # Errors
/// Those of open(2) and dup2(2).
pub fn release_stdio() -> Result<()> {
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)
}

/// Has large blocks of memory always go back to the system when they are freed. By default glibc keeps more of them
/// for itself the larger they are (mallopt(3), M_MMAP_THRESHOLD): tables that have grown with millions of objects
/// would leave holes between smaller things.
pub fn keep_no_large_blocks() {
    const LARGE: libc::c_int = 128 << 10;
    // SAFETY: sets a number; failure leaves the default.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, LARGE);
    }
}

/// Gives memory that was freed back to the system. Takes milliseconds after much was used.
pub fn give_back_memory() {
    // SAFETY: only touches what the allocator has to itself.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Lets the process open as many files as it may: each directory and open file of the mount needs
/// one here. The limit is that of this process alone.
pub fn raise_open_files() {
    let now = rustix::process::getrlimit(Resource::Nofile);
    // Nobody may have more than fs.nr_open (proc_sys_fs(5)); raising the hard limit up to it takes
    // CAP_SYS_RESOURCE.
    let ceiling = std::fs::read_to_string("/proc/sys/fs/nr_open").ok().and_then(|s| s.trim().parse().ok());
    if let (Some(ceiling), Some(maximum)) = (ceiling, now.maximum)
        && ceiling > maximum
    {
        let all = Rlimit { current: Some(ceiling), maximum: Some(ceiling) };
        if rustix::process::setrlimit(Resource::Nofile, all).is_ok() {
            return;
        }
    }
    // Lower than asked for is no reason not to mount.
    let _ =
        rustix::process::setrlimit(Resource::Nofile, Rlimit { current: now.maximum, maximum: now.maximum });
}

/// The process at the other end of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// 0: not visible in our process namespace.
    pub pid: u32,
    /// Its effective user.
    pub uid: u32,
}

/// Who is at the other end of a unix socket, as it was when they were connected; for who listens, when he began to.
/// Not by rustix, which takes for granted that there is a process number.
///
/// # Errors
/// Those of getsockopt(2).
pub fn peer(socket: impl AsFd) -> Result<Peer> {
    let mut found = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes, which are ours.
    let rc = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            (&raw mut found).cast(),
            &raw mut len,
        )
    };
    match rc {
        0 => Ok(Peer { pid: found.pid.try_into().unwrap_or(0), uid: found.uid }),
        _ => Err(super::last_errno()),
    }
}

/// How many files the process may have open.
pub fn open_files() -> u64 {
    const UNLIMITED: u64 = 1 << 20;
    rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(UNLIMITED)
}

/// The numbers of a user and a group that stand for those without a place in a map
/// (proc_sys_kernel(5), `overflowuid` and `overflowgid`).
pub fn overflow_ids() -> (u32, u32) {
    let read = |name: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?;
        text.trim().parse().ok()
    };
    (read("overflowuid").unwrap_or(65534), read("overflowgid").unwrap_or(65534))
}
