//! One application, on ten files: what is behind its caches is no concern of its code.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use test_servers::{Authority, MemcachedServer, RedisCluster, RedisSentinel, RedisServer};
use traced_cache::{
    Caches, ErrorKind, Result, TracedCache,
    testing::conformance::{self, Options},
};

use crate::kit::sealed;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct User {
    name: String,
    about: String,
}

fn user(name: impl Into<String>) -> User {
    // Worth compressing.
    User { name: name.into(), about: "likes caches. ".repeat(100) }
}

/// The source: what it says is right.
#[derive(Clone, Default)]
struct Db(Arc<Rows>);

#[derive(Default)]
struct Rows {
    users: Mutex<HashMap<u64, User>>,
    asked: AtomicUsize,
}

impl Db {
    fn set(&self, id: u64, user: User) {
        self.0.users.lock().unwrap().insert(id, user);
    }

    async fn user(&self, id: u64) -> Result<Option<User>, std::convert::Infallible> {
        self.0.asked.fetch_add(1, Ordering::SeqCst);
        Ok(self.0.users.lock().unwrap().get(&id).cloned())
    }

    fn asked(&self) -> usize {
        self.0.asked.load(Ordering::SeqCst)
    }
}

/// The application. It knows names of caches.
struct Shop {
    users: TracedCache<User>,
    prices: TracedCache<u64>,
    db: Db,
}

/// Ids that no other database has: stores are shared, databases are not.
fn ids() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1000, Ordering::Relaxed)
}

impl Shop {
    fn open(caches: &Caches, db: &Db) -> Result<Self> {
        Ok(Self { users: caches.cache("users")?, prices: caches.cache("prices")?, db: db.clone() })
    }

    async fn user(&self, id: u64) -> Result<Option<User>> {
        let found =
            self.users.get_or_set_with(id, &self.db, |db, id| async move { db.user(id).await }).await?;
        Ok(found.map(|user| User::clone(&user)))
    }

    async fn users(&self, ids: impl IntoIterator<Item = u64>) -> Result<Vec<Option<User>>> {
        let load = |db: Db, ids: Vec<u64>| async move {
            let mut found = Vec::new();
            for id in ids {
                if let Some(user) = db.user(id).await? {
                    found.push((id, user));
                }
            }
            Ok::<_, std::convert::Infallible>(found)
        };
        let found = self.users.get_or_set_many(ids, &self.db, load).await?;
        Ok(found.into_iter().map(|user| user.map(|user| User::clone(&user))).collect())
    }

    /// Says whether every node sees it now: one that a store has not told yet may still see what was there before.
    async fn save(&self, id: u64, user: User) -> Result<bool> {
        self.db.set(id, user);
        match self.users.invalidate(id).await {
            // A level that cannot be reached hears of it later; from here the old value is gone.
            Err(error) if error.kind() == ErrorKind::Level => Ok(false),
            other => other.map(|delivery| delivery.is_confirmed()),
        }
    }
}

/// What the application does, and must see, on whatever its file names.
async fn a_day(shop: &Shop, from: u64) {
    for id in from..from + 20 {
        shop.db.set(id, user(format!("user {id}")));
    }
    let asked = shop.db.asked();
    for _ in 0..3 {
        for id in from..from + 10 {
            assert_eq!(shop.user(id).await.unwrap(), Some(user(format!("user {id}"))));
        }
    }
    let all = shop.users(from..from + 20).await.unwrap();
    assert_eq!(all.len(), 20);
    assert!(all.iter().zip(from..).all(|(found, id)| *found == Some(user(format!("user {id}")))));
    assert_eq!(shop.db.asked() - asked, 20, "each row once");
    // What has changed is seen, and nothing else is asked for again.
    shop.save(from + 3, user("renamed")).await.unwrap();
    assert_eq!(shop.user(from + 3).await.unwrap(), Some(user("renamed")));
    assert_eq!(shop.user(from + 4).await.unwrap(), Some(user(format!("user {}", from + 4))));
    assert_eq!(shop.db.asked() - asked, 21);
    // What is not there is remembered, until it is.
    for _ in 0..2 {
        assert_eq!(shop.user(from + 99).await.unwrap(), None);
    }
    assert_eq!(shop.db.asked() - asked, 22);
    shop.save(from + 99, user("new")).await.unwrap();
    assert_eq!(shop.user(from + 99).await.unwrap(), Some(user("new")));
    // Another cache on the same providers is apart, also when it is cleared.
    assert!(shop.prices.set(from, 990u64).await.unwrap().is_confirmed());
    assert_eq!(shop.prices.get(from).await.unwrap().as_deref(), Some(&990));
    let _ = shop.prices.clear().await.unwrap();
    assert_eq!(shop.prices.get(from).await.unwrap(), None);
    assert_eq!(shop.user(from).await.unwrap(), Some(user(format!("user {from}"))));
    assert_eq!(shop.db.asked() - asked, 23);
}

