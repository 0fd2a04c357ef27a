//! One model, three languages; what is inherited, and what the environment says.

use std::{fs, path::Path, time::Duration};

use cache_core::testing::ends_within;
use traced_cache::{
    Caches,
    config::{ExplainedCache, Explanation, Format, Setting},
};

use crate::kit::{sealed, toml};

/// Every setting with its value, and of its origin what does not depend on the language.
fn essence(explanation: &Explanation) -> Vec<String> {
    let of = |cache: &ExplainedCache, settings: &[Setting]| -> Vec<String> {
        let line = |s: &Setting| {
            let origin = s.origin.split_once(' ').map_or(s.origin.as_str(), |(_, path)| path);
            format!("{} {} {} {origin}", cache.name, s.name, s.value)
        };
        settings.iter().map(line).collect()
    };
    let caches = explanation.caches.iter();
    caches
        .flat_map(|cache| {
            let levels = cache.levels.iter().flat_map(|level| of(cache, &level.settings));
            of(cache, &cache.settings).into_iter().chain(levels).collect::<Vec<_>>()
        })
        .collect()
}

const TOML: &str = r#"
[providers.local]
backend = "memory"
bytes = "1MiB"
engine = "moka"
[providers.far]
backend = "memcached"
servers = ["memcached://127.0.0.1:1", "memcached://127.0.0.1:2"]
[providers.far.level]
budget = "20ms"
breaker = { min_calls = 2 }
[defaults]
levels = ["local", { provider = "far", stance = "surface", background = true }]
codec = "postcard"
compression = { algorithm = "zstd", level = 3, above = "4KiB" }
policy = { ttl = "forever", early = { xfetch = 1.5 }, loads = 4, complete_in_background = false }
[caches.a]
schema = 7
[caches.b]
policy = { ttl = "1h 30m", early = 0.25, hard_limit = "off", wait = "2s" }
"#;

const YAML: &str = r#"
providers:
  local: { backend: memory, bytes: 1MiB, engine: moka }
  far:
    backend: memcached
    servers: # one of these
      - memcached://127.0.0.1:1
      - "memcached://127.0.0.1:2"
    level: &remote
      budget: 20ms
      breaker: { min_calls: 2 }
defaults:
  levels:
    - local
    - provider: far
      stance: surface
      background: true
  codec: postcard
  compression: { algorithm: zstd, level: 3, above: 4KiB }
  policy: { ttl: forever, early: { xfetch: 1.5 }, loads: 4, complete_in_background: false }
caches:
  a:
    schema: 7
  b:
    policy: { ttl: 1h 30m, early: 0.25, hard_limit: off, wait: 2s }
"#;

const JSON: &str = r#"{
  "$schema": "../schema.json",
  "providers": {
    "local": { "backend": "memory", "bytes": "1MiB", "engine": "moka" },
    "far": {
      "backend": "memcached",
      "servers": ["memcached://127.0.0.1:1", "memcached://127.0.0.1:2"],
      "level": { "budget": "20ms", "breaker": { "min_calls": 2 } }
    }
  },
  "defaults": {
    "levels": ["local", { "provider": "far", "stance": "surface", "background": true }],
    "codec": "postcard",
    "compression": { "algorithm": "zstd", "level": 3, "above": "4KiB" },
    "policy": { "ttl": "forever", "early": { "xfetch": 1.5 }, "loads": 4, "complete_in_background": false }
  },
  "caches": {
    "a": { "schema": 7 },
    "b": { "policy": { "ttl": "1h 30m", "early": 0.25, "hard_limit": "off", "wait": "2s" } }
  }
}"#;

