//! What the caches of a running service have counted.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::{
    page,
    series::{Series, read},
};

/// Caches by their names.
pub(crate) type Caches = BTreeMap<String, Counts>;

/// The counts of a cache since its start, or since an earlier reading.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Counts {
    /// Look-ups by how they ended.
    pub(crate) served: BTreeMap<String, f64>,
    /// Fresh hits by the level that served them: `l1`.
    pub(crate) hits_at: BTreeMap<String, f64>,
    pub(crate) errors: f64,
    pub(crate) loads: f64,
    pub(crate) load_errors: f64,
    pub(crate) invalidations: f64,
    /// Seconds.
    pub(crate) saved: f64,
    /// Invalidations that some level has not acknowledged yet, or that the backplane has not taken.
    pub(crate) pending: f64,
    /// Values that were set while a level was away: those that it took later, and those that it never got.
    pub(crate) stored_late: f64,
    pub(crate) lost: f64,
    pub(crate) lookup_times: Times,
    pub(crate) load_times: Times,
    pub(crate) levels: BTreeMap<String, Level>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Level {
    /// Keys, by what the level answered.
    pub(crate) answers: BTreeMap<String, f64>,
    /// Calls that failed.
    pub(crate) errors: f64,
    /// Values that were not sent to it: too large, or impossible to encode.
    pub(crate) unsent: f64,
    pub(crate) evicted: f64,
    /// Entries now; `None` for a level that is not in the service's memory.
    pub(crate) entries: Option<f64>,
    pub(crate) bytes: Option<f64>,
    /// `None`: it has none.
    pub(crate) breaker: Option<String>,
}

/// How long things took, by upper bounds.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Times {
    /// Counts by the bits of their upper bound: for positive numbers, bits sort as the numbers do.
    below: BTreeMap<u64, f64>,
    sum: f64,
    count: f64,
}

impl Times {
    fn add(&mut self, kind: &str, series: &Series<'_>) {
        // Of hits in memory, only one in so many is recorded.
        let weight: f64 = series.label("cache_sample_weight").parse().unwrap_or(1.0);
        let value = series.value * weight;
        match kind {
            "bucket" => {
                if let Ok(bound) = series.label("le").parse::<f64>() {
                    *self.below.entry(bound.max(0.0).to_bits()).or_default() += value;
                }
            }
            "sum" => self.sum += value,
            "count" => self.count += value,
            _ => {}
        }
    }

    /// A histogram of which only the mean is known.
    pub(crate) fn of_mean(seconds: f64, count: f64) -> Self {
        Self { sum: seconds * count, count, ..Self::default() }
    }

    pub(crate) fn mean(&self) -> Option<f64> {
        (self.count > 0.0).then(|| self.sum / self.count)
    }

    /// In seconds, interpolated between the bounds of its bucket as Prometheus does it; the last bound for what lies beyond it.
    pub(crate) fn quantile(&self, q: f64) -> Option<f64> {
        let wanted = self.count * q;
        if wanted <= 0.0 {
            return None;
        }
        let (mut bound_before, mut count_before) = (0.0, 0.0);
        for (bits, count) in &self.below {
            let bound = f64::from_bits(*bits);
            if *count >= wanted {
                if bound.is_infinite() {
                    break;
                }
                let share = (wanted - count_before) / (count - count_before).max(f64::MIN_POSITIVE);
                return Some(bound_before + (bound - bound_before) * share.clamp(0.0, 1.0));
            }
            (bound_before, count_before) = (bound, *count);
        }
        (bound_before > 0.0).then_some(bound_before)
    }
}

/// Reads a page of Prometheus metrics, or `cache-page`'s JSON. Empty where that has no caches.
pub(crate) fn caches(text: &str) -> Caches {
    if text.trim_start().starts_with('{') {
        return page::read(text).unwrap_or_default();
    }
    let mut all = Caches::new();
    for series in read(text) {
        let Some(metric) = series.name.strip_prefix("cache_") else { continue };
        let name = match (series.label("cache_name"), series.label("otel_metric_overflow")) {
            ("", "true") => "(others)",
            ("", _) => continue,
            (name, _) => name,
        };
        if series.value.is_finite() {
            all.entry(name.to_owned()).or_default().take(metric, &series);
        }
    }
    // Other programs' metrics may have the same prefix.
    all.retain(|_, counts| !counts.served.is_empty() || !counts.levels.is_empty());
    all
}

