//! A user namespace for a user without privilege: he is root in it, and the ids that the system has set aside for
//! him (subuid(5), subgid(5)) are those of its other users.

use std::ffi::OsStr;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

use crate::error::{Result, errno};
use crate::sys::namespace;
use crate::sys::process::{self, Fork};

/// Goes into a user namespace. Where newuidmap(1) and newgidmap(1) map the ids that belong to the user they are all
/// there; otherwise only he himself is.
///
/// # Errors
/// EPERM, ENOSPC or EUSERS: user namespaces are not permitted.
pub fn enter_user_namespace() -> Result<()> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let helper = Helper::start(uid, gid);
    namespace::enter_user()?;
    if let Some(helper) = helper {
        helper.map();
    }
    if is_empty("uid_map") {
        write("uid_map", &format!("0 {uid} 1"))?;
    }
    if is_empty("gid_map") {
        // Without privilege a group may be mapped only by those who cannot drop it (user_namespaces(7)).
        write("setgroups", "deny")?;
        write("gid_map", &format!("0 {gid} 1"))?;
    }
    Ok(())
}

fn is_empty(map: &str) -> bool {
    std::fs::read(format!("/proc/self/{map}")).is_ok_and(|text| text.is_empty())
}

fn write(file: &str, text: &str) -> Result<()> {
    std::fs::write(format!("/proc/self/{file}"), text).map_err(|e| errno(&e))
}

/// A process that stays outside, to map the ids from there once this one is in its namespace.
struct Helper {
    pid: rustix::process::Pid,
    go: std::io::PipeWriter,
}

impl Helper {
    fn start(uid: u32, gid: u32) -> Option<Self> {
        let user = user_name(uid);
        let uids = range("/etc/subuid", uid, user.as_deref())?;
        let gids = range("/etc/subgid", uid, user.as_deref())?;
        let target = rustix::process::getpid().as_raw_nonzero().to_string();
        let (mut wait, go) = std::io::pipe().ok()?;
        match process::split().ok()? {
            Fork::Parent(verdict) => Some(Self { pid: verdict.child(), go }),
            Fork::Child(_) => {
                drop(go);
                // The end of the pipe without a byte: the namespace has not come about.
                if matches!(wait.read(&mut [0]), Ok(1)) {
                    call("newuidmap", &target, uid, uids);
                    call("newgidmap", &target, gid, gids);
                }
                std::process::exit(0)
            }
        }
    }

    fn map(mut self) {
        // What has become of it the maps tell.
        let _ = self.go.write_all(b"+");
        let _ = rustix::process::waitpid(Some(self.pid), rustix::process::WaitOptions::empty());
    }
}

fn call(program: impl AsRef<OsStr>, target: &str, own: u32, (first, count): (u32, u32)) {
    let map = [0, own, 1, 1, first, count].map(|n| n.to_string());
    // Where it is missing or refuses, the user goes without.
    let _ = Command::new(program).arg(target).args(map).stderr(Stdio::null()).status();
}

/// The first range of ids that `file` sets aside for a user, who is named in it by number or name.
fn range(file: &str, uid: u32, user: Option<&str>) -> Option<(u32, u32)> {
    parse_range(&std::fs::read_to_string(file).ok()?, uid, user)
}

fn parse_range(text: &str, uid: u32, user: Option<&str>) -> Option<(u32, u32)> {
    let uid = uid.to_string();
    text.lines().find_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next()?;
        if owner != uid && Some(owner) != user {
            return None;
        }
        Some((fields.next()?.trim().parse().ok()?, fields.next()?.trim().parse().ok()?))
    })
}

fn user_name(uid: u32) -> Option<String> {
    let users = std::fs::read_to_string("/etc/passwd").ok()?;
    let uid = uid.to_string();
    let line = users.lines().find(|line| line.split(':').nth(2) == Some(&uid))?;
    line.split(':').next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_range_of_a_user() {
        let text = "other:1:2\nname:100000:65536\n1000:200000:10\nbroken:x\n";
        assert_eq!(parse_range(text, 1000, Some("name")), Some((100_000, 65536)));
        assert_eq!(parse_range(text, 1000, None), Some((200_000, 10)));
        assert_eq!(parse_range(text, 5, Some("broken")), None);
        assert_eq!(parse_range(text, 5, Some("nobody")), None);
    }
}
