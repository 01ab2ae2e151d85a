//! The daemon's place among those that it serves, in the eyes of the scheduler (sched(7)).
//!
//! Woken by an answer, a caller is put on an idle CPU if there is one, because the CPU where he waited is busy: with
//! us, who are about to sleep. Waking another CPU takes much longer than most requests. Two things keep him in place:
//! to be behind with his share within our scheduling group, or that all that runs on his CPU is of the policy
//! SCHED_IDLE.
#![allow(unsafe_code)] // sched_setscheduler(2) has no safe wrapper, and that of getsid(2) fails in process namespaces.

use std::fs;
use std::path::Path;

use crate::error::{Errno, Result, errno};

/// The inode number of the first cgroup namespace (`PROC_CGROUP_INIT_INO`, linux/proc_ns.h): only there
/// /proc/self/cgroup tells the whole path.
const FIRST_CGROUP_NAMESPACE: &str = "cgroup:[4026531835]";

/// Whether this process is alone in a scheduling group: the leader of a session where each session is one.
pub fn has_group_of_its_own() -> bool {
    // Not by rustix: it takes for granted that there is a number, and the kernel says 0 where the leader is in a process
    // namespace above ours.
    // SAFETY: takes and gives numbers only; 0 is the calling process.
    let session = unsafe { libc::getsid(0) };
    let leads = session == rustix::process::getpid().as_raw_nonzero().get();
    let sessions_count = fs::read_to_string("/proc/sys/kernel/sched_autogroup_enabled");
    leads && sessions_count.is_ok_and(|on| on.trim() == "1") && in_root_cgroup()
}

/// Whether no control group with a share of the CPU is between this process and the root: that would be the scheduling
/// group of all in it.
fn in_root_cgroup() -> bool {
    let first = fs::read_link("/proc/self/ns/cgroup").is_ok_and(|ns| ns == Path::new(FIRST_CGROUP_NAMESPACE));
    // Where a controller of the second version can be enabled: only for children of the root counts.
    let shares = |group: &str| {
        ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
            .iter()
            .any(|root| Path::new(root).join(group).join("cpu.weight").exists())
    };
    first && fs::read_to_string("/proc/self/cgroup").is_ok_and(|groups| is_root(&groups, shares))
}

/// The same, of the lines of /proc/PID/cgroup (cgroups(7)). `shares`: whether a group below the root of the second
/// version shares the CPU.
fn is_root(groups: &str, shares: impl Fn(&str) -> bool) -> bool {
    groups.lines().all(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { return false };
        let outermost = path.trim_start_matches('/').split('/').next().unwrap_or_default();
        match controllers {
            "" => outermost.is_empty() || !shares(outermost),
            _ => outermost.is_empty() || !controllers.split(',').any(|name| name == "cpu"),
        }
    })
}

/// Gives all threads of this process, and those that they start from now on, the policy SCHED_IDLE: they have no
/// weight against others of their scheduling group, so they should be alone there ([`has_group_of_its_own`]); the
/// group has the weight that any has. They disturb nobody at work, and the CPU on which they answer counts as idle.
///
/// All of them: one that kept its weight would leave next to nothing of the group's share to the CPUs of the others.
///
/// # Errors
/// Those of sched_setscheduler(2), and of reading /proc. Some threads may have the policy then, others not.
pub fn step_back() -> Result<()> {
    // Twice: what starts meanwhile may come from a thread whose turn has not come.
    for _ in 0..2 {
        for entry in fs::read_dir("/proc/self/task").map_err(|e| errno(&e))? {
            let name = entry.map_err(|e| errno(&e))?.file_name();
            let Some(thread) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
            match set_idle(thread) {
                // It has ended.
                Ok(()) | Err(Errno::SRCH) => {}
                Err(e) => return Err(e),
            }
        }
    }
    Ok(())
}

/// Gives a thread the policy SCHED_IDLE. 0: this one.
fn set_idle(thread: libc::pid_t) -> Result<()> {
    // SAFETY: an all-zero struct sched_param is valid: the priority of policies without priorities.
    let param: libc::sched_param = unsafe { std::mem::zeroed() };
    // SAFETY: reads the struct that it is given, and changes nothing else than the scheduling of a thread.
    match unsafe { libc::sched_setscheduler(thread, libc::SCHED_IDLE, &raw const param) } {
        0 => Ok(()),
        _ => Err(super::last_errno()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_root_is_told_from_groups_with_a_share() {
        let second = |path: &str, shared: bool| is_root(&format!("0::{path}\n"), |_| shared);
        assert!(second("/", true) && second("/a/b", false) && !second("/a/b", true));
        assert!(is_root("4:memory:/x/y\n1:cpu:/\n0::/\n", |_| false));
        assert!(!is_root("4:memory:/\n1:cpuacct,cpu:/docker/1\n0::/\n", |_| false));
        assert!(is_root("2:cpuset:/a\n1:cpuacct:/a\n", |_| false));
        assert!(!is_root("nonsense\n", |_| false));
        let asked = std::cell::RefCell::new(Vec::new());
        is_root("0::/user.slice/user-0.slice\n", |group| {
            asked.borrow_mut().push(group.to_owned());
            true
        });
        assert_eq!(*asked.borrow(), ["user.slice"]);
    }

    #[test]
    fn threads_inherit_the_policy() {
        let policy = || {
            std::thread::spawn(|| {
                let _ = set_idle(0);
                // SAFETY: takes a number only; 0 is the calling thread.
                std::thread::spawn(|| unsafe { libc::sched_getscheduler(0) }).join().unwrap()
            })
        };
        assert_eq!(policy().join().unwrap(), libc::SCHED_IDLE);
    }
}
