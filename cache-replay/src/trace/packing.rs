//! What a file is packed with, told by its first bytes.

use std::io::{self, BufRead, BufReader, Cursor, Read};

use flate2::bufread::GzDecoder;
use liblzma::{
    bufread::XzDecoder,
    stream::{CONCATENATED, Error as XzError, Stream},
};

/// How much memory unpacking may take. `xz -9` needs 65 MiB; a file can claim any amount.
pub(crate) const XZ_MEMORY: u64 = 128 << 20;
const BUFFER: usize = 64 << 10;
/// The longest magic number below.
const MAGIC: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Packing {
    Plain,
    Gzip,
    Xz,
}

impl Packing {
    pub(crate) fn of(head: &[u8]) -> Self {
        if head.starts_with(b"\xfd7zXZ\0") {
            Self::Xz
        } else if head.starts_with(b"\x1f\x8b\x08") {
            Self::Gzip
        } else {
            Self::Plain
        }
    }

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
        }
    }
}

/// What is not a trace, and how to make one of it.
const FOREIGN: [(&[u8], &str); 12] = [
    (b"\x28\xb5\x2f\xfd", "zstd is not supported; unpack it, or pack it with xz or gzip"),
    (b"BZh", "bzip2 is not supported; unpack it, or pack it with xz or gzip"),
    (b"\x04\x22\x4d\x18", "lz4 is not supported; unpack it, or pack it with xz or gzip"),
    (b"PK\x03\x04", "a zip archive; unpack it and give the trace in it"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it and give the trace in it"),
    (b"\xff\xfe", "UTF-16 text; convert it to UTF-8"),
    (b"\xfe\xff", "UTF-16 text; convert it to UTF-8"),
    (b"\x7fELF", "a program"),
    (b"%PDF", "a PDF document"),
    (b"\x89PNG", "a picture"),
    (b"SQLite f", "an SQLite database; export the keys, one a line"),
    (b"PAR1", "a Parquet file; export the keys, one a line"),
];

/// Where a tar archive has its magic: after the name of its first file and what is known of it.
const TAR: usize = 257;
const TAR_MAGIC: [&[u8]; 2] = [b"ustar\0", b"ustar  \0"];

/// Why `head` cannot be the beginning of a trace.
pub(crate) fn foreign(head: &[u8]) -> Option<&'static str> {
    let tar = head.get(TAR..).is_some_and(|at| TAR_MAGIC.iter().any(|magic| at.starts_with(magic)));
    if tar {
        return Some("a tar archive; unpack it and give the trace in it");
    }
    FOREIGN.iter().find(|(magic, _)| head.starts_with(magic)).map(|(_, what)| *what)
}

/// Unpacks `input`; also gives its first bytes as they are.
pub(crate) fn unpack(
    mut input: impl Read + Send + 'static,
) -> io::Result<(Packing, Vec<u8>, Box<dyn BufRead + Send>)> {
    let mut head = Vec::with_capacity(MAGIC);
    input.by_ref().take(MAGIC as u64).read_to_end(&mut head)?;
    let whole = BufReader::with_capacity(BUFFER, Cursor::new(head.clone()).chain(input));
    let packing = Packing::of(&head);
    let plain: Box<dyn BufRead + Send> = match packing {
        Packing::Xz => {
            let stream = Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED)?;
            Box::new(BufReader::with_capacity(BUFFER, XzDecoder::new_stream(whole, stream)))
        }
        Packing::Gzip => Box::new(BufReader::with_capacity(BUFFER, Members::new(whole))),
        Packing::Plain => Box::new(whole),
    };
    Ok((packing, head, plain))
}

/// Whether unpacking has ended because it would take more memory than it may.
pub(crate) fn wants_memory(error: &io::Error) -> bool {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
    matches!(inner, Some(XzError::MemLimit))
}

/// What gzip has packed, one after the other, with zeros behind each: gzip itself ignores them, as media that hold whole
/// blocks have them.
struct Members<R>(Option<GzDecoder<R>>);

impl<R: BufRead> Members<R> {
    fn new(input: R) -> Self {
        Self(Some(GzDecoder::new(input)))
    }
}

impl<R: BufRead> Read for Members<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while let Some(member) = &mut self.0 {
            let read = member.read(out)?;
            if read > 0 || out.is_empty() {
                return Ok(read);
            }
            let more = skip_zeros(member.get_mut())?;
            self.0 = self.0.take().filter(|_| more).map(|member| GzDecoder::new(member.into_inner()));
        }
        Ok(0)
    }
}

/// Whether something follows.
fn skip_zeros(input: &mut impl BufRead) -> io::Result<bool> {
    loop {
        let rest = input.fill_buf()?;
        let (length, zeros) = (rest.len(), rest.iter().take_while(|byte| **byte == 0).count());
        input.consume(zeros);
        if zeros < length || length == 0 {
            return Ok(length > 0);
        }
    }
}
