//! Ways out of a layer.

use std::os::unix::fs::symlink;

use crate::common::files::{dir, exists, list, put, set_xattr, whiteout};
use crate::common::tree::fingerprint;
use crate::{Canary, check_alive, logged, mount, need_mount, need_ours, peer, tells, try_mount, use_all};

#[test]
fn redirects_lead_nowhere_outside() {
    need_mount!();
    let union = logged(3);
    let canary = Canary::beside(&union);
    let outside = canary.dir().to_str().unwrap().to_owned();
    symlink("../outside", union.lower(2, "way-out")).unwrap();
    symlink(&outside, union.lower(2, "absolute")).unwrap();
    put(union.lower(2, "f"), "x");
    let redirects = [
        "/../outside",
        "/../../outside",
        "../outside",
        "..",
        ".",
        "/.",
        "/",
        "//",
        "/way-out/dir",
        "/way-out",
        "/absolute/dir",
        "way-out",
        "absolute",
        &outside,
        "/proc/self/root",
        "/f/..",
        "/way-out/../outside",
    ];
    for (i, redirect) in redirects.iter().enumerate() {
        for layer in [union.upper(""), union.lower(0, ""), union.lower(1, "")] {
            let path = layer.join(format!("{i}"));
            dir(&path);
            set_xattr(&path, "trusted.overlay.redirect", redirect.as_bytes());
            // A file whose data is said to be there.
            let path = layer.join(format!("{i}.file"));
            put(&path, [0; 28]);
            set_xattr(&path, "trusted.overlay.metacopy", b"");
            set_xattr(&path, "trusted.overlay.redirect", format!("{redirect}/secret").as_bytes());
        }
    }
    for layer in [union.upper(""), union.lower(0, ""), union.lower(1, "")] {
        set_xattr(layer, "trusted.overlay.impure", b"y");
    }
    mount(&union);
    let (contents, count) = use_all(&union.mnt());
    assert!(!tells(&contents));
    assert!(count < 300, "{count} objects");
    for (i, redirect) in redirects.iter().enumerate() {
        assert!(!exists(union.at(format!("{i}/secret"))), "{redirect}");
        let _ = std::fs::write(union.at(format!("{i}/secret")), "overwritten");
        let _ = std::fs::remove_dir_all(union.at(format!("{i}")));
    }
    check_alive(&union);
    union.unmount();
    canary.check();
}

#[test]
fn symlinks_in_the_place_of_directories() {
    need_mount!();
    let union = logged(2);
    let canary = Canary::beside(&union);
    // The layers below have directories where those above have ways out, and the other way round.
    symlink("../outside", union.upper("a")).unwrap();
    put(union.lower(0, "a/dir/secret"), "of the lower");
    put(union.lower(0, "b/dir/secret"), "of the lower");
    symlink("../outside", union.lower(1, "b")).unwrap();
    put(union.lower(1, "c/dir/secret"), "of the lower");
    symlink("../outside", union.lower(0, "c")).unwrap();
    mount(&union);
    // What a client makes of a symlink is the client's affair; the daemon has it as it is.
    for name in ["a", "c"] {
        assert_eq!(std::fs::read_link(union.at(name)).unwrap(), std::path::Path::new("../outside"));
    }
    assert_eq!(list(union.at("b/dir")), ["secret"]);
    std::fs::write(union.at("b/dir/secret"), "changed").unwrap();
    std::fs::remove_file(union.at("c")).unwrap();
    std::fs::create_dir(union.at("c")).unwrap();
    put(union.at("c/dir/secret"), "new");
    // fuse-overlayfs renames no directory of a lower.
    if peer().is_none() {
        std::fs::rename(union.at("b"), union.at("moved")).unwrap();
        assert_eq!(crate::common::files::get(union.at("moved/dir/secret")), "changed");
    }
    check_alive(&union);
    union.unmount();
    canary.check();
}

#[test]
fn a_work_directory_full_of_symlinks() {
    need_mount!();
    for name in ["work", "index", "gone"] {
        let union = logged(1);
        let canary = Canary::beside(&union);
        put(union.lower(0, "f"), "x");
        std::fs::hard_link(union.lower(0, "f"), union.lower(0, "g")).unwrap();
        symlink("../outside", union.work(name)).unwrap();
        if try_mount(&union, "").is_ok() {
            let _ = std::fs::write(union.at("f"), "changed");
            let _ = std::fs::remove_file(union.at("g"));
            union.unmount();
        }
        canary.check();
    }
    // Nor is what lies in it followed when it is cleaned.
    let union = logged(1);
    let canary = Canary::beside(&union);
    dir(union.work("work/#1"));
    symlink("../../../outside", union.work("work/#1/dir")).unwrap();
    symlink("../../outside", union.work("work/#2")).unwrap();
    mount(&union);
    assert!(!exists(union.work("work/#1")) && !exists(union.work("work/#2")));
    union.unmount();
    canary.check();
}

