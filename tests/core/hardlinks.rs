//! Hardlinks in lowers stay one object, whatever is done with their names.

use crate::tree::{Tree, private, set_xattr};
use crate::union::Union;

fn three() -> Tree {
    Tree::new(&["f a text\nd d\nh d/b a\nh d/c a\nf other"])
}

/// All these names are one object with so many names.
#[track_caller]
fn one(u: &Union, names: &[&str], nlink: u32, content: &str) -> u64 {
    let ino = u.ino(names[0]).unwrap();
    for name in names {
        assert_eq!(u.ino(name).unwrap(), ino, "{name}");
        assert_eq!(u.nlink(name), nlink, "{name}");
        assert_eq!(u.get(name).unwrap(), content, "{name}");
    }
    ino
}

/// As [`one`], on the live union, on one that knows nothing yet and on the reopened layers.
#[track_caller]
fn everywhere(t: &Tree, u: &Union, names: &[&str], nlink: u32, content: &str) -> u64 {
    let ino = one(u, names, nlink, content);
    u.forget_all();
    assert_eq!(one(u, names, nlink, content), ino);
    let mut reversed = names.to_vec();
    reversed.reverse();
    let again = t.open();
    assert_eq!(one(&again, &reversed, nlink, content), ino);
    assert_eq!(t.left_over(), [""; 0]);
    ino
}

#[test]
fn copied_up_by_one_name() {
    let t = three();
    let u = t.open();
    let ino = everywhere(&t, &u, &["a", "d/b", "d/c"], 3, "text");
    u.write("d/b", "TEXT").unwrap();
    assert_eq!(everywhere(&t, &u, &["a", "d/b", "d/c"], 3, "TEXT"), ino);
    assert_eq!(t.index().len(), 1);
    u.write("a", "Text").unwrap();
    assert_eq!(everywhere(&t, &u, &["a", "d/b", "d/c"], 3, "Text"), ino);
    assert_eq!(std::fs::read_to_string(t.lower("a")).unwrap(), "text");
    let up = ["a", "d/b", "d/c"].iter().filter(|n| t.upper(n).exists()).count();
    assert_eq!(up, 1, "other names stay lower");
}

#[test]
fn unlinked_one_by_one() {
    for order in [["a", "d/b", "d/c"], ["d/c", "a", "d/b"], ["d/b", "d/c", "a"]] {
        for copied in [None, Some(0), Some(1), Some(2)] {
            let t = three();
            let mut u = t.open();
            let ino = u.ino("a").unwrap();
            if let Some(i) = copied {
                u.chmod(order[i], 0o600).unwrap();
            }
            for i in 0..3 {
                u.unlink(order[i]).unwrap();
                let left = &order[i + 1..];
                if left.is_empty() {
                    break;
                }
                assert_eq!(everywhere(&t, &u, left, left.len() as u32, "text"), ino, "{order:?} {copied:?}");
                if i == 0 {
                    u = t.open();
                }
            }
            u.forget_all();
            assert_eq!(u.fs.counts(), (1, 0, 0));
            assert_eq!(t.index(), [""; 0], "{order:?} {copied:?}");
            assert_eq!(t.open().show(), ["d/", "other="]);
        }
    }
}

#[test]
fn linked_once_more() {
    let t = three();
    let u = t.open();
    let attr = u.link("d/c", "d/e").unwrap();
    assert_eq!(attr.nlink, 4);
    assert_eq!(everywhere(&t, &u, &["a", "d/b", "d/c", "d/e"], 4, "text"), attr.ino);
    u.write("a", "TEXT").unwrap();
    everywhere(&t, &u, &["d/e", "a", "d/b", "d/c"], 4, "TEXT");
    for (left, name) in [(3, "a"), (2, "d/b"), (1, "d/c")] {
        u.unlink(name).unwrap();
        everywhere(&t, &u, &["d/e"], left, "TEXT");
    }
    u.unlink("d/e").unwrap();
    assert_eq!(t.index(), [""; 0]);
}

#[test]
fn linked_in_place_of_a_whiteout() {
    let t = three();
    let u = t.open();
    u.unlink("other").unwrap();
    u.link("a", "other").unwrap();
    everywhere(&t, &u, &["a", "other", "d/b", "d/c"], 4, "text");
    u.unlink("d/b").unwrap();
    u.link("other", "d/b").unwrap();
    everywhere(&t, &u, &["a", "other", "d/b", "d/c"], 4, "text");
}

