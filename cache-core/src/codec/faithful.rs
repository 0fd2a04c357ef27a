//! JSON, MessagePack and postcard that refuse what they cannot say.
//!
//! JSON has no NaN and no infinity; `serde_json` writes `null` for them, which an `Option<f64>` reads back as `None`. Its
//! `Formatter` is told no more than "null", so the refusal has to sit in front of its serializer: this one hands
//! everything on and looks at floats, and at what is in a `Some`.
//!
//! In JSON and MessagePack `Some` has no form of its own: `Some(None)` and `Some(())` are written as `None` is, and come back as
//! it.
//!
//! postcard writes no names: of a struct that leaves a field out (`skip_serializing_if`) the next one is read in its place, and
//! may well be taken for it.

use std::fmt;

use serde::{
    Serialize, Serializer,
    ser::{
        SerializeMap, SerializeSeq, SerializeStruct, SerializeStructVariant, SerializeTuple,
        SerializeTupleStruct, SerializeTupleVariant,
    },
};

/// Appends the value as JSON. A float that is not finite, or a `Some` that would be taken for `None`, however deep, is an
/// error.
pub(super) fn to_json<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> serde_json::Result<()> {
    value.serialize(Faithful::<_, JSON, false>(&mut serde_json::Serializer::new(out)))
}

/// Appends the value as MessagePack with field names. A `Some` that would be taken for `None`, however deep, is an error.
#[cfg(feature = "msgpack")]
pub(super) fn to_msgpack<T: Serialize + ?Sized>(
    value: &T,
    out: &mut Vec<u8>,
) -> Result<(), rmp_serde::encode::Error> {
    let mut serializer = rmp_serde::Serializer::new(out).with_struct_map();
    value.serialize(Faithful::<_, MSGPACK, false>(&mut serializer))
}

/// Appends the value as postcard. A field that is left out, however deep, is an error.
#[cfg(feature = "postcard")]
pub(super) fn to_postcard<T: Serialize + ?Sized>(value: &T, out: &mut Vec<u8>) -> postcard::Result<()> {
    *out = postcard::to_extend(&Part::<_, POSTCARD, false>(value), std::mem::take(out))?;
    Ok(())
}

const JSON: u8 = 1;
#[cfg(feature = "msgpack")]
const MSGPACK: u8 = 2;
const POSTCARD: u8 = 3;

/// A serializer of this format, or one of its compounds, that refuses what would come back as something else. `SOME`: what is
/// written now is all that a `Some` holds.
struct Faithful<S, const FORMAT: u8, const SOME: bool>(S);

/// A value that is serialized through [`Faithful`].
struct Part<'a, T: ?Sized, const FORMAT: u8, const SOME: bool>(&'a T);

impl<T: Serialize + ?Sized, const FORMAT: u8, const SOME: bool> Serialize for Part<'_, T, FORMAT, SOME> {
    #[inline]
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(Faithful::<S, FORMAT, SOME>(serializer))
    }
}

fn not_finite<E: serde::ser::Error>() -> E {
    E::custom("a float that is not finite")
}

fn taken_for_none<E: serde::ser::Error>() -> E {
    E::custom("a `Some` that would be read as `None`")
}

fn left_out<E: serde::ser::Error>() -> E {
    E::custom("a field that is left out, where fields have no names")
}

macro_rules! pass_on {
    ($($method:ident($of:ty),)+) => {
        $(#[inline]
        fn $method(self, v: $of) -> Result<S::Ok, S::Error> {
            self.0.$method(v)
        })+
    };
}

