//! What a cache can hold, and how it becomes bytes where it has to.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::{Serialize, de::DeserializeOwned};

use crate::{BoxError, Codec, Error, Unreadable, codec};

/// What a cache can hold in memory: any type that threads may share. Its destructor may use the cache.
pub trait Value: Send + Sync + 'static {}
impl<T: Send + Sync + 'static> Value for T {}

/// What a cache can hold at any level: a [`Value`] that serde can write and read back.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be written to a remote level",
    note = "such a value is `Serialize + DeserializeOwned + Send + Sync + 'static`: derive serde's two traits for it",
    note = "a cache in memory alone holds any type: `TracedCache::in_memory`; a codec of your own writes any: `TracedCache::coded`"
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

/// A codec of the application's own, for values of one type: protobuf, or the very bytes that another program writes. See
/// [`TracedCache::coded`](crate::TracedCache::coded).
///
/// Levels compress and encrypt what it writes as that of any other; a change of its form wants another
/// [`schema`](crate::Builder::schema) id. It runs in the caller's task, once for each write and each read of a remote level.
/// What its errors say goes nowhere, as they may quote the value. A panic counts as one.
pub trait ValueCodec<T>: Send + Sync + 'static {
    /// Appends the value to `out`.
    ///
    /// # Errors
    /// The value is not stored at remote levels, as one that serde cannot write.
    fn encode(&self, value: &T, out: &mut Vec<u8>) -> Result<(), BoxError>;

    /// The value of all of these bytes. Whoever may write to the store has perhaps made them.
    ///
    /// # Errors
    /// They are none: a miss, counted as unreadable.
    fn decode(&self, bytes: &[u8]) -> Result<T, BoxError>;
}

/// How the values of a cache become bytes and back. Here and nowhere else is it known what serde makes of a type.
pub(crate) enum Coding<T> {
    /// They do not.
    None,
    Serde {
        encode: fn(Codec, &T, &mut Vec<u8>) -> Result<(), Error>,
        decode: fn(Codec, &[u8]) -> Option<T>,
        measure: fn(&T) -> Option<usize>,
        json: fn(&T) -> Option<String>,
    },
    Own(Box<dyn ValueCodec<T>>),
}

impl<T: SerdeValue> Coding<T> {
    pub(crate) fn serde() -> Self {
        Self::Serde {
            encode: Codec::encode,
            decode: Codec::decode,
            measure: codec::measure,
            json: |value| serde_json::to_string(value).ok(),
        }
    }
}

impl<T: Value> Coding<T> {
    /// The byte that names what a level is written in.
    pub(crate) fn id(&self, level: Codec) -> u8 {
        match self {
            Self::Own(_) => codec::OWN,
            Self::Serde { .. } | Self::None => level.id(),
        }
    }

    /// Appends the value to `out`, if it has a form.
    pub(crate) fn encode(&self, level: Codec, value: &T, out: &mut Vec<u8>) -> Option<()> {
        match self {
            Self::Serde { encode, .. } => encode(level, value, out).ok(),
            Self::Own(own) => guarded(|| own.encode(value, out).ok()),
            Self::None => None,
        }
    }

    /// The value of a payload that names its codec.
    pub(crate) fn decode(&self, id: u8, bytes: &[u8]) -> Result<T, Unreadable> {
        let value = match (self, Codec::from_id(id)) {
            (Self::Serde { decode, .. }, Some(codec)) => decode(codec, bytes),
            (Self::Own(own), None) if id == codec::OWN => guarded(|| own.decode(bytes).ok()),
            _ => return Err(Unreadable::Codec),
        };
        value.ok_or(Unreadable::Payload)
    }

    /// Bytes that a value takes, for weighing.
    pub(crate) fn measure(&self, value: &T) -> Option<usize> {
        match self {
            Self::Serde { measure, .. } => measure(value),
            Self::Own(own) => {
                let mut out = Vec::new();
                guarded(|| own.encode(value, &mut out).ok()).map(|()| out.len())
            }
            Self::None => None,
        }
    }

    /// For people.
    pub(crate) fn json(&self, value: &T) -> Option<String> {
        match self {
            Self::Serde { json, .. } => json(value),
            Self::Own(_) | Self::None => None,
        }
    }
}

/// A codec is anybody's code, and may panic.
fn guarded<R>(call: impl FnOnce() -> Option<R>) -> Option<R> {
    catch_unwind(AssertUnwindSafe(call)).ok().flatten()
}
