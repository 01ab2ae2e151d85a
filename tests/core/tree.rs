//! Layers from a short text, one entry a line:
//!
//! ```text
//! d PATH           a directory
//! f PATH [TEXT]    a regular file with this content
//! l PATH TARGET    a symlink
//! h PATH OLD       a hardlink to OLD
//! p PATH           a FIFO
//! w PATH           a whiteout, as a character device 0:0
//! x PATH           a whiteout, as an xattr of an empty file; its directory is marked
//! o PATH           a directory that is opaque
//! r PATH REDIRECT  a directory with a redirect
//! i PATH           a directory that has entries with an origin
//! ```
//!
//! Directories on the way are made when missing; `.` is the root of the layer.

use std::ffi::OsStr;
use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, XattrFlags};
use unionfs::config::Options;
use unionfs::fs::{LayerFds, UnionFs};

use crate::union::Union;

/// Layers on disk that a union can be opened on, again and again.
pub struct Tree {
    temp: tempfile::TempDir,
    lowers: usize,
    /// Where the init layer is, and its own work directory.
    init: Option<(PathBuf, Option<PathBuf>)>,
    upper: bool,
    /// Where the upper and its work directory are, followed by a slash.
    place: String,
}

/// A small filesystem of its own, gone with the value.
pub struct Small(PathBuf);

impl Small {
    pub fn mount(at: &Path, bytes: u64) -> Option<Self> {
        use rustix::mount::{MountFlags, mount};
        let options = std::ffi::CString::new(format!("size={bytes},mode=755")).unwrap();
        match mount("tmpfs", at, "tmpfs", MountFlags::empty(), options.as_c_str()) {
            Ok(()) => Some(Self(at.to_owned())),
            Err(e) => {
                eprintln!("SKIP: mounting a tmpfs: {e}");
                None
            }
        }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A private attribute in the namespace that the union will choose here.
pub fn private(name: &str) -> String {
    format!("{}.overlay.{name}", if is_root() { "trusted" } else { "user" })
}

pub fn set_xattr(path: impl AsRef<Path>, name: &str, value: impl AsRef<[u8]>) {
    let path = path.as_ref();
    rustix::fs::lsetxattr(path, name, value.as_ref(), XattrFlags::empty())
        .unwrap_or_else(|e| panic!("{name} of {}: {e}", path.display()));
}

pub fn xattr(path: impl AsRef<Path>, name: &str) -> Option<Vec<u8>> {
    let mut buf = vec![0_u8; 4096];
    match rustix::fs::lgetxattr(path.as_ref(), name, &mut buf[..]) {
        Ok(n) => {
            buf.truncate(n);
            Some(buf)
        }
        Err(rustix::io::Errno::NODATA) => None,
        Err(e) => panic!("{name} of {}: {e}", path.as_ref().display()),
    }
}

pub fn is_whiteout(path: impl AsRef<Path>) -> bool {
    path.as_ref().symlink_metadata().is_ok_and(|m| m.file_type().is_char_device() && m.rdev() == 0)
}

pub fn is_opaque(path: impl AsRef<Path>) -> bool {
    xattr(path, &private("opaque")).as_deref() == Some(b"y")
}

/// Makes one layer as the text says.
pub fn build(root: &Path, text: &str) {
    for line in text.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let mut words = line.splitn(3, ' ');
        let kind = words.next().unwrap();
        let path = root.join(words.next().unwrap_or_else(|| panic!("{line}")));
        let arg = words.next().unwrap_or("");
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        match kind {
            "d" => fs::create_dir_all(&path).unwrap(),
            "f" => fs::write(&path, arg).unwrap(),
            "l" => std::os::unix::fs::symlink(arg, &path).unwrap(),
            "h" => fs::hard_link(root.join(arg), &path).unwrap(),
            "p" => rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap(),
            "w" => {
                rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::empty(), 0).unwrap();
            }
            "x" => {
                fs::write(&path, "").unwrap();
                set_xattr(&path, &private("whiteout"), "y");
                set_xattr(path.parent().unwrap(), &private("opaque"), "x");
            }
            "o" => {
                fs::create_dir_all(&path).unwrap();
                set_xattr(&path, &private("opaque"), "y");
            }
            "i" => {
                fs::create_dir_all(&path).unwrap();
                set_xattr(&path, &private("impure"), "y");
            }
            "r" => {
                fs::create_dir_all(&path).unwrap();
                set_xattr(&path, &private("redirect"), arg);
            }
            _ => panic!("{line}"),
        }
    }
}

impl Tree {
    /// An empty upper over these lowers, topmost first.
    pub fn new(lowers: &[&str]) -> Self {
        Self::on("", lowers)
    }

