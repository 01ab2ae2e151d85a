//! Each class of findings, made by hand, told of, mended where that is safe, and gone then.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::common::files::*;
use crate::common::{Union, run, text, tree, unionfs};
use crate::{assert_found, check, command};
use crate::{need_mount, need_unionfs};

/// A union whose upper has something of everything, all of it right.
fn worked_in() -> Union {
    let mut union = Union::new(2);
    for name in ["a", "b", "c"] {
        put(union.lower(1, format!("dir/{name}")), name);
    }
    put(union.lower(1, "moved/in/file"), "x");
    put(union.lower(0, "file"), "top");
    put(union.lower(1, "one"), "linked");
    for name in ["two", "three"] {
        std::fs::hard_link(union.lower(1, "one"), union.lower(1, name)).unwrap();
    }
    put(union.lower(1, "left1"), "left");
    for name in ["left2", "left3"] {
        std::fs::hard_link(union.lower(1, "left1"), union.lower(1, name)).unwrap();
    }
    union.mount();
    std::fs::remove_file(union.at("dir/a")).unwrap();
    put(union.at("dir/b"), "changed");
    std::fs::rename(union.at("moved"), union.at("elsewhere")).unwrap();
    put(union.at("one"), "changed");
    std::fs::remove_file(union.at("left1")).unwrap();
    put(union.at("new/file"), "new");
    union.unmount();
    union
}

/// Checks twice: `expected` is found, then with --repair mended, then nothing is left, and the mounted tree is
/// what it was.
fn mends(mut union: Union, expected: &[&str], level: &str) {
    union.mount();
    // What a mount removes by itself is not lost to the check.
    let before = tree::read(&union.mnt());
    union.unmount();
    mends_to(union, expected, level, Some(&before));
}

fn mends_to(mut union: Union, expected: &[&str], level: &str, before: Option<&tree::Tree>) {
    let lines: Vec<String> = expected.iter().map(|e| format!("{level} {e}")).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let status = if level == "fault" { 4 } else { 0 };
    assert_found(&check(&union, &[]), status, &lines);
    let mended: Vec<String> = lines.iter().map(|l| format!("{l} (mended)")).collect();
    let mended: Vec<&str> = mended.iter().map(String::as_str).collect();
    assert_found(&check(&union, &["--repair"]), 1, &mended);
    assert_found(&check(&union, &["--repair"]), 0, &[]);
    union.mount();
    let after = tree::read(&union.mnt());
    union.unmount();
    if let Some(before) = before {
        tree::assert_same("repaired", before, &after);
    }
    assert_found(&check(&union, &[]), 0, &[]);
}

/// Told of with this status and no more, with --repair too, which changes nothing.
fn told(union: &Union, expected: &[&str]) {
    assert_found(&check(union, &[]), 4, expected);
    let before = (tree::fingerprint(&union.upper("")), tree::fingerprint(&union.work("")));
    assert_found(&check(union, &["--repair"]), 4, expected);
    assert_eq!(before, (tree::fingerprint(&union.upper("")), tree::fingerprint(&union.work(""))));
}

#[test]
fn nothing_is_wrong_with_what_a_mount_leaves() {
    need_unionfs!();
    let union = worked_in();
    let before = tree::fingerprint(&union.upper(""));
    assert_found(&check(&union, &[]), 0, &[]);
    assert_eq!(before, tree::fingerprint(&union.upper("")), "a check changed something");
    assert_found(&check(&union, &["--repair", "--tidy"]), 0, &[]);
    assert_eq!(before, tree::fingerprint(&union.upper("")), "a repair of nothing changed something");
}

#[test]
fn whiteouts_and_opaque_marks_of_nothing() {
    need_unionfs!();
    let mut union = worked_in();
    whiteout(union.upper("dir/none"));
    dir(union.upper("deep/opaque"));
    make_opaque(union.upper("deep/opaque"));
    let expected = ["note opaque-of-nothing /deep/opaque", "note whiteout-of-nothing /dir/none"];
    assert_found(&check(&union, &[]), 0, &expected);
    // The lowers may be others than those of the mount: not without being told to.
    assert_found(&check(&union, &["--repair"]), 0, &expected);
    union.mount();
    let before = tree::read(&union.mnt());
    union.unmount();
    let mended = expected.map(|e| format!("{e} (mended)"));
    assert_found(&check(&union, &["--repair", "--tidy"]), 1, &[&mended[0], &mended[1]]);
    assert_found(&check(&union, &["--repair", "--tidy"]), 0, &[]);
    union.mount();
    tree::assert_same("tidied", &before, &tree::read(&union.mnt()));
}

