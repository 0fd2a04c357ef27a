//! What a provider that swaps marks is held to, besides the list for all providers. Real time passes here.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::future::join_all;

use super::{
    Behaviour, Options, Report, always, behaviours,
    room::{Room, ok},
    run_all, time,
};
use crate::{CacheProvider, Marks, RawKey, Swap, Swapped};

/// All behaviours.
pub fn all() -> impl Iterator<Item = Behaviour> {
    behaviours![
        a_swap_begins_with_nothing,
        a_swap_replaces_what_was_seen,
        a_swap_of_something_else_changes_nothing,
        a_removed_mark_is_nothing,
        swaps_stop_at_the_first_that_differs,
        one_of_many_swaps,
        no_swap_is_lost,
        a_put_stands_against_a_swap,
        a_swapped_mark_has_a_life,
        a_swap_shortens_no_life,
    ]
    .into_iter()
}

/// Checks every behaviour that the provider's capabilities ask for, as [`conformance::run`](super::run) does.
///
/// # Panics
/// After the last one, if any failed; at once, if the provider swaps no marks.
pub async fn run(provider: Arc<dyn CacheProvider>, options: Options) -> Report {
    of(&*provider);
    run_all(all().collect(), provider, options).await
}

fn of(provider: &dyn CacheProvider) -> &dyn Marks {
    provider.marks().unwrap_or_else(|| panic!("{} swaps no marks", provider.describe().system))
}

fn swap<'a>(key: RawKey<'a>, seen: Option<&str>, bytes: &str) -> Swap<'a> {
    let seen = seen.map(|seen| Bytes::copy_from_slice(seen.as_bytes()));
    Swap { key, seen, bytes: Bytes::copy_from_slice(bytes.as_bytes()), ttl: Duration::from_secs(600) }
}

fn other(at: usize, now: Option<&str>) -> Swapped {
    Swapped::Other { at, now: now.map(|now| Bytes::copy_from_slice(now.as_bytes())) }
}

async fn expect(provider: &dyn CacheProvider, key: RawKey<'_>, bytes: Option<&str>) {
    assert_eq!(ok(provider.get(key).await).as_deref(), bytes.map(str::as_bytes));
}

/// Where there is nothing, a swap from nothing puts; and no swap at all is done.
pub async fn a_swap_begins_with_nothing(provider: &dyn CacheProvider) {
    let room = Room::new();
    assert_eq!(ok(of(provider).swap(&[]).await), Swapped::Done);
    for key in [room.marker(), room.tag("a b"), room.tag(&"long ".repeat(60))] {
        assert_eq!(ok(of(provider).swap(&[swap(key, None, "one")]).await), Swapped::Done);
        expect(provider, key, Some("one")).await;
    }
}

/// What the caller has seen is replaced.
pub async fn a_swap_replaces_what_was_seen(provider: &dyn CacheProvider) {
    let room = Room::new();
    let key = room.marker();
    for (seen, next) in [(None, "one"), (Some("one"), "two"), (Some("two"), "two"), (Some("two"), "three")] {
        assert_eq!(ok(of(provider).swap(&[swap(key, seen, next)]).await), Swapped::Done);
        expect(provider, key, Some(next)).await;
    }
}

/// What the caller has not seen is told, and stays.
pub async fn a_swap_of_something_else_changes_nothing(provider: &dyn CacheProvider) {
    let room = Room::new();
    let key = room.tag("t");
    assert_eq!(ok(of(provider).swap(&[swap(key, Some("one"), "two")]).await), other(0, None));
    expect(provider, key, None).await;
    ok(of(provider).swap(&[swap(key, None, "one")]).await);
    for seen in [None, Some("on"), Some("ones")] {
        assert_eq!(ok(of(provider).swap(&[swap(key, seen, "two")]).await), other(0, Some("one")));
        expect(provider, key, Some("one")).await;
    }
}

/// A mark that has been removed is nothing, also for a swap.
pub async fn a_removed_mark_is_nothing(provider: &dyn CacheProvider) {
    let room = Room::new();
    for key in [room.marker(), room.tag("t")] {
        ok(of(provider).swap(&[swap(key, None, "one")]).await);
        ok(provider.remove(key).await);
        assert_eq!(ok(of(provider).swap(&[swap(key, Some("one"), "two")]).await), other(0, None));
        assert_eq!(ok(of(provider).swap(&[swap(key, None, "two")]).await), Swapped::Done);
        expect(provider, key, Some("two")).await;
    }
}

