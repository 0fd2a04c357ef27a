//! Each mistake gives one error, with file, line, field, value and fix.

use test_servers::{MemcachedServer, RedisServer};
use traced_cache::{Error, Memory, TracedCache, config::Format, with_causes};

use crate::kit::{mistake, sealed, toml};

const PROVIDERS: &str = "[providers.local]\nbackend = \"memory\"\nentries = 1000\n\n[providers.shared]\nbackend = \"redis\"\nurl = \"redis://127.0.0.1:1\"\n";

/// A cache on line 9 and below.
fn cache(text: &str) -> String {
    format!("{PROVIDERS}\n[caches.users]\n{text}\n")
}

#[tokio::test]
async fn k2_unknown_names_are_refused_with_the_nearest() {
    for (text, expected) in [
        (
            cache("levls = [\"local\"]"),
            "(text):10: caches.users.levls: there is no such field; did you mean `levels`?",
        ),
        (
            cache("levels = [\"local\"]\npolicy = { tll = \"5m\" }"),
            "(text):11: caches.users.policy.tll: there is no such field; did you mean `ttl`?",
        ),
        (
            cache("levels = [\"local\"]\nttl = \"5m\""),
            "(text):11: caches.users.ttl: there is no such field; it belongs to `policy`: `policy.ttl`",
        ),
        (
            cache("levels = [\"local\"]\nbudget = \"5ms\""),
            "(text):11: caches.users.budget: there is no such field; it belongs to a level: `levels = [{ provider = \"...\", budget = ... }]`",
        ),
        ("[cache.users]".to_owned(), "(text):1: cache: there is no such section; did you mean `caches`?"),
        (
            "[providers.x]\nbackend = \"rediss\"".to_owned(),
            "(text):2: providers.x.backend = \"rediss\": there is no such backend; did you mean `redis`?",
        ),
        (
            "[providers.x]\nbackend = \"dynamo\"".to_owned(),
            "(text):2: providers.x.backend = \"dynamo\": there is no such backend; use one of `memcached`, `memory` or `redis`",
        ),
        (
            "[providers.x]\nentries = 5".to_owned(),
            "(text):1: providers.x: `backend` is missing; use one of `memcached`, `memory` or `redis`",
        ),
        (
            "[providers.x]\nbackend = \"redis\"\nurl = \"redis://h\"\npasswort = \"hunter2\"".to_owned(),
            "(text):4: providers.x.passwort: there is no such field; did you mean `password`?",
        ),
        (
            cache("levels = [\"locl\"]"),
            "(text):10: caches.users.levels[0] = \"locl\": no provider has this name; did you mean `local`?",
        ),
        (
            cache("levels = [{ provider = \"elsewhere\" }]"),
            "(text):10: caches.users.levels[0] = \"elsewhere\": no provider has this name; use one of `local` or `shared`",
        ),
        (
            "[caches.users]\nlevels = [\"local\"]".to_owned(),
            "(text):2: caches.users.levels[0] = \"local\": no provider has this name; define it: `[providers.local]`",
        ),
        (
            format!(
                "{PROVIDERS}\n[defaults]\nlevels = [\"shred\"]\n{}",
                "[caches.users]\nlevels = [\"local\"]"
            ),
            "(text):10: defaults.levels[0] = \"shred\": no provider has this name; did you mean `shared`?",
        ),
        (
            cache("levels = [\"local\"]\nbackplane = \"redis\""),
            "(text):11: caches.users.backplane = \"redis\": no provider has this name; use one of `local` or `shared`",
        ),
        (
            cache("levels = [\"local\"]\nbackplane = \"local\""),
            "(text):11: caches.users.backplane = \"local\": this backend carries no messages between nodes; name another provider, or \"off\"",
        ),
        (
            cache("levels = [\"shared\"]\ncodec = \"jsn\""),
            "(text):11: caches.users.codec = \"jsn\": did you mean `json`?",
        ),
        (
            cache("levels = [\"shared\"]\ncompression = \"gzip\""),
            "(text):11: caches.users.compression = \"gzip\": use one of `off`, `lz4` or `zstd`",
        ),
        (
            cache("levels = [\"shared\"]\nencryption = \"main\""),
            "(text):11: caches.users.encryption = \"main\": no keyring has this name; define it: `[keyrings.main]`",
        ),
        (
            "[providers.off]\nbackend = \"memory\"\nentries = 1".to_owned(),
            "(text):1: providers.off: `off` stands for none; give it another name",
        ),
    ] {
        assert_eq!(mistake(&text).await, expected, "{text}");
    }
}

