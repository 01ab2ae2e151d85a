//! One layer, and the stack of them. A lower layer offers no mutation; the upper's are in
//! [`upper`], the only place that changes a layer.

pub mod at_rest;
pub mod claim;
pub mod dir;
pub mod fd_cache;
pub mod identity;
pub mod located;
mod lock;
pub mod look;
pub mod marks;
pub mod next;
pub mod owner;
pub mod stack;
pub mod upper;
pub mod volatile;
pub mod work;
