//! Reads a tree into serde's types. Errors name the value and its line.

use std::{fmt, path::Path};

use serde::de::{
    self, DeserializeSeed, Deserializer, EnumAccess, Error as _, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, VariantAccess, Visitor,
};

use super::{
    fault::{Fault, unknown},
    node::{Field, HIDDEN, Node, Place, Step, Text, What},
    units::{PATH, SECRET, SECRETS},
};

/// Reads a node, which stands at `path` of its tree.
pub(crate) fn read<T: de::DeserializeOwned>(node: &Node, path: &[Step], base: &Path) -> Result<T, Fault> {
    T::deserialize(Reader { node, base }).map_err(|mistake| {
        let mistake = mistake.at(node);
        let path: Vec<_> = path.iter().cloned().chain(mistake.path.into_iter().rev()).collect();
        // It may be a key that was written where a table should be.
        let hidden = path.first() == Some(&Step::from("keyrings"));
        let value = mistake.value.map(|value| if hidden { HIDDEN.to_owned() } else { value });
        Fault { path, place: mistake.place, value, fix: mistake.fix }
    })
}

/// A mistake; its path grows as it is passed up the tree.
#[derive(Debug)]
struct Mistake {
    fix: String,
    /// The innermost step first.
    path: Vec<Step>,
    place: Option<Place>,
    value: Option<String>,
    /// Something is absent, so there is no value to show.
    missing: bool,
}

impl Mistake {
    /// Blames this value, unless one inside it has been blamed already.
    fn at(mut self, node: &Node) -> Self {
        if self.place.is_none() {
            self.place = Some(node.place.clone());
            if !self.missing {
                self.value = Some(node.shown());
            }
        }
        self
    }

    /// Blames a value that must not be shown.
    fn hidden(mut self, node: &Node) -> Self {
        self.place = Some(node.place.clone());
        self.value = match &node.what {
            What::Text(Text { written: Some(_), .. }) => Some(node.shown()),
            _ => Some(HIDDEN.to_owned()),
        };
        self
    }

    fn under(mut self, step: Step) -> Self {
        self.path.push(step);
        self
    }
}

impl de::Error for Mistake {
    fn custom<T: fmt::Display>(text: T) -> Self {
        Self { fix: text.to_string(), path: Vec::new(), place: None, value: None, missing: false }
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("write {}", in_words(&expected.to_string())))
    }

    fn invalid_value(_: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::custom(format_args!("write {}", in_words(&expected.to_string())))
    }

    fn unknown_variant(word: &str, names: &'static [&'static str]) -> Self {
        Self::custom(unknown(word, names.iter().copied()))
    }

    fn unknown_field(word: &str, names: &'static [&'static str]) -> Self {
        let fix = format!("there is no such field; {}", elsewhere(word, names));
        Self { missing: true, ..Self::custom(fix) }
    }

    fn missing_field(field: &'static str) -> Self {
        Self { missing: true, ..Self::custom(format_args!("`{field}` is missing; add it")) }
    }

    fn duplicate_field(field: &'static str) -> Self {
        Self::custom(format_args!("`{field}` is there twice; keep one"))
    }
}

/// A single text was written where a list should be.
fn one_text() -> Mistake {
    Mistake::custom("write a list, in brackets, also of one")
}

/// What serde expects, for people who do not know its types.
fn in_words(expected: &str) -> &str {
    match expected {
        "u8" => "a whole number, 0 to 255",
        "u16" => "a whole number, 0 to 65535",
        "u32" => "a whole number, 0 to 4294967295",
        "u64" | "usize" => "a whole number, 0 or above",
        "i8" => "a whole number, -128 to 127",
        "i16" => "a whole number, -32768 to 32767",
        "i32" => "a whole number, -2147483648 to 2147483647",
        "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a string" => "a text, in quotes",
        "a sequence" => "a list",
        "a map" => "a table",
        other if other.starts_with("struct ") => "a table",
        other => other,
    }
}

