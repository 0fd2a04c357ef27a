//! A master that sentinels watch over.
#![allow(clippy::unwrap_used, reason = "in tests, what goes wrong must fail the test")]

mod common;

use std::{
    net::{SocketAddr, TcpListener},
    sync::Arc,
    time::Duration,
};

use cache_core::{
    CacheProvider,
    testing::conformance::{self, Options},
};
use cache_redis::{Error, ErrorKind, RedisProvider};
use common::{get, item, kill_clients, put, until_async};
use test_servers::{Proxy, RedisSentinel, RedisServer, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const SOON: Duration = Duration::from_secs(60);

fn says(error: &Error, kind: ErrorKind, words: &[&str]) {
    assert_eq!(error.kind(), kind, "{error:?}");
    let text = format!("{error} {error:?}");
    assert!(words.iter().all(|word| text.contains(word)), "{words:?} in {text:?}");
    assert!(!text.contains("hunter2") && !text.contains("letmein99"), "{text:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_list() {
    let Some(sentinels) = RedisSentinel::start() else { return };
    let provider = RedisProvider::builder(sentinels.url()).build().unwrap();
    conformance::run(Arc::new(provider), Options::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failover_is_followed_and_names_another_state() {
    let Some(sentinels) = RedisSentinel::start() else { return };
    let provider = RedisProvider::builder(sentinels.url()).build().unwrap();
    put(&provider, "k", "v").await;
    let before = provider.incarnation();
    let first = sentinels.master().unwrap();
    let replica = sentinels.servers().iter().find(|server| server.port() != first.port()).unwrap();
    assert!(until(SOON, || replica.command::<bool>(&["EXISTS", "v:{users:k}"]).unwrap()));
    assert!(format!("{provider:?}").contains(&format!("at: 127.0.0.1:{}", first.port())), "{provider:?}");

    first.kill();
    assert!(until(SOON, || sentinels.master_port() == Some(replica.port())));
    until_async("connected", || async { provider.put(item("k", b"w")).await.is_ok() }).await;
    assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("w"));
    assert_eq!(replica.command::<String>(&["GET", "v:{users:k}"]).unwrap(), "w");
    let pool = provider.pool().unwrap();
    assert_eq!(
        (pool.idle, pool.max, pool.made),
        (1, 1, 2),
        "those to sentinels are no connections that calls go by"
    );
    assert!(pool.errors >= 1);
    assert_ne!(provider.incarnation(), before, "whoever was a replica may lack what was acknowledged");
    assert!(format!("{provider:?}").contains(&format!("at: 127.0.0.1:{}", replica.port())), "{provider:?}");
}

/// The old master hangs rather than dies, so the connection to it stays.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_master_that_was_demoted_while_connected_is_left() {
    let Some(sentinels) = RedisSentinel::start() else { return };
    let provider =
        RedisProvider::builder(sentinels.url()).response_timeout(Duration::from_millis(300)).build().unwrap();
    put(&provider, "k", "v").await;
    let first = sentinels.master().unwrap();
    first.stop();
    let replica = sentinels.servers().iter().find(|server| server.port() != first.port()).unwrap();
    assert!(until(SOON, || sentinels.master_port() == Some(replica.port())));
    first.cont();
    // Until the sentinels have told it so, it believes to be the master.
    until_async("the new master has it", || async {
        let _ = provider.put(item("k", b"new")).await;
        replica.command::<Option<String>>(&["GET", "v:{users:k}"]).unwrap().as_deref() == Some("new")
    })
    .await;
    assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("new"));
}

/// A sentinel of its own, which knows of no other one.
fn alone(master: &RedisServer, epoch: u64) -> Option<RedisServer> {
    let (name, port) = (RedisSentinel::MASTER, master.port());
    let config = format!(
        "sentinel monitor {name} 127.0.0.1 {port} 1\nsentinel config-epoch {name} {epoch}\n\
         sentinel down-after-milliseconds {name} 60000\n"
    );
    RedisServer::builder().sentinel(&config).start()
}

fn address(provider: &RedisProvider) -> String {
    provider.connections()[0].address.clone()
}

/// Waits until it leads there.
async fn leads_to(provider: &RedisProvider, server: &RedisServer) {
    let at = server.addr().to_string();
    until_async(&at, || async {
        let _ = provider.connect().await;
        let now = &provider.connections()[0];
        now.state == "up" && now.address == at
    })
    .await;
}

/// A master is back after others were told of its end, and one of the sentinels has not heard of that.
#[tokio::test]
async fn of_two_masters_the_one_of_the_latest_failover_is_meant() {
    let (Some(old), Some(new)) = (RedisServer::start(), RedisServer::start()) else { return };
    let (Some(late), Some(knows)) = (alone(&old, 6), alone(&new, 7)) else { return };
    for order in [[&late, &knows], [&knows, &late]] {
        let at: Vec<String> = order.iter().map(|sentinel| sentinel.addr().to_string()).collect();
        let url = format!("redis+sentinel://{}/{}", at.join(","), RedisSentinel::MASTER);
        let provider = || RedisProvider::builder(&*url).build().unwrap();
        for _ in 0..20 {
            let provider = provider();
            provider.connect().await.unwrap();
            assert_eq!(address(&provider), new.addr().to_string());
        }
        // Rather none than one that was replaced.
        new.kill();
        let error = provider().connect().await.unwrap_err();
        says(&error, ErrorKind::Connect, &[&new.addr().to_string()]);
        new.restart();

        // Who is told of nothing else uses the old one, until it is told.
        knows.stop();
        let provider = provider();
        provider.connect().await.unwrap();
        assert_eq!(address(&provider), old.addr().to_string());
        knows.cont();
        leads_to(&provider, &new).await;
        put(&provider, "k", "v").await;
        assert!(new.command::<bool>(&["EXISTS", "v:{users:k}"]).unwrap());
        provider.close().await;
    }
}

#[tokio::test]
async fn who_has_heard_of_a_later_failover_does_not_go_back_to_an_earlier_one() {
    let (Some(old), Some(new)) = (RedisServer::start(), RedisServer::start()) else { return };
    let (Some(late), Some(knows)) = (alone(&old, 6), alone(&new, 7)) else { return };
    let slow = Proxy::start(knows.addr());
    let url = format!("redis+sentinel://{},{}/{}", late.addr(), slow.addr(), RedisSentinel::MASTER);
    let provider = RedisProvider::builder(url).connect_timeout(Duration::from_secs(10)).build().unwrap();

    // It is not waited for, is heard later, and is slow again then.
    slow.delay(Duration::from_millis(300));
    provider.connect().await.unwrap();
    assert_eq!(address(&provider), old.addr().to_string());
    leads_to(&provider, &new).await;
    assert_eq!(provider.connections()[0].reconnects, 1);

    // Nor where it is away.
    slow.refuse();
    kill_clients(&new);
    until_async("lost", || async { provider.connect().await.is_err() }).await;
    let error = provider.connect().await.unwrap_err();
    let (replaced, away) = (format!("{} was replaced", old.addr()), slow.addr().to_string());
    says(&error, ErrorKind::Unavailable, &[&replaced, &away]);
    slow.pass();
    leads_to(&provider, &new).await;
    assert_eq!(provider.connections()[0].reconnects, 2);

    // One that does not tell of failovers may still name the same master.
    let same = naming(new.addr()).await;
    let url = format!("redis+sentinel://{same},{}/{}", slow.addr(), RedisSentinel::MASTER);
    let other = RedisProvider::builder(url).build().unwrap();
    leads_to(&other, &new).await;
    slow.refuse();
    kill_clients(&new);
    until_async("again", || async { other.connections()[0].reconnects == 1 }).await;
    leads_to(&other, &new).await;
    slow.pass();

    // Failovers are counted anew there.
    new.kill();
    let (name, port) = (RedisSentinel::MASTER, old.port().to_string());
    let _: () = knows.command(&["SENTINEL", "REMOVE", name]).unwrap();
    let _: () = knows.command(&["SENTINEL", "MONITOR", name, "127.0.0.1", &port, "1"]).unwrap();
    leads_to(&provider, &old).await;
}

/// Asked again only after an hour, and the old master does not know: a sentinel waits for 8 s before it tells one that is back.
#[tokio::test]
async fn a_failover_that_a_sentinel_tells_of_is_followed_at_once() {
    let (Some(old), Some(new)) = (RedisServer::start(), RedisServer::start()) else { return };
    let Some(sentinel) = alone(&old, 6) else { return };
    let url = format!("redis+sentinel://{}/{}", sentinel.addr(), RedisSentinel::MASTER);
    let provider = RedisProvider::builder(url).heartbeat(Duration::from_secs(3600)).build().unwrap();
    leads_to(&provider, &old).await;
    let clients = || sentinel.command::<String>(&["CLIENT", "LIST"]).unwrap();
    until_async("listens", || async { clients().contains(" sub=2 ") }).await;

    // What another sentinel would tell this one: who it is, and who is the master by which failover.
    let (id, port) = ("f".repeat(40), new.port());
    let hello = format!("127.0.0.1,1,{id},7,{},127.0.0.1,{port},7", RedisSentinel::MASTER);
    let _: i64 = sentinel.command(&["PUBLISH", "__sentinel__:hello", &hello]).unwrap();
    leads_to(&provider, &new).await;
    let role: redis::Value = old.command(&["ROLE"]).unwrap();
    assert!(format!("{role:?}").contains("master"), "it was demoted, so its clients were cut off: {role:?}");
}

#[tokio::test]
async fn one_sentinel_that_answers_is_enough_and_credentials_are_apart() {
    let Some(sentinels) = RedisSentinel::guarded("hunter2", "letmein99") else { return };
    sentinels.sentinels()[0].kill();
    sentinels.sentinels()[1].stop();
    let builder = || RedisProvider::builder(sentinels.url());
    let provider = builder().password("hunter2").sentinel_password("letmein99").build().unwrap();
    provider.connect().await.unwrap();
    put(&provider, "k", "v").await;
    assert!(!format!("{provider:?}").contains("hunter2"));

    let error = builder().password("hunter2").sentinel_password("wrong").build().unwrap().connect().await;
    says(&error.unwrap_err(), ErrorKind::Auth, &["did not answer within", "answered WRONGPASS: correct it"]);
    sentinels.sentinels()[1].cont();
    sentinels.sentinels()[0].restart();
    for builder in [builder().password("hunter2").sentinel_password("wrong"), builder().password("hunter2")] {
        let error = builder.build().unwrap().connect().await.unwrap_err();
        says(&error, ErrorKind::Auth, &["127.0.0.1:", "sentinels have others than the server"]);
        assert_eq!(error.to_string().matches("sentinel_password = ").count(), 1, "{error}");
        assert!(
            error.to_string().starts_with("sentinel_password = "),
            "in front of all that they say: {error}"
        );
    }
    let error = builder().password("wrong").sentinel_password("letmein99").build().unwrap().connect().await;
    says(&error.unwrap_err(), ErrorKind::Auth, &["answered WRONGPASS: correct it or `username`"]);
}

#[tokio::test]
async fn sentinels_that_cannot_help_are_named() {
    let closed = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (a, b) = (closed(), closed());
    let provider =
        RedisProvider::builder(format!("redis+sentinel://:hunter2@{a},{b}/mymaster")).build().unwrap();
    let error = provider.connect().await.unwrap_err();
    says(&error, ErrorKind::Connect, &["no sentinel", &a.to_string(), &b.to_string()]);

    let Some(sentinels) = RedisSentinel::start() else { return };
    let at = sentinels.sentinels()[0].addr();
    let unknown = RedisProvider::builder(format!("redis+sentinel://:hunter2@{at}/hers")).build().unwrap();
    let error = unknown.connect().await.unwrap_err();
    says(&error, ErrorKind::Config, &["url = ", "hers", &at.to_string(), "know no master of that name"]);

    let Some(server) = RedisServer::start() else { return };
    let at = server.addr();
    let no_sentinel = RedisProvider::builder(format!("redis+sentinel://{at}/mymaster")).build().unwrap();
    says(
        &no_sentinel.connect().await.unwrap_err(),
        ErrorKind::Server,
        &[&at.to_string(), "is that a sentinel?"],
    );
    let as_server = RedisProvider::builder(sentinels.urls()[0].clone()).build().unwrap();
    says(&as_server.connect().await.unwrap_err(), ErrorKind::Config, &["url = ", "redis+sentinel://"]);
}

#[test]
fn a_password_of_sentinels_without_sentinels_is_refused() {
    let error = RedisProvider::builder("redis://x").sentinel_password("hunter2").build().unwrap_err();
    says(&error, ErrorKind::Config, &["sentinel_password = ", "redis+sentinel://"]);
    let error = RedisProvider::builder("redis+sentinel://x/m").sentinel_username("ann").build().unwrap_err();
    says(&error, ErrorKind::Config, &["sentinel_password = (none)"]);
}

/// Says yes to the handshake, this to the two questions that come then, and that there is nothing to subscribe to.
async fn stub(answer: String) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut peer, _)) = listener.accept().await {
            let both = answer.repeat(2);
            tokio::spawn(async move {
                let mut asked = [0; 4096];
                let mut reply = "%0\r\n+OK\r\n+OK\r\n";
                while let Ok(length @ 1..) = peer.read(&mut asked).await {
                    let subscribes = asked[..length].windows(9).any(|word| word == b"SUBSCRIBE");
                    let now = if subscribes { "-NOPERM not here\r\n" } else { reply };
                    let _ = peer.write_all(now.as_bytes()).await;
                    reply = &both;
                }
            });
        }
    });
    at
}