#[tokio::test]
async fn times_and_sizes_say_their_unit() {
    for (text, expected) in [
        (
            cache("levels = [\"local\"]\npolicy.ttl = 30"),
            "(text):11: caches.users.policy.ttl = 30: a time needs its unit: \"30ms\", \"30s\" or \"30m\"",
        ),
        (
            cache("levels = [\"local\"]\npolicy.ttl = 0"),
            "(text):11: caches.users.policy.ttl = 0: a time needs its unit: \"30s\", say, or \"0s\" where it can be none",
        ),
        (
            cache("levels = [\"local\"]\npolicy.ttl = \"0.0\""),
            "(text):11: caches.users.policy.ttl = \"0.0\": a time needs its unit: \"30s\", say, or \"0s\" where it can be none",
        ),
        (
            "[providers.local]\nbackend = \"memory\"\nbytes = 0".to_owned(),
            "(text):3: providers.local.bytes = 0: a size needs its unit: \"64KiB\", say, or \"0B\" where it can be none",
        ),
        (
            "[providers.r]\nbackend = \"redis\"\nurl = \"redis://h\"\nkey_prefix = \"a: {\"".to_owned(),
            "(text):4: providers.r.key_prefix = \"a: {\": leave out braces, which name the cluster slot, and stay within 256 bytes",
        ),
        (
            cache("levels = [\"local\"]\npolicy.ttl = \"30\""),
            "(text):11: caches.users.policy.ttl = \"30\": a time needs its unit: \"30ms\", \"30s\" or \"30m\"",
        ),
        (
            cache("levels = [\"local\"]\npolicy.ttl = 1.5"),
            "(text):11: caches.users.policy.ttl = 1.5: a time needs its unit: \"1.5ms\", \"1.5s\" or \"1.5m\"",
        ),
        (
            cache("levels = [\"local\"]\npolicy.ttl = \"5M\""),
            "(text):11: caches.users.policy.ttl = \"5M\": `M` stands for months: write `m` for minutes, or \"months\"",
        ),
        (
            cache("levels = [\"local\"]\npolicy.ttl = 2026-11-29"),
            "(text):11: caches.users.policy.ttl = \"2026-11-29\": write a time with its unit, such as \"250ms\", \"30s\" or \"1h30m\", or \"forever\"",
        ),
        (
            cache("levels = [\"local\"]\npolicy.ttl = \"5 parsecs\""),
            "(text):11: caches.users.policy.ttl = \"5 parsecs\": write a time with its unit, such as \"250ms\", \"30s\" or \"1h30m\", or \"forever\"",
        ),
        (
            cache("levels = [\"local\"]\npolicy.grace = \"off\""),
            "(text):11: caches.users.policy.grace = \"off\": write a time with its unit, such as \"250ms\", \"30s\" or \"1h30m\"; `off` is none, and where a time can be none it is \"0s\"",
        ),
        (
            cache("levels = [\"local\"]\npolicy.jitter = \"-5s\""),
            "(text):11: caches.users.policy.jitter = \"-5s\": write a time with its unit, such as \"250ms\", \"30s\" or \"1h30m\"",
        ),
        (
            cache("levels = [\"local\"]\npolicy.ttl = \"99999999999999999999years\""),
            "(text):11: caches.users.policy.ttl = \"99999999999999999999years\": the time is too long; write a shorter one, or \"forever\"",
        ),
        (
            cache("levels = [\"local\"]\npolicy.ttl = [\"5m\"]"),
            "(text):11: caches.users.policy.ttl = (a list): write a time with its unit, such as \"250ms\", \"30s\" or \"1h30m\"",
        ),
        (
            "[providers.local]\nbackend = \"memory\"\nbytes = 1000000".to_owned(),
            "(text):3: providers.local.bytes = 1000000: a size needs its unit: \"1000000B\", \"1000000KiB\" or \"1000000MiB\"",
        ),
        (
            "[providers.local]\nbackend = \"memory\"\nbytes = \"99999999EiB\"".to_owned(),
            "(text):3: providers.local.bytes = \"99999999EiB\": the size is too large; write a smaller one",
        ),
        (
            "[providers.local]\nbackend = \"memory\"\nbytes = \"64 megs\"".to_owned(),
            "(text):3: providers.local.bytes = \"64 megs\": write a size with its unit, such as \"512B\", \"64KiB\" or \"1GB\"",
        ),
        (
            "[providers.local]\nbackend = \"memory\"\nentries = \"many\"".to_owned(),
            "(text):3: providers.local.entries = \"many\": write a whole number, 0 or above",
        ),
        (
            "[providers.local]\nbackend = \"memory\"\nentries = -5".to_owned(),
            "(text):3: providers.local.entries = -5: write a whole number, 0 or above",
        ),
        (
            PROVIDERS.replace("entries = 1000", "entries = 1e4"),
            "(text):3: providers.local.entries = 10000.0: write a whole number, 0 or above",
        ),
        // No number that a unit makes a time of.
        (
            cache("levels = [\"local\"]\npolicy.ttl = \"inf\""),
            "(text):11: caches.users.policy.ttl = \"inf\": write a time with its unit, such as \"250ms\", \"30s\" or \"1h30m\", or \"forever\"",
        ),
        (
            cache("levels = [\"local\"]\npolicy.ttl = \"1e3\""),
            "(text):11: caches.users.policy.ttl = \"1e3\": write a time with its unit, such as \"250ms\", \"30s\" or \"1h30m\", or \"forever\"",
        ),
        (
            cache("levels = [\"local\"]\npolicy.ttl = nan"),
            "(text):11: caches.users.policy.ttl = NaN: write a time with its unit, such as \"250ms\", \"30s\" or \"1h30m\"",
        ),
        (
            cache("levels = [\"local\"]\npolicy.ttl = -5"),
            "(text):11: caches.users.policy.ttl = -5: write a time with its unit, such as \"250ms\", \"30s\" or \"1h30m\"",
        ),
        (
            "[providers.local]\nbackend = \"memory\"\nbytes = -1.5".to_owned(),
            "(text):3: providers.local.bytes = -1.5: write a size with its unit, such as \"512B\", \"64KiB\" or \"1GB\"",
        ),
        (
            cache("levels = [{ provider = \"shared\", breaker = { min_calls = 4294967296 } }]"),
            "(text):10: caches.users.levels[0].breaker.min_calls = 4294967296: write a whole number, 0 to 4294967295",
        ),
        (
            "[providers.r]\nbackend = \"redis\"\nurl = \"redis://h\"\ndatabase = 99999999999".to_owned(),
            "(text):4: providers.r.database = 99999999999: write a whole number, 0 to 4294967295",
        ),
        (
            cache("levels = [\"local\"]\npolicy.complete_in_background = \"yes\""),
            "(text):11: caches.users.policy.complete_in_background = \"yes\": write true or false",
        ),
        (
            cache("levels = [\"local\"]\npolicy.early = \"soon\""),
            "(text):11: caches.users.policy.early = \"soon\": write \"off\", a fraction of the ttl such as 0.8, or { xfetch = 1.0 }",
        ),
        (
            cache("levels = [\"local\"]\npolicy.loads = \"some\""),
            "(text):11: caches.users.policy.loads = \"some\": write a whole number of 1 or above, or \"off\"",
        ),
        (
            cache("levels = \"local\""),
            "(text):10: caches.users.levels = \"local\": write a list, in brackets, also of one",
        ),
        (
            cache("levels = [5]"),
            "(text):10: caches.users.levels[0] = 5: write the name of a provider, or a table with one",
        ),
        (
            cache("levels = [{ ttl_cap = \"5s\" }]"),
            "(text):10: caches.users.levels[0]: `provider` is missing; add it",
        ),
    ] {
        assert_eq!(mistake(&text).await, expected, "{text}");
    }
}