/// What to do about an unknown field: it may belong elsewhere.
fn elsewhere(word: &str, names: &[&str]) -> String {
    const POLICY: [&str; 12] = [
        "ttl",
        "grace",
        "revalidate",
        "throttle",
        "early",
        "jitter",
        "absent_ttl",
        "soft_limit",
        "hard_limit",
        "complete_in_background",
        "wait",
        "loads",
    ];
    const LEVEL: [&str; 7] = ["ttl_cap", "budget", "breaker", "stance", "on_failover", "background", "plain"];
    let has = |name| names.contains(&name);
    if has("policy") && POLICY.contains(&word) {
        return format!("it belongs to `policy`: `policy.{word}`");
    }
    if has("levels") && LEVEL.contains(&word) {
        return format!("it belongs to a level: `levels = [{{ provider = \"...\", {word} = ... }}]`");
    }
    unknown(word, names.iter().copied())
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.fix)
    }
}

impl std::error::Error for Mistake {}

#[derive(Clone, Copy)]
struct Reader<'a> {
    node: &'a Node,
    base: &'a Path,
}

impl<'a> Reader<'a> {
    fn of(self, node: &'a Node) -> Self {
        Self { node, ..self }
    }

    /// Parses a text that came from a variable: those have no other types.
    fn untyped<T: std::str::FromStr>(self) -> Option<T> {
        match &self.node.what {
            What::Text(text) if text.untyped => text.value.trim().parse().ok(),
            _ => None,
        }
    }
}

