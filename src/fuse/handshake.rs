//! What we and the kernel agree on when a mount begins.

use std::io;

use zerocopy::{FromBytes, IntoBytes};

use super::message::Outcome;
use super::wire::{self, InHeader, InitIn, InitOut, init};
use crate::error::Errno;
use crate::sys::fuse::Device;
use crate::sys::ring;

/// The largest write request, and with it the largest read, in bytes.
pub const MAX_WRITE: usize = 1 << 20;
/// How many bytes a request may have before its data.
const MAX_ARGUMENTS: usize = 4096;
/// The buffer that the device wants to be read with.
pub const REQUEST_ROOM: usize = MAX_WRITE + MAX_ARGUMENTS;
/// How many background requests (readahead, asynchronous direct I/O, release) may wait at once.
const MAX_BACKGROUND: u16 = 64;
/// A page of memory, on which the kernel counts the size of requests.
const PAGE: usize = 4096;
/// `FUSE_INIT`
const INIT: u32 = 26;

/// What we ask of the kernel, where it offers it. Not among it: the writeback cache (it excludes
/// passthrough and would make the kernel the owner of times and sizes), and remote locks (the kernel
/// keeps flock and POSIX locks itself, which is right since all users come through this mount).
const CAPABILITIES: u64 = init::ASYNC_READ
    | init::ATOMIC_O_TRUNC
    | init::BIG_WRITES
    | init::DONT_MASK
    | init::POSIX_ACL
    | init::EXPLICIT_INVAL_DATA
    | init::HAS_IOCTL_DIR
    | init::DO_READDIRPLUS
    | init::READDIRPLUS_AUTO
    | init::PARALLEL_DIROPS
    | init::HANDLE_KILLPRIV_V2
    | init::CACHE_SYMLINKS
    | init::NO_OPENDIR_SUPPORT
    | init::ASYNC_DIO
    | init::EXPORT_SUPPORT
    | init::MAX_PAGES;

/// What a mount would like beyond what all have.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    /// The kernel reads and writes files by itself.
    pub passthrough: bool,
    /// Requests come over io_uring.
    pub ring: bool,
    /// There are POSIX ACLs.
    pub acl: bool,
}

/// Reads the first request of a connection and answers it. Tells what of the wishes the kernel fulfils.
///
/// # Errors
/// Those of the device; a version of the protocol that is too old.
pub fn shake(device: &Device, wanted: Wanted) -> io::Result<Wanted> {
    let mut buffer = vec![0; REQUEST_ROOM];
    let (header, offer) = loop {
        let length = match device.read(&mut buffer) {
            Ok(length) => length,
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e.into()),
        };
        let (header, rest) =
            InHeader::read_from_prefix(&buffer[..length]).map_err(|_| io::Error::from(Errno::PROTO))?;
        if header.opcode != INIT {
            return Err(io::Error::other("the kernel's first request is not INIT"));
        }
        // What an old kernel does not send is zero.
        let mut bytes = [0_u8; size_of::<InitIn>()];
        let sent = rest.len().min(bytes.len());
        bytes[..sent].copy_from_slice(&rest[..sent]);
        let offer: InitIn = zerocopy::transmute!(bytes);
        if offer.major <= wire::VERSION.0 {
            break (header, offer);
        }
        // It will ask again in our version.
        let ours = InitOut { major: wire::VERSION.0, minor: wire::VERSION.1, ..InitOut::default() };
        answer(device, &header, &ours)?;
    };
    if (offer.major, offer.minor) < (wire::VERSION.0, wire::OLDEST_MINOR) {
        let (major, minor) = (offer.major, offer.minor);
        return Err(io::Error::other(format!(
            "the kernel speaks version {major}.{minor} of the FUSE protocol; 7.{} (Linux 5.4) is needed",
            wire::OLDEST_MINOR
        )));
    }
    let (mut agreed, mut reply) = agree(&offer, wanted);
    if agreed.ring && !ring::is_permitted() {
        (agreed, reply) = agree(&offer, Wanted { ring: false, ..wanted });
    }
    answer(device, &header, &reply)?;
    tracing::debug!(offered = ?offer, ?agreed, "handshake with the kernel");
    Ok(agreed)
}

