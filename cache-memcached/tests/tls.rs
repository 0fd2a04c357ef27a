//! TLS, with certificates of a test's own.
#![cfg(feature = "tls")]
#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]
#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used, reason = "tests")]

#[path = "suite/common/mod.rs"]
mod common;

use std::{fs, sync::Arc, time::Duration};

use cache_core::{
    CacheProvider,
    testing::conformance::{self, Options},
};
use cache_memcached::{Builder, Error, ErrorKind, MemcachedProvider};
use common::{eventually, item, key, kind};
use test_servers::{Authority, Certificate, MemcachedBuilder, MemcachedServer, alerting_port};

/// For [`common`].
const POOLED: bool = false;

const HERE: &[&str] = &["127.0.0.1", "localhost"];
const LONG: Duration = Duration::from_secs(10);

fn server(authority: &Authority, own: &Certificate, demands: bool) -> Option<MemcachedServer> {
    MemcachedBuilder::default().tls(authority, own, demands).start()
}

fn url(server: &MemcachedServer) -> String {
    format!("memcacheds://127.0.0.1:{}", server.tls_port())
}

fn at(server: &MemcachedServer) -> Builder {
    // Each test means one cause, and none the breaker's.
    MemcachedProvider::builder(url(server))
        .connect_timeout(LONG)
        .response_timeout(LONG)
        .breaker(1_000_000, Duration::from_millis(1))
}

fn number(server: &MemcachedServer, name: &str) -> i64 {
    server.stat(name).unwrap().unwrap().parse().unwrap()
}

async fn refused(builder: Builder) -> Error {
    let provider = builder.build().unwrap();
    let mut errors = vec![provider.get(key("k")).await.unwrap_err(), provider.ping().await.unwrap_err()];
    errors.push(provider.servers().await.pop().unwrap().unwrap_err());
    let errors: Vec<Error> = errors.into_iter().map(|e| e.downcast_ref::<Error>().unwrap().clone()).collect();
    for error in &errors {
        assert_eq!((error.kind(), error.to_string()), (errors[0].kind(), errors[0].to_string()));
    }
    let shown = format!("{errors:?} {provider:?}");
    assert!(!shown.contains("PRIVATE") && !shown.contains("BEGIN"), "{shown}");
    errors.into_iter().next().unwrap()
}

