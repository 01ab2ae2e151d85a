//! One layer, and the stack of them.

pub mod claim;
