//! What happens to the provider when the server, or the connection, does not behave.
#![allow(clippy::unwrap_used, reason = "in tests, what goes wrong must fail the test")]

mod common;

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use cache_core::CacheProvider;
use cache_redis::{Error, ErrorKind, RedisProvider};
use common::{
    RedisServer, get, item, key, kill_clients, kind,
    proxy::{Proxy, first_words_changed},
    put, until, until_async,
};
use futures::future::join_all;
use tokio::{io::AsyncWriteExt, net::TcpListener, time::timeout};

/// A call that takes this long hangs.
const HANG: Duration = Duration::from_secs(20);

fn provider(server: &RedisServer) -> RedisProvider {
    RedisProvider::builder(server.url()).build().unwrap()
}

#[tokio::test]
async fn r17_a_server_that_is_down_at_start_is_no_error() {
    let server = RedisServer::start();
    server.kill();
    let provider = provider(&server);
    let error = provider.connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    assert!(std::error::Error::source(&error).is_some());
    assert_eq!(kind(provider.put(item("k", b"v")).await), ErrorKind::Connect);
    let results = provider.get_many(&[key("a"), key("b")]).await;
    assert!(results.into_iter().all(|r| kind(r) == ErrorKind::Connect));
    server.restart();
    until_async("connected", || async { provider.connect().await.is_ok() }).await;
    put(&provider, "k", "v").await;
    assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("v"));
}

