//! Servers that want a login (`-Y FILE`), and how it fails.

use std::time::Duration;

use cache_core::CacheProvider;
use cache_memcached::{Builder, ErrorKind};

use super::common::{
    Server, builder, eventually,
    fake::{Fake, answer},
    item, key, kind,
};

struct Guarded {
    server: Server,
    /// Read by the server again when it restarts.
    file: std::path::PathBuf,
}

impl Guarded {
    fn start(users: &str) -> Self {
        let name = format!("traced-cache-login-{}-{}", std::process::id(), test_servers::free_port());
        let file = std::env::temp_dir().join(name);
        std::fs::write(&file, users).unwrap();
        let server = Server::with(&["-Y", file.to_str().unwrap()]);
        Self { server, file }
    }

    fn builder(&self) -> Builder {
        builder(self.server.url()).breaker(1_000_000, Duration::from_millis(1))
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.file);
    }
}

#[tokio::test]
async fn a_server_that_wants_a_login_gets_one_on_every_connection() {
    let guarded = Guarded::start("other:other\nshop:s3cret,%\"$\n");
    let cache = guarded.builder().login("shop", "s3cret,%\"$").build().unwrap();
    for round in 0..3 {
        cache.put(item("k", &[b'v', round])).await.unwrap();
        assert_eq!(cache.get(key("k")).await.unwrap().unwrap(), [b'v', round][..]);
        guarded.server.restart();
        assert_eq!(cache.get(key("k")).await.unwrap(), None);
    }
    assert!(cache.leases().is_some());
    cache.ping().await.unwrap();
    let status = cache.servers().await.pop().unwrap().unwrap();
    assert!(status.version.is_some() && status.items.is_some() && status.connections > Some(0), "{status:?}");
}

#[tokio::test]
async fn without_or_with_a_wrong_one_calls_say_so() {
    let guarded = Guarded::start("shop:hunter2\n");
    for (builder, says) in [
        (guarded.builder(), "password = (none): memcached 127.0.0.1:"),
        (guarded.builder().login("shop", "hunter3"), "password = ***: memcached 127.0.0.1:"),
        (guarded.builder().login("nobody", "hunter2"), "password = ***: memcached 127.0.0.1:"),
    ] {
        let shown = format!("{builder:?}");
        let cache = builder.build().unwrap();
        for error in [
            cache.get(key("k")).await.unwrap_err(),
            cache.put(item("k", b"v")).await.unwrap_err(),
            cache.ping().await.unwrap_err(),
            cache.servers().await.pop().unwrap().unwrap_err(),
        ] {
            let shown = format!("{shown} {cache:?} {error} {error:?}");
            assert!(error.to_string().starts_with(says), "{error}");
            assert!(!shown.contains("hunter"), "{shown}");
            assert_eq!(kind::<()>(Err(error)), ErrorKind::Login);
        }
        assert!(cache.remove(key("k")).await.is_err());
    }
}

#[tokio::test]
async fn a_server_that_does_not_ask_for_it_is_not_told() {
    let server = Server::start();
    let cache = builder(server.url()).login("shop", "s3cret").build().unwrap();
    cache.put(item("k", b"v")).await.unwrap();
    assert_eq!(cache.get(key("k")).await.unwrap().unwrap(), "v");
    // It would keep it as an item.
    assert_eq!(server.raw(b"mg login v\r\n"), "EN\r\n");
    assert_eq!(server.number("curr_items"), 2, "the value and the life");
}

/// As memcached 1.6.44 and later do; that of the tests may be older.
#[tokio::test]
async fn nothing_that_is_said_before_it_is_taken_for_junk() {
    let fake = Fake::start(|mut peer, _| async move {
        let mut known = false;
        while let Some(line) = peer.line().await {
            let said = match known {
                true if line.starts_with("mg ") => answer(&line),
                true => "MN\r\n".into(),
                false if line.len() < 6 => return,
                false if line.starts_with("set ") => {
                    known = peer.line().await.as_deref() == Some("shop s3cret");
                    "STORED\r\n".into()
                }
                false => "CLIENT_ERROR unauthenticated\r\n".into(),
            };
            peer.say(said.as_bytes()).await;
        }
    })
    .await;
    let cache = builder(fake.url()).login("shop", "s3cret").build().unwrap();
    assert!(cache.get(key("k")).await.unwrap().is_some());
}

#[tokio::test]
async fn a_server_that_says_nothing_to_it_is_no_connection() {
    let fake = Fake::start(|mut peer, _| async move { while peer.line().await.is_some() {} }).await;
    let limit = Duration::from_millis(50);
    let cache = builder(fake.url()).login("a", "b").connect_timeout(limit).build().unwrap();
    assert_eq!(kind(cache.get(key("k")).await), ErrorKind::Timeout);
    eventually("later, too", async || kind(cache.get(key("k")).await) == ErrorKind::Timeout).await;
}

#[test]
fn k_logins_that_cannot_be_given_are_refused() {
    for (user, password, says) in [
        ("", "p", "username = (not shown): "),
        ("hunter b", "p", "username = (not shown): "),
        ("a:b", "p", "username = (not shown): "),
        ("a", "hunter 2", "password = (not shown): "),
        ("a", "", "password = (not shown): "),
        ("a", "hunter\r\n2", "password = (not shown): "),
    ] {
        let error = builder("memcached://h").login(user, password).build().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().starts_with(says) && !error.to_string().contains("hunter"), "{error}");
    }
}
