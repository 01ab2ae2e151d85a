//! The state of live mounts: a file for each in `/run/unionfs`, or in `$XDG_RUNTIME_DIR/unionfs` for a mount without
//! root. It belongs to the process that serves the mount; when both are gone, the next reader removes the file.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::owned;
use crate::config::{LayerPaths, MountConfig, Options, Permissions, RedirectDir};
use crate::format::mountinfo::{self, MountEntry};
use crate::sys::cred;

/// The form of the file. Files of another form are left alone.
pub const VERSION: u32 = 1;

const MOUNTS: &str = "/proc/self/mountinfo";
const SYSTEM: &str = "/run/unionfs";
const OF_USERS: &str = "/run/user";
const SUBDIRECTORY: &str = "unionfs";

/// A path in JSON: a text, or numbers where it is not UTF-8.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Text {
    /// A path in UTF-8.
    Text(String),
    /// The bytes of any other.
    Bytes(Vec<u8>),
}

impl From<&Path> for Text {
    fn from(path: &Path) -> Self {
        match path.to_str() {
            Some(text) => Self::Text(text.to_owned()),
            None => Self::Bytes(path.as_os_str().as_bytes().to_vec()),
        }
    }
}

impl From<&Text> for PathBuf {
    fn from(text: &Text) -> Self {
        match text {
            Text::Text(text) => text.into(),
            Text::Bytes(bytes) => OsString::from_vec(bytes.clone()).into(),
        }
    }
}

/// A live mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountState {
    /// [`VERSION`].
    pub version: u32,
    /// The process that serves it; 0 for readers who cannot see it.
    pub pid: u32,
    /// The process namespace that has that number, as the inode number of that; 0 if it is not known.
    pub namespace: u64,
    /// The mount namespace that it is in, as the inode number of that; 0 if it is not known.
    #[serde(default)]
    pub mount_namespace: u64,
    /// When the process started, in clock ticks since boot (proc_pid_stat(5)): another process with its number has another
    /// time. `None` if its /proc is that of another namespace.
    pub started: Option<u64>,
    /// Since when it is mounted: seconds since 1970.
    pub since: u64,
    /// Its number in the mount table of that process, if it is known.
    pub mount_id: Option<u64>,
    /// Where it is mounted.
    pub mountpoint: Text,
    /// The upper.
    pub upper: Option<Text>,
    /// The work directory of the upper.
    pub work: Option<Text>,
    /// The init layer.
    pub init: Option<Text>,
    /// The lowers, topmost first.
    pub lowers: Vec<Text>,
    /// Data-only lowers.
    pub data: Vec<Text>,
    /// Options in force, as `-o` takes them.
    pub options: Vec<String>,
    /// Private attributes in `user.overlay.`, when that was asked for.
    pub userxattr: Option<bool>,
    /// Where owners are kept, as `xattr_permissions=` has it.
    pub xattr_permissions: u8,
    /// Names of the upper that begin with `.wh.` are whiteouts.
    pub wh_upper: bool,
}

