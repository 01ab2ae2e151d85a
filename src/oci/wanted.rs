//! How a layer is to be applied.

use std::path::PathBuf;

use super::digest::Digest;
use super::ids::IdMap;
use super::tar::Limits;

/// How a layer is to be applied.
#[derive(Debug, Default)]
pub struct Wanted {
    /// The digest of the archive as it is, compressed or not.
    pub digest: Option<Digest>,
    /// The digest of the archive without compression.
    pub diff_id: Option<Digest>,
    /// How much it may ask for.
    pub limits: Limits,
    /// Owners on this machine.
    pub uids: IdMap,
    /// Groups on this machine.
    pub gids: IdMap,
    /// Keep owners, modes and device numbers in attributes, as an unprivileged user can
    /// (`user.containers.override_stat`).
    pub rootless: bool,
    /// Private attributes in `user.overlay.`; `None`: what is permitted.
    pub userxattr: Option<bool>,
    /// Layers below, topmost first: for hardlinks to their files, and for the attributes of directories that the
    /// archive does not mention.
    pub lowers: Vec<PathBuf>,
}
