//! Makes the mount, serves it, ends it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::sync::{Arc, Once};
use std::thread;

use rustix::event::{PollFd, PollFlags};
use rustix::mount::MountFlags;

use super::adapter::Adapter;
use super::connect::{self, complain, one_line};
use super::handshake::{self, Wanted};
use super::keeper::Keeper;
use super::mounts;
use super::report::Report;
use super::workers::Workers;
use crate::config::{Atime, IoUring, MountConfig, Options};
use crate::error::{Errno, MountError};
use crate::format::mountinfo;
use crate::fs::UnionFs;
use crate::fs::gate::Gate;
use crate::layer::claim::Claim;
use crate::sys;
use crate::sys::confine;
use crate::sys::cred;
use crate::sys::fuse::Device;
use crate::sys::mount::FuseMount;
use crate::sys::scheduling;

/// The source in the mount table unless `fsname=` says otherwise.
const DEFAULT_SOURCE: &str = "unionfs";

/// A mount whose handshake with the kernel is done; requests are answered once [`Mounted::run`] runs.
pub struct Mounted {
    gate: Arc<Gate>,
    workers: Workers,
    ring: bool,
    sandbox: bool,
    claim: Claim,
    stopper: Stopper,
    report: Report,
}

impl std::fmt::Debug for Mounted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mounted").field("stopper", &self.stopper).finish_non_exhaustive()
    }
}

/// Ends a mount from another thread.
#[derive(Debug, Clone)]
pub struct Stopper {
    /// In the mount table; `None` if it was not found there.
    id: Option<u64>,
    mount_point: PathBuf,
    /// Of a mount that this process may not end by itself.
    keeper: Option<Keeper>,
    /// What was mounted, if it is marked as volatile until its end.
    marked: Option<Arc<Marked>>,
}

/// A mount whose work directory is marked until its end, which more than one thread can see.
#[derive(Debug)]
struct Marked {
    gate: Arc<Gate>,
    settled: Once,
}

/// Checks that the kernel's FUSE device can be opened.
///
/// # Errors
/// A sentence that says what is missing.
pub fn check_device() -> Result<(), MountError> {
    let reason = match Device::open() {
        Ok(_) => return Ok(()),
        Err(Errno::NOENT) => {
            "does not exist; load the kernel module (modprobe fuse) or give the container the device"
                .to_owned()
        }
        Err(Errno::NODEV | Errno::NXIO) => "has no driver; load the kernel module (modprobe fuse)".to_owned(),
        Err(Errno::ACCESS | Errno::PERM) => {
            "may not be opened by this user; run as root or allow the device".to_owned()
        }
        Err(e) => format!("cannot be opened: {e}"),
    };
    Err(MountError::path("device", sys::fuse::DEVICE, reason))
}

/// Opens the layers (which must have passed [`crate::layer::claim`]), mounts at `config.mountpoint`.
///
/// # Errors
/// A sentence for the user. Nothing is left mounted.
pub fn mount(config: &MountConfig, mut claim: Claim) -> Result<Mounted, MountError> {
    check_device()?;
    let mut options = config.options.clone();
    options.read_only |= config.layers.upper.is_none();
    if config.layers.upper.is_none() {
        let limits = [("size", options.size.is_some()), ("inodes", options.inodes.is_some())];
        if let Some((name, _)) = limits.into_iter().find(|(_, given)| *given) {
            let reason = "limits the upper layer, and there is none; name one or leave the option out";
            return Err(MountError::option(name, reason));
        }
    }
    let fds =
        claim.take_fds().ok_or_else(|| MountError::System("the layers were mounted already".to_owned()))?;
    let union = UnionFs::open(fds, &options)
        .map_err(|e| MountError::System(format!("the layers cannot be put together: {e}")))?;
    let gate = Arc::new(Gate::new(union));
    // The table and the stopper need the path without symlinks.
    let at = config.mountpoint.canonicalize().map_err(|e| complain(&config.mountpoint, e.to_string()))?;
    let (device, agreed) = open_connection(&at, &options)?;
    let volatile = options.volatile_mark && !options.read_only;
    if volatile && let Err(e) = gate.enter().stack().mark_volatile() {
        let _ = unmount(&at, true);
        return Err(MountError::System(format!(
            "the work directory cannot be marked as that of a volatile mount: {e}"
        )));
    }
    let marked = volatile.then(|| Arc::new(Marked { gate: Arc::clone(&gate), settled: Once::new() }));
    // Without the right to mount there is none to unmount.
    let keeper = match options.sandbox && !cred::is_admin() {
        true => Keeper::start(&at)
            .inspect_err(|e| {
                tracing::warn!("this mount cannot be ended by a signal: sh cannot be started: {e}")
            })
            .ok(),
        false => None,
    };
    let adapter = Adapter::new(Arc::clone(&gate), Arc::clone(&device), agreed.passthrough, &options);
    let report = Report::new(Arc::clone(&gate), adapter.stats(), agreed);
    let threads = options.threads.unwrap_or_else(|| default_threads(agreed.ring)).max(1);
    let workers = Workers { adapter: Arc::new(adapter), device, threads, alone: false };
    if options.private
        && let Err(e) = sys::mount::make_private(&at)
    {
        tracing::debug!("the mount stays as shared as the one it lies on: {e}");
    }
    let entry = mounts::top_at(&at).ok().flatten().filter(mountinfo::is_unionfs);
    if let Some(entry) = &entry {
        mounts::read_ahead(entry);
    }
    let stopper = Stopper { id: entry.map(|e| e.id), mount_point: at, keeper, marked };
    Ok(Mounted { gate, workers, ring: agreed.ring, sandbox: options.sandbox, claim, stopper, report })
}

