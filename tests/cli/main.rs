//! The command line from outside: messages, exit status, and that nothing is left behind.
#![allow(clippy::unwrap_used, clippy::panic)] // A failed test is what they are for.

mod run;
mod stage;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use stage::*;

#[test]
fn help_has_examples() {
    let stage = Stage::new();
    for command in ["mount", "umount", "demo", "run", "diff", "commit", "apply", "image", "list", "inspect"] {
        let outcome = stage.run(&[command, "--help"]);
        assert_eq!(outcome.code, Some(0));
        assert!(outcome.stdout.contains(&format!("  unionfs {command}")), "{}", outcome.stdout);
    }
    let outcome = stage.run(&["--help"]);
    assert!(outcome.stdout.contains("Examples:") && outcome.code == Some(0));
    assert_eq!(stage.run(&[]).code, Some(2));
    assert_eq!(stage.run(&["mount", "a"]).code, Some(2));
    assert_eq!(stage.run(&["mount", "a", "u"]).code, Some(2));
    assert_eq!(stage.run(&["mount", "-o", "ro", "m"]).code, Some(2));
    let outcome = stage.run(&["mount", "a", "u"]);
    assert!(outcome.stderr.contains("MOUNTPOINT") && outcome.stderr.contains("Usage: unionfs mount"));
    assert_eq!(stage.run(&["bogus"]).code, Some(2));
}

#[test]
fn refuses_bad_layers() {
    let stage = Stage::new();
    for (args, says) in [
        (["none", "u", "m"], ["lower layer none: ", "does not exist"]),
        (["a:none", "u", "m"], ["lower layer none: ", "does not exist"]),
        (["file", "u", "m"], ["lower layer file: ", "is not a directory"]),
        (["a", "file", "m"], ["upper layer file: ", "is not a directory"]),
        (["a", "none", "m"], ["upper layer none: ", "--create"]),
        (["a", "u", "none"], ["mount point none: ", "--create"]),
        (["a", "u", "file"], ["mount point file: ", "is not a directory"]),
        (["a", "a", "m"], ["upper layer a: ", "is also the lower layer a"]),
        (["a", "link", "m"], ["upper layer link: ", "is also the lower layer a"]),
        (["a", "link/sub", "m"], ["upper layer link/sub: ", "lies inside the lower layer a"]),
        (["u/sub", "u", "m"], ["upper layer u: ", "contains the lower layer u/sub"]),
        (["a:b:link", "u", "m"], ["lower layer link: ", "same directory as a"]),
        (["a:a", "u", "m"], ["lower layer a: ", "named twice"]),
        (["a:::b", "u", "m"], ["option a:::b: ", "empty"]),
        (["a::b:i", "u", "m"], ["option a::b:i: ", "cannot follow"]),
        (["a::none", "u", "m"], ["data-only layer none: ", "does not exist"]),
        (["a::link", "u", "m"], ["data-only layer link: ", "same directory as a"]),
        (["a", "u", "u"], ["mount point u: ", "is also the upper layer u"]),
        (["a", "u", "u/sub"], ["mount point u/sub: ", "lies inside the upper layer u"]),
    ] {
        stage.fails(&[&["mount"], args.as_slice()].concat(), &says);
        stage.fails(&[&["mount", "--foreground"], args.as_slice()].concat(), &says);
    }
    let many = vec!["a"; 501].join(":");
    stage.fails(&["mount", &many, "u", "m"], &["501 lower layers", "1 to 500"]);
    stage.fails(&["mount", "--init", "none", "a", "u", "m"], &["init layer none: ", "does not exist"]);
    stage.fails(&["mount", "--init", "u", "a", "u", "m"], &["init layer u: ", "is also the upper layer"]);
    stage.fails(&["mount", "--work", "none", "a", "u", "m"], &["work directory none: ", "does not exist"]);
    stage.fails(&["mount", "--work", "u/sub", "a", "u", "m"], &["work directory u/sub: ", "lies inside"]);
    stage.fails(&["mount", "--read-only", "none", "m"], &["lower layer none: "]);
    stage.fails(&["mount", "--read-only", "a", "none"], &["mount point none: "]);
}

