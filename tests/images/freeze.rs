//! The upper of a live mount becomes a lower, and an empty one takes its place.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;

use crate::common::disk::lies_on;
use crate::common::files::*;
use crate::common::{Union, daemon_of, is_mounted, run, text, tree, unionfs};
use crate::need_unionfs;

fn frozen(union: &mut Union) -> serde_json::Value {
    let out = union.freeze();
    assert!(out.status.success(), "{}", text(&out));
    serde_json::from_slice(&out.stdout).unwrap()
}

/// All of a layer, the marks too.
fn whole(layer: &Path) -> String {
    run(
        "sh",
        &[
            "-c".as_ref(),
            "cd \"$0\" && find . -printf '%p %y %m %U:%G %s %n %t %l\\n' | sort && find . -type f | sort | \
             xargs -r sha256sum && getfattr -dhR -m- . | cat"
                .as_ref(),
            layer.as_os_str(),
        ],
    )
}

#[test]
fn goes_on_in_an_empty_upper() {
    need_unionfs!();
    let mut union = Union::new(2);
    put(union.lower(0, "low/file"), "low");
    put(union.lower(1, "low/other"), "other");
    put(union.lower(1, "dir/moved/x"), "x");
    put(union.lower(1, "gone"), "gone");
    put(union.lower(1, "both/deep/y"), "y");
    union.mount();
    put(union.at("new"), "one");
    put(union.at("low/file"), "changed");
    std::fs::remove_file(union.at("gone")).unwrap();
    std::fs::rename(union.at("dir/moved"), union.at("dir/there")).unwrap();
    std::fs::remove_dir_all(union.at("both")).unwrap();
    dir(union.at("both/fresh"));
    chmod(union.at(""), 0o711);
    set_xattr(union.at(""), "user.root", b"kept");
    let numbers = |union: &Union| {
        ["new", "low/file", "low/other", "low", "dir/there", "dir/there/x", "both", "both/fresh", ""]
            .map(|path| union.at(path).symlink_metadata().unwrap().ino())
    };
    let (before, inodes) = (tree::read(&union.mnt()), numbers(&union));
    let daemon = daemon_of(&union.mnt());
    let json = frozen(&mut union);
    assert_eq!(json["frozen"], union.past_upper(0, "").canonicalize().unwrap().to_str().unwrap());
    assert_eq!(json["upper"], union.upper("").canonicalize().unwrap().to_str().unwrap());
    assert_eq!(daemon_of(&union.mnt()), daemon);
    assert_eq!(tree::diff(&before, &tree::read(&union.mnt())), [""; 0]);
    assert_eq!(numbers(&union), inodes);
    // All kinds of changes, and the frozen layer stays.
    let layer = whole(&union.past_upper(0, ""));
    put(union.at("new"), "two");
    put(union.at("low/file"), "again");
    std::fs::remove_file(union.at("low/other")).unwrap();
    put(union.at("gone"), "back");
    std::fs::rename(union.at("dir/there"), union.at("elsewhere")).unwrap();
    std::fs::remove_dir_all(union.at("both")).unwrap();
    chmod(union.at("elsewhere/x"), 0o600);
    std::fs::hard_link(union.at("new"), union.at("link")).unwrap();
    assert_eq!(numbers_of(&union, &["new", "low/file"]), [inodes[0], inodes[1]]);
    let after = tree::read(&union.mnt());
    assert_eq!(whole(&union.past_upper(0, "")), layer);
    assert_eq!(get(union.at("new")), "two");
    assert_eq!((mode(union.at("")) & 0o777, xattr(union.at(""), "user.root")), (0o711, Some(b"kept".into())));
    // What list and diff tell is the new stack.
    let out = unionfs().arg("diff").arg(union.mnt()).output().unwrap();
    assert!(text(&out).contains("D /both\n") && text(&out).contains("C /new\n"), "{}", text(&out));
    // The printed command mounts the same tree.
    union.unmount();
    let command = json["mount_command"].as_str().unwrap().to_owned();
    let path = Path::new(env!("CARGO_BIN_EXE_unionfs")).parent().unwrap();
    let path = format!("{}:{}", path.display(), std::env::var("PATH").unwrap());
    let out = std::process::Command::new("sh").arg("-c").arg(&command).env("PATH", path).output().unwrap();
    assert!(out.status.success() && is_mounted(&union.mnt()), "{command}: {}", text(&out));
    assert_eq!(tree::diff(&after, &tree::read(&union.mnt())), [""; 0]);
    assert_eq!(whole(&union.past_upper(0, "")), layer);
}

