//! Keys of the engine: hashed once, by the caller, and looked up in borrowed form.

use std::hash::{BuildHasher, Hash, Hasher};

use cache_core::{CacheId, RawKey};
use equivalent::Equivalent;

/// Whose entry it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Space {
    /// An object of one cache.
    Objects(CacheId),
    /// Bytes, by their joined text, whichever cache asks.
    Bytes,
}

/// An owned key: 40 bytes, and the text where that is long.
pub(crate) struct Key {
    mixed: u64,
    space: Space,
    text: Text,
}

impl Key {
    pub(crate) fn text_len(&self) -> usize {
        self.text.bytes().len()
    }

    /// Whose object it is, and the framework's hash of its id.
    pub(crate) fn owner(&self) -> Option<(CacheId, u64)> {
        match self.space {
            Space::Objects(cache) => Some((cache, self.mixed.wrapping_sub(self.space.share()))),
            Space::Bytes => None,
        }
    }
}

/// A look-up compares texts: one that lies elsewhere is memory to wait for.
enum Text {
    Short { len: u8, bytes: [u8; Self::SHORT] },
    Long(Box<str>),
}

impl Text {
    /// What fits beside the length, at no cost: a long one takes as much.
    const SHORT: usize = 22;

    fn new(text: &str) -> Self {
        let mut bytes = [0; Self::SHORT];
        match (u8::try_from(text.len()), bytes.get_mut(..text.len())) {
            (Ok(len), Some(short)) => {
                short.copy_from_slice(text.as_bytes());
                Self::Short { len, bytes }
            }
            _ => Self::Long(text.into()),
        }
    }

    #[inline]
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Short { len, bytes } => bytes.get(..usize::from(*len)).unwrap_or_default(),
            Self::Long(text) => text.as_bytes(),
        }
    }
}

/// The same, borrowed: what a look-up needs. Nothing is allocated for it.
#[derive(Clone, Copy)]
pub(crate) struct Query<'a> {
    /// The hash that engines work with.
    pub(crate) mixed: u64,
    space: Space,
    text: &'a str,
}

impl<'a> Query<'a> {
    /// An object of the cache that asks.
    pub(crate) fn object(key: &RawKey<'a>) -> Self {
        Self::new(key.hash, Space::Objects(key.cache), key.id)
    }

    /// Bytes under the joined text of a key.
    pub(crate) fn bytes(joined: &'a str) -> Self {
        // The framework's hash covers the id only.
        let hash = RawKey::new(CacheId(0), "", joined).hash;
        Self::new(hash, Space::Bytes, joined)
    }

    fn new(hash: u64, space: Space, text: &'a str) -> Self {
        Self { mixed: hash.wrapping_add(space.share()), space, text }
    }

    pub(crate) fn to_key(self) -> Key {
        Key { mixed: self.mixed, space: self.space, text: Text::new(self.text) }
    }
}

impl Space {
    /// What it adds to a hash: one id in two caches must not land in one place, or caches of one shape would crowd each
    /// other. No two spaces add the same.
    fn share(self) -> u64 {
        let space = match self {
            Self::Objects(CacheId(id)) => u64::from(id) + 1,
            Self::Bytes => 0,
        };
        // The golden ratio, which is odd, spreads small numbers over all bits.
        space.wrapping_mul(0x9E37_79B9_7F4A_7C15)
    }
}

/// One text has one hash: where both agree, the spaces do.
impl Equivalent<Key> for Query<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.mixed == key.mixed && self.text.as_bytes() == key.text.bytes()
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.mixed == other.mixed && self.text.bytes() == other.text.bytes()
    }
}

impl Eq for Key {}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.mixed);
    }
}

impl Hash for Query<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.mixed);
    }
}

/// Hands a hash through that was made before.
#[derive(Clone, Copy, Default)]
pub(crate) struct PassThrough(u64);

impl BuildHasher for PassThrough {
    type Hasher = Self;
    fn build_hasher(&self) -> Self {
        Self(0)
    }
}

impl Hasher for PassThrough {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    fn write(&mut self, bytes: &[u8]) {
        // Not reached by the keys above; kept correct for any other.
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01B3);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn borrowed_and_owned_agree_and_caches_are_apart() {
        let pass = PassThrough::default();
        let one = RawKey::new(CacheId(1), "users", "42");
        let two = RawKey::new(CacheId(2), "users", "42");
        let (a, b) = (Query::object(&one), Query::object(&two));
        assert_eq!(pass.hash_one(a), pass.hash_one(a.to_key()));
        assert!(a.equivalent(&a.to_key()) && !a.equivalent(&b.to_key()));
        assert_ne!(pass.hash_one(a), pass.hash_one(b));
        assert!(!Query::bytes("42").equivalent(&a.to_key()) && b.to_key() != a.to_key());
        assert_eq!(a.to_key().owner(), Some((CacheId(1), one.hash)));
        assert_eq!(Query::bytes("42").to_key().owner(), None);
        assert_eq!(size_of::<Key>(), 40);
    }

    #[test]
    fn texts_of_any_length_stay_whole() {
        for len in [0, 1, 22, 23, 255, 256, 1000] {
            let text = "é".repeat(len)[..len / 2 * 2].to_owned();
            let key = Query::bytes(&text).to_key();
            assert_eq!(key.text_len(), text.len());
            assert!(Query::bytes(&text).equivalent(&key));
            assert!(!Query::bytes(&(text + "x")).equivalent(&key));
        }
    }
}
