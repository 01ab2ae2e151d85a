//! Names and links: unlinked and renamed-over open files, link counts, exchange.

use std::os::unix::fs::symlink;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::common::files::{dir, put};
use crate::common::{Union, tree};
use crate::{MOUNTS, agree, need_unionfs, python};

/// Everything that can be done with an open file.
const USE: &str = r#"
def use(fd, what):
    s = os.fstat(fd); print(what, s.st_nlink, s.st_size, oct(s.st_mode))
    print(os.pread(fd, 4, 0), attempt(os.pwrite, fd, b'WRITE', 1), os.pread(fd, 10, 0))
    print(attempt(os.ftruncate, fd, 8), os.fstat(fd).st_size)
    os.fchmod(fd, 0o604); os.fchown(fd, 7, 8); os.utime(fd, (5, 6))
    os.setxattr(fd, 'user.k', b'v'); print(os.getxattr(fd, 'user.k'), os.listxattr(fd))
    m = mmap.mmap(fd, 8, prot=mmap.PROT_READ); print(m[:]); m.close()
    print(attempt(os.posix_fallocate, fd, 0, 100), attempt(os.fsync, fd))
    s = os.fstat(fd); print(what, s.st_nlink, s.st_size, oct(s.st_mode), s.st_uid, s.st_gid)
    print(oct(os.stat(f'/proc/self/fd/{fd}').st_mode), open(f'/proc/self/fd/{fd}', 'rb').read(8))
"#;

#[test]
fn unlinked_and_renamed_over_open_files_stay_usable() {
    need_unionfs!();
    let names = ["unlinked", "over", "one", "ro", "ro-over", "d/f"];
    agree(
        |root| {
            for name in names {
                put(root.join(name), "0123456789");
            }
            std::fs::hard_link(root.join("one"), root.join("two")).unwrap();
        },
        |root| {
            let program = r#"
fds = {n: os.open(n, os.O_RDONLY if n.startswith('ro') else os.O_RDWR) for n in
       ('unlinked', 'over', 'one', 'ro', 'ro-over', 'd/f')}
os.unlink('unlinked'); os.unlink('ro'); os.unlink('one')
for n in ('over', 'ro-over'):
    open('new', 'w').write('new'); os.rename('new', n)
os.unlink('d/f'); os.rmdir('d')
for name, fd in fds.items():
    use(fd, name)
os.unlink('two'); print(os.fstat(fds['one']).st_nlink)
use(fds['one'], 'last')
# A new file of the name is another one.
open('unlinked', 'w').write('fresh'); print(os.fstat(fds['unlinked']).st_nlink, open('unlinked').read())
print(sorted(os.listdir('.')))
"#;
            python(root, &format!("{USE}{program}"))
        },
    );
}

#[test]
fn a_deleted_directory_stays_usable() {
    need_unionfs!();
    agree(
        |root| put(root.join("d/f"), "x"),
        |root| {
            python(
                root,
                r#"
fd = os.open('d', os.O_RDONLY)
os.unlink('d/f'); os.rmdir('d')
s = os.fstat(fd); print(s.st_nlink, oct(s.st_mode))
print(attempt(os.listdir, fd), attempt(os.open, 'x', os.O_CREAT | os.O_WRONLY, dir_fd=fd))
print(attempt(os.mkdir, 'x', dir_fd=fd), attempt(os.stat, 'f', dir_fd=fd))
os.mkdir('d'); print(os.listdir('d'), attempt(os.listdir, fd))
"#,
            )
        },
    );
}

