//! Layers as images: what an upper changes, layer archives in the form of the OCI image specification, and a
//! store of images. Works on layers at rest and without a mount.

mod ahead;
pub mod apply;
pub mod attributes;
pub mod change;
pub mod codec;
pub mod commit;
mod delta;
pub mod digest;
pub mod export;
pub mod ids;
pub mod import;
mod links;
pub mod store;
pub mod tar;
mod unpack;
pub mod wanted;

use std::io::{self, Read};

/// Is told how far a long piece of work has come.
pub trait Watch: std::fmt::Debug + Sync {
    /// Something begins, of so many bytes when that is known.
    fn begin(&self, what: &str, bytes: Option<u64>);
    /// So many bytes more are done.
    fn step(&self, bytes: u64);
    /// It is done.
    fn end(&self);
}

/// Reads, and tells how much.
#[derive(Debug)]
struct Watched<'a, R> {
    inner: R,
    watch: &'a dyn Watch,
}

impl<'a, R> Watched<'a, R> {
    fn new(inner: R, watch: &'a dyn Watch) -> Self {
        Self { inner, watch }
    }
}

impl<R: Read> Read for Watched<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.inner.read(buf)?;
        self.watch.step(n as u64);
        Ok(n)
    }
}
