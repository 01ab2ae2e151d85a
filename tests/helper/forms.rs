//! Forms of the call.

use std::os::unix::fs::symlink;

use super::{called_as, have, helper, quiet, refused, script};
use crate::common::disk::lies_on;
use crate::common::files::{dir, errno, exists, get, list, put};
use crate::common::{self, Union, mount_line};
use crate::need_unionfs;

/// Options of an overlay mount by paths relative to the directory of the layers.
const LAYERS: &str = "lowerdir=l0:l1,upperdir=upper,workdir=work";

fn layers() -> Union {
    let u = Union::new(2);
    put(u.lower(0, "top"), "0");
    put(u.lower(1, "f"), "1");
    u
}

#[track_caller]
fn works(u: &Union) {
    assert_eq!(get(u.at("f")), "1");
    put(u.at("new"), "x");
    assert_eq!(get(u.upper("new")), "x");
    std::fs::remove_file(u.at("new")).unwrap();
    u.unmount();
}

#[test]
fn both_forms_of_arguments() {
    need_unionfs!();
    let u = layers();
    for args in [
        &["-o", LAYERS, "mnt"][..],
        &["mnt", "-o", LAYERS],
        &["unionfs", "mnt", "-o", LAYERS],
        &["-o", "lowerdir=l0:l1", "none", "mnt", "-oupperdir=upper,workdir=work"],
        &["-o", "lowerdir=nowhere", "-o", "upperdir=nowhere", "x", "-o", LAYERS, "mnt"],
        &["-o", ",,volatile", "-o", &format!("{LAYERS},,rw,"), "mnt"],
    ] {
        quiet(helper(&u, args));
        works(&u);
    }
}

#[test]
fn every_name_of_the_program() {
    need_unionfs!();
    let u = layers();
    for name in ["fuse-overlayfs", "mount.unionfs", "mount.fuse.unionfs", "mount.fuse3.unionfs"] {
        let mut command = called_as(&u, name);
        // As mount(8) calls a helper; the source may have the name of a command of ours.
        command.args(["mount", "mnt", "-o", &format!("rw,{LAYERS}"), "-s", "-n", "-v", "-t", "fuse.unionfs"]);
        quiet(command);
        works(&u);
    }
    let mut fake = called_as(&u, "mount.unionfs");
    fake.args(["none", "mnt", "-f", "-o", LAYERS]);
    quiet(fake);
    assert!(!common::is_mounted(&u.mnt()));
}

#[test]
fn layers_by_links_and_with_odd_names() {
    need_unionfs!();
    let u = layers();
    // As in the storage of container engines, which call from the directory above.
    dir(u.dir().join("l"));
    symlink("../l0", u.dir().join("l/AAA")).unwrap();
    symlink("../l1", u.dir().join("l/BBB")).unwrap();
    quiet(helper(&u, &["-o", "lowerdir=l/AAA:l/BBB,upperdir=upper,workdir=work", "mnt"]));
    assert_eq!(list(u.mnt()), ["f", "top"]);
    works(&u);
    for name in ["with:colon", "with,comma", "with\"quote", "with\\back"] {
        put(u.dir().join(name).join("odd"), "odd");
    }
    let odd = r#"lowerdir=with\:colon:with\,comma:with"quote:with\\back:l1"#;
    quiet(helper(&u, &["-o", odd, "-o", "upperdir=upper,workdir=work", "mnt"]));
    assert_eq!(list(u.mnt()), ["f", "odd"]);
    works(&u);
}

#[test]
fn read_only_without_an_upper() {
    need_unionfs!();
    let u = layers();
    for options in ["lowerdir=l0:l1", "lowerdir=l0:l1,upperdir=,workdir=", "lowerdir=l0:l1,workdir=work"] {
        quiet(helper(&u, &["-o", options, "mnt"]));
        assert_eq!((get(u.at("f")), errno(std::fs::write(u.at("f"), "x"))), ("1".into(), libc::EROFS));
        assert!(mount_line(&u.mnt()).unwrap().contains(" ro,"));
        u.unmount();
    }
}