#[test]
fn refuses_bad_options() {
    let stage = Stage::new();
    for (option, says) in [
        ("bogus", "is unknown"),
        ("threads=0", "1 to 512"),
        ("passthrough=x", "on or off"),
        ("ro=1", "no value"),
        ("redirect_dir=maybe", "on, off, follow or nofollow"),
        ("index=x", "on or off"),
        ("xino=x", "on, off or auto"),
        ("timeout=soon", "seconds"),
        ("default_permissions=x", "no value"),
    ] {
        let list = format!("rw,{option}");
        stage.fails(&["mount", "-o", &list, "a", "u", "m"], &[&format!("option {option}: "), says]);
    }
    stage.fails(&["mount", "-o", "log=none/log", "a", "u", "m"], &["log file none/log: "]);
}

#[test]
fn refuses_bad_layers_in_options() {
    let stage = Stage::new();
    for (list, says) in [
        ("lowerdir=none", ["lower layer none: ", "does not exist"]),
        ("lowerdir=a:b::none", ["data-only layer none: ", "does not exist"]),
        ("lowerdir=a,upperdir=file", ["upper layer file: ", "is not a directory"]),
        ("lowerdir=a,upperdir=a", ["upper layer a: ", "is also the lower layer a"]),
        ("lowerdir=a,upperdir=u,workdir=none", ["work directory none: ", "does not exist"]),
        ("lowerdir=a,workdir=u", ["work directory u: ", "without an upper layer"]),
        ("lowerdir=a,upperdir=u,init=none", ["init layer none: ", "does not exist"]),
        ("lowerdir=a,upperdir=", ["option upperdir=: ", "needs a directory"]),
        ("lowerdir=,upperdir=u", ["option lowerdir=: ", "needs a value"]),
        ("lowerdir=a::", ["option a::: ", "empty"]),
        (r"lowerdir=a\,none", ["lower layer a,none: ", "does not exist"]),
        (r"lowerdir+=a:none", ["lower layer a:none: ", "does not exist"]),
        ("upperdir=u", ["option lowerdir: ", "is missing"]),
        ("datadir+=a", ["option lowerdir: ", "is missing"]),
        ("lowerdir=a,bogus", ["option bogus: ", "is unknown"]),
    ] {
        stage.fails(&["mount", "-o", list, "m"], &says);
    }
    let both = "cannot stand beside layers named by -o";
    for (args, what) in [
        (&["mount", "-o", "lowerdir=a", "b", "u", "m"][..], "option b: "),
        (&["mount", "-o", "lowerdir=a", "u", "m"], "option u: "),
        (&["mount", "-o", "upperdir=u", "--read-only", "a", "m"], "option a: "),
        (&["mount", "-o", "init=i", "a", "u", "m"], "option a: "),
        (&["mount", "-o", "lowerdir=a,upperdir=u", "--init", "i", "m"], "option --init: "),
        (&["mount", "-o", "lowerdir=a,upperdir=u", "--work", "i", "m"], "option --work: "),
    ] {
        stage.fails(args, &[what, both]);
    }
    stage.fails(
        &["mount", "--read-only", "-o", "lowerdir=a,upperdir=u", "m"],
        &["option upperdir: ", "beside --read-only"],
    );
}

#[test]
fn names_can_have_colons() {
    let stage = Stage::new();
    stage.fails(&["mount", r"no\:ne:a", "u", "m"], &["lower layer no:ne: "]);
}

#[test]
fn what_was_created_goes_when_the_mount_fails() {
    let stage = Stage::new();
    stage.fails(&["mount", "--create", "none", "x/u", "x/m"], &["lower layer none: "]);
    stage.fails(&["mount", "--create", "a", "a/new/u", "m"], &["upper layer a/new/u: ", "would lie inside"]);
    stage.fails(
        &["mount", "--create", "a", "x/u", "x/u/m"],
        &["mount point x/u/m: ", "lies inside the upper"],
    );
    stage.fails(&["mount", "--create", "a", "file/u", "m"], &["upper layer file/u: ", "is not a directory"]);
}

