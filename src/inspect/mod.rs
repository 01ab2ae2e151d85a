//! What is known of live mounts from outside of them: their state on disk, and what serves a path.

pub mod control;
mod owned;
pub mod path;
pub mod state;
