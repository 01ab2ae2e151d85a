//! What callers count on: when the call returns, what it leaves, and how the mount ends.

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::mount::UnmountFlags;

use super::{have, helper, quiet, refused, script};
use crate::common::files::{dir, get, put};
use crate::common::{self, Union, daemon_of, wait_at_most};
use crate::need_unionfs;

const LAYERS: &str = "lowerdir=l0,upperdir=upper,workdir=work";

fn layers() -> Union {
    let u = Union::new(1);
    put(u.lower(0, "f"), "x");
    u
}

/// Ends a mount; not for long, a process that another test has just forked holds our open files.
fn free(mut end: impl FnMut() -> bool) -> bool {
    wait_at_most(Duration::from_secs(3), &mut end)
}

/// A caller that reads what the program says until its end, and has a descriptor of its own open.
#[test]
fn descriptors_are_let_go_of() {
    need_unionfs!();
    let u = layers();
    let (mut out, writer) = std::io::pipe().unwrap();
    let mnt = u.mnt();
    let mut command = helper(&u, &["-o", LAYERS, mnt.to_str().unwrap()]);
    command.stdin(Stdio::piped()).stdout(writer.try_clone().unwrap()).stderr(writer);
    let mut child = command.spawn().unwrap();
    drop(command);
    let begin = Instant::now();
    let mut said = String::new();
    out.read_to_string(&mut said).unwrap();
    assert_eq!(said, "");
    assert!(child.wait().unwrap().success());
    assert!(begin.elapsed() < Duration::from_secs(10));
    assert_eq!(get(u.at("f")), "x");
    let proc = std::path::Path::new("/proc").join(daemon_of(&mnt).unwrap().to_string());
    for n in 0..3 {
        assert_eq!(
            std::fs::read_link(proc.join(format!("fd/{n}"))).unwrap(),
            std::path::Path::new("/dev/null")
        );
    }
    assert_eq!(std::fs::read_link(proc.join("cwd")).unwrap(), std::path::Path::new("/"));
    u.unmount();
}

#[test]
fn the_mount_outlives_its_caller() {
    need_unionfs!();
    let u = layers();
    let program = env!("CARGO_BIN_EXE_unionfs");
    // The caller is the leader of a session, and is killed with its whole group.
    let text = format!("setsid sh -c '{program} -o {LAYERS} mnt; kill -HUP -$$; kill -KILL -$$' || true");
    script(u.dir(), &["setsid", "-w"], &text);
    assert_eq!(get(u.at("f")), "x");
    std::thread::sleep(Duration::from_millis(100));
    put(u.at("g"), "y");
    u.unmount();
}

#[test]
fn every_way_to_end() {
    need_unionfs!();
    let u = layers();
    let mnt = u.mnt();
    let by =
        |program: &str, args: &[&str]| Command::new(program).args(args).arg(&mnt).status().unwrap().success();
    let ways: [(&str, &dyn Fn() -> bool); 6] = [
        ("umount2", &|| free(|| rustix::mount::unmount(&mnt, UnmountFlags::empty()).is_ok())),
        ("MNT_DETACH", &|| rustix::mount::unmount(&mnt, UnmountFlags::DETACH).is_ok()),
        ("umount", &|| free(|| by("umount", &[]))),
        ("fusermount3", &|| free(|| by("fusermount3", &["-u"]))),
        ("fusermount", &|| free(|| by("fusermount", &["-u"]))),
        ("unionfs", &|| free(|| by(env!("CARGO_BIN_EXE_unionfs"), &["umount"]))),
    ];
    for (name, end) in ways {
        if name.starts_with("fusermount") && have(name).is_none() {
            common::skip(&format!("no {name}"));
            continue;
        }
        quiet(helper(&u, &["-o", LAYERS, mnt.to_str().unwrap()]));
        put(u.at("g"), name);
        let pid = daemon_of(&mnt).unwrap();
        assert!(end(), "{name}");
        assert!(!common::is_mounted(&mnt), "{name}");
        assert!(
            wait_at_most(Duration::from_secs(3), || common::has_ended(pid)),
            "the daemon outlives {name}"
        );
        assert_eq!(get(u.upper("g")), name);
    }
}

