//! What is read when telemetry collects: the caches' own counters.

use std::{collections::HashMap, sync::Arc};

use cache_core::{Outcome, Verb};
use opentelemetry::{
    KeyValue,
    metrics::{AsyncInstrument, Meter},
};

use crate::{
    Vocabulary,
    collector::{Collector, Source},
    names,
    series::Named,
    totals::{Level, Totals},
    vocabulary::{crud, seeds},
};

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

type Observe<'a, T> = &'a dyn AsyncInstrument<T>;

/// Registers the instruments.
pub(crate) fn register(meter: &Meter, collector: &Arc<Collector>, vocabulary: Vocabulary) {
    let mut of = Register { meter, source: Source::new(collector), next: 0 };
    look_ups(&mut of, vocabulary);
    loads(&mut of);
    invalidations(&mut of);
    levels(&mut of);
}

fn look_ups(of: &mut Register<'_>, vocabulary: Vocabulary) {
    of.counter(names::HITS, "{hit}", "Look-ups served fresh", move |at, totals, to| {
        let by_verb = LOOKUPS.map(|verb| (verb, totals.outcome(verb, Outcome::Hit)));
        verbs(at, vocabulary, by_verb, to);
    });
    of.counter(names::MISSES, "{miss}", "Look-ups that found nothing", move |at, totals, to| {
        let by_verb = LOOKUPS.map(|verb| (verb, totals.outcome(verb, Outcome::Miss)));
        verbs(at, vocabulary, by_verb, to);
    });
    of.counter(names::OPERATIONS, "{operation}", "Calls", move |at, totals, to| {
        verbs(at, vocabulary, totals.operations.iter().map(|(verb, count)| (*verb, *count)), to);
    });
    of.counter(names::REQUESTS, "{request}", "Look-ups by who served them and how", requests);
    of.counter(names::MISS_REASONS, "{miss}", "Look-ups that found nothing, by why", |at, totals, to| {
        for (reason, count) in &totals.misses {
            to.observe(*count, &[at.label.clone(), KeyValue::new(names::MISS_REASON, reason.as_str())]);
        }
    });
    of.counter(names::ERRORS, "{error}", "Calls that ended with an error", |at, totals, to| {
        for (kind, count) in &totals.errors {
            to.observe(*count, &[at.label.clone(), KeyValue::new(names::ERROR_TYPE, kind.as_str())]);
        }
    });
    of.hit_rate();
    of.seconds(names::TIME_SAVED, "Time that loads would have taken, had levels not served", |totals| {
        totals.time_saved.as_secs_f64()
    });
}

fn loads(of: &mut Register<'_>) {
    of.one(names::LOADS, "{load}", "Loads that ended", |totals| totals.loads);
    of.one(names::LOAD_ERRORS, "{error}", "Loads that failed", |totals| totals.load_errors);
    of.one_held(names::LOAD_ACTIVE, "{load}", "Loads under way", |totals| totals.active);
    of.one(names::FILL_OVERTAKEN, "{fill}", "Fills that something newer had overtaken", |totals| {
        totals.overtaken
    });
}

fn invalidations(of: &mut Register<'_>) {
    of.counter(
        names::INVALIDATIONS,
        "{invalidation}",
        "What was invalidated on this node",
        |at, totals, to| {
            for (scope, count) in &totals.invalidations {
                let scope = KeyValue::new(names::INVALIDATION_SCOPE, scope.as_str());
                to.observe(*count, &[at.label.clone(), scope]);
            }
        },
    );
    of.one_held(
        names::JOURNAL_DEPTH,
        "{invalidation}",
        "Invalidations that a level has not acknowledged, or the backplane not taken",
        |totals| totals.pending,
    );
    of.counter(
        names::JOURNAL_VALUES,
        "{value}",
        "Values that a level had not taken, by what became of them",
        |at, totals, to| {
            for (result, count) in [("stored", totals.stored_late), ("lost", totals.values_lost)] {
                to.observe(count, &[at.label.clone(), KeyValue::new(names::JOURNAL_RESULT, result)]);
            }
        },
    );
    of.counter(names::BACKPLANE_MESSAGES, "{message}", "Messages on the backplane", |at, totals, to| {
        let Some(seen) = totals.backplane else { return };
        for (what, count) in [("sent", seen.sent), ("received", seen.received), ("noise", seen.noise)] {
            to.observe(count, &[at.label.clone(), KeyValue::new(names::BACKPLANE_MESSAGE, what)]);
        }
    });
    of.counter(names::BACKPLANE_GAPS, "{gap}", "Times that messages may have been lost", |at, totals, to| {
        if let Some(seen) = totals.backplane {
            to.observe(seen.gaps, std::slice::from_ref(&at.label));
        }
    });
}

