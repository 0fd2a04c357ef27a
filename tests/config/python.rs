//! A plain cache and a Python program on the same keys.

use std::{
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use test_servers::{MemcachedServer, RedisServer, Server, require};
use traced_cache::{ErrorKind, Outcome, TracedCache, config::Format, ok};

use crate::kit::sealed;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct User {
    name: String,
    logins: u32,
}

/// The other program.
struct Python {
    store: &'static str,
    port: u16,
}

impl Python {
    fn run(&self, words: &[&str]) -> String {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/other.py");
        let program = require(Server::Python).unwrap();
        let mut command = Command::new(program);
        let output =
            command.arg(script).arg(self.store).arg(self.port.to_string()).args(words).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }
}

async fn shares(python: &Python, url: &str) {
    let backend = python.store;
    let text = format!(
        "[providers.local]\nbackend = \"memory\"\nentries = 100\n\
         [providers.shared]\nbackend = \"{backend}\"\nurl = \"{url}\"\nkey_prefix = \"shop:\"\nlevel = {{ plain = true, budget = \"30s\" }}\n\
         [caches.users]\nlevels = [{{ provider = \"local\", ttl_cap = \"1ms\" }}, \"shared\"]\npolicy.ttl = \"1h\"\n"
    );
    let caches = sealed().from_text(Format::Toml, &text).await.unwrap();
    let users: TracedCache<User> = caches.cache("users").unwrap();

    // What is written here is read there.
    assert_eq!(python.run(&["get", "shop:users:42"]), "nothing");
    let ada = users.get_or_set(42u64, || async { ok(User { name: "Ada".into(), logins: 3 }) }).await.unwrap();
    assert_eq!(python.run(&["get", "shop:users:42"]), r#"{"logins": 3, "name": "Ada"}"#);
    assert!(users.set(43u64, User { name: "Zoë".into(), logins: 0 }).await.unwrap().is_confirmed());
    assert_eq!(python.run(&["get", "shop:users:43"]), r#"{"logins": 0, "name": "Zo\u00eb"}"#);

    // What is written there is read here, within the time that memory may keep a copy.
    python.run(&["set", "shop:users:7", "3600", r#"{"name": "Guido", "logins": 1991, "more": true}"#]);
    let guido = users.look(7u64).await.unwrap();
    assert_eq!((guido.outcome(), guido.level()), (Outcome::Hit, Some(1)));
    assert_eq!(**guido.value().unwrap(), User { name: "Guido".into(), logins: 1991 });
    python.run(&["set", "shop:users:42", "3600", r#"{"name": "Grace", "logins": 4}"#]);
    assert_eq!(ada.name, "Ada");
    let deadline = Instant::now() + Duration::from_secs(60);
    while users.get(42u64).await.unwrap().unwrap().name != "Grace" {
        assert!(Instant::now() < deadline, "memory keeps its copy");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }

    // What ends there ends here, and the other way round; and what makes no sense is a miss.
    assert!(users.invalidate(7u64).await.unwrap().is_confirmed());
    assert_eq!(python.run(&["get", "shop:users:7"]), "nothing");
    python.run(&["set", "shop:users:8", "3600", r#"["not", "a", "user"]"#]);
    assert!(users.get(8u64).await.unwrap().is_none());
    assert_eq!(users.clear().await.unwrap_err().kind(), ErrorKind::Unsupported);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_is_shared_with_a_python_program() {
    let (Some(server), Some(_)) = (RedisServer::start(), require(Server::Python)) else { return };
    let python = Python { store: "redis", port: server.port() };
    shares(&python, &server.url()).await;
    // The backend's own ttl, nothing beside.
    let ttl: i64 = server.command(&["PTTL", "shop:users:42"]).unwrap();
    assert!((1..=3_600_000).contains(&ttl), "{ttl}");
    let mut keys: Vec<String> = server.command(&["KEYS", "*"]).unwrap();
    keys.sort();
    assert_eq!(keys, ["shop:users:42", "shop:users:43", "shop:users:8"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memcached_is_shared_with_a_python_program() {
    let (Some(server), Some(_)) = (MemcachedServer::start(), require(Server::Python)) else { return };
    shares(&Python { store: "memcached", port: server.port() }, &server.url()).await;
}
