//! From a directory to a connection with the kernel: mounting.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::mount::MountFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};

use crate::error::{Errno, MountError};
use crate::sys;
use crate::sys::mount::FuseMount;

/// Where the helper program finds its end of the socket that the connection is sent over (fusermount3(1)).
const HELPER_SOCKET: &str = "_FUSE_COMMFD";

/// Mounts at `at`, by the kernel or, without the right to, by fusermount3.
///
/// # Errors
/// A sentence for the user. Nothing is left mounted.
pub fn connect(at: &Path, mount: &FuseMount<'_>) -> Result<OwnedFd, MountError> {
    match sys::mount::mount_fuse(at, mount) {
        Ok(device) => Ok(device),
        Err(Errno::PERM) => by_helper(at, mount).map_err(|reason| complain(at, reason)),
        Err(Errno::NODEV) => {
            Err(MountError::System("the kernel knows no FUSE; load its module (modprobe fuse)".to_owned()))
        }
        Err(e) => Err(complain(at, format!("cannot be mounted upon: {e}"))),
    }
}

/// An error of a mount point.
pub fn complain(mount_point: &Path, reason: impl Into<String>) -> MountError {
    MountError::path("mount point", mount_point, reason)
}

/// Mounts by fusermount3(1), the set-user-ID program for users without the right to.
fn by_helper(at: &Path, mount: &FuseMount<'_>) -> Result<OwnedFd, String> {
    let failed = |e: io::Error| format!("mounting is not permitted; run as root ({e})");
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
            .map_err(|e| failed(e.into()))?;
    // This end the program must get.
    rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty()).map_err(|e| failed(e.into()))?;
    let started = Command::new("fusermount3")
        .arg("-o")
        .arg(helper_options(mount))
        .arg("--")
        .arg(at)
        .env(HELPER_SOCKET, theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    drop(theirs);
    let mut helper = started.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            "mounting is not permitted and there is no fusermount3; run as root or install the package fuse3"
                .to_owned()
        }
        _ => failed(e),
    })?;
    let received = receive_fd(&ours);
    let mut said = String::new();
    if let Some(mut stderr) = helper.stderr.take() {
        // What it says matters only to people.
        let _ = stderr.read_to_string(&mut said);
    }
    let _ = helper.wait();
    match received {
        Ok(Some(device)) => Ok(device),
        Ok(None) if said.contains("allow_other") => {
            Err("allow_other is not permitted; drop the option or set user_allow_other in /etc/fuse.conf"
                .into())
        }
        Ok(None) => Err(format!("mounting is not permitted; run as root ({})", one_line(&said))),
        Err(e) => Err(failed(e.into())),
    }
}

/// The options in the words of fusermount3. It has none for the finer settings of access times, which FUSE leaves
/// to the layers anyway.
fn helper_options(mount: &FuseMount<'_>) -> String {
    let source = mount.source.replace('\\', r"\\").replace(',', r"\,");
    let mut options = format!("default_permissions,fsname={source},subtype=unionfs");
    for (flag, option) in [
        (MountFlags::RDONLY, "ro"),
        (MountFlags::NODEV, "nodev"),
        (MountFlags::NOSUID, "nosuid"),
        (MountFlags::NOEXEC, "noexec"),
        (MountFlags::NOATIME, "noatime"),
        (MountFlags::SYNCHRONOUS, "sync"),
        (MountFlags::DIRSYNC, "dirsync"),
    ] {
        if mount.flags.contains(flag) {
            options.push(',');
            options.push_str(option);
        }
    }
    if mount.allow_other {
        options.push_str(",allow_other");
    }
    options
}

/// The descriptor that comes over a socket (unix(7)); `None` when the other end was closed without one.
fn receive_fd(socket: &OwnedFd) -> rustix::io::Result<Option<OwnedFd>> {
    let mut byte = [0];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    loop {
        let mut data = [io::IoSliceMut::new(&mut byte)];
        match rustix::net::recvmsg(socket, &mut data, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(_) => break,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    }))
}

/// A text without line breaks.
pub fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn helper_options_are_escaped() {
        let mount = FuseMount {
            source: r"a,b\",
            allow_other: true,
            context: None,
            flags: MountFlags::RDONLY | MountFlags::NODEV,
        };
        assert_eq!(
            helper_options(&mount),
            r"default_permissions,fsname=a\,b\\,subtype=unionfs,ro,nodev,allow_other"
        );
    }
}
