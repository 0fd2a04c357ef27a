//! TLS, with certificates of a test's own.
#![cfg(feature = "tls")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "in tests, what goes wrong must fail the test")]

mod common;

use std::{fs, sync::Arc, time::Duration};

use cache_core::{
    CacheProvider,
    testing::conformance::{self, Options},
};
use cache_redis::{Error, ErrorKind, RedisProvider, RedisProviderBuilder};
use common::{get, item, key, kind, put, until_async};
use test_servers::{
    Authority, Certificate, RedisBuilder, RedisCluster, RedisSentinel, RedisServer, alerting_port,
};

const HERE: &[&str] = &["127.0.0.1", "localhost"];

fn server(authority: &Authority, own: &Certificate, demands: bool) -> Option<RedisServer> {
    RedisBuilder::default().tls(authority, own, demands).start()
}

fn at(server: &RedisServer) -> RedisProviderBuilder {
    RedisProvider::builder(format!("rediss://127.0.0.1:{}", server.tls_port()))
}

async fn refused(builder: RedisProviderBuilder) -> Error {
    let provider = builder.connect_timeout(Duration::from_secs(10)).build().unwrap();
    let error = provider.connect().await.unwrap_err();
    assert_eq!(kind(provider.get(key("k")).await), error.kind());
    let shown = format!("{error} {error:?} {provider:?}");
    assert!(!shown.contains("PRIVATE") && !shown.contains("BEGIN"), "{shown}");
    error
}

fn says(error: &Error, kind: ErrorKind, words: &[&str]) {
    assert_eq!(error.kind(), kind, "{error:?}");
    let text = error.to_string();
    assert!(words.iter().all(|word| text.contains(word)), "{words:?} in {text:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_list_with_a_certificate_on_both_sides() {
    let authority = Authority::new();
    let Some(server) = server(&authority, &authority.issue(HERE), true) else { return };
    let own = authority.issue(&["a client"]);
    let builder = at(&server).ca_file(authority.ca_file()).client_certificate(own.certificate, own.key);
    conformance::run(Arc::new(builder.build().unwrap()), Options::default()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_whole_list_in_a_cluster() {
    let authority = Authority::new();
    let Some(cluster) = RedisCluster::with_tls(3, 0, &authority) else { return };
    let url = format!("rediss+cluster://127.0.0.1:{}", cluster.nodes()[0].tls_port());
    let provider = RedisProvider::builder(&url).ca_file(authority.ca_file()).build().unwrap();
    conformance::run(Arc::new(provider.clone()), Options::default()).await;
    let ports: Vec<String> =
        cluster.nodes().iter().map(|node| format!("127.0.0.1:{}", node.tls_port())).collect();
    assert!(provider.connections().iter().all(|connection| ports.contains(&connection.address)));

    let stranger = Authority::new();
    let trusts_nobody = RedisProvider::builder(url).ca_file(stranger.ca_file()).build().unwrap();
    says(&trusts_nobody.connect().await.unwrap_err(), ErrorKind::Tls, &["ca_file = "]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_and_the_master_that_they_name() {
    let authority = Authority::new();
    let Some(sentinels) = RedisSentinel::with_tls(&authority) else { return };
    let at: Vec<String> =
        sentinels.sentinels().iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.tls_port())).collect();
    let url = format!("rediss+sentinel://{}/{}", at.join(","), RedisSentinel::MASTER);
    let provider = RedisProvider::builder(&url).ca_file(authority.ca_file()).build().unwrap();
    put(&provider, "k", "v").await;
    assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("v"));
    assert_eq!(provider.connections()[0].address, format!("127.0.0.1:{}", sentinels.servers()[0].tls_port()));

    let stranger = Authority::new();
    let trusts_nobody = RedisProvider::builder(url).ca_file(stranger.ca_file()).build().unwrap();
    says(&trusts_nobody.connect().await.unwrap_err(), ErrorKind::Tls, &["no sentinel", "ca_file = "]);
}

/// Users with no more rights than they need, of the servers and of the sentinels, all over TLS, and a failover.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sentinels_and_servers_each_have_users_of_their_own() {
    let authority = Authority::new();
    let Some(all) = RedisSentinel::guarded_with_tls("hunter2", "letmein99", &authority) else { return };
    for server in all.servers() {
        let user = "ACL SETUSER app on >pw1 ~* &* -@all +@read +@write +@scripting +@transaction +@connection +@pubsub +info +time +role";
        server.command::<()>(&user.split(' ').collect::<Vec<_>>()).unwrap();
    }
    for sentinel in all.sentinels() {
        let user = "ACL SETUSER watcher on >pw2 &* -@all +hello +sentinel|get-master-addr-by-name +sentinel|master +subscribe";
        sentinel.command::<()>(&user.split(' ').collect::<Vec<_>>()).unwrap();
    }
    let at: Vec<String> =
        all.sentinels().iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.tls_port())).collect();
    let url = format!("rediss+sentinel://app:pw1@{}/{}", at.join(","), RedisSentinel::MASTER);
    let builder = || RedisProvider::builder(&url).ca_file(authority.ca_file()).sentinel_username("watcher");
    let provider = builder().sentinel_password("pw2").build().unwrap();
    put(&provider, "k", "v").await;
    let before = provider.connections()[0].address.clone();
    until_async("a failover", || async {
        all.sentinels()[0].command::<()>(&["SENTINEL", "FAILOVER", RedisSentinel::MASTER]).is_ok()
    })
    .await;
    until_async("the other master is used", || async {
        provider.put(item("k", b"w")).await.is_ok() && provider.connections()[0].address != before
    })
    .await;
    until_async("read", || async {
        get(&provider, "k").await.is_ok_and(|found| found.as_deref() == Some("w"))
    })
    .await;

    let wrong = builder().sentinel_password("pw1").build().unwrap();
    says(
        &wrong.connect().await.unwrap_err(),
        ErrorKind::Auth,
        &["sentinel_password = ***: ", "sentinels have others"],
    );
    let wrong = builder().sentinel_password("pw2").password("pw2").build().unwrap();
    says(&wrong.connect().await.unwrap_err(), ErrorKind::Auth, &["password = ***: Redis at 127.0.0.1:"]);
}

