//! The backplane on a real server.
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, what goes wrong must fail the test")]

mod common;

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use cache_core::{Backplane, Listener};
use cache_redis::{ErrorKind, RedisBackplane, RedisProvider};
use common::{RedisServer, kind, until, until_async};
use tokio::time::timeout;

/// A call that takes this long hangs.
const HANG: Duration = Duration::from_secs(20);

/// Remembers what it hears.
#[derive(Default)]
struct Ear {
    messages: Mutex<Vec<Vec<u8>>>,
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

    fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }
}

impl Ear {
    fn gaps(&self) -> usize {
        self.gaps.load(Ordering::SeqCst)
    }

    fn heard(&self) -> Vec<String> {
        self.messages.lock().unwrap().iter().map(|m| String::from_utf8_lossy(m).into_owned()).collect()
    }

    async fn until_gaps(&self, count: usize) {
        until_async(&format!("{count} gaps"), || async { self.gaps() >= count }).await;
    }

    async fn until_heard(&self, message: &str) {
        until_async(message, || async {
            self.messages.lock().unwrap().last().is_some_and(|last| last == message.as_bytes())
        })
        .await;
    }
}

fn backplane(server: &RedisServer) -> RedisBackplane {
    RedisProvider::builder(server.url()).build().unwrap().backplane()
}

/// Notices silence soon.
fn quick(server: &RedisServer) -> RedisBackplane {
    RedisProvider::builder(server.url())
        .heartbeat(Duration::from_millis(100))
        .heartbeat_timeout(Duration::from_millis(300))
        .connect_timeout(Duration::from_millis(300))
        .build()
        .unwrap()
        .backplane()
}

/// An ear that hears.
async fn listen(backplane: &RedisBackplane, cache: &str) -> Arc<Ear> {
    let ear = Arc::new(Ear::default());
    backplane.subscribe(cache, Arc::<Ear>::clone(&ear));
    ear.until_gaps(1).await;
    ear
}

async fn publish(backplane: &RedisBackplane, cache: &str, message: &str) {
    let message = Bytes::copy_from_slice(message.as_bytes());
    timeout(HANG, backplane.publish(cache, message)).await.unwrap().unwrap();
}

/// Publishes until it works.
async fn publish_some_time(backplane: &RedisBackplane, cache: &str, message: &str) {
    until_async("published", || async {
        let message = Bytes::copy_from_slice(message.as_bytes());
        timeout(Duration::from_millis(250), backplane.publish(cache, message))
            .await
            .is_ok_and(|sent| sent.is_ok())
    })
    .await;
}

fn connections(server: &RedisServer) -> usize {
    // All but the one that asks.
    server.command::<String>(&["CLIENT", "LIST"]).unwrap().lines().count() - 1
}

fn channels(server: &RedisServer) -> Vec<String> {
    server.command(&["PUBSUB", "CHANNELS", "b:0:*"]).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_node_hears_every_message_of_its_cache_in_order() {
    let server = RedisServer::start();
    let (a, b) = (backplane(&server), backplane(&server));
    let (on_a, on_b) = (listen(&a, "users").await, listen(&b, "users").await);
    let orders = listen(&b, "orders").await;
    for n in 0..200 {
        publish(&a, "users", &n.to_string()).await;
    }
    publish(&b, "orders", "order").await;
    on_a.until_heard("199").await;
    on_b.until_heard("199").await;
    orders.until_heard("order").await;
    let all: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    assert_eq!((on_a.heard(), on_b.heard(), orders.heard()), (all.clone(), all, vec!["order".into()]));

    let bytes: Vec<u8> = (0..=255).collect();
    b.publish("users", Bytes::from(bytes.clone())).await.unwrap();
    b.publish("users", Bytes::new()).await.unwrap();
    until_async("bytes", || async { on_a.messages.lock().unwrap().len() == 202 }).await;
    assert_eq!(on_a.messages.lock().unwrap()[200..], [bytes, Vec::new()]);
    assert_eq!((on_a.gaps(), on_b.gaps(), orders.gaps()), (1, 1, 1), "one at the start");
}

#[tokio::test]
async fn whoever_comes_later_is_told_when_it_hears() {
    let server = RedisServer::start();
    // No heartbeat falls into the test: who comes is not left to wait for the next.
    let provider = RedisProvider::builder(server.url()).heartbeat(Duration::from_secs(3600)).build().unwrap();
    let backplane = provider.backplane();
    let first = listen(&backplane, "users").await;
    publish(&backplane, "users", "one").await;
    first.until_heard("one").await;
    let second = listen(&backplane, "users").await;
    publish(&backplane, "users", "two").await;
    second.until_heard("two").await;
    first.until_heard("two").await;
    assert_eq!((first.gaps(), first.heard().len(), second.gaps(), second.heard().len()), (1, 2, 1, 1));
}

#[test]
fn nothing_happens_before_the_first_use() {
    let server = RedisServer::start();
    let backplane = backplane(&server);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!((runtime.metrics().num_alive_tasks(), connections(&server)), (0, 0));
        // Who only publishes does not listen.
        publish(&backplane, "users", "m").await;
        assert_eq!(connections(&server), 1);
        assert!(channels(&server).is_empty() && server.calls("subscribe") == 0);
    });
}