/// A sentinel that names this server.
async fn naming(server: SocketAddr) -> SocketAddr {
    naming_as("127.0.0.1", server).await
}

async fn naming_as(host: &str, server: SocketAddr) -> SocketAddr {
    let port = server.port().to_string();
    stub(format!("*2\r\n${}\r\n{host}\r\n${}\r\n{port}\r\n", host.len(), port.len())).await
}

/// Some sentinels may tell names, others addresses.
#[tokio::test]
async fn a_master_of_two_names_is_not_left_for_the_other_one() {
    let Some(server) = RedisServer::start() else { return };
    let by_address = Proxy::start(naming(server.addr()).await);
    let by_name = Proxy::start(naming_as("localhost", server.addr()).await);
    let url = format!("redis+sentinel://{},{}/mymaster", by_address.addr(), by_name.addr());
    let provider = RedisProvider::builder(url).heartbeat(Duration::from_millis(20)).build().unwrap();
    by_name.refuse();
    leads_to(&provider, &server).await;
    by_address.refuse();
    by_name.pass();
    kill_clients(&server);
    let name = format!("localhost:{}", server.port());
    until_async("by its name", || async { address(&provider) == name }).await;
    // Both are asked again.
    let before = by_address.accepted();
    by_address.pass();
    until_async("asked", || async { by_address.accepted() > before }).await;
    put(&provider, "k", "v").await;
    assert_eq!(provider.connections()[0].reconnects, 1, "{:?}", provider.connections());
    assert_eq!(address(&provider), name);
}