#[tokio::test]
async fn contradictions_are_found_where_the_file_says_them() {
    for (text, expected) in [
        (
            cache("levels = [\"local\"]\npolicy = { ttl = \"5m\", grace = \"1m\" }"),
            "(text):11: caches.users.policy.grace = 60s: below policy.ttl = 300s, although it is the maximum age counted from birth; raise it above the ttl, or leave it out",
        ),
        // Inherited: the line of the defaults.
        (
            format!(
                "[defaults.policy]\ngrace = \"1m\"\n{}",
                cache("levels = [\"local\"]\npolicy.ttl = \"5m\"")
            ),
            "(text):2: defaults.policy.grace = 60s: below policy.ttl = 300s, although it is the maximum age counted from birth; raise it above the ttl, or leave it out (inherited by caches.users)",
        ),
        (
            cache("levels = [\"local\", { provider = \"shared\", ttl_cap = \"1h\" }]"),
            "(text):10: caches.users.levels[1].ttl_cap = 3600s: above all that the policy lets live (ttl 60s, grace 0s), so it caps nothing; lower it or leave it out",
        ),
        // Of many caches one has a shorter life than what they all inherit allows for.
        (
            format!(
                "[defaults]\nlevels = [{{ provider = \"local\", ttl_cap = \"30s\" }}, \"shared\"]\n{}",
                cache("policy.ttl = \"5s\"")
            ),
            "(text):2: defaults.levels[0].ttl_cap = 30s: above all that the policy lets live (ttl 5s, grace 0s), so it caps nothing; lower it or leave it out (inherited by caches.users)",
        ),
        (
            cache("levels = [\"local\", { provider = \"shared\", breaker = { failure_rate = 2.0 } }]"),
            "(text):10: caches.users.levels[1].breaker.failure_rate = 2: a share of calls, above 0 up to 1",
        ),
        // The field of a table, on its line; inherited, too.
        (
            cache("levels = [\"shared\"]").replace(
                "redis://127.0.0.1:1\"",
                "redis://127.0.0.1:1\"\n[providers.shared.level.breaker]\nopen_for = \"1s\"\nmin_calls = 0",
            ),
            "(text):10: providers.shared.level.breaker.min_calls = 0: must be above zero (inherited by caches.users)",
        ),
        (
            cache("levels = [{ provider = \"shared\", breaker = { failure_rate = nan } }]"),
            "(text):10: caches.users.levels[0].breaker.failure_rate = NaN: a share of calls, above 0 up to 1",
        ),
        (
            cache("levels = [\"local\"]\npolicy.revalidate = \"5m\""),
            "(text):11: caches.users.policy.revalidate = 300s: reaches past policy.grace = 0s; raise grace to at least ttl + revalidate = 360s",
        ),
        // It would be believed to do something.
        (
            cache("levels = [{ provider = \"shared\", compression = { algorithm = \"lz4\", level = 3 } }]"),
            "(text):10: caches.users.levels[0].compression = (a table): `level = 3` is of zstd; leave it out, or write `algorithm = \"zstd\"`",
        ),
        (
            cache("levels = [\"local\"]\npolicy = { ttl = \"5m\", early = { xfetch = -1 } }"),
            "(text):11: caches.users.policy.early.xfetch = -1: a finite number, 0 or above; 1 is usual",
        ),
        (
            format!("[defaults.policy.early]\nxfetch = -1\n{}", cache("levels = [\"local\"]")),
            "(text):2: defaults.policy.early.xfetch = -1: a finite number, 0 or above; 1 is usual (inherited by caches.users)",
        ),
        (
            cache("levels = [{ provider = \"local\", compression = \"lz4\" }]"),
            "(text):10: caches.users.levels[0].compression = set: this level keeps objects, not bytes; leave it out",
        ),
        (
            cache("levels = []"),
            "(text):10: caches.users.levels = []: a cache needs at least one level; name a provider",
        ),
        (
            cache("levels = [\"shared\", \"shared\"]"),
            "(text):10: caches.users.levels[1] = \"shared\": levels[0] is on this provider already, and both would use the same keys; leave one of them out",
        ),
        // Inherited, and as a table.
        (
            format!(
                "[defaults]\nlevels = [\"local\", \"shared\", {{ provider = \"local\", ttl_cap = \"5s\" }}]\n{}",
                cache("")
            ),
            "(text):2: defaults.levels[2] = \"local\": levels[0] is on this provider already, and both would use the same keys; leave one of them out",
        ),
        (
            cache(""),
            "(text):9: caches.users: `levels` is missing, here and in `defaults`; name at least one provider: `levels = [\"...\"]`",
        ),
        (
            format!("{PROVIDERS}\n[caches.\"no spaces\"]\nlevels = [\"local\"]"),
            "(text):9: caches.\"no spaces\": \"no spaces\": 1 to 100 ASCII letters, digits, `.`, `_`, `-` or `/`; it is part of remote keys and of metrics",
        ),
        (
            "[providers.local]\nbackend = \"memory\"\nentries = 0".to_owned(),
            "(text):3: providers.local.entries = 0: give it room for at least one entry",
        ),
        (
            "[providers.local]\nbackend = \"memory\"".to_owned(),
            "(text):1: providers.local: say how much it may hold: `entries = 10000` or `bytes = \"64MiB\"`",
        ),
        (
            "[providers.local]\nbackend = \"memory\"\nentries = 5\nbytes = \"1MiB\"".to_owned(),
            "(text):3: providers.local.entries = 5: there is `bytes` as well; keep one of the two",
        ),
    ] {
        assert_eq!(mistake(&text).await, expected, "{text}");
    }
}

