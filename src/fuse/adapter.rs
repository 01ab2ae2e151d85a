//! Stand-in.
#![allow(missing_docs)]
use crate::config::Options;
use crate::fs::UnionFs;
use fuser::{Errno, FileAttr, FileHandle, FileType, INodeNo, Notifier, ReplyAttr, ReplyEntry, Request};
use std::ffi::OsStr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};

pub struct Adapter {
    _fs: Arc<UnionFs>,
    notifier: Arc<OnceLock<Notifier>>,
}

impl Adapter {
    pub fn new(fs: Arc<UnionFs>, _options: &Options) -> Self {
        Self { _fs: fs, notifier: Arc::default() }
    }
    pub fn notifier(&self) -> Arc<OnceLock<Notifier>> {
        self.notifier.clone()
    }
}

impl fuser::Filesystem for Adapter {
    fn lookup(&self, _req: &Request, _parent: INodeNo, _name: &OsStr, reply: ReplyEntry) {
        reply.error(Errno::ENOENT);
    }
    fn getattr(&self, _req: &Request, _ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(
            &Duration::from_secs(1),
            &FileAttr {
                ino: INodeNo::ROOT,
                size: 0,
                blocks: 0,
                atime: UNIX_EPOCH,
                mtime: UNIX_EPOCH,
                ctime: UNIX_EPOCH,
                crtime: UNIX_EPOCH,
                kind: FileType::Directory,
                perm: 0o755,
                nlink: 2,
                uid: 0,
                gid: 0,
                rdev: 0,
                flags: 0,
                blksize: 512,
            },
        );
    }
}
