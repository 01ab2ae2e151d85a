//! A union with operations by path, which remembers the lookups that it was told to count.

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::sync::Mutex;

use rustix::fs::{FileType, RenameFlags};
use rustix::io::Errno;
use unionfs::fs::{Attr, Caller, Opened, ROOT, SetAttr, SetTime, UnionFs};

use crate::tree::os;

pub type Result<T> = std::result::Result<T, Errno>;

pub const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 0, umask: 0o022 };

pub const KEEP: SetAttr =
    SetAttr { mode: None, uid: None, gid: None, size: None, atime: SetTime::Keep, mtime: SetTime::Keep };

pub fn caller() -> Caller {
    Caller { umask: 0o022, ..Caller::daemon() }
}

/// What a path shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    pub attr: (u32, u32, u32, u64, u64, (i64, u32)),
    pub ino: u64,
    pub nlink: u32,
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<String, Vec<u8>>,
}

pub struct Union {
    pub fs: UnionFs,
    lookups: Mutex<HashMap<u64, u64>>,
}

impl Union {
    pub fn new(fs: UnionFs) -> Self {
        Self { fs, lookups: Mutex::default() }
    }

    fn told(&self, attr: Attr) -> Attr {
        if attr.ino != ROOT {
            *self.lookups.lock().unwrap().entry(attr.ino).or_default() += 1;
        }
        attr
    }

    /// Forgets all that was looked up.
    pub fn forget_all(&self) {
        for (ino, n) in self.lookups.lock().unwrap().drain() {
            self.fs.forget(ino, n);
        }
    }

    pub fn look(&self, parent: u64, name: &OsStr) -> Result<Attr> {
        self.fs.lookup(parent, name).map(|a| self.told(a))
    }

    /// Walks to a path, symlinks not followed.
    pub fn stat(&self, path: &str) -> Result<Attr> {
        let mut attr = self.fs.getattr(ROOT, None)?;
        for name in path.split('/').filter(|n| !n.is_empty() && *n != ".") {
            attr = self.look(attr.ino, os(name))?;
        }
        Ok(attr)
    }

    pub fn ino(&self, path: &str) -> Result<u64> {
        self.stat(path).map(|a| a.ino)
    }

