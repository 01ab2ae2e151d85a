//! Layers on other filesystems than ext4: on Btrfs, whose subvolumes share a UUID and number their inodes each for
//! itself, and on XFS.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::common::disk::Disk;
use crate::common::files::*;
use crate::common::{self, run, text, unionfs};
use crate::need_unionfs;

/// Layers, work directory and mount point on a filesystem in a file.
struct Layers {
    disk: Disk,
    /// Where upper and work directory lie.
    upmost: &'static str,
}

impl Layers {
    fn new(disk: Disk, upmost: &'static str) -> Self {
        for name in ["upper", "work"] {
            dir(disk.at.join(upmost).join(name));
        }
        dir(disk.at.join("mnt"));
        Self { disk, upmost }
    }

    fn at(&self, name: &str) -> String {
        self.disk.at.join(name).to_str().unwrap().to_owned()
    }

    fn mnt(&self) -> PathBuf {
        self.disk.at.join("mnt")
    }

    /// The upper, and the work directory.
    fn upmost(&self) -> [String; 2] {
        ["upper", "work"].map(|name| self.at(&format!("{}/{name}", self.upmost)))
    }

    fn mount(&self, lowers: &[&str]) {
        let lowers: Vec<_> = lowers.iter().map(|name| self.at(name)).collect();
        let [upper, work] = self.upmost();
        let out =
            unionfs().args(["mount", "--work", &work, &lowers.join(":"), &upper]).arg(self.mnt()).output();
        let out = out.unwrap();
        assert!(out.status.success(), "{}", text(&out));
    }

    fn unmount(&self) {
        run("umount", &[self.mnt().as_os_str()]);
        self.ended();
    }

    /// The daemon holds the filesystem below until it has ended.
    fn ended(&self) {
        common::wait_for(|| common::daemon_of(&self.mnt()).is_none());
    }
}

impl Drop for Layers {
    fn drop(&mut self) {
        let mut command = Command::new("umount");
        let _ = command.arg("-l").arg(self.mnt()).stderr(Stdio::null()).status();
        self.ended();
    }
}

fn numbers(mnt: &Path, names: &[&str]) -> BTreeMap<u64, String> {
    names.iter().map(|name| (mnt.join(name).symlink_metadata().unwrap().ino(), (*name).to_owned())).collect()
}

#[test]
fn objects_of_subvolumes_have_numbers_of_their_own() {
    need_unionfs!();
    let Some(disk) = Disk::btrfs() else { return };
    // The first inode of each has the same number.
    for (volume, name) in [("one", "f1"), ("two", "f2"), ("two/inner", "f3")] {
        put(disk.subvolume(volume).join(name), name);
    }
    disk.subvolume("third");
    let layers = Layers::new(disk, "third");
    put(layers.disk.at.join("third/upper/f4"), "f4");
    let mnt = layers.mnt();
    let names = ["f1", "f2", "inner/f3", "f4", "inner"];
    layers.mount(&["one", "two"]);
    let before = numbers(&mnt, &names);
    assert_eq!(before.len(), names.len(), "{before:?}");
    for name in names {
        chmod(mnt.join(name), 0o700);
    }
    assert_eq!(numbers(&mnt, &names), before);
    layers.unmount();
    layers.mount(&["one", "two"]);
    assert_eq!(numbers(&mnt, &names), before);
    for (name, content) in [("f1", "f1"), ("f2", "f2"), ("inner/f3", "f3"), ("f4", "f4")] {
        assert_eq!(get(mnt.join(name)), content);
    }
    layers.unmount();
}

#[test]
fn copied_hardlinks_are_known_to_the_kernel_and_its_own_to_us() {
    need_unionfs!();
    let Some(disk) = Disk::btrfs() else { return };
    let layers = Layers::new(disk, ".");
    let lower = PathBuf::from(layers.at("lower"));
    for (a, b) in [("a", "b"), ("c", "d")] {
        put(lower.join(a), a);
        std::fs::hard_link(lower.join(a), lower.join(b)).unwrap();
    }
    let [upper, work] = layers.upmost();
    let options = format!("lowerdir={},upperdir={upper},workdir={work},index=on", lower.display());
    let mnt = layers.mnt();
    let by_kernel = || {
        let options = ["-t", "overlay", "overlay", "-o", &options].map(OsStr::new);
        run("mount", &options.into_iter().chain([mnt.as_os_str()]).collect::<Vec<_>>());
    };
    layers.mount(&["lower"]);
    put(mnt.join("a"), "changed by us");
    layers.unmount();
    by_kernel();
    assert_eq!(get(mnt.join("b")), "changed by us");
    put(mnt.join("c"), "changed by the kernel");
    run("umount", &[mnt.as_os_str()]);
    layers.mount(&["lower"]);
    assert_eq!(get(mnt.join("d")), "changed by the kernel");
    assert_eq!(mnt.join("c").metadata().unwrap().ino(), mnt.join("d").metadata().unwrap().ino());
    layers.unmount();
}

#[test]
fn a_device_that_would_be_a_whiteout_on_xfs() {
    need_unionfs!();
    let Some(disk) = Disk::xfs() else { return };
    dir(disk.at.join("lower"));
    let layers = Layers::new(disk, ".");
    layers.mount(&["lower"]);
    let device = layers.mnt().join("device");
    run("mknod", &["-m", "600", device.to_str().unwrap(), "c", "0", "0"].map(AsRef::as_ref));
    let seen = || device.symlink_metadata().map(|found| (found.rdev(), found.mode() & 0o777)).unwrap();
    assert_eq!(seen(), (0, 0o600));
    layers.unmount();
    layers.mount(&["lower"]);
    assert_eq!(seen(), (0, 0o600));
    layers.unmount();
}
