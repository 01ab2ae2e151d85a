//! Files that have no name left and are still open.

use rustix::io::Errno;
use unionfs::fs::SetAttr;

use crate::tree::{Tree, os};
use crate::union::{KEEP, Union, caller};

/// Does all that can be done with an open file that has no name.
fn use_it(u: &Union, ino: u64, fh: u64, content: &[u8]) {
    let nlink = |fh| u.fs.getattr(ino, fh).unwrap().nlink;
    assert_eq!((nlink(None), nlink(Some(fh))), (0, 0));
    assert_eq!(u.read_fh(fh).unwrap(), content);
    let set = |set: SetAttr, fh| u.fs.setattr(&caller(), ino, &set, fh).unwrap();
    assert_eq!(set(SetAttr { mode: Some(0o640), ..KEEP }, Some(fh)).mode & 0o7777, 0o640);
    let me = caller().uid;
    assert_eq!(set(SetAttr { uid: Some(me), ..KEEP }, None).uid, me);
    u.fs.setxattr(&caller(), ino, os("user.k"), b"v", rustix::fs::XattrFlags::empty()).unwrap();
    assert_eq!(u.fs.getxattr(ino, os("user.k")).unwrap(), b"v");
    u.fs.removexattr(ino, os("user.k")).unwrap();
    assert_eq!(set(SetAttr { size: Some(2), ..KEEP }, None).size, 2);
    assert_eq!(u.read_fh(fh).unwrap(), &content[..2]);
    // By a new handle, as through /proc/self/fd.
    let other = u.fs.open_file(&caller(), ino, libc::O_RDWR, &mut |_| None).unwrap().fh;
    assert_eq!(u.fs.write(other, 1, b"new", None).unwrap().0, 3);
    assert_eq!(&u.read_fh(fh).unwrap()[1..], b"new");
    u.fs.fsync(other, false).unwrap();
    assert_eq!((nlink(None), nlink(Some(fh))), (0, 0));
    assert_eq!(u.link_ino(ino, "back").unwrap_err(), Errno::NOENT);
    u.fs.release(other);
    u.fs.release(fh);
    u.forget_all();
    assert_eq!(u.fs.counts(), (1, 0, 0));
}

#[test]
fn upper_lower_and_copied_up_files() {
    for made in ["upper", "lower", "copied"] {
        for over in [false, true] {
            for flags in [libc::O_RDONLY, libc::O_RDWR] {
                let t = Tree::on("f d/upper content", &["f d/lower content\nf d/copied content\nf z"]);
                let before = t.snapshot("lower0");
                let u = t.open();
                let path = format!("d/{made}");
                if made == "copied" {
                    u.chmod(&path, 0o600).unwrap();
                }
                let fh = u.open(&path, flags).unwrap();
                let ino = u.ino(&path).unwrap();
                if over {
                    u.rename("z", &path).unwrap();
                } else {
                    u.unlink(&path).unwrap();
                }
                use_it(&u, ino, fh, b"content");
                assert_eq!(t.left_over(), [""; 0]);
                assert_eq!(t.snapshot("lower0"), before);
                let again = t.open();
                assert_eq!(again.get(&path).ok(), over.then(String::new));
            }
        }
    }
}

#[test]
fn a_lower_file_is_not_copied_up_when_it_is_unlinked() {
    let t = Tree::new(&["f f content"]);
    let u = t.open();
    let fh = u.open("f", libc::O_RDONLY).unwrap();
    u.unlink("f").unwrap();
    assert!(crate::tree::is_whiteout(t.upper("f")));
    assert_eq!(u.read_fh(fh).unwrap(), b"content");
    // A new file of the same name is another object.
    let old = u.fs.getattr(u.put("f", "new").unwrap(), None).unwrap().ino;
    assert_eq!(u.get("f").unwrap(), "new");
    assert_eq!(u.read_fh(fh).unwrap(), b"content");
    assert_eq!(u.ino("f").unwrap(), old);
    u.fs.release(fh);
}

#[test]
fn a_read_only_handle_sees_writes_of_others() {
    let t = Tree::new(&["f d/f old\nh d/g d/f"]);
    let u = t.open();
    let early = u.open("d/f", libc::O_RDONLY).unwrap();
    assert_eq!(u.read_fh(early).unwrap(), b"old");
    u.write("d/g", "new").unwrap();
    assert_eq!(u.read_fh(early).unwrap(), b"new");
    u.rename("d/f", "moved").unwrap();
    u.write("moved", "NEW").unwrap();
    assert_eq!(u.read_fh(early).unwrap(), b"NEW");
    let ino = u.ino("moved").unwrap();
    u.unlink("moved").unwrap();
    u.unlink("d/g").unwrap();
    use_it(&u, ino, early, b"NEW");
}

#[test]
fn opened_while_lower_then_truncated_and_unlinked() {
    let t = Tree::new(&["f f content"]);
    let u = t.open();
    let early = u.open("f", libc::O_RDONLY).unwrap();
    let writer = u.open("f", libc::O_WRONLY | libc::O_TRUNC).unwrap();
    assert_eq!(u.read_fh(early).unwrap(), b"");
    u.unlink("f").unwrap();
    u.fs.write(writer, 0, b"after", None).unwrap();
    assert_eq!(u.read_fh(early).unwrap(), b"after");
    u.fs.release(writer);
    u.fs.release(early);
}

#[test]
fn removed_directories() {
    for upper in [false, true] {
        let t = Tree::new(&["d d/e\nf f"]);
        let u = t.open();
        if upper {
            u.chmod("d/e", 0o700).unwrap();
        }
        let ino = u.ino("d/e").unwrap();
        u.rmdir("d/e").unwrap();
        assert_eq!(u.fs.getattr(ino, None).unwrap().nlink, 0);
        assert_eq!(u.look(ino, os("x")).unwrap_err(), Errno::NOENT);
        assert_eq!(u.fs.mkdir(&caller(), ino, os("x"), 0o755).unwrap_err(), Errno::NOENT);
        assert_eq!(u.link("f", "g").unwrap().nlink, 2);
        assert_eq!(u.fs.link(u.ino("f").unwrap(), ino, os("x")).unwrap_err(), Errno::NOENT);
        assert_eq!(u.fs.readdir(ino, 0, &mut |_| false).unwrap_err(), Errno::NOENT);
        u.mkdir("d/e").unwrap();
        assert_eq!(u.list("d/e").unwrap(), [""; 0]);
        assert_ne!(u.ino("d/e").unwrap(), 0);
        u.forget_all();
        assert_eq!(u.fs.counts(), (1, 0, 0));
    }
}

#[test]
fn one_of_several_upper_names_that_were_never_looked_up() {
    let t = Tree::on("f a text\nh b a", &["f x"]);
    let u = t.open();
    let fh = u.open("a", libc::O_RDWR).unwrap();
    let ino = u.ino("a").unwrap();
    u.unlink("a").unwrap();
    assert_eq!(u.fs.getattr(ino, None).unwrap().nlink, 1);
    assert_eq!(u.ino("b").unwrap(), ino);
    u.unlink("b").unwrap();
    use_it(&u, ino, fh, b"text");
}
