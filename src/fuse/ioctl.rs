//! The ioctls that mean something here: inode flags. The kernel sends them by itself for lsattr(1) and
//! chattr(1), having checked the caller (`fuse_fileattr_get` and `fuse_fileattr_set` in `fs/fuse/ioctl.c`).

use crate::error::{Errno, Result};
use crate::fs::UnionFs;
use crate::sys::flags::{self, Extended};

/// What an ioctl has led to.
#[derive(Debug, PartialEq, Eq)]
pub struct Done {
    /// The bytes that the caller gets.
    pub answer: Vec<u8>,
    /// The object was changed.
    pub changed: bool,
}

/// Runs `command` with `argument` on the inode `ino`.
///
/// # Errors
/// ENOTTY for an unknown one; those of the flags.
pub fn run(fs: &UnionFs, ino: u64, command: u32, argument: &[u8]) -> Result<Done> {
    let got = |answer: Vec<u8>| Ok(Done { answer, changed: false });
    let done = Ok(Done { answer: Vec::new(), changed: true });
    match command {
        flags::GET => got(fs.flags(ino)?.to_ne_bytes().to_vec()),
        flags::GET_EXTENDED => got(fs.extended_flags(ino)?.to_bytes().to_vec()),
        flags::SET => {
            let wanted = argument.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
            fs.set_flags(ino, wanted.ok_or(Errno::INVAL)?)?;
            done
        }
        flags::SET_EXTENDED => {
            fs.set_extended_flags(ino, Extended::from_bytes(argument).ok_or(Errno::INVAL)?)?;
            done
        }
        _ => Err(Errno::NOTTY),
    }
}
