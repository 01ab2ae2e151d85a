//! What `unionfs run` binds in the tree: volumes of the user, and /proc, /sys and /dev.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::layer_list;
use crate::error::{Errno, MountError};
use crate::layer::located::explain;
use crate::sys::namespace;

/// What a program expects of the system.
const SYSTEM: [&str; 3] = ["/proc", "/sys", "/dev"];

/// A file or directory of the host that appears in the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// On the host.
    host: PathBuf,
    /// In the tree; absolute.
    path: PathBuf,
    read_only: bool,
}

impl Volume {
    /// Reads `HOST:PATH[:ro]`, with `\:` for a colon in a path and `\\` for a backslash.
    ///
    /// # Errors
    /// A sentence that says what is missing.
    pub fn parse(text: &OsStr) -> Result<Self, MountError> {
        let wrong =
            |reason: &str| Err(MountError::option(format!("--volume {}", text.to_string_lossy()), reason));
        let parts = layer_list::split_names(text.as_bytes());
        let (host, path, mode) = match parts.as_slice() {
            [host, path] => (host, path, None),
            [host, path, mode] => (host, path, Some(mode)),
            _ => return wrong("is not HOST:PATH or HOST:PATH:ro"),
        };
        let read_only = match mode.map(|m| m.as_bytes()) {
            None | Some(b"rw") => false,
            Some(b"ro") => true,
            Some(_) => return wrong("ends in neither ro nor rw"),
        };
        if host.is_empty() {
            return wrong("names nothing of the host; write HOST:PATH");
        }
        if !Path::new(path).is_absolute() {
            return wrong("needs an absolute path in the tree");
        }
        Ok(Self { host: host.into(), path: path.into(), read_only })
    }
}

/// Something of the host, ready to be mounted in the tree.
#[derive(Debug)]
pub struct Binding {
    what: Kind,
    tree: OwnedFd,
    path: PathBuf,
    directory: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    System,
    Volume,
}

/// Takes hold of everything on the host, in the order in which it will be mounted.
///
/// # Errors
/// A volume that is not there.
pub fn prepare(volumes: Vec<Volume>) -> Result<Vec<Binding>, MountError> {
    let mut bindings = Vec::new();
    for path in SYSTEM {
        // A host without one has none to give.
        if let Ok(tree) = namespace::clone_tree(Path::new(path), false) {
            bindings.push(Binding { what: Kind::System, tree, path: path.into(), directory: true });
        }
    }
    for volume in volumes {
        let tree = namespace::clone_tree(&volume.host, volume.read_only)
            .map_err(|e| explain("volume", &volume.host, e))?;
        let directory = volume.host.is_dir();
        bindings.push(Binding { what: Kind::Volume, tree, path: volume.path, directory });
    }
    Ok(bindings)
}

impl Binding {
    /// Mounts it in the tree whose root is `root`. A mount point that is missing is made in the tree: an empty
    /// directory, or file.
    ///
    /// # Errors
    /// A sentence that names the mount point.
    pub fn attach(&self, root: &OwnedFd) -> Result<(), MountError> {
        let onto = match namespace::ensure_below(root, &self.path, self.directory) {
            Ok(onto) => onto,
            // A read-only tree that has no such directory does without.
            Err(Errno::ROFS) if self.what == Kind::System => return Ok(()),
            Err(e) => return Err(self.explain(e)),
        };
        namespace::attach(&self.tree, onto).map_err(|e| self.explain(e))
    }

    fn explain(&self, e: Errno) -> MountError {
        let reason = match e {
            Errno::ROFS => {
                "does not exist in the tree, which is read-only; leave the volume out, or mount an upper"
                    .into()
            }
            Errno::XDEV | Errno::NOENT => {
                "does not exist in the volume that it lies in; create it there".into()
            }
            Errno::NOTDIR | Errno::INVAL if self.directory => {
                "is not a directory in the tree, but the volume is one".into()
            }
            Errno::NOTDIR | Errno::INVAL => "is a directory in the tree, but the volume is none".into(),
            e => format!("cannot be mounted upon: {e}"),
        };
        MountError::path("mount point of the volume", &self.path, reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_volumes() {
        let parse = |text: &str| Volume::parse(OsStr::new(text)).map_err(|e| e.to_string());
        let volume =
            |host: &str, path: &str, read_only| Volume { host: host.into(), path: path.into(), read_only };
        assert_eq!(parse("a:/b"), Ok(volume("a", "/b", false)));
        assert_eq!(parse("/a:/b:ro"), Ok(volume("/a", "/b", true)));
        assert_eq!(parse("/a:/b:rw"), Ok(volume("/a", "/b", false)));
        assert_eq!(parse(r"/a\:c:/b\\d"), Ok(volume("/a:c", r"/b\d", false)));
        for (text, says) in [
            ("a", "HOST:PATH"),
            ("", "HOST:PATH"),
            ("a:/b:ro:x", "HOST:PATH"),
            (":/b", "names nothing"),
            ("a:b", "absolute"),
            ("a:", "absolute"),
            ("a:/b:x", "neither ro nor rw"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(
                error.starts_with(&format!("option --volume {text}: ")) && error.contains(says),
                "{error}"
            );
        }
    }
}
