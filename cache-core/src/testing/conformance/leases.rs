//! What a provider that gives leases is held to, besides the list for all providers. Real time passes here.

mod asking;

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use futures::future::join_all;
use tokio::time::sleep;

use self::asking::*;
use super::{
    Behaviour, Options, Report, always, behaviours,
    room::{Room, all_ok},
    run_all, values,
};
use crate::{Acquire, Acquired, CacheProvider, EntryId, Fill, Holding, Lease};

/// All behaviours.
pub fn all() -> impl Iterator<Item = Behaviour> {
    behaviours![
        one_of_many_is_granted,
        leases_are_per_key,
        a_lease_is_no_entry,
        fill_stores_and_ends_the_lease,
        a_fill_keeps_its_ttl,
        a_lease_fills_once,
        no_lease_no_fill,
        a_fill_after_remove_is_refused,
        a_fill_after_remove_of_what_was_there_is_refused,
        a_fill_after_put_is_refused,
        a_fill_after_its_life_is_refused,
        a_fill_under_anothers_lease_is_refused,
        a_fill_too_large_leaves_nothing if values::has_a_limit,
        an_entry_is_an_answer,
        what_the_asker_holds_is_no_answer,
        what_cannot_be_read_is_replaced,
        what_is_still_there_is_replaced_and_nothing_else,
        renewal_outlives_the_first_life,
        renewal_brings_no_lease_back,
        release_lets_the_next_in,
        release_of_a_lost_lease_harms_nobody,
        batches_of_leases_answer_per_item,
        a_hold_makes_a_miss_and_keeps_others_out,
        a_fill_ends_its_hold,
        a_hold_outlives_an_invalidation,
        holds_that_meet_fill_nothing,
        a_hold_ends_by_time_or_when_it_is_given_back,
        a_put_stands_against_a_hold,
        batches_of_holds_answer_per_item,
    ]
    .into_iter()
}

/// Checks every behaviour that the provider's capabilities ask for, as [`conformance::run`](super::run) does.
///
/// # Panics
/// After the last one, if any failed; at once, if the provider gives no leases.
pub async fn run(provider: Arc<dyn CacheProvider>, options: Options) -> Report {
    of(&*provider);
    run_all(all().collect(), provider, options).await
}

/// Of any number who ask at once, one gets the lease.
pub async fn one_of_many_is_granted(provider: &dyn CacheProvider) {
    let room = Room::new();
    for round in 0..5 {
        let id = format!("k{round}");
        let answers = join_all((0..32).map(|_| ask(provider, &room, &id))).await;
        let count = |wanted| answers.iter().filter(|answer| name(answer) == wanted).count();
        assert_eq!((count("Granted"), count("Held")), (1, 31));
    }
}

/// A lease is of one key of one cache, and no two are equal.
pub async fn leases_are_per_key(provider: &dyn CacheProvider) {
    let (room, other) = (Room::new(), Room::new());
    let a = granted(ask(provider, &room, "a").await);
    let b = granted(ask(provider, &room, "b").await);
    let c = granted(ask(provider, &other, "a").await);
    assert!(a != b && a != c && b != c);
    assert!(!fill(provider, &room, "b", "v", a.clone()).await, "the lease of another key");
    assert!(fill(provider, &room, "b", "v", b).await);
    assert!(fill(provider, &other, "a", "v", c).await);
    assert!(fill(provider, &room, "a", "v", a).await);
}

/// While a lease is out, the key is a miss, and can be put and removed.
pub async fn a_lease_is_no_entry(provider: &dyn CacheProvider) {
    let room = Room::new();
    granted(ask(provider, &room, "k").await);
    expect(provider, &room, "k", None).await;
    let found = all_ok(provider.get_many(&[room.key("k"), room.key("other")]).await, 2);
    assert_eq!(found, [None, None]);
    room.remove(provider, "k").await;
    expect(provider, &room, "k", None).await;
    granted(ask(provider, &room, "k").await);
    room.put(provider, "k", "v").await;
    expect(provider, &room, "k", Some("v")).await;
}

