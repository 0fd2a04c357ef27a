//! Users who may not do everything: what goes on in a weaker form, and what is said of it.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, what goes wrong must fail the test")]

mod common;

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use cache_core::{
    Acquire, Acquired, Advised, Backplane, BoxError, CacheId, CacheProvider, Fill, Holding, Lease, Leases,
    Listener, Marks, Put, RawKey, Swapped, TracedCache,
    testing::conformance::{self, Options},
};
use cache_redis::{ErrorKind, RedisProvider};
use common::{
    RedisServer, get, item, key, kill_clients, kind,
    proxy::{Proxy, first_words_changed},
    put, swap, until_async,
};
use test_servers::{RedisCluster, RedisSentinel};
use tokio::task::JoinHandle;

#[derive(Default)]
struct Operator(Mutex<Vec<String>>);

impl Advised for Operator {
    fn advice(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

impl Operator {
    fn of(provider: &RedisProvider) -> Arc<Self> {
        let operator = Arc::new(Self::default());
        let weak: Weak<Self> = Arc::downgrade(&operator);
        provider.advise(weak);
        operator
    }

    fn heard(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

fn three_pings(provider: &RedisProvider) -> Vec<JoinHandle<Result<(), BoxError>>> {
    let ping = |provider: RedisProvider| tokio::spawn(async move { provider.ping().await });
    (0..3).map(|_| ping(provider.clone())).collect()
}

fn without(server: &RedisServer, rights: &[&str]) -> RedisProvider {
    let mut command = vec!["ACL", "SETUSER", "ann", "reset", "on", ">hunter2", "~*", "&*", "+@all"];
    command.extend(rights);
    server.command::<()>(&command).unwrap();
    RedisProvider::builder(format!("redis://ann:hunter2@127.0.0.1:{}", server.port())).build().unwrap()
}

/// Counts the gaps that it hears of, of which the first says that listening has begun.
#[derive(Default)]
struct Ear(AtomicUsize);

impl Listener for Ear {
    fn message(&self, _: &[u8]) {}

    fn gap(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }

    fn keeps_in(&self, _: u64) -> bool {
        true
    }

    fn is_closed(&self) -> bool {
        false
    }
}

/// The permissions that the front page lists after these words, as rules of a user.
fn listed(after: &str) -> Vec<String> {
    let page = include_str!("../src/lib.rs").replace("\n//! ", " ");
    let (_, list) = page.split_once(after).unwrap();
    let (_, list) = list.split_once('`').unwrap();
    let (list, _) = list.split_once('`').unwrap();
    list.split(' ').map(|command| format!("+{command}")).collect()
}

/// A user who may do what the front page lists after any of these words, and no more.
fn as_listed(parts: &[&str]) -> Vec<String> {
    let user = "ACL SETUSER ann reset on >hunter2 ~shop:* resetchannels &shop:b:*";
    user.split(' ').map(str::to_owned).chain(parts.iter().flat_map(|after| listed(after))).collect()
}

async fn all_works(provider: &RedisProvider) {
    conformance::run(Arc::new(provider.clone()), Options::default()).await;
    conformance::leases::run(Arc::new(provider.clone()), Options::default()).await;
    conformance::marks::run(Arc::new(provider.clone()), Options::default()).await;
}

const USUAL: [&str; 3] = ["An ACL user needs", "begins with:", "a backplane that tracks:"];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_permissions_of_the_front_page_are_enough() {
    let server = RedisServer::start();
    let allow = |more: &[&str]| {
        let rules = as_listed(&[&USUAL, more].concat());
        server.command::<()>(&rules.iter().map(String::as_str).collect::<Vec<_>>()).unwrap();
    };
    let provider = |database| {
        let url = format!("redis://ann:hunter2@127.0.0.1:{}/{database}", server.port());
        RedisProvider::builder(url).key_prefix("shop:").build().unwrap()
    };
    allow(&[]);
    let error = provider(1).connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("+select"), "{error}");
    let name = "Redis 7.2 or later, for `CLIENT LIST` to show what it is:";
    let is_known = server.command::<()>(&["ACL", "SETUSER", "probe", &listed(name)[0]]).is_ok();
    let more = ["a database other than 0:", name];
    allow(if is_known { &more } else { &more[..1] });
    server.command::<()>(&["ACL", "LOG", "RESET"]).unwrap();
    for database in [0, 1] {
        let provider = provider(database);
        let operator = Operator::of(&provider);
        all_works(&provider).await;
        let backplane = provider.backplane();
        let ear = Arc::new(Ear::default());
        backplane.subscribe("users", Arc::<Ear>::clone(&ear));
        until_async("tracking", || async {
            let clients: String = server.command(&["INFO", "clients"]).unwrap();
            ear.0.load(Ordering::SeqCst) > 0 && clients.contains("tracking_clients:1")
        })
        .await;
        backplane.publish("users", b"hello".to_vec().into()).await.unwrap();
        assert!(provider.leases().is_some());
        assert_eq!(operator.heard(), [""; 0]);
        provider.close().await;
    }
    // Somebody may have an alarm on it.
    let refused: Vec<redis::Value> = server.command(&["ACL", "LOG"]).unwrap();
    assert!(refused.is_empty(), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_permissions_of_the_front_page_are_enough_in_a_cluster() {
    let Some(cluster) = RedisCluster::start(3, 0) else { return };
    let url = format!("redis+cluster://ann:hunter2@{}", cluster.nodes()[0].addr());
    let allow = |more: &[&str]| {
        let rules = as_listed(&[&USUAL, more].concat());
        let rules: Vec<_> = rules.iter().map(String::as_str).collect();
        for node in cluster.nodes() {
            node.command::<()>(&rules).unwrap();
        }
        RedisProvider::builder(&url).key_prefix("shop:").build().unwrap()
    };
    let error = allow(&[]).connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("+cluster|slots"), "{error}");
    let provider = allow(&["a cluster:"]);
    let operator = Operator::of(&provider);
    all_works(&provider).await;
    assert!(provider.leases().is_some() && provider.incarnation() != 0);
    assert_eq!(operator.heard(), [""; 0]);
}

/// A server logs each refusal. Those before 7.2 do not know the command, and here it is told another.
#[tokio::test]
async fn who_may_not_say_what_it_is_tries_once() {
    let server = RedisServer::start();
    let port = first_words_changed(server.port(), "$7\r\nSETINFO\r\n", "$5\r\nPAUSE\r\n").await;
    server
        .command::<()>(&["ACL", "SETUSER", "ann", "reset", "on", ">pw", "~*", "+@all", "-client|pause"])
        .unwrap();
    let provider = RedisProvider::builder(format!("redis://ann:pw@127.0.0.1:{port}")).build().unwrap();
    for _ in 0..3 {
        until_async("connected", || async { get(&provider, "k").await.is_ok() }).await;
        kill_clients(&server);
    }
    let log: Vec<redis::Value> = server.command(&["ACL", "LOG"]).unwrap();
    assert!(log.len() == 1 && format!("{log:?}").contains("int(2)"), "a name and a version: {log:?}");
}

/// Nothing else says why invalidations stay pending: the provider itself answers.
#[tokio::test]
async fn who_may_not_hear_messages_is_told_what_to_grant() {
    let server = RedisServer::start();
    for rights in [&["resetchannels"][..], &["-subscribe"], &["-publish"]] {
        let provider = without(&server, &[&["-client|tracking"], rights].concat());
        let operator = Operator::of(&provider);
        let backplane = provider.backplane();
        backplane.subscribe("users", Arc::new(Ear::default()));
        let told = "grant +subscribe +unsubscribe +publish &b:*";
        until_async("told", || async { operator.heard().iter().any(|line| line.ends_with(told)) }).await;
        let heard = operator.heard().iter().filter(|line| line.contains("are refused (")).count();
        assert_eq!(heard, 1, "{:?}", operator.heard());
        provider.close().await;
    }
}

#[tokio::test]
async fn each_missing_permission_is_named_once_and_the_rest_goes_on() {
    let server = RedisServer::start();
    for (rights, command, grant) in [
        ("-info", "INFO", "+info"),
        ("-time", "TIME", "+time"),
        ("-client|id", "CLIENT ID", "+client|id"),
        ("-client|kill", "CLIENT KILL", "+client|kill"),
        ("-evalsha", "EVALSHA", "+evalsha"),
        ("-eval", "EVALSHA or EVAL", "+eval"),
    ] {
        let provider = without(&server, &[rights]);
        let operator = Operator::of(&provider);
        put(&provider, "k", "v").await;
        assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("v"));
        provider.remove(key("k")).await.unwrap();
        server.command::<()>(&["CLIENT", "KILL", "USER", "ann"]).unwrap();
        until_async("connected again", || async { get(&provider, "k").await.is_ok() }).await;
        let heard = operator.heard();
        let [said] = heard.as_slice() else { panic!("{rights}: {heard:?}") };
        assert!(said.starts_with(command) && said.contains(grant), "{rights}: {said}");
        // Whoever comes later is told, too.
        assert_eq!(Operator::of(&provider).heard(), heard);
        assert!(!format!("{heard:?} {provider:?}").contains("hunter2"));
    }
    let provider = without(&server, &[]);
    let operator = Operator::of(&provider);
    put(&provider, "k", "v").await;
    assert!(operator.heard().is_empty() && provider.leases().is_some());
}

/// Some servers lack commands, or have them under another name: nobody may run those, and it is the same as a permission
/// that is missing.
#[tokio::test]
async fn each_missing_command_is_named_once_and_the_rest_goes_on() {
    for (missing, command) in [
        ("INFO", "INFO"),
        ("TIME", "TIME"),
        ("ROLE", ""),
        ("EVALSHA", "EVALSHA or EVAL"),
        ("EVAL", "EVALSHA or EVAL"),
        ("CLIENT", "CLIENT"),
    ] {
        let server = RedisServer::with(&["--rename-command", missing, ""], None);
        let provider = RedisProvider::builder(server.url()).build().unwrap();
        let operator = Operator::of(&provider);
        put(&provider, "k", "v").await;
        assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("v"));
        provider.remove(key("k")).await.unwrap();
        let heard = operator.heard();
        assert!(heard.iter().all(|said| said.starts_with(command)), "{missing}: {heard:?}");
        assert_eq!(heard.is_empty(), command.is_empty(), "{missing}: {heard:?}");
        assert_eq!(provider.leases().is_none(), missing.starts_with("EVAL"), "{missing}");
    }
    // Neither is half of a transaction run where there are none.
    let server = RedisServer::with(&["--rename-command", "MULTI", ""], None);
    let provider = RedisProvider::builder(server.url()).build().unwrap();
    let operator = Operator::of(&provider);
    assert_eq!(kind(provider.put(item("k", b"v")).await), ErrorKind::Denied);
    assert_eq!(server.command::<u64>(&["DBSIZE"]).unwrap(), 0);
    assert!(operator.heard().iter().any(|said| said.starts_with("MULTI")), "{:?}", operator.heard());
}

/// As a store without leases it passes what is asked of one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_run_scripts_has_no_leases_and_gets_them_with_the_permission() {
    let server = RedisServer::start();
    let provider = without(&server, &["-@scripting"]);
    provider.connect().await.unwrap();
    assert!(provider.leases().is_none());
    conformance::run(Arc::new(provider.clone()), Options::default()).await;
    server.command::<()>(&["ACL", "SETUSER", "ann", "+@scripting"]).unwrap();
    server.command::<()>(&["CLIENT", "KILL", "USER", "ann"]).unwrap();
    until_async("leases", || async { provider.connect().await.is_ok() && provider.leases().is_some() }).await;
    assert!(provider.release_many(&[]).await.is_empty());
}

#[tokio::test]
async fn without_its_run_id_a_restarted_server_is_not_told_apart() {
    let server = RedisServer::start();
    let provider = without(&server, &["-info"]);
    put(&provider, "k", "v").await;
    assert_eq!(provider.incarnation(), 0);
    let error = provider.info().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);
}