#[test]
fn refuses_work_on_another_filesystem() {
    let stage = Stage::new();
    let Some(other) = other_filesystem(&stage) else { return };
    let other = other.path().to_str().unwrap();
    stage.fails(
        &["mount", "--work", other, "a", "u", "m"],
        &["work directory ", other, "same mount", "--work"],
    );
    stage.fails(&["mount", "a", "/dev/shm", "m"], &["upper layer /dev/shm: ", "--work"]);
    assert_eq!(fs::read_dir(other).unwrap().count(), 0);
}

#[test]
fn tells_that_the_device_is_missing() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    // A mount namespace of its own, in which /dev is empty.
    let hide = "mount -t tmpfs none /dev && exec \"$@\"";
    for args in [&["mount", "--create", "a", "x/u", "x/m"][..], &["mount", "-f", "a", "u", "m"], &["demo"]] {
        let before = stage.tree();
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", hide, "sh", PROGRAM]).args(args).current_dir(stage.dir.path());
        assert_refused(&finish(command), args, &["/dev/fuse", "does not exist", "modprobe fuse"]);
        assert_eq!(stage.tree(), before);
    }
}

#[test]
fn tells_that_the_right_is_missing() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    // Root without the capability to mount, as in a container.
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin", PROGRAM]);
    command.args(["mount", "--create", "a", "x/u", "x/m"]).current_dir(stage.dir.path());
    let before = stage.tree();
    assert_refused(&finish(command), &["mount"], &["mount point ", "x/m: ", "not permitted", "run as root"]);
    assert_eq!(stage.tree(), before);
    // Another user can't even write the layers.
    let program = stage.path("unionfs");
    fs::copy(PROGRAM, &program).unwrap();
    fs::set_permissions(stage.dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program);
    command.args(["mount", "a", "u", "m"]).current_dir(stage.dir.path());
    assert_refused(&finish(command), &["mount"], &["work directory ", "by this user", "root"]);
    assert!(!stage.path(".u.work").exists());
}

#[test]
fn umount_refuses_what_is_not_ours() {
    let stage = Stage::new();
    stage.fails(&["umount", "m"], &["mount point m: ", "no unionfs"]);
    stage.fails(&["umount", "none"], &["mount point none: ", "does not exist"]);
    stage.fails(&["umount", "none/none"], &["mount point none/none: ", "does not exist"]);
    stage.fails(&["umount", "/proc"], &["mount point /proc: ", "type proc"]);
}

#[test]
fn mounts_and_unmounts_by_any_means() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    for means in [&[PROGRAM, "umount"][..], &["umount"], &["umount", "-l"], &["fusermount3", "-u"]] {
        stage.ok(&["mount", "--init", "i", "a:b", "u", "m"]);
        assert_eq!(stage.mounts(), [stage.path("m")]);
        assert_eq!(stage.daemons().len(), 1);
        assert!(stage.path(".u.work").is_dir());
        let mut command = Command::new(means[0]);
        command.args(&means[1..]).arg(stage.path("m"));
        if means[0] == "fusermount3" && Command::new("fusermount3").arg("-V").output().is_err() {
            eprintln!("skipped: no fusermount3");
            stage.ok(&["umount", "m"]);
            continue;
        }
        let outcome = finish(command);
        assert_eq!(outcome.code, Some(0), "{means:?}: {}", outcome.stderr);
        assert_eq!(stage.mounts(), [""; 0].map(PathBuf::from));
        stage.wait_until("the daemon's end", |stage| stage.daemons().is_empty());
    }
}