/// Mounts and shakes hands.
fn open_connection(at: &Path, options: &Options) -> Result<(Arc<Device>, Wanted), MountError> {
    let root = rustix::process::geteuid().is_root();
    let allow_other = options.allow_other.unwrap_or(root);
    let source = options.fsname.as_deref().unwrap_or(DEFAULT_SOURCE);
    let context = options.context.as_deref().filter(|_| labels_count());
    let request = FuseMount { source, allow_other, context, flags: mount_flags(options) };
    let device = Arc::new(Device::new(connect::connect(at, &request)?));
    let wanted = Wanted {
        passthrough: options.passthrough && cred::is_host_admin(),
        ring: options.io_uring != IoUring::Off,
        acl: options.acl,
    };
    let agreed = handshake::shake(&device, wanted)
        .map_err(|e| complain(at, format!("the kernel's handshake failed: {e}")))
        .and_then(|agreed| match options.io_uring {
            IoUring::On if !agreed.ring => Err(MountError::option(
                "io_uring=on",
                "is not possible here; write Y to /sys/module/fuse/parameters/enable_uring (Linux 6.14 or later), or \
                 use io_uring=auto",
            )),
            _ => Ok(agreed),
        });
    match agreed {
        Ok(agreed) => {
            tracing::info!(io_uring = agreed.ring, passthrough = agreed.passthrough, "mounted");
            Ok((device, agreed))
        }
        Err(e) => {
            // A mount that nobody serves must not stay; that it may have gone by itself is fine.
            let _ = unmount(at, true);
            Err(e)
        }
    }
}

/// Whether labels mean anything: the kernel refuses them without SELinux.
fn labels_count() -> bool {
    Path::new("/sys/fs/selinux/enforce").exists()
}

fn mount_flags(options: &Options) -> MountFlags {
    let mut flags = MountFlags::empty();
    flags.set(MountFlags::RDONLY, options.read_only);
    flags.set(MountFlags::NODEV, options.nodev);
    flags.set(MountFlags::NOSUID, options.nosuid);
    flags.set(MountFlags::NOEXEC, options.noexec);
    flags.set(MountFlags::SYNCHRONOUS, options.sync);
    flags.set(MountFlags::DIRSYNC, options.dirsync);
    flags.set(MountFlags::NODIRATIME, options.nodiratime);
    flags.set(MountFlags::NOATIME, options.atime == Atime::No);
    flags.set(MountFlags::RELATIME, options.atime == Atime::Relative);
    flags.set(MountFlags::STRICTATIME, options.atime == Atime::Strict);
    flags
}

/// For the device two workers per CPU: one may wait for a disk while the other answers. For rings, whose workers
/// start when they are needed, the most for one CPU.
fn default_threads(ring: bool) -> usize {
    const MOST_FOR_ONE_CPU: usize = 8;
    if ring {
        return MOST_FOR_ONE_CPU;
    }
    thread::available_parallelism().map_or(4, |cpus| cpus.get() * 2).clamp(4, 16)
}

impl Mounted {
    /// What ends this mount from another thread.
    pub fn stopper(&self) -> Stopper {
        self.stopper.clone()
    }

    /// Its number in the mount table, if it was found there.
    pub fn id(&self) -> Option<u64> {
        self.stopper.id
    }

    /// The way into its filesystem, for others than the kernel.
    pub fn gate(&self) -> Arc<Gate> {
        Arc::clone(&self.gate)
    }

    /// Gives up what serving does not take; what is left to be given up is for [`Self::confine_calls`].
    pub fn confine(&self) {
        if self.sandbox
            && let Err(e) = confine::give_up_privileges()
        {
            tracing::warn!("privileges that are not needed are kept: {e}");
        }
    }

    /// Finds out whether this process, which has its final session now, is alone in a scheduling group.
    pub fn stand_alone(&mut self) {
        self.workers.alone = self.ring && scheduling::has_group_of_its_own();
    }

