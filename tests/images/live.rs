//! What live mounts tell of themselves.

use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use crate::common::files::*;
use crate::common::{Union, daemon_of, has_ended, record_of, run, text, unionfs, wait_for};
use crate::need_unionfs;

/// The process namespace that all others are in (`PROC_PID_INIT_INO`).
const FIRST_PROCESS_NAMESPACE: u64 = 0xEFFF_FFFC;

fn json(args: &[&Path]) -> serde_json::Value {
    let out = unionfs().args(args).output().unwrap();
    assert!(out.status.success(), "{args:?}: {}", text(&out));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn listed(mnt: &Path) -> Option<serde_json::Value> {
    let all = json(&[Path::new("list"), Path::new("--json")]);
    all.as_array().unwrap().iter().find(|m| m["mountpoint"] == mnt.to_str().unwrap()).cloned()
}

#[test]
fn mounts_are_listed_while_they_live() {
    need_unionfs!();
    let union = Union::new(2).with_init().option("metacopy=on").mounted();
    let mnt = union.mnt();
    let state = listed(&mnt).unwrap();
    assert_eq!((&state["pid"], &state["live"]), (&daemon_of(&mnt).unwrap().into(), &true.into()));
    assert_eq!(state["upper"], union.upper("").canonicalize().unwrap().to_str().unwrap());
    assert_eq!(state["lowers"].as_array().unwrap().len(), 2);
    assert_eq!(state["options"], serde_json::json!(["metacopy=on"]));
    let table = run(env!("CARGO_BIN_EXE_unionfs"), &["list".as_ref()]);
    assert!(table.starts_with("MOUNTPOINT") && table.contains(mnt.to_str().unwrap()), "{table}");
    union.unmount();
    assert_eq!(listed(&mnt), None);
}

#[test]
fn what_a_killed_daemon_leaves_is_removed() {
    need_unionfs!();
    let union = Union::new(1).mounted();
    let pid = daemon_of(&union.mnt()).unwrap();
    let record = record_of(pid);
    let files = [record.with_extension("sock"), record];
    assert!(files.iter().all(exists));
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid as i32).unwrap(),
        rustix::process::Signal::KILL,
    )
    .unwrap();
    assert!(wait_for(|| has_ended(pid)));
    // Who looks from another mount namespace, where it has another number, lets it be.
    let elsewhere = ["60", "unshare", "--mount", "--pid", "--fork", "--mount-proc"];
    run(
        "timeout",
        &elsewhere.iter().chain(&[env!("CARGO_BIN_EXE_unionfs"), "list"]).map(OsStr::new).collect::<Vec<_>>(),
    );
    run("unshare", &["--mount", env!("CARGO_BIN_EXE_unionfs"), "list"].map(OsStr::new));
    assert!(files.iter().all(exists));
    // As long as it is mounted, it is listed.
    let state = listed(&union.mnt()).unwrap();
    assert_eq!((&state["pid"], &state["live"]), (&pid.into(), &false.into()));
    let table = run(env!("CARGO_BIN_EXE_unionfs"), &["list".as_ref()]);
    let mnt = union.mnt().canonicalize().unwrap_or(union.mnt()).to_str().unwrap().to_owned();
    let line = table.lines().find(|line| line.starts_with(&format!("{mnt} ")));
    assert!(line.is_some_and(|line| line.contains(" dead ")), "{table}");
    union.unmount();
    // Another test may have looked as well.
    assert_eq!(listed(&union.mnt()), None);
    assert!(!files.iter().any(exists));
}

#[test]
fn what_is_gone_with_its_mount_namespace_is_removed() {
    need_unionfs!();
    let union = Union::new(1);
    let mount = union.command_inside();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private"]).arg(mount.get_program()).args(mount.get_args());
    let mut mount = command.spawn().unwrap();
    assert!(wait_for(|| listed(&union.mnt()).is_some()));
    let state = listed(&union.mnt()).unwrap();
    let file = format!("/run/unionfs/{}-{}.json", state["namespace"], 1);
    assert!(exists(&file));
    let pid = i32::try_from(state["pid"].as_i64().unwrap()).unwrap();
    let process = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    mount.wait().unwrap();
    assert!(wait_for(|| listed(&union.mnt()).is_none()));
    // Who does not see all processes there are cannot know that nobody is in that namespace.
    let sees_all = std::fs::metadata("/proc/self/ns/pid").unwrap().ino() == FIRST_PROCESS_NAMESPACE;
    assert!(wait_for(|| listed(&union.mnt()).is_none() && exists(&file) != sees_all));
    let _ = std::fs::remove_file(file);
}

