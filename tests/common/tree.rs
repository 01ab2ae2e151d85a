//! A tree as a value, to compare two of them.

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsString;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::files::{xattr, xattr_names};

/// One object of a tree, with all that a user can see of it and that survives a change of filesystem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Type and permissions.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Size of what is not a directory.
    pub size: u64,
    /// Device number of a device node.
    pub rdev: u64,
    /// Modification time of what is not a directory.
    pub mtime: (i64, i64),
    /// Number of names of what is not a directory.
    pub nlink: u64,
    /// Hash of a file's content.
    pub content: u64,
    /// Target of a symlink.
    pub target: Option<PathBuf>,
    /// Xattrs but those of overlayfs.
    pub xattrs: BTreeMap<OsString, Vec<u8>>,
    /// The first path with the same inode number; its own if there is none.
    pub same_as: PathBuf,
}

/// Objects by path relative to the root, which is "".
pub type Tree = BTreeMap<PathBuf, Node>;

/// Reads a tree, and checks on the way that listings tell the same types and inode numbers as stat(2).
pub fn read(root: &Path) -> Tree {
    let mut tree = Tree::new();
    walk(root, Path::new(""), !super::overlay_backend(), &mut tree, &mut HashMap::new());
    tree
}

/// Reads a tree of the kernel's overlayfs. It has other inode numbers in listings, and it lists the
/// whiteouts of a directory that is merged with none.
pub fn read_overlay(root: &Path) -> Tree {
    let mut tree = Tree::new();
    walk(root, Path::new(""), false, &mut tree, &mut HashMap::new());
    tree
}

fn walk(root: &Path, rel: &Path, ours: bool, tree: &mut Tree, first: &mut HashMap<(u64, u64), PathBuf>) {
    let path = if rel.as_os_str().is_empty() { root.to_owned() } else { root.join(rel) };
    let meta = path.symlink_metadata().unwrap_or_else(|e| panic!("stat {}: {e}", path.display()));
    let is_dir = meta.is_dir();
    let mut content = 0;
    if meta.is_file() {
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("read {}: {e}", path.display()));
        assert_eq!(bytes.len() as u64, meta.len(), "{}: size and content differ", path.display());
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        content = hasher.finish();
    }
    let xattrs = xattr_names(&path)
        .into_iter()
        .filter(|n| !is_private(n))
        .filter_map(|n| xattr(&path, n.to_str()?).map(|v| (n, v)))
        .collect();
    let same_as = if is_dir {
        rel.to_owned()
    } else {
        first.entry((meta.dev(), meta.ino())).or_insert_with(|| rel.to_owned()).clone()
    };
    let node = Node {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        size: if is_dir { 0 } else { meta.len() },
        rdev: meta.rdev(),
        mtime: if is_dir { (0, 0) } else { (meta.mtime(), meta.mtime_nsec()) },
        nlink: if is_dir { 0 } else { meta.nlink() },
        content,
        target: meta.is_symlink().then(|| std::fs::read_link(&path).unwrap()),
        xattrs,
        same_as,
    };
    tree.insert(rel.to_owned(), node);
    if is_dir {
        let mut names: Vec<_> = std::fs::read_dir(&path)
            .unwrap_or_else(|e| panic!("list {}: {e}", path.display()))
            .map(|e| e.unwrap())
            .collect();
        names.sort_by_key(std::fs::DirEntry::file_name);
        for pair in names.windows(2) {
            assert_ne!(pair[0].file_name(), pair[1].file_name(), "{}: listed twice", path.display());
        }
        for entry in names {
            let child = rel.join(entry.file_name());
            if !ours && !super::files::exists(root.join(&child)) {
                continue;
            }
            let listed = entry.file_type().unwrap();
            walk(root, &child, ours, tree, first);
            let meta = root.join(&child).symlink_metadata().unwrap();
            assert_eq!(listed, meta.file_type(), "{}: d_type", child.display());
            // glibc takes d_ino into DirEntry::ino.
            let d_ino = std::os::unix::fs::DirEntryExt::ino(&entry);
            if ours {
                assert_eq!(d_ino, meta.ino(), "{}: d_ino and st_ino differ", child.display());
            }
        }
    }
}

