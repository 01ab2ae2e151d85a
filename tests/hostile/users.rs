//! A user who may do little.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::thread::{Gid, Uid};

use crate::common::files::{acl_for, chmod, errno, put, set_xattr};
use crate::common::{self, Union};
use crate::{
    SECRET, check_alive, logged, mount, need_mount, need_ours, peer, tells, try_mount, use_all, ways,
};

const USER: u32 = 65534;

/// Runs `f` in a thread without privileges.
fn as_user<T: Send>(f: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let (uid, gid) = (Uid::from_raw(USER), Gid::from_raw(USER));
            rustix::thread::set_thread_groups(&[gid]).unwrap();
            rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
            rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
            f()
        });
        thread.join().unwrap()
    })
}

fn layers() -> Union {
    let union = logged(2);
    chmod(union.dir(), 0o755);
    for layer in [union.lower(1, ""), union.upper("")] {
        let name = if layer.ends_with("upper") { "u" } else { "l" };
        let at = |rest: &str| layer.join(format!("{name}-{rest}"));
        put(at("private"), SECRET);
        chmod(at("private"), 0o600);
        put(at("closed/inside"), SECRET);
        chmod(at("closed"), 0o700);
        put(at("unlisted/inside"), SECRET);
        chmod(at("unlisted/inside"), 0o600);
        chmod(at("unlisted"), 0o711);
        put(at("denied"), SECRET);
        // An entry for the user that takes what others have.
        let mut acl = acl_for(USER, 0o644);
        acl[4 + 8 + 2] = 0;
        set_xattr(at("denied"), "system.posix_acl_access", &acl);
        put(at("labelled"), "public");
        set_xattr(at("labelled"), "trusted.secret", SECRET.as_bytes());
        put(at("attributes"), "public");
        set_xattr(at("attributes"), "user.secret", SECRET.as_bytes());
        chmod(at("attributes"), 0o600);
        put(at("program"), "#!/bin/sh\necho");
        chmod(at("program"), 0o4755);
        symlink("l-private", at("link")).unwrap();
    }
    union
}

/// What a user who may not read a layer's file gets of it.
fn sees_nothing(root: &Path) {
    let (contents, count) = use_all(root);
    assert!(!tells(&contents), "the secret was read");
    assert!(count > 10, "{count}");
    for name in ["l", "u"] {
        let at = |rest: &str| root.join(format!("{name}-{rest}"));
        for path in ["private", "closed/inside", "unlisted/inside", "denied", "attributes"] {
            assert_eq!(errno(std::fs::read(at(path))), libc::EACCES, "{path}");
            assert_eq!(
                errno(std::fs::OpenOptions::new().append(true).open(at(path))),
                libc::EACCES,
                "{path}"
            );
        }
        assert_eq!(errno(std::fs::read_dir(at("closed")).map(drop)), libc::EACCES);
        assert_eq!(errno(std::fs::read_dir(at("unlisted")).map(drop)), libc::EACCES);
        assert_eq!(errno(std::fs::write(at("labelled"), "x")), libc::EACCES);
        assert_eq!(errno(std::fs::write(at("new"), "x")), libc::EACCES);
        assert_eq!(errno(std::fs::remove_file(at("labelled"))), libc::EACCES);
        assert_eq!(errno(std::fs::rename(at("labelled"), at("moved"))), libc::EACCES);
        assert_eq!(
            errno(std::fs::set_permissions(at("private"), std::fs::Permissions::from_mode(0o777))),
            libc::EPERM
        );
        assert_eq!(errno(std::os::unix::fs::chown(at("private"), Some(USER), None)), libc::EPERM);
        let mut value = [0; 100];
        let trusted = rustix::fs::getxattr(at("labelled"), "trusted.secret", &mut value[..]);
        assert!(trusted.is_err(), "{trusted:?}");
        let user = rustix::fs::getxattr(at("attributes"), "user.secret", &mut value[..]);
        assert_eq!(user, Err(rustix::io::Errno::ACCESS));
        assert!(
            rustix::fs::setxattr(at("labelled"), "trusted.x", b"x", rustix::fs::XattrFlags::empty()).is_err()
        );
    }
}

#[test]
fn what_may_not_be_read_is_not_read_by_way_of_the_mount() {
    need_mount!();
    for options in ways(&[&[], &["passthrough=off", "io_uring=off"], &["metacopy=on", "timeout=0"]]) {
        let mut union = layers();
        for option in *options {
            union = union.option(option);
        }
        mount(&union);
        as_user(|| sees_nothing(&union.mnt()));
        // Nor when root has read it, so that all of it lies in memory, and has copied it up.
        assert!(tells(&use_all(&union.mnt()).0));
        as_user(|| sees_nothing(&union.mnt()));
        // What becomes private is so at once.
        put(union.at("public"), SECRET);
        chmod(union.at("public"), 0o644);
        assert!(as_user(|| std::fs::read(union.at("public"))).is_ok());
        chmod(union.at("public"), 0o600);
        assert_eq!(errno(as_user(|| std::fs::read(union.at("public")))), libc::EACCES);
        // What is made of it on the way is nobody's to see.
        for name in ["work", "index", "gone"].iter().filter(|_| peer().is_none()) {
            assert_eq!(common::files::mode(union.work(name)) & 0o077, 0, "{name}");
        }
        check_alive(&union);
    }
}

