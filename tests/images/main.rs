//! Layers as images: what an upper changes, and layer archives.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A failed test is what they are for.

#[path = "../common/mod.rs"]
mod common;
mod diff;
mod freeze;
mod hostile;
mod layers;
mod live;
mod oracle;
mod random;
mod store;
