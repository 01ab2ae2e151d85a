//! Requests over io_uring: the kernel's `Documentation/filesystems/fuse/fuse-io-uring.rst`.
//!
//! The kernel keeps one queue of requests for each CPU and puts a request into the queue of the CPU that its
//! caller runs on. Who serves that queue on the same CPU is woken there: no other CPU has to be woken for a
//! request, nor for its answer. And one system call both answers a request and waits for the next.
#![allow(unsafe_code)] // The kernel writes into buffers that it was told of.

use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::fuse::Device;
use crate::error::{Errno, Result, errno};

/// `FUSE_IO_URING_CMD_REGISTER`
const REGISTER: u32 = 1;
/// `FUSE_IO_URING_CMD_COMMIT_AND_FETCH`
const COMMIT_AND_FETCH: u32 = 2;
/// What `addr` of a registration points to: headers and payload.
const SEGMENTS: u32 = 2;
/// Where `len` lies in a `struct io_uring_sqe`.
const SQE_LEN: usize = 24;

/// How long the header of a request, the header of an answer and the fixed arguments may be each.
pub const HEADER: usize = 128;

/// `struct fuse_uring_req_header`, with `struct fuse_uring_ent_in_out` at its end.
#[repr(C, align(8))]
struct Headers {
    in_out: [u8; HEADER],
    op_in: [u8; HEADER],
    flags: u64,
    commit_id: u64,
    payload_size: u32,
    padding: u32,
    reserved: u64,
}

/// Place for one request at a time, known to the kernel.
struct Slot {
    queue: u16,
    headers: Box<Headers>,
    payload: Box<[u8]>,
    segments: Box<[libc::iovec; 2]>,
}

/// Serves some queues, one request at a time, from the thread that made it.
pub struct Ring {
    ring: IoUring<squeue::Entry128, cqueue::Entry>,
    device: Arc<Device>,
    slots: Vec<Slot>,
}

/// A request as it came.
#[derive(Debug)]
pub struct Arrived<'a> {
    /// `fuse_in_header`, and bytes without meaning.
    pub header: &'a mut [u8; HEADER],
    /// Arguments of fixed size, and bytes without meaning.
    pub fixed: &'a [u8; HEADER],
    /// Where the other arguments lie, and an answer goes.
    pub payload: &'a mut [u8],
    /// How long the other arguments are.
    pub length: usize,
}

/// Whether this process may use io_uring at all (`kernel.io_uring_disabled`, seccomp filters).
pub fn is_permitted() -> bool {
    build(1).is_ok()
}

fn build(entries: u32) -> Result<IoUring<squeue::Entry128, cqueue::Entry>> {
    IoUring::<squeue::Entry128, cqueue::Entry>::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .dontfork()
        .build(entries)
        .map_err(|e| errno(&e))
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring").field("slots", &self.slots.len()).finish_non_exhaustive()
    }
}

impl Ring {
    /// Prepares to serve these queues, with `room` bytes for arguments and answers: at least the largest write
    /// that was agreed on. To be used by the calling thread alone.
    ///
    /// # Errors
    /// EPERM where io_uring is forbidden (`kernel.io_uring_disabled`), ENOSYS, EINVAL on old kernels, ENOMEM.
    pub fn new(device: Arc<Device>, queues: &[u16], room: usize) -> Result<Self> {
        let entries = u32::try_from(queues.len().max(1)).map_err(|_| Errno::INVAL)?;
        let ring = build(entries.next_power_of_two())?;
        let slots = queues
            .iter()
            .map(|queue| {
                let mut headers = Box::new(Headers {
                    in_out: [0; HEADER],
                    op_in: [0; HEADER],
                    flags: 0,
                    commit_id: 0,
                    payload_size: 0,
                    padding: 0,
                    reserved: 0,
                });
                // Zeroed memory of this size is not there before it is touched.
                let mut payload = vec![0_u8; room].into_boxed_slice();
                let segments = Box::new([
                    libc::iovec {
                        iov_base: std::ptr::from_mut(&mut *headers).cast(),
                        iov_len: size_of::<Headers>(),
                    },
                    libc::iovec { iov_base: payload.as_mut_ptr().cast(), iov_len: room },
                ]);
                Slot { queue: *queue, headers, payload, segments }
            })
            .collect();
        Ok(Self { ring, device, slots })
    }

