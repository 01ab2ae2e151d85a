//! Layers as images: what an upper changes, layer archives in the form of the OCI image specification, and a
//! store of images. Works on layers at rest and without a mount.

pub mod attributes;
pub mod delta;
mod links;
