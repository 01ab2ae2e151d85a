//! Directories, files and processes that belong to one user: what another one can have put there is not believed.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::{Errno, Result};
use crate::sys::process::{self, Peer};

/// The largest file that is read, in bytes: many times what 500 layers take.
const LARGEST: u64 = 8 << 20;
/// What the directory is like: others may read, and nobody else may write.
const DIRECTORY_MODE: u32 = 0o755;

/// Makes a directory, unless it is there.
///
/// # Errors
/// Those of mkdir(2); `PermissionDenied` for one that others own or may write, and for a symlink.
pub fn make_directory(dir: &Path) -> io::Result<()> {
    match fs::DirBuilder::new().mode(DIRECTORY_MODE).create(dir) {
        // Whatever the umask is.
        Ok(()) => fs::set_permissions(dir, fs::Permissions::from_mode(DIRECTORY_MODE))?,
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
        Err(e) => return Err(e),
    }
    if owner_of_directory(dir)? == rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    Err(denied(dir, "belongs to another user"))
}

/// The owner of a directory that nobody else may write to.
///
/// # Errors
/// Those of stat(2); `PermissionDenied` for one that others may write, and for what is no directory.
pub fn owner_of_directory(dir: &Path) -> io::Result<u32> {
    let found = fs::symlink_metadata(dir)?;
    if !found.is_dir() {
        return Err(denied(dir, "is no directory"));
    }
    if found.mode() & 0o022 != 0 {
        return Err(denied(dir, "may be written by others"));
    }
    Ok(found.uid())
}

fn denied(path: &Path, why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, format!("{} {why}", path.display()))
}

/// Reads a regular file of this owner.
///
/// # Errors
/// Those of open(2), ELOOP for a symlink; `PermissionDenied` for a file of another user or type, or an
/// exceedingly large one.
pub fn read(path: &Path, owner: u32) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(CWD, path, flags, Mode::empty())?);
    let found = file.metadata()?;
    if !found.is_file() || found.uid() != owner || found.len() > LARGEST {
        return Err(denied(path, "is not what it should be"));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// The user that a process belongs to; `None` when there is none.
pub fn user_of_process(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    // proc_pid_status(5): the name is escaped and comes first; real, effective, saved and filesystem UID.
    let users = status.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    users.split_ascii_whitespace().nth(1)?.parse().ok()
}

/// The process that answers at `path`; `None` when it is dead. Sends nothing, and does not wait for it.
///
/// # Errors
/// Those of connect(2), EAGAIN above all for one that does not get to its callers.
pub fn listener(path: &Path) -> Result<Option<Peer>> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => process::peer(&socket).map(Some),
        Err(Errno::CONNREFUSED) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The process namespace of this process, as its inode number.
pub fn process_namespace() -> Option<u64> {
    fs::metadata("/proc/self/ns/pid").map(|found| found.ino()).ok()
}

/// The process namespace that all others are in (`PROC_PID_INIT_INO`).
pub const FIRST_PROCESS_NAMESPACE: u64 = 0xEFFF_FFFC;

/// The mount namespace of this process, as its inode number.
pub fn mount_namespace() -> Option<u64> {
    fs::metadata("/proc/self/ns/mnt").map(|found| found.ino()).ok()
}

/// Whether a process that we see is in this mount namespace.
pub fn mount_namespace_is_used(namespace: u64) -> bool {
    let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
    let of = |process: fs::DirEntry| fs::metadata(process.path().join("ns/mnt")).map(|found| found.ino());
    processes.map(of).any(|found| found.is_ok_and(|found| found == namespace))
}

/// Whether /proc shows the processes of our process namespace: it may be that of another one, or not there.
pub fn sees_namespace() -> bool {
    let own = std::process::id().to_string();
    fs::read_link("/proc/self").is_ok_and(|number| number == Path::new(&own))
}

/// When a process started, in clock ticks since boot; `None` when there is none.
pub fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name may contain anything, a parenthesis too.
    let (_, rest) = stat.rsplit_once(')')?;
    // Field 22; the first one behind the name is field 3.
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // A zombie serves nothing any more.
    if fields.first() == Some(&"Z") { None } else { fields.get(19)?.parse().ok() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    #[test]
    fn processes_are_told_apart() {
        let own = start_of(std::process::id()).unwrap();
        assert!(own > 0);
        assert!(sees_namespace() && process_namespace().is_some());
        assert!(mount_namespace_is_used(mount_namespace().unwrap()) && !mount_namespace_is_used(1));
        assert_eq!(start_of(u32::MAX - 1), None);
        assert_eq!(user_of_process(std::process::id()), Some(rustix::process::geteuid().as_raw()));
        assert_eq!(user_of_process(u32::MAX - 1), None);
    }

    #[test]
    fn listeners_are_told_from_what_they_leave() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let _listening = UnixListener::bind(path("alive")).unwrap();
        let own = Peer { pid: std::process::id(), uid: rustix::process::geteuid().as_raw() };
        assert_eq!(listener(&path("alive")), Ok(Some(own)));
        assert_eq!(listener(&path("nobody")), Err(Errno::NOENT));
        drop(UnixListener::bind(path("dead")).unwrap());
        assert_eq!(listener(&path("dead")), Ok(None));
    }

    #[test]
    fn directories_of_others_are_refused() {
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name);
        make_directory(&path("a")).unwrap();
        make_directory(&path("a")).unwrap();
        assert_eq!(path("a").metadata().unwrap().mode() & 0o777, DIRECTORY_MODE);
        symlink(path("a"), path("link")).unwrap();
        fs::write(path("file"), "").unwrap();
        fs::create_dir(path("open")).unwrap();
        fs::set_permissions(path("open"), fs::Permissions::from_mode(0o777)).unwrap();
        for name in ["link", "file", "open"] {
            let refused = make_directory(&path(name)).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::PermissionDenied, "{name}");
        }
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(path("a"), Some(1), None).unwrap();
            assert!(make_directory(&path("a")).is_err());
        }
    }

    #[test]
    fn files_are_read_with_care() {
        let temp = tempfile::tempdir().unwrap();
        let path = |name: &str| temp.path().join(name);
        let own = rustix::process::geteuid().as_raw();
        fs::write(path("file"), "text").unwrap();
        assert_eq!(read(&path("file"), own).unwrap(), b"text");
        assert!(read(&path("file"), own + 1).is_err());
        symlink("/dev/zero", path("zero")).unwrap();
        symlink("file", path("link")).unwrap();
        rustix::fs::mknodat(CWD, path("fifo"), rustix::fs::FileType::Fifo, Mode::RWXU, 0).unwrap();
        File::create(path("large")).unwrap().set_len(LARGEST + 1).unwrap();
        for name in ["zero", "link", "fifo", "large"] {
            assert!(read(&path(name), own).is_err(), "{name}");
        }
    }
}
