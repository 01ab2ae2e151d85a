//! Private attributes that nobody sane has written.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::common::Union;
use crate::common::files::{dir, put, set_xattr, whiteout};
use crate::common::tree::fingerprint;
use crate::{
    Canary, check_alive, log_of, logged, mount, need_mount, need_ours, peer, take_apart, tells, try_mount,
    use_all,
};

const NAMES: [&str; 13] = [
    "overlay.opaque",
    "overlay.redirect",
    "overlay.origin",
    "overlay.impure",
    "overlay.nlink",
    "overlay.whiteout",
    "overlay.metacopy",
    "overlay.protattr",
    "overlay.uuid",
    "overlay.upper",
    "overlay.unionfs.plain",
    "overlay.overlay.redirect",
    "overlay.",
];
/// Those that keep owners, whole names.
const OWNERS: [&str; 3] = [
    "user.containers.override_stat",
    "user.fuseoverlayfs.override_stat",
    "security.fuseoverlayfs.override_stat",
];

/// Bytes that look random, the same each time.
fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    let mut next = || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as u8
    };
    (0..length).map(|_| next()).collect()
}

/// `struct ovl_fb` with a handle of this length and content.
fn origin(handle: &[u8], told: u8) -> Vec<u8> {
    let mut value = vec![0, 0xfb, told, 0, 1];
    value.extend([0; 16]);
    value.extend_from_slice(handle);
    value
}

fn values() -> Vec<Vec<u8>> {
    let mut all: Vec<Vec<u8>> = [
        &b""[..],
        b"y",
        b"x",
        b"n",
        b"\0",
        b"yy",
        b"\xff",
        b"/",
        b"//",
        b"..",
        b"../secret",
        b"/../../outside",
        b"/outside/../outside",
        b"a/b",
        b".",
        b"/./x",
        b"/x/",
        b"name\0/../x",
        b"/x\0",
        b"U+1",
        b"U-99999999999999999999",
        b"L+0",
        b"U",
        b"0:0:7777",
        b"0:0:104755",
        b"-1:-1:0",
        b"99999999999:0:755",
        b"0:0:",
        b"0:0:755:char-1-5",
        b"::",
    ]
    .iter()
    .map(|v| v.to_vec())
    .collect();
    all.push(vec![b'a'; 256]);
    all.push([b"/".to_vec(), vec![b'a'; 300]].concat());
    all.push(b"/d".repeat(700));
    all.push(vec![b'/'; 2000]);
    all.push(noise(1, 1));
    all.push(noise(40, 2));
    all.push(noise(2000, 3));
    all.push(origin(&[], 21));
    all.push(origin(&noise(8, 4), 29));
    all.push(origin(&noise(8, 5), 255));
    all.push(origin(&noise(8, 6), 0));
    all.push(origin(&[0xff; 128], 149));
    all
}

/// A lower, and an upper that has part of it.
fn layers(owner: &str) -> Union {
    let union = logged(2).option(owner);
    for layer in [union.upper(""), union.lower(0, ""), union.lower(1, "")] {
        put(layer.join("d/file"), "content");
        put(layer.join("d/empty"), "");
        put(layer.join("file"), "content");
        std::fs::hard_link(layer.join("file"), layer.join("again")).unwrap();
        dir(layer.join("e/f/g"));
        set_xattr(layer.join("d"), "trusted.overlay.impure", b"y");
        std::os::unix::fs::symlink("../outside", layer.join("d/link")).unwrap();
        whiteout(layer.join("d/hidden"));
    }
    union
}

/// A lower as it is; access times are ours alone to keep.
fn lower(union: &Union, i: usize) -> BTreeMap<PathBuf, Vec<i64>> {
    let mut all = fingerprint(&union.lower(i, ""));
    if peer().is_some() {
        all.values_mut().for_each(|values| drop(values.splice(8..10, [])));
    }
    all
}

