//! How long items live. Real time passes here; bounds are wide, because machines are busy.

use std::time::{Duration, Instant};

use tokio::time::sleep;

use super::room::{Room, all_ok, ok};
use crate::{CacheProvider, Capabilities, Put, RawKey};

/// What has a short TTL is gone by then, however busy the machine is.
const GONE_BY: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(5);

pub(super) fn is_fine(capabilities: &Capabilities) -> bool {
    capabilities.ttl_step <= Duration::from_millis(10)
}

/// A TTL that the store can hold and a test can wait for.
pub(super) fn short_ttl(provider: &dyn CacheProvider) -> Duration {
    (provider.capabilities().ttl_step * 2).max(Duration::from_millis(60))
}

/// Polls until the item is a miss. Gives the time since `start` at which it was first known to be.
async fn gone(room: &Room, provider: &dyn CacheProvider, id: &str, start: Instant) -> Duration {
    loop {
        // Before the call: a late answer says nothing about the item.
        let asked = start.elapsed();
        if !room.has(provider, id).await {
            return start.elapsed();
        }
        assert!(asked < GONE_BY, "{id} has not expired");
        sleep(PAUSE).await;
    }
}

/// The same for any key.
pub(super) async fn until_gone(provider: &dyn CacheProvider, key: RawKey<'_>) {
    let start = Instant::now();
    while ok(provider.get(key).await).is_some() {
        assert!(start.elapsed() < GONE_BY, "it has not expired");
        sleep(PAUSE).await;
    }
}

/// An item expires, and reading it does not keep it. Not earlier than one step before its time: stores count in steps.
pub async fn ttl_expires(provider: &dyn CacheProvider) {
    let room = Room::new();
    let ttl = short_ttl(provider);
    let least = ttl - provider.capabilities().ttl_step;
    let mut lived = Duration::ZERO;
    // Memcached's clock ticks late on a busy machine and then takes two steps at once. A store that forgets early does
    // it every time.
    let tries = if is_fine(&provider.capabilities()) { 1 } else { 5 };
    for _ in 0..tries {
        let start = Instant::now();
        room.put_for(provider, "k", ttl).await;
        lived = gone(&room, provider, "k", start).await;
        if lived >= least {
            break;
        }
    }
    assert!(lived >= least, "gone after {lived:?}, with a ttl of {ttl:?}");
    room.put_for(provider, "k", GONE_BY).await;
    assert!(room.has(provider, "k").await, "it can be put again");
}

/// T10: a TTL of 250 ms is not rounded to a second.
pub async fn sub_second_ttl(provider: &dyn CacheProvider) {
    let room = Room::new();
    let mut lived = Duration::MAX;
    // A busy machine may notice late; a store that rounds is late every time.
    for _ in 0..5 {
        let start = Instant::now();
        room.put_for(provider, "k", Duration::from_millis(250)).await;
        lived = gone(&room, provider, "k", start).await;
        assert!(lived >= Duration::from_millis(240), "gone after {lived:?}");
        if lived < Duration::from_millis(900) {
            return;
        }
    }
    panic!("a ttl of 250 ms took {lived:?}");
}

/// T11, T13: a TTL below the store's step is rounded up, never to "no expiry" and never to an error.
pub async fn the_smallest_ttl_expires(provider: &dyn CacheProvider) {
    let room = Room::new();
    let step = provider.capabilities().ttl_step;
    for (id, ttl) in [("nano", Duration::from_nanos(1)), ("half", step / 2), ("over", step + step / 10)] {
        let start = Instant::now();
        room.put_for(provider, id, ttl.max(Duration::from_nanos(1))).await;
        gone(&room, provider, id, start).await;
    }
}

/// Items of one batch keep their own TTLs.
pub async fn ttl_is_per_item(provider: &dyn CacheProvider) {
    let room = Room::new();
    let ttl = short_ttl(provider);
    let start = Instant::now();
    let short = Put { ttl, ..room.item("short", "v") };
    let batch = [room.item("first", "v"), short, Put { ttl: Duration::MAX, ..room.item("last", "v") }];
    all_ok(provider.put_many(&batch).await, 3);
    gone(&room, provider, "short", start).await;
    assert!(room.has(provider, "first").await && room.has(provider, "last").await);
}

/// An overwrite brings its own TTL, longer or shorter.
pub async fn overwrite_replaces_the_ttl(provider: &dyn CacheProvider) {
    let room = Room::new();
    let ttl = short_ttl(provider);
    let start = Instant::now();
    for (id, first, second) in
        [("longer", ttl, GONE_BY * 10), ("unlimited", ttl, Duration::MAX), ("shorter", Duration::MAX, ttl)]
    {
        room.put_for(provider, id, first).await;
        room.put_for(provider, id, second).await;
    }
    room.put_for(provider, "witness", ttl).await;
    gone(&room, provider, "witness", start).await;
    gone(&room, provider, "shorter", start).await;
    assert!(room.has(provider, "longer").await, "the longer ttl counts");
    assert!(room.has(provider, "unlimited").await, "no ttl replaces a short one");
}

/// T4: `Duration::MAX` does not overflow and is kept.
pub async fn unlimited_ttl_is_kept(provider: &dyn CacheProvider) {
    let room = Room::new();
    let start = Instant::now();
    room.put_for(provider, "for ever", Duration::MAX).await;
    room.put_for(provider, "witness", short_ttl(provider)).await;
    gone(&room, provider, "witness", start).await;
    assert!(room.has(provider, "for ever").await);
}

/// T14, T16: long TTLs do not wrap round. One over `ttl_max` is kept or refused.
pub async fn long_ttls_are_kept(provider: &dyn CacheProvider) {
    const DAY: u64 = 86_400;
    let room = Room::new();
    let seconds = [
        DAY,
        30 * DAY,
        30 * DAY + 1,
        365 * DAY,
        i32::MAX as u64,
        u64::from(u32::MAX),
        100 * 365 * DAY,
        u64::MAX / 1_000_000_000,
        u64::MAX / 1_000,
        u64::MAX,
    ];
    for seconds in seconds {
        let ttl = Duration::from_secs(seconds);
        let put = provider.put(Put { ttl, ..room.item("k", "v") }).await;
        if provider.capabilities().ttl_max.is_some_and(|max| ttl > max) {
            assert_eq!(
                room.has(provider, "k").await,
                put.is_ok(),
                "{seconds} s is over ttl_max: kept, or refused"
            );
        } else {
            ok(put);
            assert!(room.has(provider, "k").await, "a ttl of {seconds} s is kept");
        }
        room.remove(provider, "k").await;
    }
}