/// Half of a transaction is worse than none.
#[tokio::test]
async fn who_may_not_run_transactions_writes_nothing_and_can_read() {
    let server = RedisServer::start();
    for rights in [&["-multi"][..], &["-exec"], &["-multi", "-exec"], &["-@transaction"]] {
        server.command::<()>(&["SET", "v:{users:k}", "theirs"]).unwrap();
        let provider = without(&server, rights);
        let operator = Operator::of(&provider);
        let sets = server.calls("set");
        assert_eq!(kind(provider.put(item("k", b"v")).await), ErrorKind::Denied);
        assert_eq!(kind(provider.remove(key("k")).await), ErrorKind::Denied);
        assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("theirs"));
        assert_eq!(server.calls("set"), sets);
        let heard = operator.heard();
        assert!(heard.len() == 1 && heard[0].contains("+multi +exec"), "{heard:?}");
    }
}

/// A right that is taken away on the way leaves the end of a transaction, which runs at once then: what somebody else has
/// written in between stays.
#[tokio::test]
async fn half_of_a_fill_does_not_undo_what_others_have_written() {
    async fn lease(provider: &RedisProvider, id: &str) -> Lease {
        let wish = Acquire { key: key(id), holding: Holding::Nothing };
        match provider.acquire_many(&[wish], Duration::from_secs(60)).await.remove(0).unwrap() {
            Acquired::Granted(lease) => lease,
            other => panic!("{other:?}"),
        }
    }
    async fn fill(provider: &RedisProvider, id: &str, lease: Lease) -> Result<bool, BoxError> {
        provider.fill_many(&[Fill { put: item(id, b"old"), lease }]).await.remove(0)
    }
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port()).await;
    let other = RedisProvider::builder(server.url()).build().unwrap();
    // The server knows the script.
    assert!(fill(&other, "first", lease(&other, "first").await).await.unwrap());
    for written in ["removed", "put", "held"] {
        without(&server, &[]).close().await;
        let provider = RedisProvider::builder(proxy.url()).username("ann").password("hunter2");
        let provider = provider.build().unwrap();
        let lease = lease(&provider, written).await;
        server.command::<()>(&["ACL", "SETUSER", "ann", "-multi"]).unwrap();
        proxy.tear_before("RENAME");
        let filling = tokio::spawn(async move { fill(&provider, written, lease).await });
        let scratch = format!("f:{{users:{written}}}");
        until_async("half of it", || async { server.command::<bool>(&["EXISTS", &scratch]).unwrap() }).await;
        match written {
            "removed" => other.remove(key(written)).await.unwrap(),
            "put" => put(&other, written, "new").await,
            _ => drop(other.hold_many(&[key(written)], Duration::from_secs(5)).await.remove(0).unwrap()),
        }
        proxy.release();
        assert_eq!(kind(filling.await.unwrap()), ErrorKind::Denied);
        let found = get(&other, written).await.unwrap();
        assert_eq!(found.as_deref(), (written == "put").then_some("new"), "{written}");
    }
}