impl MountState {
    /// The state of a mount that this process is about to make. Not to be called later: the mount may lie over a
    /// layer, and does not answer before it is served.
    ///
    /// # Errors
    /// Those of resolving the paths and of reading /proc.
    pub fn new(config: &MountConfig) -> io::Result<Self> {
        let pid = std::process::id();
        let resolve = |path: &PathBuf| Ok::<Text, io::Error>(Text::from(&*path.canonicalize()?));
        let each = |paths: &[PathBuf]| paths.iter().map(resolve).collect::<io::Result<Vec<_>>>();
        let layers = &config.layers;
        Ok(Self {
            version: VERSION,
            pid,
            namespace: owned::process_namespace().unwrap_or(0),
            mount_namespace: owned::mount_namespace().unwrap_or(0),
            started: owned::start_of(pid).filter(|_| owned::sees_namespace()),
            since: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs()),
            mount_id: None,
            mountpoint: Text::from(&*config.mountpoint.canonicalize()?),
            upper: layers.upper.as_ref().map(resolve).transpose()?,
            work: layers.work.as_ref().map(resolve).transpose()?,
            init: layers.init.as_ref().map(resolve).transpose()?,
            lowers: each(&layers.lowers)?,
            data: each(&layers.data)?,
            options: in_force(&config.options),
            userxattr: config.options.userxattr,
            wh_upper: config.options.wh_upper,
            xattr_permissions: match config.options.permissions {
                Permissions::Inode => 0,
                Permissions::Privileged => 1,
                Permissions::Containers => 2,
            },
        })
    }

    /// The layers as a mount takes them.
    pub fn layers(&self) -> LayerPaths {
        let one = |text: &Option<Text>| text.as_ref().map(PathBuf::from);
        LayerPaths {
            lowers: self.lowers.iter().map(PathBuf::from).collect(),
            data: self.data.iter().map(PathBuf::from).collect(),
            init: one(&self.init),
            upper: one(&self.upper),
            work: one(&self.work),
            init_work: None,
        }
    }

    /// The state once the upper is frozen and these have taken its place.
    pub fn frozen(&self, upper: &Text, work: &Text) -> Self {
        let lowers = self.upper.iter().chain(&self.lowers).cloned().collect();
        Self { upper: Some(upper.clone()), work: Some(work.clone()), lowers, ..self.clone() }
    }

    /// Whether the mount of this entry, which had the number of both, is this one: the kernel gives the number of a
    /// mount that is gone to another one, and a process may outlive its mount.
    fn has_taken(&self, other: &Self, entry: &MountEntry) -> bool {
        let claim = |s: &Self| {
            let here = PathBuf::from(&s.mountpoint) == entry.mount_point;
            (here, s.since, s.started.unwrap_or(0), s.pid, s.namespace)
        };
        self.mount_id == other.mount_id && claim(self) > claim(other)
    }

    /// The options that say how the layers are to be read.
    pub fn reading(&self) -> Options {
        let permissions = match self.xattr_permissions {
            2 => Permissions::Containers,
            1 => Permissions::Privileged,
            _ => Permissions::Inode,
        };
        Options { userxattr: self.userxattr, permissions, wh_upper: self.wh_upper, ..Options::default() }
    }

    /// The path of its file.
    fn file_in(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}-{}.json", self.namespace, self.pid))
    }
}

/// What is known of the process that serves a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Life {
    /// It lives, and has this number.
    Live(u32),
    Dead,
    /// It is another one's, or nothing tells.
    Unknown,
}

impl Life {
    /// Of the process that a state names, which a directory of `owner` holds. `seen`: the namespace whose processes
    /// we see.
    fn of(state: &MountState, recorded: &Recorded, owner: u32, seen: Option<u64>) -> Self {
        if let Some(started) = state.started.filter(|_| seen == Some(state.namespace)) {
            return match owned::start_of(state.pid) {
                Some(start) if start == started => match owned::user_of_process(state.pid) {
                    Some(user) if user == owner => Self::Live(state.pid),
                    _ => Self::Unknown,
                },
                _ => Self::Dead,
            };
        }
        // Its number means nothing here.
        match owned::listener(&recorded.socket()) {
            Ok(Some(peer)) if peer.uid == owner => Self::Live(peer.pid),
            Ok(None) => Self::Dead,
            Ok(Some(_)) | Err(_) => Self::Unknown,
        }
    }
}

/// The options that are not as they are by default.
fn in_force(options: &Options) -> Vec<String> {
    let default = Options::default();
    let mut all = Vec::new();
    for (name, on) in [
        ("ro", options.read_only),
        ("volatile", options.volatile),
        ("nodev", options.nodev),
        ("nosuid", options.nosuid),
        ("noexec", options.noexec),
        ("sync", options.sync),
        ("nodiratime", options.nodiratime),
        ("dirsync", options.dirsync),
    ] {
        if on {
            all.push(name.to_owned());
        }
    }
    for (name, on, default) in [
        ("passthrough", options.passthrough, default.passthrough),
        ("metacopy", options.metacopy, default.metacopy),
        ("index", options.index, default.index),
        ("sandbox", options.sandbox, default.sandbox),
    ] {
        if on != default {
            all.push(format!("{name}={}", if on { "on" } else { "off" }));
        }
    }
    match options.permissions {
        Permissions::Inode => {}
        Permissions::Privileged => all.push("xattr_permissions=1".into()),
        Permissions::Containers => all.push("xattr_permissions=2".into()),
    }
    match options.redirect_dir {
        RedirectDir::On => {}
        RedirectDir::Follow => all.push("redirect_dir=follow".into()),
        RedirectDir::NoFollow => all.push("redirect_dir=nofollow".into()),
    }
    if let Some(threads) = options.threads {
        all.push(format!("threads={threads}"));
    }
    if let Some(timeout) = options.timeout {
        all.push(format!("timeout={}", timeout.as_secs_f64()));
    }
    all
}