#[test]
fn options_of_fuse_overlayfs() {
    need_unionfs!();
    let u = layers();
    let log = u.dir().join("log");
    let all = "xattr_permissions=0,squash_to_uid=3,squash_to_gid=4,squash_to_root,static_nlink,noacl,fsync=0,volatile,\
               threaded=1,timeout=0.5,clone_fd,max_write=65536,subtype=x,private,context=\"system_u:object_r:a:s0:c1,c2\",\
               bogus,bogus=1,x-systemd.automount,_netdev,nofail,default_permissions,nodev,nosuid,noexec,sync,noatime,\
               nodiratime,metacopy=on,fsname=mine,log=log";
    quiet(helper(&u, &["-o", all, "-o", LAYERS, "mnt"]));
    let line = mount_line(&u.mnt()).unwrap();
    for flag in ["nodev", "nosuid", "noexec", "sync", "noatime", "nodiratime", " - fuse.unionfs mine "] {
        assert!(line.contains(flag), "{flag} is not in {line}");
    }
    assert!(!line.contains("shared:"), "{line}");
    let told: Vec<_> =
        get(&log).lines().filter_map(|l| Some(l.split_once("ignored: ")?.1.to_owned())).collect();
    assert_eq!(told, ["bogus", "bogus=1"]);
    works(&u);
    for (wrong, word) in [
        ("uidmapping=0:1", "uidmapping=0:1"),
        ("squash_to_uid=x", "squash_to_uid"),
        ("timeout=x", "timeout"),
        ("fsync=2", "fsync"),
    ] {
        refused(helper(&u, &["-o", &format!("{LAYERS},{wrong}"), "mnt"]), &[word]);
    }
    assert!(!common::is_mounted(&u.mnt()));
}

#[test]
fn what_is_missing_is_told() {
    need_unionfs!();
    let u = layers();
    refused(helper(&u, &["-o", "upperdir=upper", "mnt"]), &["lowerdir", "missing"]);
    refused(helper(&u, &["-o", "lowerdir=none", "mnt"]), &["lower layer none", "does not exist"]);
    refused(helper(&u, &["-o", LAYERS, "none"]), &["mount point none"]);
    refused(helper(&u, &["-o", "remount,ro", "mnt"]), &["mnt", "no unionfs"]);
    let out = helper(&u, &["--version"]).output().unwrap();
    let text = common::text(&out);
    assert_eq!((text.lines().count(), text.starts_with("unionfs ")), (1, true), "{text}");
    let mut version = called_as(&u, "fuse-overlayfs");
    assert_eq!(common::text(&version.arg("--version").output().unwrap()), text);
}

#[test]
fn link_counts_and_acls_can_be_left_out() {
    need_unionfs!();
    let u = layers();
    dir(u.upper("only/a"));
    dir(u.upper("only/b"));
    let acl = common::files::acl_for(1000, 0o640);
    common::files::set_xattr(u.lower(0, "top"), "system.posix_acl_access", &acl);
    quiet(helper(&u, &["-o", LAYERS, "-o", "static_nlink,noacl", "mnt"]));
    use std::os::unix::fs::MetadataExt;
    assert_eq!(u.at("only").metadata().unwrap().nlink(), 1);
    assert_eq!(common::files::xattr(u.at("top"), "system.posix_acl_access"), None);
    // XFS shows it under a name of its own, too.
    let xfs = lies_on(u.dir(), libc::XFS_SUPER_MAGIC);
    let shown: &[&str] = if xfs { &["trusted.SGI_ACL_FILE"] } else { &[] };
    assert_eq!(common::files::xattr_names(u.at("top")), shown);
    let set =
        rustix::fs::setxattr(u.at("f"), "system.posix_acl_access", &acl, rustix::fs::XattrFlags::empty());
    assert_eq!(set, Err(rustix::io::Errno::OPNOTSUPP));
    u.unmount();
    quiet(helper(&u, &["-o", LAYERS, "mnt"]));
    // Btrfs does not count directories.
    let links = if lies_on(u.dir(), libc::BTRFS_SUPER_MAGIC) { 1 } else { 4 };
    assert_eq!(u.at("only").metadata().unwrap().nlink(), links);
    assert_eq!(common::files::xattr(u.at("top"), "system.posix_acl_access"), Some(acl));
    u.unmount();
}

