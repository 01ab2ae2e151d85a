//! Owners that differ between the layers and the mount. fuse-overlayfs shows and stores the same, where it
//! does it at all.

use super::{have, helper, quiet, script, unmount};
use crate::common::files::{acl_for, dir, exists, get, list, put, set_xattr, xattr};
use crate::common::{self, Union};
use crate::{need_mount, need_unionfs};

const LAYERS: &str = "lowerdir=l0,upperdir=upper,workdir=work";
/// As container engines write it.
const MAPS: &str = "uidmapping=:0:100000:1000:1000:7:1,gidmapping=:0:200000:1000";
const ACCESS: &str = "system.posix_acl_access";
const DEFAULT: &str = "system.posix_acl_default";

fn layers() -> Union {
    let u = Union::new(1);
    for (name, uid, gid) in [("root", 0, 0), ("some", 5, 6), ("single", 1000, 999), ("none", 5000, 5000)] {
        put(u.lower(0, format!("d/{name}")), name);
        std::os::unix::fs::lchown(u.lower(0, format!("d/{name}")), Some(uid), Some(gid)).unwrap();
    }
    std::os::unix::fs::symlink("some", u.lower(0, "d/link")).unwrap();
    std::os::unix::fs::lchown(u.lower(0, "d/link"), Some(5), Some(6)).unwrap();
    u
}

/// What others see, and what a mapped user makes and changes; printed by `stat`.
const WORK: &str = r#"
    show() { stat -c '%n %u:%g %a' "$@"; }
    as() { setpriv --reuid $1 --regid $2 --clear-groups sh -euc "$3"; }
    cd mnt
    show d d/*
    chmod 777 . d
    as 100005 200006 'umask 022; : >made; mkdir dir; ln -s x link; mkfifo pipe; echo more >>d/some; ln made hard; mv d/some dir/moved'
    show made dir link pipe hard dir/moved
    chown 100007:200008 dir/moved made; chown -h 7 link; chgrp 200009 d/root
    show dir/moved made link d/root
    chown 100001:200001 dir; chmod 2775 dir; as 100001 200001 ': >dir/inherits'
    show dir dir/inherits
    ! as 100002 200002 'rm dir/inherits' 2>/dev/null
    cp -a d/root copy; show copy
"#;

fn run(u: &Union, options: &str) -> [String; 2] {
    let seen = script(u.dir(), &[], WORK);
    unmount(u);
    let stored = script(u.dir(), &[], "cd upper; find . ! -type c -printf '%p %U:%G %m\\n' | sort");
    assert_eq!(get(u.lower(0, "d/some")), "some", "{options}");
    [seen, stored]
}

fn by_us(options: &str) -> [String; 2] {
    let u = layers();
    quiet(helper(&u, &["-o", &format!("{LAYERS},{options}"), "mnt"]));
    run(&u, options)
}

#[test]
fn mapped_both_ways() {
    need_unionfs!();
    let [seen, stored] = by_us(MAPS);
    for line in [
        "d/root 100000:200000 644",
        "d/some 100005:200006 644",
        "d/link 100005:200006 777",
        "d/single 7:200999 644",
        "d/none 65534:65534 644",
        "made 100005:200006 644",
        "dir/moved 100007:200008 644",
        "d/root 100000:200009 644",
        "dir/inherits 100001:200001 644",
        "copy 100000:200009 644",
    ] {
        assert!(seen.lines().any(|l| l == line), "no line {line:?} in:\n{seen}");
    }
    for line in [
        "./made 7:8 644",
        "./dir 1:1 2775",
        "./link 1000:6 777",
        "./pipe 5:6 644",
        "./dir/moved 7:8 644",
        "./dir/inherits 1:1 644",
        "./d/root 0:9 644",
        "./copy 0:9 644",
    ] {
        assert!(stored.lines().any(|l| l == line), "no line {line:?} in:\n{stored}");
    }
}

#[test]
fn squashed() {
    need_unionfs!();
    for (options, owner) in [
        ("squash_to_root", "0:0"),
        ("squash_to_uid=3,squash_to_gid=4", "3:4"),
        ("squash_to_uid=3,squash_to_root", "3:0"),
    ] {
        let u = layers();
        quiet(helper(&u, &["-o", &format!("{LAYERS},{options}"), "mnt"]));
        let seen = script(
            u.dir(),
            &[],
            "cd mnt; : >new; chown 8:9 new; chown 8:9 d/some; stat -c %u:%g . new d d/* | sort -u",
        );
        assert_eq!(seen, format!("{owner}\n"), "{options}");
        unmount(&u);
        assert_eq!(script(u.dir(), &[], "stat -c %u:%g upper/new upper/d/some"), "8:9\n8:9\n");
    }
}

#[test]
fn entries_of_acls_are_mapped() {
    need_unionfs!();
    let u = layers();
    dir(u.lower(0, "sub"));
    set_xattr(u.lower(0, "d/some"), ACCESS, &acl_for(9, 0o640));
    set_xattr(u.lower(0, "sub"), DEFAULT, &acl_for(9, 0o750));
    quiet(helper(&u, &["-o", &format!("{LAYERS},{MAPS}"), "mnt"]));
    assert_eq!(xattr(u.at("d/some"), ACCESS), Some(acl_for(100_009, 0o640)));
    assert_eq!(xattr(u.at("sub"), DEFAULT), Some(acl_for(100_009, 0o750)));
    // Who has an entry may read.
    script(
        u.dir(),
        &["setpriv", "--reuid", "100009", "--regid", "1", "--clear-groups"],
        "cat mnt/d/some >/dev/null",
    );
    set_xattr(u.at("d/root"), ACCESS, &acl_for(100_010, 0o600));
    assert_eq!(xattr(u.upper("d/root"), ACCESS), Some(acl_for(10, 0o600)));
    set_xattr(u.at("d"), DEFAULT, &acl_for(7, 0o700));
    assert_eq!(xattr(u.upper("d"), DEFAULT), Some(acl_for(1000, 0o700)));
    // What is made inherits the entries of the layers.
    put(u.at("d/new"), "x");
    let inherited = xattr(u.upper("d/new"), ACCESS).unwrap();
    assert_eq!(inherited[4 + 8 + 4..4 + 8 + 8], 1000_u32.to_le_bytes());
    assert_eq!(xattr(u.at("d/new"), ACCESS).unwrap()[4 + 8 + 4..4 + 8 + 8], 7_u32.to_le_bytes());
    unmount(&u);
}

#[test]
fn fuse_overlayfs_sees_and_stores_the_same() {
    need_mount!();
    let Some(peer) = have("fuse-overlayfs") else { return common::skip("no fuse-overlayfs") };
    for options in [MAPS, "squash_to_uid=100005,uidmapping=0:100000:1000,gidmapping=0:200000:1000"] {
        let u = layers();
        let mut command = std::process::Command::new(&peer);
        command.args(["-o", &format!("{LAYERS},{options}"), "mnt"]).current_dir(u.dir());
        let out = command.output().unwrap();
        assert!(out.status.success(), "{}", common::text(&out));
        let theirs = run(&u, options);
        let ours = by_us(options);
        // What is below its work directory lies elsewhere.
        assert_eq!(ours[0], theirs[0], "{options}");
        let lines =
            |text: &str| text.lines().filter(|l| !l.contains(".wh.")).map(String::from).collect::<Vec<_>>();
        assert_eq!(lines(&ours[1]), lines(&theirs[1]), "{options}");
        assert!(!exists(u.at("d")) && list(u.mnt()).is_empty());
    }
}