#[tokio::test]
async fn a_restarted_server_is_found_again() {
    let server = RedisServer::start();
    let provider = provider(&server);
    put(&provider, "k", "v").await;
    for _ in 0..2 {
        server.kill();
        until_async("the loss is noticed", || async { provider.ping().await.is_err() }).await;
        server.restart();
        until_async("connected", || async { provider.ping().await.is_ok() }).await;
        assert_eq!(get(&provider, "k").await.unwrap(), None);
        put(&provider, "k", "v").await;
        assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("v"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_lost_connection_no_request_fails() {
    let server = RedisServer::start();
    let provider = provider(&server);
    put(&provider, "k", "v").await;
    for _ in 0..20 {
        assert!(kill_clients(&server) > 0);
        for _ in 0..3 {
            let found = timeout(HANG, get(&provider, "k")).await.unwrap();
            assert_eq!(found.unwrap().as_deref(), Some("v"));
        }
        assert!(kill_clients(&server) > 0);
        let found = timeout(HANG, provider.get_many(&[key("k"), key("nope")])).await.unwrap();
        assert_eq!(found.into_iter().map(|f| f.unwrap().is_some()).collect::<Vec<_>>(), [true, false]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_do_not_notice_a_connection_that_breaks_under_them() {
    let server = RedisServer::start();
    let provider = provider(&server);
    put(&provider, "k", "v").await;
    let end = Instant::now() + Duration::from_millis(500);
    let readers = (0..50).map(|_| {
        let provider = provider.clone();
        tokio::spawn(async move {
            let mut reads = 0;
            while Instant::now() < end {
                assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("v"));
                reads += 1;
            }
            reads
        })
    });
    let readers: Vec<_> = readers.collect();
    // Apart far enough that a read's one retry does not meet the next kill.
    let mut kills = 0;
    while Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(100)).await;
        kills += kill_clients(&server);
    }
    for reader in join_all(readers).await {
        assert!(reader.unwrap() > 0);
    }
    assert!(kills > 0);
}

#[tokio::test]
async fn a_write_is_not_sent_twice() {
    let server = RedisServer::start();
    let provider = provider(&server);
    put(&provider, "k", "v").await;
    let before = server.calls("set");
    server.stop();
    let late = item("k", b"late");
    let write = provider.put(late);
    let kill = async {
        // The write is on its way; the connection breaks before the answer.
        tokio::time::sleep(Duration::from_millis(20)).await;
        server.kill();
    };
    let (result, ()) = tokio::join!(write, kill);
    assert_eq!(kind(result), ErrorKind::Disconnected);
    server.restart();
    until_async("connected", || async { provider.ping().await.is_ok() }).await;
    assert_eq!(get(&provider, "k").await.unwrap(), None);
    assert!(before >= 1 && server.calls("set") == 0);
}

#[tokio::test]
async fn dropped_futures_disturb_nobody() {
    let server = RedisServer::start();
    let provider = provider(&server);
    for n in 0..20 {
        put(&provider, &n.to_string(), &format!("value {n}")).await;
    }
    server.stop();
    let brief = Duration::from_millis(20);
    for n in 0..10 {
        assert!(timeout(brief, get(&provider, &n.to_string())).await.is_err());
    }
    assert!(timeout(brief, provider.get_many(&[key("1"), key("2")])).await.is_err());
    let ids: Vec<String> = (10..20).map(|n: i32| n.to_string()).collect();
    let waiting = join_all(ids.iter().map(|id| get(&provider, id)));
    let cont = async {
        tokio::task::yield_now().await;
        server.cont();
    };
    let (found, ()) = tokio::join!(waiting, cont);
    for (n, found) in (10..20).zip(found) {
        assert_eq!(found.unwrap(), Some(format!("value {n}")));
    }
    for n in 0..20 {
        assert_eq!(get(&provider, &n.to_string()).await.unwrap(), Some(format!("value {n}")));
    }
    let shown = format!("{provider:?}");
    assert!(shown.contains("connection: 1"), "all of it on one connection: {shown}");
}

#[tokio::test]
async fn a_connection_on_which_nothing_comes_back_is_given_up() {
    let server = RedisServer::start();
    let provider = RedisProvider::builder(server.url())
        .connect_timeout(Duration::from_millis(100))
        .response_timeout(Duration::from_millis(200))
        .build()
        .unwrap();
    put(&provider, "k", "v").await;
    server.stop();
    // No budget of the caller's: the safety net has to end it. The retry ends at the connect timeout.
    let read = timeout(HANG, provider.get(key("k"))).await.unwrap();
    assert!(matches!(kind(read), ErrorKind::Timeout | ErrorKind::Disconnected));
    let write = timeout(HANG, provider.put(item("k", b"w"))).await.unwrap();
    assert!(matches!(kind(write), ErrorKind::Timeout | ErrorKind::Disconnected));
    server.cont();
    until_async("connected", || async { provider.ping().await.is_ok() }).await;
    assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("v"));
}

#[tokio::test]
async fn a_quiet_connection_is_kept() {
    let server = RedisServer::start();
    let provider =
        RedisProvider::builder(server.url()).response_timeout(Duration::from_millis(20)).build().unwrap();
    put(&provider, "k", "v").await;
    // Many looks of the watch, with nothing or with dropped calls between them.
    let end = Instant::now() + Duration::from_millis(300);
    while Instant::now() < end {
        let _ = timeout(Duration::from_nanos(1), provider.get(key("k"))).await;
        tokio::time::sleep(Duration::from_millis(15)).await;
    }
    assert!(format!("{provider:?}").contains("connection: 1"));
    let pings = server.calls("ping");
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(server.calls("ping") <= pings + 1, "an idle connection is left alone");
}

#[tokio::test]
async fn a_peer_that_never_answers_costs_one_connect_timeout() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let limit = Duration::from_millis(50);
    let provider =
        RedisProvider::builder(format!("redis://127.0.0.1:{port}")).connect_timeout(limit).build().unwrap();
    let results = join_all((0..50).map(|_| provider.connect())).await;
    assert!(results.iter().all(|r| r.as_ref().unwrap_err().kind() == ErrorKind::Timeout));
    let mut attempts = 0;
    while timeout(Duration::from_millis(5), listener.accept()).await.is_ok() {
        attempts += 1;
    }
    assert!(attempts < 5, "50 callers share an attempt, there were {attempts}");
}

#[tokio::test]
async fn a_peer_that_speaks_something_else_is_an_error() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut peer, _)) = listener.accept().await {
            let _ = peer.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let provider = RedisProvider::builder(format!("redis://127.0.0.1:{port}")).build().unwrap();
    let error: Error = provider.connect().await.unwrap_err();
    assert!(matches!(error.kind(), ErrorKind::Protocol | ErrorKind::Connect), "{error:?}");
}

