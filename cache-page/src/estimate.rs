//! What share of look-ups memory would serve if there were half, twice or four times as much of it.
//!
//! A share of the keys is followed, chosen by their hashes, so that all look-ups of a key are seen or none: the sampling of
//! SHARDS (Waldspurger, Park, Garthwaite, Ahmad: Efficient MRC Construction with SHARDS, FAST 2015). What is followed is put
//! into small copies of the memory, as many times smaller as there are fewer keys, one for each size that is asked about
//! (Waldspurger, Saemundsson, Ahmad, Park: Cache Modeling and Optimization using Miniature Simulations, ATC 2017). So they
//! tell of the engine's own way of letting entries go, and of entries that end by their time.
//!
//! That takes the memory of [`ENTRIES_MAX`] small entries however large a store is, and no time for keys that are not
//! followed. `examples/estimate.rs` compares it with the real thing on a recorded trace.

use std::time::Duration;

use quick_cache::{
    DefaultHashBuilder, OptionsBuilder, UnitWeighter,
    unsync::{Cache, DefaultLifecycle},
};

/// The sizes that are asked about, as parts of what there is.
pub const FACTORS: [f64; 4] = [0.5, 1.0, 2.0, 4.0];
/// Entries of the copy of a store as large as the one there is, where that is larger.
const ENTRIES: f64 = 2048.0;
/// Most entries of all copies of a store together.
pub const ENTRIES_MAX: usize = 15_360;
/// As the memory level sets its engine up.
const HOT: f64 = 0.9;
const REMEMBERED: f64 = 0.5;

/// How long an entry of a cache lives in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Life {
    /// How long after its load it is fresh.
    pub fresh_for: Duration,
    /// The age at which a hit has it loaded anew.
    pub refreshed_from: Option<Duration>,
}

impl Life {
    /// Until it is let go for want of room.
    pub const UNLIMITED: Self = Self { fresh_for: Duration::MAX, refreshed_from: None };
}

type Model = Cache<u64, Duration>;

/// The small copies of one store, which caches may share.
pub struct Estimator {
    /// Entries of the store.
    capacity: u64,
    /// The share of keys that is followed.
    share: f64,
    /// One for each of [`FACTORS`]; an entry is the moment at which it was loaded.
    models: [Model; FACTORS.len()],
}

impl Estimator {
    /// For a store of so many entries.
    pub fn new(capacity: u64) -> Self {
        let share = share_of(capacity);
        Self { capacity, share, models: FACTORS.map(|factor| model(capacity, share * factor)) }
    }

    /// The share of keys that is followed, above 0, up to 1.
    pub const fn share(&self) -> f64 {
        self.share
    }

    /// A key is followed if its [`place`] is not above this.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "saturates"
    )]
    pub fn threshold(&self) -> u64 {
        (self.share * u64::MAX as f64) as u64
    }

    /// A look-up of a key, given by its [`place`], at a moment since some beginning. Says at which of [`FACTORS`] memory would
    /// have had it; `None` for a key that is not followed.
    pub fn asked(&mut self, place: u64, at: Duration, life: Life) -> Option<[bool; FACTORS.len()]> {
        (place <= self.threshold()).then(|| {
            self.models.each_mut().map(|model| {
                let Some(loaded) = model.get(&place).copied() else {
                    model.insert(place, at);
                    return false;
                };
                let age = at.saturating_sub(loaded);
                let fresh = age < life.fresh_for;
                if !fresh || life.refreshed_from.is_some_and(|from| age >= from) {
                    model.insert(place, at);
                }
                fresh
            })
        })
    }

    /// Follows half as many keys from now on: there are more look-ups than can be followed.
    pub fn thin(&mut self) {
        self.share /= 2.0;
        self.forget();
        self.resize();
    }

    /// What is not followed any more.
    fn forget(&mut self) {
        let threshold = self.threshold();
        for model in &mut self.models {
            model.retain(|place, _| *place <= threshold);
        }
    }

    /// The store has room for another number of entries now, because they are larger or smaller than they were.
    pub fn capacity_is(&mut self, entries: u64) {
        if entries.abs_diff(self.capacity) > self.capacity / 8 {
            self.capacity = entries;
            // Never more keys than there is room for; those that are let go of now are not taken up again.
            let most = share_of(entries);
            if most < self.share {
                self.share = most;
                self.forget();
            }
            self.resize();
        }
    }

    fn resize(&mut self) {
        for (model, factor) in self.models.iter_mut().zip(FACTORS) {
            model.set_capacity(room(self.capacity, self.share * factor));
        }
    }
}

