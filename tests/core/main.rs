//! The union core without a mount: [`unionfs::fs::UnionFs`] on layers in temporary directories.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod concurrency;
mod copy_up;
mod crafted;
mod hardlinks;
mod init_layer;
mod io_modes;
mod known;
mod lookup;
mod model;
mod owners;
mod redirects;
mod renames;
mod snapshot;
mod tree;
mod union;
mod unlinked;
