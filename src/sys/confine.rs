//! What the daemon gives up once the mount is made: capabilities, new privileges, core dumps, and all system calls
//! but those that serving takes.
#![allow(unsafe_code)] // seccomp(2) with flags has no safe wrapper.

use std::collections::BTreeMap;

use rustix::process::DumpableBehavior;
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch,
};

use super::confine_calls::{ALLOWED, ALLOWED_HERE, IO_URING, IOCTLS, PRCTLS};
use crate::error::{Errno, Result};

/// The capabilities that serving takes (capabilities(7)). That the kernel checks permissions before it asks does
/// not spare the daemon the right to do what it is asked for.
fn needed() -> CapabilitySet {
    // Objects of all owners are read, made, given away and changed.
    CapabilitySet::CHOWN
        | CapabilitySet::DAC_OVERRIDE
        | CapabilitySet::DAC_READ_SEARCH
        | CapabilitySet::FOWNER
        | CapabilitySet::FSETID
        | CapabilitySet::MKNOD
        // The filesystem identity of a caller (setfsuid(2)).
        | CapabilitySet::SETUID
        | CapabilitySet::SETGID
        // Flags and attributes that copies take over: chattr(1), `security.capability`, labels.
        | CapabilitySet::LINUX_IMMUTABLE
        | CapabilitySet::SETFCAP
        | CapabilitySet::MAC_ADMIN
        | CapabilitySet::MAC_OVERRIDE
        // `trusted.` attributes, passthrough, unmounting.
        | CapabilitySet::SYS_ADMIN
        // Whether a caller keeps set-ID bits: /proc/PID/ns/user of one who has more capabilities.
        | CapabilitySet::SYS_PTRACE
        // A better nice value for threads that serve over io_uring.
        | CapabilitySet::SYS_NICE
        // Whether a file is mapped by a writer, before the upper is frozen (`super::file::is_open_for_writing`).
        | CapabilitySet::LEASE
}

/// Gives up the capabilities that are not needed, for good: in all sets of this thread, and of those that it starts.
/// No program that is executed can gain any, and other processes of the same user cannot look into this one.
///
/// # Errors
/// Those of prctl(2) and capset(2). What was given up until then stays so.
pub fn give_up_privileges() -> Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let now = rustix::thread::capabilities(None)?;
    let kept = now.permitted & needed();
    match rustix::thread::clear_ambient_capability_set() {
        // Before Linux 4.3.
        Ok(()) | Err(Errno::INVAL) => {}
        Err(e) => return Err(e),
    }
    if now.effective.contains(CapabilitySet::SETPCAP) {
        // Bits of capabilities that this kernel does not have are no set's.
        for bit in 0..u64::BITS {
            let one = CapabilitySet::from_bits_retain(1 << bit);
            if needed().contains(one) {
                continue;
            }
            match rustix::thread::remove_capability_from_bounding_set(one) {
                Ok(()) => {}
                Err(Errno::INVAL) => break,
                Err(e) => return Err(e),
            }
        }
    }
    let sets = CapabilitySets {
        effective: now.effective & kept,
        permitted: kept,
        inheritable: CapabilitySet::empty(),
    };
    rustix::thread::set_capabilities(None, sets)?;
    super::cred::forget_capabilities();
    Ok(())
}

/// From now on all threads of this process may make the system calls that serving takes, and no others: those answer
/// ENOSYS, as on a kernel that does not know them, and the kernel logs them. `ring`: io_uring is among them.
///
/// # Errors
/// EINVAL and ENOSYS where the kernel has no filters, EOPNOTSUPP on architectures that the filter is not made for;
/// EACCES before [`give_up_privileges`].
pub fn filter_calls(ring: bool) -> Result<()> {
    let arch = TargetArch::try_from(std::env::consts::ARCH).map_err(|_| Errno::OPNOTSUPP)?;
    let filter = |rules, otherwise, matched| {
        SeccompFilter::new(rules, otherwise, matched, arch)
            .and_then(BpfProgram::try_from)
            .map_err(|_| Errno::INVAL)
    };
    let unknown = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());
    // What it is to start lies in memory, where a filter cannot look. The C libraries try clone(2) then; that is no
    // news for the log.
    let quiet =
        filter(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), SeccompAction::Allow, unknown.clone())?;
    let main = filter(rules(ring)?, unknown, SeccompAction::Allow)?;
    install(&quiet, 0)?;
    install(&main, libc::SECCOMP_FILTER_FLAG_LOG)
}

