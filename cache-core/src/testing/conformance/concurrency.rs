//! Many calls at once, and calls that are given up.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::join_all;
use tokio::time::{sleep, timeout};

use super::room::{Room, all_ok, ok, own};
use crate::{CacheProvider, Put};

/// Bytes of an item, and items of a batch, that take a store some time.
const SLOW: usize = 32 << 10;
const BATCH: usize = 64;
/// For how long what is late is waited for.
const LATE: Duration = Duration::from_millis(300);

/// Puts and gets of many keys at once: each answer belongs to its question.
pub async fn concurrent_calls_do_not_mix_up(provider: &dyn CacheProvider) {
    let room = Room::new();
    let ids: Vec<String> = (0..200).map(|n| format!("id-{n}")).collect();
    let room = &room;
    join_all(ids.iter().map(|id| async move {
        assert!(!room.has(provider, id).await, "{id} was there before");
        room.put(provider, id, own(id)).await;
        assert!(room.get(provider, id).await == Some(own(id)), "{id} has another's value");
    }))
    .await;
    join_all(ids.chunks(10).map(|chunk| room.expect_own(provider, chunk))).await;
    join_all(ids.iter().map(|id| room.remove(provider, id))).await;
    let keys: Vec<_> = ids.iter().map(|id| room.key(id)).collect();
    assert!(all_ok(provider.get_many(&keys).await, keys.len()).iter().all(Option::is_none));
}

/// Writers of one key at once leave one of the values, whole.
pub async fn concurrent_writers_leave_one_value(provider: &dyn CacheProvider) {
    let room = Room::new();
    let values: Vec<Vec<u8>> = (0..50).map(|n| vec![n; 200 + usize::from(n)]).collect();
    join_all(values.iter().map(|value| async {
        room.put(provider, "k", value.clone()).await;
        let found = room.get(provider, "k").await.unwrap_or_default();
        assert!(values.iter().any(|value| *value == found), "a value that nobody put");
    }))
    .await;
    let last = room.get(provider, "k").await;
    assert!(last.is_some() && last == room.get(provider, "k").await, "the last value stays");
}

/// Calls dropped before their answer: those that follow get their own answers, not the dropped ones'.
pub async fn dropped_calls_leave_it_usable(provider: &dyn CacheProvider) {
    let room = Room::new();
    let ids: Vec<String> = (0..20).map(|n| format!("id-{n}")).collect();
    room.fill(provider, &ids).await;
    let keys: Vec<_> = ids.iter().map(|id| room.key(id)).collect();
    for round in 0..100_u64 {
        // From "polled once" to "answered, perhaps".
        let patience = Duration::from_micros(round % 10 * 60);
        for id in ["dropped", "dropped too"] {
            let item = Put { ttl: Duration::from_secs(60), ..room.item(id, own(id)) };
            let _ = give_up(patience, provider.put(item)).await;
            let _ = give_up(patience, provider.get(room.key(id))).await;
            let _ = give_up(patience, provider.get_many(&keys)).await;
            let _ = give_up(patience, provider.remove(room.key(id))).await;
        }
        let id = &ids[usize::try_from(round).unwrap_or(0) % ids.len()];
        assert!(
            room.get(provider, id).await == Some(own(id)),
            "an answer to a dropped call in round {round}"
        );
    }
    join_all(ids.chunks(5).map(|chunk| room.expect_own(provider, chunk))).await;
    ok(provider.ping().await);
}

/// Puts dropped before their answer may go on without their caller. Once a later put or removal of the key has been
/// answered, nothing of them comes any more.
pub async fn dropped_puts_are_not_late(provider: &dyn CacheProvider) {
    let room = Room::new();
    let bytes = Bytes::from(vec![b'x'; provider.capabilities().value_max.map_or(SLOW, |max| max.min(SLOW))]);
    let (mut removed, mut replaced) = (Vec::new(), Vec::new());
    // From "polled once" to "answered, perhaps".
    for patience in [0, 100, 500, 2000].map(Duration::from_micros) {
        let ids: Vec<String> = (0..BATCH).map(|n| format!("{patience:?} {n}")).collect();
        let items: Vec<_> = ids.iter().map(|id| room.item(id, bytes.clone())).collect();
        let _ = give_up(patience, provider.put_many(&items)).await;
        // What is late is the end of the batch.
        let Some((last, others)) = ids.split_last() else { continue };
        room.put(provider, last, own(last)).await;
        let keys: Vec<_> = others.iter().rev().map(|id| room.key(id)).collect();
        all_ok(provider.remove_many(&keys).await, keys.len());
        replaced.push(last.clone());
        removed.extend_from_slice(others);
    }
    for patience in [0, 100, 500].map(Duration::from_micros) {
        let id = format!("{patience:?} alone");
        let _ = give_up(patience, provider.put(room.item(&id, bytes.clone()))).await;
        room.remove(provider, &id).await;
        removed.push(id);
    }
    let (start, removed): (_, Vec<_>) = (Instant::now(), removed.iter().map(|id| room.key(id)).collect());
    while start.elapsed() < LATE {
        let found = all_ok(provider.get_many(&removed).await, removed.len());
        assert!(found.iter().all(Option::is_none), "a put that was dropped came after the removal");
        for id in &replaced {
            assert!(
                room.get(provider, id).await == Some(own(id)),
                "a put that was dropped came after a later one"
            );
        }
        sleep(LATE / 10).await;
    }
}

async fn give_up<F: Future>(patience: Duration, call: F) -> Option<F::Output> {
    if patience.is_zero() {
        tokio::pin!(call);
        // One poll sends what a poll sends; then the call is dropped.
        return futures::future::poll_immediate(call).await;
    }
    let answer = timeout(patience, call).await.ok();
    if answer.is_none() {
        sleep(Duration::ZERO).await;
    }
    answer
}