#[tokio::test]
async fn k5_a_name_is_there_once() {
    let toml_twice = mistake("[caches.users]\nlevels = []\n[caches.users]\n").await;
    assert_eq!(toml_twice, "(text):3: caches.users: it is there already in line 1; keep one");
    let levels =
        "[caches.users]\nlevels = [{ provider = \"local\" }, { ttl_cap = \"1s\", \"ttl_cap\" = \"2s\" }]";
    let expected = "(text):2: caches.users.levels[1].ttl_cap: it is there already in line 2; keep one";
    assert_eq!(mistake(levels).await, expected);
    let twice = "[providers.shared]\nurl = \"redis://a\"\n[providers.other]\nurl = \"redis://:twice@b\"\nurl = \"redis://:hunter2@c\"\n";
    let expected = "(text):5: providers.other.url: it is there already in line 4; keep one";
    assert_eq!(mistake(twice).await, expected, "that of another provider is not meant");
    for (format, text, expected) in [
        (
            Format::Json,
            "{\n  \"caches\": {\n    \"users\": {},\n    \"users\": {}\n  }\n}",
            "(text):4: caches.users: it is there already in line 3; keep one",
        ),
        (
            Format::Yaml,
            "caches:\n  users: {}\n  users: {}\n",
            "(text):3: caches.users: it is there already in line 2; keep one",
        ),
        (
            Format::Json,
            "{\"caches\": {\"users\": {\"levels\": [\"a\",\n{\"budget\": 1,\n\"budget\": 2}]}}}",
            "(text):3: caches.users.levels[1].budget: it is there already in line 2; keep one",
        ),
        (
            Format::Yaml,
            "caches:\n  users:\n    levels:\n    - local\n    - provider: shared\n      provider: shared\n",
            "(text):6: caches.users.levels[1].provider: it is there already in line 5; keep one",
        ),
    ] {
        let error = sealed().from_text(format, text).await.unwrap_err().to_string();
        assert_eq!(error, expected);
    }
}

