//! The image store, with images made by buildah, and its own read by podman, skopeo and umoci.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::files::*;
use crate::common::{TempDir, Union, run, skip, temp_dir, text, unionfs};
use crate::hostile::archive;
use crate::need_unionfs;
use unionfs::oci::tar::EntryKind;

/// Storage of podman and buildah of a test's own, and a store of ours.
struct Yard(TempDir);

impl Yard {
    fn new() -> Self {
        Self(temp_dir())
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Runs buildah or podman; gives what it prints.
    fn engine(&self, program: &str, args: &[&str]) -> String {
        let mut command = Command::new(program);
        command.arg("--root").arg(self.path("root")).arg("--runroot").arg(self.path("run"));
        let out = command.args(["--storage-driver", "overlay"]).args(args).output().unwrap();
        assert!(out.status.success(), "{program} {args:?}: {}", text(&out));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }

    fn image(&self, args: &[&str]) -> String {
        let out = unionfs().args(["image", "--store"]).arg(self.path("store")).args(args).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", text(&out));
        String::from_utf8(out.stdout).unwrap()
    }

    fn refuses(&self, args: &[&str], says: &str) {
        let out = unionfs().args(["image", "--store"]).arg(self.path("store")).args(args).output().unwrap();
        assert!(out.status.code() == Some(1) && text(&out).contains(says), "{args:?}: {}", text(&out));
    }

    /// Two images of two layers, of which they share the lower.
    fn build(&self) {
        let container = self.engine("buildah", &["from", "scratch"]);
        let root = PathBuf::from(self.engine("buildah", &["mount", &container]));
        put(root.join("etc/passwd"), "root");
        put(root.join("usr/lib/one"), "1");
        put(root.join("usr/lib/two"), "2");
        put(root.join("usr/lib/three"), "3");
        std::fs::hard_link(root.join("usr/lib/one"), root.join("usr/lib/hard")).unwrap();
        std::os::unix::fs::symlink("two", root.join("usr/lib/soft")).unwrap();
        std::os::unix::fs::lchown(root.join("usr/lib/three"), Some(12), Some(34)).unwrap();
        set_xattr(root.join("usr/lib/two"), "security.capability", &CAPABILITY);
        dir(root.join("tmp"));
        put(root.join("tmp/old"), "old");
        chmod(root.join("tmp"), 0o1777);
        self.engine("buildah", &["commit", "-q", &container, "localhost/base:1"]);
        self.engine("buildah", &["umount", &container]);
        let first = self.engine("buildah", &["from", "localhost/base:1"]);
        let root = PathBuf::from(self.engine("buildah", &["mount", &first]));
        std::fs::remove_file(root.join("usr/lib/three")).unwrap();
        std::fs::remove_dir_all(root.join("tmp")).unwrap();
        put(root.join("tmp/new"), "new");
        put(root.join("etc/group"), "wheel");
        self.engine("buildah", &["config", "--cmd", "[\"/bin/sh\"]", "--env", "A=b", &first]);
        self.engine("buildah", &["umount", &first]);
        self.engine("buildah", &["commit", "-q", &first, "localhost/two:1"]);
        let second = self.engine("buildah", &["from", "localhost/base:1"]);
        let root = PathBuf::from(self.engine("buildah", &["mount", &second]));
        std::fs::remove_file(root.join("usr/lib/three")).unwrap();
        put(root.join("etc/shadow"), "x");
        self.engine("buildah", &["umount", &second]);
        self.engine("buildah", &["commit", "-q", &second, "localhost/two:2"]);
    }
}

impl Drop for Yard {
    fn drop(&mut self) {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = |at: &&str| Path::new(at).starts_with(self.0.path());
        for at in table.lines().rev().filter_map(|l| l.split_ascii_whitespace().nth(4)).filter(below) {
            let _ = rustix::mount::unmount(at, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Why engines cannot be asked, if so.
fn no_engines() -> Option<String> {
    let missing = |program: &&str| Command::new(program).arg("--version").output().is_err();
    ["buildah", "podman", "skopeo", "umoci"].into_iter().find(missing).map(|p| format!("there is no {p}"))
}

/// What rsync(1) would have to change to make one tree of the other, but for times of directories.
fn differences(from: &Path, to: &Path) -> Vec<String> {
    let slash = |path: &Path| format!("{}/", path.display());
    let (from, to) = (slash(from), slash(to));
    let args = ["-aHAXnc", "--delete", "--itemize-changes", &from, &to].map(OsStr::new);
    run("rsync", &args).lines().filter(|l| !l.starts_with(".d..t")).map(String::from).collect()
}

#[test]
fn images_go_to_and_from_podman_slow() {
    need_unionfs!();
    if let Some(reason) = no_engines() {
        return skip(&reason);
    }
    let yard = Yard::new();
    yard.build();
    let (oci, docker) = (yard.path("oci.tar"), yard.path("docker.tar"));
    let [oci, docker] = [&oci, &docker].map(|p| p.to_str().unwrap());
    yard.engine("podman", &["save", "-q", "--format", "oci-archive", "-o", oci, "localhost/two:2"]);
    yard.engine("podman", &["save", "-q", "--format", "docker-archive", "-o", docker, "localhost/two:1"]);
    assert_eq!(yard.image(&["import", oci]), "localhost/two:2\n");
    assert_eq!(yard.image(&["import", docker]), "localhost/two:1\n");
    // The base is shared, though it came in two forms.
    assert_eq!(list(yard.path("store/layers")).len(), 3);
    assert!(!exists(yard.path("store/incoming")));

    // Diff IDs as podman has them.
    let ours: serde_json::Value = serde_json::from_str(&yard.image(&["inspect", "localhost/two:1"])).unwrap();
    let theirs: serde_json::Value =
        serde_json::from_str(&yard.engine("podman", &["image", "inspect", "localhost/two:1"])).unwrap();
    assert_eq!(ours["RootFS"]["Layers"], theirs[0]["RootFS"]["Layers"]);
    assert_eq!(ours["Config"]["Env"], theirs[0]["Config"]["Env"]);
    assert!(yard.image(&["ls"]).contains("localhost/two:1"));

    let (upper, mnt) = (yard.path("upper"), yard.path("mnt"));
    let [upper, at] = [&upper, &mnt].map(|p| p.to_str().unwrap());
    yard.image(&["mount", "localhost/two:1", upper, at]);
    assert_eq!(list(mnt.join("tmp")), ["new"]);
    assert!(!exists(mnt.join("usr/lib/three")) && exists(mnt.join(".dockerenv")));
    put(mnt.join("made/here"), "x");
    put(mnt.join("etc/hosts"), "10.0.0.1 other");
    std::fs::remove_file(mnt.join("usr/lib/soft")).unwrap();
    std::fs::rename(mnt.join("usr/lib"), mnt.join("usr/share")).unwrap();
    put(mnt.join("usr/share/one"), "by one of two names");
    set_xattr(mnt.join("etc/passwd"), "user.a", b"b");
    assert!(yard.image(&["commit", at, "mine:1", "-m", "a message"]).starts_with("mine:1 "));
    run("umount", &[mnt.as_ref()]);

    let archive = yard.path("mine.tar");
    let out = archive.to_str().unwrap();
    yard.image(&["export", "mine:1", "-o", out]);
    yard.engine("podman", &["load", "-q", "-i", out]);
    let theirs = PathBuf::from(yard.engine("podman", &["image", "mount", "localhost/mine:1"]));
    assert_eq!(get(theirs.join("usr/share/hard")), "by one of two names");
    let history = yard.engine("podman", &["history", "--format", "{{.Comment}}", "localhost/mine:1"]);
    assert!(history.lines().any(|l| l == "a message"), "{history}");
    let inspected = run("skopeo", &["inspect".as_ref(), format!("oci-archive:{out}:mine:1").as_ref()]);
    assert!(inspected.contains("\"A=b\""), "{inspected}");
    let layout = yard.path("layout");
    dir(&layout);
    run("tar", &["-xf".as_ref(), archive.as_ref(), "-C".as_ref(), layout.as_ref()]);
    let image = format!("{}:mine:1", layout.display());
    let bundle = yard.path("bundle");
    run("umoci", &["unpack".as_ref(), "--image".as_ref(), image.as_ref(), bundle.as_ref()]);
    assert_eq!(differences(&theirs, &bundle.join("rootfs")), [""; 0]);

    // By us, without an init layer.
    let image: serde_json::Value = serde_json::from_str(&yard.image(&["inspect", "mine:1"])).unwrap();
    let mut layers: Vec<&str> =
        image["LayerPaths"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).collect();
    layers.reverse();
    let plain = Union::new(0);
    let out = unionfs().args(["mount", "--read-only", &layers.join(":")]).arg(plain.mnt()).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    // An engine decides itself about the root, which no layer mentions.
    let mut found = differences(&theirs, &plain.mnt());
    found.retain(|line| !line.ends_with(" ./"));
    assert_eq!(found, [""; 0]);
    assert!(!exists(plain.at("etc/hosts")));
    plain.unmount();
    // And from what was exported, in another store, with the same layers.
    let other = yard.path("other store");
    let out = unionfs().args(["image", "import", "--store"]).arg(&other).arg(&archive).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    let lines = text(&out);
    assert!(lines.contains("unpacking") && lines.starts_with("mine:1\n"), "{lines}");
    assert_eq!(list(other.join("layers")).len(), 3);
}

#[test]
fn what_is_no_image_leaves_the_store_clean() {
    need_unionfs!();
    let yard = Yard::new();
    yard.refuses(&["import", "/nowhere"], "image /nowhere: does not exist");
    let file = |content: &str| EntryKind::File(content.len() as u64);
    for (entries, says) in [
        (vec![("a", file("x"))], "is no image"),
        (vec![("index.json", file("x"))], "malformed index.json"),
        (vec![("manifest.json", file("x"))], "malformed manifest.json"),
        (vec![("../index.json", file("x"))], "entry ../index.json: "),
    ] {
        std::fs::write(yard.path("image.tar"), archive(&entries)).unwrap();
        yard.refuses(&["import", yard.path("image.tar").to_str().unwrap()], says);
        assert_eq!(list(yard.path("store")), ["blobs", "index.json", "layers", "oci-layout"]);
    }
    // Nothing outside of an image is read, whatever it names.
    dir(yard.path("image"));
    put(yard.path("secret"), "{}");
    for path in ["../secret", "/etc/passwd", "link"] {
        put(
            yard.path("image/manifest.json"),
            format!(r#"[{{"Config":"{path}","RepoTags":["a"],"Layers":[]}}]"#),
        );
        let _ = std::os::unix::fs::symlink("../secret", yard.path("image/link"));
        yard.refuses(&["import", yard.path("image").to_str().unwrap()], &format!("lacks {path}"));
    }
    yard.refuses(
        &["export", "none", "-o", yard.path("x.tar").to_str().unwrap()],
        "image none: is not in the store",
    );
    yard.refuses(&["mount", "none", "u", "m"], "image none: is not in the store");
    assert!(!exists(yard.path("x.tar")));
    assert_eq!(yard.image(&["ls", "--json"]), "[]\n");
}

#[test]
fn frozen_layers_become_layers_of_the_image() {
    need_unionfs!();
    let yard = Yard::new();
    let image = yard.path("image");
    let file = |content: &str| EntryKind::File(content.len() as u64);
    dir(&image);
    std::fs::write(image.join("layer.tar"), archive(&[("kept", file("k")), ("gone", file("g"))])).unwrap();
    let sum = run("sha256sum", &[image.join("layer.tar").as_ref()]);
    let id = sum.split(' ').next().unwrap();
    put(
        image.join("config.json"),
        format!(
            r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["sha256:{id}"]}}}}"#
        ),
    );
    put(
        image.join("manifest.json"),
        r#"[{"Config":"config.json","RepoTags":["base:1"],"Layers":["layer.tar"]}]"#,
    );
    yard.image(&["import", image.to_str().unwrap()]);

    let (upper, mnt) = (yard.path("upper"), yard.path("mnt"));
    let [upper, at] = [&upper, &mnt].map(|p| p.to_str().unwrap());
    let freeze = || {
        let out = unionfs().args(["commit", "--freeze"]).arg(at).output().unwrap();
        assert!(out.status.success(), "{}", text(&out));
    };
    let layers = |name: &str| {
        let image: serde_json::Value = serde_json::from_str(&yard.image(&["inspect", name])).unwrap();
        (image["RootFS"]["Layers"].as_array().unwrap().len(), image["History"].as_array().unwrap().len())
    };
    yard.image(&["mount", "base:1", upper, at]);
    put(mnt.join("first"), "1");
    put(mnt.join("kept"), "changed");
    put(mnt.join("etc/hosts"), "10.0.0.1 other");
    std::fs::remove_file(mnt.join("gone")).unwrap();
    freeze();
    // Nothing has changed since, so there is nothing for a layer of the new upper.
    yard.image(&["commit", at, "mine:1"]);
    assert_eq!(layers("mine:1"), (2, 1));
    put(mnt.join("second"), "2");
    std::fs::remove_file(mnt.join("first")).unwrap();
    freeze();
    put(mnt.join("third"), "3");
    let said = yard.image(&["commit", at, "mine:2"]);
    assert!(said.ends_with(" on base:1\n") && said.split(' ').count() == 6, "{said}");
    assert_eq!(layers("mine:2"), (4, 3));
    run("umount", &[at.as_ref()]);

    yard.image(&["mount", "mine:2", &format!("{upper}.other"), at]);
    assert_eq!(list(&mnt), [".dockerenv", "dev", "etc", "kept", "proc", "second", "sys", "third"]);
    assert_eq!(get(mnt.join("kept")), "changed");
    assert!(!get(mnt.join("etc/hosts")).contains("other"));
    // A lower that the user has put upon an image is as much a part of what is mounted.
    run("umount", &[at.as_ref()]);
    let image: serde_json::Value = serde_json::from_str(&yard.image(&["inspect", "mine:2"])).unwrap();
    let lowers: Vec<&str> =
        image["LayerPaths"].as_array().unwrap().iter().map(|p| p.as_str().unwrap()).rev().collect();
    put(yard.path("own/fourth"), "4");
    let lowers = format!("{}:{}", yard.path("own").display(), lowers.join(":"));
    let upper = format!("{upper}.third");
    dir(&upper);
    let out = unionfs().args(["mount", &lowers, &upper, at]).output().unwrap();
    assert!(out.status.success(), "{}", text(&out));
    // Of the images whose layers are at the bottom the one that has most.
    assert!(yard.image(&["commit", at, "mine:3"]).ends_with(" on mine:2\n"));
    assert_eq!(layers("mine:3"), (5, 4));
    run("umount", &[at.as_ref()]);
}

#[test]
fn random_changes_as_podman_diff_tells_them_slow() {
    need_unionfs!();
    if let Some(reason) = no_engines() {
        return skip(&reason);
    }
    let yard = Yard::new();
    yard.build();
    let archive = yard.path("two.tar");
    let archive = archive.to_str().unwrap();
    yard.engine("podman", &["save", "-q", "--format", "oci-archive", "-o", archive, "localhost/two:1"]);
    yard.image(&["import", archive]);
    let image: serde_json::Value =
        serde_json::from_str(&yard.image(&["inspect", "localhost/two:1"])).unwrap();
    let layers = image["LayerPaths"].as_array().unwrap();
    for seed in 0..5 {
        let mut union = Union::new(layers.len());
        for (i, layer) in layers.iter().rev().enumerate() {
            std::fs::remove_dir(union.lower(i, "")).unwrap();
            let name = union.dir().join(format!("l{i}"));
            std::os::unix::fs::symlink(layer.as_str().unwrap(), name).unwrap();
        }
        union.mount();
        let mut random = crate::random::Random::new(seed);
        for _ in 0..40 {
            random.change(&union.at("usr/lib"));
            random.change(&union.mnt());
        }
        for name in ["usr/lib/one", "etc/group"] {
            let _ = std::fs::remove_file(union.at(name));
        }
        // The same tree in a container.
        let container = yard.engine("podman", &["create", "localhost/two:1"]);
        let theirs = yard.engine("podman", &["mount", &container]);
        let ours = format!("{}/", union.mnt().display());
        run("rsync", &["-aHAX", "--delete", &ours, &format!("{theirs}/")].map(OsStr::new));
        let mut expected: Vec<String> =
            yard.engine("podman", &["diff", &container]).lines().map(String::from).collect();
        expected.sort();
        let mut found = crate::diff::lines(&union);
        found.sort();
        assert_eq!(found, expected, "seed {seed}");
        yard.engine("podman", &["umount", &container]);
        union.unmount();
    }
}