/// What we answer to an offer.
fn agree(offer: &InitIn, wanted: Wanted) -> (Wanted, InitOut) {
    let offered = match u64::from(offer.flags) {
        flags if flags & init::INIT_EXT != 0 => flags | u64::from(offer.flags2) << 32,
        flags => flags,
    };
    let has = |flag| offered & flag != 0;
    let agreed = Wanted {
        passthrough: wanted.passthrough && has(init::PASSTHROUGH),
        ring: wanted.ring && has(init::OVER_IO_URING),
        acl: wanted.acl && has(init::POSIX_ACL),
    };
    let mut flags = CAPABILITIES & offered;
    if !agreed.acl {
        flags &= !init::POSIX_ACL;
    }
    for (wish, flag) in [(agreed.passthrough, init::PASSTHROUGH), (agreed.ring, init::OVER_IO_URING)] {
        if wish {
            flags |= flag | init::INIT_EXT;
        }
    }
    let reply = InitOut {
        major: wire::VERSION.0,
        minor: wire::VERSION.1.min(offer.minor),
        max_readahead: offer.max_readahead,
        flags: flags as u32,
        flags2: (flags >> 32) as u32,
        max_background: MAX_BACKGROUND,
        congestion_threshold: MAX_BACKGROUND / 4 * 3,
        max_write: MAX_WRITE as u32,
        time_gran: 1,
        max_pages: (MAX_WRITE / PAGE) as u16,
        // Depth 1: our backing files lie on plain filesystems, and an overlayfs may be stacked on us. A
        // layer that is itself stacked gets no passthrough, and opening a backing file says so.
        max_stack_depth: u32::from(agreed.passthrough),
        ..InitOut::default()
    };
    (agreed, reply)
}

fn answer(device: &Device, to: &InHeader, body: &InitOut) -> io::Result<()> {
    match Outcome::Done(size_of::<InitOut>()).header(to.unique) {
        Some((header, _)) => Ok(device.write(header.as_bytes(), body.as_bytes())?),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(flags: u64) -> InitIn {
        InitIn {
            major: 7,
            minor: 45,
            max_readahead: 1 << 17,
            flags: flags as u32,
            flags2: (flags >> 32) as u32,
            unused: [0; 11],
        }
    }

    #[test]
    fn only_what_is_offered_is_asked_for() {
        let all = Wanted { passthrough: true, ring: true, acl: true };
        let (agreed, reply) = agree(&offer(init::ASYNC_READ | 1 << 10), all);
        assert!(!agreed.passthrough && !agreed.ring);
        assert_eq!((u64::from(reply.flags), reply.flags2, reply.max_stack_depth), (init::ASYNC_READ, 0, 0));
        let (agreed, reply) = agree(&offer(init::INIT_EXT | init::PASSTHROUGH | init::OVER_IO_URING), all);
        assert!(agreed.passthrough && agreed.ring);
        assert_eq!(u64::from(reply.flags), init::INIT_EXT);
        assert_eq!(u64::from(reply.flags2) << 32, init::PASSTHROUGH | init::OVER_IO_URING);
        assert_eq!((reply.minor, reply.max_stack_depth), (42, 1));
        let none = Wanted { passthrough: false, ring: false, acl: true };
        assert_eq!(agree(&offer(init::INIT_EXT | init::PASSTHROUGH), none).1.flags2, 0);
        let acls = |acl| agree(&offer(init::POSIX_ACL), Wanted { acl, ..none }).1.flags;
        assert_eq!((u64::from(acls(true)), acls(false)), (init::POSIX_ACL, 0));
    }

    #[test]
    fn the_second_half_of_the_flags_counts_only_when_announced() {
        let (agreed, _) =
            agree(&offer(init::PASSTHROUGH), Wanted { passthrough: true, ring: false, acl: true });
        assert!(!agreed.passthrough);
    }
}
