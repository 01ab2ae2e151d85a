//! What we and the kernel agree on when a mount begins.

use fuser::{InitFlags, KernelConfig};

/// The largest write request, and with it the largest read, in bytes.
const MAX_WRITE: u32 = 1 << 20;
/// How many background requests (readahead, asynchronous direct I/O, release) may wait at once.
const MAX_BACKGROUND: u16 = 64;

/// What we ask of the kernel, where it offers it. Not among it: the writeback cache (it excludes
/// passthrough and would make the kernel the owner of times and sizes), and remote locks (the kernel
/// keeps flock and POSIX locks itself, which is right since all users come through this mount).
const CAPABILITIES: InitFlags = InitFlags::FUSE_ASYNC_READ
    .union(InitFlags::FUSE_ATOMIC_O_TRUNC)
    .union(InitFlags::FUSE_BIG_WRITES)
    .union(InitFlags::FUSE_DONT_MASK)
    .union(InitFlags::FUSE_POSIX_ACL)
    .union(InitFlags::FUSE_EXPLICIT_INVAL_DATA)
    .union(InitFlags::FUSE_HAS_IOCTL_DIR)
    .union(InitFlags::FUSE_DO_READDIRPLUS)
    .union(InitFlags::FUSE_READDIRPLUS_AUTO)
    .union(InitFlags::FUSE_PARALLEL_DIROPS)
    .union(InitFlags::FUSE_HANDLE_KILLPRIV_V2)
    .union(InitFlags::FUSE_CACHE_SYMLINKS)
    .union(InitFlags::FUSE_ASYNC_DIO)
    .union(InitFlags::FUSE_EXPORT_SUPPORT)
    .union(InitFlags::FUSE_MAX_PAGES)
    .union(InitFlags::FUSE_SPLICE_READ)
    .union(InitFlags::FUSE_SPLICE_WRITE)
    .union(InitFlags::FUSE_SPLICE_MOVE);

/// Asks for what the mount wants and the kernel offers. Tells whether I/O may pass us by.
pub fn agree(config: &mut KernelConfig, passthrough: bool, acl: bool) -> bool {
    let offered = config.capabilities();
    // Only what is offered is asked for, so this cannot fail. Readahead stays as large as offered, and
    // times at 1 ns: fuser's defaults.
    let wanted = if acl { CAPABILITIES } else { CAPABILITIES.difference(InitFlags::FUSE_POSIX_ACL) };
    let _ = config.add_capabilities(wanted & offered);
    let _ = config.set_max_write(MAX_WRITE);
    let _ = config.set_max_background(MAX_BACKGROUND);
    // Depth 1: our backing files lie on plain filesystems, and an overlayfs may be stacked on us. A
    // layer that is itself stacked gets no passthrough, and open_backing says so.
    let passthrough = passthrough
        && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
        && config.set_max_stack_depth(1).is_ok();
    tracing::debug!(?offered, passthrough, "handshake with the kernel");
    passthrough
}
