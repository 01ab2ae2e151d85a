//! lookup and forget, whiteouts, opaque directories.

use rustix::io::Errno;
use unionfs::fs::ROOT;

use crate::tree::{Tree, os};

#[test]
fn nodes_live_as_long_as_lookups_count() {
    let t = Tree::new(&["f a/b/c text\nd e"]);
    let u = t.open();
    assert_eq!(u.fs.counts(), (1, 0, 0));
    let c = u.ino("a/b/c").unwrap();
    assert_eq!(u.ino("a/b/c").unwrap(), c);
    assert_eq!(u.fs.counts(), (4, 0, 0));
    u.fs.getattr(c, None).unwrap();
    u.forget_all();
    assert_eq!(u.fs.counts(), (1, 0, 0));
    assert_eq!(u.fs.getattr(c, None).unwrap_err(), Errno::STALE);
    assert_eq!(u.ino("a/b/c").unwrap(), c, "the number stays");
    // Only the leaf is known to the kernel; what leads to it stays for it.
    let (a, b) = (u.ino("a").unwrap(), u.ino("a/b").unwrap());
    u.fs.forget(a, 3);
    u.fs.forget(b, 2);
    assert_eq!(u.fs.counts().0, 4);
    assert_eq!(u.get("a/b/c").unwrap(), "text");
}

#[test]
fn an_open_file_keeps_its_node() {
    let t = Tree::new(&["f a/f text"]);
    let u = t.open();
    let fh = u.open("a/f", libc::O_RDONLY).unwrap();
    u.forget_all();
    assert_eq!(u.fs.counts(), (3, 1, 0));
    assert_eq!(u.read_fh(fh).unwrap(), b"text");
    u.fs.release(fh);
    assert_eq!(u.fs.counts(), (1, 0, 0));
    assert_eq!(u.fs.read(fh, 0, &mut [0]).unwrap_err(), Errno::BADF);
}

#[test]
fn failed_and_finished_operations_leave_no_node() {
    let t = Tree::new(&["f a/f text\nd a/d\nf g"]);
    let u = t.open();
    let a = u.ino("a").unwrap();
    assert_eq!(u.fs.unlink(a, os("f")), Ok(()));
    assert_eq!(u.fs.rmdir(a, os("d")), Ok(()));
    assert_eq!(u.fs.unlink(a, os("f")), Err(Errno::NOENT));
    assert_eq!(u.fs.rename(ROOT, os("g"), a, os("g"), rustix::fs::RenameFlags::empty()), Ok(()));
    assert_eq!(u.fs.counts().0, 2);
    u.fs.readdir(a, 0, &mut |_| false).unwrap();
    assert_eq!(u.fs.counts().0, 2);
}

#[test]
fn missing_names() {
    let t = Tree::new(&["f a/f", "d b"]);
    let u = t.open();
    assert_eq!(u.ino("x"), Err(Errno::NOENT));
    assert_eq!(u.ino("a/x"), Err(Errno::NOENT));
    assert_eq!(u.ino("a/f/x"), Err(Errno::NOTDIR));
    assert_eq!(u.ino(&"n".repeat(256)), Err(Errno::NAMETOOLONG));
    u.forget_all();
    assert_eq!(u.fs.counts(), (1, 0, 0));
    u.mkdir("x").unwrap();
    u.rmdir("x").unwrap();
    assert_eq!(u.ino("x"), Err(Errno::NOENT));
}

#[test]
fn dots() {
    let t = Tree::new(&["f a/b/f"]);
    let u = t.open();
    let (a, b) = (u.ino("a").unwrap(), u.ino("a/b").unwrap());
    assert_eq!(u.look(b, os(".")).unwrap().ino, b);
    assert_eq!(u.look(b, os("..")).unwrap().ino, a);
    assert_eq!(u.look(a, os("..")).unwrap().ino, ROOT);
    assert_eq!(u.look(ROOT, os("..")).unwrap().ino, ROOT);
    u.forget_all();
    assert_eq!(u.fs.counts(), (1, 0, 0));
}