/// What is filled is read, and the next who holds it may have a lease at once.
pub async fn fill_stores_and_ends_the_lease(provider: &dyn CacheProvider) {
    let room = Room::new();
    let (first, second) = (EntryId(1), EntryId(2));
    let lease = granted(ask(provider, &room, "k").await);
    assert!(fill(provider, &room, "k", entry(first, "one"), lease).await);
    assert_eq!(room.get(provider, "k").await, Some(entry(first, "one")));
    let lease = granted(ask_for(provider, &room, "k", Holding::Entry(first), LONG).await);
    assert!(fill(provider, &room, "k", entry(second, "two"), lease).await);
    assert_eq!(room.get(provider, "k").await, Some(entry(second, "two")));
}

/// A fill brings its own TTL, not that of the lease.
pub async fn a_fill_keeps_its_ttl(provider: &dyn CacheProvider) {
    let room = Room::new();
    let short = short_life(provider);
    let lease = granted(ask(provider, &room, "short").await);
    let mut put = room.item("short", "v");
    put.ttl = short;
    assert!(all_ok(of(provider).fill_many(&[Fill { put, lease }]).await, 1).remove(0));
    let mut filled = false;
    // A machine may be so busy that the lease is over before the fill.
    for _ in 0..10 {
        let lease = granted(ask_for(provider, &room, "long", Holding::Nothing, short).await);
        filled = fill(provider, &room, "long", "v", lease).await;
        if filled {
            break;
        }
        sleep(short * 2).await;
    }
    assert!(filled, "no fill within {short:?}");
    let start = Instant::now();
    while room.has(provider, "short").await {
        assert!(start.elapsed() < GONE_BY, "it has not expired");
        sleep(PAUSE).await;
    }
    sleep(short * 2).await;
    expect(provider, &room, "long", Some("v")).await;
}

/// A second fill under the same lease is refused.
pub async fn a_lease_fills_once(provider: &dyn CacheProvider) {
    let room = Room::new();
    let lease = granted(ask(provider, &room, "k").await);
    assert!(fill(provider, &room, "k", "one", lease.clone()).await);
    assert!(!fill(provider, &room, "k", "two", lease).await);
    expect(provider, &room, "k", Some("one")).await;
}

/// A lease that this store never gave fills nothing, whether or not there is another, or an entry.
pub async fn no_lease_no_fill(provider: &dyn CacheProvider) {
    let (room, elsewhere) = (Room::new(), Room::new());
    let foreign = granted(ask(provider, &elsewhere, "k").await);
    assert!(!fill(provider, &room, "k", "v", foreign.clone()).await);
    expect(provider, &room, "k", None).await;
    room.put(provider, "k", "old").await;
    assert!(!fill(provider, &room, "k", "v", foreign.clone()).await);
    expect(provider, &room, "k", Some("old")).await;
    for odd in [Bytes::new(), Bytes::from_static(b"\0"), Bytes::from_static(b"\r\nnoise")] {
        assert!(!fill(provider, &room, "new", "v", Lease(odd)).await);
    }
    expect(provider, &room, "new", None).await;
}

/// An invalidation of a key of which the store knows nothing revokes.
pub async fn a_fill_after_remove_is_refused(provider: &dyn CacheProvider) {
    let room = Room::new();
    let lease = granted(ask(provider, &room, "k").await);
    room.remove(provider, "k").await;
    assert!(!fill(provider, &room, "k", "late", lease.clone()).await);
    expect(provider, &room, "k", None).await;
    // Also when somebody else has a lease by now, and again when it has been used.
    let next = granted(ask(provider, &room, "k").await);
    assert!(!fill(provider, &room, "k", "late", lease.clone()).await);
    assert!(fill(provider, &room, "k", "new", next).await);
    assert!(!fill(provider, &room, "k", "late", lease).await);
    expect(provider, &room, "k", Some("new")).await;
}

/// So does one of a key that is there, alone or in a batch.
pub async fn a_fill_after_remove_of_what_was_there_is_refused(provider: &dyn CacheProvider) {
    let room = Room::new();
    let held = EntryId(7);
    for batch in [false, true] {
        room.put(provider, "k", entry(held, "old")).await;
        let lease = granted(ask_for(provider, &room, "k", Holding::Entry(held), LONG).await);
        if batch {
            all_ok(provider.remove_many(&[room.key("j"), room.key("k")]).await, 2);
        } else {
            room.remove(provider, "k").await;
        }
        assert!(!fill(provider, &room, "k", "late", lease).await);
        expect(provider, &room, "k", None).await;
    }
}

