//! One key at a time, and calls that must succeed.

use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::time::sleep;

use super::super::room::{Room, all_ok};
use crate::{Acquire, Acquired, CacheProvider, ENTRY_ID_AT, EntryId, Fill, Holding, Lease, Leases};

/// What has a short life is gone by then, however busy the machine is.
pub(super) const GONE_BY: Duration = Duration::from_secs(10);
pub(super) const LONG: Duration = Duration::from_secs(60);
pub(super) const PAUSE: Duration = Duration::from_millis(5);

pub(super) fn of(provider: &dyn CacheProvider) -> &dyn Leases {
    provider.leases().expect("the provider gives leases")
}

/// A life that the store can hold and a test can wait for.
pub(super) fn short_life(provider: &dyn CacheProvider) -> Duration {
    (provider.capabilities().ttl_step * 2).max(Duration::from_millis(100))
}

/// Bytes with an entry id where an envelope has it.
pub(super) fn entry(id: EntryId, text: &str) -> Bytes {
    let mut bytes = vec![0xEE; ENTRY_ID_AT.start];
    bytes.extend(id.0.to_le_bytes());
    bytes.extend(text.bytes());
    bytes.into()
}

pub(super) async fn ask_for(
    provider: &dyn CacheProvider,
    room: &Room,
    id: &str,
    holding: Holding,
    life: Duration,
) -> Acquired {
    let wish = Acquire { key: room.key(id), holding };
    all_ok(of(provider).acquire_many(&[wish], life).await, 1).remove(0)
}

pub(super) async fn ask(provider: &dyn CacheProvider, room: &Room, id: &str) -> Acquired {
    ask_for(provider, room, id, Holding::Nothing, LONG).await
}

pub(super) fn granted(acquired: Acquired) -> Lease {
    match acquired {
        Acquired::Granted(lease) => lease,
        other => panic!("a lease was to be had, but the answer was {}", name(&other)),
    }
}

pub(super) fn name(acquired: &Acquired) -> &'static str {
    match acquired {
        Acquired::Granted(_) => "Granted",
        Acquired::Held => "Held",
        Acquired::Kept => "Kept",
        Acquired::Found(_) => "Found",
    }
}

pub(super) async fn fill(
    provider: &dyn CacheProvider,
    room: &Room,
    id: &str,
    bytes: impl Into<Bytes>,
    lease: Lease,
) -> bool {
    let fill = Fill { put: room.item(id, bytes), lease };
    all_ok(of(provider).fill_many(&[fill]).await, 1).remove(0)
}

pub(super) async fn hold(provider: &dyn CacheProvider, room: &Room, id: &str, life: Duration) -> Lease {
    all_ok(of(provider).hold_many(&[room.key(id)], life).await, 1).remove(0)
}

pub(super) async fn renew(
    provider: &dyn CacheProvider,
    room: &Room,
    id: &str,
    lease: &Lease,
    life: Duration,
) {
    all_ok(of(provider).renew_many(&[(room.key(id), lease.clone())], life).await, 1);
}

pub(super) async fn release(provider: &dyn CacheProvider, room: &Room, id: &str, lease: &Lease) {
    all_ok(of(provider).release_many(&[(room.key(id), lease.clone())]).await, 1);
}

pub(super) async fn expect(provider: &dyn CacheProvider, room: &Room, id: &str, value: Option<&str>) {
    let found = room.get(provider, id).await;
    assert_eq!(found.as_deref(), value.map(str::as_bytes), "{id}");
}

/// Polls until the lease can be had again.
pub(super) async fn free(provider: &dyn CacheProvider, room: &Room, id: &str) -> Lease {
    let start = Instant::now();
    loop {
        let asked = start.elapsed();
        match ask(provider, room, id).await {
            Acquired::Granted(lease) => return lease,
            other => assert!(asked < GONE_BY, "the lease has not ended: {}", name(&other)),
        }
        sleep(PAUSE).await;
    }
}
