//! One request as it came, and the answer as it is written.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::stats::Op;
use super::wire::{InHeader, OutHeader};
use crate::error::{Errno, Result};
use crate::fs::Caller;

/// A request.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// What all requests begin with.
    pub header: InHeader,
    /// The arguments of fixed size.
    fixed: &'a [u8],
    /// The arguments after them: names, data.
    rest: &'a [u8],
}

impl<'a> Request<'a> {
    /// A request in pieces.
    ///
    /// # Errors
    /// EIO when it has no header.
    pub fn new(header: &[u8], fixed: &'a [u8], rest: &'a [u8]) -> Result<Self> {
        let (header, _) = InHeader::read_from_prefix(header).map_err(|_| Errno::IO)?;
        Ok(Self { header, fixed, rest })
    }

    /// A request in one piece, as the device gives it.
    ///
    /// # Errors
    /// EIO when it has no header.
    pub fn parse(bytes: &'a [u8]) -> Result<Self> {
        let (header, arguments) = InHeader::read_from_prefix(bytes).map_err(|_| Errno::IO)?;
        let fixed_len = Op::from_code(header.opcode).map_or(0, Op::fixed_len);
        let (fixed, rest) = arguments.split_at(fixed_len.min(arguments.len()));
        Ok(Self { header, fixed, rest })
    }

    /// The arguments of fixed size.
    ///
    /// # Errors
    /// EIO when the request is too short.
    pub fn fixed<T: FromBytes + KnownLayout + Immutable>(&self) -> Result<T> {
        T::read_from_prefix(self.fixed).map(|(value, _)| value).map_err(|_| Errno::IO)
    }

    /// All bytes after the arguments of fixed size.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// The bytes after the arguments of fixed size, up to a NUL, and those after it.
    ///
    /// # Errors
    /// EIO when there is no NUL.
    pub fn text(&self) -> Result<(&'a OsStr, &'a [u8])> {
        split_text(self.rest)
    }

    /// The name that follows the arguments of fixed size.
    ///
    /// # Errors
    /// EIO when there is none.
    pub fn name(&self) -> Result<&'a OsStr> {
        self.text().map(|(name, _)| name)
    }

    /// The two texts that follow the arguments of fixed size.
    ///
    /// # Errors
    /// EIO when there are less.
    pub fn two_texts(&self) -> Result<(&'a OsStr, &'a OsStr)> {
        let (first, rest) = self.text()?;
        Ok((first, split_text(rest)?.0))
    }

    /// Who asks. `umask` is 0 for operations that carry none.
    pub fn caller(&self, umask: u32) -> Caller {
        let InHeader { uid, gid, pid, .. } = self.header;
        Caller { uid, gid, pid, umask: umask & 0o777 }
    }
}

fn split_text(bytes: &[u8]) -> Result<(&OsStr, &[u8])> {
    let end = bytes.iter().position(|b| *b == 0).ok_or(Errno::IO)?;
    Ok((OsStr::from_bytes(&bytes[..end]), &bytes[end + 1..]))
}

/// What an answer says after its header.
#[derive(Debug)]
pub struct Body<'a> {
    buffer: &'a mut [u8],
    length: usize,
}

impl<'a> Body<'a> {
    /// An empty one with all the room of a buffer.
    pub fn new(buffer: &'a mut [u8]) -> Self {
        Self { buffer, length: 0 }
    }

    /// How many bytes it has.
    pub fn len(&self) -> usize {
        self.length
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The room that is left.
    pub fn room(&mut self) -> &mut [u8] {
        &mut self.buffer[self.length..]
    }

    /// Counts the first `count` bytes of the room in: they were written.
    pub fn filled(&mut self, count: usize) {
        self.length = self.buffer.len().min(self.length + count);
    }

    /// Appends bytes.
    ///
    /// # Errors
    /// ERANGE when they do not fit.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.room().get_mut(..bytes.len()).ok_or(Errno::RANGE)?.copy_from_slice(bytes);
        self.length += bytes.len();
        Ok(())
    }

    /// Appends a value.
    ///
    /// # Errors
    /// ERANGE when it does not fit.
    pub fn put(&mut self, value: &(impl IntoBytes + Immutable)) -> Result<()> {
        self.bytes(value.as_bytes())
    }
}

/// How a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is answered by so many bytes of body.
    Done(usize),
    /// It failed.
    Failed(Errno),
    /// Nobody waits for an answer.
    Silent,
}

impl Outcome {
    /// The header of the answer, and how long its body is. `None`: there is no answer.
    pub fn header(self, unique: u64) -> Option<(OutHeader, usize)> {
        let (error, body) = match self {
            Self::Done(body) => (0, body),
            Self::Failed(err) => (-err.raw_os_error(), 0),
            Self::Silent => return None,
        };
        let len = u32::try_from(size_of::<OutHeader>() + body).unwrap_or(u32::MAX);
        Some((OutHeader { len, error, unique }, body))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuse::wire;
    use proptest::prelude::*;

    fn bytes(opcode: u32, arguments: &[u8]) -> Vec<u8> {
        let header = InHeader { opcode, unique: 3, nodeid: 7, uid: 1, gid: 2, pid: 9, ..InHeader::default() };
        [header.as_bytes(), arguments].concat()
    }

    #[test]
    fn requests_are_taken_apart() {
        let data = bytes(9, b"\xed\x01\0\0\x12\0\0\0name\0");
        let request = Request::parse(&data).unwrap();
        let mkdir: wire::MkdirIn = request.fixed().unwrap();
        assert_eq!((mkdir.mode, mkdir.umask), (0o755, 0o22));
        assert_eq!(request.name().unwrap(), "name");
        assert_eq!(request.caller(0o7022), Caller { uid: 1, gid: 2, pid: 9, umask: 0o22 });
        let data = bytes(6, b"name\0to/there\0");
        let both = Request::parse(&data).unwrap().two_texts().unwrap();
        assert_eq!(both, (OsStr::new("name"), OsStr::new("to/there")));
    }

    #[test]
    fn short_requests_are_errors() {
        assert_eq!(Request::parse(&[0; 39]).err(), Some(Errno::IO));
        let data = bytes(9, b"\xed\x01");
        let request = Request::parse(&data).unwrap();
        assert_eq!(request.fixed::<wire::MkdirIn>().err(), Some(Errno::IO));
        assert_eq!(request.name(), Err(Errno::IO));
        let data = bytes(6, b"name\0to");
        assert_eq!(Request::parse(&data).unwrap().two_texts(), Err(Errno::IO));
    }

    #[test]
    fn answers_are_put_together() {
        let mut buffer = [0; 12];
        let mut body = Body::new(&mut buffer);
        body.put(&wire::WriteOut { size: 5, padding: 0 }).unwrap();
        body.bytes(b"ab").unwrap();
        body.room()[0] = b'c';
        body.filled(1);
        assert_eq!(body.bytes(b"de"), Err(Errno::RANGE));
        assert_eq!(body.len(), 11);
        assert_eq!(&buffer[8..11], b"abc");
        let (header, length) = Outcome::Done(11).header(4).unwrap();
        assert_eq!((header.len, header.error, header.unique, length), (27, 0, 4, 11));
        let (header, length) = Outcome::Failed(Errno::NOENT).header(4).unwrap();
        assert_eq!((header.len, header.error, length), (16, -libc::ENOENT, 0));
        assert!(Outcome::Silent.header(4).is_none());
    }

    proptest! {
        #[test]
        fn nothing_panics(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(request) = Request::parse(&data) {
                let _ = request.fixed::<wire::SetattrIn>();
                let _ = request.two_texts();
            }
        }
    }
}
