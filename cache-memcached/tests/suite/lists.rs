//! Lists of servers that change: what the one list left is never believed under the other, and `retiring`.

use std::time::Duration;

use std::sync::Arc;

use cache_core::{
    Acquire, Acquired, CacheProvider, Delivery, Fill, Holding, Level, Loaded, Policy, Stance, TracedCache, ok,
};
use cache_memcached::MemcachedProvider;

use super::common::{HOUR, Server, builder, eventually, item, key};

struct Three([Server; 3]);

impl Three {
    fn start() -> Self {
        Self([Server::start(), Server::start(), Server::start()])
    }

    /// The first so many of them, in an order that does not matter.
    fn list(&self, count: usize) -> cache_memcached::Builder {
        builder(self.0[count - 1].url()).servers(self.urls(count - 1))
    }

    fn urls(&self, count: usize) -> Vec<String> {
        self.0[..count].iter().map(|s| s.url()).collect()
    }

    fn two(&self) -> MemcachedProvider {
        self.list(2).build().unwrap()
    }

    fn three(&self) -> MemcachedProvider {
        self.list(3).build().unwrap()
    }

    /// A cache on the list of two, and one on that of three, each of which knows of the other's.
    fn changing(&self) -> [TracedCache<String>; 2] {
        [(2, 3), (3, 2)]
            .map(|(list, other)| over(&self.list(list).retiring(self.urls(other)).build().unwrap()))
    }

    /// As when nobody has used that list for half a minute; others go on with theirs.
    async fn end_lives(&self, list: &MemcachedProvider, count: usize) {
        let life = format!("~life-{:016x}", list.incarnation());
        for server in &self.0[..count] {
            assert!(server.raw(format!("mg {life} T1\r\n").as_bytes()).starts_with("HD"));
        }
        for server in &self.0[..count] {
            let gone = async || server.raw(format!("mg {life} s\r\n").as_bytes()) == "EN\r\n";
            eventually("nobody keeps it alive", gone).await;
        }
    }
}

const IDS: [&str; 16] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o", "p"];

fn over(provider: &MemcachedProvider) -> TracedCache<String> {
    let level =
        Level::new(provider.clone()).budget(Duration::from_secs(20)).breaker(None).stance(Stance::Absorb);
    TracedCache::builder("ns").level(level).policy(Policy::ttl(HOUR)).build().unwrap()
}

async fn load(cache: &TracedCache<String>, id: &str, value: &str) -> String {
    let value = value.to_owned();
    let load = || async move { ok(Loaded::value(value).tag("t")) };
    String::clone(&cache.get_or_set(id, load).await.unwrap().unwrap())
}

#[tokio::test]
async fn a_key_that_moves_away_and_back_does_not_find_what_it_left() {
    let servers = Three::start();
    let two = over(&servers.two());
    for id in IDS {
        assert_eq!(load(&two, id, "old").await, "old");
    }
    // All processes go to the other list, and invalidate there: of some keys, the old home does not hear.
    let three = servers.three();
    let cache = over(&three);
    for id in IDS {
        assert_eq!(load(&cache, id, "newer").await, "newer", "the other list's are a miss");
        assert_eq!(cache.invalidate(id).await.unwrap(), Delivery::Confirmed);
    }
    drop(two);
    servers.end_lives(&servers.two(), 2).await;
    // And back.
    let again = over(&servers.two());
    for id in IDS {
        assert_eq!(again.get(id).await.unwrap(), None, "{id}");
    }
}

#[tokio::test]
async fn a_running_cache_that_moves_to_another_list_is_in_another_store() {
    let servers = Three::start();
    let (two, three) = (servers.two(), servers.three());
    let cache = over(&two);
    for id in IDS {
        load(&cache, id, "old").await;
    }
    cache.move_level(0, Arc::new(three.clone())).unwrap();
    let other = over(&three);
    for id in IDS {
        assert_eq!(load(&cache, id, "new").await, "new");
        assert_eq!(load(&other, id, "another").await, "new", "the two share it");
        assert_eq!(cache.invalidate(id).await.unwrap(), Delivery::Confirmed);
    }
    cache.move_level(0, Arc::new(two)).unwrap();
    for id in IDS {
        assert_eq!(cache.get(id).await.unwrap(), None, "back where it was: {id}");
    }
}

#[tokio::test]
async fn a_retiring_list_hears_of_what_is_invalidated() {
    let servers = Three::start();
    let [here, there] = servers.changing();
    for (from, to) in [(&here, &there), (&there, &here)] {
        for id in IDS {
            load(to, id, "old").await;
            assert_eq!(from.invalidate(id).await.unwrap(), Delivery::Confirmed);
            assert_eq!(to.get(id).await.unwrap(), None, "{id}");
            load(to, id, "old").await;
            assert_eq!(from.set(id, "set".to_owned()).await.unwrap(), Delivery::Confirmed);
            assert_eq!(to.get(id).await.unwrap(), None, "{id}");
        }
        load(to, "a", "old").await;
        assert_eq!(from.invalidate_tag("t").await.unwrap(), Delivery::Confirmed);
        eventually("a tag", async || to.get("a").await.unwrap().is_none()).await;
        load(to, "a", "old").await;
        assert_eq!(from.clear().await.unwrap(), Delivery::Confirmed);
        eventually("a clear", async || to.get("a").await.unwrap().is_none()).await;
    }
    // Each goes on by itself: neither makes the other begin again.
    for cache in [&here, &there] {
        load(cache, "stays", "x").await;
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        load(cache, "other", "x").await;
    }
    let key = IDS.into_iter().find(|id| elsewhere(&servers, id)).unwrap();
    load(&there, key, "x").await;
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    load(&here, key, "x").await;
    assert!(there.get(key).await.unwrap().is_some(), "two lists, two copies");
}

