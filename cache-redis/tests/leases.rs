//! Leases on a real server.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, what goes wrong must fail the test")]

mod common;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use cache_core::{
    Acquire, Acquired, Backplane, BoxError, CacheId, CacheProvider, Fill, Holding, Lease, Leases, Put,
    RawKey,
    testing::conformance::{self, Options},
};
use cache_redis::{ErrorKind, RedisProvider};
use common::{RedisServer, get, item, key, kind, proxy::Proxy, put, until_async};
use futures::future::join_all;
use redis::{AsyncConnectionConfig, ProtocolVersion, PushInfo, PushKind, Value};

const LIFE: Duration = Duration::from_secs(60);
const TOMBSTONE: &str = "\0removed";

fn provider(server: &RedisServer) -> RedisProvider {
    RedisProvider::builder(server.url()).build().unwrap()
}

async fn ask(provider: &RedisProvider, id: &str) -> Result<Acquired, BoxError> {
    let wish = Acquire { key: key(id), holding: Holding::Nothing };
    provider.acquire_many(&[wish], LIFE).await.remove(0)
}

async fn granted(provider: &RedisProvider, id: &str) -> Lease {
    match ask(provider, id).await.unwrap() {
        Acquired::Granted(lease) => lease,
        other => panic!("not granted: {other:?}"),
    }
}

async fn fill(provider: &RedisProvider, id: &str, value: &str, lease: Lease) -> Result<bool, BoxError> {
    let fill = Fill { put: item(id, value.as_bytes()), lease };
    provider.fill_many(&[fill]).await.remove(0)
}

async fn renew(provider: &RedisProvider, id: &str, lease: &Lease) -> Result<(), BoxError> {
    provider.renew_many(&[(key(id), lease.clone())], LIFE).await.remove(0)
}

async fn release(provider: &RedisProvider, id: &str, lease: &Lease) -> Result<(), BoxError> {
    provider.release_many(&[(key(id), lease.clone())]).await.remove(0)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn held_to_the_list_for_whoever_gives_leases() {
    let server = RedisServer::start();
    conformance::leases::run(Arc::new(provider(&server)), Options::default()).await;
    let prefixed =
        RedisProvider::builder(server.url()).key_prefix("app:").value_max(1 << 20).build().unwrap();
    let report = conformance::leases::run(Arc::new(prefixed), Options::default()).await;
    assert!(report.not_applicable.is_empty());
}

#[tokio::test]
async fn a_hit_is_one_get_a_miss_adds_one_round_trip_and_a_fill_is_one() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port()).await;
    let provider = RedisProvider::builder(proxy.url()).build().unwrap();
    // The server learns the scripts.
    let lease = granted(&provider, "first").await;
    assert!(fill(&provider, "first", "v", lease).await.unwrap());

    let trips = proxy.trips();
    assert_eq!(get(&provider, "k").await.unwrap(), None);
    assert_eq!(proxy.trips() - trips, 1);
    let lease = granted(&provider, "k").await;
    assert_eq!(proxy.trips() - trips, 2);
    assert!(fill(&provider, "k", "v", lease).await.unwrap());
    assert_eq!(proxy.trips() - trips, 3);
    let (trips, gets, scripts) = (proxy.trips(), server.calls("get"), server.calls("evalsha"));
    for _ in 0..5 {
        assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("v"));
    }
    assert_eq!(proxy.trips() - trips, 5);
    assert_eq!((server.calls("get") - gets, server.calls("mget")), (5, 0));
    assert_eq!(server.calls("evalsha"), scripts, "a hit is no script");

    let trips = proxy.trips();
    put(&provider, "k", "w").await;
    provider.remove(key("k")).await.unwrap();
    assert_eq!(proxy.trips() - trips, 2);
}