#[tokio::test]
async fn k1_the_languages_say_the_same() {
    let mut all = Vec::new();
    for (format, text) in [(Format::Toml, TOML), (Format::Yaml, YAML), (Format::Json, JSON)] {
        let caches = sealed().from_text(format, text).await.unwrap();
        all.push(essence(&caches.explain()));
    }
    let [toml, yaml, json] = all.try_into().unwrap();
    assert_eq!(toml, yaml);
    assert_eq!(toml, json);
    for line in [
        "a policy.ttl forever defaults.policy.ttl",
        "a policy.early xfetch 1.5 defaults.policy.early",
        "a policy.loads 4 defaults.policy.loads",
        "a policy.hard_limit 30s default",
        "a schema 7 caches.a.schema",
        "b policy.ttl 1h 30m caches.b.policy.ttl",
        "b policy.early 0.25 caches.b.policy.early",
        "b policy.loads 4 defaults.policy.loads",
        "b policy.hard_limit off caches.b.policy.hard_limit",
        "b policy.wait 2s caches.b.policy.wait",
        "b budget 20ms providers.far.level.budget",
        "b breaker 0.5 of at least 2 calls within 10s; open for 1s providers.far.level.breaker",
        "b stance surface defaults.levels[1].stance",
        "b background true defaults.levels[1].background",
        "b codec postcard defaults.codec",
        "b compression zstd level 3 above 4096B defaults.compression",
        "b encryption off default",
    ] {
        assert!(toml.contains(&line.to_owned()), "{line}: {toml:#?}");
    }
}

#[tokio::test]
async fn k4_a_cache_that_says_one_field_inherits_all_others() {
    let explained = toml(
        "[providers.m]\nbackend = \"memory\"\nentries = 5\n[defaults]\nlevels = [\"m\"]\n\
         policy = { ttl = \"1m\", grace = \"1h\", jitter = \"5s\" }\n[caches.a.policy]\nttl = \"2m\"\n",
    )
    .await
    .unwrap()
    .explain();
    let lines = essence(&explained);
    for line in [
        "a policy.ttl 2m caches.a.policy.ttl",
        "a policy.grace 1h defaults.policy.grace",
        "a policy.jitter 5s defaults.policy.jitter",
        "a policy.throttle 1s default",
    ] {
        assert!(lines.contains(&line.to_owned()), "{line}: {lines:#?}");
    }
}

#[tokio::test]
async fn what_is_said_nearest_counts() {
    let text = "[providers.m]\nbackend = \"memcached\"\nurl = \"memcached://127.0.0.1:1\"\n\
                level = { codec = \"msgpack\", budget = \"1ms\", breaker = \"off\" }\n\
                [defaults]\nlevels = [\"m\"]\ncodec = \"json\"\n\
                [caches.a]\n[caches.b]\ncodec = \"postcard\"\n\
                [caches.c]\ncodec = \"postcard\"\nlevels = [{ provider = \"m\", codec = \"json\", budget = \"2ms\", breaker = {} }]\n";
    let lines = essence(&toml(text).await.unwrap().explain());
    for line in [
        "a codec msgpack providers.m.level.codec",
        "b codec postcard caches.b.codec",
        "c codec json caches.c.levels[0].codec",
        "a budget 1ms providers.m.level.budget",
        "c budget 2ms caches.c.levels[0].budget",
        "a breaker off providers.m.level.breaker",
        "c breaker 0.5 of at least 5 calls within 10s; open for 1s caches.c.levels[0].breaker",
    ] {
        assert!(lines.contains(&line.to_owned()), "{line}: {lines:#?}");
    }
}

