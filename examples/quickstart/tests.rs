//! The tour counts what it should, on memory alone and with each second level.

use test_servers::{MemcachedServer, RedisServer};

use cache_otel::names;

use super::{Database, Metrics, Remote, Tour, tour};

async fn counts(url: Option<&str>) -> Vec<[u64; 5]> {
    let remote = url.map(|url| Remote::new(url, "test").unwrap());
    let metrics = Metrics::new();
    let node = tour::cache(&metrics, remote.as_ref()).unwrap();
    let other = remote.as_ref().map(|remote| tour::cache(&metrics, Some(remote)).unwrap());
    let database = Database::create().await.unwrap();
    let tour = Tour { metrics: &metrics, database: &database, node: &node, other: other.as_ref() };
    let steps = tour.run().await.unwrap();
    let count = |step: &tour::Step| {
        let seen = &step.seen;
        [
            seen.lookups("hit", Some("l1")),
            seen.lookups("hit", Some("l2")),
            seen.lookups("coalesced", None),
            seen.lookups("miss", None),
            seen.count(names::LOADS, &[]),
        ]
    };
    let mut counts: Vec<_> = steps.iter().map(count).collect();
    // Under load a caller of the crowd may come after the load has ended; then it is a hit.
    let crowd = counts.len() - 4;
    let [hits, _, waited, _, _] = &mut counts[crowd];
    *waited += std::mem::take(hits);
    counts
}

const COLD: [u64; 5] = [0, 0, 0, 200, 200];
const WARM: [u64; 5] = [100_000, 0, 0, 0, 0];
const OTHER: [u64; 5] = [0, 200, 0, 0, 0];
const CROWD: [u64; 5] = [0, 0, 999, 1, 1];
const BATCH: [u64; 5] = [50, 0, 0, 50, 1];
const INVALIDATED: [u64; 5] = [0, 0, 0, 0, 0];
const AFTER: [u64; 5] = [0, 0, 0, 50, 50];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_memory_alone() {
    assert_eq!(counts(None).await, [COLD, WARM, CROWD, BATCH, INVALIDATED, AFTER]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_redis() {
    let Some(server) = RedisServer::start() else { return };
    let seen = counts(Some(&server.url())).await;
    assert_eq!(seen, [COLD, WARM, OTHER, CROWD, BATCH, INVALIDATED, AFTER]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_memcached() {
    let Some(server) = MemcachedServer::start() else { return };
    let seen = counts(Some(&server.url())).await;
    assert_eq!(seen, [COLD, WARM, OTHER, CROWD, BATCH, INVALIDATED, AFTER]);
}

#[tokio::test]
async fn a_server_that_is_not_there_and_a_bad_url_are_told_apart() {
    for (url, code) in [
        ("redis://127.0.0.1:1", "ExitCode(unix_exit_status(1))"),
        ("memcached://127.0.0.1:1", "ExitCode(unix_exit_status(1))"),
        ("redis://", "ExitCode(unix_exit_status(2))"),
        ("ftp://127.0.0.1", "ExitCode(unix_exit_status(2))"),
    ] {
        let (line, got) = super::quickstart(Some(url)).await.unwrap_err().report();
        assert_eq!(format!("{got:?}"), code, "{line}");
        assert!(!line.contains('\n'));
    }
}
