//! Random histories of several nodes, against a model of what may be served: promises 1, 2, 3, 7, 9, 10 and 12 of
//! docs/semantics.md, under faults of levels and of the backplane, callers that leave, nodes that come and go, and stores
//! that forget. A history follows from its seed alone: kind and number of nodes, steps, how tasks overtake each other.
//!
//! `HISTORIES=20000 cargo test --release -p cache-core --test histories` runs so many, in a minute, `HISTORIES_FROM` is the
//! first; `HISTORY=17` runs one and prints it. One that fails is made as short as it can be, and printed; the run ends after
//! `HISTORIES_FAILED` of them, 1 unless set.
//!
//! To be read in this order: [`model`], [`steps`], [`calls`], [`run`]; what telemetry has to say of it: [`watch`].

#![allow(clippy::unwrap_used, clippy::panic, reason = "helpers of tests fail their test")]

mod calls;
mod model;
mod node;
mod post;
mod run;
mod shape;
mod shrink;
mod steps;
mod watch;

use std::{panic, str::FromStr};

use run::run;
use shape::Shape;

/// Histories in an ordinary run of the tests.
const HISTORIES: u64 = 250;
const STEPS: usize = 250;

fn setting<T: FromStr>(name: &str) -> Option<T> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Panics that are part of a history are no news.
fn hush() {
    let loud = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        if !info.payload().downcast_ref::<&str>().is_some_and(|text| text.contains("injected panic")) {
            loud(info);
        }
    }));
}

#[test]
fn no_history_breaks_a_promise() {
    hush();
    let one = setting("HISTORY");
    let from = one.or_else(|| setting("HISTORIES_FROM")).unwrap_or(0);
    let count = if one.is_some() { 1 } else { setting("HISTORIES").unwrap_or(HISTORIES) };
    // A long run may go on after the first.
    let most: usize = setting("HISTORIES_FAILED").unwrap_or(1);
    let mut failed = Vec::new();
    for seed in from..from + count {
        let shape = Shape::of(seed);
        let steps = steps::draw(seed, &shape, STEPS);
        let history = run(seed, shape, &steps);
        if one.is_some() {
            println!("{shape:#?}\n{}", history.trace.join("\n"));
        }
        if let Some(wrong) = history.wrong {
            println!("history {seed}: {wrong}\n{}", shrink::report(seed, shape, steps));
            failed.push(format!("history {seed}: {wrong}"));
        }
        if failed.len() >= most {
            break;
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn a_history_is_the_same_each_time() {
    hush();
    for seed in 0..20 {
        let shape = Shape::of(seed);
        let steps = steps::draw(seed, &shape, STEPS);
        let [one, other] = [(), ()].map(|()| run(seed, shape, &steps).trace);
        let differs = one.iter().zip(&other).find(|(one, other)| one != other);
        assert!(differs.is_none() && one.len() == other.len(), "history {seed}: {differs:#?}");
    }
}
