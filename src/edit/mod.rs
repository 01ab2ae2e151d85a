//! Mutations of the upper.
