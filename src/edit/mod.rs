//! Changes of names in the writable layers, each one atomic for whoever looks and at any crash.

pub mod create;
pub mod remove;
pub mod rename;
