//! Archives that mean harm, or make no sense: refused by the name of the entry, with nothing written anywhere.

use std::io::Write;
use std::path::Path;

use unionfs::oci::tar::{Entry, EntryKind, Writer};

use crate::common::files::*;
use crate::common::{TempDir, run, temp_dir, text, tree};
use crate::layers::{apply, told};

/// An archive with these entries; files have the content `x`.
pub fn archive(entries: &[(&str, EntryKind)]) -> Vec<u8> {
    let mut archive = Writer::new(Vec::new());
    for (path, kind) in entries {
        archive.append(&entry(path, kind.clone()), std::io::repeat(b'x')).unwrap();
    }
    archive.finish().unwrap()
}

fn entry(path: &str, kind: EntryKind) -> Entry {
    Entry { path: path.into(), kind, mode: 0o644, uid: 0, gid: 0, mtime: (1, 0), xattrs: Default::default() }
}

const FILE: EntryKind = EntryKind::File(1);

fn symlink(target: &str) -> EntryKind {
    EntryKind::Symlink(target.into())
}

fn hardlink(target: &str) -> EntryKind {
    EntryKind::Hardlink(target.into())
}

/// A directory with something beside the target that must stay as it is.
struct Yard(TempDir);

impl Yard {
    fn new() -> Self {
        let dir = temp_dir();
        put(dir.path().join("outside/secret"), "secret");
        Self(dir)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name)
    }

    /// Applies an archive, which must be refused with these words.
    fn refuses(&self, bytes: &[u8], says: &[&str]) {
        std::fs::write(self.path("layer.tar"), bytes).unwrap();
        let before = tree::fingerprint(&self.path("outside"));
        let out = apply(&self.path("layer.tar"), &self.path("layer")).output().unwrap();
        let said = text(&out);
        assert!(!out.status.success() && out.status.code() == Some(1), "{says:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{said}");
        for word in says {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert_eq!(before, tree::fingerprint(&self.path("outside")), "{says:?}: something was written");
        assert_eq!(list(self.0.path()), ["layer.tar", "outside"]);
    }
}

#[test]
fn ways_out_are_refused() {
    let yard = Yard::new();
    let outside = yard.path("outside");
    let outside = outside.to_str().unwrap();
    let dir = || EntryKind::Dir;
    for (entries, says) in [
        (vec![("/abs", FILE)], ["entry /abs: ", "absolute"]),
        (vec![("../up", FILE)], ["entry ../up: ", "`..`"]),
        (vec![("a/../../up", FILE)], ["entry a/../../up: ", "`..`"]),
        (vec![("..", dir())], ["entry ../: ", "`..`"]),
        (vec![("a", symlink(outside)), ("a/new", FILE)], ["entry a/new: ", "no directory"]),
        (vec![("a", symlink("../outside")), ("a/secret", FILE)], ["entry a/secret: ", "no directory"]),
        (
            vec![("d", dir()), ("d/a", symlink("../../outside")), ("d/a/b/c", FILE)],
            ["entry d/a/b/c: ", "d/a on its way"],
        ),
        (
            vec![("a", symlink("../outside")), ("a/.wh.secret", EntryKind::File(0))],
            ["entry a/.wh.secret: ", "no directory"],
        ),
        (
            vec![("a", symlink("../outside")), ("a/.wh..wh..opq", EntryKind::File(0))],
            ["entry a/.wh..wh..opq: ", "no directory"],
        ),
        (vec![("h", hardlink("../outside/secret"))], ["entry h: ", "out of the layer"]),
        (vec![("h", hardlink("/etc/passwd"))], ["entry h: ", "out of the layer"]),
        (vec![("a", symlink(outside)), ("h", hardlink("a/secret"))], ["entry h: ", "no directory"]),
        (vec![("h", hardlink("missing"))], ["entry h: ", "not in the layer"]),
        (vec![("d", dir()), ("h", hardlink("d"))], ["entry h: ", "not in the layer"]),
        (vec![(".wh.gone", EntryKind::File(0)), ("h", hardlink("gone"))], ["entry h: ", "not in the layer"]),
        (vec![(".wh..", EntryKind::File(0))], ["entry .wh..: ", "no whiteout of a name"]),
        (vec![(".wh...", EntryKind::File(0))], ["entry .wh...: ", "no whiteout of a name"]),
        (vec![(".wh.", EntryKind::File(0))], ["entry .wh.: ", "no whiteout of a name"]),
        (vec![("d/.wh.x/in", FILE)], ["entry d/.wh.x/in: ", "lies in a whiteout"]),
        (vec![(".", FILE)], ["entry .: ", "the root and no directory"]),
        (vec![("f", FILE), ("f/in", FILE)], ["entry f/in: ", "f on its way"]),
    ] {
        yard.refuses(&archive(&entries), &says);
    }
    let deep = vec!["d"; 3000].join("/");
    yard.refuses(&archive(&[(&deep, FILE)]), &["deeper than 2048"]);
    let long = "n".repeat(256);
    yard.refuses(&archive(&[(&long, FILE)]), &["cannot be made"]);
}

