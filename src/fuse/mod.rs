//! The thin adapter between the kernel's FUSE protocol and the core.

pub mod adapter;
mod convert;
mod handshake;
mod ioctl;
pub mod mounts;
mod reply;
pub mod report;
pub mod session;
pub mod stats;
