//! What a cache runs under, for those who look at it.

use std::{sync::Arc, time::Duration};

use crate::{Compression, Description, Early, Policy, TracedCache, Value, codec, tier::Tier};

/// What a cache runs under, all told: from [`TracedCache::settings`]. Names are those of configuration files, values are as one
/// reads them.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Settings {
    /// Its policy now.
    pub policy: Vec<(&'static str, String)>,
    /// Its levels, nearest first.
    pub levels: Vec<LevelSettings>,
    /// How long an entry is fresh at the nearest level, at most and without jitter.
    pub fresh_for: Duration,
    /// The age at which a hit has it loaded anew ahead of that, where the policy has a fixed one.
    pub refreshed_from: Option<Duration>,
}

/// What a level runs under.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LevelSettings {
    /// `l1`, `l2`, ... by position.
    pub position: Arc<str>,
    /// What it stands on now.
    pub provider: Description,
    /// Whether it keeps objects rather than bytes.
    pub in_process: bool,
    /// What concerns only this level.
    pub settings: Vec<(&'static str, String)>,
}

impl<T: Value> TracedCache<T> {
    /// What it runs under. Encryption shows as a word: no key is among it.
    pub fn settings(&self) -> Settings {
        let inner = &self.inner;
        let policy = self.policy();
        let levels = inner.tiers.iter().zip(inner.stats().info().levels());
        let cap = inner.tiers.first().map_or(Duration::MAX, Tier::longest);
        let own = inner.tiers.iter().map(Tier::longest).max().unwrap_or(Duration::MAX).min(policy.ttl);
        Settings {
            policy: policy.described(),
            fresh_for: policy.ttl.min(cap),
            refreshed_from: match policy.early {
                Early::Fraction(share) if own != Duration::MAX => Some(own.mul_f64(share)),
                _ => None,
            },
            levels: levels
                .map(|(tier, level)| LevelSettings {
                    position: Arc::clone(&level.position),
                    provider: tier.provider().describe(),
                    in_process: level.in_process,
                    settings: tier.described(codec::name_of(inner.coding.id(tier.packing.codec))),
                })
                .collect(),
        }
    }
}

/// As configuration files write it; the longest is no limit.
fn time(time: Duration) -> String {
    match time {
        Duration::MAX => "unlimited".to_owned(),
        Duration::ZERO => "off".to_owned(),
        time if time.as_secs() >= 60 && time.subsec_nanos() == 0 => {
            let all = time.as_secs();
            let parts = [(all / 86_400, "d"), (all / 3600 % 24, "h"), (all / 60 % 60, "m"), (all % 60, "s")];
            parts
                .iter()
                .filter(|(count, _)| *count > 0)
                .map(|(count, unit)| format!("{count}{unit}"))
                .collect()
        }
        time => format!("{time:?}"),
    }
}

fn maybe(limit: Option<Duration>) -> String {
    limit.map_or_else(|| "off".to_owned(), time)
}

fn word(yes: bool) -> String {
    if yes { "on" } else { "off" }.to_owned()
}

impl Policy {
    fn described(&self) -> Vec<(&'static str, String)> {
        let Self {
            ttl,
            grace,
            revalidate,
            throttle,
            early,
            jitter,
            absent_ttl,
            soft,
            hard,
            complete,
            wait,
            loads,
        } = *self;
        let early = match early {
            Early::Off => "off".to_owned(),
            Early::Fraction(share) => format!("from {share} of the ttl on"),
            Early::XFetch { beta } => format!("by chance, beta {beta}"),
        };
        vec![
            ("ttl", time(ttl)),
            ("grace", time(grace)),
            ("revalidate", time(revalidate)),
            ("throttle", time(throttle)),
            ("early", early),
            ("jitter", time(jitter)),
            ("absent_ttl", time(absent_ttl)),
            ("soft_limit", maybe(soft)),
            ("hard_limit", maybe(hard)),
            ("complete_in_background", word(complete)),
            ("wait", wait.map_or_else(|| "as long as the load".to_owned(), time)),
            ("loads", loads.map_or_else(|| "unlimited".to_owned(), |loads| format!("{loads} at once"))),
        ]
    }
}

impl Tier {
    /// How long it keeps an entry at most.
    pub(crate) fn longest(&self) -> Duration {
        self.ttl_cap.unwrap_or(Duration::MAX)
    }

    fn described(&self, codec: Option<&'static str>) -> Vec<(&'static str, String)> {
        let mut all = vec![("ttl_cap", maybe(self.ttl_cap))];
        if self.store.is_some() {
            return all;
        }
        let packing = &self.packing;
        all.push(("budget", time(self.budget())));
        all.push(("breaker", self.breaker().map_or_else(|| "off".to_owned(), |breaker| breaker.to_string())));
        all.extend(codec.map(|codec| ("codec", codec.to_owned())));
        all.push((
            "compression",
            packing.compression.map_or_else(|| "off".to_owned(), Compression::described),
        ));
        all.push(("encryption", word(packing.encryption.is_some())));
        all.push(("plain", word(packing.plain)));
        all.push(("stance", if self.surface { "surface" } else { "absorb" }.to_owned()));
        all.push(("on_failover", if self.keeps { "keep" } else { "clear" }.to_owned()));
        all.push(("background", word(self.background)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Failover, Level, testing::MapProvider};

    #[test]
    fn settings_say_what_holds_now() {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        let cache: TracedCache<String> = TracedCache::builder("shown")
            .level(
                Level::new(MapProvider::new()).budget(Duration::from_millis(40)).on_failover(Failover::Keep),
            )
            .policy(Policy::ttl(minutes(5)).grace(minutes(90)).early(Early::Fraction(0.8)))
            .build()
            .unwrap();
        let settings = cache.settings();
        let of = |all: &[(&str, String)], name: &str| {
            all.iter().find(|(other, _)| *other == name).map(|(_, value)| value.clone()).unwrap()
        };
        assert_eq!(of(&settings.policy, "ttl"), "5m");
        assert_eq!(of(&settings.policy, "grace"), "1h30m");
        assert_eq!(of(&settings.policy, "early"), "from 0.8 of the ttl on");
        assert_eq!(of(&settings.policy, "soft_limit"), "off");
        let [level] = &settings.levels[..] else { panic!("{settings:?}") };
        assert_eq!(&*level.position, "l1");
        assert_eq!((settings.fresh_for, settings.refreshed_from), (minutes(5), Some(minutes(4))));
        assert_eq!(of(&level.settings, "budget"), "40ms");
        assert_eq!(of(&level.settings, "on_failover"), "keep");
        assert!(of(&level.settings, "breaker").contains("10s"), "{level:?}");
        cache.set_policy(Policy::ttl(minutes(1))).unwrap();
        assert_eq!(of(&cache.settings().policy, "ttl"), "1m");
    }
}
