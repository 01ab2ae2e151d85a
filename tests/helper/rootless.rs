//! In a user namespace, without any privilege outside of it.

use std::path::Path;
use std::process::Command;

use super::{have, script};
use crate::common::{self, Union};
use crate::need_unionfs;

/// An ordinary user, on whom nothing depends.
const USER: &str = "65534";

/// Layers of an ordinary user, where that user may go.
fn layers() -> Union {
    let u = Union::new(1);
    let text = format!(
        "mkdir -p l0/d/sub l0/gone; echo lower >l0/f; echo x >l0/d/sub/x; echo y >l0/gone/y; ln -s f l0/link
        setfattr -n user.k -v v l0/f; chmod 4755 l0/f
        chown -hR {USER}:{USER} l0 upper work mnt .; chmod 755 ."
    );
    script(u.dir(), &[], &text);
    u
}

/// Runs a script as root of a namespace of the ordinary user; `None` where there are no such namespaces.
fn unshared(u: &Union, text: &str) -> Option<String> {
    let prefix = [
        "setpriv",
        "--reuid",
        USER,
        "--regid",
        USER,
        "--clear-groups",
        "unshare",
        "--user",
        "--map-root-user",
        "--mount",
    ];
    let possible = |words: &[&str]| {
        Command::new(words[0]).args(&words[1..]).arg("true").output().is_ok_and(|out| out.status.success())
    };
    if have("setpriv").is_none() || !possible(&prefix) {
        common::skip("the kernel lets no ordinary user make a user namespace");
        return None;
    }
    // The way to the layers may be closed to that user.
    let reachable = |dir: &Path| {
        possible(&[
            "setpriv",
            "--reuid",
            USER,
            "--regid",
            USER,
            "--clear-groups",
            "ls",
            dir.to_str().unwrap(),
        ])
    };
    if !reachable(u.dir()) {
        common::skip("the kernel's permissions close the way to the temporary directory");
        return None;
    }
    Some(script(u.dir(), &prefix, text))
}

#[test]
fn works_without_privilege() {
    need_unionfs!();
    let u = layers();
    let program = env!("CARGO_BIN_EXE_unionfs");
    let text = format!(
        "{program} -o lowerdir=l0,upperdir=upper,workdir=work,log=log mnt
        grep -q ' {at}/mnt .* - fuse.unionfs ' /proc/self/mountinfo
        stat -c %u:%g mnt mnt/f mnt/link
        echo more >>mnt/f; chmod 600 mnt/f; getfattr --only-values -n user.k mnt/f; echo
        rm -r mnt/gone; mkdir mnt/gone; mv mnt/d mnt/moved; ls mnt mnt/gone mnt/moved
        rm mnt/link; ln -s new mnt/link; ln mnt/f mnt/hard; chown 0:0 mnt/f
        umount mnt
        {program} -o lowerdir=l0,upperdir=upper,workdir=work mnt
        ls mnt mnt/gone mnt/moved; cat mnt/f; readlink mnt/link
        umount mnt; cat log",
        at = u.dir().display()
    );
    let Some(said) = unshared(&u, &text) else { return };
    let once = "f\ngone\nlink\nmoved\n\nmnt/gone:\n\nmnt/moved:\nsub\n";
    let again = "f\ngone\nhard\nlink\nmoved\n\nmnt/gone:\n\nmnt/moved:\nsub\n";
    let wanted = format!("0:0\n0:0\n0:0\nv\nmnt:\n{once}mnt:\n{again}lower\nmore\nnew\n");
    assert_eq!(said, wanted);
    // From outside: private attributes that need no privilege, whiteouts as permitted, no other owners.
    let mark = |path: &str, name: &str| common::files::xattr(u.upper(path), name);
    assert_eq!(mark("gone", "user.overlay.opaque").as_deref(), Some(&b"y"[..]));
    assert_eq!(mark("moved", "user.overlay.redirect").as_deref(), Some(&b"d"[..]));
    let owners = script(u.dir(), &[], "find upper -printf '%U\\n' | sort -u; test $(cat l0/f) = lower");
    assert_eq!(owners.trim(), USER);
}
