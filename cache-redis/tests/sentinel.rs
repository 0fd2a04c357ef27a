//! A master that sentinels watch over.
#![allow(clippy::unwrap_used, reason = "in tests, what goes wrong must fail the test")]

mod common;

use std::{net::TcpListener, sync::Arc, time::Duration};

use cache_core::{
    CacheProvider,
    testing::conformance::{self, Options},
};
use cache_redis::{Error, ErrorKind, RedisProvider};
use common::{get, item, put, until_async};
use test_servers::{RedisSentinel, RedisServer, until};

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
    says(&error.unwrap_err(), ErrorKind::Timeout, &["mymaster"]);
    sentinels.sentinels()[1].cont();
    sentinels.sentinels()[0].restart();
    for builder in [builder().password("hunter2").sentinel_password("wrong"), builder().password("hunter2")] {
        let error = builder.build().unwrap().connect().await.unwrap_err();
        says(&error, ErrorKind::Auth, &["set sentinel_password", "127.0.0.1:"]);
    }
    let error = builder().password("wrong").sentinel_password("letmein99").build().unwrap().connect().await;
    says(&error.unwrap_err(), ErrorKind::Auth, &["check user and password"]);
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