#[test]
fn renamed() {
    let t = three();
    let u = t.open();
    let ino = u.ino("a").unwrap();
    u.rename("a", "x").unwrap();
    assert_eq!(everywhere(&t, &u, &["x", "d/b", "d/c"], 3, "text"), ino);
    // A name that is still lower, of a file that is in the upper.
    u.rename("d/b", "y").unwrap();
    assert_eq!(everywhere(&t, &u, &["x", "y", "d/c"], 3, "text"), ino);
    let u = t.open();
    u.rename("d/c", "d/z").unwrap();
    assert_eq!(everywhere(&t, &u, &["x", "y", "d/z"], 3, "text"), ino);
    u.rename("x", "y").unwrap();
    assert_eq!(everywhere(&t, &u, &["x", "y", "d/z"], 3, "text"), ino);
    for name in ["x", "y", "d/z"] {
        u.unlink(name).unwrap();
    }
    assert_eq!(t.index(), [""; 0]);
    assert_eq!(t.open().show(), ["d/", "other="]);
}

#[test]
fn renamed_over() {
    for copied in [false, true] {
        let t = three();
        let u = t.open();
        if copied {
            u.write("d/c", "TEXT").unwrap();
        }
        let text = if copied { "TEXT" } else { "text" };
        u.rename("other", "d/b").unwrap();
        everywhere(&t, &u, &["a", "d/c"], 2, text);
        let u = t.open();
        u.put("new", "new").unwrap();
        u.rename("new", "a").unwrap();
        everywhere(&t, &u, &["d/c"], 1, text);
        u.put("new", "new").unwrap();
        u.rename("new", "d/c").unwrap();
        assert_eq!(t.index(), [""; 0]);
        assert_eq!(t.open().show(), ["a=new", "d/", "d/b=", "d/c=new"]);
    }
}

#[test]
fn exchanged() {
    let t = three();
    let u = t.open();
    let ino = u.ino("a").unwrap();
    u.exchange("d/b", "other").unwrap();
    assert_eq!(everywhere(&t, &u, &["a", "other", "d/c"], 3, "text"), ino);
    u.exchange("a", "d/c").unwrap();
    assert_eq!(everywhere(&t, &u, &["a", "other", "d/c"], 3, "text"), ino);
    u.exchange("a", "d").unwrap();
    assert_eq!(everywhere(&t, &u, &["d", "other", "a/c"], 3, "text"), ino);
}

#[test]
fn last_name_goes_while_open() {
    let t = three();
    let u = t.open();
    let fh = u.open("a", libc::O_RDONLY).unwrap();
    let ino = u.ino("a").unwrap();
    for (left, name) in [(2, "d/b"), (1, "a"), (0, "d/c")] {
        u.unlink(name).unwrap();
        assert_eq!(u.fs.getattr(ino, Some(fh)).unwrap().nlink, left);
        assert_eq!(u.fs.getattr(ino, None).unwrap().nlink, left);
    }
    assert_eq!(t.index(), [""; 0]);
    assert_eq!(u.read_fh(fh).unwrap(), b"text");
    assert_eq!(u.link_ino(ino, "again").unwrap_err(), rustix::io::Errno::NOENT);
    u.fs.release(fh);
    u.forget_all();
    assert_eq!(u.fs.counts(), (1, 0, 0));
}

#[test]
fn upper_hardlinks() {
    let t = Tree::on("f a text\nh b a\nd d\nh d/c a", &["f b lower\nf low"]);
    let u = t.open();
    let ino = everywhere(&t, &u, &["a", "b", "d/c"], 3, "text");
    let fh = u.open("d/c", libc::O_RDWR).unwrap();
    u.rename("a", "d/e").unwrap();
    assert_eq!(everywhere(&t, &u, &["b", "d/c", "d/e"], 3, "text"), ino);
    u.rename("low", "d/e").unwrap();
    u.unlink("b").unwrap();
    assert_eq!(everywhere(&t, &u, &["d/c"], 1, "text"), ino);
    u.unlink("d/c").unwrap();
    assert_eq!(u.fs.getattr(ino, None).unwrap().nlink, 0);
    u.fs.write(fh, 4, b"!", None).unwrap();
    assert_eq!(u.read_fh(fh).unwrap(), b"text!");
    u.fs.release(fh);
}