#[test]
fn mounts_of_other_process_namespaces_are_told_from_dead_ones() {
    need_unionfs!();
    // Who looks from another one does not see our process.
    let union = Union::new(1).mounted();
    let pid = daemon_of(&union.mnt()).unwrap();
    let mnt = union.mnt().to_str().unwrap().to_owned();
    let mut command = Command::new("timeout");
    command.args(["60", "unshare", "--pid", "--fork", "--mount-proc", env!("CARGO_BIN_EXE_unionfs")]);
    let out = command.args(["list", "--json"]).output().unwrap();
    let seen: Vec<serde_json::Value> = serde_json::from_slice(&out.stdout).unwrap();
    let seen = seen.iter().find(|state| state["mountpoint"] == *mnt).unwrap();
    assert_eq!((&seen["pid"], &seen["live"]), (&0.into(), &true.into()));
    assert!(exists(record_of(pid)));
    assert_eq!(listed(&union.mnt()).unwrap()["pid"], pid);
    union.unmount();

    // And one inside is seen from here by the number that it has here.
    let union = Union::new(1);
    let mnt = union.mnt();
    let mut mount = union.command_inside().spawn().unwrap();
    assert!(wait_for(|| listed(&mnt).is_some()));
    let state = listed(&mnt).unwrap();
    let pid = u32::try_from(state["pid"].as_u64().unwrap()).unwrap();
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap();
    assert!(String::from_utf8_lossy(&command).contains(mnt.to_str().unwrap()) && pid > 1, "{state}");
    let process = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
    rustix::process::kill_process(process, rustix::process::Signal::KILL).unwrap();
    mount.wait().unwrap();
    assert!(wait_for(|| listed(&mnt).is_some_and(|state| state["live"] == false)));
    union.unmount();
    assert_eq!(listed(&mnt), None);
}

#[test]
fn diff_and_commit_find_the_layers_of_a_mount() {
    need_unionfs!();
    let union = Union::new(1).with_init();
    put(union.lower(0, "file"), "x");
    let union = union.mounted();
    put(union.at("file"), "y");
    let out = unionfs().arg("diff").arg(union.mnt()).output().unwrap();
    assert_eq!(text(&out), "C /file\n");
    let archive = union.dir().join("layer.tar");
    let out = unionfs().arg("commit").arg("-o").arg(&archive).arg(union.mnt()).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(run("tar", &["-tf".as_ref(), archive.as_ref()]), "file\n");
    let out = unionfs().arg("diff").arg(union.dir()).output().unwrap();
    assert!(!out.status.success() && text(&out).contains("has no unionfs mounted"), "{}", text(&out));
}

#[test]
fn inspects_mounts_and_paths() {
    need_unionfs!();
    let union = Union::new(2).with_init();
    put(union.lower(1, "etc/passwd"), "below");
    put(union.lower(1, "etc/group"), "below");
    put(union.lower(1, "usr/lib/x"), "below");
    put(union.lower(0, "etc/passwd"), "above");
    put(union.init("etc/hosts"), "init");
    let union = union.mounted();
    put(union.at("etc/passwd"), "changed");
    std::io::Write::write_all(
        &mut std::fs::File::options().append(true).open(union.at("usr/lib/x")).unwrap(),
        b"more",
    )
    .unwrap();
    std::fs::remove_file(union.at("etc/group")).unwrap();
    std::fs::rename(union.at("usr/lib"), union.at("moved")).unwrap();
    let mount = json(&[Path::new("inspect"), Path::new("--json"), &union.mnt()]);
    let roles: Vec<&str> =
        mount["layers"].as_array().unwrap().iter().map(|l| l["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["rw", "init", "ro", "ro"]);
    let statistics = &mount["statistics"];
    // The directory etc, the file, and usr and lib.
    assert!(statistics["copied_up"].as_f64().unwrap() >= 4.0, "{mount}");
    assert_eq!(statistics["copied_bytes"].as_f64().unwrap(), 5.0, "{mount}");
    for name in ["nodes", "open_files", "open_directories", "kept_names", "passthrough", "listings"] {
        assert!(statistics[name].is_number(), "{name}: {mount}");
    }
    assert!(mount["statistics"]["request rename"].as_f64().unwrap() >= 1.0, "{mount}");
    let lines = |path: &str| {
        let out = unionfs().arg("inspect").arg(union.at(path)).output().unwrap();
        let said = text(&out).replace(union.dir().canonicalize().unwrap().to_str().unwrap(), "");
        said.lines().map(|l| l.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")).collect::<Vec<_>>()
    };
    assert_eq!(
        lines("etc/passwd"),
        ["0 rw seen file /upper/etc/passwd", "2 ro - file /l0/etc/passwd", "3 ro - file /l1/etc/passwd"]
    );
    assert_eq!(lines("etc/group"), ["0 rw - whiteout /upper/etc/group", "3 ro - file /l1/etc/group"]);
    assert_eq!(lines("etc/hosts"), ["1 init seen file /init/etc/hosts"]);
    assert_eq!(
        lines("moved"),
        ["0 rw seen directory /upper/moved, below at /usr/lib", "3 ro seen directory /l1/usr/lib"]
    );
    assert_eq!(lines("none"), ["layer has anything of it"]);
    let out = unionfs().arg("inspect").arg("/etc/passwd").output().unwrap();
    assert!(!out.status.success() && text(&out).contains("lies in no unionfs mount"), "{}", text(&out));
}
