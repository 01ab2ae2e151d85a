//! In a user namespace, without any privilege outside of it.

use std::process::Command;

use super::script;
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
    let user = ["setpriv", "--reuid", USER, "--regid", USER, "--clear-groups"];
    // A device that everybody may open, as it is on most systems, though not in every container.
    let device = "test -e fuse || mknod -m 666 fuse c 10 229; mount --bind fuse /dev/fuse; exec \"$@\"";
    let outer = ["env", "-C", u.dir().to_str().unwrap(), "unshare", "--mount", "sh", "-euc", device, "sh"];
    let root = [&outer[..], &user, &["unshare", "--user", "--map-root-user", "--mount"]].concat();
    let possible = |words: &[&str], command: &[&str]| {
        let mut all = words.iter().chain(command);
        let out = Command::new(all.next().unwrap()).args(all).output();
        out.is_ok_and(|out| out.status.success())
    };
    let reason = if !possible(&root, &["true"]) {
        "the kernel lets no ordinary user make a user namespace"
    } else if !possible(&user, &["ls", u.dir().to_str().unwrap()]) {
        "the kernel closes the way to the temporary directory for others than root"
    } else {
        return Some(script(u.dir(), &root, text));
    };
    common::skip(reason);
    None
}

#[test]
fn works_without_privilege() {
    need_unionfs!();
    let u = layers();
    let program = "./unionfs";
    std::fs::copy(env!("CARGO_BIN_EXE_unionfs"), u.dir().join(program)).unwrap();
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
