//! Renames of directories with what lies below them, exchanges, and numbers that outlive them.

use std::collections::BTreeMap;

use rustix::fs::RenameFlags;
use rustix::io::Errno;

use crate::tree::{Tree, is_opaque, is_whiteout, private, xattr};
use crate::union::Union;

const LOWER: &str = "f a/b/f 1\nf a/g 2\nd e\nf x/y/z 3\nl x/l a\nf file 4";
const LOWER2: &str = "f a/b/h 5\nf a/b/c/d 6\nf x/y/w 7";

fn two() -> Tree {
    Tree::on("f up/u 8\nf a/b/u 9", &[LOWER, LOWER2])
}

/// The tree must be the same on the reopened layers, numbers included.
#[track_caller]
fn same_again(t: &Tree, u: &Union) {
    let live = u.tree();
    assert_eq!(t.open().tree(), live);
    u.forget_all();
    assert_eq!(u.fs.counts(), (1, 0, 0));
    assert_eq!(u.tree(), live);
    assert_eq!(t.left_over(), [""; 0]);
}

/// What is below `path`, by path relative to it.
fn below(u: &Union, path: &str) -> BTreeMap<String, (Vec<u8>, u64)> {
    let all = u.tree().into_iter();
    all.filter_map(|(p, s)| {
        let rest = p.strip_prefix(path)?;
        (rest.is_empty() || rest.starts_with('/')).then(|| (rest.to_owned(), (s.content, s.ino)))
    })
    .collect()
}

#[test]
fn a_directory_of_any_make() {
    for dir in ["a", "a/b", "x", "x/y", "e", "up", "a/b/c"] {
        for new in ["n", "e/n", "x/n", "up/n", "a/n"] {
            if new.split_once('/').is_some_and(|(parent, _)| dir == parent) {
                continue;
            }
            let t = two();
            let u = t.open();
            let before = below(&u, dir);
            u.rename(dir, new).unwrap_or_else(|e| panic!("{dir} to {new}: {e}"));
            assert_eq!(u.ino(dir), Err(Errno::NOENT), "{dir} to {new}");
            assert_eq!(below(&u, new), before, "{dir} to {new}");
            same_again(&t, &u);
            // And back, by the same union or by another.
            let u = if new.len() % 2 == 0 { t.open() } else { u };
            u.rename(new, dir).unwrap();
            assert_eq!(below(&u, dir), before, "{new} back to {dir}");
            same_again(&t, &u);
        }
    }
}

#[test]
fn a_chain_of_renames_keeps_where_it_came_from() {
    let t = two();
    let mut u = t.open();
    let before = below(&u, "a/b");
    let mut at = "a/b";
    for (i, next) in ["a/c1", "a/c2", "e/c3", "c4", "x/y/c5", "e/c6", "a/b"].into_iter().enumerate() {
        u.rename(at, next).unwrap();
        assert_eq!(below(&u, next), before, "{at} to {next}");
        same_again(&t, &u);
        if i % 2 == 0 {
            u = t.open();
        }
        at = next;
    }
    assert_eq!(xattr(t.upper("a/b"), &private("redirect")).unwrap(), b"/a/b");
}

#[test]
fn a_parent_and_then_its_child() {
    let t = two();
    let u = t.open();
    let b = below(&u, "a/b");
    u.rename("a", "n").unwrap();
    u.rename("n/b", "n/m").unwrap();
    assert_eq!(below(&u, "n/m"), b);
    same_again(&t, &u);
    u.rename("n/m", "e/k").unwrap();
    assert_eq!(below(&u, "e/k"), b);
    same_again(&t, &u);
    let u = t.open();
    u.rename("n", "e/k/n").unwrap();
    u.rename("e", "a").unwrap();
    assert_eq!(below(&u, "a/k").len(), b.len() + below(&u, "a/k/n").len());
    assert_eq!(u.get("a/k/n/g").unwrap(), "2");
    same_again(&t, &u);
    // A new directory in the place of an old one shows nothing of it.
    u.mkdir("n").unwrap();
    u.mkdir("e").unwrap();
    u.mkdir("a/k/n/b").unwrap();
    for dir in ["n", "e", "a/k/n/b"] {
        assert_eq!(u.list(dir).unwrap(), [""; 0], "{dir}");
    }
    same_again(&t, &u);
}