fn levels(of: &mut Register<'_>) {
    of.level_counter(
        names::LEVEL_REQUESTS,
        "{request}",
        "Keys asked of a level by its answer",
        |level, put| {
            for (outcome, count) in &level.outcomes {
                put(*count, Some(KeyValue::new(names::CACHE_RESULT, outcome.as_str())));
            }
        },
    );
    of.level_counter(names::LEVEL_ERRORS, "{error}", "Calls to a level that failed", |level, put| {
        // What is in process is not called.
        for (fault, count) in level.faults.iter().filter(|_| level.is_remote) {
            put(*count, Some(KeyValue::new(names::ERROR_TYPE, fault.as_str())));
        }
    });
    of.level_counter(names::UNREADABLE, "{entry}", "Entries that could not be read", |level, put| {
        for (reason, count) in &level.unreadable {
            put(*count, Some(KeyValue::new(names::UNREADABLE_REASON, reason.as_str())));
        }
    });
    of.level_counter(names::UNSENT, "{value}", "Values that were not sent to a level", |level, put| {
        if level.is_remote {
            put(level.too_large, Some(KeyValue::new(names::UNSENT_REASON, "too_large")));
            put(level.not_encoded, Some(KeyValue::new(names::UNSENT_REASON, "not_encoded")));
        }
    });
    of.level_counter(names::EVICTIONS, "{eviction}", "Entries let go by a level", |level, put| {
        // A level that is not in process evicts unseen.
        if level.in_process {
            put(level.evicted_expired, Some(KeyValue::new(names::EVICTION_CAUSE, "expired")));
            put(level.evicted_size, Some(KeyValue::new(names::EVICTION_CAUSE, "size")));
        }
    });
    of.level_counter(
        names::BREAKER_OPENINGS,
        "{opening}",
        "Times that a breaker has opened",
        |level, put| {
            if level.is_remote {
                put(level.openings, None);
            }
        },
    );
    of.level_held(
        names::BREAKER_COUNT,
        "{breaker}",
        "Breakers by the state that they are in",
        |level, put| {
            for (state, count) in level.breakers.iter().filter(|_| level.is_remote) {
                put(*count, Some(KeyValue::new(names::BREAKER_STATE, state.as_str())));
            }
        },
    );
    of.level_held(names::ENTRY_COUNT, "{entry}", "Entries held", |level, put| {
        if let Some(entries) = level.entries {
            put(entries, None);
        }
    });
    of.level_held(names::SIZE, "By", "Bytes held", |level, put| {
        if let Some(weight) = level.weight {
            put(weight, None);
        }
    });
}

/// What one instrument reads.
struct Reader {
    source: Source,
    instrument: u32,
}

impl Reader {
    fn each(&self, mut work: impl FnMut(&Named, &Totals)) {
        let Some(collector) = self.source.collector() else { return };
        for (at, totals) in collector.read(self.instrument).iter() {
            work(at, totals);
        }
    }

    /// Calls `report` for each level with a way to give a count and an attribute more.
    fn each_level(
        &self,
        report: impl Fn(&Level, &mut dyn FnMut(u64, Option<KeyValue>)),
        mut observe: impl FnMut(u64, &[KeyValue]),
    ) {
        self.each(|at, totals| {
            for level in &totals.levels {
                let position = KeyValue::new(names::CACHE_LEVEL, Arc::clone(&level.position));
                report(level, &mut |count, more| match more {
                    Some(more) => observe(count, &[at.label.clone(), position.clone(), more]),
                    None => observe(count, &[at.label.clone(), position.clone()]),
                });
            }
        });
    }
}

struct Register<'a> {
    meter: &'a Meter,
    source: Source,
    next: u32,
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