/// So it is with the mark of a cache: what has been cleared meanwhile stays so.
#[tokio::test]
async fn half_of_a_swap_does_not_undo_a_clear() {
    const LIFE: Duration = Duration::MAX;
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port()).await;
    let other = RedisProvider::builder(server.url()).build().unwrap();
    let mark = RawKey::marker(CacheId(1), "users");
    let written = |bytes| Put { key: mark, bytes: Bytes::from_static(bytes), ttl: LIFE };
    without(&server, &[]).close().await;
    let provider = RedisProvider::builder(proxy.url()).username("ann").password("hunter2").build().unwrap();
    let swapped = provider.swap(&[swap(mark, None, b"first", LIFE)]).await.unwrap();
    assert_eq!(swapped, Swapped::Done);
    server.command::<()>(&["ACL", "SETUSER", "ann", "-multi"]).unwrap();
    proxy.tear_before("RENAME");
    let swapping =
        tokio::spawn(async move { provider.swap(&[swap(mark, Some(b"first"), b"next", LIFE)]).await });
    let half = || async { server.command::<bool>(&["EXISTS", "f:{users}"]).unwrap() };
    until_async("half of it", half).await;
    other.put(written(b"cleared")).await.unwrap();
    proxy.release();
    assert_eq!(kind(swapping.await.unwrap()), ErrorKind::Denied);
    assert_eq!(other.get(mark).await.unwrap().as_deref(), Some(&b"cleared"[..]));
}

