//! Layers that others wrote, mounted by us; layers that we wrote, mounted by others. Each shows exactly what
//! the author showed.
//!
//! `UNIONFS_EXCHANGE_CASES` random cases for each peer and direction (12) from `UNIONFS_EXCHANGE_SEED`.
//! `tools/peers` installs the peers. What they do otherwise than we is listed in `docs/COMPATIBILITY.md`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../common/mod.rs"]
mod common;
mod data_only;
#[path = "../differential/flat.rs"]
mod flat;
mod formats;
#[path = "../differential/layers.rs"]
mod layers;
#[path = "../differential/ops.rs"]
#[allow(dead_code)] // A part of it is for others.
mod ops;
mod peer;
mod random;
mod scripted;