#[tokio::test]
async fn a_restarted_server_is_found_again_and_a_renewed_certificate_is_used() {
    let authority = Authority::new();
    let Some(server) = server(&authority, &authority.issue(HERE), true) else { return };
    let (own, stale) = (authority.issue(&["a client"]), authority.issue_expired(&["a client"]));
    let builder = at(&server).ca_file(authority.ca_file()).client_certificate(&stale.certificate, &stale.key);
    let provider = builder.build().unwrap();
    says(
        &provider.connect().await.unwrap_err(),
        ErrorKind::Tls,
        &["client_certificate = ", "CertificateExpired"],
    );
    fs::copy(own.certificate, stale.certificate).unwrap();
    fs::copy(own.key, stale.key).unwrap();
    until_async("connected", || async { provider.connect().await.is_ok() }).await;
    put(&provider, "k", "v").await;
    server.kill();
    until_async("the loss is noticed", || async { provider.ping().await.is_err() }).await;
    server.restart();
    until_async("connected", || async { provider.ping().await.is_ok() }).await;
    put(&provider, "k", "w").await;
    assert_eq!(get(&provider, "k").await.unwrap().as_deref(), Some("w"));
}

#[tokio::test]
async fn whoever_cannot_be_trusted_is_not_spoken_to() {
    let (authority, stranger) = (Authority::new(), Authority::new());
    let Some(good) = server(&authority, &authority.issue(HERE), false) else { return };
    at(&good).ca_file(authority.ca_file()).build().unwrap().connect().await.unwrap();

    let fix = "set ca_file to the PEM file";
    let error = refused(at(&good).ca_file(stranger.ca_file())).await;
    says(&error, ErrorKind::Tls, &["ca_file = ", "ca.crt", fix]);
    let error = refused(at(&good)).await;
    says(&error, ErrorKind::Tls, &["ca_file = (none)", fix]);

    let Some(other) = server(&authority, &authority.issue(&["cache.internal"]), false) else { return };
    let error = refused(at(&other).ca_file(authority.ca_file())).await;
    says(&error, ErrorKind::Tls, &["tls_server_name = (none)", "set tls_server_name"]);
    let named = at(&other).ca_file(authority.ca_file()).tls_server_name("cache.internal");
    named.build().unwrap().connect().await.unwrap();

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
    says(&error, ErrorKind::Tls, &["client_certificate = ", ".crt", "tls-ca-cert-file"]);
}