impl<S: Serializer, const FORMAT: u8, const SOME: bool> Serializer for Faithful<S, FORMAT, SOME> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Faithful<S::SerializeSeq, FORMAT, false>;
    type SerializeTuple = Faithful<S::SerializeTuple, FORMAT, false>;
    type SerializeTupleStruct = Faithful<S::SerializeTupleStruct, FORMAT, false>;
    type SerializeTupleVariant = Faithful<S::SerializeTupleVariant, FORMAT, false>;
    type SerializeMap = Faithful<S::SerializeMap, FORMAT, false>;
    type SerializeStruct = Faithful<S::SerializeStruct, FORMAT, false>;
    type SerializeStructVariant = Faithful<S::SerializeStructVariant, FORMAT, false>;

    #[inline]
    fn serialize_f32(self, v: f32) -> Result<S::Ok, S::Error> {
        if FORMAT != JSON || v.is_finite() { self.0.serialize_f32(v) } else { Err(not_finite()) }
    }

    #[inline]
    fn serialize_f64(self, v: f64) -> Result<S::Ok, S::Error> {
        if FORMAT != JSON || v.is_finite() { self.0.serialize_f64(v) } else { Err(not_finite()) }
    }

    pass_on! {
        serialize_bool(bool),
        serialize_i8(i8),
        serialize_i16(i16),
        serialize_i32(i32),
        serialize_i64(i64),
        serialize_i128(i128),
        serialize_u8(u8),
        serialize_u16(u16),
        serialize_u32(u32),
        serialize_u64(u64),
        serialize_u128(u128),
        serialize_char(char),
        serialize_str(&str),
        serialize_bytes(&[u8]),
    }

    #[inline]
    fn serialize_none(self) -> Result<S::Ok, S::Error> {
        if SOME && FORMAT != POSTCARD { Err(taken_for_none()) } else { self.0.serialize_none() }
    }

    #[inline]
    fn serialize_unit(self) -> Result<S::Ok, S::Error> {
        if SOME && FORMAT != POSTCARD { Err(taken_for_none()) } else { self.0.serialize_unit() }
    }

    #[inline]
    fn serialize_unit_struct(self, name: &'static str) -> Result<S::Ok, S::Error> {
        // MessagePack has an empty array for it.
        if SOME && FORMAT == JSON { Err(taken_for_none()) } else { self.0.serialize_unit_struct(name) }
    }

    #[inline]
    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.0.serialize_some(&Part::<_, FORMAT, true>(value))
    }

    #[inline]
    fn serialize_unit_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
    ) -> Result<S::Ok, S::Error> {
        self.0.serialize_unit_variant(name, index, variant)
    }

    #[inline]
    fn serialize_newtype_struct<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        // It has no form of its own either.
        self.0.serialize_newtype_struct(name, &Part::<_, FORMAT, SOME>(value))
    }

    #[inline]
    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.0.serialize_newtype_variant(name, index, variant, &Part::<_, FORMAT, false>(value))
    }

    #[inline]
    fn serialize_seq(self, len: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        self.0.serialize_seq(len).map(Faithful)
    }

    #[inline]
    fn serialize_tuple(self, len: usize) -> Result<Self::SerializeTuple, S::Error> {
        self.0.serialize_tuple(len).map(Faithful)
    }

    #[inline]
    fn serialize_tuple_struct(
        self,
        name: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleStruct, S::Error> {
        self.0.serialize_tuple_struct(name, len).map(Faithful)
    }

    #[inline]
    fn serialize_tuple_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleVariant, S::Error> {
        self.0.serialize_tuple_variant(name, index, variant, len).map(Faithful)
    }

    #[inline]
    fn serialize_map(self, len: Option<usize>) -> Result<Self::SerializeMap, S::Error> {
        self.0.serialize_map(len).map(Faithful)
    }

    #[inline]
    fn serialize_struct(self, name: &'static str, len: usize) -> Result<Self::SerializeStruct, S::Error> {
        self.0.serialize_struct(name, len).map(Faithful)
    }

    #[inline]
    fn serialize_struct_variant(
        self,
        name: &'static str,
        index: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        self.0.serialize_struct_variant(name, index, variant, len).map(Faithful)
    }

    #[inline]
    fn collect_str<T: fmt::Display + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.0.collect_str(value)
    }

    #[inline]
    fn is_human_readable(&self) -> bool {
        self.0.is_human_readable()
    }
}

macro_rules! compounds {
    ($($compound:ident { $method:ident($($name:ident)?) $($skip:ident)? })+) => {
        $(impl<S: $compound, const FORMAT: u8> $compound for Faithful<S, FORMAT, false> {
            type Ok = S::Ok;
            type Error = S::Error;

            #[inline]
            fn $method<T: Serialize + ?Sized>(
                &mut self,
                $($name: &'static str,)?
                value: &T,
            ) -> Result<(), S::Error> {
                self.0.$method($($name,)? &Part::<_, FORMAT, false>(value))
            }

            $(#[inline]
            fn $skip(&mut self, key: &'static str) -> Result<(), S::Error> {
                if FORMAT == POSTCARD { Err(left_out()) } else { self.0.$skip(key) }
            })?

            #[inline]
            fn end(self) -> Result<S::Ok, S::Error> {
                self.0.end()
            }
        })+
    };
}

compounds! {
    SerializeSeq { serialize_element() }
    SerializeTuple { serialize_element() }
    SerializeTupleStruct { serialize_field() }
    SerializeTupleVariant { serialize_field() }
    SerializeStruct { serialize_field(key) skip_field }
    SerializeStructVariant { serialize_field(key) skip_field }
}

impl<S: SerializeMap, const FORMAT: u8> SerializeMap for Faithful<S, FORMAT, false> {
    type Ok = S::Ok;
    type Error = S::Error;

    #[inline]
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), S::Error> {
        self.0.serialize_key(&Part::<_, FORMAT, false>(key))
    }

    #[inline]
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
        self.0.serialize_value(&Part::<_, FORMAT, false>(value))
    }

    #[inline]
    fn serialize_entry<K: Serialize + ?Sized, V: Serialize + ?Sized>(
        &mut self,
        key: &K,
        value: &V,
    ) -> Result<(), S::Error> {
        self.0.serialize_entry(&Part::<_, FORMAT, false>(key), &Part::<_, FORMAT, false>(value))
    }

    #[inline]
    fn end(self) -> Result<S::Ok, S::Error> {
        self.0.end()
    }
}

#[cfg(test)]
mod tests;