    fn push(&mut self, index: usize, operation: u32) -> Result<()> {
        let slot = &self.slots[index];
        // struct fuse_uring_cmd_req: flags, commit_id, qid.
        let mut command = [0_u8; 80];
        command[8..16].copy_from_slice(&slot.headers.commit_id.to_ne_bytes());
        command[16..18].copy_from_slice(&slot.queue.to_ne_bytes());
        let mut request = opcode::UringCmd80::new(types::Fd(self.device.as_fd().as_raw_fd()), operation)
            .cmd(command)
            .addr(Some(slot.segments.as_ptr() as u64))
            .build()
            .user_data(index as u64);
        // SAFETY: a squeue::Entry128 begins with the kernel's struct io_uring_sqe, whose `len` the crate gives no
        // way to set for this operation.
        unsafe { std::ptr::from_mut(&mut request).cast::<u8>().add(SQE_LEN).cast::<u32>().write(SEGMENTS) };
        // SAFETY: what the entry points to lives in a box of the slot, which lives as long as the ring. The kernel
        // touches it only while this thread is in `wait` (IORING_SETUP_DEFER_TASKRUN) or submits.
        unsafe { self.ring.submission().push(&request) }.map_err(|_| Errno::AGAIN)
    }

    /// Hands all places to the kernel. Requests come once all its queues have some.
    ///
    /// # Errors
    /// EOPNOTSUPP when the kernel's module parameter `enable_uring` is off; EINVAL for a queue that is not there.
    pub fn register(&mut self) -> Result<()> {
        for index in 0..self.slots.len() {
            self.push(index, REGISTER)?;
        }
        self.ring.submit().map_err(|e| errno(&e))?;
        // A refusal is reported at once.
        let refused = self.ring.completion().find(|done| done.result() < 0);
        refused.map_or(Ok(()), |done| Err(Errno::from_raw_os_error(-done.result())))
    }

    /// Sends the answers that were committed, and blocks until there is a request: gives the index of its place.
    ///
    /// # Errors
    /// ENOTCONN, ECONNABORTED or ENODEV after the unmount.
    pub fn wait(&mut self) -> Result<usize> {
        loop {
            if let Some(done) = self.ring.completion().next() {
                if done.result() < 0 {
                    return Err(Errno::from_raw_os_error(-done.result()));
                }
                return usize::try_from(done.user_data()).map_err(|_| Errno::IO);
            }
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(e) if e.raw_os_error() == Some(libc::EINTR) => {}
                Err(e) => return Err(errno(&e)),
            }
        }
    }

    /// The request in a place that [`Self::wait`] gave.
    pub fn arrived(&mut self, index: usize) -> Arrived<'_> {
        let Slot { headers, payload, .. } = &mut self.slots[index];
        let Headers { in_out, op_in, payload_size, .. } = &mut **headers;
        let length = (*payload_size as usize).min(payload.len());
        Arrived { header: in_out, fixed: op_in, payload, length }
    }

    /// Makes what lies in the place the answer: its header, and `length` bytes of payload. The next
    /// [`Self::wait`] sends it.
    ///
    /// # Errors
    /// EAGAIN, when more was committed than arrived.
    pub fn commit(&mut self, index: usize, length: usize) -> Result<()> {
        self.slots[index].headers.payload_size = u32::try_from(length).map_err(|_| Errno::INVAL)?;
        self.push(index, COMMIT_AND_FETCH)
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        // The kernel may still know of the places until it has noticed that the ring is closed.
        std::mem::forget(std::mem::take(&mut self.slots));
    }
}
