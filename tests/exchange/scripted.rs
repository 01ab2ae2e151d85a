//! Each format by a script of its own, written by each and shown by each. What differs is known, and listed
//! here and in `docs/COMPATIBILITY.md`: the test fails when it changes.

use std::collections::BTreeSet;
use std::process::Command;

use crate::common::disk::lies_on;
use crate::common::files::{chmod, put, xattr};
use crate::common::{Union, skip, text, tree};
use crate::need_unionfs;
use crate::peer::{Peer, ours, with_dir_times};

/// Who writes or shows layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who {
    Us,
    UsUser,
    UsMetacopy,
    Other(Peer),
}

impl Who {
    fn name(self) -> &'static str {
        match self {
            Self::Us => "unionfs",
            Self::UsUser => "unionfs with userxattr",
            Self::UsMetacopy => "unionfs with metacopy",
            Self::Other(peer) => peer.name(),
        }
    }

    fn mount(self, union: &mut Union) {
        match self {
            Self::Other(peer) => return peer.mount(union),
            Self::Us => union.set_options(&[]),
            Self::UsUser => union.set_options(&["userxattr"]),
            Self::UsMetacopy => union.set_options(&["metacopy=on"]),
        }
        union.mount();
    }

    fn unmount(self, union: &mut Union) {
        match self {
            Self::Other(peer) => peer.unmount(union),
            _ => union.unmount(),
        }
    }

    fn read(self, union: &Union) -> tree::Tree {
        match self {
            Self::Other(_) => with_dir_times(&union.mnt(), tree::read_overlay(&union.mnt())),
            _ => ours(union),
        }
    }
}

/// A case: its name, and what it does in the mount after [`LOWERS`] made the lowers.
type Case = (&'static str, &'static str);

/// Runs in the directory that has `l0` (the topmost) and `l1`.
const LOWERS: &str = r#"
mkdir -p l0/d l0/only l1/d/sub/deep l1/e l1/big
echo top >l0/d/f; echo low >l1/d/f; echo g >l1/d/g; echo s >l1/d/sub/s; echo deep >l1/d/sub/deep/x
echo o >l0/only/o; echo e >l1/e/e
head -c 300000 /dev/zero | tr '\0' 'b' >l1/big/file; setfattr -n user.note -v kept l1/big/file
echo linked >l1/d/one; ln l1/d/one l1/d/two; ln l1/d/one l1/e/three
ln -s ../e/e l1/d/link; mkfifo l1/d/fifo; mknod l1/d/null c 1 3
echo r >l1/rootfile; mkdir l1/rootdir; echo r >l1/rootdir/r
chmod 2770 l1/e; chown 7:8 l1/e/e; setfacl -m u:99:rw l1/e/e
find l0 l1 -depth -exec touch -h -d '2020-02-02 02:02:02.5' {} +
"#;

const CASES: &[Case] = &[
    ("nothing", ":"),
    ("delete a file", "rm d/f rootfile"),
    ("delete a directory", "rm -r d rootdir"),
    ("directory in place of a deleted one", "rm -rf d rootdir; mkdir d rootdir; echo n >d/new"),
    ("directory in place of a deleted one, deep", "rm -rf d/sub; mkdir d/sub; echo n >d/sub/new"),
    ("file in place of a directory", "rm -r d rootdir; echo f >d; echo f >rootdir"),
    ("directory in place of a file", "rm rootfile d/g; mkdir rootfile d/g; echo f >d/g/f"),
    ("name made again", "rm d/f; echo again >d/f; rm rootfile; echo again >rootfile"),
    ("rename a file", "mv d/g d/h; mv rootfile e/moved; mv big/file big/renamed"),
    ("rename onto a lower name", "echo n >n; mv n d/f; mv d/g rootfile"),
    ("rename an upper directory", "mkdir n; echo n >n/n; mv n d/n; mv d/n m"),
    ("rename a merged directory", "mv d x"),
    ("rename a merged directory, deep", "mv d/sub d/bus; mv d/bus/deep d/bus/peed"),
    ("rename a merged directory, chain", "mv d x; mv x e/y; mv e/y/sub z; mv e w"),
    ("rename a merged directory and back", "mv d x; echo n >x/n; mv x d; rm d/f"),
    ("merged directory renamed, another in its place", "mv d x; mkdir d; echo n >d/n"),
    (
        "exchange",
        "python3 /dev/stdin <<'END'\nimport ctypes\nfor a, b in ((b'rootfile', b'only/o'), (b'd', b'e'), \
     (b'rootdir', b'big/file')):\n    assert ctypes.CDLL(None, use_errno=True).renameat2(-100, a, -100, b, 2) == 0\nEND",
    ),
    ("write one of three hardlinks", "echo more >>d/one"),
    ("delete one of three hardlinks", "rm d/one"),
    ("write and delete hardlinks", "echo more >>d/two; rm d/one"),
    ("link a lower file", "ln d/g d/g2; ln rootfile e/rl; echo more >>e/rl"),
    ("rename one of three hardlinks", "mv d/one e/four; echo more >>d/two"),
    ("change attributes of a file", "chmod 600 big/file; chown 5:6 d/g; touch -d 2001-01-01 d/f"),
    ("change xattrs of a file", "setfattr -n user.a -v b big/file; setfattr -x user.note big/file"),
    ("change attributes of directories", "chmod 1777 d; chown 9:9 d/sub; setfattr -n user.a -v b e"),
    (
        "change an ACL",
        "setfacl -m u:99:rwx,g:98:r rootfile; setfacl -d -m u:99:rwx d; echo n >d/n; mkdir d/nd",
    ),
    ("change a symlink", "chown -h 5:6 d/link; touch -h -d 2001-01-01 d/link"),
    ("change special files", "chmod 600 d/fifo; chown 5:5 d/null"),
    ("metadata, then data", "chmod 600 big/file; echo x >>big/file"),
    ("metadata, then rename", "chmod 600 big/file; mv big/file e/file"),
    ("metadata, then link", "chmod 600 big/file; ln big/file e/file"),
    ("append", "echo more >>d/f; echo more >>big/file"),
    ("truncate", ": >d/f; truncate -s 1000 big/file; truncate -s 500000 rootfile"),
    (
        "make files of all types",
        "mkfifo d/p; mknod d/c c 1 5; mknod d/b b 7 9; ln -s nowhere d/s; echo x >only/x; \
     python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"d/sock\")'",
    ),
    ("names of odd bytes", "touch \"$(printf 'd/\\377\\n:\\\\,')\" \"d/$(printf '%0255d' 7)\"; mkdir 'a b'"),
    ("a name like a whiteout of AUFS", "echo n >d/.wh.f; mkdir d/.wh.sub"),
    ("a device 0:0", "mknod d/zero c 0 0; mknod d/f2 c 0 0"),
    (
        "an xattr like a private one",
        "setfattr -n trusted.overlay.opaque -v y d; setfattr -n user.overlay.opaque -v y e",
    ),
];

