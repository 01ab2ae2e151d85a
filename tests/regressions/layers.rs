//! What lands in the layers and in the work directory.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::common::files::{dir, errno, exists, get, list, put};
use crate::common::{Union, daemon_of, tree, wait_for};
use crate::{MOUNTS, sh};
use crate::{need_unionfs, python};

#[test]
fn a_lower_is_not_written_through_a_second_open() {
    need_unionfs!();
    for options in MOUNTS {
        let mut u = Union::new(1);
        u.set_options(options);
        for name in ["write", "truncate", "map"] {
            put(u.lower(0, name), "0123456789");
        }
        let before = tree::fingerprint(&u.lower(0, ""));
        u.mount();
        // Readers that stay, one with a mapping.
        let readers = ["write", "truncate"].map(|name| File::open(u.at(name)).unwrap());
        let both = |name: &str| OpenOptions::new().read(true).write(true).open(u.at(name)).unwrap();
        let writer = both("write");
        writer.write_all_at(b"WRITTEN", 0).unwrap();
        writer.sync_all().unwrap();
        both("truncate").set_len(3).unwrap();
        python(
            &u.mnt(),
            "
r = open('map', 'rb'); m = mmap.mmap(r.fileno(), 10, prot=mmap.PROT_READ)
w = open('map', 'r+b'); n = mmap.mmap(w.fileno(), 10)
n[0:3] = b'MAP'; n.flush()
assert m[0:3] == b'MAP', m[:]
",
        );
        let mut piece = [0; 7];
        readers[0].read_exact_at(&mut piece, 0).unwrap();
        assert_eq!(&piece, b"WRITTEN", "{options:?}");
        assert_eq!(readers[1].metadata().unwrap().len(), 3);
        drop((readers, writer));
        u.unmount();
        assert_eq!(tree::fingerprint(&u.lower(0, "")), before, "{options:?}");
        assert_eq!(get(u.upper("map")), "MAP3456789");
    }
}

#[test]
fn deleted_content_does_not_come_back() {
    need_unionfs!();
    for options in MOUNTS {
        let mut u = Union::new(2);
        u.set_options(options);
        for layer in 0..2 {
            put(u.lower(layer, format!("d/f{layer}")), "x");
            put(u.lower(layer, format!("d/sub/g{layer}")), "x");
            put(u.lower(layer, "a/b/c/file"), "x");
        }
        u.mount();
        sh(&u.mnt(), "rm -rf d; mkdir d; rm -rf a/b/c; mkdir a/b/c");
        for when in ["at once", "after a remount"] {
            assert_eq!(list(u.at("d")), [""; 0], "{when}");
            assert_eq!(list(u.at("a/b/c")), [""; 0], "{when}");
            assert!(!exists(u.at("d/sub")));
            u.remount();
        }
        // The same names, of other types and made again.
        sh(&u.mnt(), "rmdir d; : >d; rm d; mkdir -p d/sub; : >d/own; rm -r a; mkdir -p a/b");
        u.remount();
        assert_eq!(list(u.at("d")), ["own", "sub"]);
        assert_eq!(list(u.at("d/sub")), [""; 0]);
        assert_eq!(list(u.at("a/b")), [""; 0]);
        // By rename, too.
        sh(&u.mnt(), "rm -r d; mkdir new; mv new d; rm -r a; mkdir -p x/b; mv x a");
        u.remount();
        assert_eq!(list(u.at("d")), [""; 0]);
        assert_eq!(list(u.at("a/b")), [""; 0]);
    }
}

#[test]
fn nothing_is_left_in_the_work_directory() {
    need_unionfs!();
    let mut u = Union::new(1);
    put(u.lower(0, "f"), "x");
    put(u.lower(0, "d/g"), "x");
    // Left by a crash.
    put(u.work("work/#1"), "stale");
    put(u.work("work/#2/dir/file"), "stale");
    dir(u.work("work/#f"));
    u.mount();
    assert_eq!(list(u.work("work")), [""; 0], "stale files");
    sh(&u.mnt(), "chmod 600 f; rm f; : >f; rm -r d; mkdir d; : >d/n; mv d e; ln e/n n; mv n f; rm -r e f");
    assert_eq!(list(u.work("work")), [""; 0], "leftover files");
}