impl Counts {
    fn take(&mut self, metric: &str, series: &Series<'_>) {
        let value = series.value;
        let result = series.label("cache_result");
        let level = || series.label("cache_level").to_owned();
        match metric {
            "requests_total" => {
                add(&mut self.served, result, value);
                if result == "hit" {
                    add(&mut self.hits_at, series.label("cache_level"), value);
                }
            }
            "errors_total" => self.errors += value,
            "loads_total" => self.loads += value,
            "load_errors_total" => self.load_errors += value,
            "invalidations_total" => self.invalidations += value,
            "time_saved_seconds_total" => self.saved += value,
            "journal_depth" => self.pending += value,
            "level_requests_total" => {
                add(&mut self.levels.entry(level()).or_default().answers, result, value);
            }
            "level_errors_total" => self.levels.entry(level()).or_default().errors += value,
            "unsent_total" => self.levels.entry(level()).or_default().unsent += value,
            "journal_values_total" => match series.label("cache_journal_result") {
                "stored" => self.stored_late += value,
                "lost" => self.lost += value,
                _ => {}
            },
            "evictions_total" => self.levels.entry(level()).or_default().evicted += value,
            "entry_count" => {
                *self.levels.entry(level()).or_default().entries.get_or_insert_default() += value;
            }
            "size_bytes" => *self.levels.entry(level()).or_default().bytes.get_or_insert_default() += value,
            "breaker_count" if value > 0.0 => {
                self.levels.entry(level()).or_default().breaker =
                    Some(series.label("cache_breaker_state").to_owned());
            }
            _ => {
                if let Some(kind) = metric.strip_prefix("operation_duration_seconds_") {
                    // Only look-ups have a result.
                    if !result.is_empty() {
                        self.lookup_times.add(kind, series);
                    }
                } else if let Some(kind) = metric.strip_prefix("load_duration_seconds_") {
                    self.load_times.add(kind, series);
                }
            }
        }
    }

    pub(crate) fn lookups(&self) -> f64 {
        self.served.values().sum()
    }

    pub(crate) fn served(&self, result: &str) -> f64 {
        self.served.get(result).copied().unwrap_or_default()
    }

    /// `None` if there was no look-up.
    pub(crate) fn share(&self, part: f64) -> Option<f64> {
        let all = self.lookups();
        (all > 0.0).then(|| part / all)
    }