#[tokio::test]
async fn a_batch_is_one_round_trip() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port()).await;
    let provider = RedisProvider::builder(proxy.url()).build().unwrap();
    let ids: Vec<String> = (0..100).map(|n| n.to_string()).collect();
    let wishes: Vec<_> = ids.iter().map(|id| Acquire { key: key(id), holding: Holding::Nothing }).collect();
    for round in 0..2 {
        let trips = proxy.trips();
        let leases: Vec<_> = provider
            .acquire_many(&wishes, LIFE)
            .await
            .into_iter()
            .zip(&ids)
            .map(|(answer, id)| match answer.unwrap() {
                Acquired::Granted(lease) => (key(id), lease),
                other => panic!("not granted: {other:?}"),
            })
            .collect();
        let fills: Vec<_> = ids[..50]
            .iter()
            .zip(&leases)
            .map(|(id, (_, lease))| Fill { put: item(id, id.as_bytes()), lease: lease.clone() })
            .collect();
        assert!(provider.renew_many(&leases, LIFE).await.iter().all(Result::is_ok));
        assert!(provider.fill_many(&fills).await.into_iter().all(Result::unwrap));
        assert!(provider.release_many(&leases).await.iter().all(Result::is_ok));
        let puts: Vec<Put<'_>> = ids.iter().map(|id| item(id, b"v")).collect();
        assert!(provider.put_many(&puts).await.iter().all(Result::is_ok));
        let keys: Vec<RawKey<'_>> = ids.iter().map(|id| key(id)).collect();
        assert!(provider.remove_many(&keys).await.iter().all(Result::is_ok));
        // In the first round, the connection is made and four scripts are new to the server.
        if round == 1 {
            assert_eq!(proxy.trips() - trips, 6);
        }
    }
}

#[tokio::test]
async fn the_keys_of_an_id_stand_side_by_side_and_nothing_is_left_over() {
    let server = RedisServer::start();
    let provider = RedisProvider::builder(server.url()).key_prefix("app:").build().unwrap();
    let keys = || {
        let mut keys: Vec<String> = server.command(&["KEYS", "*"]).unwrap();
        keys.sort();
        keys
    };
    let lease = granted(&provider, "a}b").await;
    assert_eq!(keys(), ["app:l:{users:a}b}"]);
    let pttl: i64 = server.command(&["PTTL", "app:l:{users:a}b}"]).unwrap();
    assert!((1..=60_000).contains(&pttl), "{pttl}");
    let forever = Put { ttl: Duration::MAX, ..item("a}b", b"v") };
    assert!(provider.fill_many(&[Fill { put: forever, lease }]).await.remove(0).unwrap());
    assert_eq!(keys(), ["app:v:{users:a}b}"]);
    assert_eq!(server.command::<i64>(&["PTTL", "app:v:{users:a}b}"]).unwrap(), -1);

    let lost = granted(&provider, "lost").await;
    put(&provider, "lost", "set").await;
    assert!(!fill(&provider, "lost", "late", lost).await.unwrap());
    assert_eq!(keys(), ["app:v:{users:a}b}", "app:v:{users:lost}"]);

    let marker = RawKey::marker(CacheId(1), "users");
    provider.put(Put { key: marker, ..item("", b"marker") }).await.unwrap();
    assert_eq!(server.command::<String>(&["GET", "app:m:{users}"]).unwrap(), "marker");
    provider.remove(marker).await.unwrap();
    assert_eq!(
        server.command::<u64>(&["EXISTS", "app:m:{users}"]).unwrap(),
        0,
        "a marker leaves no tombstone"
    );
}

