//! Random layers in the forms that others write whiteouts and opaque directories in, and the flat tree that
//! they amount to. Where the kernel reads the form, it agrees.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};

use crate::common::files::{self, is_opaque, is_whiteout};
use crate::common::{Union, overlay, tree};
use crate::flat::flatten;
use crate::layers;
use crate::need_unionfs;
use crate::peer::{ours, with_dir_times};

/// A form of whiteouts and opaque directories.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Character devices and `trusted.overlay.opaque`.
    Device,
    /// The same with `user.overlay.opaque`.
    DeviceUser,
    /// The same with `user.fuseoverlayfs.opaque`.
    DeviceFuse,
    /// Empty files with `trusted.overlay.whiteout` in directories that are marked for having them.
    Xattr,
    /// The same in `user.overlay.`.
    XattrUser,
    /// `.wh.NAME` and `.wh..wh..opq`, as AUFS and the OCI image spec have them.
    Names,
}

/// Rewrites a layer made by [`layers::build`].
pub fn convert(dir: &Path, form: Form) {
    let meta = dir.metadata().unwrap();
    let opaque = is_opaque(dir);
    let mut holds_whiteouts = false;
    for name in files::list(dir) {
        let path = dir.join(&name);
        if path.symlink_metadata().unwrap().is_dir() {
            convert(&path, form);
        } else if is_whiteout(&path) && form >= Form::Xattr {
            std::fs::remove_file(&path).unwrap();
            match form {
                Form::Names => files::put(dir.join(format!(".wh.{name}")), ""),
                // In an opaque directory there is nothing to hide, and no room for the mark.
                _ if opaque => {}
                _ => {
                    files::put(&path, "");
                    let attr = if form == Form::Xattr {
                        "trusted.overlay.whiteout"
                    } else {
                        "user.overlay.whiteout"
                    };
                    files::set_xattr(&path, attr, b"");
                    holds_whiteouts = true;
                }
            }
        }
    }
    let other = match form {
        Form::Device | Form::Xattr => None,
        Form::DeviceUser | Form::XattrUser => Some("user.overlay.opaque"),
        Form::DeviceFuse => Some("user.fuseoverlayfs.opaque"),
        Form::Names => Some(""),
    };
    if let Some(other) = other.filter(|_| opaque) {
        rustix::fs::lremovexattr(dir, "trusted.overlay.opaque").unwrap();
        if form == Form::Names {
            files::put(dir.join(".wh..wh..opq"), "");
        } else {
            files::set_xattr(dir, other, b"y");
        }
    }
    if holds_whiteouts {
        let attr = if form == Form::Xattr { "trusted.overlay.opaque" } else { "user.overlay.opaque" };
        files::set_xattr(dir, attr, b"x");
    }
    files::set_times(dir, (1_000_000_000, 5), (meta.mtime(), meta.mtime_nsec()));
}

impl PartialOrd for Form {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        (*self as u8).partial_cmp(&(*other as u8))
    }
}

/// Adds what AUFS keeps in a branch for itself.
fn add_aufs_bookkeeping(root: &Path) {
    let meta = root.metadata().unwrap();
    files::put(root.join(".wh..wh.aufs"), "");
    files::dir(root.join(".wh..wh.plnk"));
    files::dir(root.join(".wh..wh.orph"));
    files::set_times(root, (1_000_000_000, 5), (meta.mtime(), meta.mtime_nsec()));
}

fn run(form: Form, entries: &[Vec<layers::Entry>]) -> Result<(), String> {
    let union = Union::new(entries.len());
    let paths: Vec<PathBuf> = (0..union.lowers()).map(|i| union.lower(i, "")).collect();
    for (path, entries) in paths.iter().zip(entries) {
        layers::build(path, entries, true);
    }
    let flat = union.dir().join("flat");
    flatten(&paths, &flat);
    let mut want = with_dir_times(&flat, tree::read(&flat));
    want.remove(Path::new(""));
    for path in &paths {
        convert(path, form);
        if form == Form::Names {
            add_aufs_bookkeeping(path);
        }
    }
    let mut union = union.read_only();
    union.mount();
    let mut got = ours(&union);
    got.remove(Path::new(""));
    let lines = tree::diff(&want, &got);
    if !lines.is_empty() {
        return Err(format!("{form:?}, flat left, union right:\n{}", lines.join("\n")));
    }
    union.unmount();
    let options: &[(&str, &str)] = match form {
        Form::Device | Form::Xattr => &[],
        Form::DeviceUser | Form::XattrUser => &[("userxattr", "")],
        Form::DeviceFuse | Form::Names => return Ok(()),
    };
    if union.lowers() < 2 {
        return Ok(());
    }
    overlay::mount(&union, options);
    let mut kernel = with_dir_times(&union.mnt(), tree::read_overlay(&union.mnt()));
    kernel.remove(Path::new(""));
    union.unmount();
    let lines = tree::diff(&kernel, &got);
    if lines.is_empty() {
        Ok(())
    } else {
        Err(format!("{form:?}, overlayfs left, union right:\n{}", lines.join("\n")))
    }
}