#[test]
fn a_full_disk_leaves_the_lower_version_and_no_rest() {
    need_unionfs!();
    for options in MOUNTS {
        let mut u = Union::new(1);
        u.set_options(options);
        put(u.lower(0, "d/big"), vec![b'b'; 4 << 20]);
        let small = u.dir().join("small");
        dir(&small);
        mount("tmpfs", &small, "tmpfs", MountFlags::empty(), Some(c"size=2m,mode=755")).unwrap();
        for name in ["upper", "work"] {
            std::fs::remove_dir(u.dir().join(name)).unwrap();
            dir(small.join(name));
            std::os::unix::fs::symlink(small.join(name), u.dir().join(name)).unwrap();
        }
        u.mount();
        let result = OpenOptions::new().append(true).open(u.at("d/big"));
        assert_eq!(errno(result), libc::ENOSPC, "{options:?}");
        assert_eq!(std::fs::read(u.at("d/big")).unwrap(), vec![b'b'; 4 << 20]);
        assert!(!exists(u.upper("d/big")));
        assert_eq!(list(u.work("work")), [""; 0]);
        // There is room for what is small.
        put(u.at("d/small"), "x");
        std::fs::remove_file(u.at("d/big")).unwrap();
        assert_eq!(list(u.at("d")), ["small"]);
        u.unmount();
        assert!(wait_for(|| unmount(&small, UnmountFlags::empty()).is_ok()));
    }
}

#[test]
fn a_daemon_killed_while_it_copies_leaves_the_lower_version() {
    need_unionfs!();
    let mut u = Union::new(1);
    let content: Vec<u8> = (0..192_u32 << 20).map(|i| (i >> 9) as u8 | 1).collect();
    put(u.lower(0, "d/big"), &content);
    u.mount();
    let pid = daemon_of(&u.mnt()).unwrap();
    let path = u.at("d/big");
    let open = std::thread::spawn(move || OpenOptions::new().write(true).open(path).is_ok());
    // In the middle of it, if the machine is not too fast.
    wait_for(|| exists(u.upper("d")));
    kill_process(Pid::from_raw(pid as i32).unwrap(), Signal::KILL).unwrap();
    let _ = open.join();
    unmount(u.mnt(), UnmountFlags::DETACH).unwrap();
    assert!(wait_for(|| daemon_of(&u.mnt()).is_none()));
    u.mount();
    assert_eq!(list(u.work("work")), [""; 0]);
    assert!(std::fs::read(u.at("d/big")).unwrap() == content);
    assert_eq!(list(u.at("d")), ["big"]);
}

#[test]
fn lowers_of_several_mounts() {
    need_unionfs!();
    // Layers of one mount are reached by one clone of it. Here one lies in another, and two on mounts in between.
    let mut u = Union::new(5);
    let mounted = [u.lower(1, ""), u.lower(3, "")];
    for at in &mounted {
        mount("none", at, "tmpfs", MountFlags::empty(), None).unwrap();
    }
    for layer in 0..5 {
        put(u.lower(layer, "own").with_extension(layer.to_string()), "x");
        put(u.lower(layer, "f"), format!("from {layer}"));
    }
    u.mount();
    let names = list(u.mnt());
    assert_eq!(names, ["f", "own.0", "own.1", "own.2", "own.3", "own.4"]);
    assert_eq!(get(u.at("f")), "from 0");
    put(u.at("own.3"), "changed");
    assert_eq!(get(u.lower(3, "own.3")), "x");
    // Both are free while we go on.
    u.unmount();
    for at in &mounted {
        unmount(at, UnmountFlags::empty()).unwrap();
    }
}
