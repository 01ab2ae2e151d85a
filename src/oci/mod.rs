//! Layers as images: what an upper changes, layer archives in the form of the OCI image specification, and a
//! store of images. Works on layers at rest and without a mount.

pub mod apply;
pub mod attributes;
pub mod codec;
pub mod commit;
pub mod delta;
pub mod digest;
pub mod ids;
mod links;
pub mod tar;
mod unpack;

/// Is told how far a long piece of work has come.
pub trait Watch {
    /// Something begins, of so many bytes when that is known.
    fn begin(&self, what: &str, bytes: Option<u64>);
    /// So many bytes more are done.
    fn step(&self, bytes: u64);
    /// It is done.
    fn end(&self);
}