fn random(form: Form) {
    need_unionfs!();
    let config =
        Config { cases: 30, failure_persistence: None, max_shrink_time: 30_000, ..Config::default() };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[3; 32]));
    let entries = prop::collection::vec(prop::collection::vec(layers::entry(), 0..20), 2..=6);
    match runner.run(&entries, |entries| run(form, &entries).map_err(TestCaseError::fail)) {
        Ok(()) => {}
        Err(TestError::Fail(reason, case)) => panic!("{reason}\nshrunk to {case:#?}"),
        Err(TestError::Abort(reason)) => panic!("{reason}"),
    }
}

#[test]
fn random_with_device_whiteouts() {
    random(Form::Device);
    random(Form::DeviceUser);
    random(Form::DeviceFuse);
}

#[test]
fn random_with_xattr_whiteouts() {
    random(Form::Xattr);
    random(Form::XattrUser);
}

#[test]
fn random_with_whiteout_names() {
    random(Form::Names);
}

/// The cases that the OCI image spec (layer.md, "Whiteouts") speaks of.
#[test]
fn oci_layers() {
    need_unionfs!();
    let u = Union::new(3);
    for name in ["a/b/c/bar", "gone/f", "both", "below/x", "same/old"] {
        files::put(u.lower(2, name), "base");
    }
    // An opaque whiteout hides the lower siblings, and none in its own layer, whatever their order.
    files::put(u.lower(1, "a/.wh..wh..opq"), "");
    files::put(u.lower(1, "a/b/c/foo"), "new");
    files::put(u.lower(1, ".wh.gone"), "");
    // A whiteout applies to lower layers only, not to its own.
    files::put(u.lower(1, ".wh.both"), "");
    files::put(u.lower(1, "both"), "mine");
    // Hidden in the middle, there again on top.
    files::put(u.lower(1, ".wh.below"), "");
    files::put(u.lower(0, "below/y"), "top");
    // A directory in the place of a deleted one, the whiteout and the directory in one layer.
    files::put(u.lower(0, "same/new"), "new");
    files::put(u.lower(0, ".wh.same"), "");
    let mut u = u;
    for _ in 0..2 {
        u.mount();
        assert_eq!(files::list(u.mnt()), ["a", "below", "both", "same"]);
        assert_eq!(files::list(u.at("a")), ["b"]);
        assert_eq!(files::list(u.at("a/b/c")), ["foo"]);
        assert_eq!(files::get(u.at("both")), "mine");
        assert_eq!(files::list(u.at("below")), ["y"]);
        assert_eq!(files::list(u.at("same")), ["new"], "what a whiteout beside a directory hides");
        assert!(!files::exists(u.at(".wh.gone")) && !files::exists(u.at("a/.wh..wh..opq")));
        u.unmount();
    }
    // A whiteout can be made to go, and come.
    u.mount();
    files::put(u.at("gone"), "again");
    std::fs::remove_dir_all(u.at("a")).unwrap();
    files::dir(u.at("a"));
    u.remount();
    assert_eq!(files::get(u.at("gone")), "again");
    assert!(files::list(u.at("a")).is_empty());
    std::fs::remove_file(u.at("gone")).unwrap();
    u.remount();
    assert!(!files::exists(u.at("gone")));
}

/// Names like whiteouts that a program makes in the mount are names, also when the upper is a lower later.
#[test]
fn names_that_look_like_whiteouts() {
    need_unionfs!();
    let mut u = Union::new(1);
    files::put(u.lower(0, "d/f"), "x");
    u.mount();
    files::put(u.at("d/.wh.f"), "a name");
    files::put(u.at("d/.wh..wh..opq"), "another");
    assert_eq!(files::list(u.at("d")), [".wh..wh..opq", ".wh.f", "f"]);
    u.remount();
    assert_eq!(files::list(u.at("d")), [".wh..wh..opq", ".wh.f", "f"]);
    u.unmount();
    let below = Union::stacked(&u).mounted();
    assert_eq!(files::list(below.at("d")), [".wh..wh..opq", ".wh.f", "f"]);
    assert_eq!(files::get(below.at("d/.wh.f")), "a name");
}

/// A private attribute that leads out of the layers is an error, not a way out.
#[test]
fn hostile_redirects() {
    need_unionfs!();
    let u = Union::new(2);
    for (name, value) in [("up", &b"../../etc"[..]), ("dots", b"/../etc"), ("slash", b"/"), ("nul", b"a\0b")]
    {
        files::dir(u.lower(0, name));
        files::set_xattr(u.lower(0, name), "trusted.overlay.redirect", value);
    }
    // Two directories that point at each other.
    for (name, value) in [("a", "/b"), ("b", "/a")] {
        files::dir(u.lower(0, name));
        files::set_xattr(u.lower(0, name), "trusted.overlay.redirect", value.as_bytes());
    }
    files::put(u.lower(1, "etc/passwd"), "x");
    let u = u.read_only().mounted();
    for name in ["up", "dots", "slash", "nul"] {
        assert_eq!(files::errno(std::fs::read_dir(u.at(name))), libc::EIO, "{name}");
    }
    for name in ["a", "b"] {
        let _ = std::fs::read_dir(u.at(name)).map(Iterator::count);
    }
    assert_eq!(files::list(u.mnt()).len(), 7);
}