impl Register<'_> {
    fn reader(&mut self) -> Reader {
        let instrument = self.next;
        self.next += 1;
        Reader { source: self.source.clone(), instrument }
    }

    fn counter(
        &mut self,
        name: &'static str,
        unit: &'static str,
        description: &'static str,
        report: impl Fn(&Named, &Totals, Observe<'_, u64>) + Send + Sync + 'static,
    ) {
        let reader = self.reader();
        self.meter
            .u64_observable_counter(name)
            .with_unit(unit)
            .with_description(description)
            .with_callback(move |to| reader.each(|at, totals| report(at, totals, to)))
            .build();
    }

    /// One number of each cache.
    fn one(
        &mut self,
        name: &'static str,
        unit: &'static str,
        description: &'static str,
        read: impl Fn(&Totals) -> u64 + Send + Sync + 'static,
    ) {
        self.counter(name, unit, description, move |at, totals, to| {
            to.observe(read(totals), std::slice::from_ref(&at.label));
        });
    }

    fn one_held(
        &mut self,
        name: &'static str,
        unit: &'static str,
        description: &'static str,
        read: impl Fn(&Totals) -> u64 + Send + Sync + 'static,
    ) {
        let reader = self.reader();
        self.meter
            .i64_observable_up_down_counter(name)
            .with_unit(unit)
            .with_description(description)
            .with_callback(move |to| {
                reader.each(|at, totals| {
                    to.observe(signed(read(totals)), std::slice::from_ref(&at.label));
                });
            })
            .build();
    }

    fn seconds(
        &mut self,
        name: &'static str,
        description: &'static str,
        read: impl Fn(&Totals) -> f64 + Send + Sync + 'static,
    ) {
        let reader = self.reader();
        self.meter
            .f64_observable_counter(name)
            .with_unit("s")
            .with_description(description)
            .with_callback(move |to| {
                reader.each(|at, totals| to.observe(read(totals), std::slice::from_ref(&at.label)));
            })
            .build();
    }

    fn level_counter(
        &mut self,
        name: &'static str,
        unit: &'static str,
        description: &'static str,
        report: impl Fn(&Level, &mut dyn FnMut(u64, Option<KeyValue>)) + Send + Sync + 'static,
    ) {
        let reader = self.reader();
        self.meter
            .u64_observable_counter(name)
            .with_unit(unit)
            .with_description(description)
            .with_callback(move |to| {
                reader.each_level(&report, |count, attributes| to.observe(count, attributes));
            })
            .build();
    }

    fn level_held(
        &mut self,
        name: &'static str,
        unit: &'static str,
        description: &'static str,
        report: impl Fn(&Level, &mut dyn FnMut(u64, Option<KeyValue>)) + Send + Sync + 'static,
    ) {
        let reader = self.reader();
        self.meter
            .i64_observable_up_down_counter(name)
            .with_unit(unit)
            .with_description(description)
            .with_callback(move |to| {
                reader.each_level(&report, |count, attributes| to.observe(signed(count), attributes));
            })
            .build();
    }

    fn hit_rate(&mut self) {
        let reader = self.reader();
        self.meter
            .f64_observable_gauge(names::HIT_RATE)
            .with_description("Hits over look-ups, 0 to 1")
            .with_callback(move |to| {
                reader.each(|at, totals| {
                    if let Some(rate) = totals.hit_rate() {
                        to.observe(rate, std::slice::from_ref(&at.label));
                    }
                });
            })
            .build();
    }
}

/// Counts by verb, in the words of the vocabulary.
fn verbs(
    at: &Named,
    vocabulary: Vocabulary,
    counts: impl IntoIterator<Item = (Verb, u64)>,
    to: Observe<'_, u64>,
) {
    let operation = |word| KeyValue::new(names::CACHE_OPERATION, word);
    match vocabulary {
        Vocabulary::Today => {
            for (verb, count) in counts {
                to.observe(count, &[at.label.clone(), operation(verb.as_str())]);
            }
        }
        Vocabulary::Seeds => {
            let mut sums: HashMap<&'static str, u64> = HashMap::new();
            for (verb, count) in counts {
                *sums.entry(crud(verb)).or_default() += count;
            }
            let group = KeyValue::new(seeds::GROUP, at.label.value.clone());
            for (word, count) in sums {
                to.observe(count, &[at.label.clone(), operation(word), group.clone()]);
            }
        }
    }
}

fn requests(at: &Named, totals: &Totals, to: Observe<'_, u64>) {
    let mut sums = HashMap::new();
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
        to.observe(count, &[at.label.clone(), tier, KeyValue::new(names::CACHE_RESULT, result(outcome))]);
    }
}