    /// What has been counted since an earlier reading. If a count has fallen, the service was restarted: then all of it is new.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let mut new = self.clone();
        if earlier.lookups() > self.lookups() || earlier.loads > self.loads {
            return new;
        }
        subtract(&mut new.served, &earlier.served);
        subtract(&mut new.hits_at, &earlier.hits_at);
        for (new, old) in [
            (&mut new.errors, earlier.errors),
            (&mut new.loads, earlier.loads),
            (&mut new.load_errors, earlier.load_errors),
            (&mut new.invalidations, earlier.invalidations),
            (&mut new.saved, earlier.saved),
            (&mut new.stored_late, earlier.stored_late),
            (&mut new.lost, earlier.lost),
        ] {
            *new = (*new - old).max(0.0);
        }
        for (new, old) in
            [(&mut new.lookup_times, &earlier.lookup_times), (&mut new.load_times, &earlier.load_times)]
        {
            subtract(&mut new.below, &old.below);
            new.sum = (new.sum - old.sum).max(0.0);
            new.count = (new.count - old.count).max(0.0);
        }
        for (name, level) in &mut new.levels {
            if let Some(old) = earlier.levels.get(name) {
                subtract(&mut level.answers, &old.answers);
                level.errors = (level.errors - old.errors).max(0.0);
                level.unsent = (level.unsent - old.unsent).max(0.0);
                level.evicted = (level.evicted - old.evicted).max(0.0);
            }
        }
        new
    }

    /// For programs.
    pub(crate) fn json(&self, name: &str) -> Value {
        let levels = self.levels.iter().map(|(level, counts)| {
            let mut json = json!({
                "level": level,
                "answers": object(&counts.answers),
                "errors": whole(counts.errors),
                "unsent": whole(counts.unsent),
                "evicted": whole(counts.evicted),
            });
            if let Value::Object(fields) = &mut json {
                fields.extend(counts.entries.map(|n| ("entries".to_owned(), whole(n))));
                fields.extend(counts.bytes.map(|n| ("bytes".to_owned(), whole(n))));
                fields.extend(counts.breaker.as_ref().map(|state| ("breaker".to_owned(), json!(state))));
            }
            json
        });
        json!({
            "name": name,
            "lookups": whole(self.lookups()),
            "hit_rate": self.share(self.served("hit")),
            "served": object(&self.served),
            "hits_by_level": object(&self.hits_at),
            "loads": whole(self.loads),
            "load_errors": whole(self.load_errors),
            "load_mean_seconds": self.load_times.mean(),
            "load_p99_seconds": self.load_times.quantile(0.99),
            "lookup_p50_seconds": self.lookup_times.quantile(0.5),
            "lookup_p99_seconds": self.lookup_times.quantile(0.99),
            "time_saved_seconds": self.saved,
            "errors": whole(self.errors),
            "invalidations": whole(self.invalidations),
            "pending": whole(self.pending),
            "stored_late": whole(self.stored_late),
            "lost": whole(self.lost),
            "levels": levels.collect::<Vec<_>>(),
        })
    }
}

/// What each cache has counted since an earlier reading. A new cache counts as a whole.
pub(crate) fn since(now: &Caches, earlier: &Caches) -> Caches {
    let none = Counts::default();
    now.iter()
        .map(|(name, counts)| (name.clone(), counts.since(earlier.get(name).unwrap_or(&none))))
        .collect()
}

fn add(to: &mut BTreeMap<String, f64>, name: &str, value: f64) {
    *to.entry(name.to_owned()).or_default() += value;
}

fn subtract<K: Ord>(from: &mut BTreeMap<K, f64>, what: &BTreeMap<K, f64>) {
    for (name, value) in from {
        *value = (*value - what.get(name).copied().unwrap_or_default()).max(0.0);
    }
}

