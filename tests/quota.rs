//! The options `size=` and `inodes=`: what may be written, what statfs(2) says, and that both stay right.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod common;

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use common::files::{chmod, dir, errno, exists, get, is_whiteout, list, put};
use common::{Union, text};
use rustix::fs::FallocateFlags;

const MIB: u64 = 1 << 20;
/// Extents and the like, for each file.
const SLACK: u64 = 8192;

/// Bytes and objects in use, as statfs(2) of the mount tells them.
fn told(u: &Union) -> (u64, u64) {
    let st = rustix::fs::statvfs(u.mnt()).unwrap();
    ((st.f_blocks - st.f_bfree) * st.f_frsize, st.f_files - st.f_ffree)
}

/// The same, counted in the upper and the index by hand.
fn counted(u: &Union) -> (u64, u64) {
    let (mut bytes, mut objects, mut seen) = (0, 0, HashSet::new());
    let mut left = vec![u.upper(""), u.work("index")];
    while let Some(at) = left.pop() {
        for path in std::fs::read_dir(at).unwrap().map(|e| e.unwrap().path()) {
            let st = path.symlink_metadata().unwrap();
            if is_whiteout(&path) || !seen.insert(st.ino()) {
                continue;
            }
            objects += 1;
            if st.is_dir() {
                left.push(path);
            } else if st.is_file() {
                bytes += st.blocks() * 512;
            }
        }
    }
    (bytes, objects)
}

/// Waits until both agree: the kernel tells late of what it has forgotten.
fn agree(u: &Union) {
    let same = common::wait_for(|| told(u) == counted(u));
    assert!(same, "told {:?}, counted {:?}", told(u), counted(u));
}

/// Appends pieces until there is no room; gives the bytes written.
fn fill(path: &Path, piece: &[u8]) -> u64 {
    let mut file = OpenOptions::new().create(true).append(true).open(path).unwrap();
    let mut done = 0;
    loop {
        match file.write(piece) {
            Ok(count) => done += count as u64,
            Err(e) => {
                assert_eq!(e.raw_os_error(), Some(libc::ENOSPC));
                return done;
            }
        }
        assert!(done < 64 * MIB, "there is no limit");
    }
}

#[test]
fn statfs_tells_the_limits() {
    need_unionfs!();
    let u = Union::new(1).option("size=8m,inodes=100").mounted();
    let st = rustix::fs::statvfs(u.mnt()).unwrap();
    assert_eq!((st.f_blocks * st.f_frsize, st.f_files, st.f_ffree), (8 * MIB, 100, 100));
    put(u.at("f"), vec![1; 1 << 20]);
    dir(u.at("d"));
    assert_eq!(told(&u), (MIB, 2));
    let df = common::run("df", &["-B1".as_ref(), "--output=size,used".as_ref(), u.mnt().as_os_str()]);
    let _ = df;
    agree(&u);
}

#[test]
fn a_part_of_the_filesystem_is_a_limit() {
    need_unionfs!();
    let u = Union::new(1).option("size=10%").mounted();
    let whole = rustix::fs::statvfs(u.upper("")).unwrap();
    let st = rustix::fs::statvfs(u.mnt()).unwrap();
    assert_eq!(st.f_blocks, whole.f_blocks / 10);
    assert_eq!(st.f_files, whole.f_files, "only what is given is limited");
}

