use std::collections::{BTreeMap, HashMap};

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Meters(f64);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Pair(f32, f64);

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Nothing;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Shape {
    Unit,
    Newtype(f64),
    Tuple(f32, String),
    Struct { width: f64, nested: Option<Box<Self>> },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind")]
enum Tagged {
    Point { at: f64 },
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
enum Bare {
    Number(f64),
    Word(String),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Flat {
    #[serde(flatten)]
    more: BTreeMap<String, f64>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct All {
    small: f32,
    large: f64,
    maybe: Option<Option<f64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    skipped: Option<f64>,
    list: Vec<f64>,
    array: [f32; 2],
    tuple: (u8, f64, String),
    map: BTreeMap<String, f64>,
    by_number: BTreeMap<i64, Shape>,
    meters: Meters,
    pair: Pair,
    shapes: Vec<Shape>,
    tagged: Tagged,
    bare: Vec<Bare>,
    flat: Flat,
    unit: (),
    nothing: Nothing,
    letter: char,
    text: String,
    wide: (i128, u128, i8, i16, i32, u16, u32, u64),
    yes: bool,
    bytes: Bytes,
    shown: Shown,
}

/// Serialized by `serialize_bytes`.
#[derive(Debug, Clone, PartialEq)]
struct Bytes(Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(&self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Vec::deserialize(deserializer).map(Self)
    }
}

/// Serialized by `collect_str`, and otherwise in binary formats.
#[derive(Debug, Clone, PartialEq, Deserialize)]
struct Shown(String);

impl Serialize for Shown {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        assert!(serializer.is_human_readable());
        serializer.collect_str(&format_args!("{}", self.0))
    }
}

fn ours<T: Serialize + ?Sized>(value: &T) -> Option<String> {
    let mut out = Vec::new();
    to_json(value, &mut out).ok().map(|()| String::from_utf8(out).unwrap())
}

fn finite() -> impl Strategy<Value = f64> {
    any::<f64>().prop_filter("finite", |v| v.is_finite())
}

fn small() -> impl Strategy<Value = f32> {
    any::<f32>().prop_filter("finite", |v| v.is_finite())
}

fn shape() -> impl Strategy<Value = Shape> {
    let leaf = prop_oneof![
        Just(Shape::Unit),
        finite().prop_map(Shape::Newtype),
        (small(), any::<String>()).prop_map(|(a, b)| Shape::Tuple(a, b)),
    ];
    leaf.prop_recursive(3, 8, 1, |inner| {
        (finite(), proptest::option::of(inner))
            .prop_map(|(width, nested)| Shape::Struct { width, nested: nested.map(Box::new) })
    })
}

fn bare() -> impl Strategy<Value = Bare> {
    prop_oneof![finite().prop_map(Bare::Number), any::<String>().prop_map(Bare::Word)]
}

prop_compose! {
    fn sample()(
        (small, large, maybe, skipped) in (small(), finite(), proptest::option::of(finite().prop_map(Some)),
            proptest::option::of(finite())),
        list in proptest::collection::vec(finite(), 0..4),
        map in proptest::collection::btree_map(any::<String>(), finite(), 0..4),
        by_number in proptest::collection::btree_map(any::<i64>(), shape(), 0..4),
        shapes in proptest::collection::vec(shape(), 0..4),
        bare in proptest::collection::vec(bare(), 0..4),
        more in proptest::collection::btree_map("x[a-z]{0,5}", finite(), 0..4),
        (letter, text, yes, bytes) in (any::<char>(), any::<String>(), any::<bool>(), any::<Vec<u8>>()),
        wide in any::<(i128, u128, i8, i16, i32, u16, u32, u64)>(),
    ) -> All {
        All {
            small, large, maybe, skipped, list,
            array: [small, 1.5],
            tuple: (7, large, text.clone()),
            map, by_number,
            meters: Meters(large),
            pair: Pair(small, large),
            shapes,
            tagged: Tagged::Point { at: large },
            bare,
            flat: Flat { more },
            unit: (), nothing: Nothing, letter,
            shown: Shown(text.clone()),
            text, wide, yes,
            bytes: Bytes(bytes),
        }
    }
}

proptest! {
    #[test]
    fn b7_finite_values_are_written_as_serde_json_writes_them(value in sample()) {
        let json = ours(&value).unwrap();
        prop_assert_eq!(&json, &serde_json::to_string(&value).unwrap());
        prop_assert_eq!(serde_json::from_str::<All>(&json).unwrap(), value);
    }

    #[test]
    fn any_float_is_written_or_refused(value in any::<f64>()) {
        prop_assert_eq!(ours(&value).is_some(), value.is_finite());
        if let Some(json) = ours(&value) {
            prop_assert_eq!(serde_json::from_str::<f64>(&json).unwrap().to_bits(), value.to_bits());
        }
    }
}

fn refuses<T: Serialize>(what: &str, make: impl Fn(f64) -> T) {
    for bad in [f64::NAN, -f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        assert_eq!(ours(&make(bad)), None, "{what}: {bad}");
    }
    for good in [0.0, -0.0, f64::MAX, f64::MIN_POSITIVE / 2.0] {
        let value = make(good);
        assert_eq!(ours(&value), serde_json::to_string(&value).ok(), "{what}: {good}");
    }
}

#[test]
#[allow(clippy::cast_possible_truncation, reason = "NaN and infinities stay what they are, as do zeros")]
fn b7_what_is_not_finite_is_refused_wherever_it_sits() {
    refuses("bare", |v| v);
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        assert_eq!(ours(&bad), None);
        assert_eq!(ours(&Pair(bad, 1.0)), None);
        assert_eq!(ours(&Shape::Tuple(bad, String::new())), None);
    }
    refuses("option", Some);
    refuses("option of option", |v| Some(Some(v)));
    refuses("vector", |v| vec![1.0, v]);
    refuses("slice", |v| [v; 3]);
    refuses("tuple", |v| ("a", v, 3));
    refuses("newtype", Meters);
    refuses("tuple struct", |v| Pair(0.5, v));
    refuses("newtype variant", Shape::Newtype);
    refuses("struct variant", |v| Shape::Struct { width: v, nested: None });
    refuses("nested", |v| Shape::Struct { width: 1.0, nested: Some(Box::new(Shape::Newtype(v))) });
    refuses("tagged", |v| Tagged::Point { at: v });
    refuses("untagged", Bare::Number);
    refuses("map", |v| BTreeMap::from([("a", 1.0), ("b", v)]));
    refuses("hash map", |v| HashMap::from([(1_u8, v)]));
    refuses("map in a map", |v| BTreeMap::from([("a", BTreeMap::from([(7, vec![Some(v)])]))]));
    refuses("flattened", |v| Flat { more: BTreeMap::from([("a".to_owned(), v)]) });
    refuses("json value", |v| (serde_json::Value::Null, v));
}

/// `serde_json` itself refuses it as the key of a map.
#[test]
fn b7_keys_are_refused_too() {
    struct Keyed(f64);
    impl Serialize for Keyed {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut map = serializer.serialize_map(Some(1))?;
            map.serialize_key(&self.0)?;
            map.serialize_value(&1)?;
            map.end()
        }
    }
    refuses("key", Keyed);
}

#[test]
fn raw_and_absent_values_are_as_before() {
    assert_eq!(ours(&None::<f64>).as_deref(), Some("null"));
    assert_eq!(ours(&()).as_deref(), Some("null"));
    assert_eq!(ours(&serde_json::json!({"a": [1.5, null, "x"]})).as_deref(), Some(r#"{"a":[1.5,null,"x"]}"#));
}

fn nested() -> impl Strategy<Value = Option<Option<Option<u8>>>> {
    proptest::option::of(proptest::option::of(proptest::option::of(any::<u8>())))
}

proptest! {
    /// What is written is read as what it was.
    #[test]
    fn b7_options_of_options_are_written_or_refused(value in proptest::collection::vec(nested(), 0..4)) {
        let tells = value.iter().all(|one| !matches!(one, Some(None | Some(None))));
        let json = ours(&value);
        prop_assert_eq!(json.is_some(), tells);
        if let Some(json) = json {
            let read: Vec<Option<Option<Option<u8>>>> = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(&read, &value);
        }
        #[cfg(feature = "msgpack")]
        {
            let mut out = Vec::new();
            prop_assert_eq!(to_msgpack(&value, &mut out).is_ok(), tells);
            if tells {
                let read: Vec<Option<Option<Option<u8>>>> = rmp_serde::from_slice(&out).unwrap();
                prop_assert_eq!(&read, &value);
            }
        }
    }
}

#[test]
fn b7_what_would_be_taken_for_none_is_refused_wherever_it_sits() {
    #[derive(Serialize)]
    struct Wrapped(Option<u8>);
    #[derive(Serialize)]
    struct Field {
        of: Option<Option<u8>>,
    }
    for (what, json) in [
        ("none", ours(&Some(None::<u8>))),
        ("unit", ours(&Some(()))),
        ("unit struct", ours(&Some(Nothing))),
        ("newtype", ours(&Some(Wrapped(None)))),
        ("field", ours(&Field { of: Some(None) })),
        ("vector", ours(&vec![Some(None::<u8>)])),
        ("json value", ours(&Some(serde_json::Value::Null))),
    ] {
        assert_eq!(json, None, "{what}");
    }
    assert_eq!(ours(&Some(Wrapped(Some(1)))).as_deref(), Some("1"));
    assert_eq!(ours(&Field { of: None }).as_deref(), Some(r#"{"of":null}"#));
    assert_eq!(ours(&Some(vec![None::<u8>, Some(1)])).as_deref(), Some("[null,1]"));
    assert_eq!(ours(&Some(Shape::Unit)).as_deref(), Some(r#""Unit""#));
}

/// Read by position, `z` would begin where `y` is: `{x: Some(2), y: 0, z: []}`.
#[cfg(feature = "postcard")]
#[test]
fn what_postcard_would_read_one_field_early_is_refused() {
    #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
    struct Few {
        #[serde(skip_serializing_if = "Option::is_none")]
        x: Option<u8>,
        y: u8,
        z: Vec<u8>,
    }
    #[derive(Serialize)]
    enum Either {
        Few {
            #[serde(skip_serializing_if = "Option::is_none")]
            x: Option<u8>,
            y: u8,
        },
    }
    let ours = |value: &dyn Fn(&mut Vec<u8>) -> postcard::Result<()>| {
        let mut out = b"before".to_vec();
        value(&mut out).ok().map(|()| out.split_off(6))
    };
    let few = Few { x: None, y: 1, z: vec![0, 0] };
    let all = Few { x: Some(7), ..few.clone() };
    assert_eq!(ours(&|out| to_postcard(&few, out)), None);
    assert_eq!(ours(&|out| to_postcard(&Some(vec![(1, few.clone())]), out)), None, "however deep");
    assert_eq!(ours(&|out| to_postcard(&Either::Few { x: None, y: 1 }, out)), None);
    assert_eq!(ours(&|out| to_postcard(&all, out)), postcard::to_stdvec(&all).ok(), "all of it is there");
    // It tells these apart, and has every float.
    let fine = (Some(None::<u8>), Some(()), Some(Nothing), f64::NAN, f32::INFINITY, "text", Shape::Unit);
    assert_eq!(ours(&|out| to_postcard(&fine, out)), postcard::to_stdvec(&fine).ok());
}
