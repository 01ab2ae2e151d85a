//! `unionfs run`, and layers as container engines leave them.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use crate::stage::*;

/// The host's programs, for a tree that has none.
const HOST: [&str; 5] = ["/bin", "/sbin", "/lib", "/lib64", "/usr"];

/// The arguments that give the tree the host's programs, read-only.
fn programs() -> Vec<String> {
    HOST.iter()
        .filter(|path| fs::metadata(path).is_ok())
        .flat_map(|path| ["--volume".to_owned(), format!("{path}:{path}:ro")])
        .collect()
}

impl Stage {
    fn run_in_tree(&self, args: &[&str], script: &str) -> Outcome {
        let programs = programs();
        let mut all = vec!["run"];
        all.extend(programs.iter().map(String::as_str));
        all.extend_from_slice(args);
        all.extend_from_slice(&["--", "/bin/sh", "-c", script]);
        let mut command = self.command(&all);
        fs::create_dir_all(self.path("temporary")).unwrap();
        command.env("TMPDIR", self.path("temporary"));
        let outcome = finish(command);
        assert_eq!(fs::read_dir(self.path("temporary")).unwrap().count(), 0, "the mount point stays");
        assert!(self.mounts().is_empty() && self.daemons().is_empty(), "something stays");
        outcome
    }
}

#[test]
fn runs_a_command_in_the_tree() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let outcome =
        stage.run_in_tree(&["a:b", "u"], "cat /file /other; test -e /proc/self; echo x >/dev/null; rm /file");
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(0), "from a\nfrom b\n"), "{}", outcome.stderr);
    assert_eq!(fs::symlink_metadata(stage.path("u/file")).unwrap().rdev(), 0);
    let outcome = stage.run_in_tree(&["-o", "lowerdir=a:b,upperdir=u", "m"], "cat /other; ls /file");
    assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(2), "from b\n"), "{}", outcome.stderr);
    for path in HOST.iter().filter(|path| fs::metadata(path).is_ok()) {
        assert_eq!(
            fs::read_dir(stage.path("u").join(&path[1..])).unwrap().count(),
            0,
            "{path} is in the upper"
        );
    }
}

#[test]
fn passes_the_exit_status_on() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    for (script, status) in [("exit 7", 7), ("kill -9 $$", 137), ("kill -15 $$", 143), ("none-such", 127)] {
        assert_eq!(stage.run_in_tree(&["a", "u"], script).code, Some(status), "{script}");
    }
    let outcome = stage.run(&["run", "a", "u", "--", "/none"]);
    assert_eq!(outcome.code, Some(127));
    assert!(outcome.stderr.contains("command /none: is not found in the tree"), "{}", outcome.stderr);
    let outcome = stage.run(&["run", "a", "u", "--", "/file"]);
    assert_eq!(outcome.code, Some(126), "{}", outcome.stderr);
    assert!(stage.mounts().is_empty());
}

#[test]
fn the_content_of_volumes_stays_out_of_the_upper() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    fs::create_dir_all(stage.path("vol/sub")).unwrap();
    fs::write(stage.path("vol/file"), "host\n").unwrap();
    fs::create_dir(stage.path("a/etc")).unwrap();
    // A symlink of the layer must not lead out of the tree.
    std::os::unix::fs::symlink("/", stage.path("a/root")).unwrap();
    std::os::unix::fs::symlink("../../../../etc", stage.path("a/up")).unwrap();
    let args =
        ["--volume", "vol:/data/in", "--volume", "vol/file:/root/one:ro", "-v", "vol:/up/config", "a", "u"];
    let script =
        "cat /data/in/file /one /etc/config/file; echo new >/data/in/new; rm -r /data/in/sub; echo x >/one";
    let outcome = stage.run_in_tree(&args, script);
    assert_eq!(outcome.stdout, "host\nhost\nhost\n", "{}", outcome.stderr);
    assert!(outcome.code != Some(0) && outcome.stderr.contains("Read-only"), "{}", outcome.stderr);
    assert_eq!(fs::read_to_string(stage.path("vol/new")).unwrap(), "new\n");
    assert!(!stage.path("vol/sub").exists());
    assert_eq!(fs::read_dir(stage.path("u/data/in")).unwrap().count(), 0);
    assert_eq!(fs::read(stage.path("u/one")).unwrap(), b"");
    assert_eq!(fs::read_dir(stage.path("u/etc/config")).unwrap().count(), 0);
    // A tree that cannot be changed has what it has.
    let outcome = stage.run(&["run", "--read-only", "--volume", "vol:/data", "a", "--", "/file"]);
    assert_eq!(outcome.code, Some(125));
    assert!(
        outcome.stderr.contains("/data: does not exist in the tree, which is read-only"),
        "{}",
        outcome.stderr
    );
    let outcome = stage.run(&["run", "--read-only", "--volume", "vol:/sub", "a", "--", "/none"]);
    assert_eq!(outcome.code, Some(127), "{}", outcome.stderr);
}