    /// An upper that has something already.
    pub fn on(upper: &str, lowers: &[&str]) -> Self {
        let place = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let temp = tempfile::Builder::new().prefix("core").tempdir_in(place).unwrap();
        for dir in ["upper", "work"] {
            fs::create_dir(temp.path().join(dir)).unwrap();
        }
        for (i, text) in lowers.iter().enumerate() {
            let root = temp.path().join(format!("lower{i}"));
            fs::create_dir(&root).unwrap();
            build(&root, text);
        }
        build(&temp.path().join("upper"), upper);
        Self { temp, lowers: lowers.len(), init: None, upper: true, place: String::new() }
    }

    /// Puts an init layer between the upper and the lowers.
    pub fn init(mut self, text: &str) -> Self {
        let root = self.temp.path().join("init");
        fs::create_dir(&root).unwrap();
        build(&root, text);
        self.init = Some((root, None));
        self
    }

    /// Without an upper.
    pub fn read_only(mut self) -> Self {
        self.upper = false;
        self
    }

    pub fn path(&self, rel: &str) -> PathBuf {
        self.temp.path().join(rel)
    }

    pub fn upper(&self, rel: &str) -> PathBuf {
        self.path(&format!("{}upper", self.place)).join(rel)
    }

    pub fn work(&self, rel: &str) -> PathBuf {
        self.path(&format!("{}work", self.place)).join(rel)
    }

    /// Makes a new upper and work directory in this directory, where another filesystem may be.
    pub fn put_upper_in(&mut self, place: &str) {
        self.place = format!("{place}/");
        for dir in [self.upper(""), self.work("")] {
            fs::create_dir(dir).unwrap();
        }
    }

    /// Makes the init layer in this directory, where another filesystem may be.
    pub fn put_init_in(&mut self, place: &str, text: &str) {
        let (root, work) = (self.path(&format!("{place}/init")), self.path(&format!("{place}/init-work")));
        fs::create_dir(&root).unwrap();
        fs::create_dir(&work).unwrap();
        build(&root, text);
        self.init = Some((root, Some(work)));
    }

    pub fn lower(&self, rel: &str) -> PathBuf {
        self.path("lower0").join(rel)
    }

    fn fd(&self, rel: &str) -> OwnedFd {
        open_layer(&self.path(rel))
    }

    pub fn layers(&self) -> LayerFds {
        LayerFds {
            upper: self.upper.then(|| (open_layer(&self.upper("")), open_layer(&self.work("")))),
            init: self.init.as_ref().map(|(root, _)| open_layer(root)),
            init_work: self.init.as_ref().and_then(|(_, work)| work.as_deref().map(open_layer)),
            lowers: (0..self.lowers).map(|i| self.fd(&format!("lower{i}"))).collect(),
            ..LayerFds::default()
        }
    }

    /// A union on the layers as they are now.
    pub fn open(&self) -> Union {
        self.open_with(&Options::default())
    }

    /// The same with these options.
    pub fn open_with(&self, options: &Options) -> Union {
        Union::new(UnionFs::open(self.layers(), options).unwrap())
    }

    /// Names in the work directory that are only there while something is made.
    pub fn left_over(&self) -> Vec<String> {
        names(&self.work("work"))
    }

    pub fn index(&self) -> Vec<String> {
        names(&self.work("index"))
    }

    /// All paths of a layer with their content, to see that it did not change.
    pub fn snapshot(&self, layer: &str) -> Vec<String> {
        let mut out = Vec::new();
        let root = self.path(layer);
        let mut todo = vec![root.clone()];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(&dir).unwrap() {
                let path = entry.unwrap().path();
                let meta = path.symlink_metadata().unwrap();
                let content = if meta.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
                out.push(format!(
                    "{} {:o} {}:{} {} {}.{} {:?} {content:?}",
                    path.strip_prefix(&root).unwrap().display(),
                    meta.mode(),
                    meta.uid(),
                    meta.gid(),
                    meta.nlink(),
                    meta.mtime(),
                    meta.mtime_nsec(),
                    xattr_names(&path),
                ));
                if meta.is_dir() {
                    todo.push(path);
                }
            }
        }
        out.sort();
        out
    }
}

pub fn xattr_names(path: &Path) -> Vec<String> {
    let mut buf = vec![0_u8; 4096];
    let n = rustix::fs::llistxattr(path, &mut buf[..]).unwrap();
    let mut names: Vec<String> = buf[..n]
        .split(|b| *b == 0)
        .filter(|n| !n.is_empty())
        .map(|n| String::from_utf8_lossy(n).into_owned())
        .collect();
    names.sort();
    names
}

pub fn open_layer(path: &Path) -> OwnedFd {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

pub fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

pub fn os(name: &str) -> &OsStr {
    OsStr::new(name)
}
