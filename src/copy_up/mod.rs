//! Copying an object up: a complete copy is made out of sight and then published in one step, so that
//! every name shows the old object or the whole new one at any instant.

pub mod metadata;
pub mod stage;

pub use stage::{Content, Staged, complete, stage};