#[test]
fn redirects_that_lead_nowhere() {
    need_unionfs!();
    let union = worked_in();
    set_xattr(union.upper("new"), "trusted.overlay.redirect", b"/no/such");
    dir(union.upper("sibling"));
    set_xattr(union.upper("sibling"), "trusted.overlay.redirect", b"none");
    // A file is not a directory's lower part.
    dir(union.upper("to-file"));
    set_xattr(union.upper("to-file"), "trusted.overlay.redirect", b"/file");
    dir(union.upper("bad/below"));
    set_xattr(union.upper("bad"), "trusted.overlay.redirect", b"../out");
    set_xattr(union.upper("bad/below"), "trusted.overlay.opaque", b"z");
    // Below what cannot be opened is looked as well.
    let lines = [
        "fault redirect-dangling /new",
        "fault redirect-dangling /sibling",
        "fault redirect-dangling /to-file",
        "fault redirect-malformed /bad",
    ];
    assert_found(&check(&union, &[]), 4, &[&lines[..], &["fault opaque-malformed /bad/below"]].concat());
    let mended = [&lines[..], &["fault opaque-malformed /bad/below (mended)"]].concat();
    assert_found(&check(&union, &["--repair"]), 1 | 4, &mended);
    told(&union, &lines);
}

#[test]
fn marks_that_mean_nothing() {
    need_unionfs!();
    let union = worked_in();
    set_xattr(union.upper("dir"), "trusted.overlay.opaque", b"maybe");
    set_xattr(union.upper("new/file"), "trusted.overlay.opaque", b"y");
    set_xattr(union.upper("dir/b"), "user.overlay.whiteout", b"y");
    set_xattr(union.upper("new"), "trusted.overlay.metacopy", b"");
    let expected = [
        "opaque-malformed /dir",
        "opaque-malformed /new/file",
        "whiteout-malformed /dir/b",
        "whiteout-malformed /new",
    ];
    mends(union, &expected, "fault");
}

#[test]
fn unseen_whiteouts_and_whiteouts_by_name() {
    need_unionfs!();
    let union = worked_in();
    put(union.upper("new/hidden"), "");
    set_xattr(union.upper("new/hidden"), "trusted.overlay.whiteout", b"y");
    put(union.upper("new/.wh.gone"), "");
    put(union.upper("new/.wh..wh..opq"), "");
    told(
        &union,
        &[
            "fault whiteout-unseen /new/hidden",
            "fault wh-name /new/.wh.gone",
            "fault wh-name /new/.wh..wh..opq",
            "note mixed-whiteouts /",
        ],
    );
    // Where names are plain, they are names.
    set_xattr(union.upper(""), "trusted.overlay.unionfs.plain", b"y");
    std::fs::remove_file(union.upper("new/hidden")).unwrap();
    assert_found(&check(&union, &[]), 0, &[]);
}

#[test]
fn missing_impure_marks() {
    need_unionfs!();
    let union = worked_in();
    rustix::fs::removexattr(union.upper("dir"), "trusted.overlay.impure").unwrap();
    rustix::fs::removexattr(union.upper(""), "trusted.overlay.impure").unwrap();
    // The tree shows other numbers without the marks, in listings: so it is not compared to that before.
    mends_to(union, &["impure-missing /", "impure-missing /dir"], "fault", None);
}

#[test]
fn origins_that_lead_nowhere() {
    need_unionfs!();
    let union = worked_in();
    set_xattr(union.upper("new/file"), "trusted.overlay.origin", b"no origin");
    set_xattr(union.upper("new"), "trusted.overlay.impure", b"y");
    mends(union, &["origin-malformed /new/file"], "fault");

    let union = worked_in();
    let mut origin = xattr(union.upper("dir/b"), "trusted.overlay.origin").unwrap();
    origin[7] ^= 0xff; // in the UUID
    set_xattr(union.upper("dir/b"), "trusted.overlay.origin", &origin);
    mends(union, &["origin-dangling /dir/b"], "note");

    let union = worked_in();
    std::fs::remove_file(union.lower(1, "dir/b")).unwrap();
    mends(union, &["origin-dangling /dir/b"], "note");
}

