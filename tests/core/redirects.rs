//! Redirects found in layers, good and bad ones.

use rustix::io::Errno;

use crate::tree::Tree;

#[test]
fn relative() {
    let t = Tree::on("r p/new old\nw p/old\nf p/new/u u", &["f p/old/l l\nf p/new/hidden"]);
    assert_eq!(t.open().show(), ["p/", "p/new/", "p/new/l=l", "p/new/u=u"]);
}

#[test]
fn absolute() {
    let t = Tree::on("i b\nr b/x /a/y\nw a/y\nf b/x/u u", &["f a/y/l l", "f a/y/m m\nf b/x/hidden"]);
    assert_eq!(t.open().show(), ["a/", "b/", "b/x/", "b/x/l=l", "b/x/m=m", "b/x/u=u"]);
}

#[test]
fn chained_over_layers() {
    // Each layer knows the directory by another name.
    let t = Tree::on(
        "i e\nr e/d /c\nf e/d/0 0\nw c",
        &["r c b\nf c/1 1\nw b", "r b /deep/a\nf b/2 2", "f deep/a/3 3", "f deep/a/4 4"],
    );
    let shown = t.open().show();
    let of_d: Vec<&str> = shown.iter().filter_map(|s| s.strip_prefix("e/d/")).collect();
    assert_eq!(of_d, ["", "0=0", "1=1", "2=2", "3=3", "4=4"]);
    assert_eq!(t.open().ino("c"), Err(Errno::NOENT));
}

#[test]
fn through_redirected_ancestors() {
    // "/p/x" lies in a directory that the middle layer knows as "q".
    let t = Tree::on("r y /p/x\nw p/x\nw q", &["r p /q\nf p/x/1 1", "f q/x/2 2\nf p/x/not 2"]);
    let shown = t.open().show();
    let of_y: Vec<&str> = shown.iter().filter_map(|s| s.strip_prefix("y/")).collect();
    assert_eq!(of_y, ["", "1=1", "2=2"]);
}

#[test]
fn opaque_and_whiteouts_end_a_redirected_directory() {
    let t = Tree::on("r n /o", &["f o/1 1", "o o\nf o/2 2", "f o/3 3"]);
    assert_eq!(t.open().list("n").unwrap(), ["1", "2"]);
    let t = Tree::on("r n /o", &["f o/1 1", "w o", "f o/3 3"]);
    assert_eq!(t.open().list("n").unwrap(), ["1"]);
    let t = Tree::on("r n /p/o", &["f p/o/1 1", "o p", "f p/o/3 3"]);
    assert_eq!(t.open().list("n").unwrap(), ["1"]);
}

#[test]
fn in_a_directory_of_the_upper_alone() {
    // Moved there by someone who does not mark directories as impure.
    let t = Tree::on("w old\nr new/dir /old", &["f old/l l"]);
    let u = t.open();
    assert_eq!(u.list("new").unwrap(), ["dir"]);
    assert_eq!(u.list("new/dir").unwrap(), ["l"]);
}

#[test]
fn to_nowhere_or_to_a_file() {
    let t =
        Tree::on("r a /missing/x\nr b gone\nr c /f\nr d /f/x\nr e /l/x", &["f f file\nl l d2\nf d2/x/no"]);
    let u = t.open();
    for name in ["a", "b", "c", "d", "e"] {
        assert_eq!(u.list(name).unwrap(), [""; 0], "{name}");
    }
}

#[test]
fn malformed_ones_are_refused_and_never_leave_the_layer() {
    for bad in
        ["..", ".", "/", "a/b", "/..", "/../secret", "/a/../../secret", "../secret", "//a", "/a/", "a/.."]
    {
        let t = Tree::on(&format!("r d {bad}\nf ok"), &["f a/b/x\nf d/x"]);
        std::fs::create_dir(t.path("secret")).unwrap();
        let u = t.open();
        assert_eq!(u.ino("d"), Err(Errno::IO), "{bad}");
        assert_eq!(u.get("ok").unwrap(), "");
        assert_eq!(u.rmdir("d"), Err(Errno::IO), "{bad}");
        assert_eq!(u.rename("d", "e"), Err(Errno::IO), "{bad}");
        assert_eq!(u.rename("ok", "d"), Err(Errno::IO), "{bad}");
    }
    let long = format!("/{}", "n".repeat(300));
    let t = Tree::on(&format!("r d {long}"), &["f x"]);
    assert_eq!(t.open().ino("d"), Err(Errno::IO));
    for bad in [&b""[..], b"a\0b", b"/a\0"] {
        let t = Tree::on("d d", &["f a/x"]);
        crate::tree::set_xattr(t.upper("d"), &crate::tree::private("redirect"), bad);
        assert_eq!(t.open().ino("d"), Err(Errno::IO), "{bad:?}");
    }
}

#[test]
fn loops_end() {
    let t = Tree::on("r a b\nr b a", &["f a/1\nf b/2"]);
    let u = t.open();
    assert_eq!(u.list("a").unwrap(), ["2"]);
    assert_eq!(u.list("b").unwrap(), ["1"]);
    let t = Tree::on("r a /a/a/a\nr a/a /a", &["r a /b/a\nr b /a", "r a /a/b\nr a/b /a/b", "f a/b/c"]);
    let u = t.open();
    // Whatever it shows: it comes to an end and fails in an orderly way, if at all.
    for path in ["a", "a/a", "a/a/a", "b", "a/b"] {
        let ok = matches!(u.ino(path), Ok(_) | Err(Errno::NOENT | Errno::LOOP | Errno::IO));
        assert!(ok, "{path}");
    }
}

#[test]
fn too_many_are_refused_in_time() {
    // Each layer doubles the work: its redirect passes twice through the next one's.
    let text = "r a /a/a\nr a/a /a/a";
    let layers = vec![text; 60];
    let t = Tree::on("r x /a/a/a/a", &layers);
    let start = std::time::Instant::now();
    let found = t.open().ino("x");
    assert!(matches!(found, Ok(_) | Err(Errno::LOOP)), "{found:?}");
    assert!(start.elapsed().as_secs() < 10);
}