fn numbers_of<const N: usize>(union: &Union, paths: &[&str; N]) -> [u64; N] {
    paths.map(|path| union.at(path).symlink_metadata().unwrap().ino())
}

#[test]
fn several_times_in_a_row_with_an_archive_of_each() {
    need_unionfs!();
    let mut union = Union::new(1).with_init();
    put(union.lower(0, "base"), "base");
    put(union.init("etc/hosts"), "init");
    union.mount();
    for i in 0..4 {
        put(union.at(format!("dir/file{i}")), format!("{i}"));
        put(union.at("dir/all"), format!("{i}"));
        put(union.at("etc/hosts"), format!("hosts {i}"));
        let archive = union.dir().join(format!("{i}.tar"));
        let mut command = unionfs();
        command.args(["commit", "--freeze", "--new-upper"]).arg(union.dir().join(format!("u{i}")));
        let out = command.arg("-o").arg(&archive).arg(union.mnt()).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        assert!(text(&out).contains("unionfs mount -o lowerdir="), "{}", text(&out));
        let names = run("tar", &["-tf".as_ref(), archive.as_ref()]);
        assert_eq!(names, format!("dir/\ndir/all\ndir/file{i}\n"));
    }
    assert_eq!(list(union.at("dir")), ["all", "file0", "file1", "file2", "file3"]);
    assert_eq!((get(union.at("dir/all")), get(union.at("etc/hosts"))), ("3".into(), "hosts 3".into()));
    assert!(list(union.dir().join("u3")).is_empty());
}

#[test]
fn readers_go_on() {
    need_unionfs!();
    for option in ["passthrough=on", "passthrough=off"] {
        let mut union = Union::new(1).option(option).mounted();
        put(union.at("read"), "before");
        put(union.at("removed"), "removed");
        let mut reader = File::open(union.at("read")).unwrap();
        let mut removed = OpenOptions::new().read(true).write(true).open(union.at("removed")).unwrap();
        std::fs::remove_file(union.at("removed")).unwrap();
        let inode = reader.metadata().unwrap().ino();
        frozen(&mut union);
        let mut seen = String::new();
        reader.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "before");
        // A file without a name goes on as it is.
        removed.write_all(b"REM").unwrap();
        removed.set_len(5).unwrap();
        removed.seek(SeekFrom::Start(0)).unwrap();
        seen.clear();
        removed.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "REMov");
        chmod(union.at("read"), 0o600);
        assert_eq!(union.at("read").metadata().unwrap().ino(), inode);
        let written = OpenOptions::new().write(true).truncate(true).open(union.at("read"));
        if option == "passthrough=on" && written.is_err() {
            // The kernel reads one real file for all handles of an inode.
            assert_eq!(errno(written), libc::ETXTBSY);
            assert_eq!(errno(File::options().append(true).open(union.at("read"))), libc::ETXTBSY);
            assert_eq!(get(union.at("read")), "before");
            drop(reader);
            assert!(crate::common::wait_for(|| std::fs::write(union.at("read"), "after").is_ok()));
        } else {
            written.unwrap().write_all(b"after").unwrap();
            let mut buf = [0; 5];
            reader.read_exact_at(&mut buf, 0).unwrap();
            assert_eq!(&buf, b"after");
        }
        assert_eq!(get(union.at("read")), "after");
        assert_eq!(get(union.past_upper(0, "read")), "before");
    }
}