/// Lines of `author | reader | case`: the reader shows something else than the author does, the author shows
/// something else after a remount (author and reader are the same), or it did something else than a plain
/// directory does (reader `plain`).
const KNOWN: &str = include_str!("known.txt");
/// The end of lines whose difference is there on such a filesystem alone.
const WITHOUT_UUID: &str = " | on a filesystem without a UUID";

fn shell(script: &str, dir: &std::path::Path) -> Result<(), String> {
    let mut sh = Command::new("timeout");
    let out = sh.args(["60", "sh", "-euc", script]).current_dir(dir).output().unwrap();
    if out.status.success() { Ok(()) } else { Err(text(&out)) }
}

fn lines(left: &tree::Tree, right: &tree::Tree) -> Vec<String> {
    tree::diff(left, right)
}

/// Times that are now, and what an author and a plain directory choose for themselves, are left out.
fn settled(mut tree: tree::Tree) -> tree::Tree {
    tree.remove(std::path::Path::new(""));
    for node in tree.values_mut() {
        if node.mtime.0 > 1_600_000_000 {
            node.mtime = (i64::MAX, 0);
        }
    }
    tree
}

/// Without what a peer tells differently from one time to the next.
fn fair(who: Who, mut tree: tree::Tree) -> tree::Tree {
    let Who::Other(peer) = who else { return tree };
    peer.forgive(&mut tree);
    tree
}

fn plain(lowers: &str, script: &str) -> tree::Tree {
    let dir = crate::common::temp_dir();
    shell(lowers, &prepared(dir.path())).unwrap();
    let flat = dir.path().join("flat");
    std::fs::create_dir(&flat).unwrap();
    shell("cp -a ../l1/. . && cp -a ../l0/. . && touch -h -d '2020-02-02 02:02:02.5' d only", &flat).unwrap();
    shell(script, &flat).unwrap();
    settled(with_dir_times(&flat, tree::read_overlay(&flat)))
}

fn prepared(dir: &std::path::Path) -> std::path::PathBuf {
    for layer in ["l0", "l1"] {
        std::fs::create_dir_all(dir.join(layer)).unwrap();
    }
    dir.to_owned()
}