fn object(counts: &BTreeMap<String, f64>) -> Map<String, Value> {
    counts.iter().map(|(name, count)| (name.clone(), whole(*count))).collect()
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts; `as` saturates")]
pub(crate) fn count(n: f64) -> u64 {
    n.round() as u64
}

fn whole(n: f64) -> Value {
    count(n).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = include_str!("../tests/metrics.txt");

    #[test]
    fn a_page_of_a_service_is_understood() {
        let all = caches(PAGE);
        let names: Vec<_> = all.keys().map(String::as_str).collect();
        assert_eq!(names, ["airports", "checks"]);
        let airports = &all["airports"];
        assert_eq!(airports.lookups(), 10.0);
        assert_eq!((airports.served("hit"), airports.served("miss")), (6.0, 4.0));
        assert_eq!((airports.hits_at["l1"], airports.loads, airports.errors), (6.0, 4.0, 0.0));
        let l1 = &airports.levels["l1"];
        assert_eq!((l1.entries, l1.answers["hit"]), (Some(4.0), 6.0));
        assert_eq!(l1.breaker.as_deref(), None, "memory has no breaker");
        let mean = airports.load_times.mean().unwrap();
        let (p50, p99) =
            (airports.load_times.quantile(0.5).unwrap(), airports.load_times.quantile(0.99).unwrap());
        assert!(p50 <= p99 && mean > 0.0 && p99 < 0.1, "{mean} {p50} {p99}");
        assert_eq!(caches("up 1\ncache_size_bytes{pool=\"x\"} 1\n"), Caches::new());
    }

    #[test]
    fn two_looks_make_a_difference_and_a_new_start_none() {
        let first = caches(PAGE);
        let again = PAGE.replace(
            "cache_requests_total{cache_level=\"l1\",cache_name=\"airports\",cache_result=\"hit\"} 6",
            "cache_requests_total{cache_level=\"l1\",cache_name=\"airports\",cache_result=\"hit\"} 106",
        );
        let second = caches(&again);
        let between = &since(&second, &first)["airports"];
        assert_eq!((between.lookups(), between.share(between.served("hit"))), (100.0, Some(1.0)));
        assert_eq!((between.loads, between.levels["l1"].entries), (0.0, Some(4.0)));
        assert_eq!(between.load_times.mean(), None);
        // The service was started anew: it has counted 10 since.
        assert_eq!(since(&first, &second)["airports"].lookups(), 10.0);
    }

    #[test]
    fn what_became_of_values_that_a_level_had_not_taken_is_counted_and_subtracted() {
        let page = |stored: u32, lost: u32, unsent: u32| {
            caches(&format!(
                "cache_requests_total{{cache_name=\"a\",cache_result=\"hit\"}} 1\n\
                 cache_journal_values_total{{cache_name=\"a\",cache_journal_result=\"stored\"}} {stored}\n\
                 cache_journal_values_total{{cache_name=\"a\",cache_journal_result=\"lost\"}} {lost}\n\
                 cache_unsent_total{{cache_name=\"a\",cache_level=\"l2\",cache_unsent_reason=\"too_large\"}} {unsent}\n\
                 cache_unsent_total{{cache_name=\"a\",cache_level=\"l2\",cache_unsent_reason=\"not_encoded\"}} 1\n"
            ))
        };
        let (first, second) = (page(1, 2, 3), page(5, 8, 12));
        let seen = |counts: &Counts| (counts.stored_late, counts.lost, counts.levels["l2"].unsent);
        assert_eq!(seen(&first["a"]), (1.0, 2.0, 4.0));
        assert_eq!(seen(&since(&second, &first)["a"]), (4.0, 6.0, 9.0));
    }

    #[test]
    fn quantiles_lie_within_their_bucket() {
        let page = "cache_requests_total{cache_name=\"a\",cache_result=\"hit\"} 1\n\
            cache_load_duration_seconds_bucket{cache_name=\"a\",le=\"0.1\"} 50\n\
            cache_load_duration_seconds_bucket{cache_name=\"a\",le=\"0.2\"} 90\n\
            cache_load_duration_seconds_bucket{cache_name=\"a\",le=\"+Inf\"} 100\n\
            cache_load_duration_seconds_count{cache_name=\"a\"} 100\n";
        let times = caches(page).remove("a").unwrap().load_times;
        let near = |q: f64, wanted: f64| (times.quantile(q).unwrap() - wanted).abs() < 1e-9;
        assert!(near(0.5, 0.1) && near(0.7, 0.15) && near(0.99, 0.2));
        assert_eq!(Times::default().quantile(0.5), None);
    }

    #[test]
    fn a_sampled_hit_counts_for_those_that_it_stands_for() {
        let of = "cache_operation_duration_seconds";
        let hit = "cache_level=\"l1\",cache_name=\"a\",cache_result=\"hit\",cache_sample_weight=\"256\"";
        let miss = "cache_level=\"none\",cache_name=\"a\",cache_result=\"miss\"";
        let page = format!(
            "cache_requests_total{{{miss}}} 1\n\
             {of}_bucket{{{hit},le=\"1e-06\"}} 10\n{of}_bucket{{{hit},le=\"0.02\"}} 10\n{of}_count{{{hit}}} 10\n\
             {of}_bucket{{{miss},le=\"1e-06\"}} 0\n{of}_bucket{{{miss},le=\"0.02\"}} 10\n{of}_count{{{miss}}} 10\n",
        );
        let times = caches(&page).remove("a").unwrap().lookup_times;
        assert!(times.quantile(0.95).unwrap() <= 1e-6, "ten of 2,570 took long");
    }
}