    /// The parent and the last name of a path.
    pub fn at<'p>(&self, path: &'p str) -> Result<(u64, &'p OsStr)> {
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        let dir = self.stat(dir)?;
        if dir.kind() == FileType::Directory { Ok((dir.ino, os(name))) } else { Err(Errno::NOTDIR) }
    }

    pub fn open_with(&self, path: &str, flags: i32) -> Result<Opened> {
        self.fs.open_file(&caller(), self.ino(path)?, flags, &mut |_| None)
    }

    pub fn open(&self, path: &str, flags: i32) -> Result<u64> {
        self.open_with(path, flags).map(|o| o.fh)
    }

    pub fn read_fh(&self, fh: u64) -> Result<Vec<u8>> {
        let mut buf = vec![0; 1 << 16];
        let (n, _) = self.fs.read(fh, 0, &mut buf)?;
        buf.truncate(n);
        Ok(buf)
    }

    pub fn read_ino(&self, ino: u64) -> Result<Vec<u8>> {
        let fh = self.fs.open_file(&caller(), ino, libc::O_RDONLY, &mut |_| None)?.fh;
        let out = self.read_fh(fh);
        self.fs.release(fh);
        out
    }

    pub fn get(&self, path: &str) -> Result<String> {
        self.read_ino(self.ino(path)?).map(|b| String::from_utf8(b).unwrap())
    }

    /// Writes at the start of an existing file.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let fh = self.open(path, libc::O_WRONLY)?;
        let done = self.fs.write(fh, 0, text.as_bytes(), None);
        self.fs.release(fh);
        done.map(drop)
    }

    /// Makes a file.
    pub fn put(&self, path: &str, text: &str) -> Result<u64> {
        let (dir, name) = self.at(path)?;
        let (attr, open) = self.fs.create(&caller(), dir, name, 0o644, libc::O_WRONLY, &mut |_| None)?;
        self.told(attr);
        let done = self.fs.write(open.fh, 0, text.as_bytes(), None);
        self.fs.release(open.fh);
        done.map(|_| attr.ino)
    }

    pub fn mkdir(&self, path: &str) -> Result<u64> {
        let (dir, name) = self.at(path)?;
        self.fs.mkdir(&caller(), dir, name, 0o755).map(|a| self.told(a).ino)
    }

    pub fn symlink(&self, path: &str, target: &str) -> Result<u64> {
        let (dir, name) = self.at(path)?;
        self.fs.symlink(&caller(), dir, name, os(target)).map(|a| self.told(a).ino)
    }

    pub fn link(&self, old: &str, new: &str) -> Result<Attr> {
        let ino = self.ino(old)?;
        let (dir, name) = self.at(new)?;
        self.fs.link(ino, dir, name).map(|a| self.told(a))
    }

    pub fn link_ino(&self, ino: u64, new: &str) -> Result<Attr> {
        let (dir, name) = self.at(new)?;
        self.fs.link(ino, dir, name).map(|a| self.told(a))
    }

    pub fn unlink(&self, path: &str) -> Result<()> {
        let (dir, name) = self.at(path)?;
        self.fs.unlink(dir, name)
    }

    pub fn rmdir(&self, path: &str) -> Result<()> {
        let (dir, name) = self.at(path)?;
        self.fs.rmdir(dir, name)
    }

    pub fn rename_with(&self, old: &str, new: &str, flags: RenameFlags) -> Result<()> {
        let (from, name) = self.at(old)?;
        let (to, new_name) = self.at(new)?;
        self.fs.rename(from, name, to, new_name, flags)
    }

    pub fn rename(&self, old: &str, new: &str) -> Result<()> {
        self.rename_with(old, new, RenameFlags::empty())
    }

    pub fn exchange(&self, a: &str, b: &str) -> Result<()> {
        self.rename_with(a, b, RenameFlags::EXCHANGE)
    }

    pub fn set(&self, path: &str, set: SetAttr) -> Result<Attr> {
        self.fs.setattr(&caller(), self.ino(path)?, &set, None)
    }

    pub fn chmod(&self, path: &str, mode: u32) -> Result<Attr> {
        self.set(path, SetAttr { mode: Some(mode), ..KEEP })
    }

    pub fn nlink(&self, path: &str) -> u32 {
        let attr = self.stat(path).unwrap();
        assert_eq!(self.fs.getattr(attr.ino, None).unwrap().nlink, attr.nlink, "{path}");
        attr.nlink
    }

    pub fn getxattr(&self, path: &str, name: &str) -> Result<Vec<u8>> {
        self.fs.getxattr(self.ino(path)?, os(name))
    }

    pub fn xattrs(&self, ino: u64) -> BTreeMap<String, Vec<u8>> {
        let list = self.fs.listxattr(&CALLER, ino).unwrap();
        list.split(|b| *b == 0)
            .filter(|n| !n.is_empty())
            .map(|n| {
                let name = std::str::from_utf8(n).unwrap();
                (name.to_owned(), self.fs.getxattr(ino, os(name)).unwrap())
            })
            .collect()
    }

    /// Lists a directory; what the listing says is checked against lookups.
    pub fn list_ino(&self, ino: u64) -> Result<Vec<(OsString, Attr)>> {
        let mut listed = Vec::new();
        let done = self.fs.readdir(ino, 0, &mut |e| {
            listed.push((e.name.to_owned(), e.ino, e.kind));
            false
        });
        done?;
        assert_eq!((listed[0].0.as_os_str(), listed[0].1), (os("."), ino));
        assert_eq!(listed[1].0, "..");
        let mut out = Vec::new();
        for (name, d_ino, kind) in listed.into_iter().skip(2) {
            let attr = self.look(ino, &name)?;
            assert_eq!((d_ino, kind), (attr.ino, attr.kind()), "{name:?}: listing and lookup");
            out.push((name, attr));
        }
        out.sort_by(|a, b| a.0.cmp(&b.0));
        assert!(out.windows(2).all(|w| w[0].0 != w[1].0), "a name is listed twice: {out:?}");
        Ok(out)
    }

    pub fn list(&self, path: &str) -> Result<Vec<String>> {
        let all = self.list_ino(self.ino(path)?)?;
        Ok(all.into_iter().map(|(n, _)| n.into_string().unwrap()).collect())
    }

    /// The whole tree.
    pub fn tree(&self) -> BTreeMap<String, Shown> {
        let mut tree = BTreeMap::new();
        let mut todo = vec![(String::new(), ROOT)];
        while let Some((dir, ino)) = todo.pop() {
            let all = self.list_ino(ino).unwrap_or_else(|e| panic!("{dir}: {e}"));
            for (name, a) in all {
                let path = format!("{dir}{}", name.to_str().unwrap());
                let is_dir = a.kind() == FileType::Directory;
                let content = match a.kind() {
                    FileType::RegularFile => self.read_ino(a.ino).unwrap_or_else(|e| panic!("{path}: {e}")),
                    FileType::Symlink => self.fs.readlink(a.ino).unwrap().into_encoded_bytes(),
                    _ => Vec::new(),
                };
                let size = if is_dir { 0 } else { a.size };
                let shown = Shown {
                    attr: (a.mode, a.uid, a.gid, a.rdev, size, a.mtime),
                    ino: a.ino,
                    nlink: if is_dir { 0 } else { a.nlink },
                    content,
                    xattrs: self.xattrs(a.ino),
                };
                assert!(tree.insert(path.clone(), shown).is_none());
                if is_dir {
                    todo.push((path + "/", a.ino));
                }
            }
        }
        tree
    }

    /// The tree in short: `dir/`, `file=content`, `link>target`.
    pub fn show(&self) -> Vec<String> {
        self.tree()
            .into_iter()
            .map(|(path, s)| {
                let text = String::from_utf8(s.content).unwrap();
                match FileType::from_raw_mode(s.attr.0) {
                    FileType::Directory => path + "/",
                    FileType::RegularFile => format!("{path}={text}"),
                    FileType::Symlink => format!("{path}>{text}"),
                    other => format!("{path} {other:?}"),
                }
            })
            .collect()
    }

    pub fn numbers(&self) -> BTreeMap<String, u64> {
        self.tree().into_iter().map(|(p, s)| (p, s.ino)).collect()
    }
}
