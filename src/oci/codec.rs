//! Compression of layer archives.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;
use flate2::write::GzEncoder;

use super::digest::{Digest, Digesting};

/// How an archive is compressed (OCI image spec, layer.md, "+gzip Media Types", "+zstd Media Types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// The level of zstd: its own default.
const ZSTD_LEVEL: i32 = 3;
/// Bytes read at once.
const BUFFER: usize = 128 << 10;

impl Compression {
    /// What the name of a file says: `.tar`, `.tar.gz` or `.tgz`, `.tar.zst`.
    pub fn of_name(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        [(".tar", Self::None), (".tar.gz", Self::Gzip), (".tgz", Self::Gzip), (".tar.zst", Self::Zstd)]
            .into_iter()
            .find_map(|(end, compression)| name.ends_with(end).then_some(compression))
    }

    /// What the first bytes of a file say.
    pub fn of_content(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// The media type of a layer.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// Takes an archive and writes it compressed, with the digests of both.
pub struct Encoder<W: Write>(Digesting<Inner<W>>);

enum Inner<W: Write> {
    Plain(Digesting<W>),
    Gzip(GzEncoder<Digesting<W>>),
    Zstd(zstd::Encoder<'static, Digesting<W>>),
}

/// What an [`Encoder`] has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Encoded {
    /// Of the archive as it was given.
    pub diff_id: Digest,
    /// Of what was written.
    pub digest: Digest,
    /// Bytes given.
    pub archive_size: u64,
    /// Bytes written.
    pub size: u64,
}

impl<W: Write> Encoder<W> {
    /// Writes to `out`.
    ///
    /// # Errors
    /// Those of the compressor.
    pub fn new(out: W, compression: Compression) -> io::Result<Self> {
        let out = Digesting::new(out);
        let inner = match compression {
            Compression::None => Inner::Plain(out),
            // Without a name and a time: the same archive gives the same bytes.
            Compression::Gzip => Inner::Gzip(GzEncoder::new(out, flate2::Compression::default())),
            Compression::Zstd => Inner::Zstd(zstd::Encoder::new(out, ZSTD_LEVEL)?),
        };
        Ok(Self(Digesting::new(inner)))
    }

    /// Writes the rest; gives where it went.
    ///
    /// # Errors
    /// Those of writing.
    pub fn finish(self) -> io::Result<(W, Encoded)> {
        let (inner, diff_id, archive_size) = self.0.finish();
        let out = match inner {
            Inner::Plain(out) => out,
            Inner::Gzip(gzip) => gzip.finish()?,
            Inner::Zstd(zstd) => zstd.finish()?,
        };
        let (out, digest, size) = out.finish();
        Ok((out, Encoded { diff_id, digest, archive_size, size }))
    }
}

impl<W: Write> Write for Inner<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(out) => out.write(buf),
            Self::Gzip(out) => out.write(buf),
            Self::Zstd(out) => out.write(buf),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(out) => out.flush(),
            Self::Gzip(out) => out.flush(),
            Self::Zstd(out) => out.flush(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Reads an archive, whatever it is compressed with.
pub struct Decoder<R: Read>(Source<R>);

enum Source<R: Read> {
    Plain(BufReader<R>),
    Gzip(Box<MultiGzDecoder<BufReader<R>>>),
    Zstd(zstd::Decoder<'static, BufReader<R>>),
}

impl<R: Read> Decoder<R> {
    /// Looks at the first bytes of `from`.
    ///
    /// # Errors
    /// Those of reading.
    pub fn new(from: R) -> io::Result<Self> {
        let mut from = BufReader::with_capacity(BUFFER, from);
        Ok(Self(match Compression::of_content(from.fill_buf()?) {
            Compression::None => Source::Plain(from),
            Compression::Gzip => Source::Gzip(Box::new(MultiGzDecoder::new(from))),
            Compression::Zstd => Source::Zstd(zstd::Decoder::with_buffer(from)?),
        }))
    }

    /// What it is compressed with.
    pub fn compression(&self) -> Compression {
        match self.0 {
            Source::Plain(_) => Compression::None,
            Source::Gzip(_) => Compression::Gzip,
            Source::Zstd(_) => Compression::Zstd,
        }
    }

    /// Reads what follows the compressed archive, so that a digest covers it; gives the source.
    ///
    /// # Errors
    /// Those of reading.
    pub fn finish(self) -> io::Result<R> {
        let mut from = match self.0 {
            Source::Plain(from) => from,
            Source::Gzip(gzip) => gzip.into_inner(),
            Source::Zstd(zstd) => zstd.finish(),
        };
        io::copy(&mut from, &mut io::sink())?;
        Ok(from.into_inner())
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Source::Plain(from) => from.read(buf),
            Source::Gzip(from) => from.read(buf),
            Source::Zstd(from) => from.read(buf),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trip_with_digests() {
        let data = b"some data ".repeat(5000);
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let mut encoder = Encoder::new(Vec::new(), compression).unwrap();
            encoder.write_all(&data).unwrap();
            let (written, encoded) = encoder.finish().unwrap();
            assert_eq!(encoded.diff_id, Digest::of(&data));
            assert_eq!(encoded.digest, Digest::of(&written));
            assert_eq!((encoded.archive_size, encoded.size), (data.len() as u64, written.len() as u64));
            assert_eq!(Compression::of_content(&written), compression);
            let mut back = Vec::new();
            // Compressed files may follow each other, and mean what they contain together.
            let twice = [written.clone(), written].concat();
            Decoder::new(&twice[..]).unwrap().read_to_end(&mut back).unwrap();
            assert_eq!(back, data.repeat(2));
        }
    }
}
