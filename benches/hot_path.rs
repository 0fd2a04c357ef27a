//! What a hit at the nearest level costs over a raw `moka` get, as ratios of medians over interleaved rounds:
//! `cargo bench --bench hot_path`. Ratios travel between machines; nanoseconds do not.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    missing_docs,
    reason = "a benchmark for people"
)]

use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt;
use traced_cache::{Memory, Observer, Policy, TracedCache, ok};

const KEYS: usize = 10_000;
const READS: usize = 200_000;
const ROUNDS: usize = 15;
const HOUR: Duration = Duration::from_secs(3600);

struct Hour;
impl moka::Expiry<String, Arc<String>> for Hour {
    fn expire_after_create(&self, _: &String, _: &Arc<String>, _: Instant) -> Option<Duration> {
        Some(HOUR)
    }
}

/// Hears everything and does nothing: what asking an observer costs.
struct Quiet;
impl Observer for Quiet {}

fn cache(engine_expiry: bool, observed: bool) -> TracedCache<String> {
    let builder = TracedCache::builder("bench")
        .level(Memory::entries(2 * KEYS as u64).engine_expiry(engine_expiry))
        .policy(Policy::ttl(HOUR));
    if observed { builder.observer(Quiet) } else { builder }.build().unwrap()
}

fn main() {
    let keys: Vec<String> = (0..KEYS).map(|n| format!("user:{n:016}")).collect();
    // Roughly Zipf: rank = KEYS to the power of a uniform draw.
    let reads: Vec<usize> =
        (0..READS).map(|_| (((KEYS as f64).powf(fastrand::f64()) - 1.0) as usize).min(KEYS - 1)).collect();
    let raw = moka::sync::Cache::builder()
        .max_capacity(2 * KEYS as u64)
        .expire_after(Hour)
        .build_with_hasher(foldhash::fast::RandomState::default());
    let (expiring, plain, observed) = (cache(true, false), cache(false, false), cache(false, true));
    for key in &keys {
        raw.insert(key.clone(), Arc::new(key.clone()));
        for cache in [&expiring, &plain, &observed] {
            let _ = cache.set(key.as_str(), key.clone()).now_or_never().unwrap().unwrap();
        }
    }
    let state = Arc::new(());
    let get = |cache: &TracedCache<String>, key: &str| cache.get(key).now_or_never().unwrap().unwrap();
    type Row<'a> = (&'static str, Box<dyn Fn(&str) + 'a>);
    let rows: Vec<Row<'_>> = vec![
        ("raw moka get with expiry", Box::new(|key| drop(black_box(raw.get(key))))),
        ("get, engine expiry", Box::new(|key| drop(black_box(get(&expiring, key))))),
        ("get, no engine expiry", Box::new(|key| drop(black_box(get(&plain, key))))),
        ("get, observed", Box::new(|key| drop(black_box(get(&observed, key))))),
        (
            "get_or_set_with",
            Box::new(|key| {
                let loaded = plain.get_or_set_with(key, &state, |_, key| async move { ok(key) });
                drop(black_box(loaded.now_or_never().unwrap().unwrap()));
            }),
        ),
    ];
    let mut nanos = vec![Vec::with_capacity(ROUNDS); rows.len()];
    for round in 0..ROUNDS {
        for at in 0..rows.len() {
            // Every other round backwards, so that no row always follows the same one.
            let at = if round % 2 == 0 { at } else { rows.len() - 1 - at };
            let started = Instant::now();
            for read in &reads {
                rows[at].1(&keys[*read]);
            }
            nanos[at].push(started.elapsed().as_nanos() as f64 / READS as f64);
        }
    }
    println!("{:<28}{:>12}{:>18}", "row", "median ns", "over raw moka");
    for (at, (name, _)) in rows.iter().enumerate() {
        let mut ratios: Vec<f64> = nanos[at].iter().zip(&nanos[0]).map(|(own, raw)| own / raw).collect();
        let mut own = nanos[at].clone();
        own.sort_by(f64::total_cmp);
        ratios.sort_by(f64::total_cmp);
        println!("{name:<28}{:>12.0}{:>18.2}", own[ROUNDS / 2], ratios[ROUNDS / 2]);
    }
}