#[test]
fn copies_without_data() {
    need_unionfs!();
    let mut union = Union::new(1).option("metacopy=on");
    put(union.lower(0, "d/file"), "data");
    put(union.lower(0, "d/other"), "data");
    union.mount();
    chmod(union.at("d/file"), 0o600);
    chmod(union.at("d/other"), 0o600);
    union.unmount();
    assert_found(&check(&union, &[]), 0, &[]);
    // Without the mark of the directory the files are zeros.
    rustix::fs::removexattr(union.upper("d"), "trusted.overlay.impure").unwrap();
    assert_found(&check(&union, &["--repair"]), 1, &["fault impure-missing /d (mended)"]);
    union.mount();
    assert_eq!(get(union.at("d/file")), "data");
    union.unmount();
    std::fs::remove_file(union.lower(0, "d/file")).unwrap();
    let out = check(&union, &[]);
    assert_found(&out, 4, &["fault metacopy-without-data /d/file", "note origin-dangling /d/file"]);
}

/// The entry of the index, or of the counts, of a lower file.
fn only(dir: impl AsRef<Path>) -> String {
    let names = list(dir.as_ref());
    assert_eq!(names.len(), 1, "{names:?}");
    names[0].clone()
}

#[test]
fn counts_of_names() {
    need_unionfs!();
    for wrong in [&b"U-2"[..], b"U+9", b"what"] {
        let mut union = worked_in();
        let name = only(union.work("index"));
        union.mount();
        let before = tree::read(&union.mnt());
        union.unmount();
        set_xattr(union.work("index").join(&name), "trusted.overlay.nlink", wrong);
        let class = if wrong == b"what" { "nlink-malformed" } else { "nlink-wrong" };
        let at = format!("{class} WORK/index/{name}");
        if wrong == b"U+9" {
            // How many of the names that are recorded show is not known: all that can be, count.
            mends_to(union, &[&at], "fault", None);
        } else {
            mends_to(union, &[&at], "fault", Some(&before));
        }
    }
}

#[test]
fn entries_of_the_index_that_nothing_leads_to() {
    need_unionfs!();
    let mut union = worked_in();
    let name = only(union.work("index"));
    for name in ["one", "two", "three"] {
        std::fs::remove_file(union.lower(1, name)).unwrap();
    }
    let at = format!("fault index-stale WORK/index/{name}");
    let both = [&*at, "note origin-dangling /one"];
    assert_found(&check(&union, &[]), 4, &both);
    let mended = both.map(|b| format!("{b} (mended)"));
    assert_found(&check(&union, &["--repair"]), 1, &[&mended[0], &mended[1]]);
    assert_found(&check(&union, &[]), 0, &[]);
    union.mount();
    assert_eq!(get(union.at("one")), "changed");
    union.unmount();

    // The last name of changed data is kept.
    let union = worked_in();
    std::fs::remove_file(union.upper("one")).unwrap();
    for name in ["one", "two", "three"] {
        std::fs::remove_file(union.lower(1, name)).unwrap();
    }
    told(&union, &[&at.replace(&name, &only(union.work("index")))]);

    // All names removed, the entry left by a crash.
    let mut union = worked_in();
    union.mount();
    let name = only(union.work("index"));
    let saved = union.dir().join("saved");
    let entry = union.work("index").join(&name);
    run("cp", &["-a".as_ref(), entry.as_ref(), saved.as_ref()]);
    for name in ["one", "two", "three"] {
        std::fs::remove_file(union.at(name)).unwrap();
    }
    union.unmount();
    assert!(list(union.work("index")).is_empty());
    std::fs::rename(&saved, &entry).unwrap();
    set_xattr(&entry, "trusted.overlay.nlink", b"U-1");
    mends(union, &[&format!("index-stale WORK/index/{name}")], "fault");

    let union = worked_in();
    std::fs::copy(union.lower(0, "file"), union.work("index/00fb")).unwrap();
    told(&union, &["fault index-mismatch WORK/index/00fb"]);
}