#[tokio::test]
async fn a_port_without_tls_is_named_as_such() {
    let Some(server) = RedisServer::start() else { return };
    let authority = Authority::new();
    let url = format!("rediss://127.0.0.1:{}", server.port());
    let builder = RedisProvider::builder(url).ca_file(authority.ca_file());
    let provider = builder.connect_timeout(Duration::from_millis(300)).build().unwrap();
    let error = provider.connect().await.unwrap_err();
    // What looks like the beginning of a command without TLS is met with silence, all else with an error.
    let text = error.to_string();
    match error.kind() {
        ErrorKind::Timeout => assert!(text.contains("is TLS on at that port?"), "{text}"),
        ErrorKind::Tls => assert!(text.contains("does not speak TLS"), "{text}"),
        _ => panic!("{error:?}"),
    }
}

#[tokio::test]
async fn a_port_with_tls_is_named_as_such() {
    let authority = Authority::new();
    let Some(server) = server(&authority, &authority.issue(HERE), false) else { return };
    let alerting = alerting_port(10).await;
    for port in [server.tls_port(), alerting] {
        let error = refused(RedisProvider::builder(format!("redis://127.0.0.1:{port}"))).await;
        says(&error, ErrorKind::Connect, &["127.0.0.1", "begin the url with `rediss`"]);
    }
}

/// What becomes of a server that answers with this alert.
async fn alerted(alert: u8, host: &str) -> Error {
    let url = format!("rediss://{host}:{}", alerting_port(alert).await);
    let authority = Authority::new();
    refused(RedisProvider::builder(url).ca_file(authority.ca_file())).await
}

/// As of one whose OpenSSL speaks TLS 1.1 at most, or of whose ciphers we have none.
#[tokio::test]
async fn a_server_that_speaks_another_tls_is_not_one_that_wants_a_certificate() {
    let authority = Authority::new();
    let error = alerted(70, "127.0.0.1").await;
    says(&error, ErrorKind::Tls, &["no TLS 1.2 or 1.3 in common", "see its tls-protocols"]);

    let own = authority.issue(HERE);
    let builder = RedisBuilder::default().tls(&authority, &own, false).config("tls-protocols", "TLSv1.2");
    let Some(server) = builder.config("tls-ciphers", "ECDHE-ECDSA-AES256-SHA").start() else { return };
    let trusting = || at(&server).ca_file(authority.ca_file());
    let words = ["ECDHE", "AES-GCM or ChaCha20"];
    says(&refused(trusting()).await, ErrorKind::Tls, &words);
    says(&refused(trusting().client_certificate(own.certificate, own.key)).await, ErrorKind::Tls, &words);
}

#[tokio::test]
async fn a_server_of_tls_1_2_that_wants_a_certificate_says_so() {
    let authority = Authority::new();
    let builder = RedisBuilder::default().tls(&authority, &authority.issue(HERE), true);
    let Some(server) = builder.config("tls-protocols", "TLSv1.2").start() else { return };
    let error = refused(at(&server).ca_file(authority.ca_file())).await;
    says(&error, ErrorKind::Tls, &["client_certificate = (none)", "set client_certificate"]);
}

/// A server that goes by the name that is asked for, and has none of this one.
#[tokio::test]
async fn a_server_that_knows_another_name_is_told_of_as_such() {
    let error = alerted(112, "localhost").await;
    says(&error, ErrorKind::Tls, &["tls_server_name = (none)", "set tls_server_name"]);
}

