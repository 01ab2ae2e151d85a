//! `unionfs demo`.
use crate::error::MountError;
/// Runs the demonstration.
pub fn run() -> Result<(), MountError> {
    Ok(())
}