#[test]
fn what_the_command_leaves_running_ends_with_it() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    let outcome = stage.run_in_tree(&["a", "u"], "sleep 987 & (setsid sleep 987 &) ; echo done >/end");
    assert_eq!(outcome.code, Some(0), "{}", outcome.stderr);
    assert_eq!(fs::read(stage.path("u/end")).unwrap(), b"done\n");
}

#[test]
fn signals_reach_the_command() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    for (name, end) in [("TERM", 3), ("KILL", 0)] {
        let programs = programs();
        let mut args = vec!["run"];
        args.extend(programs.iter().map(String::as_str));
        args.extend_from_slice(&[
            "a",
            "u",
            "--",
            "/bin/sh",
            "-c",
            "trap 'exit 3' TERM; echo up; while :; do sleep 0.05; done",
        ]);
        let mut child = stage.command(&args).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut line).unwrap();
        signal(child.id(), name);
        if name == "TERM" {
            assert_eq!(wait(&mut child, "run").code(), Some(end));
        } else {
            child.wait().unwrap();
            // Nor does the command go on: nobody has its output open.
            std::io::Read::read_to_end(child.stdout.as_mut().unwrap(), &mut Vec::new()).unwrap();
        }
        // Also when nobody is left to unmount.
        stage.wait_until("the daemon ends", |stage| stage.daemons().is_empty());
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn refuses_what_it_cannot_do() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    for (args, says) in [
        (&["--volume", "none:/x", "a", "u"][..], ["volume none: ", "does not exist"]),
        (&["--volume", "b", "a", "u"], ["option --volume b: ", "HOST:PATH"]),
        (&["--volume", "b:x", "a", "u"], ["option --volume b:x: ", "absolute"]),
        (&["--volume", "b:/x:rx", "a", "u"], ["option --volume b:/x:rx: ", "neither ro nor rw"]),
        (&["--volume", "file:/sub", "a", "u"], ["mount point of the volume /sub: ", "is a directory"]),
        (&["--volume", "b:/file", "a", "u"], ["mount point of the volume /file: ", "is not a directory"]),
        (&["--volume", "b:/file/x", "a", "u"], ["mount point of the volume /file/x: ", "is not a directory"]),
        (&["--volume", "b:/v", "--volume", "b:/v/x", "a", "u"], ["/v/x: ", "create it there"]),
        (&["--foreground", "a", "u"], ["option --foreground: ", "leave it out"]),
        (&["none", "u"], ["lower layer none: ", "does not exist"]),
        (&["a", "none"], ["upper layer none: ", "--create"]),
        (&["a", "u", "none"], ["mount point none: ", "does not exist"]),
        (&["-o", "bogus", "a", "u"], ["option bogus: ", "unknown"]),
    ] {
        let all = [&["run"], args, &["--", "/none"]].concat();
        let outcome = stage.run(&all);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (Some(125), ""), "{args:?}: {}", outcome.stderr);
        assert_eq!(outcome.stderr.lines().count(), 1, "{args:?}: {}", outcome.stderr);
        assert!(says.iter().all(|part| outcome.stderr.contains(part)), "{args:?}: {}", outcome.stderr);
        assert!(stage.mounts().is_empty() && stage.daemons().is_empty(), "{args:?}");
    }
    for args in
        [&["run"][..], &["run", "a", "u"], &["run", "a", "--", "x"], &["run", "--read-only", "--", "x"]]
    {
        assert_eq!(stage.run(args).code, Some(2), "{args:?}");
    }
}

