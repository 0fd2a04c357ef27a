//! The instruments: counters that are read when telemetry collects, and histograms of durations.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use cache_core::{CacheInfo, Event, LoadEnd, Outcome, Verb};
use opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, Histogram, Meter},
};

use crate::{collector::Collector, names, totals::Totals};

/// From a hit in memory to a source that hangs, in seconds.
const BOUNDS: [f64; 22] = [
    1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1,
    0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Verbs whose look-ups are counted.
const LOOKUPS: [Verb; 5] = [Verb::Get, Verb::GetOrSet, Verb::GetMany, Verb::GetOrSetMany, Verb::Refresh];
/// What a level may have served.
const SERVED: [Outcome; 3] = [Outcome::Hit, Outcome::Stale, Outcome::Absent];

/// The one word for an outcome, on metrics and spans alike: a load of the call's own is a miss.
pub(crate) const fn result(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Loaded => Outcome::Miss.as_str(),
        other => other.as_str(),
    }
}

pub(crate) fn cache_name(cache: &CacheInfo) -> KeyValue {
    KeyValue::new(names::CACHE_NAME, Arc::clone(cache.shared_name()))
}

pub(crate) fn position(cache: &CacheInfo, level: u8, key: &'static str) -> KeyValue {
    match cache.levels().get(usize::from(level)) {
        Some(level) => KeyValue::new(key, Arc::clone(&level.position)),
        None => KeyValue::new(key, names::NO_LEVEL),
    }
}

/// Histograms, recorded as events come.
#[derive(Debug)]
pub(crate) struct Durations {
    operation: Histogram<f64>,
    level: Histogram<f64>,
    load: Histogram<f64>,
}

impl Durations {
    pub(crate) fn new(meter: &Meter) -> Self {
        let seconds = |name, description| {
            meter
                .f64_histogram(name)
                .with_unit("s")
                .with_description(description)
                .with_boundaries(BOUNDS.to_vec())
                .build()
        };
        Self {
            operation: seconds(
                names::OPERATION_DURATION,
                "Time from call to answer; hits in memory are sampled",
            ),
            level: seconds(names::LEVEL_DURATION, "Time a level took"),
            load: seconds(names::LOAD_DURATION, "Time a load took"),
        }
    }

    pub(crate) fn record(&self, cache: &CacheInfo, event: &Event<'_>) {
        match event {
            // Recorded once whatever its weight: repeating it would cost each hit what a record costs.
            Event::Operation { verb, outcome, level, elapsed, error, .. } => {
                let name = cache_name(cache);
                let verb = KeyValue::new(names::CACHE_OPERATION, verb.as_str());
                let found = outcome.map(|outcome| {
                    let tier = match level {
                        Some(level) => position(cache, *level, names::CACHE_LEVEL),
                        None => KeyValue::new(names::CACHE_LEVEL, names::NO_LEVEL),
                    };
                    (tier, KeyValue::new(names::CACHE_RESULT, result(outcome)))
                });
                let error = error.map(|kind| KeyValue::new(names::ERROR_TYPE, kind.as_str()));
                let seconds = elapsed.as_secs_f64();
                match (found, error) {
                    (None, None) => self.operation.record(seconds, &[name, verb]),
                    (None, Some(error)) => self.operation.record(seconds, &[name, verb, error]),
                    (Some((tier, result)), None) => {
                        self.operation.record(seconds, &[name, verb, tier, result]);
                    }
                    (Some((tier, result)), Some(error)) => {
                        self.operation.record(seconds, &[name, verb, tier, result, error]);
                    }
                }
            }
            Event::Level { level, op, elapsed, fault, .. } => {
                let name = cache_name(cache);
                let level = position(cache, *level, names::CACHE_LEVEL);
                let op = KeyValue::new(names::CACHE_OPERATION, op.as_str());
                match fault.map(|fault| KeyValue::new(names::ERROR_TYPE, fault.as_str())) {
                    None => self.level.record(elapsed.as_secs_f64(), &[name, level, op]),
                    Some(error) => self.level.record(elapsed.as_secs_f64(), &[name, level, op, error]),
                }
            }
            Event::Load { elapsed, end, .. } => self.load(cache, *elapsed, *end),
            _ => {}
        }
    }

    fn load(&self, cache: &CacheInfo, elapsed: Duration, end: LoadEnd) {
        let name = cache_name(cache);
        match end {
            LoadEnd::Failed(kind) => {
                let failed = KeyValue::new(names::LOAD_RESULT, "failed");
                let error = KeyValue::new(names::ERROR_TYPE, kind.as_str());
                self.load.record(elapsed.as_secs_f64(), &[name, failed, error]);
            }
            end => {
                let end = KeyValue::new(names::LOAD_RESULT, end.as_str());
                self.load.record(elapsed.as_secs_f64(), &[name, end]);
            }
        }
    }
}

type Observe<'a, T> = &'a dyn AsyncInstrument<T>;

