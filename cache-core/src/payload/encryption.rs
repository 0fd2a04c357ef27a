//! Encrypting payloads, bound to the key and the header that they belong to.
//!
//! ```text
//! at   bytes
//! 0    4     id of the key, little-endian
//! 4    24    nonce
//! 28   16    tag
//! 44         the payload, encrypted
//! ```

use std::{fmt, sync::Arc};

use bytes::{BufMut, BytesMut};

use crate::{Error, RawKey, Result, Unreadable};

const NONCE: usize = 24;
const TAG: usize = 16;

/// The keys under which a level encrypts payloads: XChaCha20-Poly1305. Its nonces are long enough to be drawn at random
/// for ever, on any number of nodes.
///
/// Encrypted is the value. In the clear are, as they must be for a store that expires and compares entries: the cache's
/// name, the entry's key, its times, tags and validator, and about how long the value is. All of these but the flag that
/// [`expire`](crate::TracedCache::expire) sets are authenticated: a payload that was changed, or copied to another key,
/// is a miss. So is whatever is not encrypted at a level that encrypts. An older entry of the same key that somebody puts
/// back within its time is not told apart.
///
/// To rotate, give every node the new key as one that [`also_reads`](Self::also_reads), then let them all write with it,
/// and drop the old one once the longest ttl has passed.
///
/// Keys are wiped from memory when the last clone is dropped. `Debug` shows their ids only.
#[derive(Clone)]
pub struct Encryption {
    /// The first one writes.
    keys: Vec<Key>,
}

#[derive(Clone)]
struct Key {
    id: u32,
    /// Never moved, so that no copy of the key stays behind.
    cipher: Arc<cipher::Cipher>,
}

impl Encryption {
    /// Bytes by which an encrypted payload is longer.
    pub(crate) const OVERHEAD: usize = size_of::<u32>() + NONCE + TAG;

    /// Writes, and reads, with this key. `id` names it on the wire.
    #[cfg(feature = "encryption")]
    pub fn new(id: u32, key: &[u8; 32]) -> Self {
        Self { keys: Vec::from_iter(cipher::new(key).map(|cipher| Key { id, cipher })) }
    }

    /// Also reads what was written with this key.
    #[cfg(feature = "encryption")]
    #[must_use]
    pub fn also_reads(mut self, id: u32, key: &[u8; 32]) -> Self {
        self.keys.extend(cipher::new(key).map(|cipher| Key { id, cipher }));
        self
    }

    /// [`new`](Self::new) and [`also_reads`](Self::also_reads), the writing key first, for settings that are read. `None`:
    /// no key, or not compiled in.
    pub fn with_keys<'a>(keys: impl IntoIterator<Item = (u32, &'a [u8; 32])>) -> Option<Self> {
        let keys: Vec<_> =
            keys.into_iter().filter_map(|(id, key)| Some(Key { id, cipher: cipher::new(key)? })).collect();
        (!keys.is_empty()).then_some(Self { keys })
    }

    /// Ids of the keys, the writing one first.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.keys.iter().map(|key| key.id)
    }

    pub(crate) fn check(&self, field: &str) -> Result<()> {
        let ids: Vec<_> = self.ids().collect();
        match ids.iter().enumerate().find(|(at, id)| ids[..*at].contains(id)) {
            Some((_, id)) => {
                Err(Error::config(&format!("{field} key id"), id, "two keys have this id; give each its own"))
            }
            None => Ok(()),
        }
    }

    /// Appends the encrypted payload to the header in `out`, which begins at `from`. `false`: no randomness to be had.
    pub(crate) fn encrypt(&self, key: RawKey<'_>, out: &mut BytesMut, from: usize, payload: &[u8]) -> bool {
        let Some((by, nonce)) = self.keys.first().zip(cipher::nonce()) else { return false };
        let bound = bound(&out[from..], key);
        out.put_u32_le(by.id);
        out.put_slice(&nonce);
        let at = out.len();
        out.put_bytes(0, TAG);
        out.put_slice(payload);
        let (tag, body) = out[at..].split_at_mut(TAG);
        cipher::encrypt(&by.cipher, &nonce, &bound, body, tag)
    }

    /// The payload that was encrypted under `key` and this header.
    pub(crate) fn decrypt(
        &self,
        key: RawKey<'_>,
        header: &[u8],
        payload: &[u8],
    ) -> Result<Vec<u8>, Unreadable> {
        let (id, rest) = payload.split_first_chunk().ok_or(Unreadable::NotAuthentic)?;
        let (nonce, rest) = rest.split_first_chunk::<NONCE>().ok_or(Unreadable::NotAuthentic)?;
        let (tag, body) = rest.split_first_chunk::<TAG>().ok_or(Unreadable::NotAuthentic)?;
        let id = u32::from_le_bytes(*id);
        let by = self.keys.iter().find(|key| key.id == id).ok_or(Unreadable::NoKey)?;
        let mut body = body.to_vec();
        if cipher::decrypt(&by.cipher, nonce, &bound(header, key), &mut body, tag) {
            Ok(body)
        } else {
            Err(Unreadable::NotAuthentic)
        }
    }
}

