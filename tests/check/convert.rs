//! Whiteouts from one form to another: a mount shows the same before, after, and after an interruption.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use crate::common::files::*;
use crate::common::{Union, overlay, text, tree, unionfs};
use crate::{layers, need_unionfs};

fn convert(layer: &Path, to: &str) -> Command {
    let mut command = unionfs();
    command.args(["check", "--convert", to, "--upper"]).arg(layer);
    command
}

fn must_convert(layer: &Path, to: &str) {
    let out = convert(layer, to).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
}

/// What a mount of the layers shows, times of directories among it.
fn shown(union: &mut Union) -> tree::Tree {
    union.mount();
    let mut tree = tree::read(&union.mnt());
    for (path, node) in &mut tree {
        let meta = union.at(path).symlink_metadata().unwrap();
        node.mtime = (std::os::unix::fs::MetadataExt::mtime(&meta), 0);
    }
    union.unmount();
    tree
}

fn random_layers(seed: u8) -> Union {
    let mut runner =
        TestRunner::new_with_rng(Config::default(), TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]));
    let strategy = prop::collection::vec(prop::collection::vec(layers::entry(), 8..40), 3..=4);
    let all = strategy.new_tree(&mut runner).unwrap().current();
    let union = Union::new(all.len()).read_only();
    for (i, entries) in all.iter().enumerate() {
        layers::build(&union.lower(i, ""), entries, true);
    }
    union
}

/// Whether anything below has the form of overlayfs, and whether anything has that of AUFS.
fn forms(dir: &Path) -> (bool, bool) {
    let mut found = (is_opaque(dir), false);
    for name in list(dir) {
        let path: PathBuf = dir.join(&name);
        found.0 |= is_whiteout(&path);
        found.1 |= name.starts_with(".wh.");
        if path.symlink_metadata().unwrap().is_dir() {
            let below = forms(&path);
            found = (found.0 | below.0, found.1 | below.1);
        }
    }
    found
}

#[test]
fn random_layers_show_the_same_in_both_forms() {
    need_unionfs!();
    for seed in 0..6 {
        let mut union = random_layers(seed);
        let before = shown(&mut union);
        let lowers: Vec<PathBuf> = (0..union.lowers()).map(|i| union.lower(i, "")).collect();
        lowers.iter().for_each(|l| must_convert(l, "aufs"));
        assert!(lowers.iter().all(|l| !forms(l).0), "something is left in the form of overlayfs");
        tree::assert_same("as .wh. names", &before, &shown(&mut union));
        lowers.iter().for_each(|l| must_convert(l, "overlay"));
        assert!(lowers.iter().all(|l| !forms(l).1), "something is left in the form of AUFS");
        tree::assert_same("as devices again", &before, &shown(&mut union));
        overlay::mount(&union, &[]);
        let mut kernel = tree::read_overlay(&union.mnt());
        union.unmount();
        let mut ours = before;
        // How many names of a file show is told differently by a mount without an upper.
        for node in kernel.values_mut().chain(ours.values_mut()) {
            node.mtime = (0, 0);
            node.nlink = 0;
        }
        ours.remove(Path::new(""));
        kernel.remove(Path::new(""));
        tree::assert_same("shown by the kernel", &ours, &kernel);
    }
}

#[test]
fn attributes_are_converted_too() {
    need_unionfs!();
    let mut union = Union::new(2).read_only();
    for name in ["a", "b"] {
        put(union.lower(1, format!("d/{name}")), name);
    }
    put(union.lower(1, "o/hidden"), "x");
    put(union.lower(0, "d/a"), "");
    set_xattr(union.lower(0, "d/a"), "trusted.overlay.whiteout", b"y");
    set_xattr(union.lower(0, "d"), "trusted.overlay.opaque", b"x");
    dir(union.lower(0, "o"));
    set_xattr(union.lower(0, "o"), "user.fuseoverlayfs.opaque", b"y");
    let before = shown(&mut union);
    assert!(!before.contains_key(Path::new("d/a")) && !before.contains_key(Path::new("o/hidden")));
    must_convert(&union.lower(0, ""), "aufs");
    assert_eq!(list(union.lower(0, "d")), [".wh.a"]);
    assert_eq!(list(union.lower(0, "o")), [".wh..wh..opq"]);
    assert!(xattr_names(union.lower(0, "d")).is_empty());
    tree::assert_same("as names", &before, &shown(&mut union));
    must_convert(&union.lower(0, ""), "overlay");
    assert!(is_whiteout(union.lower(0, "d/a")));
    tree::assert_same("as devices", &before, &shown(&mut union));
}