/// A set revokes like an invalidation, alone or in a batch.
pub async fn a_fill_after_put_is_refused(provider: &dyn CacheProvider) {
    let room = Room::new();
    for id in ["alone", "batch"] {
        let lease = granted(ask(provider, &room, id).await);
        if id == "batch" {
            all_ok(provider.put_many(&[room.item("other", "v"), room.item(id, "set")]).await, 2);
        } else {
            room.put(provider, id, "set").await;
        }
        assert!(!fill(provider, &room, id, "late", lease).await);
        expect(provider, &room, id, Some("set")).await;
    }
}

/// A lease ends by time.
pub async fn a_fill_after_its_life_is_refused(provider: &dyn CacheProvider) {
    let room = Room::new();
    let lease = granted(ask_for(provider, &room, "k", Holding::Nothing, short_life(provider)).await);
    let next = free(provider, &room, "k").await;
    release(provider, &room, "k", &next).await;
    assert!(!fill(provider, &room, "k", "late", lease).await, "nobody has a lease, this one is over");
    expect(provider, &room, "k", None).await;
}

/// Who comes after the end of another's lease is not overwritten by it.
pub async fn a_fill_under_anothers_lease_is_refused(provider: &dyn CacheProvider) {
    let room = Room::new();
    let lease = granted(ask_for(provider, &room, "k", Holding::Nothing, short_life(provider)).await);
    let next = free(provider, &room, "k").await;
    assert!(!fill(provider, &room, "k", "late", lease).await);
    assert!(fill(provider, &room, "k", "new", next).await, "the refused fill did not harm the other's lease");
    expect(provider, &room, "k", Some("new")).await;
}

/// A fill over the limit is an error, and leaves nothing of the old entry and no lease.
pub async fn a_fill_too_large_leaves_nothing(provider: &dyn CacheProvider) {
    let room = Room::new();
    let held = EntryId(3);
    room.put(provider, "k", entry(held, "old")).await;
    let lease = granted(ask_for(provider, &room, "k", Holding::Entry(held), LONG).await);
    let over = vec![0xEE; provider.capabilities().value_max.unwrap_or(0) + 1];
    let results = of(provider).fill_many(&[Fill { put: room.item("k", over), lease }]).await;
    assert!(matches!(results.as_slice(), [Err(_)]), "an error");
    expect(provider, &room, "k", None).await;
    granted(ask(provider, &room, "k").await);
}

/// Who holds nothing is answered with what is there; no lease is given.
pub async fn an_entry_is_an_answer(provider: &dyn CacheProvider) {
    let room = Room::new();
    for text in ["long enough to have an entry's id", "short", "x"] {
        room.put(provider, "k", text).await;
        for holding in [Holding::Nothing, Holding::Entry(EntryId(9))] {
            match ask_for(provider, &room, "k", holding, LONG).await {
                Acquired::Found(bytes) => assert_eq!(bytes, text.as_bytes()),
                other => panic!("{holding:?} was answered with {}", name(&other)),
            }
        }
        // Nothing is left behind that would be in the way of others.
        room.remove(provider, "k").await;
        let lease = granted(ask(provider, &room, "k").await);
        release(provider, &room, "k", &lease).await;
    }
}

/// What the asker holds counts as nothing; another entry is an answer, also while somebody has the lease.
pub async fn what_the_asker_holds_is_no_answer(provider: &dyn CacheProvider) {
    let room = Room::new();
    let (held, other) = (EntryId(u64::from_le_bytes(*b"\0\r\n*$-1\xff")), EntryId(u64::MAX));
    room.put(provider, "k", entry(held, "stale")).await;
    granted(ask_for(provider, &room, "k", Holding::Entry(held), LONG).await);
    assert_eq!(name(&ask_for(provider, &room, "k", Holding::Entry(held), LONG).await), "Held");
    assert_eq!(name(&ask_for(provider, &room, "k", Holding::Entry(other), LONG).await), "Found");
    assert_eq!(name(&ask(provider, &room, "k").await), "Found");
    assert!(room.has(provider, "k").await, "a lease hides no entry");
}

/// Who cannot read what is there may replace it, whatever it is.
pub async fn what_cannot_be_read_is_replaced(provider: &dyn CacheProvider) {
    let room = Room::new();
    let long = "noise".repeat(100);
    for noise in ["x", long.as_str()] {
        room.put(provider, "k", noise.to_owned()).await;
        let lease = granted(ask_for(provider, &room, "k", Holding::Unreadable, LONG).await);
        assert!(fill(provider, &room, "k", "good", lease).await);
        expect(provider, &room, "k", Some("good")).await;
    }
}

