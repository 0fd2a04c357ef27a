//! Which keys are asked for most, in bounded memory: Space-Saving (Metwally, Agrawal, El Abbadi, ICDT 2005) over a sample of
//! look-ups, with what is long ago counting for less.

use std::collections::HashMap;

/// Keys that are counted at once. One that is asked for more often than once in so many look-ups is among them.
const COUNTED: usize = 256;
/// Keys that are shown.
const SHOWN: usize = 10;

#[derive(Default)]
pub(crate) struct Hot {
    counted: HashMap<u64, Count>,
    all: f64,
}

struct Count {
    count: f64,
    /// What of it may have been others'.
    doubtful: f64,
    name: Option<Box<str>>,
}

/// A key that is asked for often.
#[derive(Clone, Debug)]
pub(crate) struct HotKey {
    pub(crate) hash: u64,
    /// What may be shown of it.
    pub(crate) name: Option<Box<str>>,
    /// Of all look-ups, 0 to 1; at least.
    pub(crate) share: f64,
}

impl Hot {
    pub(crate) fn add(&mut self, hash: u64, name: Option<Box<str>>) {
        self.all += 1.0;
        if let Some(count) = self.counted.get_mut(&hash) {
            count.count += 1.0;
            return;
        }
        let mut doubtful = 0.0;
        if self.counted.len() >= COUNTED {
            let least = self.counted.iter().min_by(|(_, a), (_, b)| a.count.total_cmp(&b.count));
            let Some((&least, count)) = least else { return };
            doubtful = count.count;
            self.counted.remove(&least);
        }
        self.counted.insert(hash, Count { count: doubtful + 1.0, doubtful, name });
    }

    pub(crate) fn fade(&mut self, to: f64) {
        self.all *= to;
        for count in self.counted.values_mut() {
            count.count *= to;
            count.doubtful *= to;
        }
    }

    /// Those that surely were asked for more than once, the hottest first.
    pub(crate) fn top(&self) -> Vec<HotKey> {
        let sure = |count: &Count| count.count - count.doubtful;
        let mut all: Vec<_> = self.counted.iter().filter(|(_, count)| sure(count) > 1.5).collect();
        all.sort_by(|(_, a), (_, b)| sure(b).total_cmp(&sure(a)));
        all.truncate(SHOWN);
        all.into_iter()
            .map(|(hash, count)| HotKey {
                hash: *hash,
                name: count.name.clone(),
                share: sure(count) / self.all,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hottest_of_many_are_found_in_order_with_their_shares() {
        let mut hot = Hot::default();
        let mut rng = fastrand::Rng::with_seed(1);
        for n in 0..100_000u64 {
            // A tenth, a twentieth, a thirtieth for the first three; the rest over a hundred thousand others.
            let key = match n % 60 {
                0..6 => 1,
                6..9 => 2,
                9..11 => 3,
                _ => 1000 + rng.u64(..100_000),
            };
            hot.add(key, None);
        }
        let top = hot.top();
        assert_eq!(top.iter().take(3).map(|key| key.hash).collect::<Vec<_>>(), [1, 2, 3]);
        assert!((top[0].share - 0.1).abs() < 0.01 && (top[2].share - 1.0 / 30.0).abs() < 0.01, "{top:?}");
        assert!(hot.counted.len() <= COUNTED);
        hot.fade(0.5);
        assert!((hot.top()[0].share - 0.1).abs() < 0.01, "shares stay");
    }
}