#[tokio::test]
async fn what_is_left_in_the_scratch_key_is_never_served() {
    let server = RedisServer::start();
    let provider = provider(&server);
    let lost = granted(&provider, "k").await;
    provider.remove(key("k")).await.unwrap();
    server.command::<()>(&["SET", "f:{users:k}", "left over"]).unwrap();
    assert!(!fill(&provider, "k", "late", lost).await.unwrap());
    assert_eq!(get(&provider, "k").await.unwrap(), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tombstone_is_a_miss_and_expires() {
    let server = RedisServer::start();
    let provider = provider(&server);
    put(&provider, "there", "v").await;
    provider.remove(key("there")).await.unwrap();
    provider.remove(key("absent")).await.unwrap();
    for id in ["there", "absent"] {
        let name = format!("v:{{users:{id}}}");
        assert_eq!(server.command::<String>(&["GET", &name]).unwrap(), TOMBSTONE);
        let pttl: i64 = server.command(&["PTTL", &name]).unwrap();
        assert!((50_000..=60_000).contains(&pttl), "{pttl}");
        let many = join_all((0..20).map(|_| get(&provider, id))).await;
        assert!(many.into_iter().all(|found| found.unwrap().is_none()), "gathered look-ups, too");
        assert!(provider.get_many(&[key(id)]).await.remove(0).unwrap().is_none());
        let lease = granted(&provider, id).await;
        assert!(fill(&provider, id, "new", lease).await.unwrap());
        assert_eq!(get(&provider, id).await.unwrap().as_deref(), Some("new"));
    }
    server.command::<()>(&["PEXPIRE", "v:{users:there}", "1"]).unwrap();
    until_async("gone", || async { get(&provider, "there").await.unwrap().is_none() }).await;
}

#[tokio::test]
async fn what_others_wrote_is_an_answer_and_another_type_is_replaced() {
    let server = RedisServer::start();
    let provider = provider(&server);
    server.command::<()>(&["SET", "v:{users:k}", "foreign"]).unwrap();
    assert!(matches!(ask(&provider, "k").await.unwrap(), Acquired::Found(bytes) if bytes == "foreign"));
    server.command::<()>(&["LPUSH", "v:{users:list}", "x"]).unwrap();
    let lease = granted(&provider, "list").await;
    assert!(fill(&provider, "list", "v", lease).await.unwrap());
    assert_eq!(get(&provider, "list").await.unwrap().as_deref(), Some("v"));
}

#[tokio::test]
async fn another_type_beside_a_key_is_no_lease_and_no_hold() {
    let server = RedisServer::start();
    let provider = provider(&server);
    let other = |name: &str| server.command::<()>(&["LPUSH", name, "x"]).unwrap();
    for (id, kinds) in [("a", "l"), ("b", "w"), ("c", "lw")] {
        kinds.chars().for_each(|kind| other(&format!("{kind}:{{users:{id}}}")));
        let lease = granted(&provider, id).await;
        assert!(matches!(ask(&provider, id).await.unwrap(), Acquired::Held), "{kinds}");
        renew(&provider, id, &lease).await.unwrap();
        assert!(fill(&provider, id, "v", lease).await.unwrap(), "{kinds}");
        assert_eq!(get(&provider, id).await.unwrap().as_deref(), Some("v"));
        provider.remove(key(id)).await.unwrap();
        let lease = granted(&provider, id).await;
        release(&provider, id, &lease).await.unwrap();
        // A writer takes its place.
        let hold = provider.hold_many(&[key(id)], LIFE).await.remove(0).unwrap();
        assert!(fill(&provider, id, "w", hold).await.unwrap(), "{kinds}");
        assert_eq!(get(&provider, id).await.unwrap().as_deref(), Some("w"));
    }
}

/// A server ends what it keeps by its wall clock. Where that is put back, or another server takes over whose clock is behind, a
/// lease lives for as much longer, and nobody may be there any more to give it back.
#[tokio::test]
async fn a_clock_that_goes_back_lengthens_no_lease_and_no_hold() {
    let server = RedisServer::start();
    let provider = provider(&server);
    let life = Duration::from_secs(3);
    let ask = async |holding| {
        let wish = Acquire { key: key("k"), holding };
        provider.acquire_many(&[wish], life).await.remove(0).unwrap()
    };
    let ends = |name: &str| server.command::<i64>(&["PTTL", name]).unwrap();
    const HOUR_MS: &str = "3600000";
    // Redis 6 cannot shorten only what is longer.
    let info: String = server.command(&["INFO", "server"]).unwrap();
    if info.contains("redis_version:6") {
        return;
    }
    for kind in ["l", "w"] {
        for change in [&["PEXPIRE", "", HOUR_MS][..], &["PERSIST", ""]] {
            server.command::<()>(&["FLUSHALL"]).unwrap();
            let name = format!("{kind}:{{users:k}}");
            server.command::<()>(&["SET", &name, "somebody", "PX", "3000"]).unwrap();
            let change: Vec<_> =
                change.iter().map(|word| if word.is_empty() { &*name } else { word }).collect();
            server.command::<()>(&change).unwrap();
            assert!(matches!(ask(Holding::Nothing).await, Acquired::Held | Acquired::Kept));
            assert!((1..=15_000).contains(&ends(&name)), "{kind} {change:?}: {}", ends(&name));
        }
    }
    // That of a large batch may be longer than one that is asked for alone.
    server.command::<()>(&["FLUSHALL"]).unwrap();
    server.command::<()>(&["SET", "l:{users:k}", "somebody", "PX", "10000"]).unwrap();
    assert!(matches!(ask(Holding::Nothing).await, Acquired::Held));
    assert!((5_000..=10_000).contains(&ends("l:{users:k}")));
}

/// PROTOCOL A8: a server out of memory refuses writes and transactions.
#[tokio::test]
async fn out_of_memory_an_invalidation_works_and_revokes() {
    let server = RedisServer::start();
    let provider = provider(&server);
    for id in ["there", "set", "filled", "many"] {
        put(&provider, id, "old").await;
    }
    let held = |id| Acquire { key: key(id), holding: Holding::Unreadable };
    let wishes = ["there", "absent", "set", "filled"].map(held);
    let leases: Vec<Lease> = provider
        .acquire_many(&wishes, LIFE)
        .await
        .into_iter()
        .map(|answer| match answer.unwrap() {
            Acquired::Granted(lease) => lease,
            other => panic!("not granted: {other:?}"),
        })
        .collect();

    server.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    provider.remove(key("there")).await.unwrap();
    provider.remove(key("absent")).await.unwrap();
    assert!(provider.remove_many(&[key("many"), key("none")]).await.iter().all(Result::is_ok));
    assert_eq!(kind(provider.put(item("set", b"new")).await), ErrorKind::OutOfMemory);
    assert_eq!(kind(fill(&provider, "filled", "new", leases[3].clone()).await), ErrorKind::OutOfMemory);
    assert_eq!(kind(ask(&provider, "other").await), ErrorKind::OutOfMemory);
    for id in ["there", "absent", "many", "none", "set", "filled"] {
        assert_eq!(get(&provider, id).await.unwrap(), None, "{id}: nothing of the old value");
    }
    for id in ["there", "absent", "none"] {
        let name = format!("v:{{users:{id}}}");
        assert_eq!(server.command::<String>(&["GET", &name]).unwrap(), TOMBSTONE, "{id}: others hear of it");
        assert!((1..=60_000).contains(&server.command::<i64>(&["PTTL", &name]).unwrap()));
    }

    server.command::<()>(&["CONFIG", "SET", "maxmemory", "0"]).unwrap();
    for (id, lease) in ["there", "absent", "set", "filled"].into_iter().zip(leases) {
        assert!(!fill(&provider, id, "late", lease).await.unwrap(), "{id}: revoked");
        assert_eq!(get(&provider, id).await.unwrap(), None);
    }
}

#[tokio::test]
async fn a_fill_without_memory_and_without_its_lease_takes_nothing_away() {
    let server = RedisServer::start();
    let provider = provider(&server);
    let lost = granted(&provider, "k").await;
    put(&provider, "k", "set").await;
    server.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    // Redis refuses to look; Valkey looks, and finds that the lease is gone.
    match fill(&provider, "k", "late", lost).await {
        Ok(filled) => assert!(!filled),
        refused => assert_eq!(kind(refused), ErrorKind::OutOfMemory),
    }
    assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("set"));
}

#[tokio::test]
async fn out_of_memory_and_without_scripts_an_invalidation_still_works() {
    let server = RedisServer::start();
    server
        .command::<()>(&["ACL", "SETUSER", "ann", "on", ">pw", "~*", "+@all", "-eval", "-evalsha"])
        .unwrap();
    let url = format!("redis://ann:pw@127.0.0.1:{}", server.port());
    let provider = RedisProvider::builder(url).build().unwrap();
    put(&provider, "k", "old").await;
    server.command::<()>(&["SET", "l:{users:k}", "token"]).unwrap();
    server.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    provider.remove(key("k")).await.unwrap();
    provider.remove(key("absent")).await.unwrap();
    assert_eq!(server.command::<usize>(&["DBSIZE"]).unwrap(), 0, "value and lease");
    assert_eq!(kind(ask(&provider, "k").await), ErrorKind::Denied);
}

#[tokio::test]
async fn a_server_that_forgets_the_scripts_is_told_again() {
    let server = RedisServer::start();
    let provider = provider(&server);
    let forget = || server.command::<()>(&["SCRIPT", "FLUSH"]).unwrap();
    for _ in 0..2 {
        forget();
        let lease = granted(&provider, "k").await;
        forget();
        assert!(matches!(ask(&provider, "k").await.unwrap(), Acquired::Held));
        forget();
        renew(&provider, "k", &lease).await.unwrap();
        forget();
        assert!(fill(&provider, "k", "v", lease.clone()).await.unwrap(), "not taken for a lost lease");
        assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("v"));
        forget();
        assert!(!fill(&provider, "k", "late", lease).await.unwrap(), "nor a lost lease for something else");
        provider.remove(key("k")).await.unwrap();
        let lease = granted(&provider, "k").await;
        forget();
        release(&provider, "k", &lease).await.unwrap();
        let lease = granted(&provider, "k").await;
        release(&provider, "k", &lease).await.unwrap();
    }
    assert_eq!(get(&provider, "k").await.unwrap(), None);
}