#[test]
fn devices_and_set_id_bits_are_as_mounted() {
    need_mount!();
    let null = rustix::fs::makedev(1, 3);
    for (options, device, identity) in [("nodev,nosuid", libc::EACCES, USER), ("dev,suid", 0, 0)] {
        let union = layers().option(options);
        for layer in [union.lower(0, ""), union.upper("")] {
            let name = layer.join(format!("null{}", layer.ends_with("upper")));
            rustix::fs::mknodat(
                rustix::fs::CWD,
                &name,
                rustix::fs::FileType::CharacterDevice,
                rustix::fs::Mode::from_raw_mode(0o666),
                null,
            )
            .unwrap();
            chmod(&name, 0o666);
            std::fs::copy("/usr/bin/id", layer.join("id")).unwrap();
            chmod(layer.join("id"), 0o4755);
        }
        try_mount(&union, &format!("{options},")).unwrap();
        let opened = |name: &str| {
            as_user(|| std::fs::read(union.at(name)).map_or_else(|e| e.raw_os_error().unwrap(), |_| 0))
        };
        assert_eq!((opened("nullfalse"), opened("nulltrue")), (device, device), "{options}");
        let id = union.at("id");
        let mut command = std::process::Command::new("setpriv");
        let user = USER.to_string();
        command.args(["--reuid", &user, "--regid", &user, "--clear-groups"]).arg(id).arg("-u");
        let said = String::from_utf8(command.output().unwrap().stdout).unwrap();
        assert_eq!(said.trim(), identity.to_string(), "{options}");
        check_alive(&union);
    }
}

#[test]
fn the_control_socket_is_the_owners() {
    need_ours!();
    let union = layers().mounted();
    let pid = common::daemon_of(&union.mnt()).unwrap();
    let socket = common::record_of(pid).with_extension("sock");
    let refused = as_user(|| UnixStream::connect(&socket).map(drop));
    assert_eq!(errno(refused), libc::EACCES);
    // Even if the socket's permissions were others.
    chmod(&socket, 0o666);
    let answer = as_user(|| {
        use std::io::{Read, Write};
        let mut stream = UnixStream::connect(&socket).unwrap();
        let _ = stream.write_all(b"statistics\n");
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text
    });
    assert_eq!(answer, "");
    for path in [Path::new("/run/unionfs/planted.json"), &socket] {
        assert_eq!(
            errno(as_user(|| std::fs::write(path, "x").and_then(|()| std::fs::remove_file(path)))),
            if path == socket { libc::ENXIO } else { libc::EACCES },
            "{}",
            path.display()
        );
    }
    assert_eq!(errno(as_user(|| std::fs::remove_file(&socket))), libc::EACCES);
    let out = common::unionfs().arg("inspect").arg(union.mnt()).output().unwrap();
    assert!(String::from_utf8_lossy(&out.stdout).contains("requests"), "{}", common::text(&out));
    check_alive(&union);
}

#[test]
fn a_runtime_directory_of_someone_else_is_not_used() {
    need_ours!();
    let union = Union::new(1);
    put(union.lower(0, "f"), "x");
    for path in [union.dir().to_owned(), union.upper(""), union.work(""), union.mnt()] {
        std::os::unix::fs::chown(path, Some(USER), Some(USER)).unwrap();
    }
    // In a user namespace, as container engines mount without root; that is someone else to the system's /run.
    let script = r#"
        cp "$0" unionfs; chmod 755 unionfs
        mount -t tmpfs none /dev; mknod -m 666 /dev/null c 1 3; mknod -m 666 /dev/fuse c 10 229
        as() { setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
        mounted() {
            XDG_RUNTIME_DIR=$PWD/$1 as unshare -Urm sh -euxc '
                ../unionfs mount -o log=../log-$1 --work ../work ../l0 ../upper ../mnt
                cat ../mnt/f; ls -A "$XDG_RUNTIME_DIR/unionfs/" >found; ../unionfs umount ../mnt' sh $1
        }
        as mkdir -p own run; cd run; as mkdir -p good open link target
        mounted good; test "$(wc -l <found)" = 2
        # Of root, open to all, and a way to another place.
        mkdir -p root/unionfs; mounted root; test ! -s found
        as mkdir -m 777 open/unionfs; as chmod 777 open/unionfs; mounted open; test ! -s found
        as ln -s ../target link/unionfs; mounted link; test ! -s found
        "#;
    let mut command = std::process::Command::new("timeout");
    command.args(["60", "unshare", "-m", "sh", "-euxc", script]).arg(env!("CARGO_BIN_EXE_unionfs"));
    let out = command.current_dir(union.dir()).output().unwrap();
    assert!(out.status.success(), "{}", common::text(&out));
    assert_eq!(std::fs::read_dir(union.dir().join("run/target")).unwrap().count(), 0);
}
