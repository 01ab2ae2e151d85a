//! Layer archives: from an upper to an archive and from there to a lower.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::disk::lies_on;
use crate::common::files::*;
use crate::common::tree::Tree;
use crate::common::{Union, run, temp_dir, text, tree, unionfs};
use crate::random::Random;
use crate::{diff, need_unionfs};

/// The command that commits the upper of a union.
pub fn commit(union: &Union, archive: &Path) -> Command {
    let mut command = unionfs();
    command.arg("commit").arg("-o").arg(archive);
    command.arg("--upper").arg(union.upper("")).arg("--lower").arg(union.lower_list());
    command.arg("--work").arg(union.work(""));
    if union.init("").exists() {
        command.arg("--init").arg(union.init(""));
    }
    command
}

/// Runs a command that must succeed, and gives the values that it prints by name.
pub fn told(command: &mut Command) -> BTreeMap<String, String> {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", text(&out));
    let lines = String::from_utf8(out.stdout).unwrap();
    lines.lines().filter_map(|l| l.split_once(' ')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

pub fn apply(archive: &Path, dir: &Path) -> Command {
    let mut command = unionfs();
    command.arg("apply").arg(archive).arg(dir);
    command
}

/// The tree of some layers, mounted read-only by us, and by the kernel.
fn mounted(layers: &[PathBuf]) -> (Tree, Tree) {
    let mut list = OsString::new();
    for layer in layers {
        if !list.is_empty() {
            list.push(":");
        }
        list.push(layer);
    }
    let at = Union::new(0);
    let out = unionfs().args(["mount", "--read-only"]).arg(&list).arg(at.mnt()).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let ours = tree::read(&at.mnt());
    at.unmount();
    let mut option = OsString::from("lowerdir=");
    option.push(&list);
    option.push(format!(":{}", at.work("").display()));
    option.push(",redirect_dir=on,metacopy=on");
    run(
        "mount",
        &["-t".as_ref(), "overlay".as_ref(), "overlay".as_ref(), "-o".as_ref(), &option, at.mnt().as_ref()],
    );
    let kernels = tree::read_overlay(&at.mnt());
    at.unmount();
    (ours, kernels)
}

/// Without what a layer cannot say: of a file below that lost some of its names, how many are left. Nor what the
/// kernel cannot show: the device 0:0.
fn plain(tree: Tree) -> Tree {
    let rdev = |rdev| if rdev == unionfs::format::names::ESCAPED_DEVICE { 0 } else { rdev };
    tree.into_iter()
        .map(|(path, node)| (path, tree::Node { nlink: 0, rdev: rdev(node.rdev), ..node }))
        .collect()
}

/// Commits, applies, and compares what is then seen with what was seen before. Gives the new layer.
fn round_trip(union: &Union, dir: &Path) -> PathBuf {
    let (archive, layer) = (dir.join("layer.tar"), dir.join("layer"));
    let committed = told(&mut commit(union, &archive));
    let applied = told(apply(&archive, &layer).arg("--diff-id").arg(&committed["diff-id"]));
    assert_eq!(committed, applied);
    let layers: Vec<PathBuf> =
        std::iter::once(layer.clone()).chain((0..union.lowers()).map(|i| union.lower(i, ""))).collect();
    let (ours, kernels) = mounted(&layers);
    let seen = plain(tree::read(&union.mnt()));
    tree::assert_same("by us", &seen, &plain(ours));
    tree::assert_same("by the kernel", &seen, &plain(kernels));
    // Nothing of the way there is left.
    let mut left = list(dir);
    left.retain(|name| name != "layer" && name != "layer.tar");
    assert_eq!(left, [""; 0]);
    layer
}

/// The largest minor number of a device that the filesystem of the union's layers keeps.
fn largest_minor(union: &Union) -> u32 {
    if lies_on(union.dir(), libc::XFS_SUPER_MAGIC) { 262_143 } else { 1_048_575 }
}

/// A union with an entry of every kind.
pub fn every_kind() -> Union {
    let union = Union::new(2);
    for (i, name) in
        ["keep", "lose", "change", "tree/a", "tree/b", "gone/x", "gone/y", "opaque/1", "opaque/2"]
            .into_iter()
            .enumerate()
    {
        put(union.lower(1, name), name.repeat(100));
        set_times(union.lower(1, name), (1, 0), (1_000_000 + i as i64, 0));
    }
    put(union.lower(0, "tree/c"), "c");
    let union = union.mounted();
    put(union.at("change"), "changed");
    std::fs::remove_file(union.at("lose")).unwrap();
    std::fs::remove_dir_all(union.at("gone")).unwrap();
    std::fs::rename(union.at("tree"), union.at("moved")).unwrap();
    std::fs::remove_dir_all(union.at("opaque")).unwrap();
    put(union.at("opaque/2"), "anew");
    put(union.at("dir/first"), "linked");
    std::fs::hard_link(union.at("dir/first"), union.at("dir/second")).unwrap();
    std::fs::hard_link(union.at("keep"), union.at("kept too")).unwrap();
    std::os::unix::fs::symlink("t".repeat(150), union.at("dir/link")).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o640);
    for (name, kind, device) in [
        ("fifo", rustix::fs::FileType::Fifo, 0),
        ("char", rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 3)),
        ("null", rustix::fs::FileType::CharacterDevice, 0),
        ("block", rustix::fs::FileType::BlockDevice, rustix::fs::makedev(259, largest_minor(&union))),
    ] {
        rustix::fs::mknodat(rustix::fs::CWD, union.at("dir").join(name), kind, mode, device).unwrap();
    }
    let long = "n".repeat(255);
    put(union.at(format!("{long}/{long}/{long}")), "long");
    let sparse = std::fs::File::create(union.at("sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    put(union.at("capable"), "program");
    std::os::unix::fs::lchown(union.at("capable"), Some(1234), None).unwrap();
    chmod(union.at("capable"), 0o4755);
    set_xattr(union.at("capable"), "security.capability", &CAPABILITY);
    set_xattr(union.at("capable"), "user.lines", b"a\nb\n10 c=d\n\0");
    set_xattr(union.at("capable"), "trusted.overlay.opaque", b"a program's own");
    set_xattr(union.at("dir"), "system.posix_acl_access", &acl_for(77, 0o750));
    set_xattr(union.at("dir"), "system.posix_acl_default", &acl_for(77, 0o750));
    chmod(union.at("dir"), 0o3771);
    std::os::unix::fs::lchown(union.at("dir/link"), Some(3_000_000), None).unwrap();
    set_times(union.at("dir/first"), (1, 0), (1_234_567_890, 123_456_789));
    set_times(union.at("change"), (1, 0), (-5, 0));
    union
}

#[test]
fn every_kind_of_entry_makes_the_round_trip() {
    need_unionfs!();
    let union = every_kind();
    let dir = temp_dir();
    let layer = round_trip(&union, dir.path());
    assert!(is_whiteout(layer.join("lose")) && is_whiteout(layer.join("gone")));
    assert!(is_whiteout(layer.join("opaque/1")) && !is_opaque(layer.join("opaque")));
    // A whole copy of what was moved.
    assert_eq!(list(layer.join("moved")), ["a", "b", "c"]);
    assert!(is_whiteout(layer.join("tree")));
}

#[test]
fn the_same_upper_gives_the_same_bytes() {
    need_unionfs!();
    let mut union = every_kind();
    let dir = temp_dir();
    let mut seen = Vec::new();
    for name in ["1.tar", "2.tar", "1.tar.gz", "2.tgz", "1.tar.zst", "2.tar.zst"] {
        let told = told(&mut commit(&union, &dir.path().join(name)));
        assert_eq!(told["size"], dir.path().join(name).metadata().unwrap().len().to_string());
        seen.push((told["diff-id"].clone(), std::fs::read(dir.path().join(name)).unwrap()));
        union.remount();
    }
    assert!(seen.windows(2).all(|pair| pair[0].0 == pair[1].0), "the diff ID changes");
    for pair in seen.chunks(2) {
        assert_eq!(pair[0].1, pair[1].1);
    }
    // What differs in time alone.
    let early = told(commit(&union, &dir.path().join("1.tar")).args(["--mtime", "1000000"]));
    let now = rustix::fs::Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW };
    let times = rustix::fs::Timestamps { last_access: now, last_modification: now };
    rustix::fs::utimensat(rustix::fs::CWD, union.at("capable"), &times, rustix::fs::AtFlags::empty())
        .unwrap();
    assert_eq!(early, told(commit(&union, &dir.path().join("1.tar")).args(["--mtime", "1000000"])));
}

#[test]
fn others_read_the_archive() {
    need_unionfs!();
    let union = every_kind();
    let dir = temp_dir();
    let archive = dir.path().join("layer.tar.gz");
    told(&mut commit(&union, &archive));
    let script = "import sys, tarfile\n\
        for m in tarfile.open(sys.argv[1]):\n\
        \x20   print(m.name, m.type.decode(), oct(m.mode), m.uid, m.mtime, m.linkname[:9], m.devmajor, m.devminor, m.size)";
    let listing = run("python3", &["-c".as_ref(), script.as_ref(), archive.as_ref()]);
    for line in [
        ".wh.lose 0 0o0 0 0 ",
        "capable 0 0o4755 1234 ",
        "change 0 0o644 0 -5",
        "dir 5 0o3771 0 ",
        "dir/first 0 0o644 0 1234567890.1234567 ",
        "dir/second 1 0o644 0 1234567890.1234567 dir/first ",
        "dir/link 2 0o777 3000000 ",
        "dir/block 4 0o640 0 ",
        "opaque/.wh.1 0 ",
        "moved/a 0 ",
    ] {
        assert!(listing.lines().any(|l| l.starts_with(line)), "{line}\n{listing}");
    }
    let block = format!(" 259 {} ", largest_minor(&union));
    assert!(listing.contains(&block) && listing.contains("sparse 0 0o644 0 "), "{listing}");
    // What tar(1) makes of it is what was there.
    let out = dir.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let extract = ["--xattrs", "--xattrs-include=*", "-xpf"].map(OsString::from);
    let mut args: Vec<&std::ffi::OsStr> = extract.iter().map(AsRef::as_ref).collect();
    args.extend([
        archive.as_os_str(),
        "-C".as_ref(),
        out.as_os_str(),
        "--exclude".as_ref(),
        ".wh.*".as_ref(),
    ]);
    run("tar", &args);
    let (theirs, ours) = (plain(tree::read_overlay(&out)), plain(tree::read(&union.mnt())));
    for (path, node) in theirs {
        let expected = ours.get(&path).cloned().unwrap();
        if !path.as_os_str().is_empty() {
            assert_eq!(node, expected, "{}", path.display());
        }
    }
}

#[test]
fn opaque_only_where_no_whiteout_can_say_it() {
    need_unionfs!();
    let union = Union::new(1);
    let long = "n".repeat(254);
    put(union.lower(0, format!("d/{long}")), "x");
    put(union.lower(0, "d/short"), "x");
    put(union.lower(0, "d/sub/kept"), "x");
    put(union.lower(0, "d/sub/lost"), "x");
    let union = union.mounted();
    std::fs::remove_file(union.at(format!("d/{long}"))).unwrap();
    std::fs::remove_file(union.at("d/sub/lost")).unwrap();
    let dir = temp_dir();
    let layer = round_trip(&union, dir.path());
    assert!(is_opaque(layer.join("d")));
    assert_eq!(list(layer.join("d")), ["short", "sub"]);
    assert_eq!(list(layer.join("d/sub")), ["kept"]);
    assert_eq!(
        diff::lines(&union),
        ["C /d".to_owned(), format!("D /d/{long}"), "C /d/sub".into(), "D /d/sub/lost".into()]
    );
}

#[test]
fn the_init_layer_is_not_committed() {
    need_unionfs!();
    let union = Union::new(1).with_init();
    put(union.lower(0, "etc/passwd"), "root");
    put(union.init("etc/hosts"), "localhost");
    chmod(union.init("etc"), 0o700);
    let union = union.mounted();
    put(union.at("etc/hosts"), "changed");
    put(union.at("etc/new"), "new");
    let dir = temp_dir();
    let (archive, layer) = (dir.path().join("layer.tar"), dir.path().join("layer"));
    told(&mut commit(&union, &archive));
    told(&mut apply(&archive, &layer));
    assert_eq!(list(layer.join("etc")), ["new"]);
    assert_eq!(mode(layer.join("etc")), 0o755);
}

#[test]
fn names_of_whiteouts_and_sockets_are_not_committed() {
    need_unionfs!();
    let union = Union::new(1);
    put(union.lower(0, "file"), "x");
    let union = union.mounted();
    std::fs::remove_file(union.at("file")).unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(union.at("file")).unwrap();
    let dir = temp_dir();
    let archive = dir.path().join("layer.tar");
    let out = commit(&union, &archive).output().unwrap();
    assert!(out.status.success() && text(&out).contains("left out: /file is a socket"), "{}", text(&out));
    assert_eq!(run("tar", &["-tf".as_ref(), archive.as_ref()]), ".wh.file\n");
    put(union.at("dir/.wh.name"), "x");
    let out = commit(&union, &archive).output().unwrap();
    assert!(
        !out.status.success() && text(&out).contains("path /dir/.wh.name: begins with .wh."),
        "{}",
        text(&out)
    );
    // What was there stays.
    assert_eq!(list(dir.path()), ["layer.tar"]);
    assert_eq!(run("tar", &["-tf".as_ref(), archive.as_ref()]), ".wh.file\n");
}

#[test]
fn random_layers_make_the_round_trip_slow() {
    need_unionfs!();
    let seed = std::env::var("UNIONFS_IMAGES_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let cases = std::env::var("UNIONFS_IMAGES_CASES").ok().and_then(|s| s.parse().ok()).unwrap_or(12);
    for case in seed..seed + cases {
        let mut random = Random::new(case);
        let union = Union::new(2);
        for layer in [1, 0] {
            for _ in 0..50 {
                random.change(&union.lower(layer, ""));
            }
        }
        let mut union = if case % 2 == 0 { union.option("metacopy=on") } else { union };
        union.mount();
        for _ in 0..30 {
            random.change(&union.mnt());
        }
        let dir = temp_dir();
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| round_trip(&union, dir.path())))
            .map_err(|e| panic!("case {case}: {:?}", e.downcast_ref::<String>()));
        union.unmount();
    }
}