#[tokio::test]
async fn it_ends_with_its_last_clone_and_at_close() {
    let server = RedisServer::start();
    let dropped = backplane(&server);
    let ear = listen(&dropped, "users").await;
    let clone = dropped.clone();
    drop(dropped);
    publish(&clone, "users", "m").await;
    ear.until_heard("m").await;
    drop(clone);
    until_async("no connection", || async { connections(&server) == 0 }).await;
    ear.until_gaps(2).await;
    until_async("the listener is let go", || async { Arc::strong_count(&ear) == 1 }).await;

    let closed = backplane(&server);
    let ear = listen(&closed, "users").await;
    closed.close().await;
    until_async("no connection", || async { connections(&server) == 0 }).await;
    ear.until_gaps(2).await;
    assert_eq!(kind(closed.publish("users", Bytes::new()).await), ErrorKind::Closed);
}

#[tokio::test]
async fn who_listens_no_more_is_forgotten() {
    let server = RedisServer::start();
    let backplane = quick(&server);
    let (stays, goes) = (listen(&backplane, "users").await, listen(&backplane, "orders").await);
    let also_goes = listen(&backplane, "users").await;
    for ear in [&goes, &also_goes] {
        ear.closed.store(true, Ordering::SeqCst);
    }
    until_async("unsubscribed", || async { channels(&server) == ["b:0:{users}"] }).await;
    until_async("let go", || async { Arc::strong_count(&goes) + Arc::strong_count(&also_goes) == 2 }).await;
    publish(&backplane, "users", "m").await;
    stays.until_heard("m").await;
    assert!(also_goes.heard().is_empty());
    let again = listen(&backplane, "orders").await;
    publish(&backplane, "orders", "n").await;
    again.until_heard("n").await;
}

#[tokio::test]
async fn databases_and_prefixes_are_apart() {
    let server = RedisServer::start();
    let zero = backplane(&server);
    let three = RedisProvider::builder(format!("{}/3", server.url())).build().unwrap().backplane();
    let app = RedisProvider::builder(server.url()).key_prefix("app:").build().unwrap().backplane();
    let mut ears = Vec::new();
    for backplane in [&zero, &three, &app] {
        ears.push(listen(backplane, "users").await);
    }
    for (backplane, message) in [(&zero, "zero"), (&three, "three"), (&app, "app")] {
        publish(backplane, "users", message).await;
    }
    for (ear, message) in ears.iter().zip(["zero", "three", "app"]) {
        ear.until_heard(message).await;
        assert_eq!(ear.heard(), [message]);
    }
}

#[tokio::test]
async fn a_server_that_dies_and_comes_back_is_two_gaps_and_it_goes_on() {
    let server = RedisServer::start();
    let backplane = backplane(&server);
    let ear = listen(&backplane, "users").await;
    for round in 0..2 {
        let gaps = ear.gaps();
        server.kill();
        ear.until_gaps(gaps + 1).await;
        assert!(backplane.publish("users", Bytes::from_static(b"lost")).await.is_err());
        let gaps = ear.gaps();
        server.restart();
        ear.until_gaps(gaps + 1).await;
        let message = format!("after {round}");
        publish_some_time(&backplane, "users", &message).await;
        ear.until_heard(&message).await;
    }
    assert!(!ear.heard().contains(&"lost".to_owned()));
}

