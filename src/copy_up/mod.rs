//! Copy-up.