#[test]
fn changes_below_a_renamed_directory() {
    let t = two();
    let u = t.open();
    u.rename("x", "e/x").unwrap();
    u.write("e/x/y/z", "Z").unwrap();
    u.unlink("e/x/y/w").unwrap();
    u.put("e/x/y/new", "new").unwrap();
    u.rename("e/x/l", "e/x/y/l").unwrap();
    same_again(&t, &u);
    let u = t.open();
    assert_eq!(below(&u, "e/x").into_keys().collect::<Vec<_>>(), ["", "/y", "/y/l", "/y/new", "/y/z"]);
    u.rename("e/x/y", "y").unwrap();
    assert_eq!(below(&u, "y").into_keys().collect::<Vec<_>>(), ["", "/l", "/new", "/z"]);
    same_again(&t, &u);
}

#[test]
fn over_an_empty_directory() {
    // Lower, upper, merged, merged with whiteouts inside, opaque.
    for source in ["a", "up", "e"] {
        for make in ["lower", "upper", "merged", "whiteouts", "opaque"] {
            let t = Tree::on(
                &format!("{}\nf up/u 8", if make == "merged" { "d t" } else { "" }),
                &[LOWER, if make == "whiteouts" || make == "opaque" { "f t/1\nf t/2/3" } else { "d t" }],
            );
            let u = t.open();
            match make {
                "whiteouts" | "opaque" => {
                    u.unlink("t/1").unwrap();
                    assert_eq!(u.rename(source, "t"), Err(Errno::NOTEMPTY));
                    u.unlink("t/2/3").unwrap();
                    u.rmdir("t/2").unwrap();
                }
                _ => {}
            }
            if make == "upper" || make == "opaque" {
                u.rmdir("t").unwrap();
                u.mkdir("t").unwrap();
            }
            let (before, over) = (below(&u, source), u.ino("t").unwrap());
            u.rename(source, "t").unwrap_or_else(|e| panic!("{source} over {make}: {e}"));
            assert_eq!(below(&u, "t"), before, "{source} over {make}");
            assert_eq!(u.ino(source), Err(Errno::NOENT));
            assert_eq!(u.fs.getattr(over, None).unwrap().nlink, 0);
            same_again(&t, &u);
        }
    }
}

#[test]
fn refusals() {
    let t = two();
    let u = t.open();
    let before = u.tree();
    for (from, to, error) in [
        ("a", "x", Errno::NOTEMPTY),
        ("a", "file", Errno::NOTDIR),
        ("file", "e", Errno::ISDIR),
        ("none", "n", Errno::NOENT),
        ("none", "file", Errno::NOENT),
        ("e", "x/y", Errno::NOTEMPTY),
    ] {
        assert_eq!(u.rename(from, to), Err(error), "{from} to {to}");
    }
    assert_eq!(u.rename_with("file", "e", RenameFlags::NOREPLACE), Err(Errno::EXIST));
    assert_eq!(u.rename_with("file", "n", RenameFlags::WHITEOUT), Err(Errno::INVAL));
    assert_eq!(u.exchange("file", "none"), Err(Errno::NOENT));
    assert_eq!(u.rename("file", "file"), Ok(()));
    assert_eq!(u.rename("a", "a"), Ok(()));
    assert_eq!(u.exchange("a", "a"), Ok(()));
    assert_eq!(u.tree(), before);
}

#[test]
fn files_in_every_direction() {
    let t = two();
    let u = t.open();
    let number = u.ino("a/g").unwrap();
    u.rename("a/g", "e/g").unwrap();
    u.rename("e/g", "a/b/c/g").unwrap();
    assert_eq!(u.ino("a/b/c/g").unwrap(), number);
    assert!(is_whiteout(t.upper("a/g")) && !t.upper("e/g").exists());
    u.rename("file", "a/b/c/g").unwrap();
    assert_eq!(u.get("a/b/c/g").unwrap(), "4");
    same_again(&t, &u);
    u.rename_with("a/b/c/g", "a/g", RenameFlags::NOREPLACE).unwrap();
    assert_eq!(u.get("a/g").unwrap(), "4");
    same_again(&t, &u);
}

