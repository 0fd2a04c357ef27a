//! Settings are checked before any I/O, and nothing secret is shown.

use std::time::Duration;

use super::common::{Server, builder, eventually, item, key, kind, provider};
use cache_core::{CacheProvider, Description};
use cache_memcached::{Builder, ErrorKind};

const URL: &str = "memcached://127.0.0.1:11211";

#[test]
fn k_bad_settings_name_field_value_and_fix() {
    let bad: [(&str, Builder); 10] = [
        ("server = \"127.0.0.1:11211\": named twice", builder(URL).server(URL)),
        ("server = \"redis://h\": the scheme", builder("redis://h")),
        ("connect_timeout = 0", builder(URL).connect_timeout(Duration::ZERO)),
        ("response_timeout = 0", builder(URL).response_timeout(Duration::ZERO)),
        ("connect_timeout = 1844", builder(URL).connect_timeout(Duration::MAX)),
        ("response_timeout = 1844", builder(URL).response_timeout(Duration::MAX)),
        ("value_max = 0", builder(URL).value_max(0)),
        ("value_max = 2147483648", builder(URL).value_max(2 << 30)),
        ("key_prefix = \"a b\"", builder(URL).key_prefix("a b")),
        ("breaker.failures = 0", builder(URL).breaker(0, Duration::from_secs(1))),
    ];
    for (start, builder) in bad {
        let error = builder.build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().starts_with(start), "{error}");
        assert!(error.to_string().contains(';') || error.to_string().contains(": "), "no fix: {error}");
    }
}

#[test]
fn k_debug_shows_no_password() {
    let builder = builder("memcached://me:hunter2@host:1");
    assert!(!format!("{builder:?}").contains("hunter2"));
    assert!(!format!("{:?}", builder.build()).contains("hunter2"));
}

#[test]
fn describes_itself() {
    let one = builder("memcached://Cache:11300").build().unwrap();
    assert_eq!(one.describe(), Description::remote("memcached", "cache", Some(11300)));
    let two = builder(URL).server("memcached://b").build().unwrap();
    assert_eq!(two.describe(), Description::local("memcached"));
    assert!(one.capabilities().remote);
    assert_eq!(one.leases().is_some(), !crate::POOLED);
    assert_eq!(one.capabilities().ttl_step, Duration::from_secs(1));
}

#[tokio::test]
async fn r17_a_server_that_is_down_at_start_is_used_once_it_is_up() {
    let port = test_servers::free_port();
    let cache = builder(format!("memcached://127.0.0.1:{port}"))
        .breaker(2, Duration::from_millis(20))
        .build()
        .unwrap();
    assert_eq!(kind(cache.get(key("k")).await), ErrorKind::Connect);
    assert_eq!(kind(cache.ping().await), ErrorKind::Connect);
    let server = Server::on(port);
    eventually("it is used", async || cache.put(item("k", b"v")).await.is_ok()).await;
    assert!(cache.get(key("k")).await.unwrap().is_some());
    drop(server);
}

#[tokio::test]
async fn a_host_that_does_not_exist_is_a_connect_error() {
    let cache = builder("memcached://no-such-host.invalid").build().unwrap();
    assert_eq!(kind(cache.get(key("k")).await), ErrorKind::Connect);
}

#[tokio::test]
async fn x_closed_is_an_error() {
    let server = Server::start();
    let cache = provider(&server);
    cache.put(item("k", b"v")).await.unwrap();
    cache.close().await;
    assert_eq!(kind(cache.get(key("k")).await), ErrorKind::Closed);
    assert_eq!(kind(cache.put_many(&[item("k", b"v")]).await.remove(0)), ErrorKind::Closed);
    assert_eq!(kind(cache.clone().ping().await), ErrorKind::Closed);
}

#[test]
fn x_runtimes_may_come_and_go() {
    let server = Server::start();
    let cache = provider(&server);
    let polled_outside = futures::executor::block_on(cache.get(key("k")));
    assert_eq!(kind(polled_outside), ErrorKind::NoRuntime);
    for round in 0..3 {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        runtime.block_on(async {
            cache.put(item("k", &[round])).await.unwrap();
            assert_eq!(cache.get(key("k")).await.unwrap().unwrap(), [round][..]);
        });
    }
}