fn says(error: &Error, kind: ErrorKind, words: &[&str]) {
    assert_eq!(error.kind(), kind, "{error:?}");
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{words:?} in {text:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_list_with_a_certificate_on_both_sides_and_a_login() {
    let authority = Authority::new();
    let users = tempfile::NamedTempFile::new().unwrap();
    fs::write(users.path(), "shop:s3cret\n").unwrap();
    let builder = MemcachedBuilder::default().args(["-Y", users.path().to_str().unwrap()]);
    let own = authority.issue(HERE);
    let Some(server) = builder.tls(&authority, &own, true).start() else { return };
    let client = authority.issue(&["a client"]);
    let builder = at(&server)
        .ca_file(authority.ca_file())
        .client_certificate(client.certificate, client.key)
        .login("shop", "s3cret");
    let provider = builder.build().unwrap();
    assert!(provider.leases().is_some());
    conformance::run(Arc::new(provider.clone()), Options::default()).await;
    let status = provider.servers().await.pop().unwrap().unwrap();
    assert!(status.version.is_some() && status.items.is_some(), "{status:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_callers_and_batches_of_megabytes_get_what_is_theirs() {
    let authority = Authority::new();
    let Some(server) = server(&authority, &authority.issue(HERE), false) else { return };
    let provider = at(&server).ca_file(authority.ca_file()).build().unwrap();
    let before = number(&server, "total_connections");
    // More than fits into the buffers of sockets and of TLS, in both directions at once.
    let ids: Vec<String> = (0..400).map(|i| format!("id-{i}")).collect();
    let value = |id: &str| id.as_bytes().repeat(10_000);
    let items: Vec<_> = ids.iter().map(|id| item(id, &value(id))).collect();
    assert!(provider.put_many(&items).await.iter().all(Result::is_ok));
    let keys: Vec<_> = ids.iter().map(|id| key(id)).collect();
    let got = provider.get_many(&keys).await;
    for (id, got) in ids.iter().zip(got) {
        assert_eq!(got.unwrap().unwrap(), value(id), "{id}");
    }
    let callers = (0..100).map(|caller| {
        let provider = provider.clone();
        tokio::spawn(async move {
            for round in 0..50 {
                let id = format!("{caller}");
                let bytes = format!("{caller}-{round}").repeat(round + 1);
                provider.put(item(&id, bytes.as_bytes())).await.unwrap();
                // One that is dropped midway hands its reply to nobody.
                drop(futures::poll!(Box::pin(provider.get(key("id-1")))));
                assert_eq!(provider.get(key(&id)).await.unwrap().unwrap(), bytes);
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    // One of ours, and the one that asks.
    assert_eq!(number(&server, "total_connections") - before, 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_requests_of_many_are_answered_like_the_first() {
    let authority = Authority::new();
    let Some(server) = server(&authority, &authority.issue(HERE), false) else { return };
    // Less than the second after which a poll would wake a server that waits for more.
    let limit = Duration::from_millis(700);
    let provider = at(&server).ca_file(authority.ca_file()).response_timeout(limit).build().unwrap();
    for size in [10, 20, 100, 1_000, 20_000] {
        let ids: Vec<String> = (0..200_000 / (size + 50)).map(|i| format!("id-{i}")).collect();
        let items: Vec<_> = ids.iter().map(|id| item(id, &vec![b'v'; size])).collect();
        assert!(provider.put_many(&items).await.iter().all(Result::is_ok), "{size}");
        let keys: Vec<_> = ids.iter().map(|id| key(id)).collect();
        assert!(provider.get_many(&keys).await.iter().all(|got| matches!(got, Ok(Some(_)))), "{size}");
        assert!(provider.remove_many(&keys).await.iter().all(Result::is_ok), "{size}");
    }
}

#[tokio::test]
async fn a_restarted_server_is_found_again_and_a_renewed_certificate_is_used() {
    let authority = Authority::new();
    let Some(server) = server(&authority, &authority.issue(HERE), true) else { return };
    let (own, stale) = (authority.issue(&["a client"]), authority.issue_expired(&["a client"]));
    let builder = at(&server).ca_file(authority.ca_file()).client_certificate(&stale.certificate, &stale.key);
    let provider = builder.build().unwrap();
    let error = provider.ping().await.unwrap_err();
    says(error.downcast_ref().unwrap(), ErrorKind::Tls, &["client_certificate = ", "CertificateExpired"]);
    fs::copy(own.certificate, stale.certificate).unwrap();
    fs::copy(own.key, stale.key).unwrap();
    eventually("connected", async || provider.ping().await.is_ok()).await;
    provider.put(item("k", b"v")).await.unwrap();
    server.kill();
    eventually("the loss is noticed", async || provider.ping().await.is_err()).await;
    server.restart();
    eventually("connected", async || provider.ping().await.is_ok()).await;
    assert_eq!(provider.get(key("k")).await.unwrap(), None, "another life");
    provider.put(item("k", b"w")).await.unwrap();
    assert_eq!(provider.get(key("k")).await.unwrap().unwrap(), "w");
}

#[tokio::test]
async fn a_server_that_stands_still_ends_its_calls_in_time() {
    let authority = Authority::new();
    let Some(server) = server(&authority, &authority.issue(HERE), false) else { return };
    let limit = Duration::from_millis(100);
    let provider = at(&server).ca_file(authority.ca_file()).response_timeout(limit).connect_timeout(limit);
    let provider = provider.build().unwrap();
    eventually("connected", async || provider.ping().await.is_ok()).await;
    server.stop();
    assert_eq!(kind(provider.get(key("k")).await), ErrorKind::Timeout);
    // Neither does a handshake go on for ever.
    assert_eq!(kind(provider.get(key("k")).await), ErrorKind::Timeout);
    assert_eq!(kind(provider.put(item("k", b"v")).await), ErrorKind::Timeout);
    server.cont();
    eventually("it is back", async || provider.put(item("k", b"v")).await.is_ok()).await;
}

#[tokio::test]
async fn whoever_cannot_be_trusted_is_not_spoken_to() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let Some(good) = server(&authority, &authority.issue(HERE), false) else { return };
    at(&good).ca_file(authority.ca_file()).build().unwrap().ping().await.unwrap();

    let fix = "set ca_file to the PEM file";
    let error = refused(at(&good).ca_file(stranger.ca_file())).await;
    says(&error, ErrorKind::Tls, &["ca_file = ", "ca.crt", fix]);
    let error = refused(at(&good).login("shop", "s3cret")).await;
    says(&error, ErrorKind::Tls, &["ca_file = (none)", fix]);
    assert!(!format!("{error:?}").contains("s3cret"));

    let Some(other) = server(&authority, &authority.issue(&["cache.internal"]), false) else { return };
    let error = refused(at(&other).ca_file(authority.ca_file())).await;
    says(&error, ErrorKind::Tls, &["tls_server_name = (none)", "set tls_server_name"]);
    let named = at(&other).ca_file(authority.ca_file()).tls_server_name("cache.internal");
    named.build().unwrap().ping().await.unwrap();

    let Some(stale) = server(&authority, &authority.issue_expired(HERE), false) else { return };
    says(&refused(at(&stale).ca_file(authority.ca_file())).await, ErrorKind::Tls, &["has expired"]);
}

#[tokio::test]
async fn a_server_that_wants_a_certificate_says_so() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let Some(server) = server(&authority, &authority.issue(HERE), true) else { return };
    let trusting = || at(&server).ca_file(authority.ca_file());
    let error = refused(trusting()).await;
    says(&error, ErrorKind::Tls, &["client_certificate = (none)", "set client_certificate"]);
    let own = stranger.issue(&["a client"]);
    let error = refused(trusting().client_certificate(&own.certificate, own.key)).await;
    says(&error, ErrorKind::Tls, &["client_certificate = ", ".crt", "ssl_ca_cert"]);
}

#[tokio::test]
async fn a_port_with_and_one_without_tls_are_not_mistaken_for_each_other() {
    let authority = Authority::new();
    let Some(server) = server(&authority, &authority.issue(HERE), false) else { return };
    let plain = format!("memcacheds://127.0.0.1:{}", server.port());
    let error = refused(MemcachedProvider::builder(plain).ca_file(authority.ca_file())).await;
    says(&error, ErrorKind::Tls, &["does not speak TLS", "use memcached://"]);
    let alerting = alerting_port(10).await;
    let encrypted = |port| {
        let builder = MemcachedProvider::builder(format!("memcached://127.0.0.1:{port}"));
        builder.connect_timeout(LONG).response_timeout(LONG).breaker(1_000_000, Duration::from_millis(1))
    };
    // The question that comes before a login is shorter than anything in TLS: the real one waits for more.
    let login = encrypted(alerting).login("shop", "s3cret");
    for builder in [encrypted(server.tls_port()), encrypted(alerting), login] {
        says(&refused(builder).await, ErrorKind::Connect, &["127.0.0.1", "begin its url with `memcacheds`"]);
    }
    for port in [server.tls_port(), alerting] {
        let writer = encrypted(port).build().unwrap();
        let error = writer.remove(key("k")).await.unwrap_err();
        let words = ["may or may not", "begin its url with `memcacheds`"];
        says(error.downcast_ref().unwrap(), ErrorKind::InDoubt, &words);
    }
}

#[tokio::test]
async fn servers_with_and_without_tls_in_one_list_keep_their_names() {
    let authority = Authority::new();
    let Some(first) = server(&authority, &authority.issue(HERE), false) else { return };
    let Some(second) = MemcachedServer::start() else { return };
    let mixed = at(&first).server(second.url()).ca_file(authority.ca_file()).build().unwrap();
    let ids: Vec<String> = (0..50).map(|i| i.to_string()).collect();
    for id in &ids {
        mixed.put(item(id, id.as_bytes())).await.unwrap();
    }
    for server in [&first, &second] {
        let items = number(server, "curr_items");
        assert!(items > 5, "{items} of 50 keys, and the life");
    }
    // A server is one, however it is spoken to.
    let twice = at(&first).server(url(&first).replace("memcacheds", "memcached")).build().unwrap_err();
    says(&twice, ErrorKind::Config, &["named twice"]);
    // Without a trusted authority, only what lies behind TLS is out of reach.
    let half = at(&first).server(second.url()).build().unwrap();
    let found = half.get_many(&ids.iter().map(|id| key(id)).collect::<Vec<_>>()).await;
    let found: Vec<_> = found.iter().map(|one| matches!(one, Ok(Some(_)))).collect();
    assert!(found.contains(&true) && found.contains(&false), "{found:?}");
}

#[test]
fn bad_files_name_field_and_fix() {
    let authority = Authority::new();
    let secure = || MemcachedProvider::builder("memcacheds://127.0.0.1:1").ca_file(authority.ca_file());
    let plain = || MemcachedProvider::builder("memcached://x");
    let nonsense = tempfile::NamedTempFile::new().unwrap();
    fs::write(nonsense.path(), "hunter2").unwrap();
    for (builder, field, words) in [
        (secure().ca_file("/nowhere/ca.pem"), "ca_file = /nowhere/ca.pem", "entity not found"),
        (secure().ca_file(nonsense.path()), "ca_file = ", "it holds none"),
        (secure().client_certificate("/nowhere.pem", "/k"), "client_certificate = /nowhere.pem", "found"),
        (secure().tls_server_name("no name"), "tls_server_name = no name", "host name"),
        (plain().ca_file("/ca.pem"), "ca_file = /ca.pem", "memcacheds://"),
        (plain().client_certificate("/c", "/k"), "client_certificate = /c", "memcacheds://"),
        (plain().tls_server_name("x"), "tls_server_name = x", "memcacheds://"),
    ] {
        let error = builder.build().unwrap_err();
        says(&error, ErrorKind::Config, &[field, words]);
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
}
