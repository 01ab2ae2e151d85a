//! Inode numbers of the union: one space over all the layers' filesystems.

use std::ffi::OsStr;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dashmap::DashMap;
use parking_lot::RwLock;

use crate::format::origin::{Origin, Volume};
use crate::sys::handle;

/// Bits of a number that a layer's filesystem may use for itself.
const INO_BITS: u32 = 56;
/// The index that marks numbers handed out one by one.
const OVERFLOW: u64 = 0xff;

#[derive(Debug, Clone)]
struct Fs {
    dev: u64,
    volume: Option<Volume>,
    /// Whether it was asked for that.
    asked: bool,
}

/// The filesystems that the layers lie on, in the order of the layers, so that a mount with the same
/// layers gives the same numbers.
#[derive(Debug, Default)]
pub struct Identity {
    filesystems: RwLock<Vec<Fs>>,
    overflow: DashMap<(u64, u64), u64>,
    /// Numbers of single names, by the number of their directory.
    names: DashMap<(u64, Box<OsStr>), u64>,
    /// Whether `overflow` has numbers that were given to an object by [`Self::adopt`].
    adopted: AtomicBool,
    overflowed: AtomicU64,
}

impl Identity {
    /// Makes the filesystem of a layer known, or a subvolume in it.
    pub fn add(&self, dev: u64, fd: impl AsFd) {
        let mut all = self.filesystems.write();
        match all.iter_mut().find(|f| f.dev == dev) {
            Some(known) if known.asked => {}
            Some(known) => *known = Fs { dev, volume: handle::volume(fd), asked: true },
            None => all.push(Fs { dev, volume: handle::volume(fd), asked: true }),
        }
    }

    /// Whether a filesystem was made known by [`Self::add`].
    pub fn knows(&self, dev: u64) -> bool {
        self.filesystems.read().iter().any(|f| f.dev == dev && f.asked)
    }

    /// The union's number for an object of a layer: the index of its filesystem in the upper eight
    /// bits, its own number below (as `xino` of overlayfs does). Numbers that do not fit, and 0 and
    /// 1, which FUSE keeps for itself, are replaced by ones counted up.
    pub fn compose(&self, dev: u64, ino: u64) -> u64 {
        if self.adopted.load(Ordering::Acquire)
            && let Some(number) = self.overflow.get(&(dev, ino))
        {
            return *number;
        }
        let known = self.filesystems.read().iter().position(|f| f.dev == dev);
        let index = known.unwrap_or_else(|| {
            let mut all = self.filesystems.write();
            all.iter().position(|f| f.dev == dev).unwrap_or_else(|| {
                all.push(Fs { dev, volume: None, asked: false });
                all.len() - 1
            })
        }) as u64;
        let composed = (index << INO_BITS) | ino;
        if index < OVERFLOW && ino >> INO_BITS == 0 && composed > 1 {
            return composed;
        }
        self.alias(dev, ino)
    }

    /// A number of its own for an object whose number another object claims. It holds for the life of
    /// the mount.
    pub fn alias(&self, dev: u64, ino: u64) -> u64 {
        *self.overflow.entry((dev, ino)).or_insert_with(|| self.next())
    }

    /// A number for the file that one name of a lower hardlink stands for, when the names do not stay
    /// together: `parent` is the directory's number. It holds for the life of the mount.
    pub fn of_name(&self, parent: u64, name: &OsStr) -> u64 {
        *self.names.entry((parent, name.into())).or_insert_with(|| self.next())
    }

    /// Gives an object of a layer the number that the union knows it by, for the life of the mount.
    pub fn adopt(&self, dev: u64, ino: u64, number: u64) {
        self.overflow.insert((dev, ino), number);
        self.adopted.store(true, Ordering::Release);
    }

    fn next(&self) -> u64 {
        (OVERFLOW << INO_BITS) + 2 + self.overflowed.fetch_add(1, Ordering::Relaxed)
    }

    /// The union's number of the lower object that an origin names; `None` when its filesystem is
    /// not among the layers' or the handle's form is unknown.
    pub fn of_origin(&self, origin: &Origin) -> Option<u64> {
        let ino = origin.inode()?;
        let dev = {
            let all = self.filesystems.read();
            if origin.uuid == [0; 16] {
                // No UUID: only clear when no other filesystem is in play.
                (all.len() == 1).then(|| all[0].dev)
            } else {
                all.iter().find(|f| f.volume.is_some_and(|v| v.holds(origin))).map(|f| f.dev)
            }
        }?;
        Some(self.compose(dev, ino))
    }

    /// The UUID of the filesystem of `dev`, where `fd` lies; zero when it has none.
    pub fn uuid(&self, dev: u64, fd: impl AsFd) -> [u8; 16] {
        let known = |all: &[Fs]| {
            let known = all.iter().find(|f| f.dev == dev && f.asked)?;
            Some(known.volume.map_or([0; 16], |volume| volume.uuid))
        };
        let found = known(&self.filesystems.read());
        found.unwrap_or_else(|| {
            self.add(dev, fd);
            known(&self.filesystems.read()).unwrap_or_default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_stable() {
        let id = Identity::default();
        assert_eq!(id.compose(10, 5), 5);
        assert_eq!(id.compose(11, 5), (1 << INO_BITS) | 5);
        assert_eq!(id.compose(10, 5), 5);
        let one = id.compose(10, 1);
        assert_eq!(one >> INO_BITS, OVERFLOW);
        let big = id.compose(10, u64::MAX);
        assert_ne!(one, big);
        assert_eq!(id.compose(10, u64::MAX), big);
        let a = id.of_name(7, OsStr::new("a"));
        assert_eq!(id.of_name(7, OsStr::new("a")), a);
        assert_ne!(id.of_name(7, OsStr::new("b")), a);
        id.adopt(10, 6, a);
        assert_eq!(id.compose(10, 6), a);
        assert_eq!(id.compose(10, 5), 5);
    }
}
