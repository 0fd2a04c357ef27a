//! How near the page's estimate of hit rates at other sizes comes to the truth, on a recorded trace:
//!
//! ```text
//! cargo run --release -p cache-page --example estimate -- FILE --capacity 1000
//! ```
#![allow(clippy::print_stdout, reason = "an example prints")]

use std::{path::PathBuf, time::Duration};

use cache_core::{BoxError, CacheId, Policy, RawKey, TracedCache, ok};
use cache_memory::{Engine, Memory};
use cache_page::estimate::{Estimator, FACTORS, Life, Tally, place};
use cache_replay::{Keys, Trace};
use clap::Parser;

/// Compares estimated hit rates with those of real caches.
#[derive(Debug, Parser)]
struct Options {
    /// A recorded trace: one key a line or big-endian 32-bit integers; plain, gzip or xz
    file: PathBuf,
    /// Entries of the memory that there is
    #[arg(long, default_values_t = [1000u64, 4000, 16_000])]
    capacity: Vec<u64>,
    /// The real one is on moka
    #[arg(long)]
    moka: bool,
}

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    let Options { file, capacity, moka } = Options::parse();
    let keys = keys(&file)?;
    println!("{} look-ups", keys.len());
    println!(
        "{:>9} {:>7} {:>8} {:>10} {:>8} {:>8}",
        "capacity", "share", "memory", "estimated", "real", "error"
    );
    for capacity in capacity {
        let mut estimator = Estimator::new(capacity);
        let mut tally = Tally::default();
        for key in &keys {
            let key = RawKey::new(CacheId(1), "trace", key);
            if let Some(hits) = estimator.asked(place(1, key.hash), Duration::ZERO, Life::UNLIMITED) {
                tally.add(hits);
            }
        }
        tally.expect(keys.len() as u64, estimator.share());
        let rates = tally.rates().ok_or("too few look-ups to say anything")?;
        for (factor, estimated) in FACTORS.into_iter().zip(rates) {
            #[allow(
                clippy::cast_precision_loss,
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "small"
            )]
            let real = real((capacity as f64 * factor) as u64, moka, &keys).await?;
            println!(
                "{capacity:>9} {:>6.1}% {factor:>7}x {:>9.2}% {:>7.2}% {:>+7.2}%",
                estimator.share() * 100.0,
                estimated * 100.0,
                real * 100.0,
                (estimated - real) * 100.0
            );
        }
    }
    Ok(())
}

fn keys(file: &std::path::Path) -> Result<Vec<String>, BoxError> {
    let mut trace = Trace::open(file, None)?;
    let mut all = Vec::new();
    while let Some(keys) = trace.next()? {
        match keys {
            Keys::Integers(numbers) => all.extend(numbers.iter().map(ToString::to_string)),
            Keys::Lines(lines) => all.extend(lines.iter().map(str::to_owned)),
            _ => return Err("a trace of another form".into()),
        }
    }
    Ok(all)
}

async fn real(capacity: u64, moka: bool, keys: &[String]) -> Result<f64, BoxError> {
    let engine = if moka { Engine::Moka } else { Engine::Quick };
    let cache: TracedCache<()> = TracedCache::builder("real")
        .level(Memory::entries(capacity).engine(engine))
        .policy(Policy::ttl(Duration::MAX))
        .build()?;
    for key in keys {
        cache.get_or_set(key, || async { ok(()) }).await?;
    }
    cache.stats().hit_rate().ok_or_else(|| "no look-ups".into())
}
