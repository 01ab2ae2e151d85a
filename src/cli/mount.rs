//! `unionfs mount`: from arguments to a mount that is served.

use std::ffi::OsString;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use super::args::MountArgs;
use super::layer_list::{Lowers, split_layers, work_name};
use super::logging;
use super::made::Made;
use super::options::{self, NamedLayers};
use super::record;
use crate::config::{LayerPaths, MountConfig};
use crate::error::{MountError, errno};
use crate::format::mountinfo;
use crate::fuse::mounts;
use crate::fuse::session::{self, Mounted, Stopper};
use crate::inspect::state::{self, Recorded};
use crate::layer::{claim, located};
use crate::sys::process::{self, Fork};

const UPPER: &str = "upper layer";
const INIT: &str = "init layer";
const WORK: &str = "work directory";
const MOUNT_POINT: &str = "mount point";

/// Permissions of directories that are created: a new upper is the root of the merged tree.
const DIRECTORY_MODE: u32 = 0o755;
/// Nobody but the daemon has any business in a work directory.
const WORK_MODE: u32 = 0o700;

/// Mounts; returns once the mount answers, or with --foreground when it has ended.
///
/// # Errors
/// A sentence that says what is wrong with the arguments or the system. Nothing is left behind.
pub fn run(args: MountArgs) -> Result<(), MountError> {
    let (create, foreground) = (args.create, args.foreground);
    start(Start { config: configure(args)?, create, foreground, ignored: Vec::new() })
}

/// How a mount begins.
#[derive(Debug)]
pub struct Start {
    /// What is mounted.
    pub config: MountConfig,
    /// Directories that are missing are made.
    pub create: bool,
    /// This process serves it.
    pub foreground: bool,
    /// Options that mean nothing, to be told of in the log.
    pub ignored: Vec<OsString>,
}

/// Mounts; returns once the mount answers, or when it has ended if this process serves it.
///
/// # Errors
/// As for [`run`].
pub fn start(start: Start) -> Result<(), MountError> {
    if start.foreground {
        logging::to_stderr()?;
        rustix::process::umask(rustix::fs::Mode::empty());
        let served = prepare(start)?;
        tell_manager(NotifyState::Ready);
        return serve(served, Box::new(io::stderr()))
            .map_err(|e| MountError::System(format!("the mount has failed: {e}")));
    }
    // Nothing has started a thread up to here.
    match process::fork() {
        Ok(Fork::Parent(verdict)) => verdict.wait().map_err(MountError::System),
        Ok(Fork::Child(reporter)) => daemon(start, reporter),
        Err(e) => Err(MountError::System(format!("cannot start a daemon: {e}"))),
    }
}

/// Tells systemd, if that started this process as a service of the type notify (sd_notify(3)).
fn tell_manager(state: NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(&[state]) {
        tracing::warn!("cannot notify the service manager: {e}");
    }
}

/// The detached process. Never returns into the caller's code.
pub(super) fn daemon(start: Start, reporter: process::Reporter) -> ! {
    let log = start.config.options.log.as_deref().map(logging::to_file).transpose();
    let (served, log) = match log.and_then(|log| Ok((prepare(start)?, log))) {
        Ok(served) => served,
        Err(e) => {
            reporter.failed(&e.to_string());
            std::process::exit(1);
        }
    };
    let stopper = served.mounted.stopper();
    // A caller may read our standard error until it is closed: let go of it before the caller's own
    // process ends. The working directory would keep its filesystem busy. And once told, a caller may end all
    // that it has started.
    let released = process::release_stdio()
        .and_then(|()| rustix::process::chdir("/"))
        .and_then(|()| process::leave_session());
    let told = match released {
        Ok(()) => reporter.ready(),
        Err(e) => {
            reporter.failed(&format!("cannot detach: {e}"));
            Err(e.into())
        }
    };
    let result = match told {
        Ok(()) => match log {
            Some(file) => serve(served, Box::new(file)),
            None => serve(served, Box::new(io::sink())),
        },
        // Nobody waits for this mount any more, or nobody would believe in it.
        Err(e) => stopper.unmount().map(|()| stopper.settle()).and(Err(e)),
    };
    if let Err(e) = &result {
        tracing::error!("the mount has failed: {e}");
    }
    std::process::exit(i32::from(result.is_err()));
}