#[test]
fn what_is_full_is_enospc_and_what_is_freed_can_be_used() {
    need_unionfs!();
    for piece in [100, 5000, 1 << 16, 1 << 20] {
        let mut u = Union::new(1).option("size=4m,inodes=1m").mounted();
        let done = fill(&u.at("f"), &vec![7; piece]);
        assert!(done <= 4 * MIB && done + SLACK >= 4 * MIB, "{done} bytes by {piece}");
        assert_eq!(std::fs::read(u.at("f")).unwrap(), vec![7; done as usize]);
        agree(&u);
        // What is there can be written over, at the limit too.
        let file = OpenOptions::new().write(true).open(u.at("f")).unwrap();
        file.write_all_at(&[8; 10_000], 1000).unwrap();
        file.sync_all().unwrap();
        assert_eq!(
            errno(OpenOptions::new().append(true).open(u.at("f")).unwrap().write_all(&[1; 8192])),
            libc::ENOSPC
        );
        drop(file);
        u.remount();
        agree(&u);
        std::fs::remove_file(u.at("f")).unwrap();
        agree(&u);
        assert_eq!(told(&u).0, 0);
        let again = fill(&u.at("g"), &vec![9; piece]);
        assert!(again + SLACK >= 4 * MIB, "{again} bytes");
    }
}

#[test]
fn many_writers_share_the_limit() {
    need_unionfs!();
    let mut u = Union::new(1).option("size=16m,inodes=1m").mounted();
    let written: Vec<(PathBuf, u64)> = std::thread::scope(|s| {
        let write = |i: usize| {
            let path = u.at(format!("f{i}"));
            s.spawn(move || {
                let done = fill(&path, &vec![i as u8; 3000 + 7000 * i]);
                (path, done)
            })
        };
        (0..8).map(write).collect::<Vec<_>>().into_iter().map(|t| t.join().unwrap()).collect()
    });
    for (i, (path, done)) in written.iter().enumerate() {
        assert_eq!(std::fs::read(path).unwrap(), vec![i as u8; *done as usize]);
    }
    let whole: u64 = written.iter().map(|(_, done)| done).sum();
    assert!(whole <= 16 * MIB && whole + 8 * (4096 + SLACK) >= 16 * MIB, "{whole} bytes");
    agree(&u);
    assert!(told(&u).0 <= 16 * MIB + SLACK);
    u.remount();
    agree(&u);
}

#[test]
fn objects_are_limited() {
    need_unionfs!();
    let mut u = Union::new(1).option("size=1g,inodes=10");
    put(u.lower(0, "low/f"), "f");
    put(u.lower(0, "g"), "g");
    u.mount();
    for i in 0..3 {
        put(u.at(format!("f{i}")), "");
        dir(u.at(format!("d{i}")));
        std::os::unix::fs::symlink("x", u.at(format!("s{i}"))).unwrap();
    }
    // A name more is no object more, and neither is a whiteout.
    std::fs::hard_link(u.at("f0"), u.at("link")).unwrap();
    std::fs::remove_file(u.at("g")).unwrap();
    // The directory, then the file: there is room for one.
    assert_eq!(errno(OpenOptions::new().append(true).open(u.at("low/f"))), libc::ENOSPC);
    agree(&u);
    assert_eq!(told(&u).1, 10);
    for made in [File::create(u.at("x")).map(drop), std::fs::create_dir(u.at("x"))] {
        assert_eq!(errno(made), libc::ENOSPC);
    }
    assert_eq!(errno(std::os::unix::fs::symlink("x", u.at("x"))), libc::ENOSPC);
    assert_eq!(get(u.at("low/f")), "f");
    std::fs::remove_dir(u.at("d0")).unwrap();
    agree(&u);
    chmod(u.at("low/f"), 0o600);
    std::fs::remove_file(u.at("f0")).unwrap();
    assert_eq!(errno(File::create(u.at("x"))), libc::ENOSPC);
    std::fs::rename(u.at("f1"), u.at("link")).unwrap();
    agree(&u);
    File::create(u.at("x")).unwrap();
    u.remount();
    agree(&u);
    assert_eq!(told(&u).1, 10);
}

