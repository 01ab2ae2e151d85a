//! The hot paths of the core, without a mount and without FUSE.
//!
//! `cargo bench --bench core` runs all, `cargo bench --bench core lookup` some by name.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod copy_up;
mod layers;
mod listing;
mod lookup;
mod request;
mod table;

use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};

/// Short: what is measured takes microseconds, and there is much of it.
fn settings() -> Criterion {
    Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2))
}

criterion_group! {
    name = core;
    config = settings();
    targets = lookup::all, table::all, listing::all, copy_up::all, request::all
}
criterion_main!(core);
