//! A store that turns out to be another one: a new master that lacks the last writes, or the other half of a split.

use std::sync::Arc;

use traced_cache::{
    Clock, Delivery, Failover, Level, Memory, Time, TracedCache,
    testing::{Chaos, ChaosOp, Fault, MapProvider},
};

use crate::{
    pair::Pair,
    world::{S, Source, confirmed, get, policy, set, settled},
};

/// A master, and a replica that has what the master had when it was last in touch.
struct Stores {
    clock: Clock,
    time: Time,
    master: Arc<MapProvider>,
    replica: Arc<MapProvider>,
    failover: Failover,
}

struct Node {
    cache: TracedCache<String>,
    pair: Arc<Pair>,
}

impl Stores {
    fn new(failover: Failover) -> Self {
        let (clock, time) = Clock::manual();
        let store = || Arc::new(MapProvider::new().leasing().marking().clock(clock.clone()));
        let (master, replica) = (store(), store());
        Self { master, replica, time, clock, failover }
    }

    fn replicate(&self) {
        self.replica.restore(&self.master.dump());
    }

    fn node(&self) -> Node {
        self.build(true)
    }

    /// Without memory.
    fn bare(&self) -> Node {
        self.build(false)
    }

    fn build(&self, memory: bool) -> Node {
        let pair = Pair::new(&self.master, &self.replica);
        let mut builder = TracedCache::builder("things").clock(self.clock.clone()).policy(policy());
        if memory {
            builder = builder.level(Memory::entries(100_000).engine_expiry(false));
        }
        // No call here is slow but the one that is kept.
        let level = Level::shared(Arc::clone(&pair) as _).on_failover(self.failover).budget(60 * S);
        Node { cache: builder.level(level).build().unwrap(), pair }
    }

    /// The first node stays with the master; the other one has been told of the replica.
    async fn split(&self, nodes: [Node; 2]) -> [Node; 2] {
        set(&nodes[0].cache, "warm", "1", &[]).await;
        self.replicate();
        nodes[1].pair.fail_over();
        self.pass().await;
        nodes
    }

    async fn pass(&self) {
        for _ in 0..4 {
            settled().await;
            self.time.advance(S / 2);
        }
        settled().await;
    }
}

#[tokio::test]
async fn a_new_master_begins_with_nothing_unless_entries_are_to_stay() {
    for (failover, expected) in [(Failover::Clear, None), (Failover::Keep, Some("1"))] {
        let stores = Stores::new(failover);
        let nodes = [stores.node(), stores.bare()];
        set(&nodes[0].cache, "k", "1", &["x"]).await;
        // So long ago that nobody says it again.
        stores.time.advance(61 * S);
        assert_eq!(get(&nodes[1].cache, "k").await.as_deref(), Some("1"));
        stores.replicate();
        nodes.iter().for_each(|node| node.pair.fail_over());
        stores.pass().await;
        for node in &nodes {
            assert_eq!(get(&node.cache, "k").await.as_deref(), expected, "{failover:?}");
        }
        // Tags go on, whether or not the marks did.
        set(&nodes[0].cache, "new", "2", &["x"]).await;
        confirmed(nodes[1].cache.invalidate_tag("x").await);
        stores.pass().await;
        for node in &nodes {
            assert_eq!(get(&node.cache, "k").await, None);
            assert_eq!(get(&node.cache, "new").await, None);
        }
    }
}

#[tokio::test]
async fn what_a_new_master_has_not_heard_is_said_again() {
    let stores = Stores::new(Failover::Keep);
    let nodes = [stores.node(), stores.bare()];
    for key in ["removed", "set", "saved", "expired", "kept"] {
        set(&nodes[0].cache, key, "old", &[]).await;
    }
    // Long enough ago that the node does not say this again.
    stores.time.advance(61 * S);
    stores.replicate();
    confirmed(nodes[0].cache.invalidate("removed").await);
    set(&nodes[0].cache, "set", "new", &[]).await;
    confirmed(nodes[0].cache.expire("expired").await);
    let updated =
        nodes[0].cache.update("saved", &(), |(), _, _| async { traced_cache::ok("new".to_owned()) });
    confirmed(Ok(updated.await.unwrap().delivery));
    nodes.iter().for_each(|node| node.pair.fail_over());
    stores.pass().await;
    assert_eq!(nodes[0].cache.stats().pending, 0);
    for key in ["removed", "set", "saved", "expired"] {
        assert_eq!(get(&nodes[1].cache, key).await, None, "{key}");
    }
    assert_eq!(get(&nodes[1].cache, "kept").await.as_deref(), Some("old"));
}

