//! `unionfs diff` against a comparison of the whole trees.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::common::files::*;
use crate::common::{Union, text, tree, unionfs};
use crate::need_unionfs;
use crate::oracle;
use crate::random::Random;

/// The lines of `unionfs diff` for the layers of a union.
pub fn lines(union: &Union) -> Vec<String> {
    let mut command = unionfs();
    command.arg("diff").arg("--upper").arg(union.upper("")).arg("--lower").arg(union.lower_list());
    command.arg("--work").arg(union.work(""));
    if union.init("").exists() {
        command.arg("--init").arg(union.init(""));
    }
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    String::from_utf8(out.stdout).unwrap().lines().map(String::from).collect()
}

/// The tree that the lowers alone make.
pub fn before(union: &Union) -> tree::Tree {
    let lowers = Union::new(0);
    for i in 0..union.lowers() {
        std::os::unix::fs::symlink(union.lower(i, ""), lowers.dir().join(format!("l{i}"))).unwrap();
    }
    let list = union.lower_list();
    let out = unionfs().args(["mount", "--read-only"]).arg(list).arg(lowers.mnt()).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let tree = tree::read(&lowers.mnt());
    lowers.unmount();
    tree
}

fn check(union: &Union) {
    let expected = oracle::changes(&before(union), &tree::read(&union.mnt()));
    let lines = lines(union);
    let found: BTreeSet<String> = lines.iter().cloned().collect();
    assert_eq!(found.len(), lines.len(), "told twice: {lines:?}");
    let missing: Vec<_> = expected.difference(&found).collect();
    let wrong: Vec<_> = found.difference(&expected).collect();
    assert!(missing.is_empty() && wrong.is_empty(), "missing {missing:?}, wrong {wrong:?}");
}

fn sample(lowers: usize) -> Union {
    let union = Union::new(lowers);
    let last = lowers - 1;
    put(union.lower(last, "etc/passwd"), "root");
    put(union.lower(last, "etc/group"), "wheel");
    put(union.lower(last, "usr/bin/tool"), "tool");
    put(union.lower(last, "usr/lib/a/1"), "1");
    put(union.lower(last, "usr/lib/a/2"), "2");
    put(union.lower(last, "one"), "linked");
    std::fs::hard_link(union.lower(last, "one"), union.lower(last, "usr/two")).unwrap();
    std::fs::hard_link(union.lower(last, "one"), union.lower(last, "three")).unwrap();
    if lowers > 1 {
        put(union.lower(0, "usr/lib/a/3"), "3");
        whiteout(union.lower(0, "usr/lib/a/1"));
    }
    union
}

#[test]
fn tells_additions_changes_and_deletions() {
    need_unionfs!();
    let union = sample(2).mounted();
    put(union.at("new/dir/file"), "x");
    put(union.at("etc/passwd"), "changed");
    std::fs::remove_file(union.at("etc/group")).unwrap();
    std::fs::remove_dir_all(union.at("usr/lib/a")).unwrap();
    assert_eq!(
        lines(&union),
        [
            "C /etc",
            "D /etc/group",
            "C /etc/passwd",
            "A /new",
            "A /new/dir",
            "A /new/dir/file",
            "C /usr",
            "C /usr/lib",
            "D /usr/lib/a"
        ]
    );
    check(&union);
}

#[test]
fn what_was_only_copied_up_is_no_change() {
    need_unionfs!();
    let union = sample(1).mounted();
    drop(std::fs::OpenOptions::new().write(true).open(union.at("usr/bin/tool")).unwrap());
    assert!(exists(union.upper("usr/bin/tool")));
    assert_eq!(lines(&union), [""; 0]);
    // A content that stat(2) does not tell from the old one.
    let meta = union.at("etc/passwd").metadata().unwrap();
    put(union.at("etc/passwd"), "toor");
    let times = std::fs::FileTimes::new().set_modified(meta.modified().unwrap());
    std::fs::File::options().write(true).open(union.at("etc/passwd")).unwrap().set_times(times).unwrap();
    set_xattr(union.at("usr/bin"), "user.x", b"1");
    chmod(union.at("usr/lib/a"), 0o700);
    chmod(union.mnt(), 0o711);
    assert_eq!(
        lines(&union),
        ["C /", "C /etc", "C /etc/passwd", "C /usr", "C /usr/bin", "C /usr/lib", "C /usr/lib/a"]
    );
    check(&union);
}

#[test]
fn opaque_directories_lose_only_what_is_gone() {
    need_unionfs!();
    let union = sample(2).mounted();
    std::fs::remove_dir_all(union.at("usr/lib/a")).unwrap();
    put(union.at("usr/lib/a/2"), "2 anew");
    put(union.at("usr/lib/a/4"), "4");
    assert!(is_opaque(union.upper("usr/lib/a")));
    assert_eq!(
        lines(&union),
        ["C /usr", "C /usr/lib", "C /usr/lib/a", "C /usr/lib/a/2", "D /usr/lib/a/3", "A /usr/lib/a/4"]
    );
    check(&union);
}

#[test]
fn renamed_directories_are_there_and_gone() {
    need_unionfs!();
    let union = sample(2).mounted();
    std::fs::rename(union.at("usr/lib"), union.at("etc/lib")).unwrap();
    std::fs::rename(union.at("etc/lib/a"), union.at("etc/lib/b")).unwrap();
    put(union.at("etc/lib/b/5"), "5");
    assert_eq!(
        lines(&union),
        [
            "C /etc",
            "A /etc/lib",
            "A /etc/lib/b",
            "A /etc/lib/b/2",
            "A /etc/lib/b/3",
            "A /etc/lib/b/5",
            "C /usr",
            "D /usr/lib"
        ]
    );
    check(&union);
}