#[test]
fn exchanges_of_any_mix() {
    let names = ["a", "a/b", "a/g", "e", "x/y", "x/l", "file", "up", "up/u", "a/b/u", "a/b/c"];
    for (i, one) in names.iter().enumerate() {
        for other in &names[i + 1..] {
            if other.strip_prefix(one).is_some_and(|r| r.starts_with('/')) {
                continue;
            }
            if !crate::tree::is_root() && [*one, *other].contains(&"x/l") {
                // A symlink takes no mark that would keep its number.
                continue;
            }
            let t = two();
            let u = t.open();
            let (first, second) = (below(&u, one), below(&u, other));
            u.exchange(one, other).unwrap_or_else(|e| panic!("{one} and {other}: {e}"));
            assert_eq!((below(&u, other), below(&u, one)), (first, second), "{one} and {other}");
            same_again(&t, &u);
            u.exchange(other, one).unwrap();
            assert_eq!(u.numbers(), two_numbers(&t, &u), "{one} and {other}");
        }
    }
}

/// Numbers by path as a union without history sees them.
fn two_numbers(t: &Tree, live: &Union) -> BTreeMap<String, u64> {
    live.forget_all();
    t.open().numbers()
}

#[test]
fn new_directories_where_deleted_ones_were() {
    let t = two();
    let u = t.open();
    let remove = |path: &str| {
        let mut all: Vec<String> = below(&u, path).into_keys().collect();
        all.reverse();
        for rest in all {
            let full = format!("{path}{rest}");
            u.unlink(&full).or_else(|e| if e == Errno::ISDIR { u.rmdir(&full) } else { Err(e) }).unwrap();
        }
    };
    for dir in ["a/b", "a", "x"] {
        remove(dir);
        assert_eq!(u.ino(dir), Err(Errno::NOENT));
        u.mkdir(dir).unwrap();
        assert!(is_opaque(t.upper(dir)), "{dir}");
        assert_eq!(u.list(dir).unwrap(), [""; 0]);
        same_again(&t, &u);
    }
    // By a rename, in the root and below.
    u.rmdir("x").unwrap();
    u.rename("up", "x").unwrap();
    assert_eq!(u.list("x").unwrap(), ["u"]);
    assert!(is_opaque(t.upper("x")));
    same_again(&t, &u);
    u.mkdir("x/y").unwrap();
    u.put("a/b", "a file now").unwrap();
    same_again(&t, &u);
}

#[test]
fn an_open_file_and_directory_follow() {
    let t = two();
    let u = t.open();
    let (file, dir) = (u.ino("a/b/h").unwrap(), u.ino("a/b").unwrap());
    let fh = u.open("a/b/h", libc::O_RDONLY).unwrap();
    u.rename("a", "e/a").unwrap();
    u.rename("e/a/b", "b").unwrap();
    assert_eq!(u.fs.getattr(file, Some(fh)).unwrap().ino, file);
    u.fs.setattr(
        &crate::union::caller(),
        file,
        &unionfs::fs::SetAttr { mode: Some(0o600), ..crate::union::KEEP },
        None,
    )
    .unwrap();
    assert_eq!(u.stat("b/h").unwrap().mode & 0o7777, 0o600);
    let mut seen = Vec::new();
    u.fs.readdir(dir, 0, &mut |e| {
        seen.push(e.name.to_owned());
        false
    })
    .unwrap();
    seen.sort();
    assert_eq!(seen, [".", "..", "c", "f", "h", "u"]);
    assert_eq!(u.look(dir, crate::tree::os("..")).unwrap().ino, unionfs::fs::ROOT);
    u.fs.release(fh);
    same_again(&t, &u);
}

#[test]
fn a_path_too_long_for_a_redirect() {
    let long = "n".repeat(200);
    let t = Tree::new(&[&format!("f {long}/{long}/f 1\nd e")]);
    let u = t.open();
    let dir = format!("{long}/{long}");
    assert_eq!(u.rename(&dir, "e/x"), Err(Errno::XDEV));
    u.rename(&dir, &format!("{long}/x")).unwrap();
    assert_eq!(u.get(&format!("{long}/x/f")).unwrap(), "1");
    same_again(&t, &u);
}
