//! Promise 10: counts add up, under any mix of callers, and never go back.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use traced_cache::{Access, Early, LevelOutcome, Outcome, Policy, Scope, Snapshot, TracedCache, Verb, ok};

use crate::{
    kit::{self, Down, Loads, MS, S},
    stacks::{self, Stack},
};

/// A small generator, so that a failure can be repeated.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// What the callers did: calls and keys looked up, by verb.
#[derive(Default)]
struct Done {
    calls: [AtomicU64; Verb::ALL.len()],
    keys: AtomicU64,
    loads: Loads,
}

impl Done {
    fn call(&self, verb: Verb, keys: u64) {
        self.calls[verb as usize].fetch_add(1, Ordering::SeqCst);
        self.keys.fetch_add(keys, Ordering::SeqCst);
    }
}

async fn one_call(cache: &TracedCache<u64>, dice: &mut Dice, done: &Arc<Done>) {
    let key = dice.roll(12);
    let access = [
        Access::Normal,
        Access::Normal,
        Access::AllowStale,
        Access::CacheOnly,
        Access::Reload,
        Access::Bypass,
    ];
    let cache = cache.access(access[usize::try_from(dice.roll(6)).unwrap()]);
    let answer = dice.roll(4);
    let load = move |done: Arc<Done>, key: u64| async move {
        done.loads.add();
        tokio::task::yield_now().await;
        match answer {
            0 => Err(Down(0)),
            1 => Ok(None),
            _ => Ok(Some(key)),
        }
    };
    match dice.roll(9) {
        0 | 1 => {
            done.call(Verb::Get, 1);
            cache.get(key).await.unwrap();
        }
        2 | 3 => {
            done.call(Verb::GetOrSet, 1);
            let _ = cache.get_or_set_with(key, done, load).await;
        }
        4 => {
            done.call(Verb::GetMany, 3);
            cache.get_many([key, key + 1, key + 2]).await.unwrap();
        }
        5 => {
            done.call(Verb::GetOrSetMany, 3);
            let load = |done: Arc<Done>, ids: Vec<u64>| async move {
                done.loads.add();
                Ok::<_, Infallible>(ids.into_iter().map(|id| (id, id)).collect::<Vec<_>>())
            };
            // It may join a load that fails.
            let _ = cache.get_or_set_many([key, key + 1, key + 2], done, load).await;
        }
        6 => {
            done.call(Verb::Refresh, 1);
            let _ = cache.refresh(key, done, load).await;
        }
        7 => {
            done.call(Verb::Set, 0);
            let _ = cache.set(key, key).await.unwrap();
        }
        _ => {
            done.call(Verb::Invalidate, 0);
            let _ = cache.invalidate(key).await.unwrap();
        }
    }
}

/// Every number of `now` is at least that of `before`.
fn has_grown(before: &Snapshot, now: &Snapshot) {
    for (b, n) in before.operations.iter().zip(&now.operations) {
        assert!(n.1 >= b.1, "{b:?} {n:?}");
    }
    for (b, n) in before.served.iter().zip(&now.served) {
        assert!(n.count >= b.count, "{b:?} {n:?}");
    }
    for (b, n) in before.levels.iter().zip(&now.levels) {
        for (b, n) in b.outcomes.iter().zip(&n.outcomes) {
            assert!(n.1 >= b.1, "{b:?} {n:?}");
        }
    }
    for (b, n) in before.miss_reasons.iter().zip(&now.miss_reasons) {
        assert!(n.1 >= b.1, "{b:?} {n:?}");
    }
    let reasons: u64 = now.miss_reasons.iter().map(|(_, n)| n).sum();
    assert_eq!(now.misses(), reasons, "each miss has one reason, also while calls run");
    assert!(now.time_saved >= before.time_saved);
    assert!(now.loads >= before.loads && now.load_errors >= before.load_errors);
    assert!(now.load_time >= before.load_time && now.overtaken >= before.overtaken);
}