#[test]
fn damaged_archives_are_refused() {
    let yard = Yard::new();
    let good = archive(&[("a", EntryKind::File(2000)), ("b", FILE)]);
    yard.refuses(&good[..700], &["layer.tar: ", "ends in the middle"]);
    yard.refuses(&good[..512 * 5 + 100], &["ends in the middle"]);
    yard.refuses(b"no archive at all", &["ends in the middle"]);
    yard.refuses(&[b'x'; 2000], &["wrong checksum"]);
    let mut damaged = good.clone();
    damaged[3] ^= 1;
    yard.refuses(&damaged, &["wrong checksum"]);
    let mut gzip = flate2_like(&good);
    gzip.truncate(gzip.len() - 10);
    yard.refuses(&gzip, &["layer.tar: "]);
    let mut sparse = tar::Header::new_gnu();
    sparse.set_entry_type(tar::EntryType::GNUSparse);
    sparse.set_path("holes").unwrap();
    sparse.set_size(0);
    sparse.set_cksum();
    yard.refuses(sparse.as_bytes(), &["entry holes: ", "--sparse"]);
}

/// Compressed by gzip(1).
fn flate2_like(bytes: &[u8]) -> Vec<u8> {
    let mut child = std::process::Command::new("gzip")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    child.wait_with_output().unwrap().stdout
}

#[test]
fn digests_are_checked() {
    let yard = Yard::new();
    let bytes = archive(&[("a", FILE)]);
    std::fs::write(yard.path("layer.tar"), &bytes).unwrap();
    let wrong = format!("sha256:{}", "0".repeat(64));
    for option in ["--digest", "--diff-id"] {
        let out =
            apply(&yard.path("layer.tar"), &yard.path("layer")).args([option, &wrong]).output().unwrap();
        assert!(!out.status.success() && text(&out).contains(&wrong), "{}", text(&out));
        assert_eq!(list(yard.0.path()), ["layer.tar", "outside"]);
    }
    let told = told(&mut apply(&yard.path("layer.tar"), &yard.path("layer")));
    assert_eq!(told["digest"], told["diff-id"]);
    let out = apply(&yard.path("layer.tar"), &yard.path("layer")).output().unwrap();
    assert!(text(&out).contains("is there already"), "{}", text(&out));
}

#[test]
fn limits_are_kept() {
    let yard = Yard::new();
    std::fs::write(yard.path("layer.tar"), archive(&[("a", FILE), ("b", EntryKind::File(5000))])).unwrap();
    for (option, value, says) in
        [("--max-entries", "1", "more than 1 entries"), ("--max-size", "5000", "entry b: ")]
    {
        let out = apply(&yard.path("layer.tar"), &yard.path("layer")).args([option, value]).output().unwrap();
        assert!(!out.status.success() && text(&out).contains(says), "{}", text(&out));
        assert_eq!(list(yard.0.path()), ["layer.tar", "outside"]);
    }
}

