//! The store, watched: what a node hears of, and what it does not.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, what goes wrong must fail the test")]

mod common;

use std::{
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use cache_core::{
    Acquire, Acquired, Advised, Backplane, CacheId, CacheProvider, Fill, Holding, Leases, Listener, Put,
    RawKey, Swapped,
};
use cache_redis::{ErrorKind, RedisBackplane, RedisProvider, RedisProviderBuilder};
use common::{RedisServer, item, key, kind, put, swap, until, until_async};
use test_servers::{Proxy, RedisCluster};

const MINUTE: Duration = Duration::from_secs(60);

/// Remembers what it hears of a cache that keeps its entries in the store.
#[derive(Default)]
struct Ear {
    changed: Mutex<Vec<String>>,
    messages: Mutex<Vec<Vec<u8>>>,
    markers: AtomicUsize,
    gaps: AtomicUsize,
    closed: AtomicBool,
}

impl Listener for Ear {
    fn message(&self, bytes: &[u8]) {
        self.messages.lock().unwrap().push(bytes.to_vec());
    }

    fn gap(&self) {
        self.gaps.fetch_add(1, Ordering::SeqCst);
    }

    fn changed(&self, id: &str) {
        self.changed.lock().unwrap().push(id.to_owned());
    }

    fn marker_changed(&self) {
        self.markers.fetch_add(1, Ordering::SeqCst);
    }

    fn keeps_in(&self, store: u64) -> bool {
        store != 0
    }

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}

impl Ear {
    fn gaps(&self) -> usize {
        self.gaps.load(Ordering::SeqCst)
    }

    fn changed(&self) -> Vec<String> {
        self.changed.lock().unwrap().clone()
    }

    async fn until_gaps(&self, count: usize) {
        until_async(&format!("{count} gaps"), || async { self.gaps() >= count }).await;
    }

    async fn until_changed_mark(&self) {
        until_async("a mark", || async { self.markers.load(Ordering::SeqCst) > 0 }).await;
    }

    /// Until it has heard of this id, which ends what a test looks at.
    async fn until_changed(&self, id: &str) {
        until_async(id, || async { self.changed().iter().any(|changed| changed == id) }).await;
    }
}

struct Node {
    provider: RedisProvider,
    backplane: RedisBackplane,
    ear: Arc<Ear>,
}

/// A node that hears.
async fn node(builder: RedisProviderBuilder) -> Node {
    let provider = builder.build().unwrap();
    let backplane = provider.backplane();
    let ear = Arc::new(Ear::default());
    backplane.subscribe("users", Arc::<Ear>::clone(&ear));
    ear.until_gaps(1).await;
    Node { provider, backplane, ear }
}

fn to(server: &RedisServer) -> RedisProviderBuilder {
    RedisProvider::builder(server.url())
}

async fn fill(provider: &RedisProvider, id: &str, value: &str) {
    let wanted = [Acquire { key: key(id), holding: Holding::Nothing }];
    let Ok(Acquired::Granted(lease)) = provider.acquire_many(&wanted, MINUTE).await.remove(0) else {
        panic!("no lease")
    };
    let put = item(id, value.as_bytes());
    assert!(provider.fill_many(&[Fill { put, lease }]).await.remove(0).unwrap());
}

/// Experiments 1 to 3: whatever a node does to a key reaches the others, also where the store holds nothing, and never
/// the node itself, which goes on hearing of the key.
#[tokio::test]
async fn p1_others_hear_of_every_write_and_the_writer_of_none() {
    let server = RedisServer::start();
    let (a, b) = (node(to(&server)).await, node(to(&server)).await);
    put(&a.provider, "set", "v").await;
    fill(&a.provider, "filled", "v").await;
    a.provider.remove(key("absent")).await.unwrap();
    a.provider.remove(key("filled")).await.unwrap();
    let batch = [item("x", b"v"), item("y", b"v")];
    assert!(a.provider.put_many(&batch).await.iter().all(Result::is_ok));
    a.provider.put(Put { key: RawKey::marker(CacheId(1), "users"), ..item("", b"marker") }).await.unwrap();
    put(&a.provider, "end", "v").await;
    b.ear.until_changed("end").await;
    assert_eq!(b.ear.changed(), ["set", "filled", "absent", "filled", "x", "y", "end"]);
    assert_eq!((b.ear.markers.load(Ordering::SeqCst), b.ear.gaps()), (1, 1));

    // The writer has heard nothing so far, and hears when another one writes the same keys.
    put(&b.provider, "set", "w").await;
    a.ear.until_changed("set").await;
    assert_eq!((a.ear.changed(), a.ear.gaps()), (vec!["set".to_owned()], 1));
    assert_eq!(a.ear.markers.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn p1_programs_in_any_language_are_heard_and_so_is_what_the_server_does_itself() {
    let server = RedisServer::start();
    let a = node(to(&server)).await;
    server.command::<()>(&["SET", "v:{users:42}", "theirs"]).unwrap();
    a.ear.until_changed("42").await;
    server.command::<()>(&["SET", "v:{users:brief}", "x", "PX", "1"]).unwrap();
    until_async("set and expired", || async {
        let _: Option<String> = server.command(&["GET", "v:{users:brief}"]).unwrap();
        a.ear.changed().iter().filter(|id| *id == "brief").count() == 2
    })
    .await;
    server.command::<()>(&["SET", "m:{users}", "x"]).unwrap();
    // Not ours: another cache, another prefix, a lease, no text.
    for other in ["v:{orders:1}", "app:v:{users:1}", "l:{users:1}", "v:{users}", "m:{users:1}"] {
        server.command::<()>(&["SET", other, "x"]).unwrap();
    }
    let mut nonsense = b"v:{users:".to_vec();
    nonsense.extend([0xff, b'}']);
    redis::cmd("SET").arg(nonsense).arg("x").exec(&mut connection(&server)).unwrap();
    for odd in ["a}b", "a:b", "é", "}"] {
        server.command::<()>(&["SET", &format!("v:{{users:{odd}}}"), "x"]).unwrap();
        a.ear.until_changed(odd).await;
    }
    assert_eq!(a.ear.changed(), ["42", "brief", "brief", "a}b", "a:b", "é", "}"]);
    assert_eq!((a.ear.markers.load(Ordering::SeqCst), a.ear.gaps()), (1, 1));
    server.command::<()>(&["FLUSHDB"]).unwrap();
    a.ear.until_gaps(2).await;
}

fn connection(server: &RedisServer) -> redis::Connection {
    redis::Client::open(server.url()).unwrap().get_connection().unwrap()
}

#[tokio::test]
async fn y2_a_key_that_is_not_known_from_its_short_form_puts_all_in_doubt() {
    let server = RedisServer::start();
    let (a, b) = (node(to(&server)).await, node(to(&server)).await);
    put(&a.provider, &"k".repeat(10_000), "v").await;
    b.ear.until_gaps(2).await;
    assert!(b.ear.changed().is_empty());
}

/// Prefixes come one after the other over one connection, and caches with like names are apart.
#[tokio::test]
async fn whoever_comes_later_hears_from_then_on() {
    let server = RedisServer::start();
    let a = node(to(&server).key_prefix("app:").heartbeat(Duration::from_secs(3600))).await;
    let mut later = Vec::new();
    for name in ["user", "users/of/a", "users"] {
        let ear = Arc::new(Ear::default());
        a.backplane.subscribe(name, Arc::<Ear>::clone(&ear));
        ear.until_gaps(1).await;
        later.push(ear);
    }
    for name in ["user", "users/of/a", "users"] {
        server.command::<()>(&["SET", &format!("app:v:{{{name}:of {name}}}"), "x"]).unwrap();
    }
    later[2].until_changed("of users").await;
    assert_eq!(later[0].changed(), ["of user"]);
    assert_eq!(later[1].changed(), ["of users/of/a"]);
    assert_eq!(
        (a.ear.changed(), later[2].changed()),
        (vec!["of users".to_owned()], vec!["of users".to_owned()])
    );
    assert_eq!((a.ear.gaps(), later[2].gaps()), (1, 1));
    later[0].closed.store(true, Ordering::SeqCst);
    let another = Arc::new(Ear::default());
    a.backplane.subscribe("orders", Arc::<Ear>::clone(&another));
    another.until_gaps(1).await;
    assert_eq!(Arc::strong_count(&later[0]), 1, "who listens no more is forgotten");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_connection_is_a_gap_and_nothing_of_after_is_missed() {
    let server = RedisServer::start();
    let proxy = Proxy::start(([127, 0, 0, 1], server.port()).into());
    let a = node(RedisProvider::builder(format!("redis://{}", proxy.addr()))).await;
    for round in 0..5 {
        let gaps = a.ear.gaps();
        proxy.cut();
        a.ear.until_gaps(gaps + 2).await;
        let id = format!("after {round}");
        server.command::<()>(&["SET", &format!("v:{{users:{id}}}"), "x"]).unwrap();
        a.ear.until_changed(&id).await;
    }
    assert_eq!(a.ear.gaps(), 11, "one at the loss, one at the return");
    server.kill();
    a.ear.until_gaps(12).await;
    server.restart();
    a.ear.until_gaps(13).await;
    server.command::<()>(&["SET", "v:{users:end}", "x"]).unwrap();
    a.ear.until_changed("end").await;
    a.provider.close().await;
    a.ear.until_gaps(14).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_noticed_within_heartbeat_and_timeout() {
    let server = RedisServer::start();
    let (beat, limit) = (Duration::from_millis(100), Duration::from_millis(300));
    let builder = to(&server).heartbeat(beat).heartbeat_timeout(limit).connect_timeout(limit);
    let a = node(builder).await;
    tokio::time::sleep((beat + limit) * 3).await;
    assert_eq!(a.ear.gaps(), 1, "an idle connection is kept");
    let start = Instant::now();
    server.stop();
    a.ear.until_gaps(2).await;
    assert!(start.elapsed() < beat + limit + Duration::from_secs(2), "noticed after {:?}", start.elapsed());
    // Again and again: whatever is kept meanwhile may be wrong.
    a.ear.until_gaps(4).await;
    server.cont();
    until_async("heard again", || async {
        server.command::<()>(&["SET", "v:{users:end}", "x"]).unwrap();
        a.ear.changed().contains(&"end".to_owned())
    })
    .await;
}

#[tokio::test]
async fn p4_no_message_is_published_once_nobody_needs_any() {
    let server = RedisServer::start();
    let (a, b) = (node(to(&server)).await, node(to(&server)).await);
    put(&a.provider, "k", "v").await;
    assert!(a.backplane.hears_writes("users") && b.backplane.hears_writes("users"));
    assert!(!a.backplane.hears_writes("orders"), "nobody listens");

    // One that goes by messages listens before it believes to hear everything, and a write finds it there.
    let messages = to(&server).build().unwrap().messages();
    let ear = Arc::new(Ear::default());
    messages.subscribe("users", Arc::<Ear>::clone(&ear));
    ear.until_gaps(1).await;
    put(&a.provider, "k", "v").await;
    assert!(!a.backplane.hears_writes("users"), "it was there before the reply");
    a.backplane.publish("users", Bytes::from_static(b"m")).await.unwrap();
    until_async("heard", || async { !ear.messages.lock().unwrap().is_empty() }).await;
    assert!(b.ear.messages.lock().unwrap().is_empty(), "who watches hears no messages");
    assert_eq!(b.ear.gaps(), 1);
    until_async("forgotten", || async { a.backplane.hears_writes("users") }).await;
    fill(&a.provider, "filled", "v").await;
    assert!(!a.backplane.hears_writes("users"), "the next write finds it again");
    drop(messages);
    until_async("quiet again", || async { a.backplane.hears_writes("users") }).await;
}

/// A subscriber is sent 32 MiB at once, or is cut off: with all that memory kept, and all that others wait for.
#[tokio::test]
async fn who_watches_may_read_more_at_once_than_a_subscriber_is_sent() {
    let server = RedisServer::with(&["--client-output-buffer-limit", "pubsub 1mb 1mb 1"], None);
    let a = node(to(&server)).await;
    let ids: Vec<String> = (0..40).map(|n| n.to_string()).collect();
    let value = "x".repeat(100_000);
    for id in &ids {
        put(&a.provider, id, &value).await;
    }
    let keys: Vec<_> = ids.iter().map(|id| key(id)).collect();
    for found in a.provider.get_many(&keys).await {
        assert_eq!(found.unwrap().unwrap().len(), value.len());
    }
    for found in futures::future::join_all(keys.iter().map(|key| a.provider.get(*key))).await {
        assert_eq!(found.unwrap().unwrap().len(), value.len());
    }
    assert_eq!((a.provider.connections()[0].reconnects, a.ear.gaps()), (0, 1));
}

/// Over one connection the server does not tell one of what the other writes.
#[tokio::test]
async fn two_caches_of_one_name_on_one_provider_tell_each_other() {
    let server = RedisServer::start();
    let a = node(to(&server)).await;
    until_async("quiet", || async { a.backplane.hears_writes("users") }).await;
    let second = Arc::new(Ear::default());
    let beside = a.provider.backplane();
    beside.subscribe("users", Arc::<Ear>::clone(&second));
    second.until_gaps(1).await;
    assert!(!a.backplane.hears_writes("users"));
    a.backplane.publish("users", Bytes::from_static(b"m")).await.unwrap();
    assert_eq!(*second.messages.lock().unwrap(), [b"m"]);
}

/// Who has changed the mark knows: to look at it again would cost a round trip each, and in a row of invalidations writers
/// would not get to know it.
#[tokio::test]
async fn a_change_of_the_mark_is_news_to_others_alone() {
    let server = RedisServer::start();
    let (a, b) = (node(to(&server)).await, node(to(&server)).await);
    let mark = RawKey::marker(CacheId(1), "users");
    let tag = RawKey::tag(CacheId(1), "users", "vip");
    let marks = a.provider.marks().unwrap();
    let first = [swap(mark, None, b"1", Duration::MAX)];
    assert_eq!(marks.swap(&first).await.unwrap(), Swapped::Done);
    let next = [swap(tag, None, b"t", MINUTE), swap(mark, Some(b"1"), b"2", Duration::MAX)];
    assert_eq!(marks.swap(&next).await.unwrap(), Swapped::Done);
    let late = swap(mark, Some(b"1"), b"3", Duration::MAX);
    let now = Some(Bytes::from_static(b"2"));
    assert_eq!(marks.swap(&[late]).await.unwrap(), Swapped::Other { at: 0, now });
    b.ear.until_changed_mark().await;
    put(&b.provider, "last", "v").await;
    a.ear.until_changed("last").await;
    assert_eq!(a.ear.markers.load(Ordering::SeqCst), 0);
    let left: Vec<String> = server.command(&["KEYS", "f:*"]).unwrap();
    assert!(left.is_empty(), "{left:?}");
}

fn watched_prefixes(server: &RedisServer) -> usize {
    let info: String = server.command(&["INFO", "stats"]).unwrap();
    info.lines().find_map(|line| line.strip_prefix("tracking_total_prefixes:")).unwrap().parse().unwrap()
}

/// The server would go on comparing their keys with every write of anybody. To forget them is a gap, which must be rare.
#[tokio::test]
async fn caches_that_come_and_go_are_not_watched_for_ever() {
    const CACHES: usize = 400;
    let server = RedisServer::start();
    let (a, b) = (node(to(&server)).await, node(to(&server)).await);
    for n in 0..CACHES {
        let ear = Arc::new(Ear::default());
        a.backplane.subscribe(&format!("tenant{n}"), Arc::<Ear>::clone(&ear));
        ear.until_gaps(1).await;
        ear.closed.store(true, Ordering::SeqCst);
    }
    let watched = watched_prefixes(&server);
    assert!(watched < 2 * (CACHES - 90), "{watched} prefixes, of two caches");
    // Nothing was watched for a moment.
    assert_eq!(a.ear.gaps(), 2);
    put(&b.provider, "k", "v").await;
    a.ear.until_changed("k").await;
}

/// Nobody may come after them for whom the server would be asked anew.
#[tokio::test]
async fn many_caches_that_go_are_forgotten_though_nobody_comes() {
    let server = RedisServer::start();
    let b = node(to(&server)).await;
    let provider = to(&server).heartbeat(Duration::from_millis(100)).build().unwrap();
    let backplane = provider.backplane();
    let ears: Vec<_> = (0..150)
        .map(|n| {
            let ear = Arc::new(Ear::default());
            backplane.subscribe(
                if n == 0 { "users".into() } else { format!("tenant{n}") }.as_str(),
                Arc::<Ear>::clone(&ear),
            );
            ear
        })
        .collect();
    for ear in &ears {
        ear.until_gaps(1).await;
    }
    let (stays, go) = ears.split_first().unwrap();
    go.iter().for_each(|ear| ear.closed.store(true, Ordering::SeqCst));
    until_async("forgotten", || async { watched_prefixes(&server) == 2 }).await;
    stays.until_gaps(2).await;
    put(&b.provider, "k", "v").await;
    stays.until_changed("k").await;
}

/// Notes what is watched when it is told that it hears.
struct Novice {
    server: Arc<RedisServer>,
    watched: Mutex<Vec<usize>>,
}

impl Listener for Novice {
    fn message(&self, _: &[u8]) {}

    fn gap(&self) {
        self.watched.lock().unwrap().push(watched_prefixes(&self.server));
    }

    fn keeps_in(&self, store: u64) -> bool {
        store != 0
    }

    fn is_closed(&self) -> bool {
        false
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_comes_while_others_begin_to_hear_is_told_when_it_hears() {
    let server = Arc::new(RedisServer::start());
    let proxy = Proxy::start(server.addr());
    let a = node(RedisProvider::builder(format!("redis://{}", proxy.addr()))).await;
    // What the server has been told takes effect there before it is known here.
    proxy.delay(Duration::from_millis(300));
    let (first, second) =
        (Arc::new(Ear::default()), Novice { server: Arc::clone(&server), watched: Mutex::default() });
    let second = Arc::new(second);
    a.backplane.subscribe("first", Arc::<Ear>::clone(&first));
    until_async("two are watched", || async { watched_prefixes(&server) == 4 }).await;
    a.backplane.subscribe("second", Arc::<Novice>::clone(&second));
    until_async("told", || async { !second.watched.lock().unwrap().is_empty() }).await;
    assert_eq!(*second.watched.lock().unwrap(), [6]);
    assert_eq!(first.gaps(), 1);
}

#[tokio::test]
async fn it_ends_with_its_backplane_and_at_close() {
    let server = RedisServer::start();
    let a = node(to(&server)).await;
    let clone = a.backplane.clone();
    drop(a.backplane);
    server.command::<()>(&["SET", "v:{users:1}", "x"]).unwrap();
    a.ear.until_changed("1").await;
    drop(clone);
    a.ear.until_gaps(2).await;
    assert_eq!(Arc::strong_count(&a.ear), 1);

    let b = node(to(&server)).await;
    b.backplane.close().await;
    b.ear.until_gaps(2).await;
    assert!(b.backplane.publish("users", Bytes::new()).await.is_err());
    put(&b.provider, "k", "the provider goes on").await;
}

#[derive(Default)]
struct Operator(Mutex<Vec<String>>);

impl Advised for Operator {
    fn advice(&self, text: &str) {
        self.0.lock().unwrap().push(text.to_owned());
    }
}

#[tokio::test]
async fn who_may_not_track_goes_by_messages_and_says_so_once() {
    let server = RedisServer::start();
    let rights = ["ACL", "SETUSER", "ann", "on", ">pw", "~*", "&*", "+@all", "-client|tracking"];
    server.command::<()>(&rights).unwrap();
    let provider =
        RedisProvider::builder(format!("redis://ann:pw@127.0.0.1:{}", server.port())).build().unwrap();
    let operator = Arc::new(Operator::default());
    let weak: Weak<Operator> = Arc::downgrade(&operator);
    provider.advise(weak);
    let backplane = provider.backplane();
    let other = node(to(&server)).await;
    let ears: Vec<_> = ["users", "orders"]
        .map(|name| {
            let ear = Arc::new(Ear::default());
            backplane.subscribe(name, Arc::<Ear>::clone(&ear));
            ear
        })
        .into();
    for ear in &ears {
        ear.until_gaps(1).await;
    }
    until_async("the other node knows", || async {
        put(&other.provider, "k", "v").await;
        !other.backplane.hears_writes("users")
    })
    .await;
    assert!(!backplane.hears_writes("users"));
    until_async("a message is heard", || async {
        other.backplane.publish("users", Bytes::from_static(b"m")).await.unwrap();
        !ears[0].messages.lock().unwrap().is_empty()
    })
    .await;
    backplane.publish("users", Bytes::from_static(b"own")).await.unwrap();
    let said = operator.0.lock().unwrap().clone();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(said[0].contains("CLIENT TRACKING") && said[0].contains("+client|tracking"), "{said:?}");
    assert!(!said[0].contains("pw"), "{said:?}");
}

#[tokio::test]
async fn who_may_not_use_channels_tracks_all_the_same() {
    let server = RedisServer::start();
    let rights = ["ACL", "SETUSER", "ann", "on", ">pw", "~*", "resetchannels", "+@all", "-pubsub"];
    server.command::<()>(&rights).unwrap();
    let builder = RedisProvider::builder(format!("redis://ann:pw@127.0.0.1:{}", server.port()));
    let operator = Arc::new(Operator::default());
    let a = node(builder).await;
    a.provider.advise(Arc::<Operator>::downgrade(&operator) as Weak<dyn Advised>);
    server.command::<()>(&["SET", "v:{users:1}", "x"]).unwrap();
    a.ear.until_changed("1").await;
    assert!(a.backplane.hears_writes("users"));
    let said = operator.0.lock().unwrap().clone();
    assert!(said.len() == 1 && said[0].contains("SUBSCRIBE") && said[0].contains("&b:want:0"), "{said:?}");
}

/// A server that is busy with a script refuses whatever it is asked: that is no word on who may track.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_server_is_waited_for() {
    let server = RedisServer::with(&["--lua-time-limit", "20"], None);
    let script = "local now = redis.call('TIME') local till = now[1] * 1000 + now[2] / 1000 + 800 \
                  repeat now = redis.call('TIME') until now[1] * 1000 + now[2] / 1000 > till return 1";
    let port = server.port();
    let busy = std::thread::spawn(move || {
        let client = redis::Client::open(format!("redis://127.0.0.1:{port}")).unwrap();
        redis::cmd("EVAL").arg(script).arg(0).query::<i64>(&mut client.get_connection().unwrap()).unwrap()
    });
    until("busy", || server.command::<String>(&["PING"]).is_err());
    let provider = to(&server).build().unwrap();
    let operator = Arc::new(Operator::default());
    provider.advise(Arc::<Operator>::downgrade(&operator) as Weak<dyn Advised>);
    let (backplane, ear) = (provider.backplane(), Arc::new(Ear::default()));
    backplane.subscribe("users", Arc::<Ear>::clone(&ear));
    assert_eq!(provider.connect().await.unwrap_err().kind(), ErrorKind::Unavailable);
    busy.join().unwrap();
    until_async("well again", || async { provider.ping().await.is_ok() }).await;
    ear.until_gaps(1).await;
    server.command::<()>(&["SET", "v:{users:1}", "x"]).unwrap();
    ear.until_changed("1").await;
    assert_ne!(provider.incarnation(), 0);
    assert!(operator.0.lock().unwrap().is_empty());
}

#[test]
fn it_outlives_the_runtime_that_it_ran_on() {
    let server = RedisServer::start();
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let first = runtime();
    let a = first.block_on(node(to(&server)));
    drop(first);
    until("a gap", || a.ear.gaps() == 2);
    runtime().block_on(async {
        put(&a.provider, "k", "starts it").await;
        a.ear.until_gaps(3).await;
        server.command::<()>(&["SET", "v:{users:1}", "x"]).unwrap();
        a.ear.until_changed("1").await;
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_100_000_changes_is_applied_in_bounded_memory() {
    const COUNT: usize = 100_000;
    let server = RedisServer::start();
    let a = node(to(&server).heartbeat_timeout(MINUTE).response_timeout(MINUTE)).await;
    let url = server.url();
    let writer = std::thread::spawn(move || {
        let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
        for chunk in 0..COUNT / 1000 {
            let mut pipeline = redis::pipe();
            for n in 0..1000 {
                pipeline.cmd("SET").arg(format!("v:{{users:{}}}", chunk * 1000 + n)).arg("x").ignore();
            }
            pipeline.exec(&mut connection).unwrap();
        }
    });
    let start = Instant::now();
    let mut slowest = Duration::ZERO;
    until_async("all have arrived", || async { a.ear.changed.lock().unwrap().len() == COUNT }).await;
    let asked = Instant::now();
    a.provider.ping().await.unwrap();
    slowest = slowest.max(asked.elapsed());
    println!("{COUNT} changes in {:?}, then a ping in {slowest:?}", start.elapsed());
    writer.join().unwrap();
    assert_eq!(a.ear.gaps(), 1);
    // One single command may change as many.
    let script = "for n = 1, 100000 do redis.call('SET', 'v:{users:'..n..'}', 'y') end";
    server.command::<()>(&["EVAL", script, "0"]).unwrap();
    until_async("all have arrived", || async { a.ear.changed.lock().unwrap().len() == 2 * COUNT }).await;
    assert_eq!(a.ear.gaps(), 1);
}

/// Each master tells of its own part of the keys.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn p1_in_a_cluster_every_master_tells() {
    let Some(cluster) = RedisCluster::start(3, 1) else { return };
    let at = || RedisProvider::builder(format!("redis+cluster://{}", cluster.nodes()[0].addr()));
    let (a, b) = (node(at()).await, node(at()).await);
    // One gap of each master: those that connect later may have missed something.
    for node in [&a, &b] {
        node.provider.connect().await.unwrap();
        node.ear.until_gaps(3).await;
    }
    let ids: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    for id in &ids {
        put(&a.provider, id, "v").await;
        b.ear.until_changed(id).await;
    }
    // Experiment 10: the transaction of a fill works on a node of a cluster, and its own echo does not come back.
    fill(&a.provider, "filled", "v").await;
    b.ear.until_changed("filled").await;
    a.provider.put(Put { key: RawKey::marker(CacheId(1), "users"), ..item("", b"marker") }).await.unwrap();
    until_async("the marker", || async { b.ear.markers.load(Ordering::SeqCst) == 1 }).await;
    assert!(a.ear.changed().is_empty() && a.ear.markers.load(Ordering::SeqCst) == 0, "own writes");
    assert_eq!((a.ear.gaps(), b.ear.gaps()), (3, 3));
    until_async("quiet", || async { a.backplane.hears_writes("users") }).await;

    // By messages: over a connection to any of them, and known to all.
    let messages = at().build().unwrap().messages();
    let ear = Arc::new(Ear::default());
    messages.subscribe("users", Arc::<Ear>::clone(&ear));
    ear.until_gaps(1).await;
    until_async("known", || async { !a.backplane.hears_writes("users") }).await;
    a.backplane.publish("users", Bytes::from_static(b"m")).await.unwrap();
    until_async("heard", || async { !ear.messages.lock().unwrap().is_empty() }).await;
    drop(messages);

    let dead = cluster.owner("v:{users:0}").unwrap();
    dead.kill();
    b.ear.until_gaps(4).await;
    until_async("served again", || async { a.provider.put(item("0", b"w")).await.is_ok() }).await;
    until_async("heard of again", || async {
        a.provider.put(item("0", b"w")).await.unwrap();
        b.ear.changed().iter().filter(|id| *id == "0").count() > 1
    })
    .await;
}

/// One that the cluster cannot vouch for, as the master that could is away, is tried again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_used_in_the_end_is_not_listened_to() {
    let Some(cluster) = RedisCluster::start(3, 0) else { return };
    let a = node(RedisProvider::builder(format!("redis+cluster://{}", cluster.nodes()[0].addr()))).await;
    a.provider.connect().await.unwrap();
    let record = cluster.owner("r:{masters}").unwrap();
    let other = cluster.nodes().iter().find(|node| node.port() != record.port()).unwrap();
    record.kill();
    other.restart();
    until_async("both are missed", || async {
        let all = a.provider.servers().await;
        all.iter().filter(|server| server.is_err()).count() == 2
    })
    .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = a.ear.gaps();
    tokio::time::sleep(Duration::from_secs(6)).await;
    // Each of the two is told of once in ten seconds.
    let gaps = a.ear.gaps() - before;
    assert!(gaps <= 2, "{gaps} gaps in 6 s");
}

/// `UNLINK`, which is what is left then, tells of nothing that is not there.
#[tokio::test]
async fn without_memory_and_scripts_no_removal_is_acknowledged_that_nobody_hears_of() {
    let server = RedisServer::start();
    let rights = ["ACL", "SETUSER", "ann", "on", ">pw", "~*", "&*", "+@all", "-eval", "-evalsha"];
    server.command::<()>(&rights).unwrap();
    let url = format!("redis://ann:pw@127.0.0.1:{}", server.port());
    let (a, b) = (node(RedisProvider::builder(url)).await, node(to(&server)).await);
    until_async("quiet", || async { a.backplane.hears_writes("users") }).await;
    put(&b.provider, "there", "v").await;
    server.command::<()>(&["SET", "l:{users:absent}", "token"]).unwrap();
    server.command::<()>(&["CONFIG", "SET", "maxmemory", "1"]).unwrap();
    assert_eq!(kind(a.provider.remove(key("absent")).await), ErrorKind::OutOfMemory);
    a.provider.remove(key("there")).await.unwrap();
    b.ear.until_changed("there").await;
    assert_eq!(server.command::<usize>(&["DBSIZE"]).unwrap(), 0, "value and lease");
}

/// What it says of a command that it does not have quotes the message, which is no text.
#[tokio::test]
async fn a_server_without_publish_refuses_messages_and_keeps_the_connection() {
    let server = RedisServer::with(&["--rename-command", "PUBLISH", ""], None);
    let a = node(to(&server)).await;
    for _ in 0..2 {
        let refused = a.backplane.publish("users", Bytes::from_static(b"\xff\xfe")).await;
        assert_eq!(kind(refused), ErrorKind::Server);
    }
    put(&a.provider, "k", "v").await;
    assert_eq!((a.provider.connections()[0].reconnects, a.ear.gaps()), (0, 1));
}