/// Arguments on which a call is allowed: the bits of `mask` of argument `index` are those of `value`.
fn only(index: u8, mask: u64, value: u64) -> Result<SeccompCondition> {
    let operator = if mask == u64::MAX { SeccompCmpOp::Eq } else { SeccompCmpOp::MaskedEq(mask) };
    // Flags and commands are of the type int or unsigned; the upper half means nothing.
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, operator, value);
    condition.map_err(|_| Errno::INVAL)
}

fn rules(ring: bool) -> Result<BTreeMap<i64, Vec<SeccompRule>>> {
    let rule = |condition| SeccompRule::new(vec![condition]).map_err(|_| Errno::INVAL);
    let any_of = |index, values: &[u64]| -> Result<Vec<SeccompRule>> {
        values.iter().map(|value| rule(only(index, u64::MAX, *value)?)).collect()
    };
    let bits = |flags: libc::c_int| u64::from(flags.cast_unsigned());
    let always = ALLOWED.iter().chain(ALLOWED_HERE).map(|call| (*call, Vec::new()));
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = always.collect();
    if ring {
        rules.extend(IO_URING.iter().map(|call| (*call, Vec::new())));
    }
    // Threads, and no processes.
    let thread = bits(libc::CLONE_THREAD | libc::CLONE_VM);
    rules.insert(libc::SYS_clone, vec![rule(only(0, thread, thread)?)?]);
    // A thread's own umask, and no namespaces.
    rules.insert(libc::SYS_unshare, any_of(0, &[bits(libc::CLONE_FS)])?);
    // Layers that come later are reached by clones as well, which no call here can put into the tree.
    let clone = u64::from(libc::OPEN_TREE_CLONE);
    rules.insert(libc::SYS_open_tree, vec![rule(only(2, clone, clone)?)?]);
    // No code that was not in the program.
    let executable = bits(libc::PROT_EXEC);
    for call in [libc::SYS_mmap, libc::SYS_mprotect] {
        rules.insert(call, vec![rule(only(2, executable, 0)?)?]);
    }
    rules.insert(libc::SYS_ioctl, any_of(1, &IOCTLS.iter().map(|n| u64::from(*n)).collect::<Vec<_>>())?);
    rules.insert(libc::SYS_prctl, any_of(0, &PRCTLS.iter().map(|n| bits(*n)).collect::<Vec<_>>())?);
    // To tell the service manager, and those who ask by the control socket.
    rules.insert(libc::SYS_socket, any_of(0, &[bits(libc::AF_UNIX)])?);
    // Signals to itself alone, as abort(3) sends them.
    let own = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, any_of(0, &[own])?);
    // What others than this process may use is not looked at.
    rules.insert(libc::SYS_prlimit64, any_of(0, &[0, own])?);
    Ok(rules)
}