#[tokio::test]
async fn k5_one_name_is_one_cache_of_one_type() {
    let caches = toml(&cache("levels = [\"local\"]")).await.unwrap();
    let users = caches.cache::<String>("users").unwrap();
    assert!(users.set(1, "Ann".to_owned()).await.unwrap().is_confirmed());
    let again = caches.clone().cache::<String>("users").unwrap();
    assert_eq!(again.get(1).await.unwrap().as_deref(), Some(&"Ann".to_owned()));
    let error = caches.cache::<u64>("users").unwrap_err();
    assert_eq!(
        error.to_string(),
        "caches.users = u64: it has been asked for as alloc::string::String; use one type for a name, or two caches"
    );
    let error = caches.cache::<u64>("user").unwrap_err();
    assert_eq!(error.to_string(), "name = \"user\": (text) has no such cache; did you mean `users`?");
    let none = toml("[providers.local]\nbackend = \"memory\"\nentries = 5").await.unwrap();
    assert_eq!(
        none.cache::<u64>("user").unwrap_err().to_string(),
        "name = \"user\": (text) has no caches; define it: `[caches.user]`"
    );

    // By hand.
    let own = |name: &str| TracedCache::<u64>::builder(name).level(Memory::entries(5)).build().unwrap();
    assert_eq!(
        caches.register(&own("users")).unwrap_err().to_string(),
        "name = \"users\": there is a cache of this name already; give this one another"
    );
    caches.register(&own("own")).unwrap();
    assert!(caches.register(&own("own")).is_err());
    assert_eq!(caches.cache::<u64>("own").unwrap().name(), "own");
    assert!(caches.cache::<String>("own").is_err());
}

#[tokio::test]
async fn k7_what_a_reference_stands_for_must_be_there_and_never_shows() {
    let redis = |fields: &str| format!("[providers.r]\nbackend = \"redis\"\n{fields}\n");
    for (text, expected) in [
        (
            redis("url = \"redis://h\"\npassword = \"${REDIS_PASSWORD}\""),
            "(text):4: providers.r.password = \"${REDIS_PASSWORD}\": the environment variable REDIS_PASSWORD is not set; set it, or write ${REDIS_PASSWORD:-otherwise}",
        ),
        (
            redis("url = \"redis://h\"\npassword = \"${EMPTY}\""),
            "(text):4: providers.r.password = \"${EMPTY}\": the environment variable EMPTY is empty; set it, or write ${EMPTY:-}",
        ),
        (
            redis("url = \"redis://h\"\npassword = \"${file:/nowhere/secret}\""),
            "(text):4: providers.r.password = \"${file:/nowhere/secret}\": cannot read the file /nowhere/secret: entity not found; check the path and who may read it",
        ),
        (
            redis("url = \"redis://h\"\npassword = \"${PASS\""),
            "(text):4: providers.r.password = \"${...\": a reference has no end; write ${NAME}, or $${ for these two characters",
        ),
        (
            redis("url = \"redis://${A:-${B:-x}}\""),
            "(text):3: providers.r.url = \"...${A:-...}...\": a reference stands in another one; give that one a plain text in its place",
        ),
        (
            redis("url = \"redis://h\"\npassword = \"${no-name}\""),
            "(text):4: providers.r.password = \"${no-name}\": a reference is ${NAME}, ${NAME:-otherwise} or ${file:path}",
        ),
        (redis("url = \"redis://h\"\npassword = 12345"), "(text):4: providers.r.password = ***: write a text, in quotes"),
        (
            redis("url = \"redis://:hunter2@h:port\""),
            "(text):3: providers.r.url = redis://***: invalid port number; use redis",
        ),
        (redis("url = 5"), "(text):3: providers.r.url = ***: write a text, in quotes"),
        (redis(""), "(text):1: providers.r: `url` is missing; add it"),
        (
            "[providers.m]\nbackend = \"memcached\"\nservers = [\"memcached://a\", \"memcached://user:hunter2@b\"]".to_owned(),
            "(text):3: providers.m.servers = \"memcached://***@b\": user and password stand apart: `login`, or `username` and `password` in a file; write memcached://host:port",
        ),
        (
            "[providers.m]\nbackend = \"memcached\"\nurl = \"memcached://h\"\nusername = \"u\"".to_owned(),
            "(text):4: providers.m.username = set: set `password` as well",
        ),
        (
            "[keyrings.main]\nkeys = [{ id = 1, secret = \"hunter2\" }]".to_owned(),
            "(text):2: keyrings.main.keys[0].secret = ***: a key is 32 bytes, as 64 hexadecimal digits or in base64 (`openssl rand -base64 32`)",
        ),
        (
            "[keyrings.main]\nkeys = []".to_owned(),
            "(text):2: keyrings.main.keys: there is no key; add one",
        ),
        (
            format!("[keyrings.main]\nkeys = [{{ id = 1, secret = \"{0}\" }}, {{ id = 1, secret = \"{0}\" }}]", "5a".repeat(32)),
            "(text):2: keyrings.main.keys[1].id = 1: two keys have this id; give each its own",
        ),
    ] {
        let builder = sealed().variables([("EMPTY", "")]);
        let error = builder.from_text(Format::Toml, &text).await.unwrap_err();
        let shown = error.to_string();
        // Which forms of URL there are is the backend's to say.
        let found = if expected.ends_with("use redis") { &shown[..expected.len()] } else { &shown };
        assert_eq!(found, expected, "{text}");
        assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
    }
    // A reference that was resolved shows as it was written, not as what it stands for.
    let builder = sealed().variables([("TTL", "hunter2")]);
    let text = cache("levels = [\"local\"]\npolicy.ttl = \"${TTL}\"");
    let error = builder.from_text(Format::Toml, &text).await.unwrap_err().to_string();
    assert!(error.starts_with("(text):11: caches.users.policy.ttl = \"${TTL}\": write a time"), "{error}");
}