#[tokio::test]
async fn a_lease_whose_grant_was_lost_on_the_way_is_granted() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port()).await;
    let provider = RedisProvider::builder(proxy.url()).build().unwrap();
    let known = granted(&provider, "known").await;
    assert!(fill(&provider, "known", "v", known).await.unwrap(), "the server knows the script");
    let first = granted(&provider, "first").await;
    proxy.cut_next_answer();
    let lease = granted(&provider, "k").await;
    assert_eq!(server.command::<u64>(&["EXISTS", "l:{users:k}"]).unwrap(), 1);
    proxy.cut_next_answer();
    renew(&provider, "k", &lease).await.unwrap();
    proxy.cut_next_answer();
    release(&provider, "first", &first).await.unwrap();
    granted(&provider, "first").await;
    // Of a fill the outcome is unknown: it is not sent twice.
    let fills = server.calls("rename");
    proxy.cut_next_answer();
    assert_eq!(kind(fill(&provider, "k", "v", lease).await), ErrorKind::Disconnected);
    assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("v"));
    assert_eq!(server.calls("rename") - fills, 1);
}

/// As when its caller leaves, or the level's budget is over.
#[tokio::test]
async fn who_does_not_wait_for_a_lease_leaves_none_behind() {
    let server = RedisServer::start();
    let (provider, other) = (provider(&server), provider(&server));
    granted(&provider, "known").await;
    server.stop();
    assert!(tokio::time::timeout(Duration::from_millis(100), ask(&provider, "k")).await.is_err());
    server.cont();
    until_async("granted to another", || async {
        matches!(ask(&other, "k").await.unwrap(), Acquired::Granted(_))
    })
    .await;
}

