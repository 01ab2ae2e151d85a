//! Random operations on layers in which somebody has written anything that he could. No model knows what that means;
//! but nothing panics, nothing ends up outside, no lower changes, and nothing is left over. `tools/fuzz-core` runs it
//! for long, with checks of memory.

use std::fs;
use std::path::Path;

use proptest::prelude::*;
use rustix::fs::{FileType, XattrFlags};
use rustix::io::Errno;
use unionfs::config::Options;
use unionfs::fs::{ROOT, UnionFs};

use crate::model::{LOWERS, Op, UPPER, apply, askable, config, op};
use crate::tree::{Tree, os};
use crate::union::{CALLER, Union};

/// Something that does not belong into a layer.
#[derive(Debug, Clone)]
struct Crafted {
    /// 0 is the upper.
    layer: usize,
    path: &'static str,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    /// A private attribute, in the namespace of administrators or of users.
    Mark(&'static str, bool, Vec<u8>),
    /// An object in the place of whatever is there.
    Object(&'static str),
}

/// What a user of the mount does to attributes.
#[derive(Debug, Clone)]
enum Attributes {
    Set(&'static str, &'static str, Vec<u8>),
    Remove(&'static str, &'static str),
    List(&'static str),
}

#[derive(Debug, Clone)]
enum Step {
    Op(Op),
    Attributes(Attributes),
    Walk,
}

const PATHS: [&str; 19] = [
    ".", "a", "d", "d/a", "d/b", "d/s", "d/s/a", "d/s/t", "d/s/t/b", "d/u", "e", "e/c", "e/e", "e/l", "e/o",
    "e/o/old", "e/s", "c", "c/c",
];
const MARKS: [&str; 10] = [
    "redirect",
    "redirect",
    "metacopy",
    "origin",
    "nlink",
    "opaque",
    "impure",
    "whiteout",
    "unionfs.plain",
    "overlay.redirect",
];
const OUTSIDE: &str = "outside";
const SECRET: &str = "canary";

fn value() -> impl Strategy<Value = Vec<u8>> {
    let known = [
        "",
        "y",
        "x",
        "a",
        "d",
        "s",
        "o",
        "/a",
        "/d",
        "/d/s",
        "/d/s/t",
        "/e/o",
        "/e",
        "/c/c",
        "/d/a",
        "/e/e",
        "..",
        "/..",
        "/../outside",
        "/d/../..",
        "../outside",
        "d/s",
        "/d//s",
        "/out",
        "/out/secret",
        "U+1",
        "U-1",
        "L+2",
        "U-2147483649",
        "\0\u{4}\0\0",
    ];
    prop_oneof![
        6 => prop::sample::select(known.map(|v| v.as_bytes().to_vec()).to_vec()),
        2 => prop::collection::vec(any::<u8>(), 0..80),
        1 => (any::<u8>(), prop::collection::vec(any::<u8>(), 0..60)).prop_map(|(told, handle)| {
            [vec![0, 0xfb, told, 0, 1], vec![0; 16], handle].concat()
        }),
        1 => (1..400_usize).prop_map(|n| [b"/".to_vec(), vec![b'd'; n]].concat()),
    ]
}

fn crafted() -> impl Strategy<Value = Crafted> {
    let mark = (prop::sample::select(MARKS.to_vec()), any::<bool>(), value())
        .prop_map(|(m, own, v)| What::Mark(m, own, v));
    let object = prop::sample::select(vec![
        "symlink", "out", "fifo", "dir", "file", "empty", "opaque", "wh", "socket", "hardlink",
    ]);
    let what = prop_oneof![5 => mark, 1 => object.prop_map(What::Object)];
    (0..=LOWERS.len(), prop::sample::select(PATHS.to_vec()), what).prop_map(|(layer, path, what)| Crafted {
        layer,
        path,
        what,
    })
}

fn step() -> impl Strategy<Value = Step> {
    let path = || prop::sample::select(PATHS.to_vec());
    let name = || {
        prop::sample::select(vec![
            "user.x",
            "user.overlay.redirect",
            "trusted.overlay.redirect",
            "trusted.overlay.overlay.x",
            "user.overlay.opaque",
            "security.capability",
        ])
    };
    let attributes = prop_oneof![
        (path(), name(), value()).prop_map(|(p, n, v)| Attributes::Set(p, n, v)),
        (path(), name()).prop_map(|(p, n)| Attributes::Remove(p, n)),
        path().prop_map(Attributes::List),
    ];
    prop_oneof![8 => op().prop_map(Step::Op), 2 => attributes.prop_map(Step::Attributes), 1 => Just(Step::Walk)]
}

/// Writes it into the layers; what the filesystem or our rights do not permit is left out.
fn craft(root: &Path, crafted: &Crafted) {
    let path = root.join(crafted.path);
    match &crafted.what {
        What::Mark(mark, own, value) => {
            let namespace = if *own && crate::tree::is_root() { "trusted" } else { "user" };
            let _ = rustix::fs::lsetxattr(
                &path,
                format!("{namespace}.overlay.{mark}"),
                value,
                XattrFlags::empty(),
            );
        }
        What::Object(kind) => {
            let Some(parent) = path.parent().filter(|p| crafted.path != "." && p.is_dir() && !p.is_symlink())
            else {
                return;
            };
            let make = |kind: FileType| {
                rustix::fs::mknodat(rustix::fs::CWD, &path, kind, rustix::fs::Mode::from_raw_mode(0o644), 0)
                    .map_err(std::io::Error::from)
            };
            if *kind == "wh" {
                let name = path.file_name().unwrap().to_str().unwrap();
                let _ = fs::write(parent.join(format!(".wh.{name}")), "");
                return;
            }
            if *kind == "opaque" {
                let _ = fs::write(path.join(".wh..wh..opq"), "");
                return;
            }
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
            let _ = match *kind {
                "symlink" => std::os::unix::fs::symlink("d", &path),
                "out" => std::os::unix::fs::symlink(root.join("..").join(OUTSIDE), &path),
                "fifo" => make(FileType::Fifo),
                "socket" => make(FileType::Socket),
                "dir" => fs::create_dir(&path),
                "empty" => fs::write(&path, ""),
                "hardlink" => fs::hard_link(root.join("a"), &path),
                _ => fs::write(&path, "crafted"),
            };
        }
    }
}

/// Looks at everything. What cannot be looked at answers an error that a program knows what to do with.
fn walk(u: &Union) {
    let mut todo = vec![(ROOT, 0)];
    let mut count = 0;
    while let Some((dir, depth)) = todo.pop() {
        count += 1;
        assert!(count < 5000 && depth < 100, "a tree of some fifty objects has no end");
        let mut names = Vec::new();
        let listed = u.fs.readdir(dir, 0, &mut |e| {
            names.push(e.name.to_owned());
            false
        });
        orderly(listed.map(drop));
        for name in names.iter().filter(|n| *n != "." && *n != "..") {
            let attr = match u.look(dir, name) {
                Ok(attr) => attr,
                Err(e) => {
                    orderly(Err(e));
                    continue;
                }
            };
            orderly(u.fs.listxattr(&CALLER, attr.ino).map(drop));
            match attr.kind() {
                FileType::Directory => todo.push((attr.ino, depth + 1)),
                FileType::RegularFile => match u.read_ino(attr.ino) {
                    Ok(bytes) => assert!(
                        !bytes.windows(SECRET.len()).any(|w| w == SECRET.as_bytes()),
                        "{name:?} shows what lies outside"
                    ),
                    Err(e) => orderly(Err(e)),
                },
                FileType::Symlink => orderly(u.fs.readlink(attr.ino).map(drop)),
                _ => {}
            }
        }
    }
}

fn orderly(result: Result<(), Errno>) {
    let Err(e) = result else { return };
    // Neither an error of ours alone (EFAULT, EBADF) nor one that would make a program try for ever.
    let wrong = [
        Errno::FAULT,
        Errno::BADF,
        Errno::AGAIN,
        Errno::INTR,
        Errno::NOTCONN,
        Errno::NOMEM,
        Errno::MFILE,
        Errno::STALE,
    ];
    assert!(!wrong.contains(&e), "{e:?}");
}

fn open(t: &Tree, options: &Options) -> Option<Union> {
    match UnionFs::open(t.layers(), options) {
        Ok(fs) => Some(Union::new(fs)),
        Err(e) => {
            assert!(matches!(e, Errno::IO | Errno::INVAL), "{e:?}");
            None
        }
    }
}

/// Tells `tools/fuzz-core` how much was done.
fn count(steps: usize) {
    use std::io::Write;
    let Some(path) = std::env::var_os("UNIONFS_FUZZ_COUNT") else { return };
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    writeln!(file, "{steps}").unwrap();
}

fn change(u: &Union, step: &Attributes) {
    let done = match step {
        Attributes::Set(path, name, value) => {
            u.ino(path).and_then(|ino| u.fs.setxattr(&CALLER, ino, os(name), value, XattrFlags::empty()))
        }
        Attributes::Remove(path, name) => u.ino(path).and_then(|ino| u.fs.removexattr(ino, os(name))),
        Attributes::List(path) => u.ino(path).and_then(|ino| u.fs.listxattr(&CALLER, ino)).map(drop),
    };
    orderly(done);
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn random_operations_on_crafted_layers(
        all in prop::collection::vec(crafted(), 1..12),
        steps in prop::collection::vec(step(), 1..25),
        metacopy in any::<bool>(),
        index in any::<bool>(),
    ) {
        let t = Tree::on(UPPER, &LOWERS);
        fs::create_dir(t.path(OUTSIDE)).unwrap();
        fs::write(t.path("outside/secret"), SECRET).unwrap();
        for crafted in &all {
            let root = if crafted.layer == 0 { t.upper("") } else { t.path(&format!("lower{}", crafted.layer - 1)) };
            craft(&root, crafted);
        }
        let lowers = || (0..LOWERS.len()).map(|i| t.snapshot(&format!("lower{i}"))).collect::<Vec<_>>();
        let before = lowers();
        let options = Options { metacopy, index, ..Options::default() };
        // A root with nonsense on it may be refused.
        let Some(mut u) = open(&t, &options) else {
            prop_assert_eq!(lowers(), before);
            return Ok(());
        };
        walk(&u);
        for step in &steps {
            match step {
                Step::Op(Op::Reopen) => {
                    u.forget_all();
                    let Some(again) = open(&t, &options) else { return Err(TestCaseError::fail("not again")) };
                    u = again;
                }
                Step::Op(op) if askable(op) => orderly(apply(&u, op)),
                Step::Op(_) => {}
                Step::Attributes(attributes) => change(&u, attributes),
                Step::Walk => walk(&u),
            }
        }
        walk(&u);
        count(steps.len());
        u.forget_all();
        prop_assert_eq!(u.fs.counts(), (1, 0, 0));
        prop_assert_eq!(lowers(), before);
        prop_assert_eq!(t.left_over(), [""; 0]);
        prop_assert_eq!(fs::read(t.path("outside/secret")).unwrap(), SECRET.as_bytes());
        prop_assert_eq!(fs::read_dir(t.path(OUTSIDE)).unwrap().count(), 1);
    }
}
