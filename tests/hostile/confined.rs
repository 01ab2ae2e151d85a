//! What the daemon has left once the mount is made.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::common::files::{exists, get, put};
use crate::common::{self, Union, daemon_of};
use crate::{check_alive, log_of, logged, need_ours, use_all};

/// CAP_CHOWN to CAP_FSETID without CAP_KILL, CAP_SETGID, CAP_SETUID, CAP_LINUX_IMMUTABLE, CAP_SYS_PTRACE, CAP_SYS_ADMIN,
/// CAP_SYS_NICE, CAP_MKNOD, CAP_SETFCAP, CAP_MAC_OVERRIDE, CAP_MAC_ADMIN, CAP_LEASE (`linux/capability.h`).
const LEFT: u64 = 0b1_1111
    | 1 << 6
    | 1 << 7
    | 1 << 9
    | 1 << 19
    | 1 << 21
    | 1 << 23
    | 1 << 27
    | 1 << 28
    | 1 << 31
    | 1 << 32
    | 1 << 33;

/// A field of all threads of the daemon.
fn of_threads(union: &Union, field: &str) -> Vec<String> {
    let pid = daemon_of(&union.mnt()).unwrap();
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap().flatten();
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("status")).ok())
        .map(|status| {
            let value = status.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'));
            value.unwrap_or("none").trim().to_owned()
        })
        .collect()
}

/// What the kernel's log says that the filter has refused to a process, as far as that may be read.
fn refused(pid: u32) -> Vec<String> {
    let log = Command::new("dmesg").output().map(|out| out.stdout).unwrap_or_default();
    let log = String::from_utf8_lossy(&log).into_owned();
    let of_it = |l: &&str| l.contains("type=1326") && l.contains(&format!(" pid={pid} "));
    log.lines().filter(of_it).map(str::to_owned).collect()
}

fn fill(union: &Union) {
    for i in 0..100 {
        put(union.lower(0, format!("d/f{i}")), "x".repeat(3000));
    }
    for layer in [union.lower(0, ""), union.upper("")] {
        let name = if layer.ends_with("upper") { "upper-true" } else { "lower-true" };
        std::fs::copy("/bin/true", layer.join(name)).unwrap();
        std::fs::set_permissions(layer.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }
}

#[test]
fn all_threads_have_what_serving_takes_and_no_more() {
    need_ours!();
    for options in [&[][..], &["io_uring=off"], &["passthrough=off", "metacopy=on"]] {
        let mut union = logged(1);
        for option in options {
            union = union.option(option);
        }
        fill(&union);
        union.mount();
        use_all(&union.mnt());
        for set in ["CapEff", "CapPrm", "CapBnd", "CapInh", "CapAmb"] {
            for value in of_threads(&union, set) {
                let value = u64::from_str_radix(&value, 16).unwrap();
                assert_eq!(value & !LEFT, 0, "{set} of {options:?}: {value:x}");
            }
        }
        assert!(of_threads(&union, "NoNewPrivs").iter().all(|v| v == "1"));
        let filtered = of_threads(&union, "Seccomp");
        assert!(filtered.len() > 3 && filtered.iter().all(|v| v == "2"), "{filtered:?}");
        // Programs of the layers run as ever: it is the daemon that runs none.
        for name in ["upper-true", "lower-true"] {
            assert!(Command::new(union.at(name)).status().unwrap().success(), "{name}");
        }
        // Files that come from the disk one after the other, and whatever else there is to do.
        std::fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
        use_all(&union.mnt());
        crate::take_apart(&union.mnt());
        let pid = daemon_of(&union.mnt()).unwrap();
        assert_eq!(refused(pid), [""; 0], "the filter lacks calls that serving takes");
        let log = std::fs::read_to_string(log_of(&union)).unwrap_or_default();
        assert!(!log.contains("not filtered") && !log.contains("are kept"), "{log}");
        check_alive(&union);
    }
}

#[test]
fn the_option_leaves_it_all() {
    need_ours!();
    let mut union = logged(1).option("sandbox=off");
    union.mount();
    assert!(of_threads(&union, "NoNewPrivs").iter().all(|v| v == "0"));
    assert!(of_threads(&union, "Seccomp").iter().all(|v| v == "0"));
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = own.lines().find_map(|l| l.strip_prefix("CapEff:")).unwrap().trim().to_owned();
    assert!(of_threads(&union, "CapEff").iter().all(|v| *v == own));
    drop(union);
    let said = common::unionfs().args(["mount", "-o", "sandbox=1", "a", "u", "m"]).output().unwrap();
    assert!(common::text(&said).contains("sandbox=1: takes the value on or off"), "{}", common::text(&said));
}

#[test]
fn signals_are_obeyed_from_within() {
    need_ours!();
    for way in ["auto", "off"] {
        let mut union = logged(1).option(&format!("io_uring={way}"));
        fill(&union);
        union.mount();
        use_all(&union.mnt());
        let daemon = daemon_of(&union.mnt()).unwrap();
        let pid = rustix::process::Pid::from_raw(daemon.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::USR1).unwrap();
        assert!(common::wait_for(|| get(log_of(&union)).contains("requests")), "{}", get(log_of(&union)));
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(common::wait_for(|| !common::is_mounted(&union.mnt())));
        assert!(common::wait_for(|| common::has_ended(daemon)));
        assert!(!exists(common::record_of(daemon)));
    }
}

#[test]
fn a_user_without_rights_ends_his_mount_by_a_signal() {
    need_ours!();
    if Command::new("fusermount3").arg("-V").output().is_err() {
        return common::skip("there is no fusermount3");
    }
    let union = Union::new(1);
    put(union.lower(0, "f"), "x");
    let owned = |path: &std::path::Path| std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
    for path in [union.dir().to_owned(), union.upper(""), union.work(""), union.mnt()] {
        owned(&path);
    }
    // Where the device is open to all, and nothing is left behind.
    let script = r#"
        cp "$0" unionfs; mount -t tmpfs none /dev
        mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/fuse c 10 229
        as() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
        as ./unionfs mount --work work l0 upper mnt
        pid=$(pgrep -f '^\./unionfs mount --work work l0 upper mnt$')
        trap 'kill -9 $pid 2>/dev/null || :' EXIT
        grep -q 'NoNewPrivs:.1' /proc/$pid/status; grep -q 'Seccomp:.2' /proc/$pid/status
        # Other processes of the user may not look into it.
        test "$(stat -c %u /proc/$pid/environ)" = 0
        as cat mnt/f
        kill -TERM $pid
        for i in $(seq 100); do grep -q " $PWD/mnt " /proc/self/mountinfo || break; sleep 0.1; done
        ! grep -q " $PWD/mnt " /proc/self/mountinfo
        for i in $(seq 100); do test -e /proc/$pid/root || break; sleep 0.1; done
        test ! -e /proc/$pid/root
        # Nobody waits any more, after a moment.
        waits() { pgrep -f 'fusermount3 -u -z -- "\$0" '"$PWD/mnt"; }
        for i in $(seq 100); do waits || break; sleep 0.1; done
        ! waits
        "#;
    let mut command = Command::new("timeout");
    command.args(["60", "unshare", "-m", "sh", "-euxc", script]).arg(env!("CARGO_BIN_EXE_unionfs"));
    let out = command.current_dir(union.dir()).output().unwrap();
    assert!(out.status.success(), "{}", common::text(&out));
}
