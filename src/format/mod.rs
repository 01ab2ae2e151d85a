//! On-disk forms, as pure conversions between bytes and types. They are those of the kernel's
//! overlayfs (Documentation/filesystems/overlayfs.rst), so that it can mount what we wrote.

pub mod acl;
pub mod mountinfo;
pub mod names;
pub mod nlink;
pub mod origin;
pub mod override_stat;
pub mod redirect;
