//! The merged view.
