//! Making payloads smaller. The envelope's flags say of each entry how it was done.

use bytes::Bytes;

use crate::{Error, Result, Unreadable};

/// Most bytes that a compressed payload may expand to. Larger values are stored as they are, and an entry that claims more
/// is a miss. Documented in docs/semantics.md.
pub(crate) const EXPANDED_MAX: usize = 64 << 20;

/// The raw length in front of a compressed block.
const LENGTH: usize = 4;

/// How a level makes payloads smaller, and from which size on. What does not get smaller is stored as it is, and each
/// entry says for itself how it was stored: a change of the setting leaves old entries readable.
///
/// A payload is compressed before it is encrypted, so lengths tell something of the contents: do not put a secret and
/// text of a stranger's choice into one value of an encrypted level that compresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compression {
    pub(crate) algorithm: Algorithm,
    pub(crate) above: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    #[cfg(feature = "lz4")]
    Lz4,
    #[cfg(feature = "zstd")]
    Zstd { level: i32 },
}

/// How a payload was compressed, as the envelope says it. The algorithm need not be compiled in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Squeezed {
    Lz4,
    Zstd,
}

#[cfg(any(feature = "lz4", feature = "zstd"))]
impl Compression {
    /// Payloads of up to this size are left alone unless [`above`](Self::above) says otherwise.
    pub const ABOVE: usize = 1024;

    const fn new(algorithm: Algorithm) -> Self {
        Self { algorithm, above: Self::ABOVE }
    }

    /// LZ4: well under a microsecond for a kilobyte of JSON, which it about halves.
    #[cfg(feature = "lz4")]
    pub const fn lz4() -> Self {
        Self::new(Algorithm::Lz4)
    }

    /// Zstandard at this level, 1 (fastest) to 22: a quarter smaller than LZ4 on a kilobyte of JSON, and about eight
    /// times slower. Keeps a context of about a megabyte for each thread that uses it.
    #[cfg(feature = "zstd")]
    pub const fn zstd(level: i32) -> Self {
        Self::new(Algorithm::Zstd { level })
    }

    /// Compresses only payloads of more than this many bytes.
    #[must_use]
    pub const fn above(mut self, bytes: usize) -> Self {
        self.above = bytes;
        self
    }
}

impl Compression {
    /// `lz4` or `zstd`, for settings that are read: from 1 KiB on, Zstandard at level 1. `None`: not known, or not compiled
    /// in.
    pub fn named(name: &str) -> Option<Self> {
        match name {
            #[cfg(feature = "lz4")]
            "lz4" => Some(Self::lz4()),
            #[cfg(feature = "zstd")]
            "zstd" => Some(Self::zstd(1)),
            _ => None,
        }
    }

    /// The same with another threshold, and, where there are any, at another level.
    #[must_use]
    pub fn tuned(self, above: Option<usize>, level: Option<i32>) -> Self {
        let algorithm = match (self.algorithm, level) {
            #[cfg(feature = "zstd")]
            (Algorithm::Zstd { .. }, Some(level)) => Algorithm::Zstd { level },
            (algorithm, _) => algorithm,
        };
        Self { algorithm, above: above.unwrap_or(self.above) }
    }

    /// `lz4, above 1024 bytes`.
    pub(crate) fn described(self) -> String {
        let Self { algorithm, above } = self;
        match algorithm {
            #[cfg(feature = "lz4")]
            Algorithm::Lz4 => format!("lz4, above {above} bytes"),
            #[cfg(feature = "zstd")]
            Algorithm::Zstd { level } => format!("zstd at level {level}, above {above} bytes"),
        }
    }

    pub(crate) fn check(&self, field: &str) -> Result<()> {
        match self.algorithm {
            #[cfg(feature = "lz4")]
            Algorithm::Lz4 => Ok(()),
            #[cfg(feature = "zstd")]
            Algorithm::Zstd { level: 1..=22 } => Ok(()),
            #[cfg(feature = "zstd")]
            Algorithm::Zstd { level } => Err(Error::config(
                &format!("{field}.level"),
                level,
                "zstd knows levels 1 to 22; 1 to 3 are usual",
            )),
        }
    }