#[test]
fn link_counts_are_right_at_every_moment() {
    need_unionfs!();
    agree(
        |root| {
            for name in ["a/one", "b/single", "b/other"] {
                put(root.join(name), name);
            }
            for name in ["a/two", "b/three"] {
                std::fs::hard_link(root.join("a/one"), root.join(name)).unwrap();
            }
        },
        |root| {
            python(
                root,
                r#"
def show(what):
    print(what)
    first = {}
    for d in ('a', 'b'):
        for n in sorted(os.listdir(d)):
            s = os.lstat(f'{d}/{n}'); print(f'{d}/{n}', s.st_nlink, first.setdefault(s.st_ino, f'{d}/{n}'), s.st_size)
fd = os.open('b/three', os.O_RDONLY)
show('begin')
os.link('a/one', 'b/four'); show('link')
open('a/two', 'a').write('more'); show('write'); print(os.pread(fd, 20, 0), os.fstat(fd).st_nlink)
os.rename('b/single', 'a/one'); show('rename over a link'); print(os.fstat(fd).st_nlink)
os.rename('b/four', 'b/other'); show('link renamed over another file')
os.rename('b/three', 'b/other'); show('rename onto a link of itself does nothing')
os.unlink('b/three'); show('unlink'); print(os.fstat(fd).st_nlink)
os.unlink('a/two'); os.unlink('b/other'); show('all'); print(os.fstat(fd).st_nlink, os.pread(fd, 20, 0))
"#,
            )
        },
    );
}

#[test]
fn link_counts_survive_a_remount() {
    need_unionfs!();
    use std::os::unix::fs::MetadataExt;
    for options in MOUNTS {
        let mut u = Union::new(1);
        u.set_options(options);
        for group in ["write", "unlink", "rename", "link"] {
            put(u.lower(0, format!("{group}/one")), "x");
            for name in ["two", "three"] {
                std::fs::hard_link(u.lower(0, format!("{group}/one")), u.lower(0, format!("{group}/{name}")))
                    .unwrap();
            }
        }
        u.mount();
        put(u.at("write/two"), "written");
        std::fs::remove_file(u.at("unlink/two")).unwrap();
        put(u.at("n"), "n");
        std::fs::rename(u.at("n"), u.at("rename/one")).unwrap();
        std::fs::hard_link(u.at("link/three"), u.at("link/four")).unwrap();
        for when in ["at once", "after a remount", "after another"] {
            for (name, count, content) in [
                ("write/one", 3, "written"),
                ("write/three", 3, "written"),
                ("unlink/one", 2, "x"),
                ("unlink/three", 2, "x"),
                ("rename/one", 1, "n"),
                ("rename/two", 2, "x"),
                ("rename/three", 2, "x"),
                ("link/one", 4, "x"),
                ("link/four", 4, "x"),
            ] {
                assert_eq!(u.at(name).metadata().unwrap().nlink(), count, "{name} {when} {options:?}");
                assert_eq!(std::fs::read_to_string(u.at(name)).unwrap(), content, "{name} {when}");
            }
            u.remount();
        }
    }
}

#[test]
fn link_through_proc_self_fd() {
    need_unionfs!();
    agree(
        |root| {
            for name in ["ro", "rw", "gone", "d/deep"] {
                put(root.join(name), "0123456789");
            }
        },
        |root| {
            python(
                root,
                r#"
AT_FDCWD, FOLLOW, EMPTY = -100, 0x400, 0x1000
def link(fd, to):
    return attempt(lambda: check(libc.linkat(AT_FDCWD, f'/proc/self/fd/{fd}'.encode(), AT_FDCWD, to.encode(), FOLLOW)))
ro, rw = os.open('ro', os.O_RDONLY), os.open('rw', os.O_RDWR)
os.pwrite(rw, b'before', 0)
print(link(ro, 'ro2'), link(rw, 'd/rw2'))
os.pwrite(rw, b'after', 0)
print(open('d/rw2').read(), open('ro2').read(), os.stat('ro2').st_ino == os.fstat(ro).st_ino)
print(os.fstat(ro).st_nlink, os.stat('rw').st_nlink, attempt(link, ro, 'rw'))
deep = os.open('d/deep', os.O_RDONLY)
os.rename('d/deep', 'moved'); print(link(deep, 'd/deep2'), open('d/deep2').read())
print(attempt(lambda: check(libc.linkat(deep, b'', AT_FDCWD, b'by-empty-path', EMPTY))), os.fstat(deep).st_nlink)
gone = os.open('gone', os.O_RDWR); os.unlink('gone'); print(link(gone, 'back'))
print(sorted(os.listdir('.')))
"#,
            )
        },
    );
}