#[tokio::test]
async fn who_does_not_wait_for_a_hold_leaves_none_behind() {
    let server = RedisServer::start();
    let (provider, other) = (provider(&server), provider(&server));
    let known = [key("known")];
    provider.hold_many(&known, LIFE).await.remove(0).unwrap();
    let holds = server.calls("exec");
    server.stop();
    let keys = [key("k")];
    let asked = provider.hold_many(&keys, LIFE);
    assert!(tokio::time::timeout(Duration::from_millis(100), asked).await.is_err());
    server.cont();
    until_async("held", || async { server.calls("exec") > holds }).await;
    until_async("granted to another", || async {
        matches!(ask(&other, "k").await.unwrap(), Acquired::Granted(_))
    })
    .await;
}

#[tokio::test]
async fn a_replica_gives_no_leases() {
    let server = RedisServer::start();
    let provider = provider(&server);
    let lease = granted(&provider, "k").await;
    server.command::<()>(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
    assert_eq!(kind(ask(&provider, "k").await), ErrorKind::ReadOnly);
    assert_eq!(kind(fill(&provider, "k", "v", lease).await), ErrorKind::ReadOnly);
    assert_eq!(kind(provider.remove(key("k")).await), ErrorKind::ReadOnly);
}

#[tokio::test]
async fn who_may_not_run_scripts_or_transactions_is_told_so() {
    let server = RedisServer::start();
    for (user, rule) in [("noeval", "-evalsha"), ("nomulti", "-multi")] {
        server.command::<()>(&["ACL", "SETUSER", user, "on", ">pw", "~*", "+@all", rule]).unwrap();
        let url = format!("redis://{user}:pw@127.0.0.1:{}", server.port());
        let provider = RedisProvider::builder(url).build().unwrap();
        let lease = Lease("never given".into());
        assert_eq!(kind(fill(&provider, "secret-id", "v", lease).await), ErrorKind::Denied);
        assert_eq!(get(&provider, "secret-id").await.unwrap(), None);
    }
}

/// What the crate's front page says that a user needs.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_with_the_stated_permissions_can_do_all_of_it() {
    let server = RedisServer::start();
    let rules = "on >pw ~shop:* resetchannels &shop:b:* +get +mget +set +del +unlink +rename +evalsha +eval \
                 +multi +exec +getrange +pexpire +pttl +ping +subscribe +unsubscribe +publish";
    let user: Vec<&str> = ["ACL", "SETUSER", "ann"].into_iter().chain(rules.split_whitespace()).collect();
    server.command::<()>(&user).unwrap();
    let url = format!("redis://ann:pw@127.0.0.1:{}", server.port());
    let provider = RedisProvider::builder(url).key_prefix("shop:").value_max(1 << 20).build().unwrap();
    conformance::leases::run(Arc::new(provider.clone()), Options::default()).await;
    put(&provider, "k", "v").await;
    server.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    provider.remove(key("k")).await.unwrap();
    assert_eq!(get(&provider, "k").await.unwrap(), None);
    provider.backplane().publish("users", "m".into()).await.unwrap();
}