#[test]
fn marks_in_an_archive_are_attributes_like_any_other() {
    if let Some(reason) = crate::common::cannot_mount() {
        return crate::common::skip(&reason);
    }
    let yard = Yard::new();
    let mut archive = Writer::new(Vec::new());
    let mut dir = entry("d", EntryKind::Dir);
    dir.xattrs.insert("trusted.overlay.redirect".into(), b"/etc".to_vec());
    dir.xattrs.insert("user.overlay.opaque".into(), b"y".to_vec());
    dir.xattrs.insert("user.fuseoverlayfs.opaque".into(), b"y".to_vec());
    archive.append(&dir, std::io::empty()).unwrap();
    std::fs::write(yard.path("layer.tar"), archive.finish().unwrap()).unwrap();
    let out = apply(&yard.path("layer.tar"), &yard.path("layer")).output().unwrap();
    assert!(out.status.success() && text(&out).contains("entry d/: without the attribute"), "{}", text(&out));
    let d = yard.path("layer/d");
    assert_eq!(xattr_names(&d), ["trusted.overlay.overlay.redirect", "user.overlay.overlay.opaque"]);
}

#[test]
fn whiteouts_in_any_order() {
    if let Some(reason) = crate::common::cannot_mount() {
        return crate::common::skip(&reason);
    }
    let yard = Yard::new();
    let empty = || EntryKind::File(0);
    let bytes = archive(&[
        ("late/.wh..wh..opq", empty()),
        ("late/in", FILE),
        ("early", EntryKind::Dir),
        ("early/in", FILE),
        ("early/.wh..wh..opq", empty()),
        (".wh.gone", empty()),
        (".wh.file", empty()),
        ("file", FILE),
        ("first", FILE),
        (".wh.first", empty()),
        (".wh.dir", empty()),
        ("dir/in", FILE),
        (".wh..wh.plnk/1", FILE),
        ("twice", FILE),
        ("twice", EntryKind::Dir),
        ("twice/in", FILE),
        ("again/in", FILE),
        ("again", FILE),
        ("linked", hardlink("again")),
    ]);
    std::fs::write(yard.path("layer.tar"), bytes).unwrap();
    told(&mut apply(&yard.path("layer.tar"), &yard.path("layer")));
    let layer = yard.path("layer");
    assert_eq!(list(&layer), ["again", "dir", "early", "file", "first", "gone", "late", "linked", "twice"]);
    assert!(
        ["late", "early", "dir"].iter().all(|d| is_opaque(layer.join(d)) && exists(layer.join(d).join("in")))
    );
    assert!(is_whiteout(layer.join("gone")) && !is_opaque(layer.join("twice")));
    assert_eq!(
        [get(layer.join("file")), get(layer.join("first")), get(layer.join("linked"))],
        ["x", "x", "x"]
    );
}

#[test]
fn hardlinks_to_layers_below_are_copies() {
    if let Some(reason) = crate::common::cannot_mount() {
        return crate::common::skip(&reason);
    }
    let yard = Yard::new();
    put(yard.path("below/etc/file"), "below");
    chmod(yard.path("below/etc/file"), 0o4711);
    chmod(yard.path("below/etc"), 0o700);
    set_xattr(yard.path("below/etc"), "user.x", b"1");
    std::fs::write(yard.path("layer.tar"), archive(&[("etc/link", hardlink("etc/file"))])).unwrap();
    let lower = yard.path("below");
    told(apply(&yard.path("layer.tar"), &yard.path("layer")).arg("--lower").arg(lower));
    let link = yard.path("layer/etc/link");
    assert_eq!((get(&link), mode(&link)), ("below".to_owned(), 0o4711));
    // A directory that the archive does not mention is as it is below.
    assert_eq!(
        (mode(yard.path("layer/etc")), xattr(yard.path("layer/etc"), "user.x")),
        (0o700, Some(b"1".to_vec()))
    );
    assert_eq!(get(yard.path("below/etc/file")), "below");
}

