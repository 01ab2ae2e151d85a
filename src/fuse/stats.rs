//! Counts of requests by kind.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! ops {
    ($($variant:ident $name:literal),* $(,)?) => {
        /// A kind of request.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Op {
            $(
                #[doc = concat!("`", $name, "`")]
                $variant,
            )*
        }

        impl Op {
            /// All kinds, in the order of their discriminants.
            pub const ALL: &[Op] = &[$(Op::$variant),*];

            /// The name, as in the protocol, in lower case.
            pub fn name(self) -> &'static str {
                match self {
                    $(Op::$variant => $name,)*
                }
            }
        }
    };
}

ops! {
    Lookup "lookup", Forget "forget", Getattr "getattr", Setattr "setattr", Readlink "readlink",
    Mknod "mknod", Mkdir "mkdir", Symlink "symlink", Link "link", Unlink "unlink", Rmdir "rmdir",
    Rename "rename", Open "open", Create "create", Read "read", Write "write", Flush "flush",
    Release "release", Fsync "fsync", Opendir "opendir", Readdir "readdir", Readdirplus "readdirplus",
    Releasedir "releasedir", Fsyncdir "fsyncdir", Statfs "statfs", Setxattr "setxattr",
    Getxattr "getxattr", Listxattr "listxattr", Removexattr "removexattr", Access "access",
    Fallocate "fallocate", Lseek "lseek", CopyFileRange "copy_file_range", Ioctl "ioctl",
}

/// How many requests of each kind came since the mount.
#[derive(Debug)]
pub struct Stats {
    counts: [AtomicU64; Op::ALL.len()],
}

impl Default for Stats {
    fn default() -> Self {
        Self { counts: [const { AtomicU64::new(0) }; Op::ALL.len()] }
    }
}

impl Stats {
    /// Counts one request.
    pub fn count(&self, op: Op) {
        // A tally that nothing is ordered by.
        self.counts[op as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The number of requests of one kind.
    pub fn get(&self, op: Op) -> u64 {
        self.counts[op as usize].load(Ordering::Relaxed)
    }

    /// The kinds that came at all, with their numbers.
    pub fn seen(&self) -> impl Iterator<Item = (Op, u64)> + '_ {
        Op::ALL.iter().map(|&op| (op, self.get(op))).filter(|&(_, n)| n > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_by_kind() {
        let stats = Stats::default();
        stats.count(Op::Read);
        stats.count(Op::Read);
        stats.count(Op::Ioctl);
        assert_eq!(stats.seen().collect::<Vec<_>>(), [(Op::Read, 2), (Op::Ioctl, 1)]);
        assert_eq!(Op::CopyFileRange.name(), "copy_file_range");
    }
}
