//! The transport: the kernel's FUSE protocol on one side, the core on the other.

pub mod adapter;
mod ahead;
mod connect;
mod convert;
mod handshake;
mod ioctl;
mod message;
pub mod mounts;
mod readers;
pub mod report;
pub mod session;
pub mod stats;
mod wire;
mod workers;