#[test]
fn writers_stand_in_the_way_or_go_on() {
    need_unionfs!();
    for option in ["passthrough=on", "passthrough=off"] {
        let mut union = Union::new(1).option(option).mounted();
        put(union.at("dir/log"), "one\n");
        let mut log = OpenOptions::new().append(true).open(union.at("dir/log")).unwrap();
        log.write_all(b"two\n").unwrap();
        let out = union.freeze();
        if out.status.success() {
            let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
            assert_eq!(json["open_for_writing"], serde_json::json!(["/dir/log"]));
        } else {
            assert!(text(&out).contains("open for writing: /dir/log; close them"), "{}", text(&out));
            assert_eq!(list(union.dir()), ["l0", "mnt", "upper", "work"]);
            // It waits as long as it is told to.
            let mnt = union.mnt();
            let waiting = std::thread::spawn(move || {
                unionfs().args(["commit", "--freeze", "--wait", "60"]).arg(mnt).output().unwrap()
            });
            std::thread::sleep(std::time::Duration::from_millis(800));
            assert!(!waiting.is_finished());
            drop(log);
            let out = waiting.join().unwrap();
            assert!(out.status.success(), "{}", text(&out));
            assert_eq!(get(union.dir().join("upper/dir/log")), "one\ntwo\n");
            continue;
        }
        log.write_all(b"three\n").unwrap();
        log.sync_all().unwrap();
        assert_eq!(get(union.at("dir/log")), "one\ntwo\nthree\n");
        assert_eq!(get(union.upper("dir/log")), "one\ntwo\nthree\n");
        assert_eq!(get(union.past_upper(0, "dir/log")), "one\ntwo\n");
    }
}

/// A mapping outlives its descriptor.
#[test]
fn mappings_stand_in_the_way() {
    need_unionfs!();
    let mut union = Union::new(1).mounted();
    put(union.at("mapped"), "0123456789");
    let script = "import mmap, sys\nf = open(sys.argv[1], 'r+b')\nm = mmap.mmap(f.fileno(), 0)\nf.close()\n\
                  print('ready', flush=True)\nsys.stdin.readline()\nm[0:1] = b'X'\nm.flush()\n";
    let mut child = std::process::Command::new("python3")
        .args(["-c", script])
        .arg(union.at("mapped"))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = [0; 6];
    child.stdout.as_mut().unwrap().read_exact(&mut ready).unwrap();
    let out = union.freeze();
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(get(union.at("mapped")), "X123456789");
    if out.status.success() {
        // Without passthrough the page is written by the daemon.
        assert_eq!(get(union.past_upper(0, "mapped")), "0123456789");
    } else {
        assert!(text(&out).contains("/mapped (mapped)") || text(&out).contains("/mapped;"), "{}", text(&out));
        frozen(&mut union);
        assert_eq!(get(union.past_upper(0, "mapped")), "X123456789");
    }
}

#[test]
fn hardlinks_stay_together() {
    need_unionfs!();
    let mut union = Union::new(1);
    put(union.lower(0, "a/one"), "low");
    dir(union.lower(0, "b"));
    std::fs::hard_link(union.lower(0, "a/one"), union.lower(0, "b/two")).unwrap();
    std::fs::hard_link(union.lower(0, "a/one"), union.lower(0, "b/three")).unwrap();
    put(union.lower(0, "c/one"), "c");
    std::fs::hard_link(union.lower(0, "c/one"), union.lower(0, "c/two")).unwrap();
    std::fs::hard_link(union.lower(0, "c/one"), union.lower(0, "c/three")).unwrap();
    union.mount();
    put(union.at("a/one"), "up");
    std::fs::remove_file(union.at("c/two")).unwrap();
    put(union.at("p"), "p");
    std::fs::hard_link(union.at("p"), union.at("q")).unwrap();
    let links = |path| union_links(&union, path);
    let before = (tree::read(&union.mnt()), links("a/one"), links("c/one"), links("p"));
    assert_eq!((before.1, before.2, before.3), (3, 2, 2));
    frozen(&mut union);
    assert_eq!(tree::diff(&before.0, &tree::read(&union.mnt())), [""; 0]);
    put(union.at("b/three"), "again");
    put(union.at("c/three"), "c again");
    put(union.at("q"), "q");
    assert_eq!((get(union.at("a/one")), get(union.at("b/two"))), ("again".into(), "again".into()));
    assert_eq!((get(union.at("c/one")), get(union.at("p"))), ("c again".into(), "q".into()));
    let links = |path| union_links(&union, path);
    assert_eq!((links("b/two"), links("c/one"), links("p")), (3, 2, 2));
    let after = tree::read(&union.mnt());
    union.remount();
    assert_eq!(tree::diff(&after, &tree::read(&union.mnt())), [""; 0]);
    frozen(&mut union);
    union.remount();
    assert_eq!(tree::diff(&after, &tree::read(&union.mnt())), [""; 0]);
}