/// PROTOCOL A1, A10: removing what is not there reaches those who track it, and of a fill they hear once.
#[tokio::test]
async fn who_tracks_values_hears_of_removals_and_fills_and_of_no_lease() {
    let server = RedisServer::start();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    let config = AsyncConnectionConfig::new().set_push_sender(move |push: PushInfo| {
        if push.kind == PushKind::Invalidate {
            for value in push.data {
                if let Value::Array(keys) = value {
                    hears
                        .lock()
                        .unwrap()
                        .extend(keys.into_iter().map(|key| redis::from_redis_value::<String>(key).unwrap()));
                }
            }
        }
        Ok::<(), redis::aio::SendError>(())
    });
    let client = redis::Client::open(format!("{}?protocol=resp3", server.url())).unwrap();
    assert_eq!(client.get_connection_info().redis_settings().protocol(), ProtocolVersion::RESP3);
    let mut tracker = client.get_multiplexed_async_connection_with_config(&config).await.unwrap();
    let mut track = redis::cmd("CLIENT");
    track.arg("TRACKING").arg("ON").arg("BCAST").arg("PREFIX").arg("v:{users:").arg("NOLOOP");
    track.exec_async(&mut tracker).await.unwrap();

    let provider = provider(&server);
    provider.remove(key("absent")).await.unwrap();
    let lease = granted(&provider, "k").await;
    assert!(fill(&provider, "k", "v", lease).await.unwrap());
    let lost = granted(&provider, "late").await;
    provider.remove(key("late")).await.unwrap();
    assert!(!fill(&provider, "late", "v", lost).await.unwrap());
    until_async("heard", || async { heard.lock().unwrap().iter().any(|key| key == "v:{users:late}") }).await;
    assert_eq!(*heard.lock().unwrap(), ["v:{users:absent}", "v:{users:k}", "v:{users:late}"]);
}

/// Slow loads, fills and invalidations at once: what is read is never older than the last invalidation that answered
/// before the read began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_fill_survives_an_invalidation_that_came_after_its_load_began() {
    let server = RedisServer::start();
    let providers: Vec<_> = (0..3).map(|_| provider(&server)).collect();
    let (source, invalidated) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicU64::new(0)));
    let end = Instant::now() + Duration::from_millis(1500);
    let loaders = (0..24).map(|n| {
        let (provider, source, invalidated) =
            (providers[n % 3].clone(), Arc::clone(&source), Arc::clone(&invalidated));
        tokio::spawn(async move {
            let (mut fills, mut refused) = (0, 0);
            while Instant::now() < end {
                let least = invalidated.load(Ordering::SeqCst);
                match ask(&provider, "k").await.unwrap() {
                    Acquired::Found(bytes) => {
                        let read: u64 = std::str::from_utf8(&bytes).unwrap().parse().unwrap();
                        assert!(read >= least, "read {read} after {least} had been invalidated");
                    }
                    Acquired::Granted(lease) => {
                        let loaded = source.load(Ordering::SeqCst).to_string();
                        tokio::time::sleep(Duration::from_micros(fastrand::u64(..3000))).await;
                        match fill(&provider, "k", &loaded, lease).await.unwrap() {
                            true => fills += 1,
                            false => refused += 1,
                        }
                    }
                    Acquired::Held | Acquired::Kept => tokio::time::sleep(Duration::from_micros(500)).await,
                    other => panic!("{other:?}"),
                }
            }
            (fills, refused)
        })
    });
    let loaders: Vec<_> = loaders.collect();
    let writer = tokio::spawn(async move {
        while Instant::now() < end {
            let version = source.fetch_add(1, Ordering::SeqCst) + 1;
            providers[fastrand::usize(..3)].remove(key("k")).await.unwrap();
            invalidated.store(version, Ordering::SeqCst);
            tokio::time::sleep(Duration::from_micros(fastrand::u64(..4000))).await;
        }
    });
    let counts = join_all(loaders).await.into_iter().map(Result::unwrap);
    let (fills, refused) = counts.fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1));
    writer.await.unwrap();
    assert!(fills > 10 && refused > 10, "{fills} fills, {refused} refused: the test saw both");
}
