//! The JSON Schema for editors is that of the types that read a file.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::PathBuf,
};

use serde_json::{Value, json};
use traced_cache::config;

fn path() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/config.schema.json")
}

fn text() -> String {
    serde_json::to_string_pretty(&config::schema()).unwrap() + "\n"
}

#[test]
fn the_committed_schema_is_that_of_the_types() {
    let committed = fs::read_to_string(path()).unwrap();
    assert!(
        committed == text(),
        "write it anew: cargo test --features schema --test config write_schema -- --ignored"
    );
}

#[test]
#[ignore = "writes docs/config.schema.json"]
fn write_schema() {
    fs::write(path(), text()).unwrap();
}

#[tokio::test]
async fn every_time_that_is_read_is_valid() {
    for (time, is_one) in [
        ("1.5s", true),
        ("1.25 h 30.5m", true),
        ("1 000ms", true),
        (" 5 s ", true),
        ("1h30m", true),
        ("30", false),
        ("1.5", false),
        ("1.s", false),
        (".5s", false),
        ("-1s", false),
        ("inf", false),
    ] {
        let file = json!({
            "providers": { "p": { "backend": "memory", "entries": 5 } },
            "caches": { "c": { "levels": ["p"], "policy": { "ttl": time } } },
        });
        let read = crate::kit::sealed().from_text(config::Format::Json, &file.to_string()).await;
        assert_eq!((read.is_ok(), accepts(&file)), (is_one, is_one), "{time}: {read:?}");
    }
}

fn accepts(file: &Value) -> bool {
    jsonschema::is_valid(&config::schema(), file)
}

#[test]
fn what_is_read_is_valid_and_what_is_refused_is_not() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/config");
    let read = |name: &str| fs::read_to_string(folder.join(name)).unwrap();
    let toml: Value = toml::from_str(&read("production.toml")).unwrap();
    let json: Value = serde_json::from_str(&read("staging.json")).unwrap();
    for (file, name) in [(&toml, "production.toml"), (&json, "staging.json")] {
        let validator = jsonschema::validator_for(&config::schema()).unwrap();
        let errors: Vec<_> = validator.iter_errors(file).map(|error| error.to_string()).collect();
        assert_eq!(errors, [""; 0], "{name}");
    }
    let with =
        |provider: Value, cache: Value| json!({ "providers": { "p": provider }, "caches": { "c": cache } });
    let memory = || json!({ "backend": "memory", "entries": 5 });
    for good in [
        json!({}),
        with(memory(), json!({})),
        with(json!({ "backend": "memory", "entries": "${ENTRIES}", "required": "${REQUIRED}" }), json!({})),
        with(json!({ "backend": "files", "folder": "/tmp", "anything": [1] }), json!({})),
        with(
            memory(),
            json!({ "policy": { "ttl": "1h 30m", "early": 0.5, "loads": "off", "hard_limit": "off" } }),
        ),
        with(
            memory(),
            json!({ "policy": { "ttl": "forever", "early": { "xfetch": 1.0 }, "grace": "${GRACE}" } }),
        ),
        with(
            memory(),
            json!({ "levels": ["p", { "provider": "q", "breaker": "off", "compression": "lz4" }] }),
        ),
        with(memory(), json!({ "codec": "${CODEC}", "schema": 3 })),
    ] {
        assert!(accepts(&good), "{good}");
    }
    for bad in [
        json!({ "cache": {} }),
        with(json!({ "entries": 5 }), json!({})),
        with(json!({ "backend": "memory", "entrys": 5 }), json!({})),
        with(json!({ "backend": "memory", "entries": -5 }), json!({})),
        with(json!({ "backend": "redis" }), json!({})),
        with(memory(), json!({ "polcy": {} })),
        with(memory(), json!({ "policy": { "ttl": 30 } })),
        with(memory(), json!({ "policy": { "ttl": "30" } })),
        with(memory(), json!({ "policy": { "early": 2 } })),
        with(memory(), json!({ "codec": "jsn" })),
        with(memory(), json!({ "levels": [{ "budget": "5ms" }] })),
        with(memory(), json!({ "levels": "p" })),
        with(memory(), json!({ "compression": { "algorithm": "lz4", "above": 5 } })),
    ] {
        assert!(!accepts(&bad), "{bad}");
    }
}

/// The rows of the table under a heading of docs/configuration.md: field and default.
fn documented(heading: &str) -> BTreeMap<String, String> {
    let docs = include_str!("../../docs/configuration.md");
    let (_, section) = docs.split_once(&format!("\n### {heading}\n")).expect(heading);
    let section = section.split("\n#").next().unwrap();
    let rows = section.lines().filter_map(|line| {
        let mut cells = line.strip_prefix("| `")?.split(" | ");
        let field = cells.next()?.trim_end_matches('`');
        Some((field.to_owned(), cells.next()?.trim_matches('`').to_owned()))
    });
    rows.collect()
}

fn fields<'a>(schema: &'a Value, pointer: &str) -> BTreeSet<&'a str> {
    let properties = schema.pointer(pointer).expect(pointer)["properties"].as_object().unwrap();
    properties.keys().map(String::as_str).collect()
}