#[test]
fn shows_the_layers() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    stage.ok(&["mount", "a:b", "u", "m"]);
    assert_eq!(fs::read_to_string(stage.path("m/file")).unwrap(), "from a\n");
    assert_eq!(fs::read_to_string(stage.path("m/other")).unwrap(), "from b\n");
    fs::write(stage.path("m/new"), "new\n").unwrap();
    assert_eq!(fs::read_to_string(stage.path("u/new")).unwrap(), "new\n");
    stage.ok(&["umount", "m"]);
    stage.wait_until("the daemon's end", |stage| stage.daemons().is_empty());
    stage.ok(&["mount", "--read-only", "a:b", "m"]);
    let error = fs::write(stage.path("m/new"), "").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    stage.ok(&["umount", "m"]);
}

#[test]
fn refuses_what_is_in_use() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    for name in ["m2", "u2", "i2"] {
        fs::create_dir(stage.path(name)).unwrap();
    }
    stage.ok(&["mount", "--init", "i", "a:b", "u", "m"]);
    stage.fails(&["mount", "a", "u2", "m"], &["mount point m: ", "busy", "unmount it first"]);
    stage.fails(&["mount", "a", "u", "m2"], &["upper layer u: ", "in use by a live mount"]);
    let taken = "in use by a live mount";
    stage.fails(&["mount", "--work", ".u.work", "a", "u2", "m2"], &["work directory .u.work: ", taken]);
    stage.fails(&["mount", "--init", "i", "a", "u2", "m2"], &["init layer i: ", taken]);
    // Lowers are shared freely.
    stage.ok(&["mount", "--init", "i2", "a:b", "u2", "m2"]);
    stage.ok(&["umount", "m2"]);
    stage.ok(&["umount", "m"]);
    stage.wait_until("the daemon's end", |stage| stage.daemons().is_empty());
    stage.ok(&["mount", "a", "u", "m"]);
    stage.ok(&["umount", "m"]);
}

#[test]
fn a_dead_daemon_is_unmounted_and_its_locks_are_free() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    stage.ok(&["mount", "a", "u", "m"]);
    for pid in stage.daemons() {
        signal(pid, "KILL");
    }
    stage.wait_until("the daemon's end", |stage| stage.daemons().is_empty());
    assert!(fs::read_dir(stage.path("m")).is_err(), "nobody answers");
    stage.ok(&["umount", "m"]);
    stage.ok(&["mount", "a", "u", "m"]);
    stage.ok(&["umount", "m"]);
}

#[test]
fn a_mount_takes_the_place_of_a_dead_one() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    // Two, one on top of the other, the way it would be after a crash of each.
    for _ in 0..2 {
        stage.ok(&["mount", "a", "u", "m"]);
        let _in_use = fs::File::open(stage.path("m")).unwrap();
        for pid in stage.daemons() {
            signal(pid, "KILL");
        }
        stage.wait_until("the daemon's end", |stage| stage.daemons().is_empty());
        // At once, or when the kernel cuts the connection: never does anybody wait for an answer.
        let error = fs::metadata(stage.path("m/none")).unwrap_err();
        let dead = [libc::ENOTCONN, libc::ECONNABORTED, libc::ECANCELED];
        assert!(dead.contains(&error.raw_os_error().unwrap()), "{error}");
    }
    stage.ok(&["mount", "a", "u", "m"]);
    assert_eq!(stage.mounts().len(), 1);
    assert!(fs::read_dir(stage.path("m")).unwrap().all(|entry| entry.is_ok()));
    let list = stage.run(&["list"]).stdout;
    let here = format!("{} ", stage.path("m").display());
    assert_eq!(list.lines().filter(|line| line.starts_with(&here)).count(), 1, "{list}");
    // One that does not answer is not taken for dead.
    let daemons = stage.daemons();
    daemons.iter().for_each(|pid| signal(*pid, "STOP"));
    let outcome = stage.run(&["mount", "a", "u", "m"]);
    daemons.iter().for_each(|pid| signal(*pid, "CONT"));
    assert!(outcome.code == Some(1) && outcome.stderr.contains("busy"), "{}", outcome.stderr);
    stage.ok(&["umount", "m"]);
}

