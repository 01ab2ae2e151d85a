//! Modes, owners, times and ACLs: kept by copy-up, right for new objects.

use std::os::unix::fs::symlink;

use crate::common::Union;
use crate::common::files::{acl_for, chmod, dir, list, put, set_times, set_xattr};
use crate::{MOUNTS, agree, need_unionfs, python, sh};

const SHOW: &str = r#"
def show(path):
    s = os.lstat(path)
    acls = [attempt(os.getxattr, path, f'system.posix_acl_{k}', follow_symlinks=False) for k in ('access', 'default')]
    print(path, oct(s.st_mode), s.st_uid, s.st_gid, s.st_mtime_ns if s.st_mtime < 1.6e9 else 'now',
        acls, attempt(os.getxattr, path, 'user.note', follow_symlinks=False))
"#;

#[test]
fn directories_keep_mode_times_and_acl_over_a_copy_up() {
    need_unionfs!();
    agree(
        |root| {
            put(root.join("a/b/f"), "x");
            dir(root.join("a/sticky"));
            put(root.join("a/acl/f"), "x");
            set_xattr(root.join("a/acl"), "system.posix_acl_access", &acl_for(99, 0o750));
            set_xattr(root.join("a/acl"), "system.posix_acl_default", &acl_for(98, 0o750));
            chmod(root.join("a/sticky"), 0o1777);
            chmod(root.join("a/b"), 0o2750);
            std::os::unix::fs::chown(root.join("a/b"), Some(11), Some(12)).unwrap();
            chmod(root.join("a/b"), 0o2750);
            set_xattr(root.join("a/b"), "user.note", b"kept");
            for (i, name) in ["a/acl", "a/sticky", "a/b", "a"].iter().enumerate() {
                set_times(root.join(name), (1_000_000_000, 1), (1_100_000_000 + i as i64, 123_456_789));
            }
        },
        |root| {
            let program = r#"
# Changes of what lies in them, which are none of theirs.
for name in ('a/b/f', 'a/acl/f'):
    os.chmod(name, 0o600); open(name, 'a').write('more')
os.chmod('a/sticky', 0o1770)
for name in ('a', 'a/b', 'a/acl', 'a/sticky', 'a/acl/f'):
    show(name)
# And one that is.
open('a/b/new', 'w').close(); show('a/b'); show('a')
"#;
            python(root, &format!("{SHOW}{program}"))
        },
    );
}

#[test]
fn rename_and_link_keep_the_times_of_a_file() {
    need_unionfs!();
    agree(
        |root| {
            for name in ["renamed", "linked", "over", "exchanged", "d/in-dir"] {
                put(root.join(name), "x");
                set_times(root.join(name), (1_000_000_000, 5), (1_100_000_000, 123_456_789));
            }
            symlink("target", root.join("link")).unwrap();
            set_times(root.join("link"), (1_000_000_000, 5), (1_100_000_000, 7));
            set_times(root.join("d"), (1_000_000_000, 5), (1_100_000_000, 7));
        },
        |root| {
            let program = r#"
os.rename('renamed', 'd/new'); os.link('linked', 'linked2'); os.rename('linked', 'over')
check(libc.renameat2(-100, b'exchanged', -100, b'd/in-dir', 2))
os.rename('link', 'link2'); os.rename('d', 'e')
for name in ('e/new', 'linked2', 'over', 'exchanged', 'e/in-dir', 'link2', 'e'):
    show(name)
"#;
            python(root, &format!("{SHOW}{program}"))
        },
    );
}

#[test]
fn the_umask_applies_once_and_to_everything() {
    need_unionfs!();
    agree(
        |root| {
            dir(root.join("d"));
            dir(root.join("acl"));
            set_xattr(root.join("acl"), "system.posix_acl_default", &acl_for(98, 0o777));
            for parent in [root, &root.join("d")] {
                // Names that whiteouts will have.
                for i in 0..4 {
                    put(parent.join(format!("w{i}")), "x");
                    std::fs::remove_file(parent.join(format!("w{i}"))).unwrap();
                }
            }
        },
        |root| {
            let program = r#"
for mask in (0, 0o22, 0o77, 0o137):
    os.umask(mask)
    for d in ('.', 'd', 'acl'):
        names = [f'{d}/{mask}{n}' for n in ('dir', 'fifo', 'sock', 'dev', 'file', 'open')]
        os.mkdir(names[0], 0o777); os.mkfifo(names[1], 0o666); os.mknod(names[2], 0o666 | stat.S_IFSOCK)
        os.mknod(names[3], 0o666 | stat.S_IFCHR, os.makedev(1, 3)); os.mknod(names[4], 0o666 | stat.S_IFREG)
        os.close(os.open(names[5], os.O_CREAT | os.O_WRONLY, 0o6777))
        for name in names:
            show(name)
"#;
            python(root, &format!("{SHOW}{program}"))
        },
    );
}

