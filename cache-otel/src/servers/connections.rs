//! The connections of providers themselves, by the conventions for clients.

use std::{
    collections::BTreeMap,
    sync::{Mutex, Weak},
};

use cache_core::PoolStatus;
use opentelemetry::{
    KeyValue,
    metrics::{Counter, Histogram, Meter},
};

use super::{All, lock};
use crate::{names, pools};

/// What connections have come to: told as it grows, to instruments that raw clients have as well.
pub(super) struct Connections {
    create: Histogram<f64>,
    timeouts: Counter<u64>,
    errors: Counter<u64>,
    /// What has been told, by the provider's name.
    told: BTreeMap<String, PoolStatus>,
}

/// One of a pool's numbers, and the state of the connections that it counts.
type Number = (fn(&PoolStatus) -> u64, Option<&'static str>);

impl Connections {
    pub(super) fn new(meter: &Meter, all: &Weak<Mutex<All>>) -> Self {
        let observe = |metric: pools::Named, numbers: &'static [Number]| {
            let all = Weak::clone(all);
            pools::observed(meter, metric, move |to| {
                let Some(all) = all.upgrade() else { return };
                for (name, pool) in &lock(&all).pools {
                    for (number, state) in numbers {
                        let state = state.map(|state| KeyValue::new(pools::STATE, state));
                        let labels: Vec<_> = [named(name)].into_iter().chain(state).collect();
                        to.observe(i64::try_from(number(pool)).unwrap_or(i64::MAX), &labels);
                    }
                }
            });
        };
        observe(pools::COUNT, &[(|pool| pool.used, Some("used")), (|pool| pool.idle, Some("idle"))]);
        observe(pools::MAX, &[(|pool| pool.max, None)]);
        observe(pools::PENDING, &[(|pool| pool.pending, None)]);
        Self {
            create: pools::create_time(meter),
            timeouts: pools::timeouts(meter),
            errors: pools::errors(meter, pools::ERRORS),
            told: BTreeMap::new(),
        }
    }

    /// Tells what is new.
    pub(super) fn hear(&mut self, pools: BTreeMap<String, PoolStatus>) {
        for (name, now) in &pools {
            let before = self.told.get(name).cloned().unwrap_or_default();
            let pool = named(name);
            self.timeouts.add(more(now.timeouts, before.timeouts), std::slice::from_ref(&pool));
            for (class, more) in [
                ("connection", more(now.errors, before.errors)),
                ("timeout", more(now.timeouts, before.timeouts)),
            ] {
                self.errors.add(more, &[pool.clone(), KeyValue::new(names::ERROR_TYPE, class)]);
            }
            // Of more than it remembers, the others are not known.
            let made = usize::try_from(more(now.made, before.made)).unwrap_or(usize::MAX);
            for took in now.made_in.iter().rev().take(made) {
                self.create.record(took.as_secs_f64(), std::slice::from_ref(&pool));
            }
        }
        self.told.extend(pools);
    }
}

/// Another provider of that name begins at zero.
fn more(now: u64, before: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

fn named(name: &str) -> KeyValue {
    KeyValue::new(pools::POOL_NAME, name.to_owned())
}