#[test]
fn types_change() {
    need_unionfs!();
    let union = sample(2).mounted();
    std::fs::remove_dir_all(union.at("usr/lib")).unwrap();
    put(union.at("usr/lib"), "a file now");
    std::fs::remove_file(union.at("etc/passwd")).unwrap();
    put(union.at("etc/passwd/in"), "a directory now");
    assert_eq!(lines(&union), ["C /etc", "C /etc/passwd", "A /etc/passwd/in", "C /usr", "C /usr/lib"]);
    check(&union);
}

#[test]
fn a_lower_hardlink_is_changed_by_all_its_names() {
    need_unionfs!();
    let mut union = sample(1).mounted();
    put(union.at("one"), "written by one name");
    let all = ["C /one", "C /three", "C /usr", "C /usr/two"];
    assert_eq!(lines(&union), all);
    check(&union);
    // The name in the upper goes, the others stay what they are.
    std::fs::remove_file(union.at("one")).unwrap();
    union.remount();
    assert_eq!(get(union.at("three")), "written by one name");
    assert_eq!(
        lines(&union),
        ["C /three", "D /one", "C /usr", "C /usr/two"].map(String::from).to_vec().tap()
    );
    check(&union);
}

trait Tap {
    fn tap(self) -> Self;
}

impl Tap for Vec<String> {
    /// In the order of a walk.
    fn tap(mut self) -> Self {
        self.sort_by(|a, b| a[2..].cmp(&b[2..]));
        self
    }
}

#[test]
fn metacopy_files_compare_by_their_data() {
    need_unionfs!();
    let union = sample(1).option("metacopy=on").mounted();
    chmod(union.at("usr/bin/tool"), 0o700);
    assert_eq!(std::fs::read(union.upper("usr/bin/tool")).unwrap(), [0; 4]);
    assert_eq!(lines(&union), ["C /usr", "C /usr/bin", "C /usr/bin/tool"]);
    chmod(union.at("usr/bin/tool"), mode(union.lower(0, "usr/bin/tool")));
    assert_eq!(lines(&union), [""; 0]);
}

#[test]
fn the_init_layer_does_not_appear() {
    need_unionfs!();
    let union = sample(1).with_init();
    put(union.init("etc/hosts"), "localhost");
    chmod(union.init("etc"), 0o750);
    put(union.init("run/seed"), "x");
    let union = union.mounted();
    put(union.at("etc/hosts"), "another");
    std::fs::remove_file(union.at("run/seed")).unwrap();
    assert_eq!(lines(&union), [""; 0]);
    // The directory in the upper has the attributes of init's, which are not the image's.
    put(union.at("etc/new"), "x");
    assert_eq!(mode(union.upper("etc")), 0o750);
    assert_eq!(lines(&union), ["C /etc", "A /etc/new"]);
    put(union.at("run/mine"), "x");
    assert_eq!(lines(&union), ["C /etc", "A /etc/new", "A /run", "A /run/mine"]);
}

#[test]
fn json() {
    need_unionfs!();
    let union = sample(1).mounted();
    std::fs::write(union.at(PathBuf::from(std::ffi::OsString::from("new \u{e4}"))), "x").unwrap();
    std::fs::remove_file(union.at("etc/group")).unwrap();
    let mut command = unionfs();
    command.args(["diff", "--json", "--upper"]).arg(union.upper("")).arg("--lower").arg(union.lower(0, ""));
    let out = command.output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
    let expected = serde_json::json!([
        {"kind": "C", "path": "/etc", "type": "directory"},
        {"kind": "D", "path": "/etc/group"},
        {"kind": "A", "path": "/new \u{e4}", "type": "file", "size": 1},
    ]);
    assert_eq!(json, expected);
}

#[test]
fn random_changes_slow() {
    need_unionfs!();
    let seed = std::env::var("UNIONFS_IMAGES_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or(1);
    let cases = std::env::var("UNIONFS_IMAGES_CASES").ok().and_then(|s| s.parse().ok()).unwrap_or(12);
    for case in seed..seed + cases {
        let mut random = Random::new(case);
        let mut union = Union::new(1);
        for _ in 0..60 {
            random.change(&union.lower(0, ""));
        }
        // Two rounds, so that the lowers have whiteouts, opaque directories and redirects of their own.
        for round in 0..3 {
            if round > 0 {
                union = keep(union);
            }
            if case % 2 == 0 {
                union.set_options(&["metacopy=on"]);
            }
            union.mount();
            for _ in 0..10 * (round + 1) {
                random.change(&union.mnt());
            }
            union.remount();
            let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| check(&union)))
                .map_err(|e| panic!("case {case}, round {round}: {:?}", e.downcast_ref::<String>()));
            union.unmount();
        }
    }
}

/// A union whose topmost lower is what was the upper.
fn keep(union: Union) -> Union {
    let next = Union::new(union.lowers() + 1);
    for i in 0..union.lowers() {
        std::fs::remove_dir(next.lower(i + 1, "")).unwrap();
        std::fs::rename(union.lower(i, ""), next.lower(i + 1, "")).unwrap();
    }
    std::fs::remove_dir(next.lower(0, "")).unwrap();
    std::fs::rename(union.upper(""), next.lower(0, "")).unwrap();
    next
}