impl std::fmt::Debug for Estimator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { capacity, share, .. } = self;
        f.debug_struct("Estimator").field("capacity", capacity).field("share", share).finish_non_exhaustive()
    }
}

#[allow(clippy::cast_precision_loss, reason = "a share")]
fn share_of(capacity: u64) -> f64 {
    (ENTRIES / capacity.max(1) as f64).min(1.0)
}

#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "saturates"
)]
fn room(capacity: u64, share: f64) -> u64 {
    ((capacity as f64 * share).round() as u64).max(1)
}

fn model(capacity: u64, share: f64) -> Model {
    let room = room(capacity, share);
    let entries = usize::try_from(room).unwrap_or(usize::MAX);
    let (hasher, lifecycle) = (DefaultHashBuilder::default(), DefaultLifecycle::default());
    let options = OptionsBuilder::new()
        .estimated_items_capacity(entries)
        .weight_capacity(room)
        .hot_allocation(HOT)
        .ghost_allocation(REMEMBERED)
        .build();
    match options {
        Ok(options) => Cache::with_options(options, UnitWeighter, hasher, lifecycle),
        // Not reached: all that has to be set is set.
        Err(_missing) => Cache::new(entries),
    }
}

/// Where a key's hash lies when keys are put in an order of chance. Keys of several caches are told apart.
pub fn place(cache: u32, hash: u64) -> u64 {
    // Hashes spread over the engine's parts by some of their bits: take none of them as they are.
    let mixed =
        (hash ^ u64::from(cache).wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (mixed ^ (mixed >> 32)).wrapping_mul(0xd6e8_feb8_6659_fd93)
}

/// Look-ups of one cache and what would have become of them, the latest counting most.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    /// Look-ups that were to be followed, by the share of keys.
    expected: f64,
    followed: f64,
    hits: [f64; FACTORS.len()],
}

impl Tally {
    /// A look-up that was followed.
    pub fn add(&mut self, hits: [bool; FACTORS.len()]) {
        self.followed += 1.0;
        for (sum, hit) in self.hits.iter_mut().zip(hits) {
            *sum += f64::from(u8::from(hit));
        }
    }

    /// So many look-ups in all, while this share of keys was followed.
    #[allow(clippy::cast_precision_loss, reason = "a ratio for people")]
    pub fn expect(&mut self, lookups: u64, share: f64) {
        self.expected += lookups as f64 * share;
    }

    /// Makes what has been counted so far count for less.
    pub fn fade(&mut self, to: f64) {
        self.expected *= to;
        self.followed *= to;
        self.hits.iter_mut().for_each(|hits| *hits *= to);
    }

    /// Look-ups that were followed.
    pub const fn followed(&self) -> f64 {
        self.followed
    }

    /// The share of look-ups that memory of each of [`FACTORS`] would serve, 0 to 1. `None` while there are too few to say.
    ///
    /// Where the keys that are followed happen to be asked for more or less than others, the difference is taken for hits:
    /// it is the hottest keys that make it (SHARDS, 3.3).
    pub fn rates(&self) -> Option<[f64; FACTORS.len()]> {
        if self.followed < 100.0 || self.expected < 100.0 {
            return None;
        }
        let more = self.expected - self.followed;
        Some(self.hits.map(|hits| ((hits + more) / self.expected).clamp(0.0, 1.0)))
    }
}

#[cfg(test)]
mod tests {
    use cache_core::{Policy, TracedCache};
    use cache_memory::Memory;
    use futures::FutureExt;

    use super::*;