/// All stacks of up to three layers where each has nothing, a file, a whiteout, a directory with a file
/// or an opaque one, under the same name; and some of four and five.
#[test]
fn every_stack_of_marks() {
    const KINDS: [&str; 5] = ["", "f n file", "w n", "f n/LAYER x", "o n\nf n/LAYER x"];
    for depth in 1..=5_u32 {
        for code in (0..5_u32.pow(depth)).step_by([1, 1, 1, 11, 37][depth as usize - 1]) {
            let kinds: Vec<usize> = (0..depth).map(|i| (code / 5_u32.pow(i) % 5) as usize).collect();
            let texts: Vec<String> =
                kinds.iter().enumerate().map(|(i, k)| KINDS[*k].replace("LAYER", &i.to_string())).collect();
            let mut expected = Vec::new();
            for (i, kind) in kinds.iter().enumerate() {
                match kind {
                    0 => continue,
                    1 if expected.is_empty() => expected.push("n=file".to_owned()),
                    3 | 4 => {
                        if expected.is_empty() {
                            expected.push("n/".to_owned());
                        }
                        expected.push(format!("n/{i}=x"));
                    }
                    _ => {}
                }
                if *kind != 3 {
                    break;
                }
            }
            // The topmost is the upper in half of the cases.
            let lowers: Vec<&str> = texts.iter().map(String::as_str).collect();
            let t = match lowers.split_first() {
                Some((upper, rest)) if code % 2 == 0 && !rest.is_empty() => Tree::on(upper, rest),
                _ => Tree::new(&lowers),
            };
            assert_eq!(t.open().show(), expected, "{texts:?}");
        }
    }
}

#[test]
fn whiteouts_in_nested_directories() {
    let t = Tree::new(&[
        "w d/e/gone\nf d/e/mine 0",
        "f d/e/gone 1\nf d/e/both 1\nw d/e/deep",
        "f d/e/both 2\nf d/e/deep 2\nf d/e/last 2\nw d/x",
        "o d/y\nf d/y/a 3\nf d/x 3",
        "f d/y/b 4\nf d/x 4\nf d/e/last 4",
    ]);
    let expected =
        ["d/", "d/e/", "d/e/both=1", "d/e/last=2", "d/e/mine=0", "d/y/", "d/y/a=3"].map(str::to_owned);
    assert_eq!(t.open().show(), expected);
    assert_eq!(t.read_only().open().show(), expected);
}

#[test]
fn whiteouts_in_xattr_form() {
    let t = Tree::new(&["x d/a\nf d/b", "f d/a 1\nf d/b 1\nf d/c 1\nd e"]);
    assert_eq!(t.open().show(), ["d/", "d/b=", "d/c=1", "e/"]);
    // Without the mark on the directory it is an empty file.
    crate::tree::set_xattr(t.lower("d"), &crate::tree::private("opaque"), "n");
    assert_eq!(t.open().show(), ["d/", "d/a=", "d/b=", "d/c=1", "e/"]);
}

#[test]
fn an_opaque_directory_over_a_file_and_the_reverse() {
    let t = Tree::new(&["f a file\nd b\nl c b", "f a/x\nf b file\nf c/y", "f b/z\nf c/y"]);
    assert_eq!(t.open().show(), ["a=file", "b/", "c>b"]);
}

#[test]
fn symlinks_in_layers_are_data() {
    let outside = std::path::Path::new("/etc");
    let t = Tree::new(&[&format!("l d {}\nl f ../secret\nl a/l ..", outside.display()), "f d/passwd lower"]);
    std::fs::write(t.path("secret"), "secret").unwrap();
    let u = t.open();
    assert_eq!(u.show(), ["a/", "a/l>..", "d>/etc", "f>../secret"]);
    assert_eq!(u.ino("d/passwd"), Err(Errno::NOTDIR));
    assert_eq!(u.ino("a/l/a"), Err(Errno::NOTDIR));
    assert_eq!(u.put("d/new", "x"), Err(Errno::NOTDIR));
    assert_eq!(u.open("f", libc::O_RDONLY).unwrap_err(), Errno::NXIO);
    assert_eq!(u.fs.readdir(u.ino("d").unwrap(), 0, &mut |_| false).unwrap_err(), Errno::NOTDIR);
    u.set("f", unionfs::fs::SetAttr { uid: Some(crate::union::caller().uid), ..crate::union::KEEP }).unwrap();
    assert_eq!(u.fs.readlink(u.ino("f").unwrap()).unwrap(), "../secret");
    assert_eq!(std::fs::read_to_string(t.path("secret")).unwrap(), "secret");
}

