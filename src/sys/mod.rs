//! System calls: the only place of unsafe code. Names are single components below a directory
//! descriptor; nothing here follows a symlink that lies in a layer.

pub mod ahead;
pub mod confine;
mod confine_calls;
pub mod copy;
pub mod cred;
pub mod file;
pub mod flags;
pub mod fuse;
pub mod handle;
pub mod mount;
pub mod namespace;
pub mod place;
pub mod process;
pub mod ring;
pub mod scheduling;
pub mod sync;
pub mod xattr;

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::error::Errno;

/// What the kernel keeps for I/O on a file without us; opaque here, made and read by the transport.
pub type Backing = std::sync::Arc<dyn std::any::Any + Send + Sync>;

/// The error of the libc call that just failed.
fn last_errno() -> Errno {
    crate::error::errno(&std::io::Error::last_os_error())
}

/// The path of a descriptor below /proc/self/fd, or of an entry of the directory it refers to.
/// Resolving it jumps to the object itself (proc(5)): no name on the way can be swapped.
fn proc_path(fd: BorrowedFd<'_>, name: Option<&OsStr>) -> OsString {
    use std::fmt::Write;
    let mut path = OsString::with_capacity(32 + name.map_or(0, OsStr::len));
    // Writing to an OsString cannot fail.
    let _ = write!(path, "/proc/self/fd/{}", fd.as_raw_fd());
    if let Some(name) = name {
        path.push("/");
        path.push(name);
    }
    path
}