    /// From now on this process makes no system calls but those that serving takes.
    pub fn confine_calls(&self) {
        if self.sandbox
            && let Err(e) = confine::filter_calls(self.ring)
        {
            tracing::warn!("system calls are not filtered: {e}");
        }
    }

    /// The statistics of this mount, also for another thread.
    pub fn report(&self) -> Report {
        self.report.clone()
    }

    /// Serves requests until the mount is unmounted by whatever means. Blocks.
    ///
    /// Returns as soon as the kernel has ended the connection, even if a worker is still busy with a last
    /// request: the caller should exit at once, which frees the layers. Their locks stay until the
    /// workers are done or the process ends.
    ///
    /// # Errors
    /// A failure of the connection to the kernel.
    pub fn run(self) -> io::Result<()> {
        let Self { workers, ring, claim, stopper, gate, report: _, sandbox: _ } = self;
        let device = workers.device.as_fd().try_clone_to_owned()?;
        let (ended, end) = mpsc::channel();
        let also_ended = ended.clone();
        thread::Builder::new().name("session".into()).spawn(move || {
            let result = workers.run(ring);
            drop(claim);
            // The other thread may have been first.
            let _ = ended.send(result);
        })?;
        if let Some(id) = stopper.id {
            thread::Builder::new().name("unmount-watch".into()).spawn(move || {
                match wait_disconnected(id, &device) {
                    Ok(()) => drop(also_ended.send(Ok(()))),
                    // The session thread tells as well, only later.
                    Err(e) => tracing::warn!("cannot watch for the unmount: {e}"),
                }
            })?;
        }
        // Now that the mount answers, nobody waits for this.
        gate.enter().stack().let_trees_go();
        drop(gate);
        end.recv().unwrap_or(Ok(()))
    }
}

/// Blocks until the connection has ended. The device reports that by POLLERR, but wakes a poller on each
/// request as well: it is polled only once the mount has left the table, and what keeps the connection
/// alive then is a file that is still open after a lazy unmount.
fn wait_disconnected(id: u64, device: &OwnedFd) -> io::Result<()> {
    mounts::wait_gone(id)?;
    loop {
        let mut watched = [PollFd::new(device, PollFlags::empty())];
        match rustix::event::poll(&mut watched, None) {
            Ok(_) if watched[0].revents().contains(PollFlags::ERR) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

impl Stopper {
    /// Takes the mount out of the tree, even when it is in use; what is in use loses it when the process
    /// exits. Finds it also where it was moved to.
    ///
    /// # Errors
    /// Those of umount2(2) and fusermount3(1).
    pub fn unmount(&self) -> io::Result<()> {
        let table = mounts::table()?;
        let unmount = |at: &Path| self.keeper.as_ref().map_or_else(|| unmount(at, true), Keeper::unmount);
        let Some(id) = self.id else { return unmount(&self.mount_point) };
        let Some(entry) = table.iter().find(|entry| entry.id == id) else { return Ok(()) };
        if mountinfo::top_at(&table, &entry.mount_point).is_some_and(|top| top.id != id) {
            return Err(io::Error::other("another mount lies on top"));
        }
        unmount(&entry.mount_point)
    }

    /// Brings the layers of a volatile mount that has ended to their devices, after which they may be used again. Done once;
    /// who comes later waits for it.
    pub fn settle(&self) {
        let Some(Marked { gate, settled }) = self.marked.as_deref() else { return };
        settled.call_once(|| {
            if let Err(e) = gate.enter().stack().settle_volatile() {
                tracing::error!("the work directory stays marked as that of a volatile mount: {e}");
            }
        });
    }
}

/// Gives the mount at `at` the flags of these options.
///
/// # Errors
/// Those of mount(2).
pub fn remount(at: &Path, options: &Options) -> io::Result<()> {
    Ok(sys::mount::remount(at, mount_flags(options))?)
}

/// Unmounts what lies at `at`: by umount2(2), or by fusermount3(1) without the right to. `lazy`: even when
/// in use.
///
/// # Errors
/// EBUSY when in use; what fusermount3 says.
pub fn unmount(at: &Path, lazy: bool) -> io::Result<()> {
    match sys::mount::unmount(at, lazy) {
        Err(Errno::PERM) => unmount_by_helper(at, lazy),
        other => Ok(other?),
    }
}

fn unmount_by_helper(at: &Path, lazy: bool) -> io::Result<()> {
    for helper in ["fusermount3", "fusermount"] {
        let mut command = Command::new(helper);
        command.arg("-u");
        if lazy {
            command.arg("-z");
        }
        let output = match command.arg("--").arg(at).output() {
            Ok(output) => output,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        };
        if output.status.success() {
            return Ok(());
        }
        let said = one_line(&String::from_utf8_lossy(&output.stderr));
        if said.contains("busy") {
            return Err(Errno::BUSY.into());
        }
        return Err(io::Error::other(said));
    }
    Err(Errno::PERM.into())
}
