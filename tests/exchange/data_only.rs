//! Layers in the way of composefs: the lowers have names and attributes, and data-only layers have the data of
//! their files, by hash.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::common::files::{self, chmod, errno, get, put, set_xattr};
use crate::common::{self, Union, overlay, text, tree};
use crate::flat::flatten;
use crate::layers;
use crate::need_unionfs;
use crate::peer::{ours, with_dir_times};

/// Moves the data of all files of a layer to `data`, each under a name made from what it is.
fn extract(dir: &Path, data: &Path, seen: &mut Vec<(u64, PathBuf)>) {
    for name in files::list(dir) {
        let path = dir.join(name);
        let meta = path.symlink_metadata().unwrap();
        if meta.is_dir() {
            extract(&path, data, seen);
        } else if meta.is_file() && meta.len() > 0 && !seen.iter().any(|(ino, _)| *ino == meta.ino()) {
            let object = format!("{:02x}/{:x}", seen.len() % 3, meta.ino());
            put(data.join(&object), std::fs::read(&path).unwrap());
            let file = OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(0).unwrap();
            file.set_len(meta.len()).unwrap();
            chmod(&path, meta.mode() & 0o7777);
            set_xattr(&path, "trusted.overlay.metacopy", b"");
            set_xattr(&path, "trusted.overlay.redirect", format!("/{object}").as_bytes());
            files::set_times(&path, (meta.atime(), meta.atime_nsec()), (meta.mtime(), meta.mtime_nsec()));
            seen.push((meta.ino(), path));
        }
    }
}

fn mount(union: &Union, data: &[PathBuf], read_only: bool) {
    let mut layers: OsString = union.lower_list();
    for layer in data {
        layers.push("::");
        layers.push(layer);
    }
    let mut command = common::unionfs();
    command.arg("mount");
    if read_only {
        command.arg("--read-only").arg(layers);
    } else {
        command.arg("--work").arg(union.work("")).arg(layers).arg(union.upper(""));
    }
    let out = command.arg(union.mnt()).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
}

fn rootless(mut tree: tree::Tree) -> tree::Tree {
    tree.remove(Path::new(""));
    tree
}

fn run(entries: &[Vec<layers::Entry>]) -> Result<(), String> {
    let mut union = Union::new(entries.len());
    let paths: Vec<PathBuf> = (0..union.lowers()).map(|i| union.lower(i, "")).collect();
    for (path, entries) in paths.iter().zip(entries) {
        layers::build(path, entries, true);
    }
    let flat = union.dir().join("flat");
    flatten(&paths, &flat);
    let want = rootless(with_dir_times(&flat, tree::read(&flat)));
    // Two data-only layers, and all objects of the second in the first as well, but for some.
    let data = ["data0", "data1"].map(|name| union.dir().join(name));
    let mut seen = Vec::new();
    paths.iter().for_each(|path| extract(path, &data[1], &mut seen));
    for name in ["00", "01"].iter().filter(|name| files::exists(data[1].join(name))) {
        files::dir(&data[0]);
        std::fs::rename(data[1].join(name), data[0].join(name)).unwrap();
    }
    data.iter().for_each(files::dir);

    mount(&union, &data, true);
    let got = rootless(ours(&union));
    union.unmount();
    let lines = tree::diff(&want, &got);
    if !lines.is_empty() {
        return Err(format!("flat left, union right:\n{}", lines.join("\n")));
    }
    if union.lowers() > 1 {
        union = union.read_only();
        let data = data.iter().map(|d| ("datadir+", d.to_str().unwrap()));
        let options: Vec<_> = data.chain([("metacopy", "on"), ("redirect_dir", "on")]).collect();
        overlay::mount(&union, &options);
        let kernel = rootless(with_dir_times(&union.mnt(), tree::read_overlay(&union.mnt())));
        union.unmount();
        let lines = tree::diff(&kernel, &got);
        if !lines.is_empty() {
            return Err(format!("overlayfs left, union right:\n{}", lines.join("\n")));
        }
    }
    // Changes bring the data along.
    mount(&union, &data, false);
    for (i, path) in want.iter().filter(|(_, n)| n.size > 0 && n.target.is_none()).map(|(p, _)| p).enumerate()
    {
        for root in [&union.mnt(), &flat] {
            let path = root.join(path);
            match i % 3 {
                0 => OpenOptions::new().append(true).open(path).unwrap().write_all(b"more").unwrap(),
                1 => chmod(path, 0o640),
                _ => OpenOptions::new().write(true).open(path).unwrap().set_len(5).unwrap(),
            }
        }
    }
    let timeless = |root: &Path| {
        let mut tree = rootless(tree::read(root));
        tree.values_mut().for_each(|n| n.mtime = (0, 0));
        tree
    };
    let lines = tree::diff(&timeless(&flat), &timeless(&union.mnt()));
    union.unmount();
    if lines.is_empty() {
        Ok(())
    } else {
        Err(format!("changed, flat left, union right:\n{}", lines.join("\n")))
    }
}

#[test]
fn random_data_only_lowers() {
    need_unionfs!();
    let config =
        Config { cases: 20, failure_persistence: None, max_shrink_time: 30_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[5; 32]));
    let entries = prop::collection::vec(prop::collection::vec(layers::entry(), 0..20), 1..=4);
    match runner.run(&entries, |entries| run(&entries).map_err(TestCaseError::fail)) {
        Ok(()) => {}
        Err(TestError::Fail(reason, case)) => panic!("{reason}\nshrunk to {case:#?}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

/// Data that is missing is an error, not an empty file; and data-only layers show nothing by themselves.
#[test]
fn missing_data_is_an_error() {
    need_unionfs!();
    let u = Union::new(1);
    for name in ["there", "missing"] {
        put(u.lower(0, name), "");
        OpenOptions::new().write(true).open(u.lower(0, name)).unwrap().set_len(4).unwrap();
        set_xattr(u.lower(0, name), "trusted.overlay.metacopy", b"");
        set_xattr(u.lower(0, name), "trusted.overlay.redirect", format!("/objects/{name}").as_bytes());
    }
    let data = u.dir().join("data");
    put(data.join("objects/there"), "data");
    mount(&u, &[data], true);
    assert_eq!(get(u.at("there")), "data");
    assert_eq!(errno(std::fs::read(u.at("missing"))), libc::EIO);
    assert_eq!(files::list(u.mnt()), ["missing", "there"]);
    assert!(!files::exists(u.at("objects")));
    u.unmount();
}