/// Swaps are done in order, and none behind the first that is refused.
pub async fn swaps_stop_at_the_first_that_differs(provider: &dyn CacheProvider) {
    let room = Room::new();
    let (cache, a, b) = (room.marker(), room.tag("a"), room.tag("b"));
    let first = [swap(a, None, "a1"), swap(b, None, "b1"), swap(cache, None, "c1")];
    assert_eq!(ok(of(provider).swap(&first).await), Swapped::Done);
    let second = [swap(a, Some("a1"), "a2"), swap(b, None, "b2"), swap(cache, Some("c1"), "c2")];
    assert_eq!(ok(of(provider).swap(&second).await), other(1, Some("b1")));
    expect(provider, b, Some("b1")).await;
    expect(provider, cache, Some("c1")).await;
}

/// Of any number who swap the same at once, one succeeds, and the others are told what it was.
pub async fn one_of_many_swaps(provider: &dyn CacheProvider) {
    let room = Room::new();
    let key = room.marker();
    let mut seen: Option<String> = None;
    for round in 0..5 {
        let tries = (0..16).map(|n| {
            let seen = seen.clone();
            async move {
                let next = format!("{round}:{n}");
                (ok(of(provider).swap(&[swap(key, seen.as_deref(), &next)]).await), next)
            }
        });
        let all = join_all(tries).await;
        let won: Vec<_> = all.iter().filter(|(swapped, _)| *swapped == Swapped::Done).collect();
        assert_eq!(won.len(), 1, "one of many");
        let winner = won[0].1.clone();
        for (swapped, next) in &all {
            assert!(*next == winner || *swapped == other(0, Some(&winner)), "the others hear what it is");
        }
        seen = Some(winner);
    }
}

/// Counting by swaps from many sides loses no step.
pub async fn no_swap_is_lost(provider: &dyn CacheProvider) {
    const SIDES: usize = 8;
    const STEPS: usize = 10;
    let room = Room::new();
    let key = room.tag("count");
    let side = async || {
        let mut seen: Option<String> = None;
        let mut steps = 0;
        while steps < STEPS {
            let count: usize = seen.as_deref().map_or(0, |text| text.parse().unwrap_or(usize::MAX));
            let next = (count + 1).to_string();
            seen = match ok(of(provider).swap(&[swap(key, seen.as_deref(), &next)]).await) {
                Swapped::Done => {
                    steps += 1;
                    Some(next)
                }
                Swapped::Other { now, .. } => now.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
            };
        }
    };
    join_all((0..SIDES).map(|_| side())).await;
    expect(provider, key, Some(&(SIDES * STEPS).to_string())).await;
}

/// A put of a mark is a change like any other.
pub async fn a_put_stands_against_a_swap(provider: &dyn CacheProvider) {
    let room = Room::new();
    let key = room.marker();
    ok(of(provider).swap(&[swap(key, None, "one")]).await);
    let put = crate::Put { key, bytes: Bytes::from_static(b"put"), ttl: Duration::MAX };
    ok(provider.put(put).await);
    assert_eq!(ok(of(provider).swap(&[swap(key, Some("one"), "two")]).await), other(0, Some("put")));
    assert_eq!(ok(of(provider).swap(&[swap(key, Some("put"), "two")]).await), Swapped::Done);
}

/// A mark ends with its ttl, and a swap brings a new one.
pub async fn a_swapped_mark_has_a_life(provider: &dyn CacheProvider) {
    let room = Room::new();
    let short = time::short_ttl(provider);
    let brief = |key, seen| Swap { ttl: short, ..swap(key, seen, "brief") };
    let (ends, stays) = (room.tag("ends"), room.tag("stays"));
    ok(of(provider).swap(&[brief(ends, None), brief(stays, None)]).await);
    let held = ok(of(provider).swap(&[swap(stays, Some("brief"), "long")]).await);
    // A machine may be so busy that the first life is over by then.
    if held != Swapped::Done {
        assert_eq!(ok(of(provider).swap(&[swap(stays, None, "long")]).await), Swapped::Done);
    }
    time::until_gone(provider, ends).await;
    assert_eq!(ok(of(provider).swap(&[swap(ends, None, "again")]).await), Swapped::Done);
    expect(provider, stays, Some("long")).await;
}

/// A mark that was to live longer than a swap says still does.
pub async fn a_swap_shortens_no_life(provider: &dyn CacheProvider) {
    let room = Room::new();
    let short = time::short_ttl(provider);
    let (long, endless, ends) = (room.tag("long"), room.tag("endless"), room.tag("ends"));
    ok(of(provider).swap(&[swap(long, None, "one")]).await);
    ok(of(provider).swap(&[Swap { ttl: Duration::MAX, ..swap(endless, None, "one") }]).await);
    let brief = |key, seen| Swap { ttl: short, ..swap(key, seen, "two") };
    let swaps = [brief(long, Some("one")), brief(endless, Some("one")), brief(ends, None)];
    assert_eq!(ok(of(provider).swap(&swaps).await), Swapped::Done);
    time::until_gone(provider, ends).await;
    expect(provider, long, Some("two")).await;
    expect(provider, endless, Some("two")).await;
}

#[cfg(test)]
mod tests;
