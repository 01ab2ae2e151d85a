//! Copying the content of a file: by reference, within the kernel, or by hand; holes stay holes.
#![allow(unsafe_code)] // sync_file_range(2) has no safe wrapper.

use std::os::fd::{AsFd, AsRawFd};

use rustix::fs::SeekFrom;

use crate::error::{Errno, Result};

/// Bytes per copy_file_range(2) call: long enough to be cheap, short enough to be interruptible, and for the device
/// to begin soon with what [`begin_write`] gives it.
const CHUNK: u64 = 8 << 20;
/// Bytes per read and write where the kernel cannot copy.
const BUFFER: usize = 256 << 10;

/// Copies the first `len` bytes of `from` into the empty file `to`, whose size becomes `len`. Tries
/// to share extents (FICLONE), then copies data extents only (SEEK_DATA in lseek(2)).
///
/// `synced`: an fsync(2) of the copy will follow. The device then writes what is copied while the rest still is.
///
/// Gives the number of bytes that were copied or shared: 0 when the copy is nothing but a hole, which needs no sync.
///
/// # Errors
/// Those of reading the one and writing the other, ENOSPC above all.
pub fn copy_data(from: impl AsFd, to: impl AsFd, len: u64, synced: bool) -> Result<u64> {
    let (from, to) = (from.as_fd(), to.as_fd());
    if len == 0 {
        return Ok(0);
    }
    let size = super::file::stat_fd(from)?.size;
    if len >= size && rustix::fs::ioctl_ficlone(to, from).is_ok() {
        // The reference is as little on the device as copied bytes are, and is synced as they are.
        return Ok(size);
    }
    rustix::fs::ftruncate(to, len)?;
    let end = len.min(size);
    let (mut pos, mut copied) = (0, 0);
    while pos < end {
        let data = match rustix::fs::seek(from, SeekFrom::Data(pos)) {
            Ok(data) => data,
            Err(Errno::NXIO) => break,
            // A filesystem without SEEK_DATA: all is data.
            Err(Errno::INVAL) => pos,
            Err(e) => return Err(e),
        };
        let hole = rustix::fs::seek(from, SeekFrom::Hole(data)).unwrap_or(end).min(end);
        if data >= end {
            break;
        }
        let mut start = data;
        while start < hole {
            let end = hole.min(start + CHUNK);
            copy_range(from, to, start, end)?;
            if synced && end - start == CHUNK {
                begin_write(to, start, CHUNK);
            }
            start = end;
        }
        copied += hole - data;
        pos = hole;
    }
    Ok(copied)
}

/// Has the kernel begin to write a range of a file to its device. Promises nothing: the fsync(2) does.
fn begin_write(file: impl AsFd, start: u64, length: u64) {
    let (Ok(start), Ok(length)) = (start.try_into(), length.try_into()) else { return };
    let fd = file.as_fd().as_raw_fd();
    // SAFETY: takes numbers alone. What fails here is told by the fsync(2) that follows.
    unsafe { libc::sync_file_range(fd, start, length, libc::SYNC_FILE_RANGE_WRITE) };
}

fn copy_range(from: impl AsFd, to: impl AsFd, start: u64, end: u64) -> Result<()> {
    let (mut off_in, mut off_out) = (start, start);
    while off_in < end {
        let want = usize::try_from(end - off_in).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(&from, Some(&mut off_in), &to, Some(&mut off_out), want) {
            // The source shrank under us: the rest stays a hole.
            Ok(0) => return Ok(()),
            Ok(_) | Err(Errno::INTR) => {}
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS | Errno::PERM) => {
                return copy_by_hand(from, to, off_in, end);
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

fn copy_by_hand(from: impl AsFd, to: impl AsFd, start: u64, end: u64) -> Result<()> {
    let mut buf = vec![0_u8; BUFFER];
    let mut pos = start;
    while pos < end {
        let want = usize::try_from(end - pos).map_or(BUFFER, |n| n.min(BUFFER));
        let got = match rustix::io::pread(&from, &mut buf[..want], pos) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(Errno::INTR) => continue,
            Err(e) => return Err(e),
        };
        let mut done = 0;
        while done < got {
            done += match write_some_at(&to, &buf[done..got], pos + done as u64)? {
                0 => return Err(Errno::NOSPC),
                n => n,
            };
        }
        pos += got as u64;
    }
    Ok(())
}

/// Writes as much of the buffer at `offset` as can be; gives the bytes written.
///
/// # Errors
/// Those of pwrite(2), when nothing was written.
pub fn write_some_at(to: impl AsFd, data: &[u8], offset: u64) -> Result<usize> {
    let mut done = 0;
    while done < data.len() {
        match rustix::io::pwrite(&to, &data[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(e) if done == 0 => return Err(e),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// Reads until the buffer is full or the file ends; gives the number of bytes read. `size`: what the file's
/// size was once; a read that ends short there is taken to have reached the end.
pub fn read_full_at(from: impl AsFd, buf: &mut [u8], offset: u64, size: u64) -> Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match rustix::io::pread(&from, &mut buf[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(n) => {
                done += n;
                if done < buf.len() && offset + done as u64 == size {
                    break;
                }
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}
