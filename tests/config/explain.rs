//! What `explain` says: origins, advice, what a machine lacks, who does not answer.

use std::fs;

use test_servers::{MemcachedServer, RedisServer};
use traced_cache::config::Format;

use crate::kit::{sealed, toml};

async fn advice(text: &str) -> Vec<String> {
    let caches = toml(&format!(
        "[providers.near]\nbackend = \"memory\"\nentries = 5\n\
         [providers.far]\nbackend = \"redis\"\nurl = \"redis://127.0.0.1:1\"\n[caches.a]\n{text}\n"
    ))
    .await
    .unwrap();
    caches.explain().caches.remove(0).advice
}

#[tokio::test]
async fn k8_memory_that_hears_of_nothing_is_pointed_out_with_its_window() {
    let both = "levels = [\"near\", \"far\"]\n";
    for (text, window) in [
        ("policy.ttl = \"5m\"", "up to 5m: nothing tells it. Name a `backplane`, or set a `ttl_cap`"),
        ("policy = { ttl = \"5m\", jitter = \"30s\" }", "up to 5m 30s: nothing tells it"),
        ("policy.ttl = \"forever\"", "up to forever: nothing tells it"),
        (
            "policy = { ttl = \"5m\", grace = \"1h\", soft_limit = \"1s\" }",
            "up to 5m, and let it stand in, as a stale value, for up to 1h: nothing tells it",
        ),
    ] {
        let advice = advice(&format!("{both}{text}")).await;
        assert_eq!(advice.len(), 1, "{advice:?}");
        assert!(
            advice[0].starts_with("on several nodes, level 1 (near)") && advice[0].contains(window),
            "{advice:?}"
        );
    }
    let capped = "levels = [{ provider = \"near\", ttl_cap = \"10s\" }, \"far\"]\npolicy.ttl = \"5m\"";
    assert!(
        advice(capped).await[0]
            .contains("up to 10s: nothing tells it. Name a `backplane`, or lower the `ttl_cap`")
    );
    for silent in
        ["levels = [\"near\", \"far\"]\nbackplane = \"far\"", "levels = [\"far\"]", "levels = [\"near\"]"]
    {
        assert_eq!(advice(silent).await, [""; 0], "{silent}");
    }
}

#[tokio::test]
async fn a_stance_that_nobody_says_is_shown_as_it_will_be() {
    let stance = async |levels: &str| {
        let text = format!(
            "[providers.near]\nbackend = \"memory\"\nentries = 5\n\
             [providers.far]\nbackend = \"redis\"\nurl = \"redis://127.0.0.1:1\"\n[caches.a]\nlevels = {levels}\n"
        );
        let deepest = toml(&text).await.unwrap().explain().caches.remove(0).levels.pop().unwrap();
        deepest.settings.into_iter().find(|setting| setting.name == "stance").unwrap().value
    };
    assert_eq!(stance("[\"far\"]").await, "surface");
    assert_eq!(stance("[\"near\", \"far\"]").await, "absorb");
}

#[tokio::test]
async fn settings_that_do_little_are_pointed_out() {
    let near = "levels = [\"near\"]\n";
    let grace = advice(&format!("{near}policy.grace = \"1h\"")).await;
    assert_eq!(
        grace,
        [
            "`grace` without `soft_limit`: with a stale value at hand, callers wait for a slow load all the same, up to 30s"
        ]
    );
    assert_eq!(
        advice(&format!("{near}policy = {{ grace = \"1h\", soft_limit = \"100ms\" }}")).await,
        [""; 0]
    );
    let off = advice(&format!("{near}policy.hard_limit = \"off\"")).await;
    assert_eq!(off, ["`hard_limit` is off: a loader that hangs keeps its callers waiting for ever"]);
}