/// A file whose names lie in two lowers' views: the upper one hides a name of the lower one.
#[test]
fn names_hidden_by_another_layer() {
    let t = Tree::new(&["w b\nf c mine", "f a text\nh b a\nh c a\nh d a"]);
    let u = t.open();
    let ino = u.ino("a").unwrap();
    assert_eq!(u.ino("d").unwrap(), ino);
    u.write("a", "TEXT").unwrap();
    assert_eq!(u.get("d").unwrap(), "TEXT");
    assert_eq!(u.ino("d").unwrap(), ino);
    u.unlink("a").unwrap();
    u.unlink("d").unwrap();
    assert_eq!(t.open().show(), ["c=mine"]);
}

#[test]
fn symlinks_and_special_files_have_hardlinks_too() {
    if !crate::tree::is_root() {
        // They take no mark that would keep them together, and are changed one by one.
        let t = Tree::new(&["l a target\nh b a\np f\nh g f"]);
        let u = t.open();
        for name in ["a", "f"] {
            u.rename(name, &format!("{name}2")).unwrap();
        }
        u.unlink("b").unwrap();
        assert_eq!(u.show(), ["a2>target", "f2 Fifo", "g Fifo"]);
        assert_eq!((u.nlink("a2"), u.nlink("f2")), (1, 1));
        assert_eq!(t.open().show(), u.show());
        return;
    }
    let t = Tree::new(&["l a target\nh b a\np f\nh g f"]);
    let u = t.open();
    for (x, y) in [("a", "b"), ("f", "g")] {
        let ino = u.ino(x).unwrap();
        assert_eq!((u.ino(y).unwrap(), u.nlink(y)), (ino, 2));
        let set = unionfs::fs::SetAttr { mtime: unionfs::fs::SetTime::At(5, 6), ..crate::union::KEEP };
        u.set(x, set).unwrap();
        assert_eq!((u.ino(y).unwrap(), u.nlink(y), u.stat(y).unwrap().mtime), (ino, 2, (5, 6)), "{y}");
        u.rename(y, "moved").unwrap();
        assert_eq!((u.ino("moved").unwrap(), u.nlink("moved")), (ino, 2));
        let again = t.open();
        assert_eq!((again.ino("moved").unwrap(), again.ino(x).unwrap(), again.nlink(x)), (ino, ino, 2));
        u.unlink("moved").unwrap();
        u.unlink(x).unwrap();
    }
    assert_eq!(t.index(), [""; 0]);
}

#[test]
fn linked_by_others_in_the_upper() {
    // Who does not know the mark of impure directories leaves names with an origin in any.
    let t = three();
    t.open().chmod("d/b", 0o600).unwrap();
    std::fs::create_dir(t.upper("new")).unwrap();
    for name in ["new/x", "new/y"] {
        std::fs::hard_link(t.upper("d/b"), t.upper(name)).unwrap();
    }
    let u = t.open();
    assert_eq!(u.list("new").unwrap(), ["x", "y"]);
    assert_eq!(u.ino("new/x"), u.ino("d/b"));
}

/// What a crash leaves while the name of a copied-up file becomes a real one: the record of the number of names, with the
/// name or without.
#[test]
fn counted_right_after_a_crash() {
    for linked in [false, true] {
        let t = three();
        let u = t.open();
        u.chmod("a", 0o600).unwrap();
        u.chmod("d", 0o700).unwrap();
        drop(u);
        let copy = t.upper("a");
        set_xattr(&copy, &private("nlink"), b"N+3");
        if linked {
            std::fs::hard_link(&copy, t.upper("d/b")).unwrap();
        }
        let u = t.open();
        everywhere(&t, &u, &["a", "d/b", "d/c"], 3, "text");
        u.unlink("d/b").unwrap();
        everywhere(&t, &u, &["a", "d/c"], 2, "text");
        u.unlink("a").unwrap();
        everywhere(&t, &u, &["d/c"], 1, "text");
        u.unlink("d/c").unwrap();
        u.forget_all();
        assert_eq!(t.index(), [""; 0], "{linked}");
    }
}