macro_rules! numbers {
    ($($method:ident => $visit:ident as $type:ty),* $(,)?) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
            match self.untyped::<$type>() {
                Some(number) => visitor.$visit(number),
                None => self.deserialize_any(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = Mistake;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match &self.node.what {
            What::Null => visitor.visit_unit(),
            What::Bool(yes) => visitor.visit_bool(*yes),
            What::Int(number) => match (u64::try_from(*number), i64::try_from(*number)) {
                (Ok(number), _) => visitor.visit_u64(number),
                (_, Ok(number)) => visitor.visit_i64(number),
                _ => Err(Mistake::custom("the number is too large")),
            },
            What::Float(number) => visitor.visit_f64(*number),
            What::Text(text) => visitor.visit_str(&text.value),
            What::List(items) => visitor.visit_seq(Items { reader: self, rest: items.iter(), at: 0 }),
            What::Table(table) => visitor.visit_map(Fields { reader: self, rest: table.0.iter(), now: None }),
        }
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.untyped() {
            Some(yes) => visitor.visit_bool(yes),
            None => self.deserialize_any(visitor),
        }
    }

    numbers! {
        deserialize_u8 => visit_u64 as u64,
        deserialize_u16 => visit_u64 as u64,
        deserialize_u32 => visit_u64 as u64,
        deserialize_u64 => visit_u64 as u64,
        deserialize_i8 => visit_i64 as i64,
        deserialize_i16 => visit_i64 as i64,
        deserialize_i32 => visit_i64 as i64,
        deserialize_i64 => visit_i64 as i64,
        deserialize_f32 => visit_f64 as f64,
        deserialize_f64 => visit_f64 as f64,
    }

    /// In a variable, a list is a text with commas.
    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match &self.node.what {
            What::Text(text) if text.untyped => {
                let part = |part: &str| Node {
                    what: What::Text(Text { value: part.trim().to_owned(), ..text.clone() }),
                    place: self.node.place.clone(),
                };
                let items: Vec<_> = text.value.split(',').map(part).collect();
                visitor.visit_seq(Items { reader: self, rest: items.iter(), at: 0 })
            }
            What::Text(_) => Err(one_text()),
            _ => self.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Mistake> {
        match self.node.what {
            What::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        match (name, &self.node.what) {
            (SECRET, What::Text(text)) => {
                visitor.visit_str(&text.value).map_err(|mistake: Mistake| mistake.hidden(self.node))
            }
            (SECRET, _) => Err(Mistake::custom("write a text, in quotes").hidden(self.node)),
            (SECRETS, What::Null) => visitor.visit_none(),
            (SECRETS, What::List(_) | What::Text(Text { untyped: true, .. })) => {
                visitor.visit_newtype_struct(self)
            }
            (SECRETS, What::Text(_)) => Err(one_text().hidden(self.node)),
            (SECRETS, _) => Err(Mistake::custom("write a list").hidden(self.node)),
            (PATH, What::Text(text)) => match self.base.join(&text.value).to_str() {
                Some(path) => visitor.visit_str(path),
                None => Err(Mistake::custom("the path is no UTF-8")),
            },
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        match &self.node.what {
            What::Text(text) => visitor.visit_enum(text.value.as_str().into_deserializer()),
            What::Table(table) => match table.0.as_slice() {
                [field] => visitor.visit_enum(Variant { reader: self, field }),
                _ => Err(Mistake::custom("write one name, or a table with one")),
            },
            _ => Err(Mistake::custom("write a name, in quotes")),
        }
    }

    serde::forward_to_deserialize_any! {
        i128 u128 char str string bytes byte_buf unit unit_struct tuple tuple_struct map struct identifier
        ignored_any
    }
}

struct Items<'a> {
    reader: Reader<'a>,
    rest: std::slice::Iter<'a, Node>,
    at: usize,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = Mistake;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Mistake> {
        let Some(node) = self.rest.next() else { return Ok(None) };
        let at = self.at;
        self.at += 1;
        seed.deserialize(self.reader.of(node))
            .map(Some)
            .map_err(|mistake| mistake.at(node).under(Step::Item(at)))
    }
}

struct Fields<'a> {
    reader: Reader<'a>,
    rest: std::slice::Iter<'a, Field>,
    now: Option<&'a Field>,
}

impl<'de> MapAccess<'de> for Fields<'_> {
    type Error = Mistake;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, Mistake> {
        let Some(field) = self.rest.next() else { return Ok(None) };
        self.now = Some(field);
        let name: de::value::StrDeserializer<'_, Mistake> = field.name.as_str().into_deserializer();
        seed.deserialize(name).map(Some).map_err(|mut mistake| {
            // Blame the field and hide its value, which may be a secret under a misspelt name.
            mistake.place = Some(field.place.clone());
            mistake.under(Step::from(&field.name))
        })
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, Mistake> {
        let Some(field) = self.now.take() else { return Err(Mistake::custom("a value without a name")) };
        seed.deserialize(self.reader.of(&field.node))
            .map_err(|mistake| mistake.at(&field.node).under(Step::from(&field.name)))
    }
}

struct Variant<'a> {
    reader: Reader<'a>,
    field: &'a Field,
}

impl<'de, 'a> EnumAccess<'de> for Variant<'a> {
    type Error = Mistake;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), Mistake> {
        let name: de::value::StrDeserializer<'_, Mistake> = self.field.name.as_str().into_deserializer();
        let variant = seed.deserialize(name).map_err(|mut mistake| {
            mistake.place = Some(self.field.place.clone());
            mistake.under(Step::from(&self.field.name))
        })?;
        Ok((variant, self))
    }
}

impl Variant<'_> {
    fn inside(&self, mistake: Mistake) -> Mistake {
        mistake.at(&self.field.node).under(Step::from(&self.field.name))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_> {
    type Error = Mistake;

    fn unit_variant(self) -> Result<(), Mistake> {
        Err(self.inside(Mistake::custom("write the name alone, in quotes")))
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, Mistake> {
        seed.deserialize(self.reader.of(&self.field.node)).map_err(|mistake| self.inside(mistake))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, visitor: V) -> Result<V::Value, Mistake> {
        self.reader.of(&self.field.node).deserialize_any(visitor).map_err(|mistake| self.inside(mistake))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Mistake> {
        self.reader.of(&self.field.node).deserialize_any(visitor).map_err(|mistake| self.inside(mistake))
    }
}
