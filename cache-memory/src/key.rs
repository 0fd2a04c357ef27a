//! Keys of the engine: hashed once, by the caller, and looked up in borrowed form.

use std::hash::{BuildHasher, Hash, Hasher};

use cache_core::{CacheId, RawKey};
use equivalent::Equivalent;

/// Whose entry it is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    /// An object of one cache.
    Objects(CacheId),
    /// Bytes, by their joined text, whichever cache asks.
    Bytes,
}

/// An owned key: 32 bytes and the text.
pub(crate) struct Key {
    pub(crate) hash: u64,
    pub(crate) space: Space,
    pub(crate) text: Box<str>,
}

/// The same, borrowed: what a look-up needs. Nothing is allocated for it.
#[derive(Clone, Copy)]
pub(crate) struct Query<'a> {
    hash: u64,
    space: Space,
    text: &'a str,
}

impl<'a> Query<'a> {
    /// An object of the cache that asks.
    pub(crate) fn object(key: &RawKey<'a>) -> Self {
        Self { hash: key.hash, space: Space::Objects(key.cache), text: key.id }
    }

    /// Bytes under the joined text of a key.
    pub(crate) fn bytes(joined: &'a str) -> Self {
        // The framework's hash covers the id only.
        let hash = RawKey::new(CacheId(0), "", joined).hash;
        Self { hash, space: Space::Bytes, text: joined }
    }

    /// The hash that engines work with.
    pub(crate) fn mixed(&self) -> u64 {
        mixed(self.hash, self.space)
    }

    pub(crate) fn to_key(self) -> Key {
        Key { hash: self.hash, space: self.space, text: self.text.into() }
    }
}

impl Equivalent<Key> for Query<'_> {
    fn equivalent(&self, key: &Key) -> bool {
        self.hash == key.hash && self.space == key.space && *self.text == *key.text
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        self.hash == other.hash && self.space == other.space && self.text == other.text
    }
}

impl Eq for Key {}

/// One id in two caches must not land in one place, or caches of one shape would crowd each other.
fn mixed(hash: u64, space: Space) -> u64 {
    let space = match space {
        Space::Objects(CacheId(id)) => u64::from(id) + 1,
        Space::Bytes => 0,
    };
    // The golden ratio spreads small numbers over all bits.
    hash.wrapping_add(space.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(mixed(self.hash, self.space));
    }
}

impl Hash for Query<'_> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.mixed());
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
        assert!(!Query::bytes("42").equivalent(&a.to_key()));
        assert_eq!(size_of::<Key>(), 32);
    }
}