async fn mix(stack: &Stack) {
    let policy = Policy::ttl(50 * MS)
        .grace(200 * MS)
        .revalidate(50 * MS)
        .absent_ttl(20 * MS)
        .throttle(5 * MS)
        .early(Early::Fraction(0.8));
    let cache = stack.cache::<u64>(policy);
    let done = Arc::new(Done::default());
    let over = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = (0..4_u64)
        .map(|caller| {
            let (cache, done, time) = (cache.clone(), Arc::clone(&done), stack.time.clone());
            tokio::spawn(async move {
                let mut dice = Dice(0x5851_F42D_4C95_7F2D ^ (caller << 32));
                for _ in 0..400 {
                    if dice.roll(4) == 0 {
                        time.advance(MS);
                    }
                    one_call(&cache, &mut dice, &done).await;
                }
            })
        })
        .collect();
    let sampler = tokio::spawn({
        let (cache, over) = (cache.clone(), Arc::clone(&over));
        async move {
            let mut before = cache.stats();
            while !over.load(Ordering::SeqCst) {
                let now = cache.stats();
                has_grown(&before, &now);
                before = now;
                tokio::time::sleep(MS / 4).await;
            }
        }
    });
    for caller in callers {
        kit::moving(&stack.time, caller).await.unwrap();
    }
    over.store(true, Ordering::SeqCst);
    kit::patient(sampler).await.unwrap();
    kit::moving(&stack.time, kit::until(|| cache.stats().flights == 0)).await;

    let stats = cache.stats();
    let keys = done.keys.load(Ordering::SeqCst);
    assert_eq!(stats.lookups(), keys, "each look-up ended in one outcome");
    let outcomes = [Outcome::Hit, Outcome::Stale, Outcome::Absent, Outcome::Coalesced, Outcome::Miss];
    assert_eq!(outcomes.iter().map(|o| stats.outcome(*o)).sum::<u64>(), keys);
    for (verb, count) in &stats.operations {
        let calls = done.calls[*verb as usize].load(Ordering::SeqCst);
        // Refreshes behind a stale or ageing value are nobody's call.
        assert_eq!(*count, calls, "{verb:?}");
    }
    assert_eq!(stats.loads, done.loads.count() as u64, "a load is counted once");
    let invalidated = done.calls[Verb::Invalidate as usize].load(Ordering::SeqCst);
    assert_eq!(stats.invalidated(Scope::Key), invalidated);
    assert!(outcomes.iter().all(|o| stats.outcome(*o) > 0), "the mix reaches every outcome: {stats:?}");
    for (at, level) in stats.levels.iter().enumerate() {
        let served: u64 = stats.served.iter().filter(|s| s.level == Some(at)).map(|s| s.count).sum();
        let fresh = level.outcome(LevelOutcome::Hit) + level.outcome(LevelOutcome::Negative);
        let usable = fresh + level.outcome(LevelOutcome::Stale);
        assert!(served <= usable + level.lookups(), "level {at}");
        assert!(level.lookups() <= keys, "a level is asked once for a look-up at most");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn counts_add_up_under_a_mix_of_callers() {
    for stack in stacks::local().chain(stacks::all()) {
        mix(&stack).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_level_accounts_for_each_key_it_was_asked_for() {
    // Without loads nothing is joined, so the levels' counts follow from each other.
    for stack in stacks::local().chain(stacks::all()) {
        let cache = stack.plain::<u64>();
        let callers: Vec<_> = (0..4_u64)
            .map(|caller| {
                let cache = cache.clone();
                tokio::spawn(async move {
                    let mut dice = Dice(0xDEAD_BEEF ^ (caller << 40));
                    let mut keys = 0;
                    for _ in 0..300 {
                        let key = dice.roll(50);
                        match dice.roll(4) {
                            0 => drop(cache.set(key, key).await.unwrap()),
                            1 => {
                                keys += 2;
                                cache.get_many([key, key + 1]).await.unwrap();
                            }
                            2 if key.is_multiple_of(7) => drop(cache.invalidate(key).await.unwrap()),
                            _ => {
                                keys += 1;
                                cache.get(key).await.unwrap();
                            }
                        }
                    }
                    keys
                })
            })
            .collect();
        let mut keys = 0;
        for caller in callers {
            keys += kit::patient(caller).await.unwrap();
        }
        let stats = cache.stats();
        assert_eq!(stats.lookups(), keys);
        assert_eq!(stats.hits() + stats.misses(), keys);
        let mut asked = keys;
        for (at, level) in stats.levels.iter().enumerate() {
            assert_eq!(level.lookups(), asked, "level {at}");
            assert_eq!(level.outcome(LevelOutcome::Hit), stats.hits_at(at), "level {at}");
            asked -= level.outcome(LevelOutcome::Hit);
        }
        assert_eq!(asked, stats.misses());
    }
}

#[tokio::test]
async fn s1_a_crowd_is_one_miss_and_the_rest_coalesced() {
    for stack in stacks::all() {
        let cache = stack.cache::<u64>(Policy::ttl(100 * S));
        let loads = Loads::default();
        let crowd: Vec<_> = (0..200)
            .map(|_| {
                let (cache, loads) = (cache.clone(), loads.clone());
                tokio::spawn(async move {
                    let load = |loads: Loads, _| async move {
                        loads.add();
                        tokio::time::sleep(20 * MS).await;
                        ok(1_u64)
                    };
                    cache.get_or_set_with("k", &loads, load).await.unwrap()
                })
            })
            .collect();
        for caller in crowd {
            assert_eq!(*kit::patient(caller).await.unwrap(), 1);
        }
        let stats = cache.stats();
        assert_eq!(
            (loads.count(), stats.misses(), stats.coalesced(), stats.hits()),
            (1, 1, 199, 0),
            "{stats:?}"
        );
    }
}