#[tokio::test]
async fn a_retiring_list_hears_of_what_is_updated_and_expired() {
    let servers = Three::start();
    let [here, there] = servers.changing();
    for (from, to) in [(&here, &there), (&there, &here)] {
        for id in IDS {
            load(to, id, "old").await;
            let change = |(), _, _| async { ok("new".to_owned()) };
            assert_eq!(from.update(id, &(), change).await.unwrap().delivery, Delivery::Confirmed);
            assert_eq!(to.get(id).await.unwrap(), None, "{id}");
            load(from, id, "old").await;
            load(to, id, "old").await;
            assert_eq!(from.expire(id).await.unwrap(), Delivery::Confirmed);
            assert_eq!(to.get(id).await.unwrap(), None, "{id}");
        }
    }
}

/// Whether a key lives on the third server where there is one.
fn elsewhere(servers: &Three, id: &str) -> bool {
    !servers.0[2].raw(format!("mg ns:{id} s\r\n").as_bytes()).starts_with("EN")
}

#[tokio::test]
async fn a_writer_takes_what_the_retiring_list_loaded_before_it_was_done() {
    let servers = Three::start();
    let old = servers.two();
    let new = servers.list(3).retiring(servers.urls(2)).build().unwrap();
    for id in IDS {
        old.put(item(id, b"old")).await.unwrap();
        let lease = new.leases().unwrap().hold_many(&[key(id)], HOUR).await.remove(0).unwrap();
        assert_eq!(old.get(key(id)).await.unwrap(), None, "{id}");
        // A loader there reads the source before the writer has saved.
        let wish = Acquire { key: key(id), holding: Holding::Nothing };
        let asked = old.leases().unwrap().acquire_many(&[wish], HOUR).await.remove(0).unwrap();
        if let Acquired::Granted(theirs) = asked {
            let fill = Fill { put: item(id, b"old"), lease: theirs };
            old.leases().unwrap().fill_many(&[fill]).await.remove(0).unwrap();
        }
        let fill = Fill { put: item(id, b"new"), lease };
        assert!(new.leases().unwrap().fill_many(&[fill]).await.remove(0).unwrap(), "{id}");
        assert_eq!(old.get(key(id)).await.unwrap(), None, "{id}");
        assert_eq!(new.get(key(id)).await.unwrap().unwrap(), "new");
    }
}

#[tokio::test]
async fn an_invalidation_that_the_retiring_list_did_not_take_is_not_confirmed() {
    let servers = Three::start();
    let cache = over(&servers.list(1).retiring(servers.urls(3)).build().unwrap());
    servers.0[2].kill();
    let mut pending = 0;
    for id in IDS {
        load(&cache, id, "v").await;
        pending += usize::from(cache.invalidate(id).await.unwrap() == Delivery::Pending);
        assert_eq!(cache.get(id).await.unwrap(), None);
    }
    assert!((1..IDS.len()).contains(&pending), "{pending}: those that lived on the third, not all");
}

#[tokio::test]
async fn a_plain_level_takes_it_from_both() {
    let servers = Three::start();
    let old = servers.two().plain().unwrap();
    let new = servers.list(3).retiring(servers.urls(2)).build().unwrap().plain().unwrap();
    for id in IDS {
        old.put(item(id, b"old")).await.unwrap();
        new.put(item(id, b"new")).await.unwrap();
        assert_ne!(old.get(key(id)).await.unwrap().as_deref(), Some(&b"old"[..]), "{id}");
        new.remove(key(id)).await.unwrap();
        assert_eq!(old.get(key(id)).await.unwrap(), None, "{id}");
    }
}

#[test]
fn k_bad_retiring_lists_are_refused() {
    let build = |retiring: &[&str]| {
        let builder = builder("memcached://a").server("memcached://b").retiring(retiring.iter().copied());
        builder.build().unwrap_err().to_string()
    };
    let same = build(&["memcached://b", "memcached://a"]);
    assert!(same.starts_with("retiring = 2 servers: the same as the list itself; "), "{same}");
    let twice = build(&["memcached://c", "memcached://c:11211"]);
    assert!(twice.starts_with("retiring = \"c:11211\": named twice"), "{twice}");
    let wrong = build(&["redis://c"]);
    assert!(wrong.starts_with("retiring = \"redis://c\": the scheme"), "{wrong}");
}