/// Before anybody knows what a field is, and where a secret stands in a place that is not its own.
#[tokio::test]
async fn k7_of_what_a_reference_stands_in_and_for_nothing_shows() {
    let redis = |fields: &str| format!("[providers.r]\nbackend = \"redis\"\nurl = \"rediss://h\"\n{fields}");
    let pem =
        "-----BEGIN PRIVATE KEY-----\nProc-Type: 4,hunter2\nhunter2: hunter2\n-----END PRIVATE KEY-----";
    for (text, expected) in [
        (
            "[providers.r]\nbackend = \"redis\"\nurl = \"redis://shop:hunter2@${REDIS_HOST}:6379\""
                .to_owned(),
            "(text):3: providers.r.url = \"...${REDIS_HOST}...\": the environment variable REDIS_HOST is not set",
        ),
        (
            redis("key_prefix = \"redis://shop:hunter2@h/{0}\""),
            "(text):4: providers.r.key_prefix = ***: leave out braces, which name the cluster slot, and stay within 256 bytes",
        ),
        (
            "[providers.m]\nbackend = \"memcached\"\nurl = \"memcached://h\"\nkey_prefix = \"\\nu:hunter2@h\"".to_owned(),
            "(text):4: providers.m.key_prefix = ***: use at most 100 bytes without spaces and control characters",
        ),
        (
            redis("password = \"hunter2${oops\""),
            "(text):4: providers.r.password = \"...${...\": a reference has no end",
        ),
        (
            redis("password = \"${:-hunter2}\""),
            "(text):4: providers.r.password = \"${:-...}\": a reference is",
        ),
        (
            redis("client_certificate = \"none.pem\"\nclient_key = \"hunter2${PEM}\"\nca_file = \"${PEM}\""),
            "(text):6: providers.r.ca_file = \"${PEM}\": ",
        ),
        (
            "[providers.m]\nbackend = \"memcached\"\nservers = \"memcached://user:hunter2@h\"".to_owned(),
            "(text):3: providers.m.servers = ***: write a list",
        ),
        (
            "[providers.m]\nbackend = \"memcached\"\nurl = \"memcached://h\"\nretiring = { hunter2 = 1 }"
                .to_owned(),
            "(text):4: providers.m.retiring = ***: write a list",
        ),
        (
            "[keyrings.main]\nkeys = [\"hunter2hunter2\"]".to_owned(),
            "(text):2: keyrings.main.keys[0] = ***: write a table",
        ),
        (
            "[keyrings.main]\nkeys = \"hunter2\"".to_owned(),
            "(text):2: keyrings.main.keys = ***: write a list",
        ),
        ("[keyrings]\nmain = \"hunter2\"".to_owned(), "(text):2: keyrings.main = ***: write a table"),
        ("keyrings = \"hunter2\"".to_owned(), "(text):1: keyrings: write a table"),
        ("[providers]\nr = \"redis://:hunter2@h\"".to_owned(), "(text):2: providers.r: write a table"),
        (
            cache("levels = [\"redis://:hunter2@h\"]"),
            "(text):10: caches.users.levels[0] = ***: no provider has this name; ",
        ),
        (cache("levels = [\"${PEM}\"]"), "(text):10: caches.users.levels[0] = \"${PEM}\": no provider"),
        (
            cache("levels = [\"local\"]\nencryption = \"aHVudGVyMmh1bnRlcjJodW50ZXIyaHVudGVyMmh1bnQ=\""),
            "(text):11: caches.users.encryption = ***: no keyring has this name; ",
        ),
        (
            cache("levels = [\"local\"]\npolicy.ttl = \"redis://:hunter2@h\""),
            "(text):11: caches.users.policy.ttl = ***: write a time",
        ),
    ] {
        let error = sealed().variables([("PEM", pem)]).from_text(Format::Toml, &text).await.unwrap_err();
        assert!(error.to_string().starts_with(expected), "{error}");
        let shown = format!("{error:?} {error}");
        assert!(!shown.contains("hunter2") && !shown.contains("aHVudGVy"), "{shown}");
    }
    let variables = [("TRACED_CACHE__PROVIDERS__R__PASSWORD", "hunter2${x")];
    let error = sealed().variables(variables).from_text(Format::Toml, &redis("")).await.unwrap_err();
    assert!(!format!("{error:?} {error}").contains("hunter2"), "{error:?}");
}

