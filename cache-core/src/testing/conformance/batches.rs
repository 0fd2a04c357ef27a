//! Batches: one result per key, in the order of the request.

use bytes::Bytes;

use super::room::{Room, all_ok, own};
use crate::CacheProvider;

/// Nothing asked, nothing answered.
pub async fn empty_batch(provider: &dyn CacheProvider) {
    assert!(provider.get_many(&[]).await.is_empty());
    assert!(provider.put_many(&[]).await.is_empty());
    assert!(provider.remove_many(&[]).await.is_empty());
}

/// Present and missing keys, shuffled: each answer is in the place of its key.
pub async fn batch_keeps_order_and_length(provider: &dyn CacheProvider) {
    let room = Room::new();
    let present: Vec<String> = (0..40).map(|n| format!("present-{n}")).collect();
    room.fill(provider, &present).await;
    let mut ids: Vec<String> = (0..40).map(|n| format!("missing-{n}")).collect();
    ids.extend(present);
    let mut dice = fastrand::Rng::with_seed(1);
    for _ in 0..5 {
        dice.shuffle(&mut ids);
        let keys: Vec<_> = ids.iter().map(|id| room.key(id)).collect();
        for (id, found) in ids.iter().zip(all_ok(provider.get_many(&keys).await, keys.len())) {
            assert!(found == id.starts_with('p').then(|| own(id)), "{id}");
        }
    }
    for id in &ids[..2] {
        let single = all_ok(provider.get_many(&[room.key(id)]).await, 1).remove(0);
        assert!(single == room.get(provider, id).await, "a batch of one answers like a single call");
    }
}

/// One key several times: each place gets its answer.
pub async fn duplicates_in_a_batch(provider: &dyn CacheProvider) {
    let room = Room::new();
    let items =
        [room.item("a", "first"), room.item("b", "b"), room.item("a", "second"), room.item("a", "third")];
    all_ok(provider.put_many(&items).await, 4);
    let found = room.get(provider, "a").await.unwrap_or_default();
    assert!([&b"first"[..], b"second", b"third"].contains(&&*found), "one of the values that were put");
    let keys =
        [room.key("a"), room.key("none"), room.key("b"), room.key("a"), room.key("a"), room.key("none")];
    let answers = all_ok(provider.get_many(&keys).await, 6);
    let (a, b) = (Some(found), Some(Bytes::from_static(b"b")));
    assert_eq!(answers, [a.clone(), None, b, a.clone(), a, None]);
    all_ok(provider.remove_many(&keys).await, 6);
    assert!(!room.has(provider, "a").await && !room.has(provider, "b").await);
}

/// A batch removes what it names, present or not, and nothing else.
pub async fn batch_removes(provider: &dyn CacheProvider) {
    let room = Room::new();
    let ids: Vec<String> = (0..20).map(|n| format!("id-{n}")).collect();
    room.fill(provider, &ids).await;
    let (gone, kept) = ids.split_at(10);
    let mut keys: Vec<_> = gone.iter().map(|id| room.key(id)).collect();
    keys.insert(5, room.key("never there"));
    all_ok(provider.remove_many(&keys).await, 11);
    assert!(all_ok(provider.get_many(&keys).await, 11).iter().all(Option::is_none));
    room.expect_own(provider, kept).await;
}

/// 1,000 keys at once: missing, put, found, removed.
pub async fn a_thousand_keys_in_a_batch(provider: &dyn CacheProvider) {
    let room = Room::new();
    let ids: Vec<String> = (0..1_000).map(|n| format!("id-{n}")).collect();
    let keys: Vec<_> = ids.iter().map(|id| room.key(id)).collect();
    assert!(all_ok(provider.get_many(&keys).await, 1_000).iter().all(Option::is_none));
    let items: Vec<_> = ids.iter().map(|id| room.item(id, own(id).repeat(20))).collect();
    all_ok(provider.put_many(&items).await, 1_000);
    for (id, found) in ids.iter().zip(all_ok(provider.get_many(&keys).await, 1_000)) {
        assert!(found.is_some_and(|found| found == own(id).repeat(20)), "{id}");
    }
    all_ok(provider.remove_many(&keys).await, 1_000);
    assert!(all_ok(provider.get_many(&keys).await, 1_000).iter().all(Option::is_none));
}

/// An item over the limit amid others: they are stored, nothing is left under its key, and its refusal is in its place.
pub async fn a_refused_item_spoils_no_batch(provider: &dyn CacheProvider) {
    let room = Room::new();
    let max = provider.capabilities().value_max.expect("applies to providers with a limit");
    // By enough: one that is accepted may evict the others.
    let large = Bytes::from(vec![7; max + 4096]);
    room.put(provider, "b", "old").await;
    // Not in the middle, where it would stay if the results came in the other order.
    let items = [
        room.item("a", own("a")),
        room.item("b", large.clone()),
        room.item("c", own("c")),
        room.item("d", own("d")),
    ];
    let results = provider.put_many(&items).await;
    assert_eq!(results.len(), 4);
    let others = [0, 2, 3].iter().all(|&at| results[at].is_ok());
    assert!(others, "the others are stored, and each result is in the place of its item");
    room.expect_replaced(provider, "b", results[1].is_ok().then_some(large)).await;
    room.expect_own(provider, &["a", "c", "d"]).await;
    room.remove(provider, "b").await;
}