    /// Some hundred thousand look-ups, some keys more than others, and now and then a scan of keys that are asked for once.
    fn keys(of: u64, look_ups: u64) -> Vec<u64> {
        let mut rng = fastrand::Rng::with_seed(7);
        let mut scanned = of;
        (0..look_ups)
            .map(|n| {
                if n % 10_000 < 1000 {
                    scanned += 1;
                    return scanned;
                }
                // About 1/rank.
                #[allow(
                    clippy::cast_precision_loss,
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "small"
                )]
                let rank = (of as f64).powf(rng.f64()) as u64;
                rank
            })
            .collect()
    }

    fn real(capacity: u64, keys: &[u64]) -> f64 {
        let policy = Policy::ttl(Duration::MAX);
        let cache: TracedCache<u8> =
            TracedCache::builder("real").level(Memory::entries(capacity)).policy(policy).build().unwrap();
        for key in keys {
            if cache.get(*key).now_or_never().unwrap().unwrap().is_none() {
                let _ = cache.set(*key, 1).now_or_never().unwrap().unwrap();
            }
        }
        cache.stats().hit_rate().unwrap()
    }

    fn estimated(capacity: u64, keys: &[u64], thin: u32) -> ([f64; 4], f64) {
        let (mut estimator, mut tally) = (Estimator::new(capacity), Tally::default());
        (0..thin).for_each(|_| estimator.thin());
        for key in keys {
            // As good as any hash.
            if let Some(hits) = estimator.asked(place(1, *key), Duration::ZERO, Life::UNLIMITED) {
                tally.add(hits);
            }
        }
        tally.expect(keys.len() as u64, estimator.share());
        assert!(estimator.models.iter().map(Cache::len).sum::<usize>() <= ENTRIES_MAX);
        (tally.rates().unwrap(), estimator.share())
    }

    #[test]
    fn estimates_are_near_what_real_caches_come_to() {
        let keys = keys(50_000, 100_000);
        #[allow(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "small"
        )]
        let really = |capacity: u64| FACTORS.map(|factor| real((capacity as f64 * factor) as u64, &keys));
        for (capacity, thinned) in [(1000, &[(0, 0.002)][..]), (8000, &[(0, 0.015), (3, 0.05)])] {
            let really = really(capacity);
            for (thin, most) in thinned {
                let (rates, share) = estimated(capacity, &keys, *thin);
                let errors: Vec<f64> =
                    rates.iter().zip(really).map(|(rate, real)| (rate - real).abs()).collect();
                assert!(
                    errors.iter().all(|error| error <= most),
                    "{capacity} from {share}: {rates:?}, really {really:?}"
                );
            }
        }
    }

    #[test]
    fn entries_end_by_their_time_and_are_refreshed_ahead_of_it() {
        let mut estimator = Estimator::new(10);
        let seconds = Duration::from_secs;
        let plain = Life { fresh_for: seconds(10), refreshed_from: None };
        let early = Life { refreshed_from: Some(seconds(8)), ..plain };
        let mut asked = |key, at, life| estimator.asked(key, seconds(at), life).unwrap()[1];
        assert_eq!([0, 9, 11, 20, 22].map(|at| asked(1, at, plain)), [false, true, false, true, false]);
        assert_eq!([0, 9, 18, 27, 38].map(|at| asked(2, at, early)), [false, true, true, true, false]);
    }

    #[test]
    fn a_store_that_changes_its_size_is_followed() {
        let mut estimator = Estimator::new(1000);
        assert!((estimator.share() - 1.0).abs() < 1e-9);
        estimator.capacity_is(1100);
        assert_eq!(estimator.models[1].capacity(), 1000, "not for little");
        estimator.capacity_is(500);
        assert_eq!(estimator.models.each_ref().map(Cache::capacity), [250, 500, 1000, 2000]);
        estimator.thin();
        assert_eq!(estimator.models.each_ref().map(Cache::capacity), [125, 250, 500, 1000]);
        // A store that grew must not take more memory than was promised.
        estimator.capacity_is(1_000_000);
        assert!(estimator.models.iter().map(Cache::capacity).sum::<u64>() <= ENTRIES_MAX as u64);
    }
}
