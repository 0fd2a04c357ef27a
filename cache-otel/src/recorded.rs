//! What is recorded as it happens: histograms of times and sizes.

#[cfg(feature = "tracing")]
use std::time::Instant;
use std::{sync::Arc, time::Duration};

use cache_core::{CacheInfo, Description, Event, LevelFault, LevelOp, LoadEnd};
use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter},
};

#[cfg(feature = "tracing")]
use crate::outages::Outages;
use crate::{
    Vocabulary,
    backlog::Backlog,
    lasting::lasting,
    lately::{Lately, Series, Times},
    names,
    observed::result,
    series::Named,
    status::Timed,
    vocabulary::{crud, seeds},
};

/// From a hit in memory to a source that hangs, in seconds.
const SECONDS: [f64; 22] = [
    1e-6, 2.5e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1,
    0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// From an absence to the largest item that a store takes, in bytes.
const BYTES: [f64; 13] = [
    64.0,
    128.0,
    256.0,
    512.0,
    1024.0,
    2048.0,
    4096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
    16_777_216.0,
];

pub(crate) fn position(cache: &CacheInfo, level: u8) -> KeyValue {
    match cache.levels().get(usize::from(level)) {
        Some(level) => KeyValue::new(names::CACHE_LEVEL, lasting(&level.position)),
        None => KeyValue::new(names::CACHE_LEVEL, names::NO_LEVEL),
    }
}

pub(crate) fn seconds(meter: &Meter, name: &'static str, description: &'static str) -> Histogram<f64> {
    meter
        .f64_histogram(name)
        .with_unit("s")
        .with_description(description)
        .with_boundaries(SECONDS.to_vec())
        .build()
}

pub(crate) fn milliseconds(meter: &Meter, name: &'static str) -> Histogram<f64> {
    // Without a unit, which would end up in the name.
    meter.f64_histogram(name).with_description("Milliseconds").with_boundaries(seeds::BOUNDS.to_vec()).build()
}

fn bytes(meter: &Meter, name: &'static str) -> Histogram<u64> {
    meter
        .u64_histogram(name)
        .with_unit("By")
        .with_description("Size of items as remote levels have them")
        .with_boundaries(BYTES.to_vec())
        .build()
}

/// What differs between vocabularies.
enum Words {
    Today {
        operation: Histogram<f64>,
        db: Histogram<f64>,
    },
    Seeds {
        latency: Histogram<f64>,
        operation: Histogram<f64>,
        redis: Histogram<f64>,
        memcached: Histogram<f64>,
    },
}

/// Histograms, recorded as events come.
pub(crate) struct Recorded {
    backlog: Arc<Backlog>,
    words: Words,
    level: Histogram<f64>,
    load: Histogram<f64>,
    wait: Histogram<f64>,
    lag: Histogram<f64>,
    size: Histogram<u64>,
    advice: Counter<u64>,
    #[cfg(feature = "tracing")]
    outages: Outages,
}

/// Attributes that are always there, and some that may be.
struct Attributes<const N: usize>([KeyValue; N], usize);

impl<const N: usize> Attributes<N> {
    /// Starts with one, repeated to fill the places that are not used.
    fn new(first: &KeyValue) -> Self {
        Self(std::array::from_fn(|_| first.clone()), 1)
    }

    fn with(mut self, next: KeyValue) -> Self {
        if let Some(place) = self.0.get_mut(self.1) {
            *place = next;
            self.1 += 1;
        }
        self
    }

    fn with_some(self, next: Option<KeyValue>) -> Self {
        match next {
            Some(next) => self.with(next),
            None => self,
        }
    }

    fn as_slice(&self) -> &[KeyValue] {
        &self.0[..self.1]
    }
}

fn ms(elapsed: Duration) -> f64 {
    elapsed.as_secs_f64() * 1e3
}

impl Recorded {
    pub(crate) fn new(meter: &Meter, vocabulary: Vocabulary, backlog: Arc<Backlog>) -> Self {
        let words = match vocabulary {
            Vocabulary::Today => Words::Today {
                operation: seconds(
                    meter,
                    names::OPERATION_DURATION,
                    "Time from call to answer; hits in memory are sampled",
                ),
                db: seconds(meter, names::DB_DURATION, "Time that a command to a store took"),
            },
            Vocabulary::Seeds => Words::Seeds {
                latency: milliseconds(meter, seeds::LATENCY),
                operation: milliseconds(meter, seeds::OPERATION_LATENCY),
                redis: milliseconds(meter, seeds::REDIS_LATENCY),
                memcached: milliseconds(meter, seeds::MEMCACHED_LATENCY),
            },
        };
        let size = match vocabulary {
            Vocabulary::Today => names::ITEM_SIZES,
            Vocabulary::Seeds => seeds::VALUE_SIZE,
        };
        Self {
            backlog,
            words,
            level: seconds(meter, names::LEVEL_DURATION, "Time that a level took"),
            load: seconds(meter, names::LOAD_DURATION, "Time that a load took"),
            wait: seconds(meter, names::WAIT_DURATION, "Time that a call waited for another's load"),
            lag: seconds(
                meter,
                names::BACKPLANE_LAG,
                "Time from the sending of a message to its effect here",
            ),
            size: bytes(meter, size),
            advice: meter
                .u64_counter(names::ADVICE)
                .with_unit("{advice}")
                .with_description("Things that an operator may want to put right")
                .build(),
            #[cfg(feature = "tracing")]
            outages: Outages::default(),
        }
    }

    /// What is there from zero on.
    pub(crate) fn declare(&self, at: &Named) {
        self.advice.add(0, std::slice::from_ref(&at.label));
    }

    pub(crate) fn record(&self, cache: &CacheInfo, at: &Arc<Named>, lately: &mut Lately, event: &Event<'_>) {
        match event {
            Event::Operation { .. } => self.operation(cache, at, lately, event),
            #[cfg_attr(not(feature = "tracing"), allow(unused_variables, reason = "of the line alone"))]
            Event::Level { level, op, command, keys, elapsed, fault, error } => {
                self.level(cache, at, lately, (*level, *op, command, *keys), *elapsed, *fault);
                #[cfg(feature = "tracing")]
                if let Some(fault) = fault {
                    self.outages.failed(cache, *level, *fault, *error, Instant::now());
                }
            }
            #[cfg_attr(not(feature = "tracing"), allow(unused_variables, reason = "of the line alone"))]
            Event::Load { elapsed, end, error, .. } => {
                self.load(at, lately, *elapsed, *end);
                #[cfg(feature = "tracing")]
                if let Some(error) = error {
                    self.outages.load_failed(cache, error, Instant::now());
                }
            }
            Event::Coalesced { waited } => {
                self.wait.record(waited.as_secs_f64(), std::slice::from_ref(&at.label));
            }
            Event::BackplaneReceived { lag: Some(lag) } => {
                self.lag.record(lag.as_secs_f64(), std::slice::from_ref(&at.label));
            }
            Event::Advice(text) => self.advise(cache, at, text),
            #[cfg(feature = "tracing")]
            Event::Breaker { level, state } => self.outages.breaker(cache, *level, *state, Instant::now()),
            #[cfg(feature = "tracing")]
            Event::BackplaneDown { error } => self.outages.backplane_down(cache, *error, Instant::now()),
            #[cfg(feature = "tracing")]
            Event::BackplaneUp => self.outages.backplane_up(cache),
            #[cfg(feature = "tracing")]
            Event::TooLarge { level, size, limit } => self.outages.unsent(
                cache,
                *level,
                format_args!("it is {size} bytes, and the level takes {limit} at most (`value_max`)"),
                Instant::now(),
            ),
            #[cfg(feature = "tracing")]
            Event::NotEncoded { level } => {
                let why = format_args!("its codec cannot write it");
                self.outages.unsent(cache, *level, why, Instant::now());
            }
            Event::Items { level, op, bytes } => self.items(cache, at, lately, *level, *op, bytes),
            _ => {}
        }
    }

    fn operation(&self, cache: &CacheInfo, at: &Arc<Named>, lately: &mut Lately, event: &Event<'_>) {
        let Event::Operation { verb, outcome, level, elapsed, error, weight, .. } = event else { return };
        let times =
            lately.latencies.get(*verb, || self.backlog.point(Times { of: Arc::clone(at), verb: *verb }));
        times.record(Timed::new(*elapsed, *weight));
        // Recorded once whatever its weight: to repeat it would cost each hit as much as a record. Samples have a series of
        // their own that says what each stands for: mixed with calls that are all recorded, it would tell of neither.
        match &self.words {
            Words::Today { operation, .. } => {
                let key = (*verb, *outcome, *level, *error, *weight);
                let point = lately.operations.get(key, || {
                    let mut attributes = Attributes::<6>::new(&at.label)
                        .with(KeyValue::new(names::CACHE_OPERATION, verb.as_str()));
                    if let Some(outcome) = outcome {
                        let tier = match level {
                            Some(level) => position(cache, *level),
                            None => KeyValue::new(names::CACHE_LEVEL, names::NO_LEVEL),
                        };
                        attributes =
                            attributes.with(tier).with(KeyValue::new(names::CACHE_RESULT, result(*outcome)));
                    }
                    let error = error.map(|kind| KeyValue::new(names::ERROR_TYPE, kind.as_str()));
                    let weight =
                        (*weight > 1).then(|| KeyValue::new(names::SAMPLE_WEIGHT, i64::from(*weight)));
                    self.backlog.point(Series::new(
                        operation,
                        attributes.with_some(error).with_some(weight).as_slice(),
                    ))
                });
                point.record(elapsed.as_secs_f64());
            }
            Words::Seeds { latency, operation, .. } => {
                let word = crud(*verb);
                latency
                    .record(ms(*elapsed), &[at.label.clone(), KeyValue::new(names::CACHE_OPERATION, word)]);
                let group = KeyValue::new(seeds::GROUP, at.label.value.clone());
                operation.record(ms(*elapsed), &[KeyValue::new(seeds::OPERATION, word), group]);
            }
        }
    }

    fn level(
        &self,
        cache: &CacheInfo,
        at: &Arc<Named>,
        lately: &mut Lately,
        (level, op, command, keys): (u8, LevelOp, &'static str, usize),
        elapsed: Duration,
        fault: Option<LevelFault>,
    ) {
        let error = || fault.map(|fault| KeyValue::new(names::ERROR_TYPE, fault.as_str()));
        let point = lately.levels.get((level, op, fault), || {
            let attributes = Attributes::<4>::new(&at.label)
                .with(position(cache, level))
                .with(KeyValue::new(names::CACHE_OPERATION, op.as_str()))
                .with_some(error());
            self.backlog.point(Series::new(&self.level, attributes.as_slice()))
        });
        point.record(elapsed.as_secs_f64());
        let Some(provider) = cache.levels().get(usize::from(level)).map(|level| &level.provider) else {
            return;
        };
        match &self.words {
            Words::Today { db, .. } => {
                let point = lately.commands.get((level, command, fault), || {
                    let attributes = Attributes::<6>::new(&at.label)
                        .with(KeyValue::new(names::DB_SYSTEM, provider.system))
                        .with(KeyValue::new(names::DB_OPERATION, command))
                        .with_some(address(provider))
                        .with_some(port(provider))
                        .with_some(error());
                    self.backlog.point(Series::new(db, attributes.as_slice()))
                });
                point.record(elapsed.as_secs_f64());
            }
            Words::Seeds { redis, memcached, .. } => {
                let histogram = match provider.system {
                    "redis" => redis,
                    "memcached" => memcached,
                    _ => return,
                };
                let attributes = [
                    KeyValue::new(seeds::OPERATION, command),
                    KeyValue::new(seeds::GROUP, at.label.value.clone()),
                    KeyValue::new(seeds::BATCH, keys > 1),
                ];
                histogram.record(ms(elapsed), &attributes);
            }
        }
    }

    fn advise(&self, cache: &CacheInfo, at: &Named, text: &str) {
        self.advice.add(1, std::slice::from_ref(&at.label));
        #[cfg(feature = "tracing")]
        tracing::warn!(target: "traced_cache::advice", cache = cache.name(), "{text}");
        #[cfg(not(feature = "tracing"))]
        let _ = (cache, text);
    }

    fn load(&self, at: &Arc<Named>, lately: &mut Lately, elapsed: Duration, end: LoadEnd) {
        let point = lately.loads.get(end, || {
            let (word, error) = match end {
                LoadEnd::Failed(kind) => ("failed", Some(KeyValue::new(names::ERROR_TYPE, kind.as_str()))),
                end => (end.as_str(), None),
            };
            let attributes = Attributes::<3>::new(&at.label)
                .with(KeyValue::new(names::LOAD_RESULT, word))
                .with_some(error);
            self.backlog.point(Series::new(&self.load, attributes.as_slice()))
        });
        point.record(elapsed.as_secs_f64());
    }

    fn items(
        &self,
        cache: &CacheInfo,
        at: &Arc<Named>,
        lately: &mut Lately,
        level: u8,
        op: LevelOp,
        bytes: &[usize],
    ) {
        let point = lately.items.get((level, op), || {
            let attributes = Attributes::<3>::new(&at.label);
            let attributes = match &self.words {
                Words::Today { .. } => {
                    let op = KeyValue::new(names::CACHE_OPERATION, op.as_str());
                    attributes.with(position(cache, level)).with(op)
                }
                Words::Seeds { .. } => {
                    let word = if op == LevelOp::Get { "get" } else { "set" };
                    attributes.with(KeyValue::new(names::CACHE_OPERATION, word))
                }
            };
            self.backlog.point(Series::new(&self.size, attributes.as_slice()))
        });
        for bytes in bytes {
            point.record(u64::try_from(*bytes).unwrap_or(u64::MAX));
        }
    }
}

/// `server.address`, where a provider is behind one.
pub(crate) fn address(provider: &Description) -> Option<KeyValue> {
    provider.address.as_ref().map(|address| KeyValue::new(names::SERVER_ADDRESS, lasting(address)))
}

/// `server.port`.
pub(crate) fn port(provider: &Description) -> Option<KeyValue> {
    provider.port.map(|port| KeyValue::new(names::SERVER_PORT, i64::from(port)))
}
