//! Codecs: values to bytes and back. One byte in the envelope names the codec of an entry.

mod faithful;

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde::{Serialize, de::DeserializeOwned};

use crate::{Error, ErrorKind};

/// How a level writes values. Reading goes by the byte in the envelope, so a change of codec under live data is a
/// correct read where the old codec is compiled in, and a clean miss where it is not. JSON and MessagePack read values up
/// to 128 levels deep; deeper ones are misses. Neither has a form for `Some` itself: a value that holds a `Some(None)`, or a
/// `Some(())`, is not written to the level by them, rather than come back with `None` in its place; nor is one whose own
/// `deserialize_with` would know better. [`Codec::Postcard`] tells them apart.
#[non_exhaustive]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Codec {
    /// `serde_json`: readable, safest under schema evolution. JSON has no NaN and no infinity: a value that holds one is
    /// not written either. The other codecs keep every float bit for bit.
    #[default]
    Json,
    /// MessagePack with field names: compact and tolerant of added fields.
    #[cfg(feature = "msgpack")]
    MsgPack,
    /// postcard: smallest and fastest; any change of the type must change its schema id. It writes no names: a value that
    /// leaves a field out (`skip_serializing_if`) is not written, and a type that has to see what is there (`untagged`, `tag`,
    /// `serde_json::Value`) is not read back. Nothing bounds how deep it reads a type that contains itself: keep such types
    /// to the other codecs where others may write to the store.
    #[cfg(feature = "postcard")]
    Postcard,
}

/// The byte that names a codec of the application's own, of which there is one for a cache.
pub(crate) const OWN: u8 = u8::MAX;

/// The name of a codec by its byte, compiled in or not.
pub(crate) fn name_of(id: u8) -> Option<&'static str> {
    NAMES.iter().find(|(known, _)| *known == id).map(|(_, name)| *name)
}

const NAMES: [(u8, &str); 4] = [(1, "json"), (2, "msgpack"), (3, "postcard"), (OWN, "own")];

/// What `serde_json` allows. MessagePack's own default, 1024, is more than a task's stack bears: bytes of a store could
/// end the process.
#[cfg(feature = "msgpack")]
const MAX_DEPTH: usize = 128;

impl Codec {
    /// The byte that names this codec on the wire. Never reused.
    pub const fn id(self) -> u8 {
        match self {
            Self::Json => 1,
            #[cfg(feature = "msgpack")]
            Self::MsgPack => 2,
            #[cfg(feature = "postcard")]
            Self::Postcard => 3,
        }
    }

    /// The codec with that byte, if it is compiled in.
    pub const fn from_id(id: u8) -> Option<Self> {
        match id {
            1 => Some(Self::Json),
            #[cfg(feature = "msgpack")]
            2 => Some(Self::MsgPack),
            #[cfg(feature = "postcard")]
            3 => Some(Self::Postcard),
            _ => None,
        }
    }

    /// Its name in settings.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Json => "json",
            #[cfg(feature = "msgpack")]
            Self::MsgPack => "msgpack",
            #[cfg(feature = "postcard")]
            Self::Postcard => "postcard",
        }
    }

    /// `json`, `msgpack` or `postcard`, for settings that are read. `None`: not known, or not compiled in.
    pub fn named(name: &str) -> Option<Self> {
        NAMES.iter().find(|(_, known)| *known == name).and_then(|(id, _)| Self::from_id(*id))
    }

    /// Appends the encoded value to `out`.
    pub(crate) fn encode<T: Serialize>(self, value: &T, out: &mut Vec<u8>) -> Result<(), Error> {
        // The value's own code may panic.
        let done = catch_unwind(AssertUnwindSafe(|| match self {
            Self::Json => faithful::to_json(value, out).is_ok(),
            #[cfg(feature = "msgpack")]
            Self::MsgPack => faithful::to_msgpack(value, out).is_ok(),
            #[cfg(feature = "postcard")]
            Self::Postcard => faithful::to_postcard(value, out).is_ok(),
        }));
        // serde's messages may quote the value, so the cause is named but not carried.
        match done {
            Ok(true) => Ok(()),
            _ => Err(Error::new(ErrorKind::Encode, format!("the value could not be encoded as {self:?}"))),
        }
    }

    /// Decodes a whole payload. Trailing bytes are an error, as is anything else; the cause may quote the value and is
    /// therefore dropped.
    pub(crate) fn decode<T: DeserializeOwned>(self, bytes: &[u8]) -> Option<T> {
        // What was never one of its values may meet the type's own code, which may panic.
        catch_unwind(|| self.decode_at_its_risk(bytes)).ok().flatten()
    }

    fn decode_at_its_risk<T: DeserializeOwned>(self, bytes: &[u8]) -> Option<T> {
        match self {
            Self::Json => match std::str::from_utf8(bytes) {
                // Checked once, not string by string.
                Ok(text) => serde_json::from_str(text).ok(),
                // A type may take bytes that are no text.
                Err(_) => serde_json::from_slice(bytes).ok(),
            },
            #[cfg(feature = "msgpack")]
            Self::MsgPack => {
                let mut rest = bytes;
                let mut reader = rmp_serde::Deserializer::new(&mut rest);
                reader.set_max_depth(MAX_DEPTH);
                let value = T::deserialize(&mut reader).ok()?;
                rest.is_empty().then_some(value)
            }
            #[cfg(feature = "postcard")]
            Self::Postcard => match postcard::take_from_bytes(bytes).ok()? {
                (value, []) => Some(value),
                _ => None,
            },
        }
    }
}

