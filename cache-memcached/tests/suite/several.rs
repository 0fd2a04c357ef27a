//! Three servers, of which one is away, and then all: what a cache sees.

use std::time::Duration;

use cache_core::{BreakerState, Level, Policy, Stance, TracedCache};

use super::common::{HOUR, Server, Stopped, builder, eventually};

const IDS: std::ops::Range<u64> = 0..60;

struct Three {
    servers: Vec<Server>,
    cache: TracedCache<String>,
    /// Keys of the last server.
    lost: Vec<u64>,
    healthy: Vec<u64>,
}

/// How servers go away, and come back.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    Killed,
    Stopped,
}

impl Fault {
    fn strike(self, server: &Server) -> Option<Stopped<'_>> {
        match self {
            Self::Killed => {
                server.kill();
                None
            }
            Self::Stopped => Some(server.stop()),
        }
    }
}

impl Three {
    async fn new() -> Self {
        let servers: Vec<Server> = (0..3).map(|_| Server::start()).collect();
        let urls = servers[1..].iter().map(|s| s.url());
        let provider = builder(servers[0].url()).servers(urls).build().unwrap();
        let cache = TracedCache::builder("users")
            .level(Level::new(provider).stance(Stance::Absorb).budget(Duration::from_millis(500)))
            .policy(Policy::ttl(HOUR))
            .build()
            .unwrap();
        for id in IDS {
            assert!(cache.set(id, "value".to_owned()).await.unwrap().is_confirmed());
        }
        let holds = |id: &u64| servers[2].raw(format!("mg users:{id} v\r\n").as_bytes()).starts_with("VA ");
        let (lost, healthy): (Vec<u64>, Vec<u64>) = IDS.partition(holds);
        assert!(lost.len() > 5 && healthy.len() > 20, "{lost:?}");
        Self { servers, cache, lost, healthy }
    }

    async fn batch(&self) -> Vec<u64> {
        let found = self.cache.get_many(IDS).await.unwrap();
        IDS.zip(found).filter_map(|(id, found)| found.map(|_| id)).collect()
    }

    fn breaker(&self) -> BreakerState {
        self.cache.stats().levels[0].breaker
    }
}

async fn one_away_costs_its_own_keys_only(fault: Fault) {
    let three = Three::new().await;
    assert_eq!(three.batch().await.len(), 60);
    let away = fault.strike(&three.servers[2]);

    // Until its breaker has opened and has been half-open some times.
    let start = tokio::time::Instant::now();
    while start.elapsed() < Duration::from_secs(5) {
        assert_eq!(three.batch().await, three.healthy, "{fault:?}");
        for id in &three.healthy {
            assert!(three.cache.get(*id).await.unwrap().is_some(), "{fault:?}: {id}");
            if fault == Fault::Killed {
                // Most calls fail, at once.
                for id in &three.lost[..3] {
                    assert!(three.cache.get(*id).await.unwrap().is_none());
                }
            }
            assert_eq!(three.breaker(), BreakerState::Closed, "{fault:?}");
        }
        assert!(three.cache.get(three.lost[0]).await.unwrap().is_none());
    }
    for id in &three.healthy {
        assert!(three.cache.invalidate(*id).await.unwrap().is_confirmed(), "{fault:?}: {id}");
    }
    // In one call, too: what the server may have taken or not is told later.
    let told = three.cache.invalidate_many(IDS).await.unwrap();
    assert!(!told.is_confirmed());
    assert_eq!(three.cache.stats().pending, three.lost.len(), "{fault:?}");

    drop(away);
    if fault == Fault::Killed {
        three.servers[2].restart();
    }
    eventually("what is pending is told", async || three.cache.stats().pending == 0).await;
    assert!(three.batch().await.is_empty());
    for id in IDS {
        assert!(three.cache.set(id, "again".to_owned()).await.unwrap().is_confirmed());
    }
    assert_eq!(three.batch().await.len(), 60);
}

async fn all_away_opens_the_breaker(fault: Fault) {
    let three = Three::new().await;
    let away: Vec<_> = three.servers.iter().map(|server| fault.strike(server)).collect();
    eventually("the breaker is open", async || {
        assert!(three.batch().await.is_empty());
        three.breaker() == BreakerState::Open
    })
    .await;
    assert!(!three.cache.invalidate(1u64).await.unwrap().is_confirmed());
    drop(away);
    if fault == Fault::Killed {
        three.servers.iter().for_each(|server| server.restart());
    }
    eventually("all of it is back", async || {
        three.batch().await;
        three.breaker() == BreakerState::Closed && three.cache.stats().pending == 0
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_one_killed_costs_its_own_keys_only() {
    one_away_costs_its_own_keys_only(Fault::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_one_stopped_costs_its_own_keys_only() {
    one_away_costs_its_own_keys_only(Fault::Stopped).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_all_killed_open_the_breaker() {
    all_away_opens_the_breaker(Fault::Killed).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_all_stopped_open_the_breaker() {
    all_away_opens_the_breaker(Fault::Stopped).await;
}