async fn refused(sentinels: &[SocketAddr]) -> Error {
    let at: Vec<String> = sentinels.iter().map(ToString::to_string).collect();
    let url = format!("redis+sentinel://{}/mymaster", at.join(","));
    let limit = Duration::from_millis(500);
    let provider = RedisProvider::builder(url).password("wrong").connect_timeout(limit).build().unwrap();
    tokio::time::timeout(SOON, provider.connect()).await.unwrap().unwrap_err()
}

/// Of the rest it is told what they have said, and of a master that hangs, which one it is.
#[tokio::test]
async fn one_that_does_not_answer_hides_nobody_elses_answer() {
    // Whoever connects there waits for an answer for ever.
    let waits = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = waits.local_addr().unwrap();
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let Some(server) = RedisServer::builder().password("hunter2").start() else { return };

    let right = naming(server.addr()).await;
    for beside in [silent, naming(silent).await, closed, naming(closed).await] {
        for order in [[right, beside], [beside, right]] {
            says(&refused(&order).await, ErrorKind::Auth, &["answered WRONGPASS: correct it or `username`"]);
        }
    }
    let error = refused(&[naming(silent).await, closed]).await;
    says(&error, ErrorKind::Timeout, &["the master \"mymaster\" at", &silent.to_string(), "500ms"]);

    let strange = stub("_\r\n".to_owned()).await;
    for away in [silent, closed] {
        let error = refused(&[away, strange]).await;
        let (away, strange) = (away.to_string(), strange.to_string());
        // Who is away may know it: the name need not be wrong.
        says(
            &error,
            ErrorKind::Unavailable,
            &[&away, &format!("{strange} (it knows no master \"mymaster\"")],
        );
    }
}