#[test]
fn every_field_is_documented_and_no_other() {
    let schema = config::schema();
    let with = |names: BTreeSet<&'static str>, more: &'static str| names.into_iter().chain([more]).collect();
    let schema: &'static Value = Box::leak(Box::new(schema));
    let provider = |at: usize| -> BTreeSet<&str> {
        let all = fields(schema, &format!("/$defs/Provider/oneOf/{at}"));
        all.into_iter().filter(|name| !["backend", "required", "level"].contains(name)).collect()
    };
    for (heading, expected) in [
        ("`caches` and `defaults`", fields(schema, "/$defs/Cache")),
        ("`policy`", fields(schema, "/$defs/Policy")),
        ("A level, and a provider's `level`", with(fields(schema, "/$defs/LevelSettings"), "provider")),
        ("A level, and a provider's `level`", fields(schema, "/$defs/Level/anyOf/1")),
        ("`breaker`", fields(schema, "/$defs/BreakerTable")),
        ("`compression`", fields(schema, "/$defs/CompressionTable")),
        ("`keyrings`", fields(schema, "/$defs/Keyring")),
        ("A key", fields(schema, "/$defs/Key")),
        ("Every provider", BTreeSet::from(["backend", "required", "level"])),
        ("`backend = \"memcached\"`", provider(0)),
        ("`backend = \"memory\"`", provider(1)),
        ("`backend = \"redis\"`", provider(2)),
    ] {
        let documented = documented(heading);
        assert_eq!(documented.keys().map(String::as_str).collect::<BTreeSet<_>>(), expected, "{heading}");
    }
    assert_eq!(with(fields(schema, "/$defs/Defaults"), "schema"), fields(schema, "/$defs/Cache"));
}

#[tokio::test]
async fn documented_defaults_are_those_that_a_cache_gets() {
    let text =
        "[providers.m]\nbackend = \"memcached\"\nurl = \"memcached://h\"\n[caches.a]\nlevels = [\"m\"]\n";
    let explained = crate::kit::toml(text).await.unwrap().explain();
    let cache = &explained.caches[0];
    let (policy, own) = (documented("`policy`"), documented("`caches` and `defaults`"));
    let level = documented("A level, and a provider's `level`");
    let of_cache = cache.settings.iter().map(|s| match s.name.strip_prefix("policy.") {
        Some(field) => (s, &policy[field]),
        None => (s, &own[&s.name]),
    });
    let of_level = cache.levels[0].settings.iter().map(|s| (s, &level[&s.name]));
    let mut seen = 0;
    for (setting, documented) in of_cache.chain(of_level) {
        // Shown as it is for this one level, documented for any.
        let surfaces =
            setting.name == "stance" && documented.ends_with("surface where it is the only level and remote");
        let documented = if surfaces { "surface" } else { documented };
        assert_eq!(
            (setting.value.as_str(), setting.origin.as_str()),
            (documented, "default"),
            "{}",
            setting.name
        );
        seen += 1;
    }
    assert_eq!(seen, policy.len() + 3 + level.len() - 1);
}

/// Setters of a builder, by its source.
fn setters(file: &str, from: &str) -> BTreeSet<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file);
    let text = fs::read_to_string(path).unwrap();
    let (_, text) = text.split_once(from).expect(from);
    let setter = |line: &str| {
        let rest =
            line.trim().strip_prefix("pub fn ").or_else(|| line.trim().strip_prefix("pub const fn "))?;
        let (name, arguments) = rest.split_once('(')?;
        let sets = arguments.starts_with("mut self") || arguments.starts_with("self,");
        sets.then(|| name.split('<').next().unwrap_or(name).to_owned())
    };
    text.split("\n}\n").next().unwrap().lines().filter_map(setter).collect()
}

/// Whatever a builder can do, a file can say.
#[test]
fn every_setter_has_its_field() {
    let schema: &'static Value = Box::leak(Box::new(config::schema()));
    let provider = |at: usize| fields(schema, &format!("/$defs/Provider/oneOf/{at}"));
    let none: &[(&str, &str)] = &[];
    for (file, from, fields, elsewhere) in [
        (
            "cache-core/src/policy.rs",
            "impl Policy {",
            fields(schema, "/$defs/Policy"),
            // A constructor.
            none,
        ),
        ("cache-core/src/level.rs", "impl Level {", fields(schema, "/$defs/LevelSettings"), none),
        ("cache-core/src/breaker.rs", "impl Breaker {", fields(schema, "/$defs/BreakerTable"), none),
        (
            "cache-core/src/builder.rs",
            "impl<T: Value> Builder<T> {",
            fields(schema, "/$defs/Cache"),
            &[
                ("level", "levels"),
                ("backplane_shared", "backplane"),
                ("observer", "code: CachesBuilder::observer"),
                ("observer_shared", "code: CachesBuilder::observer"),
                ("weigher", "code: Caches::cache_with"),
                ("clock", "code: Caches::cache_with"),
                ("versioned", "code: Caches::versioned"),
            ][..],
        ),
        (
            "cache-redis/src/settings.rs",
            "impl RedisProviderBuilder {",
            provider(2),
            &[("client_certificate", "client_certificate"), ("url", "url")],
        ),
        (
            "cache-memcached/src/builder.rs",
            "impl Builder {",
            provider(0),
            &[
                ("server", "servers"),
                ("login", "username"),
                ("pooled", "code: a feature that traced-cache does not have"),
            ],
        ),
        ("cache-memory/src/memory.rs", "impl Memory {", provider(1), none),
    ] {
        let setters = setters(file, from);
        assert!(!setters.is_empty() || file.contains("memory"), "{file}");
        for setter in setters {
            let field =
                elsewhere.iter().find(|(name, _)| *name == setter).map_or(setter.as_str(), |(_, to)| to);
            assert!(
                field.starts_with("code: ") || fields.contains(field),
                "{file}: `{setter}` has no field in a configuration file: add it to src/config, or say here where it is set"
            );
        }
    }
}