/// The right to replace an entry and nothing else is to be had only while that entry is there.
pub async fn what_is_still_there_is_replaced_and_nothing_else(provider: &dyn CacheProvider) {
    let room = Room::new();
    let (first, other) = (EntryId(1), EntryId(2));
    let still = |id| Holding::Still(id);
    assert_eq!(name(&ask_for(provider, &room, "k", still(first), LONG).await), "Kept", "there is nothing");
    room.put(provider, "k", entry(first, "one")).await;
    assert_eq!(name(&ask_for(provider, &room, "k", still(other), LONG).await), "Found");
    let lease = granted(ask_for(provider, &room, "k", still(first), LONG).await);
    assert_eq!(name(&ask_for(provider, &room, "k", still(first), LONG).await), "Held");
    assert!(fill(provider, &room, "k", entry(other, "two"), lease).await);
    let late = granted(ask_for(provider, &room, "k", still(other), LONG).await);
    room.remove(provider, "k").await;
    assert!(!fill(provider, &room, "k", "late", late).await);
    assert_eq!(name(&ask_for(provider, &room, "k", still(other), LONG).await), "Kept", "it was invalidated");
    expect(provider, &room, "k", None).await;
    granted(ask(provider, &room, "k").await);
}

/// A renewed lease holds past its first life.
pub async fn renewal_outlives_the_first_life(provider: &dyn CacheProvider) {
    let room = Room::new();
    let short = short_life(provider);
    // On a busy machine the lease may be over before it is renewed.
    for attempt in 0..5 {
        let id = format!("k{attempt}");
        let lease = granted(ask_for(provider, &room, &id, Holding::Nothing, short).await);
        renew(provider, &room, &id, &lease, LONG).await;
        sleep(short + provider.capabilities().ttl_step * 2).await;
        if name(&ask(provider, &room, &id).await) == "Held" {
            assert!(fill(provider, &room, &id, "v", lease).await);
            expect(provider, &room, &id, Some("v")).await;
            return;
        }
    }
    panic!("no lease could be renewed within {short:?}");
}

/// Renewing a lease that was revoked, used or given back has no effect.
pub async fn renewal_brings_no_lease_back(provider: &dyn CacheProvider) {
    let room = Room::new();
    let lease = granted(ask(provider, &room, "k").await);
    room.remove(provider, "k").await;
    renew(provider, &room, "k", &lease, LONG).await;
    assert!(!fill(provider, &room, "k", "late", lease.clone()).await);
    expect(provider, &room, "k", None).await;
    let next = granted(ask(provider, &room, "k").await);
    renew(provider, &room, "k", &lease, LONG).await;
    assert!(!fill(provider, &room, "k", "late", lease).await);
    release(provider, &room, "k", &next).await;
    renew(provider, &room, "k", &next, LONG).await;
    granted(ask(provider, &room, "k").await);
}

/// A lease that is given back can be had at once, and fills nothing.
pub async fn release_lets_the_next_in(provider: &dyn CacheProvider) {
    let room = Room::new();
    let lease = granted(ask(provider, &room, "k").await);
    release(provider, &room, "k", &lease).await;
    let next = granted(ask(provider, &room, "k").await);
    assert!(!fill(provider, &room, "k", "late", lease).await);
    assert!(fill(provider, &room, "k", "v", next).await);
    // Over a stale entry as well, which stays.
    let held = EntryId(5);
    room.put(provider, "k", entry(held, "stale")).await;
    for _ in 0..2 {
        let lease = granted(ask_for(provider, &room, "k", Holding::Entry(held), LONG).await);
        release(provider, &room, "k", &lease).await;
        assert_eq!(room.get(provider, "k").await, Some(entry(held, "stale")));
    }
}

/// Giving a lost lease back takes nothing from who has it now, and removes no entry.
pub async fn release_of_a_lost_lease_harms_nobody(provider: &dyn CacheProvider) {
    let room = Room::new();
    let lost = granted(ask(provider, &room, "k").await);
    room.remove(provider, "k").await;
    let next = granted(ask(provider, &room, "k").await);
    release(provider, &room, "k", &lost).await;
    assert_eq!(name(&ask(provider, &room, "k").await), "Held");
    assert!(fill(provider, &room, "k", "v", next.clone()).await);
    release(provider, &room, "k", &lost).await;
    release(provider, &room, "k", &next).await;
    expect(provider, &room, "k", Some("v")).await;
}

