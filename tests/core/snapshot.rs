//! What is live, written out by one and read back by another that goes on.

use std::os::fd::OwnedFd;

use unionfs::fs::Backing;
use unionfs::fs::snapshot::{Kept, Snapshot};

use crate::tree::Tree;
use crate::union::Union;

struct Pins<'a>(&'a Union);

impl Kept for Pins<'_> {
    fn pin(&mut self, ino: u64) -> Option<OwnedFd> {
        self.0.fs.nameless(ino)?.1.try_clone().ok()
    }

    fn backing(&mut self, _id: i32) -> Option<Backing> {
        None
    }
}

#[test]
fn a_successor_goes_on() {
    let t = Tree::on("f up/u upper", &["f d/e/low lower\nf removed lower\nf copied lower"]);
    let u = t.open();
    let handles = [
        (u.open("up/u", libc::O_RDWR).unwrap(), "upper"),
        (u.open("d/e/low", libc::O_RDONLY).unwrap(), "lower"),
        (u.open("removed", libc::O_RDONLY).unwrap(), "lower"),
        (u.open("copied", libc::O_RDWR).unwrap(), "lower"),
    ];
    let removed = u.ino("removed").unwrap();
    u.unlink("removed").unwrap();
    u.rename("d/e", "up/moved").unwrap();
    u.put("new", "new").unwrap();
    let shown = u.tree();
    let written = serde_json::to_string(&u.fs.snapshot(|_| None)).unwrap();
    let snapshot: Snapshot = serde_json::from_str(&written).unwrap();

    let next = t.open();
    let lost = next.fs.restore(&snapshot, &mut Pins(&u));
    assert_eq!((lost.nodes, lost.files), (vec![], vec![]));
    assert_eq!(next.fs.counts(), u.fs.counts());
    drop(u);
    for (fh, content) in handles {
        assert_eq!(next.read_fh(fh).unwrap(), content.as_bytes());
    }
    assert_eq!(next.fs.getattr(removed, None).unwrap().nlink, 0);
    assert_eq!(next.fs.write(handles[0].0, 5, b" and more", None).unwrap().0, 9);
    assert_eq!(next.get("up/u").unwrap(), "upper and more");
    // The same numbers, and a handle that no open file has.
    let inos = |tree: &std::collections::BTreeMap<String, crate::union::Shown>| {
        tree.iter().map(|(path, shown)| (path.clone(), shown.ino)).collect::<Vec<_>>()
    };
    assert_eq!(inos(&next.tree()), inos(&shown));
    let more = next.open("new", libc::O_RDONLY).unwrap();
    assert!(handles.iter().all(|(fh, _)| *fh != more));
    // Lookups that the predecessor has told of are forgotten here.
    for (fh, _) in handles {
        next.fs.release(fh);
    }
    next.fs.release(more);
    next.forget_all();
    for node in &snapshot.nodes {
        next.fs.forget(node.ino, node.lookups);
    }
    assert_eq!(next.fs.counts(), (1, 0, 0));
}