#[test]
fn counts_of_removed_names() {
    need_unionfs!();
    let union = worked_in();
    let name = only(union.work("gone"));
    let path = union.work("gone").join(&name);
    let set = |target: &str| {
        std::fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink(target, &path).unwrap();
    };
    for (wrong, right) in [("7", Some("1")), ("many", None), ("0", None)] {
        set(wrong);
        let line = format!("fault gone-wrong WORK/gone/{name}");
        assert_found(&check(&union, &[]), 4, &[&line]);
        assert_found(&check(&union, &["--repair"]), 1, &[&format!("{line} (mended)")]);
        assert_found(&check(&union, &[]), 0, &[]);
        let now = std::fs::read_link(&path).ok();
        assert_eq!(now.as_deref(), right.map(Path::new));
        if right.is_none() {
            std::os::unix::fs::symlink("1", &path).unwrap();
        }
    }
    // The file was copied up since.
    let indexed = only(union.work("index"));
    std::os::unix::fs::symlink("1", union.work("gone").join(&indexed)).unwrap();
    mends(union, &[&format!("gone-stale WORK/gone/{indexed}")], "note");
    let union = worked_in();
    let name = only(union.work("gone"));
    for name in ["left1", "left2", "left3"] {
        std::fs::remove_file(union.lower(1, name)).unwrap();
    }
    let lines = [format!("note gone-stale WORK/gone/{name}"), "note whiteout-of-nothing /left1".into()];
    assert_found(&check(&union, &[]), 0, &lines.each_ref().map(String::as_str));
    let mended = format!("{} (mended)", lines[0]);
    assert_found(&check(&union, &["--repair"]), 1, &[&mended, &lines[1]]);
    assert_found(&check(&union, &["--repair"]), 0, &[&lines[1]]);
}

/// Leaves behind what a crash does.
fn crash(union: &Union) {
    put(union.work("work/#0/deep/file"), "a directory on its way out");
    put(union.work("work/#a1"), "half");
    let origin = xattr(union.upper("dir/b"), "trusted.overlay.origin").unwrap();
    put(union.work("work/#7"), "chan");
    set_xattr(union.work("work/#7"), "trusted.overlay.origin", &origin);
    put(union.work("work/mine"), "not a leftover");
}

#[test]
fn leftovers_and_half_made_copies() {
    need_unionfs!();
    let union = worked_in();
    crash(&union);
    let expected = ["half-copy WORK/work/#7", "leftover WORK/work/#0", "leftover WORK/work/#a1"];
    let lines = expected.map(|e| format!("fault {e}"));
    assert_found(&check(&union, &[]), 4, &lines.each_ref().map(String::as_str));
    let mended = lines.each_ref().map(|e| format!("{e} (mended)"));
    assert_found(&check(&union, &["--repair"]), 1, &mended.each_ref().map(String::as_str));
    assert_found(&check(&union, &[]), 0, &[]);
    assert_eq!(list(union.work("work")), ["mine"]);
}

#[test]
fn a_mount_and_a_repair_remove_the_same() {
    need_unionfs!();
    let (mut mounted, repaired) = (worked_in(), worked_in());
    crash(&mounted);
    crash(&repaired);
    mounted.mount();
    mounted.unmount();
    assert_found(&check(&mounted, &[]), 0, &[]);
    check(&repaired, &["--repair"]);
    assert_eq!(list(mounted.work("work")), list(repaired.work("work")));
}

#[test]
fn the_mark_of_a_volatile_mount() {
    need_unionfs!();
    let union = worked_in();
    dir(union.work("work/incompat/volatile"));
    told(&union, &["fault volatile WORK/work/incompat/volatile"]);
}

#[test]
fn marks_of_the_other_namespace() {
    need_unionfs!();
    let union = worked_in();
    set_xattr(union.upper("new"), "user.overlay.redirect", b"/dir");
    assert_found(&check(&union, &[]), 0, &["note foreign-marks /"]);
}

