//! The whole way of the requests that a program's calls become, below the adapter.

use std::ffi::OsStr;

use criterion::{Criterion, Throughput};
use unionfs::config::Options;
use unionfs::fs::{Caller, ROOT, SetAttr, SetTime, UnionFs};

use crate::layers::{Layers, at_root};

/// stat(2), open(2), read(2), close(2) of a file, which the kernel forgets afterwards.
fn read_file(fs: &UnionFs, dir: u64, buffer: &mut [u8]) {
    let attr = fs.lookup(dir, OsStr::new("file")).unwrap();
    fs.getattr(attr.ino, None).unwrap();
    let opened = fs.open_file(&Caller::daemon(), attr.ino, libc::O_RDONLY, &mut |_| None).unwrap();
    assert_eq!(fs.read(opened.fh, 0, buffer).unwrap().0, buffer.len());
    fs.release(opened.fh);
    fs.forget(attr.ino, 1);
}

/// open(2) of a new file, write(2), close(2), unlink(2): the kernel looks the name up first, and asks for the
/// capability of the file before it writes.
fn new_file(fs: &UnionFs, dir: u64, name: &OsStr, content: &[u8]) {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
    assert!(fs.lookup(dir, name).is_err());
    let (attr, opened) = fs.create(&Caller::daemon(), dir, name, 0o644, flags, &mut |_| None).unwrap();
    assert!(fs.getxattr(attr.ino, OsStr::new("security.capability")).is_err());
    fs.write(opened.fh, 0, content, None).unwrap();
    fs.release(opened.fh);
    fs.unlink(dir, name).unwrap();
    fs.forget(attr.ino, 1);
}

/// What tar(1) does for a file: it makes and writes it, then sets its times, owner and mode while it is open.
fn unpack(fs: &UnionFs, dir: u64, name: &OsStr, content: &[u8]) {
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
    let caller = Caller::daemon();
    let (attr, opened) = fs.create(&caller, dir, name, 0o600, flags, &mut |_| None).unwrap();
    fs.write(opened.fh, 0, content, None).unwrap();
    let keep =
        SetAttr { mode: None, uid: None, gid: None, size: None, atime: SetTime::Keep, mtime: SetTime::Keep };
    let times = SetAttr { atime: SetTime::At(1, 0), mtime: SetTime::At(1, 0), ..keep };
    let owner = SetAttr { uid: Some(caller.uid), gid: Some(caller.gid), ..keep };
    for set in [times, owner, SetAttr { mode: Some(0o644), ..keep }] {
        fs.setattr(&caller, attr.ino, &set, None).unwrap();
    }
    fs.release(opened.fh);
    fs.unlink(dir, name).unwrap();
    fs.forget(attr.ino, 1);
}

pub fn all(c: &mut Criterion) {
    let layers = Layers::in_memory(4);
    let content = vec![7; 4096];
    std::fs::write(layers.lower(2).join("d/file"), &content).unwrap();
    let (fs, _top) = layers.union(&Options::default());
    let d = at_root(&fs, "d");
    let mut group = c.benchmark_group("request");
    group.throughput(Throughput::Elements(1));
    group.bench_function("lookup, getattr, open, read, release", |b| {
        let mut buffer = vec![0; content.len()];
        b.iter(|| read_file(&fs, d, &mut buffer));
    });
    let upper = fs.mkdir(&Caller::daemon(), ROOT, OsStr::new("upper"), 0o755).unwrap().ino;
    for (place, dir) in [("new directory", upper), ("merged directory", d)] {
        group.bench_function(format!("lookup, create, getxattr, write, release, unlink: {place}"), |b| {
            b.iter(|| new_file(&fs, dir, OsStr::new("new"), &content));
        });
    }
    group.bench_function("create, write, three setattr, release, unlink", |b| {
        b.iter(|| unpack(&fs, upper, OsStr::new("new"), &content));
    });
    group.bench_function("mkdir, rmdir", |b| {
        b.iter(|| {
            let ino = fs.mkdir(&Caller::daemon(), upper, OsStr::new("dir"), 0o755).unwrap().ino;
            fs.rmdir(upper, OsStr::new("dir")).unwrap();
            fs.forget(ino, 1);
        });
    });
    let ino = fs.lookup(d, OsStr::new("file")).unwrap().ino;
    group.bench_function("getattr", |b| b.iter(|| fs.getattr(ino, None).unwrap()));
    let opened = fs.open_file(&Caller::daemon(), ino, libc::O_RDONLY, &mut |_| None).unwrap();
    group.bench_function("read 4 KiB", |b| {
        let mut buffer = vec![0; content.len()];
        b.iter(|| fs.read(opened.fh, 0, &mut buffer).unwrap());
    });
    fs.release(opened.fh);
    group.finish();
}