#[tokio::test]
async fn what_a_level_in_this_process_has_no_use_for_is_pointed_out() {
    let idle = "levels = [{ provider = \"near\", ttl_cap = \"10s\", budget = \"1s\", codec = \"json\" }]";
    let told = advice(idle).await;
    let says = |field: &str| {
        format!("level 1 (near) is in this process, where `{field}` means nothing: leave it out")
    };
    assert_eq!(told, [says("budget"), says("codec")]);
    assert_eq!(advice("codec = \"json\"\nlevels = [\"near\"]").await, [""; 0], "it may be for other levels");
}

#[tokio::test]
async fn memory_behind_a_remote_level_is_pointed_out() {
    let says = "level 2 (near) is in this process, behind one that is not, which is asked first: name it before that";
    assert_eq!(advice("levels = [\"far\", \"near\"]\nbackplane = \"far\"").await, [says]);
}

#[tokio::test]
async fn a_ttl_that_a_level_cannot_hold_is_pointed_out() {
    use traced_cache::{Capabilities, testing::MapProvider};
    #[derive(serde::Deserialize)]
    struct None {}
    let builder = sealed().backend("short", |_: None| {
        let day = std::time::Duration::from_secs(86_400);
        Ok::<_, traced_cache::Error>(MapProvider::with(Capabilities::remote().ttl_max(day)))
    });
    let text = "[providers.near]\nbackend = \"memory\"\nentries = 5\n[providers.far]\nbackend = \"short\"\n\
                [caches.a]\nlevels = [{ provider = \"near\", ttl_cap = \"1h\" }, \"far\"]\npolicy.ttl = \"2days\"\n";
    let advice = builder.from_text(Format::Toml, text).await.unwrap().explain().caches.remove(0).advice;
    assert_eq!(advice[1], "level 2 (far) cannot hold an entry for 2days: 1day at most");
}

#[tokio::test]
async fn what_the_file_gives_away_or_does_not_use_is_pointed_out() {
    let text = "[providers.r]\nbackend = \"redis\"\nurl = \"redis://h\"\nusername = \"u\"\npassword = \"hunter2\"\n\
                [providers.s]\nbackend = \"redis\"\nurl = \"redis://h\"\npassword = \"${P}\"\n\
                [providers.t]\nbackend = \"redis\"\nurl = \"redis://u:hunter2@h\"\n\
                [providers.u]\nbackend = \"redis\"\nurl = \"redis://u:${P}@h\"\n";
    let explained = sealed().variables([("P", "x")]).from_text(Format::Toml, text).await.unwrap().explain();
    assert_eq!(
        explained.advice,
        [
            "(text):5: providers.r.password is written out; let it come from outside: `${NAME}` or `${file:path}`",
            "(text):12: providers.t.url is written out; let it come from outside: `${NAME}` or `${file:path}`",
            "providers.r is used by no cache",
            "providers.s is used by no cache",
            "providers.t is used by no cache",
            "providers.u is used by no cache",
        ]
    );
    assert!(!format!("{explained} {explained:?}").contains("hunter2"));
}