#[tokio::test]
async fn variables_override_and_add() {
    let file = "[providers.local]\nbackend = \"memory\"\nentries = 5\n\
                [caches.user-names]\nlevels = [{ provider = \"local\", ttl_cap = \"5s\" }]\n";
    let variables = [
        ("TRACED_CACHE__CACHES__USER_NAMES__POLICY__TTL", "30s"),
        ("TRACED_CACHE__CACHES__USER_NAMES__LEVELS__0__TTL_CAP", "9s"),
        ("TRACED_CACHE__CACHES__USER_NAMES__POLICY__LOADS", "3"),
        ("TRACED_CACHE__CACHES__USER_NAMES__POLICY__COMPLETE_IN_BACKGROUND", "false"),
        ("TRACED_CACHE__CACHES__USER_NAMES__POLICY__EARLY", "0.5"),
        ("TRACED_CACHE__PROVIDERS__LOCAL__ENTRIES", "77"),
        ("TRACED_CACHE__PROVIDERS__FAR__BACKEND", "memcached"),
        ("TRACED_CACHE__PROVIDERS__FAR__SERVERS", "memcached://127.0.0.1:1, memcached://127.0.0.1:2"),
        ("TRACED_CACHE__CACHES__OTHER__LEVELS", "local,far"),
        ("TRACED_CACHES__NOT__OURS", "1"),
    ];
    let caches = sealed().variables(variables).from_text(Format::Toml, file).await.unwrap();
    let explained = caches.explain();
    let of = |cache: usize| -> Vec<String> {
        let cache = &explained.caches[cache];
        let levels = cache.levels.iter().flat_map(|level| &level.settings);
        cache.settings.iter().chain(levels).map(|s| format!("{} {} {}", s.name, s.value, s.origin)).collect()
    };
    assert_eq!(explained.caches[1].name, "user-names");
    for line in [
        "policy.ttl 30s environment variable TRACED_CACHE__CACHES__USER_NAMES__POLICY__TTL",
        "ttl_cap 9s environment variable TRACED_CACHE__CACHES__USER_NAMES__LEVELS__0__TTL_CAP",
        "policy.loads 3 environment variable TRACED_CACHE__CACHES__USER_NAMES__POLICY__LOADS",
        "policy.complete_in_background false environment variable TRACED_CACHE__CACHES__USER_NAMES__POLICY__COMPLETE_IN_BACKGROUND",
        "policy.early 0.5 environment variable TRACED_CACHE__CACHES__USER_NAMES__POLICY__EARLY",
    ] {
        assert!(of(1).contains(&line.to_owned()), "{line}: {:#?}", of(1));
    }
    let levels: Vec<_> = explained.caches[0].levels.iter().map(|level| level.provider.as_str()).collect();
    assert_eq!(levels, ["local", "far"]);
    // Off, or under another name.
    let off = sealed().variables(variables).env_prefix(None).from_text(Format::Toml, file).await.unwrap();
    assert_eq!(off.names(), ["user-names"]);
    let ours =
        sealed().variables([("SHOP__CACHES__USER_NAMES__POLICY__TTL", "30s")]).env_prefix(Some("SHOP"));
    let ours = ours.from_text(Format::Toml, file).await.unwrap().explain();
    assert_eq!(ours.caches[0].settings[0].value, "30s");
}

#[tokio::test]
async fn a_wrong_variable_is_named() {
    let file = "[providers.local]\nbackend = \"memory\"\nentries = 5\n\
                [caches.a-b]\nlevels = [\"local\"]\n[caches.a_b]\nlevels = [\"local\"]\n";
    for (variable, value, expected) in [
        (
            "TRACED_CACHE__CACHES__X__POLCY__TTL",
            "5s",
            "environment variable TRACED_CACHE__CACHES__X__POLCY__TTL: caches.x.polcy: there is no such field; did you mean `policy`?",
        ),
        (
            "TRACED_CACHE__PROVIDERS__LOCAL__ENTRIES",
            "many",
            "environment variable TRACED_CACHE__PROVIDERS__LOCAL__ENTRIES: providers.local.entries = \"many\": write a whole number, 0 or above",
        ),
        // What only the backend finds wrong.
        (
            "TRACED_CACHE__PROVIDERS__LOCAL__ENTRIES",
            "0",
            "environment variable TRACED_CACHE__PROVIDERS__LOCAL__ENTRIES: providers.local.entries = 0: give it room for at least one entry",
        ),
        (
            "TRACED_CACHE__CACHES__A_B__SCHEMA",
            "5",
            "environment variable TRACED_CACHE__CACHES__A_B__SCHEMA: caches: the variable may mean `a-b` or `a_b`; set it in the file",
        ),
        (
            "TRACED_CACHE__PROVIDERS__LOCAL__BACKEND__X",
            "5",
            "environment variable TRACED_CACHE__PROVIDERS__LOCAL__BACKEND__X: providers.local.backend: the variable means a field of this, but in the file it is a single value; write a table there",
        ),
        (
            "TRACED_CACHE__CACHES__",
            "5",
            "environment variable TRACED_CACHE__CACHES__: caches: the variable's name has an empty part; put two underscores between parts, and none at the end",
        ),
        (
            "TRACED_CACHE__DEFAULTS__LEVELS__0__BUDGET",
            "5ms",
            "environment variable TRACED_CACHE__DEFAULTS__LEVELS__0__BUDGET: defaults.levels: write a list",
        ),
    ] {
        let error = sealed().variables([(variable, value)]).from_text(Format::Toml, file).await.unwrap_err();
        let shown = error.to_string();
        let shown = shown.replace(" = (a table)", "");
        assert_eq!(shown, expected);
    }
}