/// It need not connect anew.
#[tokio::test]
async fn a_right_that_is_given_back_is_used_again() {
    let server = RedisServer::start();
    let provider = without(&server, &[]);
    put(&provider, "k", "v").await;
    server.command::<()>(&["ACL", "SETUSER", "ann", "-multi"]).unwrap();
    assert_eq!(kind(provider.put(item("k", b"w")).await), ErrorKind::Denied);
    server.command::<()>(&["ACL", "SETUSER", "ann", "+multi"]).unwrap();
    put(&provider, "k", "x").await;
    provider.close().await;
}

/// A level without leases promises less: one that had them is none before it connects anew.
#[tokio::test]
async fn a_level_whose_scripts_are_taken_away_still_has_leases() {
    let server = RedisServer::start();
    let provider = without(&server, &[]);
    put(&provider, "k", "v").await;
    server.command::<()>(&["ACL", "SETUSER", "ann", "-eval", "-evalsha"]).unwrap();
    let wish = Acquire { key: key("k"), holding: Holding::Unreadable };
    for _ in 0..2 {
        let refused = provider.acquire_many(&[wish], Duration::from_secs(1)).await.remove(0);
        assert_eq!(kind(refused), ErrorKind::Denied);
        assert!(provider.leases().is_some());
    }
    assert_eq!(provider.connections()[0].reconnects, 0);
    provider.close().await;
}