#[test]
fn owners_are_mapped_or_kept_aside() {
    if let Some(reason) = crate::common::cannot_mount() {
        return crate::common::skip(&reason);
    }
    use std::os::unix::fs::MetadataExt;
    let yard = Yard::new();
    let mut archive = Writer::new(Vec::new());
    let owned = Entry { uid: 5, gid: 7, mode: 0o4050, ..entry("f", FILE) };
    archive.append(&owned, std::io::repeat(b'x')).unwrap();
    let bytes = archive.finish().unwrap();
    std::fs::write(yard.path("layer.tar"), &bytes).unwrap();
    let maps = ["--uid-map", "0:1000:10", "--gid-map", "7:70:1", "--gid-map", "0:0:1"];
    told(apply(&yard.path("layer.tar"), &yard.path("layer")).args(maps));
    let meta = yard.path("layer/f").metadata().unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (1005, 70, 0o4050));
    let out =
        apply(&yard.path("layer.tar"), &yard.path("other")).args(["--uid-map", "0:1000:5"]).output().unwrap();
    assert!(text(&out).contains("entry f: belongs to 5:7"), "{}", text(&out));
    let device = archive_with_device(&bytes);
    std::fs::write(yard.path("layer.tar"), device).unwrap();
    told(apply(&yard.path("layer.tar"), &yard.path("rootless")).arg("--rootless"));
    let value =
        |name: &str| xattr(yard.path("rootless").join(name), "user.containers.override_stat").unwrap();
    assert_eq!(value("f"), b"5:7:04050:file");
    assert_eq!(value("null"), b"0:0:0644:char-1-3");
    assert!(yard.path("rootless/null").metadata().unwrap().is_file());
}

fn archive_with_device(first: &[u8]) -> Vec<u8> {
    let device = archive(&[("null", EntryKind::Char(1, 3))]);
    // Without the end of the first one.
    [&first[..first.len() - 1024], &device].concat()
}

#[test]
fn without_privilege() {
    if let Some(reason) = crate::common::cannot_mount() {
        return crate::common::skip(&reason);
    }
    let dir = tempfile::tempdir().unwrap();
    chmod(dir.path(), 0o777);
    let at = |name: &str| dir.path().join(name);
    let program = at("unionfs");
    std::fs::copy(env!("CARGO_BIN_EXE_unionfs"), &program).unwrap();
    chmod(&program, 0o755);
    let as_nobody = |args: &[&Path]| {
        let mut command = std::process::Command::new("setpriv");
        command
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"])
            .arg(&program)
            .arg("apply");
        command.args(args).output().unwrap()
    };
    for (name, kind, says) in [
        ("f", FILE, "belongs to 0:0"),
        ("dev", EntryKind::Char(1, 3), "is a device, which this user may not make"),
    ] {
        std::fs::write(at("layer.tar"), archive(&[(name, kind)])).unwrap();
        let out = as_nobody(&[&at("layer.tar"), &at("layer")]);
        assert!(!out.status.success() && text(&out).contains(says), "{}", text(&out));
        assert_eq!(list(dir.path()), ["layer.tar", "unionfs"]);
    }
    std::fs::write(
        at("layer.tar"),
        archive(&[("d", EntryKind::Dir), ("d/f", FILE), (".wh.gone", EntryKind::File(0))]),
    )
    .unwrap();
    let out = as_nobody(&[Path::new("--rootless"), &at("layer.tar"), &at("layer")]);
    assert!(out.status.success(), "{}", text(&out));
    assert_eq!(get(at("layer/d/f")), "x");
    assert!(is_whiteout(at("layer/gone")) || xattr(at("layer/gone"), "user.overlay.whiteout").is_some());
}

#[test]
fn what_a_crash_leaves_is_removed() {
    let yard = Yard::new();
    std::fs::write(yard.path("layer.tar"), archive(&[("a", FILE)])).unwrap();
    put(yard.path(".layer.applying/work/#0/half"), "made");
    told(&mut apply(&yard.path("layer.tar"), &yard.path("layer")));
    assert_eq!(list(yard.0.path()), ["layer", "layer.tar", "outside"]);
    assert_eq!(run("ls", &[yard.path("layer").as_ref()]), "a\n");
}