#[test]
fn what_aufs_leaves_is_read() {
    need_unionfs!();
    let mut union = Union::new(2).read_only();
    put(union.lower(1, "dir/old"), "old");
    put(union.lower(1, "file"), "old");
    put(union.lower(0, "dir/new"), "new");
    // A directory beside its own whiteout has replaced what is below; a file hides it in any case.
    put(union.lower(0, ".wh.dir"), "");
    put(union.lower(0, "file"), "new");
    put(union.lower(0, ".wh.file"), "");
    put(union.lower(0, ".wh..wh.aufs"), "");
    dir(union.lower(0, ".wh..wh.plnk"));
    put(union.lower(0, ".wh..wh.orph/kept"), "data");
    let before = shown(&mut union);
    must_convert(&union.lower(0, ""), "overlay");
    assert_eq!(list(union.lower(0, "")), [".wh..wh.orph", "dir", "file"]);
    assert!(is_opaque(union.lower(0, "dir")));
    tree::assert_same("converted", &before, &shown(&mut union));
}

#[test]
fn an_interrupted_conversion_goes_on() {
    need_unionfs!();
    for (delay, to) in [(0, "aufs"), (2, "aufs"), (5, "aufs"), (1, "overlay"), (4, "overlay")] {
        let mut union = Union::new(2).read_only();
        for i in 0..400 {
            put(union.lower(1, format!("d{}/{i}", i % 7)), "x");
            put(union.lower(1, format!("o{}/{i}", i % 90)), "x");
            let name = format!("d{}/{i}", i % 7);
            std::fs::create_dir_all(union.lower(0, &name).parent().unwrap()).unwrap();
            whiteout(union.lower(0, &name));
            put(union.lower(0, format!("o{}/new", i % 90)), "y");
        }
        (0..90).for_each(|i| make_opaque(union.lower(0, format!("o{i}"))));
        if to == "overlay" {
            must_convert(&union.lower(0, ""), "aufs");
        }
        let mut before = shown(&mut union);
        let mut child = convert(&union.lower(0, ""), to).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
        // In between as well; the times of one directory may be new.
        let mut between = shown(&mut union);
        before.values_mut().chain(between.values_mut()).for_each(|n| n.mtime = (0, 0));
        tree::assert_same("in between", &before, &between);
        must_convert(&union.lower(0, ""), to);
        let mut after = shown(&mut union);
        after.values_mut().for_each(|n| n.mtime = (0, 0));
        tree::assert_same("at the end", &before, &after);
        let left = forms(&union.lower(0, ""));
        assert!(if to == "aufs" { !left.0 } else { !left.1 }, "something is left");
    }
}

#[test]
fn what_the_form_cannot_say_is_refused_before_anything_changes() {
    need_unionfs!();
    type Spoil = fn(&Union);
    let cases: [(&str, Spoil); 5] = [
        ("/r/deep", |u| {
            dir(u.upper("r/deep"));
            set_xattr(u.upper("r/deep"), "trusted.overlay.redirect", b"/d");
        }),
        ("/meta", |u| {
            put(u.upper("meta"), "zeros");
            set_xattr(u.upper("meta"), "trusted.overlay.metacopy", b"");
        }),
        ("/.wh.name", |u| {
            put(u.upper(".wh.name"), "");
            set_xattr(u.upper(""), "trusted.overlay.unionfs.plain", b"y");
        }),
        ("too long", |u| whiteout(u.upper("n".repeat(253)))),
        ("index/entry", |u| put(u.work("index/entry"), "")),
    ];
    for (says, spoil) in cases {
        let union = Union::new(1);
        whiteout(union.upper("gone"));
        spoil(&union);
        let before = tree::fingerprint(&union.upper(""));
        let out = convert(&union.upper(""), "aufs").arg("--work").arg(union.work("")).output().unwrap();
        assert_eq!(out.status.code(), Some(8), "{}", text(&out));
        assert!(text(&out).contains(says), "{says}: {}", text(&out));
        assert_eq!(before, tree::fingerprint(&union.upper("")), "{says}");
    }
}