/// Where this user's state lies; `None` where there is no place for it.
fn own_directory() -> Option<PathBuf> {
    // The root of a user namespace is another user to the system's directories.
    if cred::is_host_admin() {
        return Some(SYSTEM.into());
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)?;
    runtime.is_absolute().then(|| runtime.join(SUBDIRECTORY))
}

/// All places that this user can look into: the system's and the own one; root sees those of all users.
fn directories() -> Vec<PathBuf> {
    let mut all = vec![PathBuf::from(SYSTEM)];
    if cred::is_host_admin() {
        let users = fs::read_dir(OF_USERS).into_iter().flatten().flatten();
        all.extend(users.map(|user| user.path().join(SUBDIRECTORY)));
    }
    all.extend(own_directory().filter(|own| own != Path::new(SYSTEM)));
    all
}

/// A state on disk, with the socket beside it.
#[derive(Debug, Clone)]
pub struct Recorded {
    file: PathBuf,
    /// The user who has recorded it, if that is neither the one who reads it nor root.
    foreign: Option<u32>,
}

impl Recorded {
    /// The path of the mount's control socket.
    pub fn socket(&self) -> PathBuf {
        self.file.with_extension("sock")
    }

    /// Another user than the one who reads it, and root, has recorded it: what it says is that user's word.
    pub fn is_foreign(&self) -> bool {
        self.foreign.is_some()
    }

    /// Whether this may be about a mount: what another user has recorded is about his own.
    fn counts_for(&self, mount: &MountEntry) -> bool {
        self.foreign.is_none_or(|owner| mount.user == Some(owner))
    }

    /// Records the state, whole or not at all.
    ///
    /// # Errors
    /// Those of writing.
    pub fn write(&self, state: &MountState) -> io::Result<()> {
        let dir = self.file.parent().ok_or(io::ErrorKind::NotFound)?;
        let mut file = tempfile::Builder::new()
            .prefix(".")
            .permissions(fs::Permissions::from_mode(0o644))
            .tempfile_in(dir)?;
        file.write_all(&serde_json::to_vec(state)?)?;
        file.persist(&self.file).map(drop).map_err(|e| e.error)
    }

    /// The mount has ended.
    pub fn remove(&self) {
        for path in [&self.file, &self.socket()] {
            if let Err(e) = fs::remove_file(path)
                && e.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!("left behind: {}: {e}", path.display());
            }
        }
    }
}

/// Where the state of a mount will be recorded. `None` where there is no place for it.
///
/// # Errors
/// Those of making the directory.
pub fn place_for(state: &MountState) -> io::Result<Option<Recorded>> {
    let Some(dir) = own_directory() else { return Ok(None) };
    owned::make_directory(&dir)?;
    Ok(Some(Recorded { file: state.file_in(&dir), foreign: None }))
}

/// Records the state of a mount, as [`Recorded::write`] does, where there is a place for it.
///
/// # Errors
/// Those of writing.
pub fn record(state: &MountState) -> io::Result<()> {
    place_for(state)?.map_or(Ok(()), |recorded| recorded.write(state))
}

/// A mount as it is found.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// What was recorded when it was made.
    #[serde(flatten)]
    pub state: MountState,
    /// Its process lives. If not, all there get ENOTCONN until it is unmounted.
    pub live: bool,
}

/// All mounts, by mount point: the live ones, and those in this mount namespace whose process has died. What the dead
/// have left otherwise is removed where that is permitted.
pub fn all() -> Vec<Listed> {
    let mut found: Vec<Listed> = entries().into_iter().map(|(_, listed)| listed).collect();
    found.sort_by_key(|l| (PathBuf::from(&l.state.mountpoint), l.state.since));
    found
}