/// One result per item and in order, whatever becomes of the others.
pub async fn batches_of_leases_answer_per_item(provider: &dyn CacheProvider) {
    let room = Room::new();
    let leases = of(provider);
    assert!(leases.acquire_many(&[], LONG).await.is_empty());
    assert!(leases.fill_many(&[]).await.is_empty());
    assert!(leases.renew_many(&[], LONG).await.is_empty());
    assert!(leases.release_many(&[]).await.is_empty());

    room.put(provider, "found", "there").await;
    let taken = granted(ask(provider, &room, "taken").await);
    let ids = ["a", "found", "b", "taken", "c", "a"];
    let wishes = ids.map(|id| Acquire { key: room.key(id), holding: Holding::Nothing });
    let answers = all_ok(leases.acquire_many(&wishes, LONG).await, ids.len());
    let names: Vec<_> = answers.iter().map(name).collect();
    assert_eq!(names, ["Granted", "Found", "Granted", "Held", "Granted", "Held"]);
    let lease_of = |at: usize| granted(answers[at].clone());
    room.remove(provider, "b").await;
    let fills = [
        Fill { put: room.item("c", "value c"), lease: lease_of(4) },
        Fill { put: room.item("b", "value b"), lease: lease_of(2) },
        Fill { put: room.item("a", "value a"), lease: lease_of(0) },
        Fill { put: room.item("taken", "value taken"), lease: taken },
    ];
    assert_eq!(all_ok(leases.fill_many(&fills).await, 4), [true, false, true, true]);
    for (id, value) in
        [("a", Some("value a")), ("b", None), ("c", Some("value c")), ("taken", Some("value taken"))]
    {
        expect(provider, &room, id, value).await;
    }

    let ids: Vec<String> = (0..300).map(|n| format!("many {n}")).collect();
    let wishes: Vec<_> =
        ids.iter().map(|id| Acquire { key: room.key(id), holding: Holding::Nothing }).collect();
    let granted: Vec<_> =
        all_ok(leases.acquire_many(&wishes, LONG).await, ids.len()).into_iter().map(granted).collect();
    let kept: Vec<_> = ids.iter().zip(&granted).map(|(id, lease)| (room.key(id), lease.clone())).collect();
    all_ok(leases.renew_many(&kept, LONG).await, ids.len());
    let (back, used) = kept.split_at(100);
    all_ok(leases.release_many(back).await, back.len());
    let fills: Vec<_> = ids[50..]
        .iter()
        .zip(&kept[50..])
        .map(|(id, (_, lease))| Fill { put: room.item(id, id.clone()), lease: lease.clone() })
        .collect();
    let filled = all_ok(leases.fill_many(&fills).await, fills.len());
    assert!(filled.iter().enumerate().all(|(at, filled)| *filled == (at >= 50)), "given back, or not");
    let found =
        all_ok(provider.get_many(&used.iter().map(|(key, _)| *key).collect::<Vec<_>>()).await, used.len());
    assert!(found.iter().zip(&ids[100..]).all(|(found, id)| found.as_deref() == Some(id.as_bytes())));
}

/// Who is about to write the source makes the key a miss, revokes its lease, and lets nobody else have one.
pub async fn a_hold_makes_a_miss_and_keeps_others_out(provider: &dyn CacheProvider) {
    let room = Room::new();
    let held = EntryId(7);
    for there in [false, true] {
        let id = if there { "there" } else { "absent" };
        let holding = if there { Holding::Entry(held) } else { Holding::Nothing };
        if there {
            room.put(provider, id, entry(held, "old")).await;
        }
        let before = granted(ask_for(provider, &room, id, holding, LONG).await);
        hold(provider, &room, id, LONG).await;
        expect(provider, &room, id, None).await;
        assert!(!fill(provider, &room, id, "late", before).await, "its lease was revoked");
        for holding in [Holding::Nothing, Holding::Entry(held), Holding::Unreadable] {
            assert_eq!(name(&ask_for(provider, &room, id, holding, LONG).await), "Kept");
        }
        expect(provider, &room, id, None).await;
        granted(ask(provider, &room, "another key").await);
        room.remove(provider, "another key").await;
    }
}