fn file(form: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/config/files/{form}.toml"))
}

type Variables = Vec<(&'static str, String)>;

async fn load(file: &Path, variables: &Variables) -> Caches {
    sealed().variables(variables.clone()).from_file(file).await.unwrap()
}

/// Runs the application, and another node of it that finds what the first has stored.
async fn runs(file: &Path, variables: Variables) -> (Caches, Shop, u64) {
    let (db, from) = (Db::default(), ids());
    let caches = load(file, &variables).await;
    let shop = Shop::open(&caches, &db).unwrap();
    a_day(&shop, from).await;
    let remote: Vec<_> = caches
        .provider_names()
        .iter()
        .filter_map(|name| caches.provider(name).filter(|provider| provider.in_process().is_none()))
        .collect();
    if !remote.is_empty() {
        let asked = db.asked();
        let other = load(file, &variables).await;
        let node = Shop::open(&other, &db).unwrap();
        let id = from + 5;
        assert_eq!(node.user(id).await.unwrap(), Some(user(format!("user {id}"))));
        assert_eq!(db.asked(), asked, "the other node finds it");
    }
    // Each store behaves as stores do; tests/conformance.rs has those in memory.
    for provider in remote {
        conformance::run(provider, Options::default()).await;
    }
    (caches, shop, from)
}

/// Whatever has happened to a store, the application gets right answers; and in the end the store is used again.
async fn heals(file: &Path, variables: &Variables, shop: &Shop, from: u64) {
    let all = from..from + 20;
    let deadline = Instant::now() + Duration::from_secs(180);
    for round in 0.. {
        let name = |id: u64| format!("user {id} in round {round}");
        let mut confirmed = true;
        for id in all.clone() {
            confirmed &= shop.save(id, user(name(id))).await.unwrap();
            assert_eq!(shop.user(id).await.unwrap(), Some(user(name(id))), "after it was saved");
        }
        // Whole again: a node that knows nothing finds all of it in the store.
        let node = Shop::open(&load(file, variables).await, &shop.db).unwrap();
        let asked = shop.db.asked();
        let found = node.users(all.clone()).await.unwrap();
        let right = found.into_iter().zip(all.clone()).all(|(found, id)| found == Some(user(name(id))));
        assert!(right || !confirmed, "what was confirmed is seen by all");
        if right && shop.db.asked() == asked {
            return;
        }
        assert!(Instant::now() < deadline, "after 180 s, {} of 20 are still loaded", shop.db.asked() - asked);
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// The application on a store to which something happens.
async fn survives(form: &str, variables: Variables, fault: impl FnOnce()) {
    let (_caches, shop, from) = runs(&file(form), variables.clone()).await;
    fault();
    heals(&file(form), &variables, &shop, from).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory() {
    runs(&file("memory"), vec![]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis() {
    let Some(server) = RedisServer::start() else { return };
    runs(&file("redis"), vec![("REDIS_URL", server.url())]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_before_redis() {
    let Some(server) = RedisServer::start() else { return };
    runs(&file("memory-redis"), vec![("REDIS_URL", server.url())]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_over_its_socket() {
    let Some(server) = RedisServer::builder().unix_socket().start() else { return };
    let socket = server.socket().unwrap().display().to_string();
    runs(&file("redis-socket"), vec![("SOCKET", socket)]).await;
}

/// A copy of a form's file, in a folder of its own with the secrets that it names.
fn with_secrets(form: &str, secrets: &[(&str, &str)]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cache.toml");
    std::fs::copy(file(form), &path).unwrap();
    for (name, text) in secrets {
        std::fs::write(folder.path().join(name), text).unwrap();
    }
    (folder, path)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_over_tls_with_an_acl() {
    let authority = Authority::new();
    let (own, client) = (authority.issue(&["127.0.0.1"]), authority.issue(&["shop"]));
    let acl = "user default off\nuser shop on >hunter2 ~shop:* &shop:* +@all\n";
    let Some(server) = RedisServer::builder().acl(acl).tls(&authority, &own, true).start() else { return };
    let (_folder, path) = with_secrets("redis-tls-acl", &[("password", "hunter2\n")]);
    let all: Variables = vec![
        ("TLS_PORT", server.tls_port().to_string()),
        ("CA_FILE", authority.ca_file().display().to_string()),
        ("CLIENT_CERTIFICATE", client.certificate.display().to_string()),
        ("CLIENT_KEY", client.key.display().to_string()),
        ("CACHE_KEY", "5a".repeat(32)),
    ];
    runs(&path, all.clone()).await;

    // Nothing that a file gets wrong here goes by in silence.
    let wrong = |name: &'static str, value: &str| -> Variables {
        all.iter().map(|(n, v)| (*n, if *n == name { value.to_owned() } else { v.clone() })).collect()
    };
    let missing = sealed().variables(wrong("CA_FILE", "/nowhere/ca.pem")).from_file(&path).await.unwrap_err();
    let shown = missing.to_string();
    assert!(
        shown.contains("cache.toml:10: providers.shared.ca_file = \"${CA_FILE}\": cannot be read"),
        "{shown}"
    );
    let (_folder, path) = with_secrets("redis-tls-acl", &[("password", "hunter3")]);
    let caches = load(&path, &all).await;
    let answer = caches.ping().await.into_iter().find(|(name, _)| name == "shared").unwrap().1.unwrap_err();
    let mut shown = format!("{answer} {answer:?}");
    let explained = sealed().variables(all.clone()).explain_and_ping(&path).await.unwrap();
    shown += &format!("{explained} {explained:?}");
    assert!(shown.contains("CANNOT BE USED") && !shown.contains("hunter"), "{shown}");
    assert!(shown.to_lowercase().contains("password") || shown.contains("WRONGPASS"), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_cluster_that_loses_a_master() {
    let Some(cluster) = RedisCluster::start(3, 1) else { return };
    let nodes: Vec<_> = cluster.nodes().iter().map(|node| node.addr().to_string()).collect();
    let variables = vec![("NODES", nodes.join(","))];
    let plain = load(&file("redis-cluster"), &variables).await.provider("shared").unwrap().plain().unwrap();
    conformance::run(plain, Options::default()).await;
    survives("redis-cluster", variables, || {
        cluster.masters()[0].kill();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn redis_behind_sentinels_through_a_failover() {
    let Some(all) = RedisSentinel::start() else { return };
    let first = all.master_port();
    survives("redis-sentinel", vec![("SENTINEL_URL", all.url())], || {
        all.servers()[0].kill();
    })
    .await;
    assert_ne!(all.master_port(), first, "the other one is the master now");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_memcached_of_which_one_dies_and_comes_back() {
    let all: Vec<_> = (0..3).filter_map(|_| MemcachedServer::start()).collect();
    if all.len() < 3 {
        return;
    }
    let servers = all.iter().map(MemcachedServer::url).collect::<Vec<_>>().join(",");
    let variables = vec![("SERVERS", servers)];
    let (_caches, shop, from) = runs(&file("memcached-three"), variables.clone()).await;
    all[1].kill();
    // Its keys are loaded, those of the others found.
    let asked = shop.db.asked();
    for _ in 0..3 {
        for id in from..from + 20 {
            assert_eq!(shop.user(id).await.unwrap().map(|user| user.about), Some(user("").about));
        }
    }
    let asked = shop.db.asked() - asked;
    assert!((1..60).contains(&asked), "{asked} of 60 were loaded");
    all[1].restart();
    heals(&file("memcached-three"), &variables, &shop, from).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memcached_over_tls_with_a_login() {
    let authority = Authority::new();
    let (own, client) = (authority.issue(&["127.0.0.1"]), authority.issue(&["shop"]));
    let (_folder, path) =
        with_secrets("memcached-tls-login", &[("password", "hunter2\n"), ("users", "shop:hunter2\n")]);
    let users = path.with_file_name("users").display().to_string();
    let builder = MemcachedServer::builder().args(["-Y".to_owned(), users]);
    let Some(server) = builder.tls(&authority, &own, true).start() else { return };
    let all: Variables = vec![
        ("TLS_PORT", server.tls_port().to_string()),
        ("CA_FILE", authority.ca_file().display().to_string()),
        ("CLIENT_CERTIFICATE", client.certificate.display().to_string()),
        ("CLIENT_KEY", client.key.display().to_string()),
    ];
    runs(&path, all.clone()).await;

    let wrong: Variables =
        all.iter().map(|(n, v)| (*n, if *n == "CA_FILE" { "/nowhere".into() } else { v.clone() })).collect();
    let missing = sealed().variables(wrong).from_file(&path).await.unwrap_err().to_string();
    assert!(missing.contains("cache.toml:6: providers.shared.ca_file = \"${CA_FILE}\": cannot"), "{missing}");
    std::fs::write(path.with_file_name("password"), "hunter3").unwrap();
    let explained = sealed().variables(all).explain_and_ping(&path).await.unwrap();
    let shown = format!("{explained} {explained:?}");
    let says = "cache.toml:5: providers.shared.password = ***: memcached ";
    assert!(shown.contains(says) && shown.contains("does not accept the login"), "{shown}");
    assert!(!shown.contains("hunter"), "{shown}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_before_memcached() {
    let Some(server) = MemcachedServer::start() else { return };
    runs(&file("memory-memcached"), vec![("MEMCACHED_URL", server.url())]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_levels() {
    let (Some(memcached), Some(redis)) = (MemcachedServer::start(), RedisServer::start()) else { return };
    runs(&file("three-levels"), vec![("MEMCACHED_URL", memcached.url()), ("REDIS_URL", redis.url())]).await;
}
