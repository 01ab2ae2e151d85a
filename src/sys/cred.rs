//! Acting for the caller of a request: the created object gets the right owner, group and mode from
//! the upper's filesystem itself (setgid inheritance, default ACLs, umask), in one step.
#![allow(unsafe_code)] // setfsuid, setfsgid and umask have no safe wrapper.

use std::cell::Cell;

use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::error::Result;

thread_local! {
    /// The umask of this thread, once it has one of its own (CLONE_FS undone).
    static OWN_UMASK: Cell<Option<u32>> = const { Cell::new(None) };
    /// The capabilities of this thread, which only this module changes, and changes back.
    static OWN_CAPS: Cell<Option<CapabilitySets>> = const { Cell::new(None) };
}

/// The capabilities that this thread has but for moments within this module. Asked for once.
fn own_capabilities() -> Result<CapabilitySets> {
    if let Some(caps) = OWN_CAPS.get() {
        return Ok(caps);
    }
    let caps = rustix::thread::capabilities(None)?;
    OWN_CAPS.set(Some(caps));
    Ok(caps)
}

/// The capabilities of this thread have changed.
pub(super) fn forget_capabilities() {
    OWN_CAPS.set(None);
}

/// Who asks, as the request tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Effective user for filesystem access.
    pub uid: u32,
    /// Effective group for filesystem access.
    pub gid: u32,
    /// Thread that asks; 0 when not visible in our pid namespace.
    pub pid: u32,
    /// Mode bits that a creation leaves out, unless a default ACL says otherwise.
    pub umask: u32,
}

impl Caller {
    /// The daemon's own identity, with no umask.
    pub fn daemon() -> Self {
        // It never changes: only filesystem identities of threads do.
        static OWN: std::sync::OnceLock<(u32, u32)> = std::sync::OnceLock::new();
        let (uid, gid) =
            *OWN.get_or_init(|| (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw()));
        Self { uid, gid, pid: 0, umask: 0 }
    }

    /// Whether the caller belongs to group `gid`, supplementary groups included. Read from
    /// /proc/PID/status; a caller that can't be seen has its main group only.
    pub fn in_group(&self, gid: u32) -> bool {
        if self.gid == gid {
            return true;
        }
        let Ok(status) = std::fs::read_to_string(format!("/proc/{}/status", self.pid)) else {
            return false;
        };
        status
            .lines()
            .find_map(|l| l.strip_prefix("Groups:"))
            .is_some_and(|groups| groups.split_whitespace().any(|g| g.parse() == Ok(gid)))
    }

    /// Whether the caller keeps set-ID bits on changes that clear them for others (CAP_FSETID in
    /// capabilities(7)). The request carries no capabilities: they are read from /proc/PID/status. In a user
    /// namespace that is not ours they say nothing: anyone has all of them in one of his own. Of a caller that
    /// can't be seen, uid 0 is taken to have it.
    pub fn keeps_setid(&self) -> bool {
        const CAP_FSETID: u32 = 4;
        let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/user")).ok();
        let effective =
            std::fs::read_to_string(format!("/proc/{}/status", self.pid)).ok().and_then(|status| {
                let mask = status.lines().find_map(|l| l.strip_prefix("CapEff:"))?;
                u64::from_str_radix(mask.trim(), 16).ok()
            });
        effective.map_or(self.uid == 0, |mask| {
            mask & (1 << CAP_FSETID) != 0 && namespace(&self.pid.to_string()) == namespace("self")
        })
    }
}

struct Restore {
    uid: libc::uid_t,
    gid: libc::gid_t,
    caps: Option<CapabilitySets>,
}

impl Drop for Restore {
    fn drop(&mut self) {
        // SAFETY: plain system calls on numbers; they affect the calling thread only.
        unsafe {
            libc::setfsuid(self.uid);
            libc::setfsgid(self.gid);
        }
        if let Some(caps) = self.caps {
            let _ = rustix::thread::set_capabilities(None, caps);
        }
    }
}

/// Runs `f` with the caller's filesystem identity and umask, but with the daemon's rights: the
/// kernel has checked the caller's already (default_permissions).
///
/// # Errors
/// Those of `f`; EPERM where the thread cannot have a umask of its own.
pub fn as_caller<T>(caller: &Caller, f: impl FnOnce() -> Result<T>) -> Result<T> {
    set_umask(caller.umask)?;
    let own = Caller::daemon();
    if caller.uid == own.uid && caller.gid == own.gid {
        return f();
    }
    let caps = own_capabilities().ok();
    let _restore = Restore { uid: own.uid, gid: own.gid, caps };
    // SAFETY: plain system calls on numbers; they affect the calling thread only.
    unsafe {
        libc::setfsgid(caller.gid);
        libc::setfsuid(caller.uid);
    }
    // Leaving uid 0 took the filesystem capabilities away (capabilities(7)): take them back.
    if let Some(caps) = caps {
        let _ = rustix::thread::set_capabilities(None, caps);
    }
    f()
}

/// Gives the thread this umask; it stays until the next call.
fn set_umask(mask: u32) -> Result<()> {
    let current = OWN_UMASK.get();
    if current == Some(mask) {
        return Ok(());
    }
    // The umask belongs to the process unless the thread leaves the shared fs_struct.
    // SAFETY: unshare(2) of CLONE_FS gives this thread its own umask and working directory, nothing
    // else; the working directory is not relied on by any worker.
    if current.is_none() && unsafe { libc::unshare(libc::CLONE_FS) } != 0 {
        return Err(super::last_errno());
    }
    // SAFETY: umask(2) cannot fail.
    unsafe { libc::umask(mask & 0o777) };
    OWN_UMASK.set(Some(mask));
    Ok(())
}

/// Whether this process holds CAP_SYS_ADMIN in its user namespace.
pub fn is_admin() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|c| c.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// Whether this process holds CAP_SYS_ADMIN in the initial user namespace, as `trusted.` attributes (xattr(7))
/// and passthrough (`fuse_backing_open` in the kernel) want it.
pub fn is_host_admin() -> bool {
    // PROC_USER_INIT_INO of include/linux/proc_ns.h, which is for good: namespaces are told by it.
    const INITIAL: u64 = 0xEFFF_FFFD;
    is_admin() && rustix::fs::stat("/proc/self/ns/user").map_or(true, |st| st.st_ino == INITIAL)
}

/// Runs `f` without CAP_FSETID in the effective set of this thread.
///
/// What the kernel keeps of our credentials while `f` runs then clears set-ID bits on a write, as
/// capabilities(7) says of a process without that capability.
///
/// # Errors
/// Of capget(2) and capset(2), before `f` was called.
pub fn without_fsetid<T>(f: impl FnOnce() -> T) -> Result<T> {
    struct Effective(CapabilitySets);
    impl Drop for Effective {
        fn drop(&mut self) {
            let _ = rustix::thread::set_capabilities(None, self.0);
        }
    }
    let caps = own_capabilities()?;
    if !caps.effective.contains(CapabilitySet::FSETID) {
        return Ok(f());
    }
    let effective = caps.effective.difference(CapabilitySet::FSETID);
    rustix::thread::set_capabilities(None, CapabilitySets { effective, ..caps })?;
    let _restore = Effective(caps);
    Ok(f())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fsetid_is_dropped_and_comes_back() {
        let effective = || rustix::thread::capabilities(None).unwrap().effective;
        let before = effective();
        let within = without_fsetid(effective).unwrap();
        assert_eq!(within, before.difference(CapabilitySet::FSETID));
        assert_eq!(effective(), before);
    }
}
