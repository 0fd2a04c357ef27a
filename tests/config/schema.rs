//! The JSON Schema for editors is that of the types that read a file.

use std::{fs, path::PathBuf};

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
            json!({ "levels": ["p", { "provider": "p", "breaker": "off", "compression": "lz4" }] }),
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