/// Neither is what would keep others from a key that is still there.
#[tokio::test]
async fn no_half_of_a_hold() {
    let server = RedisServer::start();
    server.command::<()>(&["SET", "v:{users:k}", "theirs"]).unwrap();
    for rights in [&["-multi"][..], &["-exec"], &["-multi", "-exec"]] {
        let provider = without(&server, rights);
        let held = provider.hold_many(&[key("k")], Duration::from_secs(5)).await.remove(0);
        assert_eq!(kind(held), ErrorKind::Denied);
        let keys: Vec<String> = server.command(&["KEYS", "*"]).unwrap();
        assert_eq!(keys, ["v:{users:k}"]);
        assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("theirs"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_cluster_and_behind_sentinels() {
    let Some(cluster) = RedisCluster::start(3, 0) else { return };
    let rights = |rights: &[&str]| {
        for node in cluster.nodes() {
            let mut command = vec!["ACL", "SETUSER", "ann", "reset", "on", ">hunter2", "~*", "&*", "+@all"];
            command.extend(rights);
            node.command::<()>(&command).unwrap();
        }
        let url = format!("redis+cluster://ann:hunter2@{}", cluster.nodes()[0].addr());
        RedisProvider::builder(url).build().unwrap()
    };
    let provider = rights(&["-@scripting"]);
    let operator = Operator::of(&provider);
    provider.connect().await.unwrap();
    for n in 0..20 {
        put(&provider, &n.to_string(), "v").await;
    }
    let heard = operator.heard();
    assert!(heard.len() == 2 && heard.iter().all(|said| said.contains("EVAL")), "{heard:?}");
    assert!(heard.iter().any(|said| said.contains("r:{masters}")), "{heard:?}");
    assert!(provider.leases().is_none());
    assert_eq!(provider.incarnation(), 0);

    let provider = rights(&["-cluster|slots"]);
    let error = provider.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Denied);

    let Some(sentinels) = RedisSentinel::start() else { return };
    for server in sentinels.servers() {
        server
            .command::<()>(&["ACL", "SETUSER", "ann", "on", ">hunter2", "~*", "&*", "+@all", "-role"])
            .unwrap();
    }
    let provider =
        RedisProvider::builder(sentinels.url()).username("ann").password("hunter2").build().unwrap();
    let operator = Operator::of(&provider);
    put(&provider, "k", "v").await;
    let heard = operator.heard();
    assert!(heard.len() == 1 && heard[0].starts_with("ROLE"), "{heard:?}");
}

/// A server fills up while everybody is connected: a put finds out, or what a load fills in.
#[tokio::test]
async fn a_server_that_has_become_full_is_told_of_once() {
    for loads in [false, true] {
        let server = RedisServer::start();
        let provider = RedisProvider::builder(server.url()).build().unwrap();
        let operator = Operator::of(&provider);
        put(&provider, "k", "v").await;
        server.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
        let cache: TracedCache<String> =
            TracedCache::builder("users").level(provider.clone()).build().unwrap();
        for n in 0..3 {
            match loads {
                true => drop(cache.get_or_set(n, || async { cache_core::ok("v".to_owned()) }).await.unwrap()),
                false => drop(cache.set(n, "v".to_owned()).await.unwrap_err()),
            }
        }
        let heard = operator.heard();
        let at = format!("127.0.0.1:{} has no memory left", server.port());
        assert!(heard.len() == 1 && heard[0].starts_with(&at), "{heard:?}");
        // Whoever connects from now on is told of the same, and that is no other advice.
        kill_clients(&server);
        until_async("connected again", || async { provider.ping().await.is_ok() }).await;
        assert_eq!(operator.heard().len(), 1);
    }
}

#[tokio::test]
async fn servers_and_connections_say_how_they_are() {
    let server = RedisServer::with(&["--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru"], None);
    let provider = RedisProvider::builder(server.url()).build().unwrap();
    let facts = provider.connections();
    assert_eq!((facts.len(), facts[0].state, facts[0].generation), (1, "idle", 0));
    put(&provider, "k", "v").await;
    get(&provider, "k").await.unwrap();
    get(&provider, "nope").await.unwrap();
    let info = provider.info().await.unwrap().remove(0);
    assert_eq!(info.address, format!("127.0.0.1:{}", server.port()));
    assert_eq!(info.role.as_deref(), Some("master"));
    assert_eq!((info.memory_max, info.memory_policy.as_deref()), (Some(64 << 20), Some("allkeys-lru")));
    assert!(info.memory_used.unwrap() > 100_000 && info.memory_rss.unwrap() > 100_000);
    assert!(info.memory_peak >= info.memory_used && info.memory_fragmentation.unwrap() > 0.0);
    assert!(info.keyspace_hits.unwrap() >= 1 && info.keyspace_misses.unwrap() >= 1);
    assert!(info.clients.unwrap() >= 1 && info.commands.unwrap() > 3);
    assert_eq!((info.evicted_keys, info.expired_keys), (Some(0), Some(0)));
    assert!(info.version.is_some() && info.memory_allocator.is_some() && info.uptime.is_some());

    let facts = provider.connections().remove(0);
    assert_eq!((facts.state, facts.reconnects, facts.in_flight), ("up", 0, 0));
    server.stop();
    let waiting = three_pings(&provider);
    until_async("under way", || async { provider.connections()[0].in_flight == 3 }).await;
    // A caller who leaves does not count for ever.
    waiting.iter().for_each(JoinHandle::abort);
    until_async("left", || async { provider.connections()[0].in_flight == 0 }).await;
    server.cont();
    kill_clients(&server);
    until_async("connected again", || async { provider.connections()[0].reconnects == 1 }).await;
    assert!(provider.connections()[0].generation > facts.generation);
    let pool = provider.pool().unwrap();
    assert_eq!((pool.idle, pool.used, pool.max, pool.pending), (1, 0, 1, 0));
    assert_eq!((pool.made, pool.made_in.len(), pool.timeouts, pool.errors), (2, 2, 0, 1));
    provider.close().await;
    assert_eq!(provider.connections()[0].state, "closed");
    assert_eq!(provider.pool(), None);
    tokio::time::sleep(Duration::from_millis(1)).await;

    let Some(cluster) = RedisCluster::start(3, 0) else { return };
    let url = format!("redis+cluster://{}", cluster.nodes()[0].addr());
    let provider = RedisProvider::builder(url).build().unwrap();
    provider.connect().await.unwrap();
    assert_eq!(provider.info().await.unwrap().len(), 3);
    assert_eq!(provider.connections().iter().filter(|facts| facts.state == "up").count(), 3);
    let pool = provider.pool().unwrap();
    assert_eq!((pool.idle, pool.max, pool.made, pool.errors), (3, 3, 3, 0));
    let gone = &cluster.nodes()[2];
    gone.kill();
    until_async("lost", || async {
        let pool = provider.pool().unwrap();
        (pool.idle, pool.max) == (2, 3) && pool.errors >= 1
    })
    .await;
    assert_eq!(provider.pool().unwrap().made, 3);
}

/// Who waits is counted for as long as he does, and an attempt that takes too long is told from one that is refused.
#[tokio::test]
async fn calls_that_wait_for_a_connection_are_pending() {
    let server = RedisServer::start();
    let provider = RedisProvider::builder(server.url());
    let provider = provider.connect_timeout(Duration::from_millis(300)).build().unwrap();
    assert_eq!(provider.pool(), None, "at rest");
    server.stop();
    let waiting = three_pings(&provider);
    until_async("waiting", || async { provider.pool().is_some_and(|pool| pool.pending == 3) }).await;
    waiting[0].abort();
    until_async("left", || async { provider.pool().unwrap().pending == 2 }).await;
    for call in waiting.into_iter().skip(1) {
        assert!(call.await.unwrap().is_err());
    }
    let pool = provider.pool().unwrap();
    assert_eq!((pool.idle, pool.pending, pool.made), (0, 0, 0));
    assert!(pool.timeouts >= 1 && pool.errors == 0, "{pool:?}");
    server.kill();
    until_async("refused", || async {
        let _ = provider.ping().await;
        provider.pool().unwrap().errors >= 1
    })
    .await;
}