#[tokio::test]
async fn a_variable_of_very_many_parts_is_named() {
    let name = format!("TRACED_CACHE__{}", vec!["A"; 20_000].join("__"));
    let error = sealed().variables([(name.as_str(), "1")]).from_text(Format::Toml, "").await.unwrap_err();
    let expected = format!("environment variable {name}: its name has more than 64 parts");
    assert!(error.to_string().starts_with(&expected));
}

#[tokio::test]
async fn a_reference_to_a_file_without_end_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let text = |file: &str| format!("[providers.m]\nbackend = \"memory\"\nentries = \"${{file:{file}}}\"\n");
    let file = folder.path().join("cache.toml");
    let mut most = "7".to_owned() + &"\n".repeat((1 << 20) - 1);
    for fits in [true, false] {
        fs::write(folder.path().join("most"), &most).unwrap();
        fs::write(&file, text("most")).unwrap();
        let read = sealed().from_file(&file).await;
        assert_eq!(read.is_ok(), fits, "{read:?}");
        most.push('\n');
    }
    #[cfg(unix)]
    {
        fs::write(&file, text("/dev/zero")).unwrap();
        let error = sealed().from_file(&file).await.unwrap_err().to_string();
        assert!(
            error.ends_with("the file /dev/zero has more than 1 MiB; name one that holds the value only"),
            "{error}"
        );
    }
}

#[tokio::test]
async fn references_are_resolved_wherever_a_value_may_stand() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("entries"), "12\n").unwrap();
    let file = folder.path().join("cache.toml");
    let text = "[providers.local]\nbackend = \"memory\"\nentries = \"${file:entries}\"\n\
                [providers.far]\nbackend = \"memcached\"\nservers = \"${SERVERS}\"\n\
                [caches.a]\nlevels = [\"${WHICH:-local}\"]\n\
                policy = { ttl = \"${TTL}\", loads = \"${LOADS:-3}\", grace = \"${GRACE:-}1h\" }\n";
    fs::write(&file, text).unwrap();
    let variables = [("TTL", "9m"), ("SERVERS", "memcached://127.0.0.1:1,memcached://127.0.0.1:2")];
    let explained = sealed().variables(variables).from_file(&file).await.unwrap().explain();
    let settings = &explained.caches[0].settings;
    let value = |name: &str| settings.iter().find(|s| s.name == name).unwrap().value.clone();
    assert_eq!([value("policy.ttl"), value("policy.loads"), value("policy.grace")], ["9m", "3", "1h"]);
    assert_eq!(explained.caches[0].levels[0].provider, "local");
    assert_eq!(settings[0].origin, "cache.toml:9 caches.a.policy.ttl");
    // Two dollars are one.
    let kept = "[providers.local]\nbackend = \"memory\"\nentries = 1\n[caches.a]\nlevels = [\"local\"]\nbackplane = \"$${X}\"";
    let error = sealed().from_text(Format::Toml, kept).await.unwrap_err().to_string();
    assert!(error.contains("caches.a.backplane = \"${X}\": no provider has this name"), "{error}");
}