#[test]
fn a_copy_needs_room() {
    need_unionfs!();
    let mut u = Union::new(1).option("size=1m,inodes=1m");
    put(u.lower(0, "big"), vec![1; 3 << 19]);
    put(u.lower(0, "small"), vec![2; 1 << 19]);
    u.mount();
    for _ in 0..3 {
        assert_eq!(errno(OpenOptions::new().append(true).open(u.at("big"))), libc::ENOSPC);
        assert_eq!(std::fs::read(u.at("big")).unwrap().len(), 3 << 19);
        assert_eq!((list(u.upper("")), list(u.work("work"))), (vec![], vec![]), "nothing is left of it");
    }
    agree(&u);
    OpenOptions::new().append(true).open(u.at("small")).unwrap().write_all(b"more").unwrap();
    agree(&u);
    // Nothing of it is copied.
    OpenOptions::new().write(true).truncate(true).open(u.at("big")).unwrap().write_all(b"new").unwrap();
    agree(&u);
    assert_eq!(std::fs::read(u.lower(0, "big")).unwrap().len(), 3 << 19);
}

#[test]
fn what_is_removed_counts_while_it_is_open() {
    need_unionfs!();
    let u = Union::new(1).option("size=2m,inodes=1m").mounted();
    let mut file =
        OpenOptions::new().create(true).truncate(true).read(true).write(true).open(u.at("f")).unwrap();
    file.write_all(&[5; 1 << 20]).unwrap();
    std::fs::remove_file(u.at("f")).unwrap();
    assert_eq!(told(&u), (MIB, 1));
    assert!(fill(&u.at("g"), &[6; 1 << 16]) <= MIB);
    assert_eq!(errno(file.write_all(&[5; 1 << 16])), libc::ENOSPC);
    std::fs::remove_file(u.at("g")).unwrap();
    file.write_all(&[5; 1 << 16]).unwrap();
    let mut back = Vec::new();
    file.seek(SeekFrom::Start(0)).unwrap();
    file.read_to_end(&mut back).unwrap();
    assert_eq!(back.len(), (1 << 20) + (1 << 16));
    drop(file);
    agree(&u);
    assert_eq!(told(&u), (0, 0));
}

#[test]
fn holes_and_reservations_count_for_what_they_are() {
    need_unionfs!();
    let mut u = Union::new(1).option("size=2m,inodes=1m").mounted();
    let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(u.at("f")).unwrap();
    file.set_len(1 << 40).unwrap();
    assert_eq!(told(&u).0, 0);
    file.write_all_at(&[1; 8192], 1 << 39).unwrap();
    agree(&u);
    let allocate = |mode, offset, len| rustix::fs::fallocate(&file, mode, offset, len);
    allocate(FallocateFlags::empty(), 0, MIB).unwrap();
    agree(&u);
    assert_eq!(allocate(FallocateFlags::KEEP_SIZE, 2 * MIB, MIB), Err(rustix::io::Errno::NOSPC));
    agree(&u);
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    allocate(punch, 0, MIB).unwrap();
    agree(&u);
    allocate(FallocateFlags::KEEP_SIZE, 2 * MIB, MIB).unwrap();
    file.set_len(4096).unwrap();
    agree(&u);
    assert!(told(&u).0 <= SLACK);
    let other = File::create(u.at("g")).unwrap();
    file.write_all_at(&vec![3; 1 << 20], 0).unwrap();
    let copied = rustix::fs::copy_file_range(&file, Some(&mut 0), &other, Some(&mut 0), 1 << 20).unwrap();
    assert!(copied > 0);
    agree(&u);
    drop((file, other));
    u.remount();
    agree(&u);
}

#[test]
fn mapped_writes_count_and_fail_at_the_limit() {
    need_unionfs!();
    let u = Union::new(1).option("size=1m,inodes=1m").mounted();
    let file = OpenOptions::new().create(true).truncate(true).read(true).write(true).open(u.at("f")).unwrap();
    file.set_len(4 << 20).unwrap();
    // By another program, as this one has no way to map: each page is written, and msync(2) tells that it did not fit.
    let script = "import mmap,sys\nf=open(sys.argv[1],'r+b')\nm=mmap.mmap(f.fileno(),0)\n\
                  for i in range(0,len(m),4096): m[i]=65\nm.flush()";
    let out = std::process::Command::new("python3").arg("-c").arg(script).arg(u.at("f")).output().unwrap();
    assert!(!out.status.success() && text(&out).contains("No space left"), "{}", text(&out));
    assert!(told(&u).0 <= MIB + SLACK);
    agree(&u);
}