#[test]
fn mounted_again_right_after() {
    need_unionfs!();
    let u = layers();
    // In a mount namespace of its own: those of other tests hold copies of mounts that they see.
    let text = format!(
        "mount --make-rprivate /
        for round in $(seq 0 29); do
            {} -o {LAYERS} mnt >said 2>&1
            test ! -s said
            echo $round >mnt/g
            if test $((round % 2)) = 0; then umount mnt; else umount -l mnt; fi
        done",
        env!("CARGO_BIN_EXE_unionfs")
    );
    script(u.dir(), &["unshare", "-m"], &text);
    assert_eq!(get(u.upper("g")), "29\n");
}

/// No layer keeps its filesystem from being unmounted, not even for the moment that the daemon takes to end.
#[test]
fn the_filesystems_of_the_layers_are_free_at_once() {
    need_unionfs!();
    let u = Union::new(2);
    dir(u.dir().join("place"));
    // By a shell, which hands no open files to processes of other tests.
    let text = format!(
        "mount --make-rprivate /
        for round in 1 2 3 4 5 6 7 8 9 10; do
            for at in l0 l1 place; do mount -t tmpfs none $at; done
            echo 0 >l0/f; echo 1 >l1/g; mkdir -p place/c/upper place/c/work
            {} -o lowerdir=l0:l1,upperdir=place/c/upper,workdir=place/c/work mnt
            test $(cat mnt/f mnt/g | tr -d '\\n') = 01
            echo changed >mnt/f; mv mnt/f mnt/h; rm mnt/g
            test $(cat place/c/upper/h) = changed
            umount mnt; umount l0; umount l1; umount place
        done",
        env!("CARGO_BIN_EXE_unionfs")
    );
    script(u.dir(), &["unshare", "-m"], &text);
}

/// Mounts that begin at the same time, each with its own upper and all with one lower.
#[test]
fn many_at_a_time() {
    need_unionfs!();
    const MOUNTS: usize = 50;
    let u = layers();
    let at = |i: usize, what: &str| u.dir().join(format!("{what}{i}"));
    for i in 0..MOUNTS {
        for what in ["u", "w", "m"] {
            dir(at(i, what));
        }
    }
    let callers: Vec<_> = (0..MOUNTS)
        .map(|i| {
            helper(&u, &["-o", &format!("lowerdir=l0,upperdir=u{i},workdir=w{i}"), &format!("m{i}")])
                .spawn()
                .unwrap()
        })
        .collect();
    for (i, mut caller) in callers.into_iter().enumerate() {
        assert!(caller.wait().unwrap().success());
        // At once, as soon as the call is done.
        assert_eq!(get(at(i, "m").join("f")), "x");
    }
    for i in 0..MOUNTS {
        put(at(i, "m").join("f"), i.to_string());
    }
    for i in 0..MOUNTS {
        assert_eq!(get(at(i, "u").join("f")), i.to_string());
        rustix::mount::unmount(at(i, "m"), UnmountFlags::DETACH).unwrap();
    }
    assert_eq!(get(u.lower(0, "f")), "x");
}

#[test]
fn a_failure_leaves_nothing() {
    need_unionfs!();
    let u = layers();
    put(u.dir().join("file"), "");
    refused(
        helper(&u, &["-o", "lowerdir=l0,upperdir=file,workdir=work", "mnt"]),
        &["file", "not a directory"],
    );
    refused(helper(&u, &["-o", "lowerdir=l0,upperdir=upper,workdir=work/none", "mnt"]), &["work/none"]);
    quiet(helper(&u, &["-o", LAYERS, "mnt"]));
    refused(helper(&u, &["-o", LAYERS, "mnt"]), &["mnt", "busy"]);
    assert_eq!(get(u.at("f")), "x");
    u.unmount();
    assert!(!common::is_mounted(&u.mnt()));
    assert_eq!(common::files::list(u.upper("")), [""; 0]);
}

/// As a service of the type notify (sd_notify(3)).
#[test]
fn the_service_manager_is_told() {
    need_unionfs!();
    let u = layers();
    let at = u.dir().join("notify");
    let socket = std::os::unix::net::UnixDatagram::bind(&at).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let told = || {
        let mut buffer = [0; 64];
        let n = socket.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..n]).trim().to_owned()
    };
    let mut command = helper(&u, &["-f", "-o", LAYERS, "mnt"]);
    let mut service = command.env("NOTIFY_SOCKET", &at).stderr(Stdio::null()).spawn().unwrap();
    assert_eq!(told(), "READY=1");
    assert_eq!(get(u.at("f")), "x");
    let pid = rustix::process::Pid::from_child(&service);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(told(), "STOPPING=1");
    assert!(service.wait().unwrap().success());
    assert!(!common::is_mounted(&u.mnt()));
}
