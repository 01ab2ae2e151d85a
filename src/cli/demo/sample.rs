//! The layers that the demonstration mounts.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{FileType, XattrFlags};

use crate::format::names::{self, Mark, Namespace};
use crate::sys::file;
use crate::sys::xattr::{self, Target};

/// The layers below the upper and the init layer, bottom first, with what each is.
pub const LOWERS: [(&str, &str); 3] = [
    ("base", "a small system; read-only"),
    ("image1", "an image layer on top of it: adds a tool and deletes one; read-only"),
    ("image2", "the next image layer: adds an application and replaces a directory; read-only"),
];

const FILES: [(&str, &str); 12] = [
    ("base/etc/motd", "Welcome to the base system.\n"),
    ("base/etc/os-release", "NAME=Sample\n"),
    ("base/usr/bin/greet", "#!/bin/sh\necho hello\n"),
    ("base/usr/bin/oldtool", "#!/bin/sh\necho old\n"),
    ("base/usr/share/doc/greet.txt", "How to greet.\n"),
    ("image1/usr/bin/newtool", "#!/bin/sh\necho new\n"),
    ("image2/usr/share/doc/app.txt", "How to run the application.\n"),
    ("image2/srv/app/main.sh", "#!/bin/sh\n. ./settings\n"),
    ("image2/srv/app/settings", "port=80\n"),
    ("init/etc/hostname", "demo\n"),
    ("init/etc/hosts", "127.0.0.1 localhost\n"),
    ("init/etc/resolv.conf", "nameserver 192.0.2.1\n"),
];

/// Makes the layers and the mount point below `dir`.
///
/// # Errors
/// Those of the filesystem of `dir`.
pub fn build(dir: &Path) -> io::Result<()> {
    for (path, content) in FILES {
        let path = dir.join(path);
        if let Some(parent) = path.parent() {
            make_dir(parent)?;
        }
        let mode = if content.starts_with("#!") { 0o755 } else { 0o644 };
        fs::OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(mode)
            .open(path)?
            .write_all(content.as_bytes())?;
    }
    for name in ["upper", "root"] {
        make_dir(&dir.join(name))?;
    }
    whiteout(&dir.join("image1/usr/bin"), OsStr::new("oldtool"))?;
    make_opaque(&dir.join("image2/usr/share/doc"))
}

fn make_dir(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o755).create(path)
}

/// Deletes `name` from the layers below, as an image layer does.
fn whiteout(dir: &Path, name: &OsStr) -> io::Result<()> {
    let fd = File::open(dir)?;
    if file::mknod(&fd, name, FileType::CharacterDevice.as_raw_mode(), 0).is_ok() {
        return Ok(());
    }
    // Not permitted on every filesystem, nor to everyone: the form of image archives does the same.
    let wh = names::wh_name(name).ok_or(io::ErrorKind::InvalidInput)?;
    fs::write(dir.join(wh), "")
}

/// Hides what the layers below have in `dir`.
fn make_opaque(dir: &Path) -> io::Result<()> {
    let fd = File::open(dir)?;
    let set = |ns: Namespace| {
        xattr::set(Target::Fd(fd.as_fd()), Mark::Opaque.name(ns), b"y", XattrFlags::empty()).is_ok()
    };
    if set(Namespace::Trusted) || set(Namespace::User) {
        return Ok(());
    }
    fs::write(dir.join(names::WH_OPAQUE), "")
}
