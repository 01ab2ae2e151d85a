//! Two that work in one mount at once, each in a directory of its own, while others walk over everything.
//! What each sees and what is there at the end is what one after the other gives.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use proptest::prelude::*;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::common::{Union, files, tree};
use crate::ops::{self, Listing, Op};
use crate::special::{self, Process, Saw, Special, Step};
use crate::{check, extras, flat, layers, need_mount, number};

/// What the layers hold, and what each does.
#[derive(Debug, Clone)]
struct Case {
    layers: Vec<Vec<layers::Entry>>,
    extras: Vec<extras::Extra>,
    option: &'static str,
    ops: [Vec<Step>; 2],
}

const HOMES: [&str; 2] = ["a", "b"];

fn case(ops: usize) -> impl Strategy<Value = Case> {
    let layers = prop::collection::vec(prop::collection::vec(layers::entry(), 8..30), 2..=10);
    let extras = prop::collection::vec(extras::extra(), 0..16);
    let option =
        prop::sample::select(vec!["passthrough=on", "passthrough=off", "metacopy=on", "io_uring=off"]);
    let works = || {
        let step = special::step().prop_filter("of one mount", |step| {
            !matches!(
                step,
                Step::Plain(Op::Remount | Op::Check)
                    | Step::Special(Special::Remount { .. } | Special::Tmpfile(_))
            )
        });
        prop::collection::vec(step, ops / 2..=ops)
    };
    (layers, extras, option, works(), works()).prop_map(|(layers, extras, option, one, other)| Case {
        layers,
        extras,
        option,
        ops: [one, other],
    })
}

#[test]
fn two_at_once_disturb_no_one() {
    need_mount!();
    check(&case(number("UNIONFS_DIFF_OPS", 120) as usize), 4, run);
}

fn run(case: &Case) -> Result<(), String> {
    let mut union = Union::new(case.layers.len()).option(case.option);
    let paths: Vec<PathBuf> = (0..union.lowers()).map(|i| union.lower(i, "")).collect();
    for (path, entries) in paths.iter().zip(&case.layers) {
        // No file with a name in either home.
        layers::build(path, entries, false);
    }
    extras::add(&paths, &case.extras);
    let flat = union.dir().join("flat");
    flat::flatten(&paths, &flat);
    files::chmod(union.dir(), 0o755);
    for root in [&union.upper(""), &flat] {
        files::chmod(root, 0o777);
    }
    union.mount();
    let begin = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64 - 2;
    for home in HOMES {
        for root in [&union.mnt(), &flat] {
            let home = root.join(home);
            if !home.symlink_metadata().is_ok_and(|m| m.is_dir()) {
                let _ = std::fs::remove_file(&home);
                std::fs::create_dir(&home).unwrap();
            }
        }
    }
    let done = AtomicBool::new(false);
    let (mnt, dir) = (union.mnt(), flat.as_path());
    let (here, walked) = std::thread::scope(|scope| {
        let walkers: Vec<_> = (0..2)
            .map(|_| {
                scope.spawn(|| {
                    let mut all = Ok(());
                    while !done.load(Ordering::Relaxed) && all.is_ok() {
                        all = walk(&mnt);
                    }
                    all
                })
            })
            .collect();
        let (mnt, case) = (&mnt, &case);
        let workers = [0, 1].map(|i| scope.spawn(move || work(&mnt.join(HOMES[i]), &case.ops[i], begin)));
        let here = workers.map(|w| w.join().unwrap());
        done.store(true, Ordering::Relaxed);
        let walked: Result<(), String> = walkers.into_iter().try_for_each(|w| w.join().unwrap());
        (here, walked)
    });
    walked?;
    for (i, here) in here.iter().enumerate() {
        let there = work(&dir.join(HOMES[i]), &case.ops[i], begin);
        for (n, (here, there)) in here.iter().zip(&there).enumerate() {
            if here != there {
                let step = &case.ops[i][n];
                return Err(format!(
                    "in {}, operation {n}, {step:?}: union {here:?}, plain {there:?}",
                    HOMES[i]
                ));
            }
        }
    }
    let compare = |when: &str| {
        let read = |root: &Path| {
            let mut tree = tree::read(root);
            tree.remove(Path::new(""));
            for node in tree.values_mut() {
                node.mtime = ops::coarse(node.mode, node.mtime, begin);
            }
            tree
        };
        let lines = tree::diff(&read(&mnt), &read(dir));
        if lines.is_empty() { Ok(()) } else { Err(format!("{when}, plain right:\n{}", lines.join("\n"))) }
    };
    compare("at the end")?;
    union.remount();
    compare("after a remount")?;
    union.unmount();
    Ok(())
}

/// Does the operations, and tells what came of each.
fn work(home: &Path, steps: &[Step], begin: i64) -> Vec<(Result<Saw, Errno>, Vec<PathBuf>)> {
    let mut process = Process::default();
    let one = |step: &Step| {
        let listing = Listing::new(home);
        let paths = step.paths(&listing);
        (special::apply(step, home, &listing, &mut process, begin), paths)
    };
    steps.iter().map(one).collect()
}

/// Looks at everything there is. Things may go meanwhile; nothing else may go wrong.
fn walk(root: &Path) -> Result<(), String> {
    let mut stack = vec![root.to_owned()];
    while let Some(path) = stack.pop() {
        let fine = |e: Errno| {
            matches!(
                e,
                Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NXIO | Errno::SPIPE | Errno::ISDIR
            )
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let looked = rustix::fs::lstat(&path).and_then(|st| {
            use rustix::fs::FileType;
            let kind = FileType::from_raw_mode(st.st_mode);
            if kind != FileType::Directory && kind != FileType::RegularFile {
                return Ok(vec![]);
            }
            let fd = rustix::fs::open(&path, flags, Mode::empty())?;
            if kind == FileType::RegularFile {
                ops::read_at(&fd, 0, 10_000)?;
                return Ok(vec![]);
            }
            let mut names: Vec<OsString> = Vec::new();
            for entry in rustix::fs::Dir::new(fd)? {
                let name = entry?.file_name().to_str().unwrap_or_default().to_owned();
                if name != "." && name != ".." {
                    names.push(name.into());
                }
            }
            Ok(names)
        });
        match looked {
            Ok(names) => stack.extend(names.iter().map(|name| path.join(name))),
            Err(e) if fine(e) => {}
            Err(e) => return Err(format!("a reader at {}: {e}", path.display())),
        }
    }
    Ok(())
}