#[tokio::test]
async fn an_empty_file_has_no_caches() {
    for format in [Format::Toml, Format::Json, Format::Yaml] {
        for text in ["", "\u{feff}", "\n\n"] {
            let caches = sealed().from_text(format, text).await.unwrap();
            assert_eq!(caches.names().len(), 0);
        }
    }
    let caches = sealed().from_text(Format::Yaml, "# nothing\n---\ncaches:\n").await.unwrap();
    assert_eq!(caches.names().len(), 0);
}

#[tokio::test]
async fn yaml_repeats_by_alias_and_merge() {
    let text = "providers:\n  m: &m { backend: memory, entries: 5 }\n  n:\n    <<: *m\n    entries: 7\n\
                caches:\n  a: &a\n    levels: [m]\n    policy: { ttl: 0x3m }\n  b: *a\n";
    let error = sealed().from_text(Format::Yaml, text).await.unwrap_err().to_string();
    assert!(error.starts_with("(text):9: caches.a.policy.ttl = \"0x3m\": write a time"), "{error}");
    let caches = sealed().from_text(Format::Yaml, &text.replace("0x3m", "3m")).await.unwrap();
    assert_eq!(
        caches.explain().caches.iter().map(|c| c.settings[0].value.clone()).collect::<Vec<_>>(),
        ["3m", "3m"]
    );
    // A few lines that would be gigabytes.
    let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for n in 1..12 {
        let aliases = vec![format!("*a{}", n - 1); 9].join(", ");
        bomb += &format!("a{n}: &a{n} [{aliases}]\n");
    }
    let error = sealed().from_text(Format::Yaml, &bomb).await.unwrap_err().to_string();
    assert!(error.contains("too deep or too large") || error.contains("alias"), "{error}");
    let deep = format!("{}1{}", "[".repeat(5_000), "]".repeat(5_000));
    for (format, text) in [
        (Format::Yaml, format!("a: {deep}")),
        (Format::Json, format!("{{\"a\": {deep}}}")),
        (Format::Toml, format!("a = {deep}")),
    ] {
        assert!(sealed().from_text(format, &text).await.is_err());
    }
}

#[tokio::test]
async fn the_examples_are_right() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/config");
    let mut seen = 0;
    for file in fs::read_dir(&folder).unwrap() {
        let path = file.unwrap().path();
        if Format::of(&path).is_none() {
            continue;
        }
        seen += 1;
        let explained = Caches::builder().variables([("", ""); 0]).explain(&path).unwrap();
        let names: Vec<_> = explained.caches.iter().map(|cache| cache.name.as_str()).collect();
        assert_eq!(names, ["prices", "sessions", "users"], "{}", path.display());
    }
    assert!(seen >= 3);
}

/// Whatever is in it has a line, which is found without counting from the beginning each time.
#[test]
fn a_file_of_very_many_caches_is_read_in_a_moment() {
    const MANY: usize = 20_000;
    let sections: String = (0..MANY).map(|n| format!("[caches.c{n}]\nlevels = ['m']\n")).collect();
    let toml = format!("[providers.m]\nbackend = 'memory'\nentries = 5\n{sections}");
    let fields: Vec<_> = (0..MANY).map(|n| format!("\"c{n}\": {{\n\"levels\": [\"m\"]\n}}")).collect();
    let provider = "\"m\": {\"backend\": \"memory\", \"entries\": 5}";
    let json = format!("{{\"providers\": {{{provider}}}, \"caches\": {{{}}}}}", fields.join(",\n"));
    for (format, text) in [(Format::Toml, toml), (Format::Json, json)] {
        let names = ends_within(Duration::from_secs(30), move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(sealed().from_text(format, &text)).unwrap().names().len()
        });
        assert_eq!(names, MANY, "{format:?}");
    }
}