/// A mount, and the signals to it, which are caught since before it was made.
struct Served {
    mounted: Mounted,
    signals: Signals,
    /// Where others find out about it.
    recorded: Option<Recorded>,
}

/// Where statistics are written that SIGUSR1 asks for.
type Statistics = Box<dyn Write + Send>;

/// Serves until the end, and then ends the process' hold on the layers at once.
fn serve(served: Served, mut statistics: Statistics) -> io::Result<()> {
    let Served { mut mounted, mut signals, recorded } = served;
    mounted.stand_alone();
    mounted.confine_calls();
    let (stopper, report) = (mounted.stopper(), mounted.report());
    let (ended, at_end) = (recorded.clone(), stopper.clone());
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if signal != SIGUSR1 {
                record::forget(ended.as_ref());
                stop(&stopper);
            }
            // In one piece: others write to the log as well.
            if let Err(e) = statistics.write_all(report.text().as_bytes()) {
                tracing::warn!("cannot write the statistics: {e}");
            }
        }
    })?;
    let result = mounted.run();
    record::forget(recorded.as_ref());
    match &result {
        // Workers that are still busy do not matter, nobody waits for their answers.
        Ok(()) => {
            at_end.settle();
            std::process::exit(0)
        }
        Err(_) => result,
    }
}

/// Ends mount and process. Files that are still open in the mount are lost to their users, whom the
/// signal's sender has decided about.
fn stop(stopper: &Stopper) -> ! {
    tell_manager(NotifyState::Stopping);
    match stopper.unmount() {
        Ok(()) => {
            stopper.settle();
            std::process::exit(0)
        }
        Err(e) => {
            tracing::error!("cannot unmount: {e}");
            std::process::exit(1)
        }
    }
}

/// Reads the arguments, without a look at the filesystem.
pub(super) fn configure(args: MountArgs) -> Result<MountConfig, MountError> {
    let parsed = options::parse(&args.options)?;
    parsed.refuse_unknown()?;
    let (layers, mountpoint) =
        if parsed.layers.is_empty() { by_arguments(args)? } else { by_options(parsed.layers, args)? };
    Ok(MountConfig { layers, mountpoint, options: parsed.options })
}

/// The layers as the arguments name them.
fn by_arguments(args: MountArgs) -> Result<(LayerPaths, PathBuf), MountError> {
    let Lowers { merged: lowers, data } = split_layers(&args.lowers.unwrap_or_default())?;
    let (upper, mountpoint) = match (args.upper, args.mountpoint) {
        (Some(upper), Some(mountpoint)) => (Some(upper), mountpoint),
        (Some(mountpoint), None) | (None, Some(mountpoint)) => (None, mountpoint),
        (None, None) => return Err(MountError::option("MOUNTPOINT", "is missing; name a directory")),
    };
    Ok((LayerPaths { lowers, data, init: args.init, upper, work: args.work, init_work: None }, mountpoint))
}

/// The layers as the options name them.
fn by_options(layers: NamedLayers, args: MountArgs) -> Result<(LayerPaths, PathBuf), MountError> {
    let mixed = |what: &str| {
        let reason = "cannot stand beside layers named by -o (lowerdir=, upperdir=, workdir=, init=); name all \
                      layers by options, and MOUNTPOINT as the only argument, or all by arguments";
        Err(MountError::option(what, reason))
    };
    if args.upper.is_some() || args.mountpoint.is_some() {
        return mixed(&args.lowers.unwrap_or_default().to_string_lossy());
    }
    for (flag, given) in [("--init", args.init.is_some()), ("--work", args.work.is_some())] {
        if given {
            return mixed(flag);
        }
    }
    if args.read_only && layers.upper.is_some() {
        return Err(MountError::option("upperdir", "cannot stand beside --read-only; leave one of them out"));
    }
    if layers.lowers.merged.is_empty() {
        return Err(MountError::option("lowerdir", "is missing; add lowerdir=LOWER[:LOWER...] to -o"));
    }
    for (name, path) in [("upperdir=", &layers.upper), ("workdir=", &layers.work)] {
        if path.as_ref().is_some_and(|path| path.as_os_str().is_empty()) {
            return Err(MountError::option(name, "needs a directory; name one or leave the option out"));
        }
    }
    let NamedLayers { lowers: Lowers { merged: lowers, data }, upper, work, init } = layers;
    Ok((
        LayerPaths { lowers, data, init, upper, work, init_work: None },
        args.lowers.unwrap_or_default().into(),
    ))
}

