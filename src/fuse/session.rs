//! Makes the mount, serves it, ends it.

use crate::config::MountConfig;
use crate::error::MountError;

/// A mount whose handshake with the kernel is done; requests are answered once [`Mounted::run`] runs.
#[derive(Debug)]
pub struct Mounted {
    _private: (),
}

/// Opens the layers (which must have passed [`crate::layer::claim`]), mounts at `config.mountpoint`.
///
/// # Errors
/// A sentence for the user. Nothing is left mounted.
pub fn mount(_config: &MountConfig, _claim: crate::layer::claim::Claim) -> Result<Mounted, MountError> {
    Err(MountError::System("not built yet".into()))
}

impl Mounted {
    /// Serves requests until the mount is unmounted by whatever means. Blocks.
    ///
    /// # Errors
    /// A failure of the connection to the kernel.
    pub fn run(self) -> std::io::Result<()> {
        Ok(())
    }
}