#[tokio::test]
async fn a_file_is_explained_where_its_secrets_are_not() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.toml");
    let text = "[providers.near]\nbackend = \"memory\"\nentries = \"${ENTRIES}\"\nbytes = \"${BYTES:-1MiB}\"\n\
                [providers.far]\nbackend = \"redis\"\nurl = \"${REDIS_URL}\"\n\
                [keyrings.k]\nkeys = [{ id = 1, secret = \"${file:key}\" }]\n\
                [caches.a]\nlevels = [\"near\", \"far\"]\nencryption = \"k\"\npolicy = { ttl = \"${TTL}\", grace = \"2m\" }\n";
    fs::write(&file, text).unwrap();
    let explained = sealed().explain(&file).unwrap();
    let problems: Vec<_> =
        explained.problems.iter().map(|p| p.split_once("cache.toml:").unwrap().1.to_owned()).collect();
    let starts = [
        "3: providers.near.entries = \"${ENTRIES}\": the environment variable ENTRIES is not set",
        "7: providers.far.url = \"${REDIS_URL}\": the environment variable REDIS_URL is not set",
        "9: keyrings.k.keys[0].secret = \"${file:key}\": cannot read the file",
        "13: caches.a.policy.ttl = \"${TTL}\": the environment variable TTL is not set",
    ];
    assert_eq!(problems.len(), starts.len(), "{problems:#?}");
    for (problem, start) in problems.iter().zip(starts) {
        assert!(problem.starts_with(start), "{problem}");
    }
    assert!(!explained.is_fine());
    let cache = &explained.caches[0];
    assert_eq!((cache.settings[0].value.as_str(), cache.settings[0].origin.as_str()), ("1m", "default"));
    let levels: Vec<_> = cache.levels.iter().map(|l| (l.provider.as_str(), l.backend.as_str())).collect();
    assert_eq!(levels, [("near", "memory"), ("far", "redis")]);
    // For work, the same is an error.
    assert!(sealed().from_file(&file).await.unwrap_err().to_string().contains("is not set"));
    // What is wrong everywhere is wrong here.
    fs::write(&file, "[caches.a]\nlevls = 5").unwrap();
    assert!(sealed().explain(&file).unwrap_err().to_string().contains("did you mean `levels`?"));
    fs::write(&file, "[providers.m]\nbackend = \"memory\"\nentries = 5\n[caches.a]\nlevels = [\"m\"]\npolicy = { ttl = \"1h\", grace = \"1m\" }").unwrap();
    assert!(
        sealed().explain(&file).unwrap_err().to_string().contains("policy.grace = 60s: below policy.ttl")
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_answer_is_named() {
    let Some(server) = MemcachedServer::start() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.json");
    let write = |required: bool| {
        let text = format!(
            r#"{{"providers": {{"up": {{"backend": "memcached", "url": "{}"}},
            "down": {{"backend": "redis", "url": "redis://:hunter2@127.0.0.1:1", "required": {required}}}}},
            "caches": {{"a": {{"levels": ["up", "down"]}}}}}}"#,
            server.url()
        );
        fs::write(&file, text).unwrap();
    };
    write(false);
    let explained = sealed().explain_and_ping(&file).await.unwrap();
    let answers: Vec<_> = explained.providers.iter().map(|p| (p.name.as_str(), p.answered.clone())).collect();
    assert_eq!(answers[1], ("up", Some(Ok(()))));
    let Some(Err(error)) = &answers[0].1 else { panic!("{answers:?}") };
    assert!(
        error.contains("127.0.0.1:1") && error.contains("refused") && !error.contains("hunter2"),
        "{error}"
    );
    assert!(!explained.is_fine());
    let shown = explained.to_string();
    assert!(shown.contains(&format!("provider up: memcached at {}, answers", server.addr())), "{shown}");
    assert!(shown.contains("provider down: redis at 127.0.0.1:1, CANNOT BE USED: "), "{shown}");
    // Not being there at the start is no error, unless asked for.
    let caches = sealed().from_file(&file).await.unwrap();
    assert!(caches.ping().await.iter().any(|(name, answer)| name == "down" && answer.is_err()));
    // What lacks its password is not asked with something else in its place.
    let lacking = r#"{"providers": {"down": {"backend": "redis", "url": "redis://127.0.0.1:1", "password": "${NO_SUCH}"}}}"#;
    fs::write(&file, lacking).unwrap();
    let explained = sealed().explain_and_ping(&file).await.unwrap();
    assert_eq!((explained.providers[0].answered.clone(), explained.problems.len()), (None, 1));
    write(true);
    let error = sealed().from_file(&file).await.unwrap_err();
    assert_eq!(error.kind(), traced_cache::ErrorKind::Level);
    let shown = error.to_string();
    assert!(shown.contains("cache.json:2: providers.down: it is required and cannot be used: "), "{shown}");
    assert!(!format!("{error:?}").contains("hunter2"));
}

