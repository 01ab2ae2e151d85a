//! Owners that differ between the layers and the mount. fuse-overlayfs shows and stores the same, where it
//! does it at all.

use super::{have, helper, quiet, script};
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
    u.unmount();
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
        u.unmount();
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
    u.unmount();
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

const CONTAINERS: &str = "user.containers.override_stat";
const PRIVILEGED: &str = "security.fuseoverlayfs.override_stat";

/// What programs see whose owners and permissions are kept in attributes.
const KEPT: &str = r#"
    show() { stat -c '%n %u:%g %a' "$@"; }
    as() { setpriv --reuid $1 --regid $2 --clear-groups sh -euc "$3"; }
    cd mnt
    show . d d/root d/some d/single
    chmod 777 . d
    as 5 6 'umask 027; : >made; mkdir dir; echo more >>d/some; cat d/some >/dev/null; chmod 600 made; ! cat d/single 2>/dev/null'
    show . made dir d/some
    chown 7:8 d/some made; chmod 4755 made; show made d/some
    as 7 8 'echo x >>made'; show made
    chmod 2775 dir; chown 0:9 dir; : >dir/inherits; mkdir dir/sub; show dir dir/inherits dir/sub
    mv d/root dir/moved; ln dir/moved dir/hard; show dir/moved dir/hard
    ! as 100 100 'cat d/some' 2>/dev/null
"#;

fn kept_layers(attribute: &str) -> Union {
    let u = Union::new(1);
    for (name, value) in [("root", "0:0:644"), ("some", "5:6:640"), ("single", "1000:999:0600:file")] {
        put(u.lower(0, format!("d/{name}")), name);
        set_xattr(u.lower(0, format!("d/{name}")), attribute, value.as_bytes());
    }
    set_xattr(u.lower(0, "d"), attribute, b"3:4:755");
    set_xattr(u.lower(0, ""), attribute, b"0:0:755");
    u
}

#[test]
fn owners_in_attributes() {
    need_unionfs!();
    for (option, attribute) in [("xattr_permissions=2", CONTAINERS), ("xattr_permissions=1", PRIVILEGED)] {
        let u = kept_layers(attribute);
        quiet(helper(&u, &["-o", &format!("{LAYERS},{option}"), "mnt"]));
        assert_eq!(xattr(u.upper(""), attribute).as_deref(), Some(&b"0:0:555"[..]));
        let seen = script(u.dir(), &[], KEPT);
        let wanted = ". 0:0 555\nd 3:4 755\nd/root 0:0 644\nd/some 5:6 640\nd/single 1000:999 600\n\
            . 0:0 777\nmade 5:6 600\ndir 5:6 750\nd/some 5:6 640\n\
            made 7:8 4755\nd/some 7:8 640\nmade 7:8 755\n\
            dir 0:9 2775\ndir/inherits 0:9 644\ndir/sub 0:9 2755\n\
            dir/moved 0:0 644\ndir/hard 0:0 644\n";
        assert_eq!(seen, wanted, "{option}");
        // The attribute is the layer's own.
        assert_eq!(common::files::xattr_names(u.at("made")), [""; 0]);
        let set = rustix::fs::setxattr(u.at("made"), attribute, b"0:0:4777", rustix::fs::XattrFlags::empty());
        assert_eq!(set, Err(rustix::io::Errno::OPNOTSUPP));
        u.unmount();
        let kept = |path: &str| String::from_utf8(xattr(u.upper(path), attribute).unwrap()).unwrap();
        assert_eq!(
            (kept("made"), kept("dir"), kept("d/some")),
            ("7:8:755".into(), "0:9:2775".into(), "7:8:640".into())
        );
        // The inodes are root's, and set no ID.
        let owners = script(u.dir(), &[], "find upper -printf '%U:%G\\n' | sort -u; find upper -perm /7000");
        assert_eq!(owners, "0:0\n");
        quiet(helper(&u, &["-o", &format!("{LAYERS},{option}"), "mnt"]));
        assert_eq!(
            script(u.dir(), &[], "stat -c '%u:%g %a' mnt mnt/made mnt/dir"),
            "0:0 777\n7:8 755\n0:9 2775\n"
        );
        u.unmount();
    }
}

/// A layer whose owner is anybody must not make files of root.
#[test]
fn attributes_of_users_count_when_asked_for() {
    need_unionfs!();
    let u = kept_layers(CONTAINERS);
    set_xattr(u.lower(0, "d/some"), CONTAINERS, b"0:0:4755");
    script(u.dir(), &[], "chown 5:6 l0/d/some");
    quiet(helper(&u, &["-o", LAYERS, "mnt"]));
    assert_eq!(script(u.dir(), &[], "stat -c '%u:%g %a' mnt/d/some"), "5:6 644\n");
    u.unmount();
}