/// Checks everything, creates what is to be created, mounts.
fn prepare(start: Start) -> Result<Served, MountError> {
    let Start { mut config, create, ignored, foreground: _ } = start;
    for option in ignored {
        tracing::warn!("unknown option ignored: {}", option.to_string_lossy());
    }
    process::raise_open_files();
    process::keep_no_large_blocks();
    make_way(&config.mountpoint)?;
    // Before anything is created: it might be in a lower layer.
    claim::check(&config.layers, create)?;
    let mut made = Made::default();
    if create {
        if let Some(upper) = &config.layers.upper {
            made.ensure(UPPER, upper, DIRECTORY_MODE)?;
        }
        if let Some(work) = &config.layers.work {
            made.ensure(WORK, work, WORK_MODE)?;
        }
        made.ensure(MOUNT_POINT, &config.mountpoint, DIRECTORY_MODE)?;
    }
    choose_work(&mut config.layers, &mut made)?;
    let claim = claim::claim(&config.layers)?;
    claim.check_mount_point(&config.mountpoint)?;
    let signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGUSR1])
        .map_err(|e| MountError::System(format!("cannot catch signals: {e}")))?;
    let state = record::prepare(&config);
    let mounted = session::mount(&config, claim)?;
    made.keep();
    mounted.confine();
    let recorded = record::record(state, &mounted);
    Ok(Served { mounted, signals, recorded })
}

/// Refuses a mount point that has a mount of ours already, and unmounts one there whose daemon is dead.
fn make_way(path: &Path) -> Result<(), MountError> {
    for candidate in [mounts::locate(path), path.canonicalize()] {
        let Ok(candidate) = candidate else { continue };
        while let Some(entry) = mounts::top_at(&candidate).ok().flatten().filter(mountinfo::is_unionfs) {
            // One that is stopped or hangs is not asked: the question could not be taken back, not even by exiting.
            if state::at(&candidate, &entry).is_some() || !mounts::is_dead(&candidate) {
                let reason = "is busy: a unionfs is mounted there; unmount it first (unionfs umount)";
                return Err(MountError::path(MOUNT_POINT, path, reason));
            }
            // What is still in use there is of no use to anybody.
            session::unmount(&candidate, true).map_err(|e| {
                let reason = format!("has a unionfs whose process is dead, which cannot be unmounted: {e}");
                MountError::path(MOUNT_POINT, path, reason)
            })?;
            tracing::info!("unmounted what a dead process has left at {}", candidate.display());
        }
    }
    Ok(())
}

/// Fills in the work directories that were not given, and makes them.
fn choose_work(layers: &mut LayerPaths, made: &mut Made) -> Result<(), MountError> {
    let Some(upper) = &layers.upper else { return Ok(()) };
    if layers.work.is_none() {
        let work = sibling(UPPER, upper, "use a directory below it, or name a work directory by --work DIR")?;
        made.ensure(WORK, &work, WORK_MODE)?;
        layers.work = Some(work);
    }
    if let Some(init) = &layers.init
        && !claim::share_mount(INIT, init, upper)?
    {
        let work =
            sibling(INIT, init, "use a directory below it, or one on the filesystem of the upper layer")?;
        made.ensure(WORK, &work, WORK_MODE)?;
        layers.init_work = Some(work);
    }
    Ok(())
}

/// The work directory `.NAME.work` beside the layer `NAME`; both must be on one mount.
fn sibling(what: &'static str, layer: &Path, advice: &str) -> Result<PathBuf, MountError> {
    let real = layer.canonicalize().map_err(|e| located::explain(what, layer, errno(&e)))?;
    let beside = match (real.parent(), real.file_name()) {
        (Some(parent), Some(name)) if claim::share_mount(what, parent, &real)? => {
            Some(parent.join(work_name(name)))
        }
        _ => None,
    };
    beside.ok_or_else(|| {
        let reason = format!("is the root of a mount, so no work directory can lie beside it; {advice}");
        MountError::path(what, layer, reason)
    })
}