#[test]
fn what_a_provider_has_is_told_with_its_origin_and_who_uses_it() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.toml");
    let text = "[providers.local]\nbackend = \"memory\"\nbytes = \"64MiB\"\n\
                [providers.idle]\nbackend = \"memory\"\nentries = 5\n\
                [providers.far]\nbackend = \"memcached\"\nservers = [\"memcached://hunter2:1\"]\n\
                username = \"hunter2\"\npassword = \"${P}\"\nbreaker.cool_down = \"2s\"\n\
                [caches.a]\nlevels = [\"local\", \"far\"]\n[caches.b]\nlevels = [\"local\"]\n";
    fs::write(&file, text).unwrap();
    let variables = [("P", "hunter2"), ("TRACED_CACHE__PROVIDERS__LOCAL__BYTES", "8MiB")];
    let explained = sealed().variables(variables).explain(&file).unwrap();
    let told = |at: usize| -> Vec<_> {
        let settings = &explained.providers[at].settings;
        settings.iter().map(|s| format!("{} = {} {}", s.name, s.value, s.origin)).collect()
    };
    assert_eq!(
        told(0),
        [
            "breaker.cool_down = 2s cache.toml:12 providers.far.breaker.cool_down",
            "password = ${P} cache.toml:11 providers.far.password",
            "servers = *** cache.toml:9 providers.far.servers",
            "username = *** cache.toml:10 providers.far.username",
        ]
    );
    assert_eq!(told(2), ["bytes = 8MiB environment variable TRACED_CACHE__PROVIDERS__LOCAL__BYTES"]);
    let users: Vec<_> = explained.providers.iter().map(|provider| provider.caches.join(" ")).collect();
    assert_eq!(users, ["a", "", "a b"]);
    let shown = explained.to_string();
    assert!(shown.contains("  used by a, b\n") && shown.contains("  bytes  8MiB  environment"), "{shown}");
}

/// A server that answers and takes nothing would pass for right.
#[tokio::test]
async fn what_a_provider_has_against_its_server_is_told_when_it_is_asked() {
    let (Some(master), Some(replica)) = (RedisServer::start(), RedisServer::start()) else { return };
    let full = RedisServer::builder().config("maxmemory", "1").config("maxmemory-policy", "noeviction");
    let Some(full) = full.start() else { return };
    let user = ["ACL", "SETUSER", "ann", "on", ">hunter2", "~*", "&*", "+@all", "-exec"];
    master.command::<()>(&user).unwrap();
    replica.command::<()>(&["REPLICAOF", "127.0.0.1", &master.port().to_string()]).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.toml");
    let text = format!(
        "[providers.weak]\nbackend = \"redis\"\nurl = \"redis://ann:hunter2@127.0.0.1:{}\"\n\
         [providers.copy]\nbackend = \"redis\"\nurl = \"{}\"\n[providers.full]\nbackend = \"redis\"\nurl = \"{}\"\n\
         [caches.a]\nlevels = [\"weak\", \"copy\", \"full\"]\n",
        master.port(),
        replica.url(),
        full.url()
    );
    fs::write(&file, text).unwrap();
    let explained = sealed().explain_and_ping(&file).await.unwrap();
    let told = |start: &str, what: &str| {
        let all = &explained.advice;
        assert!(all.iter().any(|line| line.starts_with(start) && line.contains(what)), "{all:?}");
    };
    told("weak: ", "nothing is stored or removed; grant +multi +exec");
    told("copy: ", "is a replica: nothing is stored or removed there");
    told("full: ", "has no memory left and evicts nothing, so it stores nothing");
    let unasked = sealed().explain(&file).unwrap().advice;
    assert!(!unasked.iter().any(|line| line.contains("replica")), "{unasked:?}");
}