#[test]
fn a_volatile_mount_is_refused_after_a_crash_and_not_after_its_end() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let mark = stage.path(".u.work/work/incompat/volatile/dirty");
    for end in ["umount", "TERM", "KILL"] {
        stage.ok(&["mount", "-o", "volatile", "a", "u", "m"]);
        assert!(mark.exists());
        fs::write(stage.path("m/new"), "x").unwrap();
        match end {
            "umount" => stage.ok(&["umount", "m"]),
            name => stage.daemons().iter().for_each(|pid| signal(*pid, name)),
        }
        stage.wait_until("the daemon's end", |stage| stage.daemons().is_empty());
        assert_eq!(mark.exists(), end == "KILL", "{end}");
    }
    stage.ok(&["umount", "m"]);
    for options in ["volatile", "rw"] {
        stage.fails(
            &["mount", "-o", options, "a", "u", "m"],
            &["work directory ", "volatile", "incompat/volatile"],
        );
    }
    assert!(stage.mounts().is_empty());
    fs::remove_dir_all(stage.path(".u.work/work/incompat/volatile")).unwrap();
    // As of fuse-overlayfs, no mark.
    stage.ok(&["mount", "-o", "fsync=0", "a", "u", "m"]);
    assert!(!mark.exists() && stage.path("m/new").exists());
    stage.ok(&["umount", "m"]);
}

#[test]
fn signals_unmount() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    for name in ["INT", "TERM"] {
        let mut command = stage.command(&["mount", "--foreground", "a", "u", "m"]);
        let mut child = command.stdin(Stdio::null()).spawn().unwrap();
        stage.wait_until("the mount", |stage| stage.mounts().len() == 1);
        signal(child.id(), name);
        assert_eq!(wait(&mut child, "mount --foreground").code(), Some(0));
        assert!(stage.mounts().is_empty());
    }
    stage.ok(&["mount", "a", "u", "m"]);
    // Busy, but whoever sends the signal wants it to end.
    let _busy = fs::File::open(stage.path("m")).unwrap();
    for pid in stage.daemons() {
        signal(pid, "TERM");
    }
    stage.wait_until("the daemon's end", |stage| stage.daemons().is_empty());
    assert!(stage.mounts().is_empty());
}

#[test]
fn a_foreground_mount_ends_with_its_mount() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let mut command = stage.command(&["mount", "-f", "a", "u", "m"]);
    let mut child = command.stdin(Stdio::null()).spawn().unwrap();
    stage.wait_until("the mount", |stage| stage.mounts().len() == 1);
    stage.ok(&["umount", "m"]);
    assert_eq!(wait(&mut child, "mount -f").code(), Some(0));
}

#[test]
fn umount_of_a_busy_mount() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    stage.ok(&["mount", "a", "u", "m"]);
    let busy = fs::File::open(stage.path("m")).unwrap();
    stage.fails(&["umount", "m"], &["mount point m: ", "is busy", "--lazy"]);
    stage.ok(&["umount", "--lazy", "m"]);
    assert!(stage.mounts().is_empty());
    assert_eq!(stage.daemons().len(), 1, "serves what is open");
    drop(busy);
    stage.wait_until("the daemon's end", |stage| stage.daemons().is_empty());
}

#[test]
fn creates_what_is_missing_when_told() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    stage.ok(&["mount", "--create", "a", "x/u", "y/m"]);
    stage.ok(&["umount", "y/m"]);
    let mode = |name: &str| fs::metadata(stage.path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode("x/u"), 0o755);
    assert_eq!(mode("x/.u.work"), 0o700);
    assert_eq!(mode("y/m"), 0o755);
}