/// Where the protocol that is asked for becomes another.
async fn in_another_protocol(server: u16, version: &str) -> String {
    let port =
        first_words_changed(server, "HELLO\r\n$1\r\n3\r\n", &format!("HELLO\r\n$1\r\n{version}\r\n")).await;
    format!("redis://127.0.0.1:{port}")
}

/// Redis takes `CLIENT TRACKING` in RESP2 as well, and then has no way to tell of anything.
#[tokio::test]
async fn without_resp3_there_is_no_connection() {
    let server = RedisServer::start();
    for version in ["2", "9"] {
        let url = in_another_protocol(server.port(), version).await;
        let error = RedisProvider::builder(url).build().unwrap().connect().await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Protocol, "{version}: {error:?}");
        assert!(error.to_string().contains("RESP3"), "{version}: {error}");
    }
    let url = in_another_protocol(server.port(), "3").await;
    RedisProvider::builder(url).build().unwrap().connect().await.unwrap();
}

#[tokio::test]
async fn a_server_that_takes_no_more_clients_is_quoted() {
    let server = RedisServer::with(&["--maxclients", "1"], None);
    let first = provider(&server);
    // The one that asked whether the server is up may still count.
    until_async("connected", || async { first.connect().await.is_ok() }).await;
    let error = provider(&server).connect().await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Connect);
    let said = "it answered ERR max number of clients reached";
    assert!(error.to_string().ends_with(said), "{error:?}");
    assert!(std::error::Error::source(&error).is_some());
    first.close().await;
}

#[tokio::test]
async fn a_server_that_became_a_replica_is_left_for_a_new_connection() {
    let server = RedisServer::start();
    let provider = provider(&server);
    put(&provider, "k", "v").await;
    assert!(format!("{provider:?}").contains("connection: 1"));
    server.command::<()>(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
    until_async("connected anew", || async {
        assert_eq!(kind(provider.put(item("k", b"w")).await), ErrorKind::ReadOnly);
        assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("v"), "reads go on meanwhile");
        format!("{provider:?}").contains("connection: 2")
    })
    .await;
    server.command::<()>(&["REPLICAOF", "NO", "ONE"]).unwrap();
    put(&provider, "k", "w").await;
}

#[tokio::test]
async fn a_server_without_its_replicas_is_unavailable() {
    let server = RedisServer::start();
    let provider = provider(&server);
    server.command::<()>(&["CONFIG", "SET", "min-replicas-to-write", "1"]).unwrap();
    let error = provider.put(item("k", b"v")).await.unwrap_err();
    let error = error.downcast_ref::<Error>().unwrap();
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{error}");
    assert!(error.is_retryable());
    server.command::<()>(&["CONFIG", "SET", "min-replicas-to-write", "0"]).unwrap();
    put(&provider, "k", "v").await;
}