fn is_private(name: &std::ffi::OsStr) -> bool {
    let name = name.as_encoded_bytes();
    name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.")
}

/// What differs between two trees, one line each.
pub fn diff(left: &Tree, right: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, l) in left {
        match right.get(path) {
            None => lines.push(format!("only left: {}", path.display())),
            Some(r) if l != r => lines.push(format!("{}: {}", path.display(), fields(l, r))),
            Some(_) => {}
        }
    }
    lines.extend(
        right.keys().filter(|p| !left.contains_key(*p)).map(|p| format!("only right: {}", p.display())),
    );
    lines
}

/// The fields in which two objects differ.
fn fields(l: &Node, r: &Node) -> String {
    let mut out = String::new();
    let mut field = |name: &str, l: &dyn std::fmt::Debug, r: &dyn std::fmt::Debug| {
        let (l, r) = (format!("{l:?}"), format!("{r:?}"));
        if l != r {
            out += &format!(" {name} left {l} right {r};");
        }
    };
    field("mode", &format!("{:o}", l.mode), &format!("{:o}", r.mode));
    field("owner", &l.owner, &r.owner);
    field("size", &l.size, &r.size);
    field("rdev", &l.rdev, &r.rdev);
    field("mtime", &l.mtime, &r.mtime);
    field("nlink", &l.nlink, &r.nlink);
    field("content", &l.content, &r.content);
    field("target", &l.target, &r.target);
    field("xattrs", &l.xattrs, &r.xattrs);
    field("same_as", &l.same_as, &r.same_as);
    out
}

/// Fails, showing the differences, if two trees differ.
pub fn assert_same(what: &str, left: &Tree, right: &Tree) {
    let lines = diff(left, right);
    assert!(lines.is_empty(), "{what}: {} differences\n{}", lines.len(), lines.join("\n"));
}

/// All that stat(2) tells of each object of a layer, in order to see that nothing touched it, and a
/// hash of the contents. Reads without updating access times.
pub fn fingerprint(root: &Path) -> BTreeMap<PathBuf, Vec<i64>> {
    use rustix::fs::{Mode, OFlags};
    use std::io::Read;
    let mut out = BTreeMap::new();
    let mut stack = vec![root.to_owned()];
    while let Some(path) = stack.pop() {
        let m = path.symlink_metadata().unwrap();
        let mut hasher = DefaultHasher::new();
        for name in xattr_names(&path) {
            name.hash(&mut hasher);
            xattr(&path, name.to_str().unwrap()).hash(&mut hasher);
        }
        let flags = OFlags::RDONLY | OFlags::NOATIME | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        if m.is_file() {
            let mut bytes = Vec::new();
            let mut file = std::fs::File::from(rustix::fs::open(&path, flags, Mode::empty()).unwrap());
            file.read_to_end(&mut bytes).unwrap();
            bytes.hash(&mut hasher);
        }
        if m.is_dir() {
            let fd = rustix::fs::open(&path, flags, Mode::empty()).unwrap();
            for entry in rustix::fs::Dir::new(fd).unwrap() {
                let entry = entry.unwrap();
                let name = entry.file_name().to_str().unwrap();
                if name != "." && name != ".." {
                    stack.push(path.join(name));
                }
            }
        }
        let stat = [
            m.ino() as i64,
            i64::from(m.mode()),
            i64::from(m.uid()),
            i64::from(m.gid()),
            m.nlink() as i64,
            m.size() as i64,
            m.rdev() as i64,
            m.blocks() as i64,
            m.atime(),
            m.atime_nsec(),
            m.mtime(),
            m.mtime_nsec(),
            m.ctime(),
            m.ctime_nsec(),
            hasher.finish() as i64,
        ];
        out.insert(path.strip_prefix(root).unwrap().to_owned(), stat.to_vec());
    }
    out
}