/// Registers what is read at collection. The callbacks live as long as the meter provider, the collector does not.
pub(crate) fn observe(meter: &Meter, collector: &Arc<Collector>) {
    let mut register = Register { meter, collector: Arc::downgrade(collector), next: 0 };
    register.counter(names::HITS, "{hit}", "Look-ups served fresh", |name, totals, to| {
        by_verb(name, totals, Outcome::Hit, to);
    });
    register.counter(names::MISSES, "{miss}", "Look-ups that found nothing", |name, totals, to| {
        by_verb(name, totals, Outcome::Miss, to);
    });
    register.counter(names::OPERATIONS, "{operation}", "Calls", |name, totals, to| {
        for (verb, count) in &totals.operations {
            to.observe(*count, &[name.clone(), KeyValue::new(names::CACHE_OPERATION, verb.as_str())]);
        }
    });
    register.counter(names::REQUESTS, "{request}", "Look-ups by who served them and how", requests);
    register.counter(names::LOADS, "{load}", "Loads that ended", |name, totals, to| {
        to.observe(totals.loads, std::slice::from_ref(name));
    });
    register.counter(names::LOAD_ERRORS, "{error}", "Loads that failed", |name, totals, to| {
        to.observe(totals.load_errors, std::slice::from_ref(name));
    });
    register.counter(names::EVICTIONS, "{eviction}", "Entries let go by a level", evictions);
    register.counter(
        names::LEVEL_REQUESTS,
        "{request}",
        "Keys asked of a level by its answer",
        |name, totals, to| {
            for level in &totals.levels {
                let at = KeyValue::new(names::CACHE_LEVEL, Arc::clone(&level.position));
                for (outcome, count) in &level.outcomes {
                    let result = KeyValue::new(names::CACHE_RESULT, outcome.as_str());
                    to.observe(*count, &[name.clone(), at.clone(), result]);
                }
            }
        },
    );
    register.held(names::ENTRY_COUNT, "{entry}", "Entries held", |level| level.entries);
    register.held(names::SIZE, "By", "Bytes held", |level| level.weight);
    register.hit_rate();
}

/// What one instrument reads.
struct Reader {
    collector: Weak<Collector>,
    instrument: u32,
}

impl Reader {
    fn each(&self, mut work: impl FnMut(&KeyValue, &Totals)) {
        let Some(collector) = self.collector.upgrade() else { return };
        for (name, totals) in collector.read(self.instrument).iter() {
            work(&KeyValue::new(names::CACHE_NAME, Arc::clone(name)), totals);
        }
    }
}

struct Register<'a> {
    meter: &'a Meter,
    collector: Weak<Collector>,
    next: u32,
}

impl Register<'_> {
    fn reader(&mut self) -> Reader {
        let instrument = self.next;
        self.next += 1;
        Reader { collector: Weak::clone(&self.collector), instrument }
    }

    fn counter(
        &mut self,
        name: &'static str,
        unit: &'static str,
        description: &'static str,
        report: impl Fn(&KeyValue, &Totals, Observe<'_, u64>) + Send + Sync + 'static,
    ) {
        let reader = self.reader();
        self.meter
            .u64_observable_counter(name)
            .with_unit(unit)
            .with_description(description)
            .with_callback(move |to| reader.each(|name, totals| report(name, totals, to)))
            .build();
    }

    fn held(
        &mut self,
        name: &'static str,
        unit: &'static str,
        description: &'static str,
        read: impl Fn(&crate::totals::Level) -> Option<u64> + Send + Sync + 'static,
    ) {
        let reader = self.reader();
        self.meter
            .i64_observable_up_down_counter(name)
            .with_unit(unit)
            .with_description(description)
            .with_callback(move |to| {
                reader.each(|name, totals| {
                    for level in &totals.levels {
                        if let Some(held) = read(level) {
                            let at = KeyValue::new(names::CACHE_LEVEL, Arc::clone(&level.position));
                            to.observe(i64::try_from(held).unwrap_or(i64::MAX), &[name.clone(), at]);
                        }
                    }
                });
            })
            .build();
    }

    fn hit_rate(&mut self) {
        let reader = self.reader();
        self.meter
            .f64_observable_gauge(names::HIT_RATE)
            .with_description("Hits over look-ups, 0 to 1")
            .with_callback(move |to| {
                reader.each(|name, totals| {
                    if let Some(rate) = totals.hit_rate() {
                        to.observe(rate, std::slice::from_ref(name));
                    }
                });
            })
            .build();
    }
}

fn by_verb(name: &KeyValue, totals: &Totals, outcome: Outcome, to: Observe<'_, u64>) {
    for verb in LOOKUPS {
        let attributes = [name.clone(), KeyValue::new(names::CACHE_OPERATION, verb.as_str())];
        to.observe(totals.outcome(verb, outcome), &attributes);
    }
}

fn requests(name: &KeyValue, totals: &Totals, to: Observe<'_, u64>) {
    let mut sums = std::collections::HashMap::new();
    for ((_, outcome, level), count) in &totals.served {
        *sums.entry((*outcome, *level)).or_insert(0) += count;
    }
    for ((outcome, level), count) in sums {
        // Only what can happen is declared from zero on: no level answers with a miss of the whole cache.
        if count == 0 && level.is_some() != SERVED.contains(&outcome) {
            continue;
        }
        let tier = match level.and_then(|at| totals.levels.get(at)) {
            Some(level) => KeyValue::new(names::CACHE_LEVEL, Arc::clone(&level.position)),
            None => KeyValue::new(names::CACHE_LEVEL, names::NO_LEVEL),
        };
        to.observe(count, &[name.clone(), tier, KeyValue::new(names::CACHE_RESULT, result(outcome))]);
    }
}

fn evictions(name: &KeyValue, totals: &Totals, to: Observe<'_, u64>) {
    // A level that is not in process evicts unseen.
    for level in totals.levels.iter().filter(|level| level.entries.is_some()) {
        let at = KeyValue::new(names::CACHE_LEVEL, Arc::clone(&level.position));
        for (cause, count) in [("expired", level.evicted_expired), ("size", level.evicted_size)] {
            to.observe(count, &[name.clone(), at.clone(), KeyValue::new(names::EVICTION_CAUSE, cause)]);
        }
    }
}