#[test]
fn remounted_with_other_flags() {
    need_unionfs!();
    let u = layers();
    quiet(helper(&u, &["-o", LAYERS, "mnt"]));
    quiet(helper(&u, &["none", "mnt", "-o", "remount,ro,nosuid"]));
    let line = mount_line(&u.mnt()).unwrap();
    assert!(line.contains(" ro,") && line.contains("nosuid"), "{line}");
    assert_eq!(errno(std::fs::write(u.at("f"), "x")), libc::EROFS);
    quiet(helper(&u, &["none", "mnt", "-o", &format!("remount,rw,{LAYERS}")]));
    works(&u);
}

/// In a mount namespace of its own, where the program is among the helpers of mount(8).
#[test]
fn mount_and_fstab() {
    need_unionfs!();
    let u = layers();
    let helpers = u.dir().join("helpers");
    dir(&helpers);
    for name in ["mount.fuse.unionfs", "mount.fuse3.unionfs", "mount.unionfs"] {
        symlink(env!("CARGO_BIN_EXE_unionfs"), helpers.join(name)).unwrap();
    }
    let at = u.dir().display();
    let layers = format!("lowerdir={at}/l0:{at}/l1,upperdir={at}/upper,workdir={at}/work");
    put(
        u.dir().join("fstab"),
        format!("unionfs {at}/mnt fuse.unionfs {layers},nodev,x-systemd.automount,nofail,_netdev 0 0\n"),
    );
    let text = format!(
        "mount --make-rprivate /
        sbin=$(readlink -f /sbin)
        mount -t overlay -o lowerdir=helpers:$sbin none $sbin
        check() {{ test $(cat mnt/f) = 1; : >mnt/new; rm mnt/new; grep -q \" {at}/mnt $1 - fuse.unionfs\" /proc/self/mountinfo; }}
        for type in fuse.unionfs fuse3.unionfs unionfs; do
            mount -t $type unionfs {at}/mnt -o {layers}
            check 'rw,relatime'
            umount mnt
        done
        mount -T fstab {at}/mnt
        check 'rw,nodev,relatime'
        mount -o remount,ro {at}/mnt
        check() {{ grep -q \" {at}/mnt ro,nodev,relatime - fuse.unionfs\" /proc/self/mountinfo; }}
        check
        umount mnt
        ! mount -t fuse.unionfs unionfs {at}/mnt -o lowerdir={at}/none 2>&1"
    );
    let said = script(u.dir(), &["unshare", "-m"], &text);
    assert!(said.contains("lower layer") && said.contains("does not exist"), "{said}");
    assert!(!exists(u.at("f")));
}

/// As containerd calls the helper of FUSE, which finds the program by its name.
#[test]
fn by_the_helper_of_fuse() {
    need_unionfs!();
    let Some(fuse) = have("mount.fuse3") else { return common::skip("no mount.fuse3") };
    let u = layers();
    dir(u.dir().join("bin"));
    symlink(env!("CARGO_BIN_EXE_unionfs"), u.dir().join("bin/unionfs")).unwrap();
    let path = format!("{}:{}", u.dir().join("bin").display(), std::env::var("PATH").unwrap());
    let mut command = std::process::Command::new(fuse);
    command.arg("overlay").arg(u.mnt()).args(["-o", "lowerdir=l0:l1", "-o", "upperdir=upper,workdir=work"]);
    command.args(["-t", "unionfs"]).env("PATH", path).current_dir(u.dir());
    quiet(command);
    works(&u);
}
