//! What a cache can hold, and how it becomes bytes where it has to.

use serde::{Serialize, de::DeserializeOwned};

use crate::{Codec, Error, ErrorKind, Result, codec};

/// What a cache can hold in memory: any type that threads may share. Its destructor may use the cache.
pub trait Value: Send + Sync + 'static {}
impl<T: Send + Sync + 'static> Value for T {}

/// What a cache can hold at any level: a [`Value`] that serde can write and read back.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be written to a remote level",
    note = "such a value is `Serialize + DeserializeOwned + Send + Sync + 'static`: derive serde's two traits for it",
    note = "a cache in memory alone holds any type: build it with `TracedCache::in_memory`"
)]
pub trait SerdeValue: Value + Serialize + DeserializeOwned {}
impl<T: Value + Serialize + DeserializeOwned> SerdeValue for T {}

/// The id of a type's shape on the wire, beside the type: whoever changes the one sees the other.
///
/// Entries with another id are a clean miss. Raise it when the type changes in a way that its codec would misread: with
/// postcard any change, with JSON and MessagePack a field that is renamed, or means something else. Put to use by
/// [`Builder::versioned`](crate::Builder::versioned).
///
/// ```
/// # use cache_core::Schema;
/// #[derive(serde::Serialize, serde::Deserialize)]
/// struct User {
///     name: String,
/// }
///
/// impl Schema for User {
///     const ID: u32 = 3;
/// }
/// ```
pub trait Schema {
    /// The id. 0 is that of caches which were given none.
    const ID: u32;
}

/// How the values of a cache become bytes and back. Here and nowhere else is it known what serde makes of a type.
pub(crate) struct Coding<T> {
    pub(crate) encode: fn(Codec, &T, &mut Vec<u8>) -> Result<()>,
    pub(crate) decode: fn(Codec, &[u8]) -> Option<T>,
    /// Bytes as JSON, for weighing.
    pub(crate) measure: fn(&T) -> Option<usize>,
    /// For people.
    pub(crate) json: fn(&T) -> Option<String>,
}

impl<T: SerdeValue> Coding<T> {
    pub(crate) fn serde() -> Self {
        Self {
            encode: |codec, value, out| codec.encode(value, out),
            decode: |codec, bytes| codec.decode(bytes),
            measure: codec::measure,
            json: |value| serde_json::to_string(value).ok(),
        }
    }
}

impl<T> Coding<T> {
    /// That of values which have no form but their own.
    pub(crate) fn none() -> Self {
        Self {
            encode: |_, _, _| Err(Error::new(ErrorKind::Encode, "the values of this cache stay in memory")),
            decode: |_, _| None,
            measure: |_| None,
            json: |_| None,
        }
    }
}