fn entries() -> Vec<(Recorded, Listed)> {
    let (mut live, mut dead) = (Vec::new(), Vec::new());
    let own = own_directory();
    let seen = owned::process_namespace().filter(|_| owned::sees_namespace());
    for dir in directories() {
        let mine = own.as_ref() == Some(&dir);
        let Ok(owner) = owned::owner_of_directory(&dir) else { continue };
        let foreign = (!mine && dir != Path::new(SYSTEM)).then_some(owner);
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.extension() != Some(OsStr::new("json")) {
                continue;
            }
            let Ok(bytes) = owned::read(&path, owner) else { continue };
            // One of another version, perhaps of a program newer than this.
            let Ok(mut state) = serde_json::from_slice::<MountState>(&bytes) else { continue };
            if state.version != VERSION {
                continue;
            }
            let recorded = Recorded { file: path, foreign };
            match Life::of(&state, &recorded, owner, seen) {
                Life::Live(pid) => {
                    state.pid = pid;
                    live.push((recorded, state));
                }
                Life::Dead => dead.push((recorded, state, mine)),
                Life::Unknown => {}
            }
        }
    }
    let table = mountinfo::parse(&fs::read(MOUNTS).unwrap_or_default());
    let own_mounts = owned::mount_namespace();
    let sees_all = |state: &MountState| {
        seen.is_some_and(|seen| seen == state.namespace || seen == owned::FIRST_PROCESS_NAMESPACE)
    };
    let has_taken = |state: &MountState, entry: &MountEntry| {
        let mut others = live.iter().map(|(r, s)| (r, s)).chain(dead.iter().map(|(r, s, _)| (r, s)));
        others.any(|(recorded, other)| recorded.counts_for(entry) && other.has_taken(state, entry))
    };
    let stays = |recorded: &Recorded, state: &MountState| {
        table.iter().find(|entry| Some(entry.id) == state.mount_id).is_some_and(|entry| {
            mountinfo::is_unionfs(entry) && recorded.counts_for(entry) && !has_taken(state, entry)
        })
    };
    // In another mount namespace it may be mounted yet.
    let is_gone = |state: &MountState| {
        own_mounts == Some(state.mount_namespace)
            || (sees_all(state) && !owned::mount_namespace_is_used(state.mount_namespace))
    };
    let mut left = Vec::new();
    for (recorded, state, mine) in &dead {
        if stays(recorded, state) {
            left.push((recorded.clone(), Listed { state: state.clone(), live: false }));
        } else if *mine && is_gone(state) {
            recorded.remove();
        }
    }
    live.into_iter().map(|(r, state)| (r, Listed { state, live: true })).chain(left).collect()
}

/// The live mount which lies at exactly this path, absolute and without symlinks; the last one if there are
/// several. What other users have recorded counts only for a mount that is theirs.
pub fn at(mountpoint: &Path, mount: &MountEntry) -> Option<(Recorded, MountState)> {
    let live = entries().into_iter().filter(|(_, l)| l.live).map(|(recorded, l)| (recorded, l.state));
    let here = |(recorded, state): &(Recorded, MountState)| {
        PathBuf::from(&state.mountpoint) == mountpoint && recorded.counts_for(mount)
    };
    let own = |recorded: &Recorded| recorded.foreign.is_none();
    live.filter(here).max_by_key(|(r, s)| (own(r), s.since, s.mount_id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_are_no_text() {
        let odd = OsString::from_vec(vec![b'/', 0xff]);
        for path in [Path::new("/a b"), Path::new(&odd)] {
            let json = serde_json::to_string(&Text::from(path)).unwrap();
            let back: Text = serde_json::from_str(&json).unwrap();
            assert_eq!(PathBuf::from(&back), path);
        }
    }

    #[test]
    fn a_number_that_was_given_again_is_the_later_ones() {
        let state = |mountpoint: &str, since: u64| -> MountState {
            serde_json::from_value(serde_json::json!({
                "version": 1, "pid": 7, "namespace": 1, "started": 9, "since": since, "mount_id": 42,
                "mountpoint": mountpoint, "lowers": [], "data": [], "options": [], "userxattr": null,
                "xattr_permissions": 0, "wh_upper": false,
            }))
            .unwrap()
        };
        let table = mountinfo::parse(b"42 1 0:9 / /mnt rw - fuse.unionfs unionfs rw,user_id=0\n");
        let entry = table.first().unwrap();
        // The process of the earlier one may live on a little.
        assert!(state("/mnt", 2).has_taken(&state("/mnt", 1), entry));
        assert!(!state("/mnt", 1).has_taken(&state("/mnt", 2), entry));
        assert!(!state("/other", 2).has_taken(&state("/mnt", 2), entry));
        assert!(state("/mnt", 2).has_taken(&state("/other", 2), entry));
        let unnumbered = MountState { mount_id: None, ..state("/mnt", 2) };
        assert!(!unnumbered.has_taken(&state("/mnt", 1), entry));
    }
}