#[tokio::test]
async fn a_server_that_is_down_at_start_is_found_later() {
    let server = RedisServer::start();
    server.kill();
    let backplane = quick(&server);
    let ear = Arc::new(Ear::default());
    backplane.subscribe("users", Arc::<Ear>::clone(&ear));
    // Again and again: whatever is kept meanwhile may be wrong.
    ear.until_gaps(2).await;
    assert!(channels_down(&server));
    server.restart();
    until_async("subscribed", || async { !channels(&server).is_empty() }).await;
    publish_some_time(&backplane, "users", "m").await;
    ear.until_heard("m").await;
}

fn channels_down(server: &RedisServer) -> bool {
    server.command::<Vec<String>>(&["PUBSUB", "CHANNELS"]).is_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_connection_is_a_gap_before_anything_new_is_heard() {
    let server = RedisServer::start();
    let (a, b) = (backplane(&server), backplane(&server));
    let (on_a, on_b) = (listen(&a, "users").await, listen(&b, "users").await);
    for round in 0..5 {
        let gaps = (on_a.gaps(), on_b.gaps());
        let killed: u64 = server.command(&["CLIENT", "KILL", "TYPE", "pubsub"]).unwrap();
        assert_eq!(killed, 2);
        on_a.until_gaps(gaps.0 + 2).await;
        on_b.until_gaps(gaps.1 + 2).await;
        let message = format!("after {round}");
        publish(&a, "users", &message).await;
        on_a.until_heard(&message).await;
        on_b.until_heard(&message).await;
    }
    assert_eq!((on_a.gaps(), on_b.gaps()), (11, 11), "one at the loss, one at the return");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silence_is_noticed_within_heartbeat_and_timeout() {
    let server = RedisServer::start();
    let backplane = quick(&server);
    let ear = listen(&backplane, "users").await;
    let stated = Duration::from_millis(400);
    // Not before its time, however idle the channel is.
    tokio::time::sleep(stated * 3).await;
    let gaps = ear.gaps();
    let start = Instant::now();
    server.stop();
    ear.until_gaps(gaps + 1).await;
    let noticed = start.elapsed();
    // The machine may be busy.
    assert!(noticed < stated + Duration::from_secs(2), "noticed after {noticed:?}");
    assert!(noticed > Duration::from_millis(50), "noticed after {noticed:?}: that was something else");
    let gaps = ear.gaps();
    ear.until_gaps(gaps + 1).await;
    server.cont();
    publish_some_time(&backplane, "users", "after").await;
    until_async("heard again", || async {
        publish_some_time(&backplane, "users", "after").await;
        ear.heard().contains(&"after".to_owned())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_channel_is_kept_and_heartbeats_are_heard_by_nobody_else() {
    let server = RedisServer::start();
    let node = || {
        let builder = RedisProvider::builder(server.url()).heartbeat(Duration::from_millis(20));
        builder.heartbeat_timeout(Duration::from_secs(5)).build().unwrap().backplane()
    };
    let (a, b) = (node(), node());
    let (on_a, on_b) = (listen(&a, "users").await, listen(&b, "users").await);
    let beats = server.calls("publish");
    until_async("many heartbeats", || async { server.calls("publish") > beats + 40 }).await;
    assert_eq!((on_a.gaps(), on_b.gaps()), (1, 1));
    assert!(on_a.heard().is_empty() && on_b.heard().is_empty());
    let own: Vec<String> = server.command(&["PUBSUB", "CHANNELS", "b:beat:*"]).unwrap();
    assert_eq!(own.len(), 2);
    for channel in own {
        let count: (String, u64) = server.command(&["PUBSUB", "NUMSUB", &channel]).unwrap();
        assert_eq!(count.1, 1);
    }
    assert!(format!("{a:?}").contains("connection: 1"), "{a:?}");
}

/// Counts, and wants the messages in order.
#[derive(Default)]
struct Counter {
    count: AtomicUsize,
    gaps: AtomicUsize,
}

impl Listener for Counter {
    fn message(&self, bytes: &[u8]) {
        let number = u64::from_le_bytes(bytes[..8].try_into().unwrap());
        assert_eq!(number, self.count.fetch_add(1, Ordering::SeqCst) as u64);
    }

    fn gap(&self) {
        self.gaps.fetch_add(1, Ordering::SeqCst);
    }

    fn is_closed(&self) -> bool {
        false
    }
}

fn resident_mib() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() / 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_burst_of_100_000_messages_arrives_in_order_and_in_bounded_memory() {
    const COUNT: usize = 100_000;
    let server = RedisServer::start();
    // The reader of a busy machine may fall behind: the server is to keep all of it, not us.
    server.command::<()>(&["CONFIG", "SET", "client-output-buffer-limit", "pubsub 0 0 0"]).unwrap();
    let backplane = RedisProvider::builder(server.url())
        .heartbeat_timeout(Duration::from_secs(60))
        .response_timeout(Duration::from_secs(60))
        .build()
        .unwrap()
        .backplane();
    let counter = Arc::new(Counter::default());
    backplane.subscribe("users", Arc::<Counter>::clone(&counter));
    until_async("hears", || async { counter.gaps.load(Ordering::SeqCst) == 1 }).await;

    let before = resident_mib();
    let url = server.url();
    let publisher = std::thread::spawn(move || {
        let mut connection = redis::Client::open(url).unwrap().get_connection().unwrap();
        let mut message = [7; 1024];
        for chunk in 0..COUNT / 500 {
            let mut pipeline = redis::pipe();
            for n in 0..500 {
                message[..8].copy_from_slice(&((chunk * 500 + n) as u64).to_le_bytes());
                pipeline.cmd("PUBLISH").arg("b:0:{users}").arg(&message[..]).ignore();
            }
            pipeline.exec(&mut connection).unwrap();
        }
    });
    let mut most = 0;
    // A few seconds, where nobody else is at work.
    test_servers::eventually(Duration::from_secs(120), "all have arrived", || {
        most = most.max(resident_mib());
        let all = counter.count.load(Ordering::SeqCst) == COUNT;
        async move { all }
    })
    .await;
    publisher.join().unwrap();
    assert_eq!(counter.gaps.load(Ordering::SeqCst), 1);
    // 100 MB went through. Other tests of this process run beside.
    assert!(most < before + 30, "{before} MiB before, {most} MiB at most");
}

#[tokio::test]
async fn who_may_not_listen_is_told_of_gaps_and_does_not_storm_the_server() {
    let server = RedisServer::start();
    server.command::<()>(&["ACL", "SETUSER", "ann", "on", ">pw", "~*", "+@all", "resetchannels"]).unwrap();
    let url = format!("redis://ann:pw@127.0.0.1:{}", server.port());
    let backplane = RedisProvider::builder(url).build().unwrap().backplane();
    let ear = Arc::new(Ear::default());
    backplane.subscribe("users", Arc::<Ear>::clone(&ear));
    ear.until_gaps(3).await;
    assert_eq!(kind(backplane.publish("users", Bytes::new()).await), ErrorKind::Denied);
    let rejected = || {
        let info: String = server.command(&["INFO", "commandstats"]).unwrap();
        let line = info.lines().find(|line| line.starts_with("cmdstat_subscribe:")).unwrap();
        line.split("rejected_calls=").nth(1).unwrap().split(',').next().unwrap().parse::<u64>().unwrap()
    };
    let tries = rejected();
    tokio::time::sleep(Duration::from_millis(500)).await;
    let tries = rejected() - tries;
    assert!(tries < 40, "{tries} in half a second");
    assert_eq!(connections(&server), 1, "who may publish can go on to");
    assert!(format!("{backplane:?}").contains("connection: 1"), "{backplane:?}");
    server.command::<()>(&["ACL", "SETUSER", "ann", "allchannels"]).unwrap();
    until_async("allowed", || async { !channels(&server).is_empty() }).await;
    publish_some_time(&backplane, "users", "m").await;
    ear.until_heard("m").await;
}

#[test]
fn it_outlives_the_runtime_that_it_ran_on() {
    let server = RedisServer::start();
    let backplane = backplane(&server);
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let first = runtime();
    let ear = first.block_on(listen(&backplane, "users"));
    drop(first);
    until("a gap", || ear.gaps() == 2);
    runtime().block_on(async {
        publish(&backplane, "users", "starts it").await;
        ear.until_gaps(3).await;
        publish(&backplane, "users", "m").await;
        ear.until_heard("m").await;
    });
}