/// Bytes of the value as JSON, for weighing. Allocates nothing. Counts what [`Codec::Json`] would refuse to write, too: a
/// long vector is no lighter for one NaN in it.
pub(crate) fn measure<T: Serialize>(value: &T) -> Option<usize> {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    serde_json::to_writer(&mut count, value).ok().map(|()| count.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Codec> {
        (0..=255).filter_map(Codec::from_id).collect()
    }

    #[test]
    fn b7_edge_values_survive_every_codec() {
        for codec in all() {
            let value = (false, 0i64, String::new(), Vec::<u8>::new(), i64::MIN, Some("*".to_owned()));
            let mut out = Vec::new();
            codec.encode(&value, &mut out).unwrap();
            let back: (bool, i64, String, Vec<u8>, i64, Option<String>) = codec.decode(&out).unwrap();
            assert_eq!(value, back, "{codec:?}");
            out.push(0);
            assert!(codec.decode::<(bool, i64, String, Vec<u8>, i64, Option<String>)>(&out).is_none());
        }
    }

    #[test]
    fn b7_a_field_that_is_left_out_is_refused_where_fields_have_no_names() {
        #[derive(Debug, PartialEq, serde::Serialize, serde::Deserialize)]
        struct Few {
            #[serde(default, skip_serializing_if = "Option::is_none")]
            x: Option<u8>,
            y: u8,
            z: Vec<u8>,
        }
        for codec in all() {
            let (value, mut out) = (Few { x: None, y: 1, z: vec![0, 0] }, Vec::new());
            let done = codec.encode(&value, &mut out);
            if Codec::named("postcard") == Some(codec) {
                assert_eq!(done.unwrap_err().kind(), ErrorKind::Encode);
                continue;
            }
            done.unwrap();
            assert_eq!(codec.decode::<Few>(&out), Some(value), "{codec:?}");
        }
    }

    #[test]
    fn b7_what_json_cannot_say_is_refused_and_binary_codecs_keep_it() {
        for bits in
            [f64::NAN.to_bits(), 0xfff8_0000_dead_beef, 0x7ff0_0000_0000_0001, f64::INFINITY.to_bits()]
        {
            let value = (1, Some(f64::from_bits(bits)), vec![f64::from_bits(bits)]);
            for codec in all() {
                let mut out = Vec::new();
                let done = codec.encode(&value, &mut out);
                if codec == Codec::Json {
                    assert_eq!(done.unwrap_err().kind(), ErrorKind::Encode);
                    continue;
                }
                done.unwrap();
                let back: (i32, Option<f64>, Vec<f64>) = codec.decode(&out).unwrap();
                assert_eq!(back.1.unwrap().to_bits(), bits, "{codec:?}");
                assert_eq!(back.2[0].to_bits(), bits, "{codec:?}");
            }
        }
    }

    #[test]
    fn what_is_nested_too_deep_is_a_miss() {
        #[derive(serde::Deserialize)]
        #[serde(untagged)]
        #[allow(dead_code, reason = "it is only read")]
        enum Deep {
            One(u8),
            More(Vec<Self>),
        }
        for codec in all().into_iter().filter(|codec| matches!(codec.id(), 1 | 2)) {
            for (depth, read) in [(20, true), (2_000, false)] {
                let bytes = match codec {
                    Codec::Json => {
                        ["[".repeat(depth), "1".to_owned(), "]".repeat(depth)].concat().into_bytes()
                    }
                    // Arrays of one item, which is `1`.
                    _ => [vec![0x91; depth], vec![1]].concat(),
                };
                assert_eq!(codec.decode::<Deep>(&bytes).is_some(), read, "{codec:?} {depth}");
            }
        }
    }

    #[test]
    fn measures_what_json_takes() {
        let value = ("a\"b", vec![1.5, -3.0], None::<u8>);
        assert_eq!(measure(&value), Some(serde_json::to_vec(&value).unwrap().len()));
        assert_eq!(measure(&vec![f64::NAN; 1000]), Some(5001));
        assert_eq!(measure(&std::collections::BTreeMap::from([((1, 2), 3)])), None, "not a key in JSON");
    }

    #[test]
    fn ids_are_stable() {
        assert_eq!(Codec::Json.id(), 1);
        assert_eq!(all().len(), 3);
    }
}
