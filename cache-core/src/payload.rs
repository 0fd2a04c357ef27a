//! What a level makes of values on their way to bytes: codec, compression, encryption.

#[cfg_attr(
    not(all(feature = "lz4", feature = "zstd")),
    allow(unused, unreachable_code, reason = "for algorithms that are not compiled in")
)]
mod compression;
mod encryption;

use std::borrow::Cow;

use bytes::Bytes;

pub(crate) use self::compression::{EXPANDED_MAX, Squeezed, expand};
pub use self::{compression::Compression, encryption::Encryption};
use crate::{Codec, RawKey, Unreadable};

/// How a level writes payloads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Packing {
    pub(crate) codec: Codec,
    pub(crate) compression: Option<Compression>,
    pub(crate) encryption: Option<Encryption>,
    /// Values are stored bare, without an envelope.
    pub(crate) plain: bool,
}

/// What has been done to a codec's bytes, as the envelope says it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Form {
    pub(crate) squeezed: Option<Squeezed>,
    pub(crate) encrypted: bool,
}

impl Packing {
    /// The form of what is written, and its bytes before they are encrypted.
    pub(crate) fn pack(&self, raw: &Bytes) -> (Form, Bytes) {
        let encrypted = self.encryption.is_some();
        match self.compression.and_then(|compression| compression.squeeze(raw)) {
            Some((squeezed, bytes)) => (Form { squeezed: Some(squeezed), encrypted }, bytes),
            None => (Form { squeezed: None, encrypted }, raw.clone()),
        }
    }

    /// The codec's bytes of a payload that came under `key` with this header.
    pub(crate) fn unpack<'a>(
        &self,
        key: RawKey<'_>,
        header: &[u8],
        form: Form,
        payload: &'a [u8],
    ) -> Result<Cow<'a, [u8]>, Unreadable> {
        self.unpack_within(EXPANDED_MAX, key, header, form, payload)
    }

    /// The same, expanding to `limit` bytes at most.
    pub(crate) fn unpack_within<'a>(
        &self,
        limit: usize,
        key: RawKey<'_>,
        header: &[u8],
        form: Form,
        payload: &'a [u8],
    ) -> Result<Cow<'a, [u8]>, Unreadable> {
        let payload = match (&self.encryption, form.encrypted) {
            (None, false) => Cow::Borrowed(payload),
            (Some(encryption), true) => encryption.decrypt(key, header, payload)?.into(),
            (None, true) => return Err(Unreadable::NoKey),
            // Whoever may write to the store could have put it there.
            (Some(_), false) => return Err(Unreadable::NotAuthentic),
        };
        match form.squeezed {
            Some(squeezed) => expand(squeezed, &payload, limit).map(Cow::Owned),
            None => Ok(payload),
        }
    }
}