#[test]
fn fuse_overlayfs_keeps_them_in_the_same_form() {
    need_mount!();
    let newer = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/bin/fuse-overlayfs");
    let peers: Vec<_> = have("fuse-overlayfs").into_iter().chain(newer.exists().then_some(newer)).collect();
    if peers.is_empty() {
        return common::skip("no fuse-overlayfs");
    }
    for peer in peers {
        // Each goes on with what the other has left.
        let u = kept_layers(CONTAINERS);
        let options = format!("{LAYERS},xattr_permissions=2");
        let theirs = || {
            let mut command = std::process::Command::new(&peer);
            let out = command.args(["-o", &options, "mnt"]).current_dir(u.dir()).output().unwrap();
            assert!(out.status.success(), "{}", common::text(&out));
        };
        let ours = || quiet(helper(&u, &["-o", &options, "mnt"]));
        // The newer one does not say of the layer that it has them, nor keeps the owner of the root.
        let show = || {
            script(u.dir(), &[], "cd mnt; find . -mindepth 1 ! -type l | sort | xargs stat -c '%n %u:%g %a'")
        };
        let change = |n: u32| {
            let text = format!(
                "cd mnt; : >new{n}; chown {n}:{n} new{n}; chmod 64{n} new{n}
                mkdir dir{n}; chown 1:2 dir{n}; chmod 1777 dir{n}; chown 9:{n} d/some; chmod 60{n} d/some"
            );
            script(u.dir(), &[], &text);
        };
        theirs();
        change(1);
        let seen = show();
        u.unmount();
        ours();
        assert_eq!(show(), seen, "{}", peer.display());
        change(2);
        let seen = show();
        u.unmount();
        theirs();
        assert_eq!(show(), seen, "{}", peer.display());
        assert!(seen.contains("./new2 2:2 642\n") && seen.contains("./dir2 1:2 1777\n"), "{seen}");
        u.unmount();
    }
}

/// Makes the directory of the first argument appear on the second with owners 0 to 65535 as 100000 to 165535.
const IDMAP: &str = r#"
import ctypes, os, signal, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(*args):
    result = libc.syscall(*args)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
ready, go = os.pipe(), os.pipe()
child = os.fork()
if child == 0:
    libc.unshare(0x10000000)
    os.write(ready[1], b'x')
    signal.pause()
os.read(ready[0], 1)
try:
    for kind in 'uid', 'gid':
        with open(f'/proc/{child}/{kind}_map', 'w') as f:
            f.write('0 100000 65536')
    namespace = os.open(f'/proc/{child}/ns/user', os.O_RDONLY)
    tree = call(428, -100, sys.argv[1].encode(), 1 | os.O_CLOEXEC)
    attr = struct.pack('QQQQ', 0x100000, 0, 0, namespace)
    call(442, tree, b'', 0x1000, attr, len(attr))
    call(429, tree, b'', -100, sys.argv[2].encode(), 4)
finally:
    os.kill(child, signal.SIGKILL)
"#;

/// Container engines translate the owners of lowers twice: by the mount that these are on, and by our options.
#[test]
fn lowers_on_idmapped_mounts() {
    need_unionfs!();
    let u = layers();
    dir(u.dir().join("mapped"));
    set_xattr(u.lower(0, "d/some"), ACCESS, &acl_for(9, 0o640));
    let mut command = std::process::Command::new("python3");
    command.args(["-c", IDMAP]).arg(u.lower(0, "")).arg(u.dir().join("mapped"));
    let out = command.output().unwrap();
    if !out.status.success() {
        return common::skip(&format!("the kernel has no idmapped mounts: {}", common::text(&out)));
    }
    let maps = "uidmapping=:0:100000:65536,gidmapping=:0:100000:65536";
    quiet(helper(&u, &["-o", &format!("lowerdir=mapped,upperdir=upper,workdir=work,{maps}"), "mnt"]));
    let show = || script(u.dir(), &[], "cd mnt/d; stat -c '%n %u:%g %a' *");
    let seen = show();
    for line in [
        "root 100000:100000 644",
        "some 100005:100006 670",
        "none 105000:105000 644",
        "link 100005:100006 777",
    ] {
        assert!(seen.lines().any(|l| l == line), "no line {line:?} in:\n{seen}");
    }
    assert_eq!(xattr(u.at("d/some"), ACCESS), Some(acl_for(100_009, 0o640)));
    // Copied up, all is as it was, and the upper has the owners of the layers.
    script(u.dir(), &[], "cd mnt/d; for name in *; do touch -h -d @1 $name; done");
    assert_eq!(show(), seen);
    assert_eq!(xattr(u.at("d/some"), ACCESS), Some(acl_for(100_009, 0o640)));
    assert_eq!(xattr(u.upper("d/some"), ACCESS), Some(acl_for(9, 0o640)));
    u.unmount();
    let stored =
        script(u.dir(), &[], "stat -c '%n %u:%g' upper/d/root upper/d/some upper/d/none upper/d/link");
    assert_eq!(stored, "upper/d/root 0:0\nupper/d/some 5:6\nupper/d/none 5000:5000\nupper/d/link 5:6\n");
    rustix::mount::unmount(u.dir().join("mapped"), rustix::mount::UnmountFlags::DETACH).unwrap();
}
