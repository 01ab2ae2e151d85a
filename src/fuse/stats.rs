//! Counts of requests by kind.

use std::mem::size_of;
use std::sync::atomic::{AtomicU64, Ordering};

use super::wire;

macro_rules! ops {
    ($($variant:ident = $code:literal $name:literal [$($arguments:ident)?]),* $(,)?) => {
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

            /// The kind that the protocol gives this number (`enum fuse_opcode`). `None` for one that is not
            /// served.
            pub fn from_code(code: u32) -> Option<Op> {
                match code {
                    $($code => Some(Op::$variant),)*
                    _ => None,
                }
            }

            /// The name, as in the protocol, in lower case.
            pub fn name(self) -> &'static str {
                match self {
                    $(Op::$variant => $name,)*
                }
            }

            /// How many bytes of arguments of fixed size a request of this kind begins with.
            pub fn fixed_len(self) -> usize {
                match self {
                    $(Op::$variant => 0 $(+ size_of::<wire::$arguments>())?,)*
                }
            }
        }
    };
}

ops! {
    Lookup = 1 "lookup" [], Forget = 2 "forget" [ForgetIn], Getattr = 3 "getattr" [GetattrIn],
    Setattr = 4 "setattr" [SetattrIn], Readlink = 5 "readlink" [], Symlink = 6 "symlink" [],
    Mknod = 8 "mknod" [MknodIn], Mkdir = 9 "mkdir" [MkdirIn], Unlink = 10 "unlink" [], Rmdir = 11 "rmdir" [],
    Rename = 12 "rename" [RenameIn], Link = 13 "link" [LinkIn], Open = 14 "open" [OpenIn],
    Read = 15 "read" [ReadIn], Write = 16 "write" [WriteIn], Statfs = 17 "statfs" [],
    Release = 18 "release" [ReleaseIn], Fsync = 20 "fsync" [FsyncIn], Setxattr = 21 "setxattr" [SetxattrIn],
    Getxattr = 22 "getxattr" [GetxattrIn], Listxattr = 23 "listxattr" [GetxattrIn],
    Removexattr = 24 "removexattr" [], Flush = 25 "flush" [], Opendir = 27 "opendir" [OpenIn],
    Readdir = 28 "readdir" [ReadIn], Releasedir = 29 "releasedir" [ReleaseIn], Fsyncdir = 30 "fsyncdir" [FsyncIn],
    Access = 34 "access" [], Create = 35 "create" [CreateIn], Destroy = 38 "destroy" [],
    Ioctl = 39 "ioctl" [IoctlIn], BatchForget = 42 "batch_forget" [BatchForgetIn],
    Fallocate = 43 "fallocate" [FallocateIn], Readdirplus = 44 "readdirplus" [ReadIn],
    Rename2 = 45 "rename2" [Rename2In], Lseek = 46 "lseek" [LseekIn],
    CopyFileRange = 47 "copy_file_range" [CopyFileRangeIn],
    CopyFileRange64 = 53 "copy_file_range_64" [CopyFileRangeIn],
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
        assert_eq!(Op::from_code(15), Some(Op::Read));
        assert_eq!(Op::from_code(4096), None);
        assert_eq!((Op::Lookup.fixed_len(), Op::Mkdir.fixed_len()), (0, 8));
    }
}