/// Runs the cases with one author and all who may read it.
fn author(author: Who, readers: &[Who], found: &mut BTreeSet<(String, String, String)>) {
    let verbose = std::env::var_os("UNIONFS_EXCHANGE_SHOW").is_some();
    let bears_fifos = |who: &Who| !matches!(who, Who::Other(peer) if !peer.bears_fifos());
    for case in CASES {
        // One of the peers hangs on a FIFO.
        let fit = |script: &str| {
            let fifos = bears_fifos(&author) && readers.iter().all(bears_fifos);
            if fifos { script.to_owned() } else { script.replace("mkfifo", "touch") }
        };
        let (lowers, script) = (fit(LOWERS), fit(case.1));
        let mut note = |reader: &str, what: Vec<String>| {
            if !what.is_empty() {
                if verbose {
                    println!("{} | {} | {}\n    {}", author.name(), reader, case.0, what.join("\n    "));
                }
                found.insert((author.name().into(), reader.into(), case.0.into()));
            }
        };
        let mut union = Union::new(2);
        shell(&lowers, union.dir()).unwrap();
        author.mount(&mut union);
        if let Err(why) = shell(&script, &union.mnt()) {
            note("plain", vec![format!("refused: {why}")]);
            author.unmount(&mut union);
            continue;
        }
        let shown = author.read(&union);
        author.unmount(&mut union);
        note("plain", lines(&fair(author, plain(&lowers, &script)), &fair(author, settled(shown.clone()))));
        // What the author itself shows of them then: an index, for one, is not there in lowers.
        author.mount(&mut union);
        note(author.name(), lines(&fair(author, shown), &fair(author, author.read(&union))));
        author.unmount(&mut union);
        for as_lowers in [false, true] {
            let mut stacked;
            let (union, suffix) = if as_lowers {
                stacked = Union::stacked(&union).read_only();
                (&mut stacked, ", as lowers")
            } else {
                (&mut union, "")
            };
            author.mount(union);
            let shown = author.read(union);
            author.unmount(union);
            for reader in readers {
                reader.mount(union);
                let pair = [shown.clone(), reader.read(union)];
                let [shown, read] = pair.map(|tree| fair(*reader, fair(author, tree)));
                note(&format!("{}{suffix}", reader.name()), lines(&shown, &read));
                reader.unmount(union);
            }
        }
    }
}

/// Whether the filesystem of the layers has one, as the origin of a copy tells.
fn filesystem_has_uuid() -> bool {
    let union = Union::new(1);
    put(union.lower(0, "f"), "x");
    let union = union.mounted();
    chmod(union.at("f"), 0o600);
    let origin = xattr(union.upper("f"), "trusted.overlay.origin").unwrap();
    // struct ovl_fb: five bytes before it.
    origin[5..21] != [0; 16]
}

fn check(authors: &[Who], readers: &[Who]) {
    need_unionfs!();
    let here = |who: &&Who| match who {
        Who::Other(peer) => peer.missing().is_none_or(|reason| {
            skip(&reason);
            false
        }),
        _ => true,
    };
    let mut found = BTreeSet::new();
    let authors: Vec<Who> = authors.iter().filter(here).copied().collect();
    let readers: Vec<Who> = readers.iter().filter(here).copied().collect();
    for who in &authors {
        author(*who, &readers, &mut found);
    }
    let names = |all: &[Who]| all.iter().map(|w| w.name().to_owned()).collect::<BTreeSet<_>>();
    let (authors, mut readers) = (names(&authors), names(&readers));
    readers.insert("plain".into());
    let named = filesystem_has_uuid();
    let known: BTreeSet<_> = KNOWN
        .lines()
        .filter(|line| !(named && line.ends_with(WITHOUT_UUID)))
        .map(|line| {
            let mut fields = line.split(" | ").map(String::from);
            [(); 3].map(|()| fields.next().unwrap_or_else(|| panic!("known.txt: {line}"))).into()
        })
        .filter(|(a, r, _): &(String, String, String)| {
            authors.contains(a) && (a == r || readers.contains(r.trim_end_matches(", as lowers")))
        })
        .collect();
    let new: Vec<_> = found.difference(&known).collect();
    // The list is of layers on ext4: others number and link otherwise, so that peers show less wrong there.
    let ext4 = lies_on(env!("CARGO_TARGET_TMPDIR"), libc::EXT4_SUPER_MAGIC);
    let gone: Vec<_> = known.difference(&found).filter(|_| ext4).collect();
    let show = |all: Vec<&(String, String, String)>| {
        all.iter().map(|(a, r, c)| format!("{a} | {r} | {c}\n")).collect::<String>()
    };
    let (new, gone) = (show(new), show(gone));
    assert!(
        new.is_empty() && gone.is_empty(),
        "differences not known:\n{new}known ones that are gone:\n{gone}"
    );
}

#[test]
fn kernel_to_us() {
    check(&[Peer::Kernel, Peer::KernelAll].map(Who::Other), &[Who::Us]);
}

#[test]
fn kernel_with_userxattr_to_us() {
    check(&[Who::Other(Peer::KernelUser)], &[Who::Us, Who::UsUser]);
}

#[test]
fn fuse_overlayfs_1_to_us() {
    check(&[Who::Other(Peer::Fuse1)], &[Who::Us]);
}

#[test]
fn fuse_overlayfs_2_to_us() {
    check(&[Who::Other(Peer::Fuse2)], &[Who::Us]);
}

#[test]
fn us_to_kernel() {
    check(&[Who::Us, Who::UsMetacopy], &[Who::Us, Who::Other(Peer::KernelAll)]);
}

#[test]
fn us_with_userxattr_to_kernel() {
    check(&[Who::UsUser], &[Who::UsUser, Who::Other(Peer::KernelUser)]);
}

#[test]
fn us_to_fuse_overlayfs_1() {
    check(&[Who::Us], &[Who::Other(Peer::Fuse1)]);
}

#[test]
fn us_to_fuse_overlayfs_2() {
    check(&[Who::Us], &[Who::Other(Peer::Fuse2)]);
}