/// A key on P-521, which ring does not have.
const P521: &str = "-----BEGIN PRIVATE KEY-----\n\
    MIHuAgEAMBAGByqGSM49AgEGBSuBBAAjBIHWMIHTAgEBBEIABFYCQCaXHDCZvz7X\n\
    LK8ootOVU5fOGyehKX3KCTSYWG3zl9nucWxqyJTNP8Mstf40Rj0pmBm/3sj1I33i\n\
    M1Qvxt6hgYkDgYYABAE4jorP+q7kO0ZIPUJSWdbqTPB1hwbrrdcMncHeU3ycc+tS\n\
    qPme3WztBQ7rjLEpnEyIE5Eurdr5gbpPWLDjbeGsPwB+7VAl/KZwNS4G9lzCzTiq\n\
    Jp0PyB4y4wcRcCEHQT0Cn2OJG6pv5gMgM54tMENEnPtrRs7ElG284B8YDnVL3GWL\n\
    rA==\n\
    -----END PRIVATE KEY-----\n";

#[test]
fn bad_files_name_field_and_fix() {
    let authority = Authority::new();
    let (own, other) = (authority.issue(&["a"]), authority.issue(&["b"]));
    let secure = || RedisProvider::builder("rediss://127.0.0.1:1").ca_file(authority.ca_file());
    let nonsense = tempfile::NamedTempFile::new().unwrap();
    fs::write(nonsense.path(), "hunter2").unwrap();
    // As of a renewal that was cut short: the form is that of a certificate, what it holds is none.
    let broken = tempfile::NamedTempFile::new().unwrap();
    fs::write(broken.path(), "-----BEGIN CERTIFICATE-----\naHVudGVyMg==\n-----END CERTIFICATE-----\n")
        .unwrap();
    let odd = tempfile::NamedTempFile::new().unwrap();
    fs::write(odd.path(), P521).unwrap();
    for (builder, field, words) in [
        (secure().ca_file("/nowhere/ca.pem"), "ca_file = /nowhere/ca.pem", "entity not found"),
        (secure().ca_file(nonsense.path()), "ca_file = ", "it holds none"),
        (secure().client_certificate("/nowhere.pem", &own.key), "client_certificate = /nowhere.pem", "found"),
        (secure().client_certificate(&own.certificate, "/nowhere.pem"), "client_key = /nowhere.pem", "found"),
        (secure().client_certificate(&own.certificate, &own.certificate), "client_key = ", "a private key"),
        (secure().client_certificate(&own.certificate, nonsense.path()), "client_key = ", "a private key"),
        (secure().client_certificate(&own.certificate, &other.key), "client_key = ", "does not belong"),
        (secure().client_certificate(broken.path(), &own.key), "client_certificate = ", "cannot be read"),
        (secure().client_certificate(&own.certificate, odd.path()), "client_key = ", "of a kind"),
        (secure().ca_file("rediss://:hunter2@host"), "ca_file = ***", "it is a URL"),
        (
            secure().client_certificate(&own.certificate, "rediss://:hunter2@host"),
            "client_key = ***",
            "it is a URL",
        ),
        (secure().tls_server_name("rediss://:hunter2@host"), "tls_server_name = ***", "host name"),
        (RedisProvider::builder("redis://x").ca_file("redis://:hunter2@x"), "ca_file = ***", "rediss://"),
        (secure().tls_server_name("no name"), "tls_server_name = no name", "host name"),
        (RedisProvider::builder("redis://x").ca_file("/ca.pem"), "ca_file = /ca.pem", "rediss://"),
        (RedisProvider::builder("redis://x").tls_server_name("x"), "tls_server_name = x", "rediss://"),
        (
            RedisProvider::builder("redis://x").client_certificate("/c", "/k"),
            "client_certificate = /c",
            "rediss://",
        ),
    ] {
        let error = builder.build().unwrap_err();
        says(&error, ErrorKind::Config, &[field, words]);
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains("hunter2") && !shown.contains("BEGIN"), "{shown}");
    }
}