#[tokio::test]
async fn lost_tags_and_clears_are_said_again_or_clear_the_cache() {
    for clear in [false, true] {
        let stores = Stores::new(Failover::Keep);
        let nodes = [stores.node(), stores.bare()];
        set(&nodes[0].cache, "k", "old", &["x"]).await;
        stores.replicate();
        confirmed(match clear {
            true => nodes[0].cache.clear().await,
            false => nodes[0].cache.invalidate_tag("x").await,
        });
        // The first to come knows of nothing.
        nodes[1].pair.fail_over();
        assert_eq!(get(&nodes[1].cache, "k").await.as_deref(), Some("old"), "nobody has said it yet");
        nodes[0].pair.fail_over();
        stores.pass().await;
        for node in &nodes {
            assert_eq!(get(&node.cache, "k").await, None, "clear: {clear}");
        }
    }
}

/// Where another number has taken the place of the lost one, the mark does not tell that one was lost.
#[tokio::test]
async fn a_lost_tag_is_said_again_though_the_numbers_have_gone_on() {
    let stores = Stores::new(Failover::Keep);
    let nodes = [stores.node(), stores.bare()];
    set(&nodes[0].cache, "k", "old", &["x"]).await;
    set(&nodes[0].cache, "other", "old", &["z"]).await;
    stores.time.advance(61 * S);
    stores.replicate();
    confirmed(nodes[0].cache.invalidate_tag("x").await);
    nodes[1].pair.fail_over();
    confirmed(nodes[1].cache.invalidate_tag("y").await);
    nodes[0].pair.fail_over();
    stores.pass().await;
    for node in &nodes {
        assert_eq!(get(&node.cache, "k").await, None);
    }
    assert_eq!(
        get(&nodes[1].cache, "other").await.as_deref(),
        Some("old"),
        "and the cache is not cleared for it"
    );
}

/// A replica that was behind for longer than anybody remembers.
#[tokio::test]
async fn a_mark_that_has_gone_back_clears_the_cache() {
    let stores = Stores::new(Failover::Keep);
    let nodes = [stores.node(), stores.bare()];
    set(&nodes[0].cache, "k", "old", &["x"]).await;
    stores.replicate();
    confirmed(nodes[0].cache.invalidate_tag("x").await);
    stores.time.advance(61 * S);
    nodes.iter().for_each(|node| node.pair.fail_over());
    stores.pass().await;
    for node in &nodes {
        assert_eq!(get(&node.cache, "k").await, None);
    }
}

/// The old master, cut off, goes on answering one of two nodes.
#[tokio::test]
async fn what_a_split_off_master_has_confirmed_is_said_to_the_other_half() {
    for failover in [Failover::Clear, Failover::Keep] {
        let stores = Stores::new(failover);
        let [inside, outside] = stores.split([stores.node(), stores.node()]).await;
        let source = Source::new();
        source.has("k", "old", &[]);
        source.ask(&outside.cache, "k").await;
        source.has("k", "new", &[]);
        confirmed(inside.cache.invalidate("k").await);
        assert_eq!(get(&outside.cache, "k").await.as_deref(), Some("old"), "this half cannot know");
        inside.pair.fail_over();
        stores.pass().await;
        let third = stores.bare();
        third.pair.fail_over();
        assert_eq!(get(&third.cache, "k").await, None, "{failover:?}");
    }
}

/// Two reads find another master at once. The answer of one is older than what the other one has had said again.
#[tokio::test]
async fn an_answer_of_before_something_was_said_again_is_not_believed() {
    let stores = Stores::new(Failover::Clear);
    let [inside, outside] = stores.split([stores.bare(), stores.bare()]).await;
    set(&outside.cache, "k", "old", &[]).await;
    confirmed(inside.cache.invalidate("k").await);

    inside.pair.fail_over();
    let (answered, go) = inside.pair.late();
    let cache = inside.cache.clone();
    let late = tokio::spawn(async move { get(&cache, "k").await });
    answered.await.unwrap();
    assert_eq!(get(&inside.cache, "warm").await, None);
    stores.pass().await;
    assert_eq!(get(&outside.cache, "k").await, None, "it has been told");
    go.send(()).unwrap();
    assert_eq!(late.await.unwrap(), None);
}

