//! A Prometheus at work on a process at work.

use std::{
    fs,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use cache_otel::{
    Servers,
    raw::{ClientTelemetry, PoolState, PoolTelemetry, ServerWatch, redis::Traced},
    setup::{Running, Setup},
};
use redis::AsyncCommands;
use serde_json::Value;
use test_servers::{MemcachedServer, RedisServer, until};
use traced_cache::{
    CacheProvider, Level, MemcachedProvider, Memory, Policy, RedisProvider, TracedCache, Unreadable, ok,
    testing::{Hub, Link},
};

use crate::prometheus::{Prometheus, queries, shipped};

const LIMIT: Duration = Duration::from_secs(120);

/// A service: a cache over memory and Redis, a second node of it, one over memcached, and a raw client with a pool.
struct Service {
    running: Running,
    cache: TracedCache<u64>,
    other: TracedCache<u64>,
    items: TracedCache<u64>,
    client: Traced<redis::aio::MultiplexedConnection>,
    _watch: ServerWatch,
    _servers: Servers,
    _pool: PoolTelemetry,
}

impl Service {
    async fn start(server: &RedisServer, memcached: &MemcachedServer) -> Self {
        let running = Setup::new("shop")
            .variables(|name| (name == "OTEL_TRACES_EXPORTER").then(|| "none".to_owned()))
            .prometheus(([127, 0, 0, 1], 0))
            .start()
            .unwrap();
        let telemetry = running.telemetry();
        let hub = Hub::new();
        let node = |link: Link| {
            let redis = RedisProvider::builder(server.url()).response_timeout(Duration::from_secs(1)).build();
            TracedCache::builder("users")
                .level(Memory::bytes(64 << 10))
                .level(Level::new(redis.unwrap()))
                .backplane(link)
                .policy(Policy::ttl(Duration::from_secs(600)).wait(Duration::from_secs(5)))
                .observer(telemetry.clone())
                .build()
                .unwrap()
        };
        let (cache, other) = (node(hub.node()), node(hub.node()));
        let provider: Arc<dyn CacheProvider> =
            Arc::new(MemcachedProvider::builder(memcached.url()).build().unwrap());
        let items = TracedCache::builder("items").level(Arc::clone(&provider)).build().unwrap();
        let servers = telemetry.watch_servers(Duration::from_millis(300), move || {
            vec![("memcached".to_owned(), Arc::clone(&provider))]
        });
        let client = ClientTelemetry::builder("redis", "sessions")
            .server("127.0.0.1", server.port())
            .slow_after(Duration::ZERO)
            .meter_provider(running.meter_provider())
            .tracer_provider(running.tracer_provider())
            .build();
        let pool = client.pool("main").observe(|| Some(PoolState { used: 1, idle: 1, max: 2, pending: 0 }));
        pool.acquired(Duration::from_millis(1));
        let connect = async || {
            redis::Client::open(server.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
        };
        let redis = redis::Client::open(server.url()).unwrap();
        let watch = ServerWatch::open(&client, redis, Duration::from_millis(300));
        Self {
            running,
            cache,
            other,
            items,
            client: Traced::new(connect().await, client),
            _watch: watch,
            _servers: servers,
            _pool: pool,
        }
    }

    /// Something of everything, until told to stop.
    async fn work(&self, over: &AtomicBool) {
        let mut client = self.client.clone();
        let mut n = 0u64;
        while !over.load(Ordering::Relaxed) {
            n += 1;
            let slow = |_: (), key: u64| async move {
                tokio::time::sleep(Duration::from_millis(2)).await;
                if key.is_multiple_of(13) { Err("the source is out of sorts") } else { Ok(key) }
            };
            let key = n % 700;
            let _ = tokio::join!(
                self.cache.get_or_set_with(key, &(), slow),
                self.cache.get_or_set_with(key, &(), slow),
                self.cache.get(n % 50),
            );
            if n.is_multiple_of(10) {
                let _ = self.other.set(n % 50, n).await;
                let _ = self.cache.invalidate(n % 70).await;
                let _ = self.cache.get_or_set(n % 50, move || async move { ok(n) }).await;
            }
            let _ = self.items.get(n % 50).await;
            let _: redis::RedisResult<()> = client.set("text", n).await;
            let _: redis::RedisResult<Option<u64>> = client.get("text").await;
            let _: redis::RedisResult<Option<u64>> = client.get("missing").await;
            let _: redis::RedisResult<()> = client.lpush("text", n).await;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dashboard_shows_a_service_and_an_alert_fires_and_resolves() {
    let Some(server) = RedisServer::builder().config("maxmemory", "100mb").start() else { return };
    let Some(memcached) = MemcachedServer::start() else { return };
    let service = Arc::new(Service::start(&server, &memcached).await);
    let at = service.running.prometheus_address().unwrap().to_string();
    let Some(prometheus) = Prometheus::of(&[at]) else { return };
    let over = Arc::new(AtomicBool::new(false));
    let work = tokio::spawn({
        let (service, over) = (Arc::clone(&service), Arc::clone(&over));
        async move { service.work(&over).await }
    });
    let checked = tokio::task::spawn_blocking(move || {
        for (panel, queries) in queries() {
            for query in queries {
                // Another service may have a cache of the same name. Servers are asked by one process for all, or by a Collector.
                assert!(
                    query.contains("job=~\".*\"") || query.contains("redis") || query.contains("memcached"),
                    "{panel}: {query}"
                );
                let mut last = Ok(0);
                let shown = until(LIMIT, || {
                    last = prometheus.answers(&query);
                    last != Ok(0)
                });
                assert!(shown && last.is_ok(), "{panel}: {query}: {last:?}\n{}", prometheus.log());
            }
        }
        // The counts that Prometheus has add up as well.
        for agrees in [
            "sum(cache_misses_total) == sum(cache_miss_reasons_total)",
            "sum(cache_misses_total) == sum(cache_requests_total{cache_result=\"miss\"})",
            "sum(cache_hits_total) == sum(cache_requests_total{cache_result=\"hit\"}) > 0",
            // What the alert on a full server goes by.
            "redis_maxmemory_bytes > 0 and ignoring (redis_policy) redis_maxmemory_policy{redis_policy=\"noeviction\"}",
        ] {
            assert_eq!(prometheus.answers(agrees), Ok(1), "{agrees}");
        }
        // The weight that the dashboard gives to sampled hits. The first comes after 256 of them on one thread.
        let sampled = "cache_operation_duration_seconds_count{cache_sample_weight=\"256\"} > 0";
        assert!(until(LIMIT, || prometheus.answers(sampled).is_ok_and(|series| series > 0)));
        assert!(!prometheus.firing().contains(&"CacheLevelOff".to_owned()));

        let fires = |alert: &'static str| prometheus.firing().contains(&alert.to_owned());
        server.kill();
        assert!(until(LIMIT, || fires("CacheLevelOff")), "{:?}", prometheus.firing());
        assert!(until(LIMIT, || fires("RedisDown")), "{:?}", prometheus.firing());
        server.restart();
        assert!(until(LIMIT, || !fires("CacheLevelOff")), "{:?}", prometheus.firing());
        server
    });
    let server = checked.await.unwrap();
    over.store(true, Ordering::Relaxed);
    work.await.unwrap();
    drop(server);
}

#[test]
fn every_metric_of_rules_and_dashboard_is_one_that_there_is() {
    let names: Vec<String> = metric_names();
    let mut seen = 0;
    let dashboard = queries().into_values().flatten().collect::<Vec<_>>().join("\n");
    let rules = shipped("prometheus/recording.yml") + &shipped("prometheus/alerts.yml");
    for word in (dashboard + &rules).split(|c: char| !(c.is_ascii_alphanumeric() || c == '_')) {
        let metric = ["_total", "_bucket", "_count", "_sum", "_seconds", "_bytes"]
            .iter()
            .any(|suffix| word.ends_with(suffix))
            && ["cache_", "db_client_", "redis_"].iter().any(|prefix| word.starts_with(prefix));
        if metric && !word.starts_with("cache_operation_duration_seconds_p99") {
            seen += 1;
            let base = names.iter().any(|name| word.starts_with(name.as_str()));
            assert!(base, "{word} is of no metric");
        }
    }
    assert!(seen > 60, "{seen}");
}

/// Its marks go by the first words of alerts' names.
#[test]
fn every_alert_is_marked_on_the_dashboard() {
    let dashboard: Value = serde_json::from_str(&shipped("grafana/traced-cache.json")).unwrap();
    let expr = dashboard["annotations"]["list"][0]["expr"].as_str().unwrap();
    let names = expr.split("alertname=~\"").nth(1).unwrap().split('"').next().unwrap();
    let marked: Vec<_> = names.split('|').map(|name| name.trim_end_matches(".*")).collect();
    let alerts = shipped("prometheus/alerts.yml");
    for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(marked.iter().any(|first| alert.starts_with(first)), "{alert}");
    }
    assert_eq!(queries()["Up"], ["redis_up or memcached_up"]);
}

/// Masters of a cluster may share a host.
#[test]
fn servers_are_told_apart_by_their_ports() {
    let dashboard: Value = serde_json::from_str(&shipped("grafana/traced-cache.json")).unwrap();
    let targets =
        dashboard["panels"].as_array().unwrap().iter().filter_map(|panel| panel["targets"].as_array());
    let legends = targets.flatten().filter_map(|target| target["legendFormat"].as_str());
    let alerts = shipped("prometheus/alerts.yml");
    let said: Vec<_> = legends.chain(alerts.lines()).filter(|line| line.contains("server_address")).collect();
    assert!(said.len() > 10, "{said:?}");
    for line in said {
        assert!(line.contains("server_port"), "{line}");
    }
}

/// What is to be done about an entry that cannot be read goes by the reason.
#[test]
fn the_dashboard_knows_each_reason_why_an_entry_is_unreadable() {
    let dashboard: Value = serde_json::from_str(&shipped("grafana/traced-cache.json")).unwrap();
    let mut panels = dashboard["panels"].as_array().unwrap().iter();
    let panel = panels.find(|panel| panel["title"] == "Misses by reason").unwrap();
    let says = panel["description"].as_str().unwrap();
    for reason in Unreadable::ALL {
        assert!(says.contains(reason.as_str()), "{reason:?}");
    }
}

/// As Prometheus begins them.
fn metric_names() -> Vec<String> {
    let docs =
        fs::read_to_string(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/telemetry.md")).unwrap();
    let quoted = docs.split('`').skip(1).step_by(2);
    let metrics = quoted.filter(|word| {
        word.starts_with("cache.") || word.starts_with("db.client.") || word.starts_with("redis.")
    });
    metrics.map(|name| name.replace('.', "_")).collect()
}