fn union_links(union: &Union, path: &str) -> u64 {
    union.at(path).metadata().unwrap().nlink()
}

#[test]
fn what_the_upper_hides_of_init_stands_in_the_way() {
    need_unionfs!();
    let mut union = Union::new(1).with_init();
    put(union.init("etc/hosts"), "init");
    put(union.upper("etc/hosts"), "upper");
    union.mount();
    let out = union.freeze();
    assert!(
        !out.status.success() && text(&out).contains("hides /etc/hosts of the init layer"),
        "{}",
        text(&out)
    );
    assert_eq!(get(union.at("etc/hosts")), "upper");
    assert_eq!(list(union.dir()), ["init", "l0", "mnt", "upper", "work"]);
}

#[test]
fn refuses_in_one_sentence() {
    need_unionfs!();
    let union = Union::new(1).mounted();
    dir(union.dir().join("full/x"));
    let said = |args: &[&str]| {
        let out = unionfs().args(["commit", "--freeze"]).args(args).arg(union.mnt()).output().unwrap();
        assert!(!out.status.success());
        text(&out)
    };
    let at = |name: &str| union.dir().join(name).to_str().unwrap().to_owned();
    assert!(said(&["--new-upper", &at("full")]).contains("is not empty"));
    assert!(said(&["--new-upper", &at("l0/x")]).contains("overlaps"));
    assert!(said(&["--new-upper", &at("mnt/x")]).contains("is not on the mount of the upper"));
    assert!(said(&["--new-upper", "/proc/x"]).contains("/proc/x"));
    assert!(said(&["-o", "layer.zip"]).contains(".tar"));
    assert!(!exists(union.dir().join("upper.1")) && !exists(union.at("x")));
    let mut read_only = Union::new(1).read_only().mounted();
    let out = read_only.freeze();
    assert!(!out.status.success() && text(&out).contains("no upper layer"), "{}", text(&out));
    let mut no_index = Union::new(1).option("index=off").mounted();
    let out = no_index.freeze();
    assert!(!out.status.success() && text(&out).contains("index=on"), "{}", text(&out));
}

/// The archive of a live mount.
#[test]
fn commit_names_the_files_that_are_open_for_writing() {
    need_unionfs!();
    for option in ["passthrough=on", "passthrough=off"] {
        let union = Union::new(1).option(option).mounted();
        put(union.at("done"), "done");
        let mut open = File::create(union.at("log")).unwrap();
        open.write_all(b"written").unwrap();
        let archive = union.dir().join("layer.tar");
        let out = unionfs().args(["commit", "--json", "-o"]).arg(&archive).arg(union.mnt()).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
        assert!(String::from_utf8_lossy(&out.stderr).contains("open for writing: /log"), "{}", text(&out));
        let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        assert_eq!(json["open_for_writing"], serde_json::json!(["/log"]));
        assert_eq!((&json["one_moment"], &json["changed"]), (&true.into(), &serde_json::json!([])));
        let log = run("tar", &["-xOf".as_ref(), archive.as_ref(), "log".as_ref()]);
        assert_eq!(log, "written");
    }
}

