//! The JSON Schema of a file, from the types that read it.

use std::{borrow::Cow, collections::BTreeMap};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::{
    model::{
        Breaker, BreakerTable, Cache, Common, Compression, CompressionTable, Defaults, Early, Keyring, Level,
        LevelTable, XFetch,
    },
    units::{Count, FilePath, Limit, Period, Secret, Size, Timespan},
};

/// The JSON Schema of a file, for editors. A backend of your own is allowed with any fields.
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(File).to_value();
    allow_references(&mut schema);
    schema
}

/// Lets numbers, flags and names be texts as well, since they may be references. Drops what is of no use to editors.
fn allow_references(schema: &mut Value) {
    match schema {
        Value::Array(items) => items.iter_mut().for_each(allow_references),
        Value::Object(fields) => {
            fields.values_mut().for_each(allow_references);
            fields.remove("format");
            if fields.get("default").is_some_and(Value::is_null) {
                fields.remove("default");
            }
            let is_value = |kind: &Value| {
                kind.as_str().is_some_and(|kind| matches!(kind, "integer" | "number" | "boolean"))
            };
            let values = fields.contains_key("enum")
                || fields.get("type").is_some_and(|kind| match kind {
                    Value::Array(kinds) => kinds.iter().any(is_value),
                    kind => is_value(kind),
                });
            if values && !fields.contains_key("not") {
                let description = fields.remove("description");
                let literal = Value::Object(std::mem::take(fields));
                let reference = json!({ "type": "string", "pattern": REFERENCE });
                fields.extend(description.map(|text| ("description".to_owned(), text)));
                fields.insert("anyOf".to_owned(), json!([literal, reference]));
            }
        }
        _ => {}
    }
}

const REFERENCE: &str = r"\$\{";

/// Caches of Rust programs: https://github.com/traced-cache/traced-cache
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields, rename = "traced-cache")]
#[allow(dead_code, reason = "a description, never read into")]
struct File {
    /// Where editors find this schema.
    #[schemars(rename = "$schema")]
    schema: Option<String>,
    /// What every cache inherits, field by field, unless it says otherwise.
    defaults: Option<Defaults>,
    /// Places that keep entries, by the names that levels call them by.
    providers: Option<BTreeMap<String, Provider>>,
    /// Keys that encrypt values, by the names that levels call them by.
    keyrings: Option<BTreeMap<String, Keyring>>,
    /// The caches, by name.
    caches: Option<BTreeMap<String, Cache>>,
}

/// A place that keeps entries: the fields of its backend, and those that every provider has.
struct Provider;

impl JsonSchema for Provider {
    fn schema_name() -> Cow<'static, str> {
        "Provider".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let ours: Vec<(&str, Schema)> = vec![
            #[cfg(feature = "memcached")]
            ("memcached", generator.root_of::<super::backend::memcached::Settings>()),
            #[cfg(feature = "memory")]
            ("memory", generator.root_of::<super::backend::memory::Settings>()),
            #[cfg(feature = "redis")]
            ("redis", generator.root_of::<super::backend::redis::Settings>()),
        ];
        let common = generator.root_of::<Common>();
        let names: Vec<_> = ours.iter().map(|(name, _)| *name).collect();
        let other = json_schema!({
            "type": "object",
            "description": "A backend of your own.",
            "properties": { "backend": { "type": "string", "not": { "enum": names } } },
            "required": ["backend"],
        });
        let forms: Vec<_> =
            ours.into_iter().map(|(name, schema)| provider(name, schema, &common)).chain([other]).collect();
        json_schema!({ "oneOf": forms })
    }
}

/// The schema of one backend's providers.
fn provider(name: &str, mut schema: Schema, common: &Schema) -> Schema {
    let backend = json!({ "const": name, "description": "What keeps the entries." });
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.insert("backend".to_owned(), backend);
        let common = common.get("properties").and_then(Value::as_object);
        properties.extend(common.into_iter().flatten().map(|(name, field)| (name.clone(), field.clone())));
    }
    match schema.get_mut("required").and_then(Value::as_array_mut) {
        Some(required) => required.insert(0, "backend".into()),
        None => drop(schema.insert("required".to_owned(), json!(["backend"]))),
    }
    schema
}

trait Whole {
    /// The schema itself, not a reference to it.
    fn root_of<T: JsonSchema>(&mut self) -> Schema;
}

impl Whole for SchemaGenerator {
    fn root_of<T: JsonSchema>(&mut self) -> Schema {
        T::json_schema(self)
    }
}

/// No stricter than the parser, which takes `1.5s`, and blanks between digits.
const TIME: &str = r"^\s*(\d[\d\s]*(\.\s*\d[\d\s]*)?[A-Za-zµ]+\s*)+$|\$\{";

const SIZE: &str = r"^\s*[\d.]+\s*[A-Za-z]+\s*$|\$\{";

macro_rules! described {
    ($($type:ty, $name:literal => $schema:tt)*) => {$(
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

described! {
    Timespan, "Time" => { "type": "string", "pattern": TIME, "examples": ["250ms", "30s", "1h30m"] }
    Period, "Period" => {
        "anyOf": [
            { "type": "string", "pattern": TIME, "examples": ["250ms", "30s", "1h30m"] },
            { "const": "forever" },
        ]
    }
    Limit, "Limit" => {
        "anyOf": [
            { "type": "string", "pattern": TIME, "examples": ["250ms", "30s", "1h30m"] },
            { "const": "off" },
        ]
    }
    Count, "Count" => { "anyOf": [{ "type": "integer", "minimum": 1 }, { "const": "off" }] }
    Size, "Size" => { "type": "string", "pattern": SIZE, "examples": ["512B", "64KiB", "1GB"] }
    Secret, "Secret" => { "type": "string", "examples": ["${NAME}", "${file:/run/secrets/name}"] }
    FilePath, "FilePath" => {
        "type": "string", "description": "A file; a relative path starts at the folder of this file."
    }
}

macro_rules! forms {
    ($($type:ty, $name:literal, $table:ty => [$($word:tt),* $(,)?])*) => {$(
        impl JsonSchema for $type {
            fn schema_name() -> Cow<'static, str> {
                $name.into()
            }

            fn json_schema(generator: &mut SchemaGenerator) -> Schema {
                let table = generator.subschema_for::<$table>();
                json_schema!({ "anyOf": [$($word,)* table] })
            }
        }
    )*};
}

impl JsonSchema for Level {
    fn schema_name() -> Cow<'static, str> {
        "Level".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut table = generator.root_of::<LevelTable>();
        table.insert("required".to_owned(), json!(["provider"]));
        json_schema!({ "anyOf": [{ "type": "string", "description": "The name of a provider." }, table] })
    }
}

forms! {
    Breaker, "Breaker", BreakerTable => [{ "const": "off" }]
    Compression, "Compression", CompressionTable => [{ "enum": ["off", "lz4", "zstd"] }]
    Early, "Early", XFetch => [
        { "const": "off" },
        {
            "type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1, "description": "A fraction of the ttl.",
        },
    ]
}