/// Mounts, uses everything, and looks whether that went well.
fn survives(union: Union, what: &str) {
    let canary = Canary::beside(&union);
    let before: Vec<_> = (0..2).map(|i| lower(&union, i)).collect();
    if let Err(said) = try_mount(&union, "") {
        // A root that says nonsense may be refused, in a sentence.
        assert!(
            peer().is_some()
                || said.starts_with("unionfs: ") && said.lines().count() == 1 && !said.contains("panicked"),
            "{what}: {said}"
        );
        return;
    }
    let (contents, count) = use_all(&union.mnt());
    assert!(!tells(&contents), "{what}: the secret was read");
    assert!(count < 100, "{what}: {count} objects in a tree of some twenty");
    take_apart(&union.at("d"));
    take_apart(&union.mnt());
    check_alive(&union);
    union.unmount();
    canary.check();
    for (i, before) in before.iter().enumerate() {
        assert_eq!(&lower(&union, i), before, "{what}: lower {i} has changed");
    }
    let log = std::fs::read_to_string(log_of(&union)).unwrap_or_default();
    assert!(!log.contains("panicked"), "{what}: {log}");
}

/// All values of a mark in a layer, each on a directory and on a file of its own.
fn crafted(union: &Union, full: &str, layer: usize) {
    let root = if layer == 0 { union.upper("") } else { union.lower(layer - 1, "") };
    for (i, value) in values().iter().enumerate() {
        // Some are alone, some lie over those of other layers.
        let name = if i % 2 == 0 { format!("{i}") } else { format!("{i}-{layer}") };
        let (directory, file) = (root.join(format!("e/{name}")), root.join(format!("e/{name}.f")));
        dir(&directory);
        put(&file, "content");
        for path in [directory, file] {
            // Longer ones than the filesystem takes are not to be met there.
            let _ = rustix::fs::lsetxattr(&path, full, value, rustix::fs::XattrFlags::empty());
        }
    }
}

fn in_entries(namespace: &str) {
    for name in NAMES {
        let full = format!("{namespace}.{name}");
        let union = layers("index=on");
        for layer in 0..3 {
            crafted(&union, &full, layer);
        }
        let canary = Canary::beside(&union);
        mount(&union);
        let (contents, count) = use_all(&union.mnt());
        assert!(!tells(&contents), "{full}: the secret was read");
        assert!(count < 1000, "{full}: {count} objects");
        take_apart(&union.at("e"));
        check_alive(&union);
        union.unmount();
        canary.check();
    }
}

#[test]
fn of_any_value_on_entries_in_the_own_namespace() {
    need_mount!();
    in_entries("trusted");
}

#[test]
fn of_any_value_on_entries_in_the_namespace_of_users() {
    need_mount!();
    in_entries("user");
}

#[test]
fn of_any_value_on_roots() {
    need_mount!();
    for name in &NAMES[..8] {
        // Each mount takes one value: the telling ones.
        for value in [&b""[..], b"y", b"..", &noise(300, 9)] {
            let union = layers("index=on");
            let full = format!("trusted.{name}");
            for root in [union.upper(""), union.lower(0, "")] {
                let _ = rustix::fs::lsetxattr(&root, &full, value, rustix::fs::XattrFlags::empty());
            }
            survives(union, &format!("{full}={value:?}"));
        }
    }
}

#[test]
fn that_keep_owners_may_say_anything() {
    need_ours!();
    for option in ["xattr_permissions=2", "xattr_permissions=1", "xattr_permissions=0"] {
        for name in OWNERS {
            let union = layers(option);
            set_xattr(union.lower(0, ""), name, b"0:0:755");
            for (i, value) in values().iter().enumerate() {
                let path = union.lower(0, format!("e/{i}"));
                put(&path, "content");
                let _ = rustix::fs::lsetxattr(&path, name, value, rustix::fs::XattrFlags::empty());
            }
            let union = union;
            mount(&union);
            use_all(&union.mnt());
            take_apart(&union.at("e"));
            check_alive(&union);
        }
    }
}

#[test]
fn in_the_work_directory() {
    need_mount!();
    let union = layers("index=on");
    // What others than the daemon have put there.
    for (i, value) in values().iter().enumerate() {
        let path = union.work(format!("index/{i}"));
        put(&path, value);
        for mark in ["nlink", "origin", "metacopy", "upper"] {
            let _ = rustix::fs::lsetxattr(
                &path,
                format!("trusted.overlay.{mark}"),
                value,
                rustix::fs::XattrFlags::empty(),
            );
        }
        dir(union.work("gone"));
        let text = String::from_utf8_lossy(value).replace('\0', "");
        let _ = std::os::unix::fs::symlink(text, union.work(format!("gone/{i}")));
        put(union.work(format!("work/#{i}/{i}")), value);
    }
    survives(union, "crafted work directory");
}