#[tokio::test]
async fn k7_a_registry_shows_no_secret() {
    let builder = sealed().variables([("PASSWORD", "hunter2")]);
    let text = "[providers.r]\nbackend = \"redis\"\nurl = \"redis://zoe-ops:hunter2@127.0.0.1:1\"\npassword = \"${PASSWORD}\"\n\
                [keyrings.k]\nkeys = [{ id = 1, secret = \"5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a5a\" }]\n\
                [caches.users]\nlevels = [\"r\"]\nencryption = \"k\"";
    let shown = format!("{builder:?}");
    let caches = builder.from_text(Format::Toml, text).await.unwrap();
    let shown =
        format!("{shown} {caches:?} {:?} {:?}", caches.cache::<u64>("users").unwrap(), caches.ping().await);
    for secret in ["hunter2", "zoe-ops", "5a5a", "90, 90"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

/// Whatever is broken in a text, its error holds no piece of it: that may be a password.
#[tokio::test]
async fn k7_broken_texts_are_not_quoted() {
    for (format, texts) in [
        (
            Format::Toml,
            &[
                "password = hunter2",
                "password = \"hunter2",
                "hunter2",
                "[hunter2",
                "password = \"a\" hunter2",
                "password \"hunter2\"",
                "a = 'hunter2\n'",
                "a = \"hunter2\\q\"",
                "a = 1979-hunter2",
                "a = 1979-05-27",
                "a = 999999999999999999999999999999999999999999",
            ][..],
        ),
        (
            Format::Json,
            &[
                "{\"password\": hunter2}",
                "{\"password\": \"hunter2}",
                "hunter2",
                "{\"a\": \"hunter2\\q\"}",
                "{\"hunter2\" 5}",
                "{} hunter2",
                "{\"a\": 1e999}",
                "[\"hunter2\"]",
                "\"hunter2\"",
            ],
        ),
        (
            Format::Yaml,
            &[
                "password: \"hunter2",
                "password: *hunter2",
                "password: @hunter2",
                "- hunter2\nb: 1",
                "a: {hunter2",
                "a: !hunter2! 5",
                "%hunter2",
                "hunter2",
                "a: 1\n---\nb: hunter2",
                "? [hunter2]\n: 5",
                "a: [hunter2\nb: ]]",
                "a: \"\\qhunter2\"",
                "a: &x [*x]",
                "<<: hunter2",
            ],
        ),
    ] {
        for text in texts {
            let error = match sealed().from_text(format, text).await {
                Err(error) => error,
                Ok(caches) => panic!("{text} is {caches:?}"),
            };
            assert!(!format!("{error} {error:?}").contains("hunter2"), "{text}: {error}");
            assert!(error.to_string().starts_with("(text):"), "{text}: {error}");
        }
    }
}

/// What is wrong with a text of JSON, on its own line however deep it is.
#[tokio::test]
async fn texts_of_json_that_stand_for_no_characters_are_named() {
    for (text, expected) in [
        (
            "{\n  \"caches\": {\n    \"a\": { \"levels\": [\"\\ud800\"] }\n  }\n}",
            "(text):3: unexpected end of hex escape",
        ),
        ("{\n  \"caches\": {\n    \"\\ud800\": {}\n  }\n}", "(text):3: unexpected end of hex escape"),
        ("{\n  \"a\": 1e999\n}", "(text):2: the number is too large"),
    ] {
        let error = sealed().from_text(Format::Json, text).await.unwrap_err().to_string();
        assert_eq!(error, expected, "{text}");
    }
}

#[tokio::test]
async fn a_file_that_cannot_be_read_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("cache.toml");
    let error = sealed().from_file(&missing).await.unwrap_err().to_string();
    assert_eq!(
        error,
        format!(
            "file = {}: cannot be read (entity not found); check the path and who may read it",
            missing.display()
        )
    );
    let error = sealed().from_file("cache.ini").await.unwrap_err().to_string();
    assert_eq!(error, "file = cache.ini: name it `.toml`, `.json`, `.yaml` or `.yml`");
    std::fs::write(&missing, "[caches.users]\nlevls = 5\n").unwrap();
    let error = sealed().from_file(&missing).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}:2: caches.users.levls", missing.display())), "{error}");
    let taken = sealed()
        .backend("redis", |_: std::collections::BTreeMap<String, String>| Ok::<_, Error>(Memory::entries(5)));
    let error = taken.from_text(Format::Toml, "").await.unwrap_err().to_string();
    assert_eq!(error, "backend = redis: there is a backend of this name already; give it another");
}

/// What only a server can tell, for a provider that must be there.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_are_not_what_the_file_says_are_named() {
    let Some(server) = RedisServer::builder().password("hunter2").start() else { return };
    let Some(open) = RedisServer::start() else { return };
    let Some(memcached) = MemcachedServer::start() else { return };
    let port = server.port();
    for (url, says) in [
        (format!("redis://:hunter3@127.0.0.1:{port}"), ".password = ***: Redis at 127.0.0.1:"),
        (format!("redis://127.0.0.1:{port}"), ".password = (none): Redis at 127.0.0.1:"),
        (
            "redis+sentinel://:hunter2@127.0.0.1:1,127.0.0.1:2/mymaster".to_owned(),
            "providers.shared.url = redis+sentinel://***/mymaster: no sentinel says where the master is: 127.0.0.1:1 (Connection refused",
        ),
        (format!("redis+sentinel://127.0.0.1:{}/mymaster", open.port()), "is that a sentinel?"),
        (
            format!("redis+cluster://127.0.0.1:{}", open.port()),
            "is no node of a cluster: use redis://host:port",
        ),
        (format!("rediss://127.0.0.1:{}", open.port()), "is TLS on at that port?"),
        (format!("redis://127.0.0.1:{}/99", open.port()), "database = 99: "),
        (format!("redis://127.0.0.1:{}", memcached.port()), " is no Redis: check host and port"),
        (format!("memcached://127.0.0.1:{}", open.port()), "; is that memcached 1.6.13 or later?"),
    ] {
        let backend = if url.starts_with("redis") { "redis" } else { "memcached" };
        let text = format!("[providers.shared]\nbackend = \"{backend}\"\nurl = \"{url}\"\nrequired = true\n");
        let error = toml(&text).await.expect_err(&url);
        let shown = error.to_string();
        let whole = shown.starts_with("(text):3: providers.shared: it is required and cannot be used: ");
        assert!(whole || shown.starts_with("(text):3: providers.shared."), "{shown}");
        assert!(shown.contains(says), "{shown}");
        assert!(!format!("{error:?}").contains("hunter"), "{error:?}");
    }
}