    /// The block with its raw length in front, if that is smaller than what it was made of.
    pub(crate) fn squeeze(&self, raw: &[u8]) -> Option<(Squeezed, Bytes)> {
        if raw.len() <= self.above || raw.len() > EXPANDED_MAX {
            return None;
        }
        let mut out = Vec::new();
        out.extend_from_slice(&u32::try_from(raw.len()).ok()?.to_le_bytes());
        let squeezed = match self.algorithm {
            #[cfg(feature = "lz4")]
            Algorithm::Lz4 => lz4::squeeze(raw, &mut out)?,
            #[cfg(feature = "zstd")]
            Algorithm::Zstd { level } => zstd::squeeze(raw, level, &mut out)?,
        };
        (out.len() < raw.len()).then(|| (squeezed, out.into()))
    }
}

/// Undoes [`Compression::squeeze`]. Nothing is allocated before the length that a payload claims has been found possible.
pub(crate) fn expand(squeezed: Squeezed, payload: &[u8], limit: usize) -> Result<Vec<u8>, Unreadable> {
    let (length, block) = payload.split_first_chunk::<LENGTH>().ok_or(Unreadable::Payload)?;
    let length = usize::try_from(u32::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > limit {
        return Err(Unreadable::TooLarge);
    }
    match squeezed {
        #[cfg(feature = "lz4")]
        Squeezed::Lz4 => lz4::expand(block, length),
        #[cfg(feature = "zstd")]
        Squeezed::Zstd => zstd::expand(block, length),
        #[cfg(not(all(feature = "lz4", feature = "zstd")))]
        _ => {
            let _ = block;
            Err(Unreadable::Codec)
        }
    }
}

#[cfg(feature = "lz4")]
mod lz4 {
    use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};

    use super::*;

    pub(super) fn squeeze(raw: &[u8], out: &mut Vec<u8>) -> Option<Squeezed> {
        out.resize(LENGTH + get_maximum_output_size(raw.len()), 0);
        let len = compress_into(raw, &mut out[LENGTH..]).ok()?;
        out.truncate(LENGTH + len);
        Some(Squeezed::Lz4)
    }

    pub(super) fn expand(block: &[u8], length: usize) -> Result<Vec<u8>, Unreadable> {
        // A byte of a block stands for 255 of the text at most.
        if length / 255 > block.len() {
            return Err(Unreadable::TooLarge);
        }
        let mut raw = vec![0; length];
        match decompress_into(block, &mut raw) {
            Ok(written) if written == length => Ok(raw),
            _ => Err(Unreadable::Payload),
        }
    }
}

#[cfg(feature = "zstd")]
mod zstd {
    use std::cell::RefCell;

    use ::zstd::bulk::{Compressor, Decompressor};

    use super::*;

    thread_local! {
        // A context costs several times what a kilobyte of text does.
        static COMPRESSOR: RefCell<Option<(i32, Compressor<'static>)>> = const { RefCell::new(None) };
        static DECOMPRESSOR: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    }

    pub(super) fn squeeze(raw: &[u8], level: i32, out: &mut Vec<u8>) -> Option<Squeezed> {
        // What does not fit is no smaller than the text.
        let mut block = Vec::with_capacity(raw.len().saturating_sub(LENGTH));
        COMPRESSOR.with_borrow_mut(|kept| {
            let (_, compressor) = match kept.take() {
                Some((of, compressor)) if of == level => kept.insert((of, compressor)),
                _ => kept.insert((level, Compressor::new(level).ok()?)),
            };
            compressor.compress_to_buffer(raw, &mut block).ok()
        })?;
        out.extend_from_slice(&block);
        Some(Squeezed::Zstd)
    }

    pub(super) fn expand(block: &[u8], length: usize) -> Result<Vec<u8>, Unreadable> {
        let raw = DECOMPRESSOR.with_borrow_mut(|kept| {
            let decompressor = match kept {
                Some(decompressor) => decompressor,
                None => kept.insert(Decompressor::new().ok()?),
            };
            decompressor.decompress(block, length).ok()
        });
        raw.filter(|raw| raw.len() == length).ok_or(Unreadable::Payload)
    }
}
