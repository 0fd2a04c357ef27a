//! JSON, with lines: each value is kept raw first, and its place in the text tells its line.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::{DEPTH, Lines, broken, twice};
use crate::config::{
    fault::Fault,
    node::{Field, Node, Place, Table, Text, What},
};

pub(super) fn parse(text: &str) -> Result<Node, Fault> {
    if text.trim().is_empty() {
        return Ok(Node { what: What::Null, place: Place::Line(1) });
    }
    let raw: &RawValue = serde_json::from_str(text).map_err(|error| unreadable(1, &error))?;
    node(&Lines::of(text), raw, 0)
}

/// Of a piece that begins in this line. serde_json's messages end with the place, and quote nothing of the text where it is no
/// JSON.
fn unreadable(line: usize, error: &serde_json::Error) -> Fault {
    let message = error.to_string();
    let what = message.split(" at line ").next().unwrap_or_default();
    broken(line + error.line().saturating_sub(1), what)
}

fn node(lines: &Lines<'_>, raw: &RawValue, depth: usize) -> Result<Node, Fault> {
    let raw_text = raw.get();
    let line = lines.at((raw_text.as_ptr() as usize).saturating_sub(lines.text.as_ptr() as usize));
    if depth > DEPTH {
        return Err(broken(line, format_args!("nested deeper than {DEPTH} levels")));
    }
    let what = match raw_text.as_bytes().first() {
        Some(b'{') => What::Table(fields(lines, raw_text, line, depth)?),
        // What is no text after all shows only now: half of a surrogate pair.
        Some(b'"') => {
            let value: String = serde_json::from_str(raw_text).map_err(|error| unreadable(line, &error))?;
            What::Text(Text::new(value))
        }
        Some(b'[') => {
            let items: Vec<&RawValue> =
                serde_json::from_str(raw_text).map_err(|error| unreadable(line, &error))?;
            let item = |(at, item)| node(lines, item, depth + 1).map_err(|fault| fault.within(at));
            What::List(items.into_iter().enumerate().map(item).collect::<Result<_, _>>()?)
        }
        _ => scalar(raw_text).ok_or_else(|| broken(line, "the number is too large"))?,
    };
    Ok(Node { what, place: Place::Line(line) })
}

fn scalar(raw: &str) -> Option<What> {
    Some(match serde_json::from_str(raw).ok()? {
        serde_json::Value::Null => What::Null,
        serde_json::Value::Bool(yes) => What::Bool(yes),
        serde_json::Value::Number(number) => match number.as_i128() {
            Some(number) => What::Int(number),
            None => What::Float(number.as_f64()?),
        },
        _ => return None,
    })
}

fn fields(lines: &Lines<'_>, raw: &str, line: usize, depth: usize) -> Result<Table, Fault> {
    let pairs: Pairs<'_> = serde_json::from_str(raw).map_err(|error| unreadable(line, &error))?;
    let mut table = Table::default();
    for (name, value) in pairs.0 {
        let node = node(lines, value, depth + 1).map_err(|fault| fault.within(&name))?;
        let line = node.place.line();
        if let Some(first) = table.get(&name) {
            return Err(twice(line, &name, &first.place));
        }
        table.0.push(Field { name, place: node.place.clone(), node });
    }
    Ok(table)
}

/// Fields in their order, repeated ones included.
struct Pairs<'a>(Vec<(String, &'a RawValue)>);

impl<'de: 'a, 'a> Deserialize<'de> for Pairs<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;
        impl<'de> Visitor<'de> for Reader {
            type Value = Vec<(String, &'de RawValue)>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(pairs)
            }
        }
        deserializer.deserialize_map(Reader).map(Self)
    }
}