/// Its causes are told to people as well, in one line.
#[tokio::test]
async fn a_password_from_elsewhere_that_is_wrong_is_named_once() {
    let Some(server) = RedisServer::builder().password("hunter2").start() else { return };
    let text = format!(
        "[providers.shared]\nbackend = \"redis\"\nurl = \"{}\"\npassword = \"${{PW}}\"\nrequired = true\n",
        server.url()
    );
    let wrong = sealed().variables([("PW", "hunter3")]);
    let error = with_causes(&wrong.from_text(Format::Toml, &text).await.unwrap_err());
    let says =
        format!("(text):4: providers.shared.password = ***: Redis at {} answered WRONGPASS", server.addr());
    assert!(error.starts_with(&says), "{error}");
    assert_eq!(error.matches("WRONGPASS").count(), 1, "{error}");
    assert!(!error.contains("hunter"), "{error}");
}

/// Each in a line of its own, in the order of the file; not what is missing only because of another mistake.
#[tokio::test]
async fn k5_all_mistakes_are_told_at_once() {
    let text = "\
[defaults]
tags = 5
policy.ttl = \"ten\"

[providers.local]
backend = \"memory\"
entries = 0

[providers.far]
backend = \"rediss\"
url = \"redis://:hunter2@h\"

[keyrings.main]
keys = [{ id = 1, secret = \"hunter2\" }]

[caches.users]
levls = [\"local\"]
policy = { ttl = \"5m\", grace = \"1m\" }

[caches.orders]
levels = [\"local\", { provider = \"far\", encryption = \"main\" }]
policy.tll = \"5m\"
backplane = \"fra\"

[caches.names]
levels = [\"lokal\", \"fahr\"]

[caches.sessions]
levels = [\"local\"]
policy = { ttl = \"5m\", grace = \"1m\" }
";
    let told = mistake(text).await;
    let starts: Vec<_> = told.lines().map(|line| line.split(' ').nth(1).unwrap()).collect();
    assert_eq!(
        starts,
        [
            "defaults.tags",
            "defaults.policy.ttl",
            "providers.local.entries",
            // No backend, so no provider, so nothing to say of who names it.
            "providers.far.backend",
            "keyrings.main.keys[0].secret",
            // Which has no levels now, either.
            "caches.users.levls:",
            "caches.orders.policy.tll:",
        ],
        "{told}"
    );

    // All of one kind, and more than anybody mends at a time.
    let many: String = (0..30).map(|n| format!("[caches.c{n:02}]\nlevels = [\"lokal\"]\n")).collect();
    let told = mistake(&format!("{PROVIDERS}{many}")).await;
    assert_eq!(told.lines().count(), 20);
    assert!(told.lines().all(|line| line.ends_with("did you mean `local`?")), "{told}");

    // What contradicts itself in two caches, and what only does so without what is wrong beside it.
    let text = format!(
        "{PROVIDERS}[caches.a]\nlevels = [\"local\"]\npolicy = {{ ttl = \"5m\", grace = \"1m\" }}\n\
         [caches.b]\nlevels = [\"local\"]\npolicy = {{ ttl = \"5m\", grace = \"2m\" }}\n\
         [caches.c]\nlevels = [\"local\"]\npolicy = {{ ttl = \"10\", grace = \"30s\" }}\n"
    );
    let told = mistake(&text).await;
    let starts: Vec<_> = told.lines().map(|line| line.split(' ').nth(1).unwrap()).collect();
    assert_eq!(starts, ["caches.a.policy.grace", "caches.b.policy.grace", "caches.c.policy.ttl"], "{told}");
}

/// The file is right: what is wrong stands in the variable.
#[tokio::test]
async fn an_item_of_a_list_in_a_variable_is_found_there() {
    let text = cache("levels = [\"local\"]");
    for (levels, expected) in [
        (
            "local,elsewhere",
            "levels[1] = \"elsewhere\": no provider has this name; use one of `local` or `shared`",
        ),
        (
            "local,local",
            "levels[1] = \"local\": levels[0] is on this provider already, and both would use the same keys; leave one of them out",
        ),
    ] {
        let variable = "TRACED_CACHE__CACHES__USERS__LEVELS";
        let builder = sealed().variables([(variable, levels)]);
        let error = builder.from_text(Format::Toml, &text).await.unwrap_err();
        assert_eq!(error.to_string(), format!("environment variable {variable}: caches.users.{expected}"));
    }
}

#[tokio::test]
async fn a_file_in_another_encoding_is_said_to_be_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.toml");
    std::fs::write(&path, b"# caf\xe9\n").unwrap();
    let error = sealed().from_file(&path).await.unwrap_err().to_string();
    assert!(error.ends_with("it is no UTF-8; save it as that"), "{error}");
}