#[test]
fn a_mount_point_may_be_a_lower() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    stage.ok(&["mount", "a:b", "u", "a"]);
    assert_eq!(fs::read_to_string(stage.path("a/file")).unwrap(), "from a\n");
    stage.ok(&["umount", "a"]);
    // And may lie inside one.
    stage.wait_until("the daemon's end", |stage| stage.daemons().is_empty());
    stage.ok(&["mount", "a:b", "u", "a/sub"]);
    assert_eq!(fs::read_dir(stage.path("a/sub/sub")).unwrap().count(), 0);
    stage.ok(&["umount", "a/sub"]);
}

#[test]
fn demo_runs_to_its_end() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let temp = stage.path("b/temp");
    fs::create_dir(&temp).unwrap();
    let mut command = stage.command(&["demo"]);
    command.env("TMPDIR", &temp);
    let outcome = finish(command);
    assert_eq!((outcome.code, outcome.stderr.as_str()), (Some(0), ""), "{}", outcome.stdout);
    assert!(!outcome.stdout.contains('\x1b'), "colour only on a terminal");
    let after = outcome.stdout.split_once("What landed where").unwrap().1;
    let (upper, rest) = after.split_once("init: ").unwrap();
    let init = rest.split_once("\n\n").unwrap().0;
    assert!(upper.contains("Have fun.") && upper.contains("whiteout"), "{upper}");
    for name in ["hosts", "resolv.conf", "192.0.2"] {
        assert!(!upper.contains(name) && init.contains(name), "{after}");
    }
    assert_eq!(fs::read_dir(&temp).unwrap().count(), 0, "cleaned up");
    assert!(stage.mounts().is_empty());
}

#[test]
fn demo_cleans_up_when_interrupted() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let temp = stage.path("b/temp");
    fs::create_dir(&temp).unwrap();
    for delay in [1, 5, 10, 20, 40] {
        let mut command = stage.command(&["demo"]);
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = quiet.env("TMPDIR", &temp).spawn().unwrap();
        thread::sleep(Duration::from_millis(delay));
        signal(child.id(), "INT");
        // Too early, and the signal comes before there is anything to clean up.
        let start = Instant::now();
        while child.try_wait().unwrap().is_none() {
            assert!(start.elapsed() < LIMIT);
            thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(fs::read_dir(&temp).unwrap().count(), 0, "after {delay} ms");
        assert!(stage.mounts().is_empty(), "after {delay} ms");
    }
}

#[test]
fn a_shared_mount_does_not_bring_the_mount_back_into_its_lower() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    // What is mounted below a shared mount appears in its clones, unless these are private.
    let script = "mount -t tmpfs none b; mount --make-shared b; mkdir b/lower b/lower/at; echo q > b/lower/q
        $1 mount --create b/lower b/upper b/lower/at
        test \"$(cat b/lower/at/q)\" = q; test -z \"$(ls b/lower/at/at)\"
        $1 umount b/lower/at";
    let outcome = in_namespace(&stage, script);
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
}

#[test]
fn a_user_without_rights_mounts_by_fusermount3() {
    if !can_mount() {
        return;
    }
    if Command::new("fusermount3").arg("-V").output().is_err() {
        eprintln!("skipped: no fusermount3");
        return;
    }
    let stage = Stage::new();
    fs::set_permissions(stage.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    for name in ["u", "u/sub", "m"] {
        std::os::unix::fs::chown(stage.path(name), Some(65534), Some(65534)).unwrap();
    }
    // The program itself may lie where the user cannot go.
    let script = "cp $1 unionfs; mount -t tmpfs none /dev
        mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/fuse c 10 229
        as() { setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"; }
        as ./unionfs mount a:b u m
        as cat m/file m/other
        as sh -c 'echo new > m/new; rm m/file'
        test -f u/new; test ! -e m/file
        as ./unionfs umount m
        ! as ./unionfs mount a u a/sub";
    let outcome = in_namespace(&stage, script);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(0), "from a\nfrom b\n"), "{}", outcome.stderr);
    let last = outcome.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("mount point a/sub: lies inside the lower layer a"), "{last}");
}