#[test]
fn any_changes_leave_the_count_right() {
    need_unionfs!();
    let mut u = Union::new(2).with_init().option("size=64m,inodes=100000");
    for i in 0..40 {
        put(u.lower(i % 2, format!("d{}/low{i}", i % 4)), vec![i as u8; 100 + 500 * i]);
    }
    put(u.lower(0, "hard"), "h");
    for i in 0..5 {
        std::fs::hard_link(u.lower(0, "hard"), u.lower(0, format!("d0/hard{i}"))).unwrap();
    }
    put(u.init("etc/hosts"), "h");
    u.mount();
    let mut seed = 12345_u64;
    let mut random = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    for round in 0..4 {
        let mut open: Vec<File> = Vec::new();
        for _ in 0..600 {
            let d = random(4);
            let name = |n: u64| {
                u.at(match n % 5 {
                    0 => format!("d{d}/low{}", n % 40),
                    1 => format!("d{}/hard{}", 0, n % 5),
                    2 => "etc/hosts".to_owned(),
                    _ => format!("d{d}/n{}", n % 30),
                })
            };
            let (a, b) = (name(random(1000)), name(random(1000)));
            // What fails changes nothing.
            match random(11) {
                0 => drop(std::fs::write(&a, vec![1; random(40_000) as usize])),
                1 => drop(
                    OpenOptions::new()
                        .append(true)
                        .open(&a)
                        .map(|mut f| f.write_all(&vec![2; random(9000) as usize])),
                ),
                2 => drop(std::fs::remove_file(&a)),
                3 => drop(std::fs::rename(&a, &b)),
                4 => drop(std::fs::hard_link(&a, &b)),
                5 => drop(OpenOptions::new().write(true).open(&a).map(|f| f.set_len(random(60_000)))),
                6 => drop(std::fs::create_dir(&a).or_else(|_| std::fs::remove_dir(&a))),
                7 => drop(std::os::unix::fs::symlink("target", &a)),
                8 => open.extend(OpenOptions::new().read(true).write(true).open(&a)),
                9 => open.truncate(random(5) as usize),
                _ => drop(
                    std::fs::rename(u.at(format!("d{d}")), u.at("moved"))
                        .and_then(|()| std::fs::rename(u.at("moved"), u.at(format!("d{d}")))),
                ),
            }
        }
        drop(open);
        agree(&u);
        if round % 2 == 1 {
            u.remount();
            agree(&u);
        }
    }
}

#[test]
fn a_killed_daemon_takes_no_count_with_it() {
    need_unionfs!();
    let mut u = Union::new(1).option("size=4m,inodes=1m").mounted();
    put(u.at("f"), vec![1; 3 << 20]);
    let file = File::open(u.at("f")).unwrap();
    std::fs::remove_file(u.at("f")).unwrap();
    put(u.at("g"), vec![1; 1 << 19]);
    let daemon = common::daemon_of(&u.mnt()).unwrap();
    let pid = rustix::process::Pid::from_raw(daemon.cast_signed()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    drop(file);
    assert!(common::wait_for(|| common::has_ended(daemon)));
    rustix::mount::unmount(u.mnt(), rustix::mount::UnmountFlags::DETACH).unwrap();
    u.mount();
    agree(&u);
    assert_eq!(told(&u).0, 1 << 19);
    assert!(!exists(u.at("f")));
}

#[test]
fn without_an_upper_there_is_nothing_to_limit() {
    need_unionfs!();
    for option in ["size=1m", "inodes=5"] {
        let u = Union::new(1).read_only().option(option);
        let out = u.command().output().unwrap();
        assert!(!out.status.success());
        assert!(text(&out).contains("limits the upper layer, and there is none"), "{}", text(&out));
    }
}