#[test]
fn whiteouts_in_roots() {
    need_ours!();
    let union = logged(2);
    let canary = Canary::beside(&union);
    for name in [
        ".wh..",
        ".wh...",
        ".wh.",
        ".wh..wh.",
        ".wh..wh..opq",
        ".wh..wh.aufs",
        ".wh..wh.plnk",
        ".wh.f",
        ".wh.\u{1}",
    ] {
        put(union.lower(0, name), "");
    }
    whiteout(union.lower(0, "g"));
    whiteout(union.upper("h"));
    for name in ["f", "g", "h", "i"] {
        put(union.lower(1, name), name);
    }
    let before = fingerprint(&union.lower(0, ""));
    mount(&union);
    // The root itself cannot be hidden.
    assert_eq!(list(union.mnt()), [""; 0]);
    for name in ["f", "g", "h", "i"] {
        assert!(!exists(union.at(name)), "{name}");
        std::fs::write(union.at(name), "new").unwrap();
    }
    assert_eq!(list(union.mnt()), ["f", "g", "h", "i"]);
    use_all(&union.mnt());
    check_alive(&union);
    union.unmount();
    assert_eq!(fingerprint(&union.lower(0, "")), before);
    canary.check();
}

#[test]
fn a_handle_in_an_origin_opens_nothing() {
    need_mount!();
    let union = logged(1);
    let canary = Canary::beside(&union);
    put(union.lower(0, "f"), "of the lower");
    std::fs::hard_link(union.lower(0, "f"), union.lower(0, "g")).unwrap();
    // The true handle of the file outside, as it is on this filesystem, in the form of an origin.
    let secret = canary.0.to_str().unwrap();
    let handle = crate::python(
        union.dir(),
        &format!(
            r#"
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
buf = ctypes.create_string_buffer(8 + 128)
ctypes.c_uint.from_buffer(buf).value = 128
mount = ctypes.c_int()
assert libc.name_to_handle_at(-100, {secret:?}.encode(), buf, ctypes.byref(mount), 0) == 0, ctypes.get_errno()
n = ctypes.c_uint.from_buffer(buf).value
kind = ctypes.c_int.from_buffer(buf, 4).value
handle = buf.raw[8:8 + n]
value = bytes([0, 0xfb, 21 + n, 0, kind & 0xff]) + bytes(16) + handle
for path in ('upper/copy', 'l0/f'):
    open(path, 'a').close()
    os.setxattr(path, 'trusted.overlay.origin', value)
open('upper/lacks', 'w').truncate(28)
os.setxattr('upper/lacks', 'trusted.overlay.origin', value)
os.setxattr('upper/lacks', 'trusted.overlay.metacopy', b'')
os.setxattr('upper', 'trusted.overlay.impure', b'y')
print(os.stat({secret:?}).st_ino)
"#
        ),
    );
    let number: u64 = handle.trim().parse().unwrap();
    mount(&union);
    // It is a number, and no more.
    let shown = std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(union.at("copy")).unwrap());
    assert!(shown == number || shown != 0);
    let (contents, _) = use_all(&union.mnt());
    assert!(!tells(&contents));
    assert!(std::fs::read(union.at("lacks")).is_err());
    std::fs::write(union.at("copy"), "changed").unwrap();
    std::fs::write(union.at("f"), "changed").unwrap();
    std::fs::remove_file(union.at("copy")).unwrap();
    check_alive(&union);
    union.unmount();
    canary.check();
}

#[test]
fn an_index_entry_of_another_type() {
    need_ours!();
    for kind in ["symlink", "fifo", "device", "directory"] {
        let union = logged(1);
        let canary = Canary::beside(&union);
        put(union.lower(0, "f"), "of the lower");
        std::fs::hard_link(union.lower(0, "f"), union.lower(0, "g")).unwrap();
        mount(&union);
        std::fs::write(union.at("f"), "changed").unwrap();
        union.unmount();
        let entry = union.work("index").join(list(union.work("index")).pop().unwrap());
        std::fs::remove_file(&entry).unwrap();
        let make = |kind, number| {
            let mode = rustix::fs::Mode::from_raw_mode(0o666);
            rustix::fs::mknodat(rustix::fs::CWD, &entry, kind, mode, number).unwrap();
        };
        match kind {
            "symlink" => symlink("../../outside/secret", &entry).unwrap(),
            "fifo" => make(rustix::fs::FileType::Fifo, 0),
            "device" => make(rustix::fs::FileType::CharacterDevice, rustix::fs::makedev(1, 5)),
            _ => dir(&entry),
        }
        mount(&union);
        // As the kernel's overlayfs answers; a directory is of another feature there.
        let shown = std::fs::read(union.at("g"));
        match kind {
            "directory" => assert_eq!(shown.unwrap(), b"of the lower"),
            _ => assert_eq!(shown.unwrap_err().raw_os_error(), Some(libc::EIO), "{kind}"),
        }
        assert_eq!(std::fs::read(union.at("f")).unwrap(), b"changed");
        assert!(kind == "directory" || std::fs::write(union.at("g"), "x").is_err());
        let _ = std::fs::remove_file(union.at("g"));
        check_alive(&union);
        union.unmount();
        canary.check();
    }
}