#[test]
fn the_umask_applies_in_the_place_of_whiteouts() {
    need_unionfs!();
    for options in MOUNTS {
        let mut u = Union::new(1);
        u.set_options(options);
        for name in ["dir", "fifo", "dev", "file"] {
            put(u.lower(0, name), "x");
        }
        u.mount();
        let modes = sh(
            &u.mnt(),
            "rm *; umask 027; mkdir dir; mkfifo fifo; mknod dev c 1 3; : >file; stat -c '%n %a' dir fifo dev file",
        );
        assert_eq!(modes, "dir 750\nfifo 640\ndev 640\nfile 640\n", "{options:?}");
        assert_eq!(list(u.mnt()), ["dev", "dir", "fifo", "file"]);
    }
}

#[test]
fn what_is_made_inherits_group_and_default_acl() {
    need_unionfs!();
    agree(
        |root| {
            dir(root.join("setgid"));
            std::os::unix::fs::chown(root.join("setgid"), None, Some(77)).unwrap();
            chmod(root.join("setgid"), 0o2777);
            dir(root.join("acl"));
            set_xattr(root.join("acl"), "system.posix_acl_default", &acl_for(98, 0o750));
            dir(root.join("both"));
            std::os::unix::fs::chown(root.join("both"), None, Some(77)).unwrap();
            chmod(root.join("both"), 0o2777);
            set_xattr(root.join("both"), "system.posix_acl_default", &acl_for(97, 0o770));
            for name in ["setgid", "acl", "both"] {
                put(root.join(name).join("old"), "x");
                put(root.join(name).join("gone"), "x");
                chmod(root.join(name), if name == "acl" { 0o777 } else { 0o2777 });
            }
        },
        |root| {
            let program = r#"
def make(who):
    os.umask(0o22)
    for d in ('setgid', 'acl', 'both'):
        p = f'{d}/{who}'
        os.mkdir(p + 'dir'); os.mkdir(p + 'dir/sub'); os.close(os.open(p + 'file', os.O_CREAT | os.O_WRONLY, 0o666))
        os.close(os.open(p + 'exec', os.O_CREAT | os.O_WRONLY, 0o2777))
        os.mkfifo(p + 'fifo', 0o666); os.symlink('t', p + 'link')
        for n in ('dir', 'dir/sub', 'file', 'exec', 'fifo', 'link'):
            show(p + n)
make('root'); as_user(lambda: make('user'))
for d in ('setgid', 'acl', 'both'):
    # Where a whiteout was, and a copy of what was there: nothing is inherited by copy-up.
    os.unlink(d + '/gone'); os.mkdir(d + '/gone'); open(d + '/old', 'a').write('x')
    show(d + '/gone'); show(d + '/old'); show(d)
"#;
            python(root, &format!("{SHOW}{program}"))
        },
    );
}

fn with_old_times(root: &std::path::Path) {
    for name in ["f", "g", "d/e"] {
        put(root.join(name), "content");
        set_times(root.join(name), (1_000_000_000, 0), (1_100_000_000, 0));
    }
    set_times(root.join("d"), (1_000_000_000, 0), (1_100_000_000, 0));
}

/// Reads, and says whose access times were set.
const READ: &str = "
for name in ('f', 'g'):
    open(name).read(); m = mmap.mmap(os.open(name, os.O_RDONLY), 7, prot=mmap.PROT_READ); m[:]
os.close(os.open('g', os.O_RDWR)); open('g').read()
os.listdir('d')
print(*(int(os.stat(n).st_atime) > 1_500_000_000 for n in ('f', 'g', 'd')))
";

/// What reading does to access times in the upper, with these options.
fn read_with(options: &[&str]) -> String {
    let mut u = Union::new(1);
    u.set_options(options);
    u.mount();
    with_old_times(&u.mnt());
    u.remount();
    python(&u.mnt(), READ)
}

/// Access times as on the plain directory's mount (relatime, as a rule).
#[test]
fn access_times() {
    need_unionfs!();
    let plain = crate::common::temp_dir();
    with_old_times(plain.path());
    let want = python(plain.path(), READ);
    for options in MOUNTS {
        assert_eq!(read_with(options), want, "{options:?}");
    }
    // What lies in a lower keeps its times in any case.
    let u = Union::new(1);
    with_old_times(&u.lower(0, ""));
    let before = crate::common::tree::fingerprint(&u.lower(0, ""));
    let u = u.mounted();
    sh(&u.mnt(), "cat f d/e; ls -lR");
    assert_eq!(crate::common::tree::fingerprint(&u.lower(0, "")), before);
}

#[test]
fn no_access_times_without_passthrough() {
    need_unionfs!();
    assert_eq!(read_with(&["noatime", "passthrough=off"]), "False False False\n");
}

#[test]
fn no_access_times_with_passthrough() {
    need_unionfs!();
    assert_eq!(read_with(&["noatime"]), "False False False\n");
}
