//! A layered union filesystem in userspace for Linux.
//!
//! Read-only lower directories, an optional container init layer and a writable upper directory
//! appear as one tree. The modules form ranks; each uses only modules of lower rank:
//!
//! | rank | modules |
//! |------|---------|
//! | 0 | [`error`], [`config`], [`format`](mod@format), [`sys`] |
//! | 1 | [`layer`] |
//! | 2 | [`merge`] |
//! | 3 | [`copy_up`], [`node`] |
//! | 4 | [`edit`] |
//! | 5 | [`fs`] |
//! | 6 | [`fuse`], [`oci`], [`inspect`], [`check`] |
//! | 7 | [`cli`] |

pub mod check;
pub mod cli;
pub mod config;
pub mod copy_up;
pub mod edit;
pub mod error;
pub mod format;
pub mod fs;
pub mod fuse;
pub mod inspect;
pub mod layer;
pub mod merge;
pub mod node;
pub mod oci;
pub mod sys;