/// The writer fills under its hold, once, and then others may have the key.
pub async fn a_fill_ends_its_hold(provider: &dyn CacheProvider) {
    let room = Room::new();
    let id = EntryId(9);
    let writer = hold(provider, &room, "k", LONG).await;
    assert!(fill(provider, &room, "k", entry(id, "new"), writer.clone()).await);
    assert_eq!(room.get(provider, "k").await, Some(entry(id, "new")));
    assert!(!fill(provider, &room, "k", "again", writer).await);
    let next = granted(ask_for(provider, &room, "k", Holding::Entry(id), LONG).await);
    assert!(fill(provider, &room, "k", "newer", next).await);
    expect(provider, &room, "k", Some("newer")).await;
}

/// What is invalidated while the source is written stays out of reach of readers until the hold is over.
pub async fn a_hold_outlives_an_invalidation(provider: &dyn CacheProvider) {
    let room = Room::new();
    let writer = hold(provider, &room, "k", LONG).await;
    room.remove(provider, "k").await;
    assert_eq!(name(&ask(provider, &room, "k").await), "Kept");
    assert!(!fill(provider, &room, "k", "v", writer.clone()).await, "it may be older than the invalidation");
    assert_eq!(name(&ask(provider, &room, "k").await), "Kept", "a refused fill ends no hold");
    release(provider, &room, "k", &writer).await;
    granted(ask(provider, &room, "k").await);
}

/// Which of two writers the source took last is not known: neither value stays.
pub async fn holds_that_meet_fill_nothing(provider: &dyn CacheProvider) {
    let room = Room::new();
    let first = hold(provider, &room, "k", LONG).await;
    let second = hold(provider, &room, "k", LONG).await;
    for writer in [second.clone(), first.clone(), second] {
        assert!(!fill(provider, &room, "k", "v", writer).await);
        expect(provider, &room, "k", None).await;
    }
    release(provider, &room, "k", &first).await;
    assert_eq!(name(&ask(provider, &room, "k").await), "Kept", "the other may still be writing");
}

/// A writer that dies keeps nobody out for long.
pub async fn a_hold_ends_by_time_or_when_it_is_given_back(provider: &dyn CacheProvider) {
    let room = Room::new();
    let back = hold(provider, &room, "back", LONG).await;
    release(provider, &room, "back", &back).await;
    let next = granted(ask(provider, &room, "back").await);
    assert!(!fill(provider, &room, "back", "late", back).await);
    assert!(fill(provider, &room, "back", "v", next).await);

    let short = short_life(provider);
    let dead = hold(provider, &room, "dead", short).await;
    let kept = hold(provider, &room, "kept", short).await;
    renew(provider, &room, "kept", &kept, LONG).await;
    let next = free(provider, &room, "dead").await;
    assert!(!fill(provider, &room, "dead", "late", dead).await);
    assert!(fill(provider, &room, "dead", "v", next).await);
    // A machine may be so busy that it was over before it was renewed.
    let answer = ask(provider, &room, "kept").await;
    assert!(name(&answer) == "Kept" || !fill(provider, &room, "kept", "v", kept).await);
}

/// A set during a hold is visible, and the writer's fill is refused.
pub async fn a_put_stands_against_a_hold(provider: &dyn CacheProvider) {
    let room = Room::new();
    let writer = hold(provider, &room, "k", LONG).await;
    room.put(provider, "k", "set").await;
    expect(provider, &room, "k", Some("set")).await;
    assert_eq!(name(&ask(provider, &room, "k").await), "Found");
    assert!(!fill(provider, &room, "k", "v", writer).await);
    expect(provider, &room, "k", Some("set")).await;
}

/// One result per key and in order.
pub async fn batches_of_holds_answer_per_item(provider: &dyn CacheProvider) {
    let room = Room::new();
    assert!(of(provider).hold_many(&[], LONG).await.is_empty());
    hold(provider, &room, "b", LONG).await;
    let keys = ["a", "b", "c"].map(|id| room.key(id));
    let holds = all_ok(of(provider).hold_many(&keys, LONG).await, 3);
    let fills: Vec<_> = ["a", "b", "c"]
        .into_iter()
        .zip(holds)
        .map(|(id, lease)| Fill { put: room.item(id, id), lease })
        .collect();
    assert_eq!(all_ok(of(provider).fill_many(&fills).await, 3), [true, false, true]);
    for (id, there) in [("a", true), ("b", false), ("c", true)] {
        assert_eq!(room.has(provider, id).await, there);
    }
}

#[cfg(test)]
mod tests;