/// A name with a typo makes another cache, and the one that was meant stays as it was.
#[test]
fn a_cache_that_variables_make_is_pointed_out() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.toml");
    let text = "[providers.local]\nbackend = \"memory\"\nentries = 5\n[defaults]\nlevels = [\"local\"]\n\
                [caches.users]\npolicy.ttl = \"1m\"\n";
    fs::write(&file, text).unwrap();
    let told = |variable: &str| {
        let advice = sealed().variables([(variable, "1h")]).explain(&file).unwrap().advice;
        advice.into_iter().filter(|line| line.contains("caches.")).collect::<Vec<_>>()
    };
    assert_eq!(
        told("TRACED_CACHE__CACHES__USRES__POLICY__TTL"),
        [
            "environment variable TRACED_CACHE__CACHES__USRES__POLICY__TTL: caches.usres is not in the file, so the variable makes \
          this cache; did you mean `users`?"
        ]
    );
    assert_eq!(
        told("TRACED_CACHE__CACHES__ORDERS__POLICY__TTL"),
        [
            "environment variable TRACED_CACHE__CACHES__ORDERS__POLICY__TTL: caches.orders is not in the file, so the variable \
          makes this cache"
        ]
    );
    assert_eq!(told("TRACED_CACHE__CACHES__USERS__POLICY__GRACE"), [""; 0]);
}

#[test]
fn the_line_of_a_wrong_address_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.toml");
    fs::write(
        &file,
        "[providers.s]\nbackend = \"memcached\"\nurl = \"http://x\"\n[caches.a]\nlevels = [\"s\"]\n",
    )
    .unwrap();
    let problems = sealed().explain(&file).unwrap().problems;
    assert!(problems[0].contains("cache.toml:3: providers.s.url = "), "{problems:?}");
}

/// Of a provider that could not be built nobody can say whether it carries messages.
#[test]
fn a_backplane_that_is_wrong_in_itself_is_one_mistake() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache.toml");
    let text = "[providers.near]\nbackend = \"memory\"\nentries = 5\n\
                [providers.s]\nbackend = \"redis\"\nurl = \"redis://h:port\"\n\
                [caches.a]\nlevels = [\"near\"]\nbackplane = \"s\"\n";
    fs::write(&file, text).unwrap();
    let problems = sealed().explain(&file).unwrap().problems;
    assert_eq!(problems.len(), 1, "{problems:#?}");
    assert!(problems[0].contains("cache.toml:6: providers.s.url = "), "{problems:?}");
}

#[tokio::test]
async fn what_a_level_promises_less_than_others_is_pointed_out() {
    use traced_cache::testing::MapProvider;
    #[derive(serde::Deserialize)]
    struct None {}
    let builder = sealed()
        .backend("bare", |_: None| Ok::<_, traced_cache::Error>(MapProvider::new()))
        .backend("whole", |_: None| Ok::<_, traced_cache::Error>(MapProvider::new().leasing().marking()));
    let text = "[providers.far]\nbackend = \"bare\"\n[caches.a]\nlevels = [\"far\"]\npolicy.ttl = \"1h\"\n\
                [providers.whole]\nbackend = \"whole\"\n[caches.b]\npolicy.ttl = \"1h\"\n\
                levels = [{ provider = \"whole\", on_failover = \"keep\" }]\n\
                [providers.r]\nbackend = \"redis\"\nurl = \"redis+sentinel://127.0.0.1:1/main\"\nread_replicas = true\n\
                [caches.c]\nlevels = [\"r\"]\npolicy.ttl = \"1h\"\n";
    let caches = builder.from_text(Format::Toml, text).await.unwrap().explain().caches;
    let said = |at: usize, what: &[&str]| {
        let advice = &caches[at].advice;
        assert_eq!(advice.len(), what.len(), "{advice:?}");
        assert!(advice.iter().zip(what).all(|(line, what)| line.contains(what)), "{advice:?}");
    };
    said(0, &["level 1 (far) keeps no leases", "level 1 (far) cannot swap marks"]);
    said(1, &["keeps its entries over a failover"]);
    said(2, &["has replicas answer"]);
}