/// Whatever instant the process is killed at, what is recorded can be mounted and shows all.
#[test]
fn a_crash_leaves_a_stack_that_can_be_mounted() {
    need_unionfs!();
    for delay in [0, 2, 5, 10, 20, 40, 80, 160] {
        let mut union = Union::new(1);
        put(union.lower(0, "a/one"), "low");
        std::fs::hard_link(union.lower(0, "a/one"), union.lower(0, "two")).unwrap();
        put(union.lower(0, "gone"), "gone");
        union.mount();
        put(union.at("a/one"), "up");
        std::fs::remove_file(union.at("gone")).unwrap();
        let before = tree::read(&union.mnt());
        let mnt = union.mnt();
        let daemon = rustix::process::Pid::from_raw(daemon_of(&mnt).unwrap() as i32).unwrap();
        let freezing = std::thread::spawn(move || {
            unionfs().args(["commit", "--freeze"]).arg(mnt).output().unwrap().status.success()
        });
        std::thread::sleep(std::time::Duration::from_millis(delay));
        rustix::process::kill_process(daemon, rustix::process::Signal::KILL).unwrap();
        let frozen = freezing.join().unwrap();
        // Unless another test has looked for live mounts meanwhile.
        let record =
            std::fs::read_to_string(crate::common::record_of(daemon.as_raw_nonzero().get().cast_unsigned()));
        let frozen = frozen || record.is_ok_and(|record| record.contains("/upper.1\""));
        union.unmount();
        // Both stacks show the same, as nothing was changed since.
        let new = union.dir().join("upper.1");
        assert!(!frozen || exists(&new));
        union.mount();
        assert_eq!(tree::diff(&before, &tree::read(&union.mnt())), [""; 0]);
        union.unmount();
        if frozen {
            let lowers = format!("{}:{}", union.upper("").display(), union.lower(0, "").display());
            let mut mount = unionfs();
            mount.arg("mount").arg("--create").arg(lowers).arg(&new).arg(union.mnt());
            let out = mount.output().unwrap();
            assert!(out.status.success(), "{}", text(&out));
            assert_eq!(tree::diff(&before, &tree::read(&union.mnt())), [""; 0]);
            put(union.at("two"), "again");
            assert_eq!(get(union.at("a/one")), "again");
            union.unmount();
        }
    }
}

#[test]
fn limits_are_for_the_new_upper() {
    need_unionfs!();
    let mut union = Union::new(1).option("size=4m");
    if lies_on(union.dir(), libc::XFS_SUPER_MAGIC) {
        return crate::common::skip("the kernel's XFS sets room aside behind files that grow, which counts");
    }
    union.mount();
    let mnt = union.mnt();
    let fill = |name: &str| std::fs::write(mnt.join(name), vec![7; 3 << 20]);
    let free = || {
        let st = rustix::fs::statvfs(&mnt).unwrap();
        st.f_bfree * st.f_frsize
    };
    fill("old").unwrap();
    let full = fill("more").unwrap_err();
    assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
    std::fs::remove_file(union.at("more")).unwrap();
    // One that is still open has no name to be left in the frozen layer, and goes on to count.
    let open = File::create(union.at("open")).unwrap();
    open.write_all_at(&[7; 512 << 10], 0).unwrap();
    std::fs::remove_file(union.at("open")).unwrap();
    let out = union.freeze();
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(free(), (4 << 20) - (512 << 10));
    fill("new").unwrap();
    assert!(fill("more").is_err());
    drop(open);
    std::fs::remove_file(union.at("more")).unwrap();
    std::fs::remove_file(union.at("new")).unwrap();
    fill("new").unwrap();
    assert_eq!(get(union.at("old")).len(), 3 << 20);
}

#[test]
fn the_mark_of_a_volatile_mount_goes_over() {
    need_unionfs!();
    let mut union = Union::new(1).option("volatile");
    union.mount();
    put(union.at("f"), "x");
    let marked = |work: &Path| work.join("work/incompat/volatile/dirty").exists();
    let json = frozen(&mut union);
    assert!(json["upper"].is_string());
    assert!(marked(&union.work("")) && !marked(&union.dir().join("work")));
    union.unmount();
    assert!(!marked(&union.work("")));
}
