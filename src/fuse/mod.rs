//! The transport: the kernel's FUSE protocol on one side, the core on the other.

pub mod adapter;
mod ahead;
mod connect;
mod convert;
pub mod handshake;
mod ioctl;
mod keeper;
pub mod message;
pub mod mounts;
mod movers;
mod readers;
pub mod report;
pub mod session;
pub mod stats;
pub mod wire;
mod workers;