#[test]
fn deleted_and_made_anew() {
    let t = Tree::new(&["f f old\nf d/x old\nf d/y old", "f d/z old"]);
    let u = t.open();
    u.unlink("f").unwrap();
    for name in ["d/x", "d/y", "d/z"] {
        u.unlink(name).unwrap();
    }
    assert_eq!(u.list("d").unwrap(), [""; 0]);
    u.rmdir("d").unwrap();
    assert_eq!(u.show(), [""; 0]);
    assert!(crate::tree::is_whiteout(t.upper("f")) && crate::tree::is_whiteout(t.upper("d")));
    assert_eq!(t.open().show(), [""; 0]);
    u.mkdir("d").unwrap();
    assert!(crate::tree::is_opaque(t.upper("d")));
    u.put("f", "new").unwrap();
    u.put("d/x", "new").unwrap();
    assert_eq!(u.show(), ["d/", "d/x=new", "f=new"]);
    assert_eq!(t.open().show(), u.show());
    u.unlink("d/x").unwrap();
    assert_eq!(crate::tree::names(&t.upper("d")), [""; 0], "no whiteout where nothing is below");
    assert_eq!(t.left_over(), [""; 0]);
}

#[test]
fn listings_go_on_where_they_stopped() {
    let files: String = (0..50).map(|i| format!("f d/{i:02} x\n")).collect();
    let t = Tree::new(&[&files, "f d/00 y\nf d/last"]);
    let u = t.open();
    let d = u.ino("d").unwrap();
    let (mut offset, mut seen, mut counted) = (0, Vec::new(), Vec::new());
    loop {
        let mut room = 7;
        let before = seen.len();
        u.fs.readdirplus(d, offset, true, &mut |e, attr| {
            if room == 0 {
                return true;
            }
            room -= 1;
            offset = e.next;
            assert_eq!(attr.is_none(), e.name == "." || e.name == "..");
            if let Some(attr) = attr {
                assert_eq!(attr.ino, e.ino);
                counted.push(e.ino);
            }
            seen.push(e.name.to_owned());
            false
        })
        .unwrap();
        if seen.len() == before {
            break;
        }
        // Names that go while the listing is open do not disturb the rest.
        if before == 0 {
            let later = (0..50).map(|i| format!("{i:02}")).find(|n| !seen.contains(&n.into())).unwrap();
            u.unlink(&format!("d/{later}")).unwrap();
        }
    }
    seen.sort();
    seen.dedup();
    assert_eq!(seen.len(), 2 + 50);
    counted.into_iter().for_each(|ino| u.fs.forget(ino, 1));
    u.forget_all();
    assert_eq!(u.fs.counts(), (1, 0, 0));
}

#[test]
fn a_read_only_stack_refuses_every_change() {
    let t = Tree::new(&["f f text\nd d", "f g"]).read_only();
    let u = t.open();
    assert_eq!(u.put("n", ""), Err(Errno::ROFS));
    assert_eq!(u.mkdir("n"), Err(Errno::ROFS));
    assert_eq!(u.unlink("f"), Err(Errno::ROFS));
    assert_eq!(u.rmdir("d"), Err(Errno::ROFS));
    assert_eq!(u.rename("f", "h"), Err(Errno::ROFS));
    assert_eq!(u.exchange("f", "g"), Err(Errno::ROFS));
    assert_eq!(u.link("f", "h").unwrap_err(), Errno::ROFS);
    assert_eq!(u.chmod("f", 0o600).unwrap_err(), Errno::ROFS);
    assert_eq!(u.open("f", libc::O_RDWR).unwrap_err(), Errno::ROFS);
    assert_eq!(u.get("f").unwrap(), "text");
}
