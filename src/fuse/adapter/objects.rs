//! Names, attributes, extended attributes.

use rustix::fs::FileType;
use zerocopy::FromBytes;

use super::{Within, convert};
use crate::error::{Errno, Result};
use crate::fuse::message::{Body, Request};
use crate::fuse::wire::{self, fattr};

impl Within<'_> {
    pub(super) fn lookup(&self, request: &Request<'_>, body: &mut Body<'_>) -> Result<()> {
        let entry = match self.fs.lookup(request.header.nodeid, request.name()?) {
            Ok(attr) => {
                if attr.kind() != FileType::Directory {
                    self.readers.looks_up(request.header.pid, request.header.nodeid);
                }
                self.ttl.entry(&attr)
            }
            Err(Errno::NOENT) => self.ttl.missing(),
            Err(err) => return Err(err),
        };
        body.put(&entry)
    }

    pub(super) fn forget(&self, request: &Request<'_>) -> Result<()> {
        self.fs.forget(request.header.nodeid, request.fixed::<wire::ForgetIn>()?.nlookup);
        self.fs.stack().purge_again();
        Ok(())
    }

    pub(super) fn batch_forget(&self, request: &Request<'_>) -> Result<()> {
        let count = request.fixed::<wire::BatchForgetIn>()?.count as usize;
        let mut rest = request.rest();
        for _ in 0..count {
            let (one, more) = wire::ForgetOne::read_from_prefix(rest).map_err(|_| Errno::IO)?;
            self.fs.forget(one.nodeid, one.nlookup);
            rest = more;
        }
        self.fs.stack().purge_again();
        Ok(())
    }

    pub(super) fn getattr(&self, request: &Request<'_>, body: &mut Body<'_>) -> Result<()> {
        let given: wire::GetattrIn = request.fixed()?;
        let fh = (given.flags & wire::GETATTR_FH != 0).then_some(given.fh);
        body.put(&self.ttl.attr(&self.fs.getattr(request.header.nodeid, fh)?))
    }

    pub(super) fn setattr(&self, request: &Request<'_>, body: &mut Body<'_>) -> Result<()> {
        let given: wire::SetattrIn = request.fixed()?;
        let fh = (given.valid & fattr::FH != 0).then_some(given.fh);
        let set = convert::set_attr(&given);
        let ino = request.header.nodeid;
        let attr = self.fs.setattr(&request.caller(0), ino, &set, fh);
        // What was done before the error counts, by all names of the object.
        self.forget_attributes_if(attr.is_err(), ino);
        body.put(&self.ttl.attr(&attr?))
    }

    pub(super) fn readlink(&self, request: &Request<'_>, body: &mut Body<'_>) -> Result<()> {
        body.bytes(self.fs.readlink(request.header.nodeid)?.as_encoded_bytes())
    }

    pub(super) fn symlink(&self, request: &Request<'_>, body: &mut Body<'_>) -> Result<()> {
        let (name, target) = request.two_texts()?;
        let attr = self.fs.symlink(&request.caller(0), request.header.nodeid, name, target)?;
        body.put(&self.ttl.entry(&attr))
    }

    pub(super) fn mknod(&self, request: &Request<'_>, body: &mut Body<'_>) -> Result<()> {
        let wire::MknodIn { mode, rdev, umask, .. } = request.fixed()?;
        let (parent, rdev) = (request.header.nodeid, convert::rdev_from_wire(rdev));
        let attr = self.fs.mknod(&request.caller(umask), parent, request.name()?, mode, rdev)?;
        body.put(&self.ttl.entry(&attr))
    }

    pub(super) fn mkdir(&self, request: &Request<'_>, body: &mut Body<'_>) -> Result<()> {
        let wire::MkdirIn { mode, umask } = request.fixed()?;
        let parent = request.header.nodeid;
        let attr = self.fs.mkdir(&request.caller(umask), parent, request.name()?, mode & 0o7777)?;
        body.put(&self.ttl.entry(&attr))
    }

    pub(super) fn rename(&self, request: &Request<'_>, new_parent: u64, flags: u32) -> Result<()> {
        let (name, new_name) = request.two_texts()?;
        self.fs.rename(request.header.nodeid, name, new_parent, new_name, convert::rename_flags(flags)?)
    }

    pub(super) fn link(&self, request: &Request<'_>, body: &mut Body<'_>) -> Result<()> {
        let ino = request.fixed::<wire::LinkIn>()?.oldnodeid;
        let attr = self.fs.link(ino, request.header.nodeid, request.name()?)?;
        body.put(&self.ttl.entry(&attr))
    }

    pub(super) fn setxattr(&self, request: &Request<'_>) -> Result<()> {
        let given: wire::SetxattrIn = request.fixed()?;
        let (name, rest) = request.text()?;
        let value = rest.get(..given.size as usize).ok_or(Errno::IO)?;
        let flags = convert::xattr_flags(given.flags)?;
        self.fs.setxattr(&request.caller(0), request.header.nodeid, name, value, flags)
    }

    pub(super) fn getxattr(&self, request: &Request<'_>, body: &mut Body<'_>) -> Result<()> {
        let room = request.fixed::<wire::GetxattrIn>()?.size;
        put_xattr(body, room, &self.fs.getxattr(request.header.nodeid, request.name()?)?)
    }

    pub(super) fn listxattr(&self, request: &Request<'_>, body: &mut Body<'_>) -> Result<()> {
        let room = request.fixed::<wire::GetxattrIn>()?.size;
        put_xattr(body, room, &self.fs.listxattr(&request.caller(0), request.header.nodeid)?)
    }
}

/// Answers a request for an xattr or a list: its size when `room` is 0, else the bytes if they fit.
fn put_xattr(body: &mut Body<'_>, room: u32, value: &[u8]) -> Result<()> {
    match u32::try_from(value.len()) {
        Ok(size) if room == 0 => body.put(&wire::GetxattrOut { size, padding: 0 }),
        Ok(size) if size <= room => body.bytes(value),
        _ => Err(Errno::RANGE),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xattrs_come_by_size_or_whole() {
        let mut buffer = [0; 16];
        let mut put = |room, value: &[u8]| {
            let mut body = Body::new(&mut buffer);
            put_xattr(&mut body, room, value).map(|()| body.len())
        };
        assert_eq!(put(0, b"abc"), Ok(8));
        assert_eq!(put(3, b"abc"), Ok(3));
        assert_eq!(put(2, b"abc"), Err(Errno::RANGE));
        assert_eq!(put(1, b""), Ok(0));
    }
}