fn install(program: &BpfProgram, flags: libc::c_ulong) -> Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::INVAL)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    let attempt = |flags: libc::c_ulong| {
        // SAFETY: seccomp(2) reads one struct sock_fprog and the `len` instructions that it points to, which live
        // until the call returns; seccompiler's sock_filter is laid out as the kernel's.
        let rc = unsafe {
            libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const program)
        };
        match rc {
            0 => Ok(()),
            -1 => Err(super::last_errno()),
            // The number of a thread that could not be made to follow.
            _ => Err(Errno::BUSY),
        }
    };
    let all = libc::SECCOMP_FILTER_FLAG_TSYNC;
    // Kernels before 5.16 slow processes with a filter down unless told that they do not run foreign code.
    match attempt(all | flags | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW) {
        // Before Linux 4.17 and 4.14: without the extras.
        Err(Errno::INVAL) => attempt(all),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::{Fork, split};

    /// Runs `inside` in a process of its own; gives what that says.
    fn in_child(inside: impl FnOnce() -> std::result::Result<(), String>) -> std::result::Result<(), String> {
        match split().unwrap() {
            Fork::Parent(verdict) => verdict.wait(),
            Fork::Child(reporter) => {
                match inside() {
                    Ok(()) => drop(reporter.ready()),
                    Err(message) => reporter.failed(&message),
                }
                // SAFETY: ends the process without the destructors of a test runner whose threads are not here.
                unsafe { libc::_exit(0) }
            }
        }
    }

    #[test]
    fn capabilities_go_for_good() {
        in_child(|| {
            give_up_privileges().map_err(|e| e.to_string())?;
            let now = rustix::thread::capabilities(None).map_err(|e| e.to_string())?;
            let told = std::fs::read_to_string("/proc/self/status").map_err(|e| e.to_string())?;
            let bounding = told.lines().find_map(|l| l.strip_prefix("CapBnd:")).unwrap_or_default().trim();
            let bounding = u64::from_str_radix(bounding, 16).map_err(|e| e.to_string())?;
            if now.effective.contains(CapabilitySet::SETPCAP) || !needed().contains(now.permitted) {
                return Err(format!("still there: {:?}", now.permitted));
            }
            if rustix::process::geteuid().is_root() && bounding & !needed().bits() != 0 {
                return Err(format!("can be had again: {bounding:x}"));
            }
            if !told.contains("NoNewPrivs:\t1") { Err("new privileges".into()) } else { Ok(()) }
        })
        .unwrap();
    }

    #[test]
    fn only_what_serving_takes_is_left() {
        let arch = TargetArch::try_from(std::env::consts::ARCH);
        if arch.is_err() {
            eprintln!("SKIP: the kernel of this architecture is not filtered for");
            return;
        }
        in_child(|| {
            give_up_privileges().map_err(|e| e.to_string())?;
            filter_calls(false).map_err(|e| format!("no filter: {e}"))?;
            let refused = |what: &str, rc: libc::c_long| {
                let errno = std::io::Error::last_os_error().raw_os_error();
                if rc == -1 && errno == Some(libc::ENOSYS) {
                    Ok(())
                } else {
                    Err(format!("{what}: {rc} {errno:?}"))
                }
            };
            // SAFETY: calls that would fail for their arguments if they were not refused before.
            unsafe {
                refused("execve", libc::syscall(libc::SYS_execve, 0, 0, 0))?;
                refused("mount", libc::syscall(libc::SYS_mount, 0, 0, 0, 0, 0))?;
                refused("move_mount", libc::syscall(libc::SYS_move_mount, -1, 0, -1, 0, 0))?;
                refused("open_tree", libc::syscall(libc::SYS_open_tree, -1, 0, 0))?;
                refused("setns", libc::syscall(libc::SYS_setns, -1, 0))?;
                refused("ptrace", libc::syscall(libc::SYS_ptrace, -1, 0, 0, 0))?;
                refused("kill", libc::syscall(libc::SYS_kill, 1, 0))?;
                refused("open_by_handle_at", libc::syscall(libc::SYS_open_by_handle_at, -1, 0, 0))?;
                refused("io_uring_setup", libc::syscall(libc::SYS_io_uring_setup, 0, 0))?;
                refused("unshare", libc::syscall(libc::SYS_unshare, libc::CLONE_NEWUSER))?;
                refused("socket", libc::syscall(libc::SYS_socket, libc::AF_INET, libc::SOCK_STREAM, 0))?;
                refused("fork", libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0))?;
                refused("ioctl", libc::syscall(libc::SYS_ioctl, 0, libc::TIOCSTI, 0))?;
                let length = 4096;
                let prot = libc::PROT_READ | libc::PROT_EXEC;
                refused("mmap", libc::syscall(libc::SYS_mmap, 0, length, prot, libc::MAP_ANONYMOUS, -1, 0))?;
            }
            // And what is needed is there.
            std::fs::read_to_string("/proc/self/status").map_err(|e| format!("reading: {e}"))?;
            let thread = std::thread::Builder::new().name("t".into()).spawn(|| vec![1_u8; 1 << 20].len());
            let size = thread.map_err(|e| format!("thread: {e}"))?.join();
            if size.ok() == Some(1 << 20) { Ok(()) } else { Err("the thread failed".into()) }
        })
        .unwrap();
    }
}