#[test]
fn a_user_runs_it_in_a_user_namespace() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    fs::set_permissions(stage.dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    for name in ["u", "u/sub"] {
        std::os::unix::fs::chown(stage.path(name), Some(65534), Some(65534)).unwrap();
    }
    let script = "cp $1 unionfs; mount -t tmpfs none /dev
        mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/fuse c 10 229
        status=0; setpriv --reuid 65534 --regid 65534 --clear-groups env TMPDIR=$PWD ./unionfs run \\
            -v /bin:/bin -v /lib:/lib -v /lib64:/lib64 -v /usr:/usr a:b u -- /bin/sh -c \\
            'id -u; cat /file /other; echo new > /new; rm /file; exit 9' || status=$?
        test $status = 9; test -f u/new; ls -ln u/new | grep -q 65534; test ! -f u/file -o -c u/file";
    let outcome = in_namespace(&stage, script);
    assert_eq!(
        (outcome.code, outcome.stdout.as_str()),
        (Some(0), "0\nfrom a\nfrom b\n"),
        "{}",
        outcome.stderr
    );
}

/// podman extracts image layers with `.wh.` whiteouts for a program that mounts, and to tell what one changes it
/// mounts that one as an upper.
#[test]
fn an_image_layer_of_an_engine_is_an_upper() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    fs::create_dir(stage.path("w")).unwrap();
    fs::write(stage.path("u/.wh.file"), "").unwrap();
    fs::create_dir_all(stage.path("u/new")).unwrap();
    fs::create_dir_all(stage.path("a/new")).unwrap();
    fs::write(stage.path("a/new/old"), "").unwrap();
    fs::write(stage.path("u/new/.wh..wh..opq"), "").unwrap();
    stage.ok(&["-o", "lowerdir=a:b,upperdir=u,workdir=w,,", "m"]);
    let names = |at: &str| {
        let mut names: Vec<_> = fs::read_dir(stage.path(at))
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names("m"), ["new", "other", "sub"]);
    assert_eq!(names("m/new"), [""; 0]);
    assert!(!stage.path("m/file").exists() && !stage.path("m/.wh.file").exists());
    // What it hides can be made again, by any of the ways.
    fs::create_dir(stage.path("m/file")).unwrap();
    assert_eq!(names("m/file"), [""; 0]);
    fs::remove_dir(stage.path("m/file")).unwrap();
    assert!(!stage.path("m/file").exists());
    fs::rename(stage.path("m/other"), stage.path("m/file")).unwrap();
    assert_eq!(fs::read_to_string(stage.path("m/file")).unwrap(), "from b\n");
    fs::remove_file(stage.path("m/file")).unwrap();
    assert_eq!(names("m"), ["new", "sub"]);
    fs::remove_dir(stage.path("m/new")).unwrap();
    assert_eq!(names("m"), ["sub"]);
    stage.ok(&["umount", "m"]);
}

/// What podman compares: a read-only mount of the image, called without a source, and the container's mount.
#[test]
fn a_change_within_the_second_shows_in_a_comparison() {
    if !can_mount() {
        return;
    }
    let stage = Stage::new();
    fs::create_dir(stage.path("w")).unwrap();
    let whole = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    fs::File::open(stage.path("a/file")).unwrap().set_modified(whole).unwrap();
    let time = |at: &str| {
        let meta = fs::metadata(stage.path(at)).unwrap();
        (meta.mtime(), meta.mtime_nsec())
    };
    for (args, at, expected) in [
        (&["-o", "lowerdir=a:b", "m"][..], "m/file", 1),
        (&["source", "m", "-o", "lowerdir=a:b"], "m/file", 0),
        (&["-o", "lowerdir=a:b,upperdir=u,workdir=w", "m"], "m/file", 0),
        (&["mount", "--read-only", "a:b", "m"], "m/file", 0),
    ] {
        stage.ok(args);
        assert_eq!(time(at), (1_700_000_000, expected), "{args:?}");
        stage.ok(&["umount", "m"]);
    }
    assert_eq!(time("a/file"), (1_700_000_000, 0));
}