#[test]
fn a_mounted_layer_is_told_of_and_not_repaired() {
    need_unionfs!();
    let union = worked_in().mounted();
    put(union.work("work/#77"), "in the making");
    let out = check(&union, &[]);
    assert_found(&out, 0, &[]);
    assert!(text(&out).contains("a live mount uses the layer"), "{}", text(&out));
    for arg in [&["--repair"][..], &["--convert", "overlay"]] {
        let out = check(&union, arg);
        assert_eq!(out.status.code(), Some(8), "{}", text(&out));
        assert!(text(&out).contains("is in use by a live mount"), "{}", text(&out));
    }
    assert!(exists(union.work("work/#77")));
}

#[test]
fn without_lowers_the_rest_is_checked() {
    need_unionfs!();
    let union = worked_in();
    whiteout(union.upper("dir/none"));
    set_xattr(union.upper("dir"), "trusted.overlay.opaque", b"maybe");
    put(union.work("work/#0"), "");
    let out = unionfs().arg("check").arg("--upper").arg(union.upper("")).output().unwrap();
    assert_found(&out, 4, &["fault opaque-malformed /dir"]);
    assert!(text(&out).contains("no lower layers are named"), "{}", text(&out));
    // The default place of the work directory.
    std::fs::rename(union.work(""), union.dir().join(".upper.work")).unwrap();
    let mut command = unionfs();
    let out = command.args(["check", "--repair", "--upper"]).arg(union.upper("")).output().unwrap();
    assert_found(&out, 1, &["fault opaque-malformed /dir (mended)", "fault leftover WORK/work/#0 (mended)"]);
}

#[test]
fn statuses_are_those_of_fsck() {
    let status = |args: &[&str]| unionfs().arg("check").args(args).output().unwrap().status.code();
    assert_eq!(status(&["--nonsense"]), Some(16));
    assert_eq!(status(&[]), Some(16));
    assert_eq!(status(&["--upper", "/", "--repair", "--convert", "aufs"]), Some(16));
    assert_eq!(status(&["--upper", "/no/such/dir"]), Some(8));
    assert_eq!(status(&["--help"]), Some(0));
}

#[test]
fn names_are_quoted_and_json_has_their_bytes() {
    need_mount!();
    use std::os::unix::ffi::OsStrExt;
    let union = Union::new(1);
    let name = std::ffi::OsStr::from_bytes(b"new\nline\xff\x1b[31m");
    dir(union.upper("").join(name));
    set_xattr(union.upper("").join(name), "trusted.overlay.opaque", b"z\n");
    let out = check(&union, &[]);
    let said = String::from_utf8(out.stdout).unwrap();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("fault opaque-malformed \"/new\\nline\\xFF\\u{1b}[31m\": "), "{said}");
    let out = check(&union, &["--json"]);
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(json[0]["class"], "opaque-malformed");
    assert_eq!(json[0]["level"], "fault");
    assert_eq!(json[0]["mended"], false);
    assert_eq!(json[0]["path_hex"], "2f6e65770a6c696e65ff1b5b33316d");
    rustix::fs::removexattr(union.upper("").join(name), "trusted.overlay.opaque").unwrap();
    let out = check(&union, &["--json"]);
    assert_eq!(serde_json::from_slice::<serde_json::Value>(&out.stdout).unwrap(), serde_json::json!([]));
}

/// A repair that is killed at any point leaves a layer that the next one finishes.
#[test]
fn an_interrupted_repair_goes_on() {
    need_unionfs!();
    for delay in [0, 1, 2, 4, 8] {
        let mut union = worked_in();
        for i in 0..300 {
            dir(union.upper(format!("many/{i}")));
            set_xattr(union.upper(format!("many/{i}")), "trusted.overlay.opaque", b"w");
            put(union.work(format!("work/#b{i}/x")), "");
        }
        crash(&union);
        union.mount();
        let before = tree::read(&union.mnt());
        union.unmount();
        crash(&union);
        let mut child = command(&union).arg("--repair").stdout(std::process::Stdio::null()).spawn().unwrap();
        std::thread::sleep(std::time::Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
        let out = check(&union, &["--repair"]);
        assert!(matches!(out.status.code(), Some(0 | 1)), "{}", text(&out));
        assert_found(&check(&union, &[]), 0, &[]);
        union.mount();
        tree::assert_same("repaired", &before, &tree::read(&union.mnt()));
        assert!(union.at("dir/b").metadata().unwrap().size() > 0);
        union.unmount();
    }
}