/// What a payload is bound to: its header, which says where it ends, and its key.
fn bound(header: &[u8], key: RawKey<'_>) -> Vec<u8> {
    [header, key.namespace.as_bytes(), b":", key.id.as_bytes()].concat()
}

#[cfg(feature = "encryption")]
mod cipher {
    use chacha20poly1305::{
        KeyInit, XChaCha20Poly1305, XNonce,
        aead::{AeadInOut, Generate},
    };

    use super::{Arc, NONCE, TAG};

    /// Wiped when dropped.
    pub(super) type Cipher = XChaCha20Poly1305;

    pub(super) fn new(key: &[u8; 32]) -> Option<Arc<Cipher>> {
        Some(Arc::new(Cipher::new(key.into())))
    }

    pub(super) fn nonce() -> Option<[u8; NONCE]> {
        XNonce::try_generate().ok().map(Into::into)
    }

    pub(super) fn encrypt(
        cipher: &Cipher,
        nonce: &[u8; NONCE],
        bound: &[u8],
        body: &mut [u8],
        tag: &mut [u8],
    ) -> bool {
        match cipher.encrypt_inout_detached(nonce.into(), bound, body.into()) {
            Ok(made) => {
                tag.copy_from_slice(&made);
                true
            }
            // Too long for the cipher: 256 GiB.
            Err(_) => false,
        }
    }

    pub(super) fn decrypt(
        cipher: &Cipher,
        nonce: &[u8; NONCE],
        bound: &[u8],
        body: &mut [u8],
        tag: &[u8; TAG],
    ) -> bool {
        cipher.decrypt_inout_detached(nonce.into(), bound, body.into(), tag.into()).is_ok()
    }
}

/// Without the feature there is no key, and so no [`Encryption`].
#[cfg(not(feature = "encryption"))]
mod cipher {
    use super::{Arc, NONCE, TAG};

    #[derive(Clone)]
    pub(super) enum Cipher {}

    pub(super) fn new(_: &[u8; 32]) -> Option<Arc<Cipher>> {
        None
    }

    pub(super) fn nonce() -> Option<[u8; NONCE]> {
        None
    }

    pub(super) fn encrypt(cipher: &Cipher, _: &[u8; NONCE], _: &[u8], _: &mut [u8], _: &mut [u8]) -> bool {
        match *cipher {}
    }

    pub(super) fn decrypt(cipher: &Cipher, _: &[u8; NONCE], _: &[u8], _: &mut [u8], _: &[u8; TAG]) -> bool {
        match *cipher {}
    }
}

impl fmt::Debug for Encryption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Encryption").field("keys", &self.ids().collect::<Vec<_>>()).finish()
    }
}