#[tokio::test]
async fn a_server_that_is_loading_is_an_error_of_its_kind() {
    let args = [
        "--appendonly",
        "yes",
        "--key-load-delay",
        "5000",
        "--loading-process-events-interval-bytes",
        "1024",
    ];
    let server = Arc::new(RedisServer::with(&args, None));
    let provider = provider(&server);
    let value = [b'x'; 4096];
    for n in 0..100 {
        provider.put(item(&n.to_string(), &value)).await.unwrap();
    }
    server.command::<()>(&["BGREWRITEAOF"]).unwrap();
    until("rewritten", || {
        let info: String = server.command(&["INFO", "persistence"]).unwrap();
        info.contains("aof_rewrite_in_progress:0") && info.contains("aof_rewrite_scheduled:0")
    });
    server.kill();
    // It answers only once it has loaded.
    let loading = tokio::task::spawn_blocking({
        let server = Arc::clone(&server);
        move || server.restart()
    });
    until_async("seen loading", || async {
        match provider.get(key("1")).await {
            Err(error) => kind(Err::<(), _>(error)) == ErrorKind::Loading,
            Ok(found) => panic!("loaded before it was seen to load: {}", found.is_some()),
        }
    })
    .await;
    until_async("loaded", || async { provider.get(key("1")).await.is_ok() }).await;
    loading.await.unwrap();
    assert_eq!(provider.get(key("1")).await.unwrap().unwrap(), &value[..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn closing_lets_requests_under_way_end() {
    let server = RedisServer::start();
    let provider = provider(&server);
    put(&provider, "k", "v").await;
    server.stop();
    let reader = tokio::spawn({
        let provider = provider.clone();
        async move { get(&provider, "k").await.unwrap() }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let closing = tokio::spawn(async move { provider.close().await });
    tokio::time::sleep(Duration::from_millis(20)).await;
    server.cont();
    assert_eq!(reader.await.unwrap().as_deref(), Some("v"));
    closing.await.unwrap();
}

/// On one thread nothing happens between the refusal and the stop: the connection that is then asked for hangs.
#[tokio::test]
async fn closing_waits_for_no_connection_that_is_under_way() {
    let server = RedisServer::start();
    let builder = RedisProvider::builder(server.url()).connect_timeout(Duration::from_secs(60));
    let provider = builder.response_timeout(Duration::from_secs(1)).build().unwrap();
    put(&provider, "k", "v").await;
    server.command::<()>(&["REPLICAOF", "127.0.0.1", "1"]).unwrap();
    // One that is younger is not left.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(kind(provider.put(item("k", b"w")).await), ErrorKind::ReadOnly);
    server.stop();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let closed = tokio::time::timeout(Duration::from_secs(20), provider.close()).await;
    closed.expect("as long as a request may take");
}

/// It was made in the `block_on` of a runtime that is kept and not entered again.
#[test]
fn closing_waits_for_no_runtime_that_nobody_drives() {
    let server = RedisServer::start();
    let provider = provider(&server);
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (kept, other) = (runtime(), runtime());
    kept.block_on(put(&provider, "k", "v"));
    let closed =
        other.block_on(async { tokio::time::timeout(Duration::from_secs(30), provider.close()).await });
    closed.expect("a request's time, and a second");
    until_closed(&kept, &server);
}

/// The connection goes with its runtime, or when that goes on.
fn until_closed(kept: &tokio::runtime::Runtime, server: &RedisServer) {
    kept.block_on(until_async("the connection is gone", || async {
        !server.command::<String>(&["CLIENT", "LIST"]).unwrap().contains("resp=3")
    }));
}

/// Experiment 5: a write that timed out is still under way when its key is removed over the next connection.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn late_bytes_of_a_lost_connection_never_run() {
    let server = RedisServer::start();
    let proxy = Proxy::start(server.port()).await;
    let builder = RedisProvider::builder(proxy.url()).response_timeout(Duration::from_millis(50));
    let provider = builder.build().unwrap();
    for _ in 0..10 {
        put(&provider, "k", "v").await;
        proxy.hold();
        assert!(timeout(Duration::from_millis(20), provider.put(item("k", b"late"))).await.is_err());
        until_async("removed over the next connection", || async {
            timeout(Duration::from_millis(100), provider.remove(key("k")))
                .await
                .is_ok_and(|done| done.is_ok())
        })
        .await;
        let sets = server.calls("set");
        proxy.release();
        // What comes after it on its way has come.
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert_eq!((get(&provider, "k").await.unwrap(), server.calls("set")), (None, sets));
    }
}