/// Its answer comes when what this node had been answered by then has been said again.
#[tokio::test]
async fn what_a_master_confirms_when_another_one_has_been_found_is_pending() {
    for (failover, tag) in [(Failover::Clear, false), (Failover::Clear, true), (Failover::Keep, true)] {
        let stores = Stores::new(failover);
        let [inside, outside] = stores.split([stores.bare(), stores.bare()]).await;
        set(&outside.cache, "k", "old", &["x"]).await;

        let (answered, go) = inside.pair.late();
        let cache = inside.cache.clone();
        let late = tokio::spawn(async move {
            match tag {
                true => cache.invalidate_tag("x").await,
                false => cache.invalidate("k").await,
            }
        });
        answered.await.unwrap();
        inside.pair.fail_over();
        assert_eq!(get(&inside.cache, "warm").await, None);
        stores.pass().await;
        go.send(()).unwrap();
        assert!(!late.await.unwrap().is_ok_and(Delivery::is_confirmed), "{failover:?}, a tag: {tag}");
        for node in [&inside, &outside, &inside] {
            stores.pass().await;
            assert_eq!(get(&node.cache, "k").await, None, "{failover:?}, a tag: {tag}");
        }
    }
}

/// Who has only written has no mark, and so nothing to tell one master from the next by.
#[tokio::test]
async fn what_was_invalidated_before_any_mark_was_read_is_said_again() {
    let stores = Stores::new(Failover::Keep);
    let [here, there] = [stores.bare(), stores.bare()];
    set(&there.cache, "k", "old", &[]).await;
    // So long ago that nobody says it again.
    stores.time.advance(61 * S);
    stores.replicate();
    confirmed(here.cache.invalidate("k").await);
    here.pair.fail_over();
    assert_eq!(get(&here.cache, "k").await, None);
    stores.pass().await;
    assert_eq!(get(&here.cache, "k").await, None);
}

#[tokio::test]
async fn what_is_set_right_after_a_first_invalidation_stays() {
    let stores = Stores::new(Failover::Clear);
    let [here, there] = [stores.bare(), stores.bare()];
    confirmed(here.cache.invalidate("k").await);
    set(&here.cache, "k", "new", &[]).await;
    stores.pass().await;
    for node in [&here, &there] {
        assert_eq!(get(&node.cache, "k").await.as_deref(), Some("new"));
    }
}

/// The lease is granted by another master than the mark is of. What was read there was judged by the wrong mark.
#[tokio::test]
async fn an_update_that_first_meets_a_new_master_is_not_lost() {
    for (failover, expected) in [(Failover::Clear, ["1", "2"]), (Failover::Keep, ["6", "7"])] {
        let stores = Stores::new(failover);
        let node = stores.bare();
        let bump = || async {
            let next = node.cache.update("n", &(), |(), _, n| async move {
                traced_cache::ok((n.map_or(0, |n| n.parse::<u64>().unwrap()) + 1).to_string())
            });
            let updated = next.await.unwrap();
            assert!(updated.delivery.is_confirmed());
            updated.value.to_string()
        };
        for _ in 0..5 {
            bump().await;
        }
        stores.time.advance(61 * S);
        assert_eq!(get(&node.cache, "n").await.as_deref(), Some("5"));
        stores.replicate();
        node.pair.fail_over_for_a_lease();
        let mut updates = std::pin::pin!(async { [bump().await, bump().await] });
        let seen = loop {
            tokio::select! {
                biased;
                seen = &mut updates => break seen,
                () = stores.pass() => {}
            }
        };
        assert_eq!(seen, expected, "{failover:?}");
    }
}

/// A set whose value the journal has stored, or found stored, is one of the writes that a new master may lack.
#[tokio::test]
async fn what_was_stored_late_and_is_lost_leaves_nothing_older() {
    for fault in [Fault::Fail, Fault::LoseReply] {
        let stores = Stores::new(Failover::Keep);
        let (other, pair) = (stores.bare(), Pair::new(&stores.master, &stores.replica));
        let l2 = Arc::new(Chaos::new(Arc::clone(&pair)).clock(stores.clock.clone()));
        let builder = TracedCache::builder("things").clock(stores.clock.clone()).policy(policy());
        let level = Level::new(Arc::clone(&l2)).on_failover(Failover::Keep).breaker(None);
        let cache = builder.level(Memory::entries(100).engine_expiry(false)).level(level).build().unwrap();
        set(&cache, "k", "old", &[]).await;
        // Long enough ago that the node does not say this again.
        stores.time.advance(61 * S);
        stores.replicate();
        l2.set(ChaosOp::Put, fault);
        assert_eq!(cache.set("k", "new".to_owned()).await.unwrap(), Delivery::Pending);
        l2.set_all(Fault::None);
        stores.pass().await;
        assert_eq!((cache.stats().pending, cache.stats().stored_late), (0, 1), "{fault:?}");
        pair.fail_over();
        other.pair.fail_over();
        stores.pass().await;
        assert_eq!(get(&other.cache, "k").await, None, "{fault:?}");
    }
}
