//! Reading on a thread of its own, so that what is read is decompressed and its digest made while files are written.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, SyncSender};

/// Bytes handed over at once.
const PIECE: usize = 256 << 10;
/// Pieces that may wait: what is read ahead of need is bounded.
pub const WAITING: usize = 8;

/// What comes over: bytes, at last an error.
pub type Piece = io::Result<Vec<u8>>;

/// Sends all that `from` gives, until its end, an error, or until nobody wants any more.
pub fn send(from: &mut impl Read, to: &SyncSender<Piece>) {
    loop {
        let mut piece = Vec::with_capacity(PIECE);
        let read = from.by_ref().take(PIECE as u64).read_to_end(&mut piece);
        let last = piece.len() < PIECE;
        if !piece.is_empty() && to.send(Ok(piece)).is_err() {
            return;
        }
        if let Err(e) = read {
            // Nobody may listen any more.
            let _ = to.send(Err(e));
            return;
        }
        if last {
            return;
        }
    }
}

/// Reads what comes over.
#[derive(Debug)]
pub struct Ahead {
    from: Receiver<Piece>,
    piece: Vec<u8>,
    at: usize,
}

impl Ahead {
    /// Reads what is sent to this.
    pub fn new(from: Receiver<Piece>) -> Self {
        Self { from, piece: Vec::new(), at: 0 }
    }
}

impl Read for Ahead {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            match self.from.recv() {
                Ok(piece) => (self.piece, self.at) = (piece?, 0),
                // The end.
                Err(_) => return Ok(0),
            }
        }
        let n = buf.len().min(self.piece.len() - self.at);
        buf[..n].copy_from_slice(&self.piece[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_comes_over_and_errors_too() {
        let data: Vec<u8> = (0..PIECE * 3 + 17).map(|i| i as u8).collect();
        let (to, from) = std::sync::mpsc::sync_channel(WAITING);
        std::thread::scope(|scope| {
            scope.spawn(|| send(&mut &data[..], &to));
            let mut ahead = Ahead::new(from);
            let mut back = vec![0; data.len()];
            ahead.read_exact(&mut back).unwrap();
            assert!(back == data);
        });
        struct Broken;
        impl Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
                Err(io::ErrorKind::ConnectionReset.into())
            }
        }
        let (to, from) = std::sync::mpsc::sync_channel(WAITING);
        send(&mut (&b"ab"[..]).chain(Broken), &to);
        let mut ahead = Ahead::new(from);
        let mut buf = [0; 8];
        assert_eq!(ahead.read(&mut buf).unwrap(), 2);
        assert_eq!(ahead.read(&mut buf).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }
}