/// What is exchanged, in lower and upper; `m` is a merged directory.
fn things(low: &std::path::Path, up: &std::path::Path) {
    for (root, p) in [(low, 'l'), (up, 'u')] {
        for i in 0..2 {
            put(root.join(format!("{p}file{i}")), format!("{p}file{i}"));
            put(root.join(format!("{p}dir{i}/sub/f")), format!("{p}dir{i}"));
            symlink(format!("{p}target{i}"), root.join(format!("{p}link{i}"))).unwrap();
            dir(root.join(format!("{p}empty{i}")));
            put(root.join(format!("m{i}/{p}")), "merged");
            put(root.join(format!("m{i}/sub/{p}")), "merged");
        }
    }
    put(low.join("linked0"), "linked");
    std::fs::hard_link(low.join("linked0"), low.join("linked1")).unwrap();
}

#[test]
fn exchange_of_any_mix() {
    need_unionfs!();
    let kinds = ["lfile", "ldir", "llink", "lempty", "ufile", "udir", "ulink", "uempty", "m", "linked"];
    let pairs: Vec<(String, String)> = kinds
        .iter()
        .enumerate()
        .flat_map(|(i, a)| kinds[i..].iter().map(move |b| (format!("{a}0"), format!("{b}1"))))
        .collect();
    for options in MOUNTS {
        let mut u = Union::new(1);
        u.set_options(options);
        let flat = u.dir().join("flat");
        for rel in ["here", "there/deep"] {
            things(&u.lower(0, rel), &u.upper(rel));
            things(&flat.join(rel), &flat.join(rel));
        }
        u.mount();
        for (i, (a, b)) in pairs.iter().enumerate() {
            for places in [["here", "here"], ["here", "there/deep"]] {
                for root in [&u.mnt(), &flat] {
                    let (a, b) = (root.join(places[0]).join(a), root.join(places[1]).join(b));
                    renameat_with(CWD, &a, CWD, &b, RenameFlags::EXCHANGE)
                        .unwrap_or_else(|e| panic!("{} and {}: {e}, {options:?}", a.display(), b.display()));
                }
                let what = format!("{a} and {b} exchanged, mount left; {options:?}");
                tree::assert_same(&what, &bare(&u.mnt()), &bare(&flat));
            }
            if i % 9 == 0 {
                u.remount();
                tree::assert_same(&format!("after a remount {options:?}"), &bare(&u.mnt()), &bare(&flat));
            }
        }
        for root in [&u.mnt(), &flat] {
            let path = |name: &str| root.join("here").join(name);
            let exchange =
                |a: &str, b: &str| renameat_with(CWD, path(a), CWD, path(b), RenameFlags::EXCHANGE);
            assert_eq!(exchange("lfile0", "none"), Err(rustix::io::Errno::NOENT));
            assert_eq!(exchange("none", "lfile0"), Err(rustix::io::Errno::NOENT));
            assert_eq!(exchange("m0", "m0"), Ok(()));
            assert_eq!(exchange("m0", "m0/sub"), Err(rustix::io::Errno::INVAL));
        }
        u.remount();
        tree::assert_same("at the end", &bare(&u.mnt()), &bare(&flat));
    }
}

/// A tree without times, which differ as the two were made at different moments.
fn bare(root: &std::path::Path) -> tree::Tree {
    let mut tree = tree::read(root);
    tree.values_mut().for_each(|n| n.mtime = (0, 0));
    tree.remove(std::path::Path::new(""));
    tree
}
