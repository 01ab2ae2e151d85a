//! The thin adapter between the kernel's FUSE protocol and the core.

pub mod adapter;
pub mod mounts;
pub mod session;
