//! Instructions per call, counted by callgrind: they hardly differ from run to run, whatever else the machine does. And how
//! many of them lock a line of memory, which tell more of the time that a call takes.
//!
//! ```text
//! cargo bench -p cache-memory --bench instructions              compares with the figures beside this file
//! cargo bench -p cache-memory --bench instructions -- --accept  writes them anew
//! ```
//! Fails if a figure has grown by more than 5 %, those that lock by half an instruction more. Figures are of one compiler
//! and one kind of processor; with others, and where there is no valgrind or no objdump, there is nothing to compare, and it
//! says so.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::unwrap_used,
    clippy::panic,
    missing_docs,
    reason = "a benchmark for people"
)]

mod locked;

use std::{
    collections::{BTreeMap, HashMap},
    env,
    env::consts::{ARCH, OS},
    fs,
    hint::black_box,
    num::NonZero,
    process::{Command, ExitCode},
    sync::{Arc, Mutex, MutexGuard},
    thread,
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::{BoxError, CacheProvider, Capabilities, Description, Policy, Put, RawKey, TracedCache, ok};
use cache_memory::{Engine, Memory};
use serde::{Deserialize, Serialize};

const FIGURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.json");
/// What a figure may grow by.
const MARGIN: f64 = 1.05;
/// And those that lock beside that: few as they are.
const LOCKED_MARGIN: f64 = 0.5;
/// Calls of the shorter of two runs. Their difference is what is counted, so that setting up is no part of it.
const CALLS: usize = 6_000;
/// Seeds of hashes differ between processes, and with them what falls into one bucket: the least of so many counts.
const RUNS: usize = 3;
const KEYS: usize = 1_000;
/// Keys of a batch. It counts as so many calls.
const BATCH: usize = 100;
const HOUR: Duration = Duration::from_secs(3600);

const ROWS: [&str; 11] = [
    "l1_hit",
    "l1_hit_moka",
    "l1_hit_integer_key",
    "get_or_set_hit",
    "l1_miss",
    "l1_load",
    "l1_set",
    "encode",
    "decode",
    "decode_100",
    "backfill",
];

#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Figures {
    /// Of what compiler, for what processor.
    of: String,
    calls: BTreeMap<String, Count>,
}

/// Of a call, or of a whole run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Count {
    instructions: u64,
    /// Those of this program that lock.
    locked: f64,
}

impl Count {
    fn is_more_than(self, agreed: Self) -> bool {
        ratio(self.instructions, agreed.instructions) > MARGIN
            || self.locked > agreed.locked * MARGIN + LOCKED_MARGIN
    }

    /// Of two counts.
    fn least(self, other: Self) -> Self {
        Self {
            instructions: self.instructions.min(other.instructions),
            locked: self.locked.min(other.locked),
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    if let [work, row, calls] = &args[..]
        && work == "work"
    {
        run(row, calls.parse().unwrap());
        return ExitCode::SUCCESS;
    }
    // `cargo test --benches` asks benches like this, too.
    if !args.iter().any(|arg| arg == "--bench") {
        return ExitCode::SUCCESS;
    }
    for tool in ["valgrind", "objdump"] {
        if Command::new(tool).arg("--version").output().is_err() {
            eprintln!("SKIPPED instructions: {tool} is not installed");
            return ExitCode::SUCCESS;
        }
    }
    let mut now = Figures { of: format!("{}, {ARCH}-{OS}", compiler()), calls: all() };
    if args.iter().any(|arg| arg == "--accept") {
        fs::write(FIGURES, serde_json::to_string_pretty(&now).unwrap() + "\n").unwrap();
        println!("{now:#?}");
        return ExitCode::SUCCESS;
    }
    let agreed: Figures = serde_json::from_str(&fs::read_to_string(FIGURES).unwrap()).unwrap();
    if agreed.of == now.of {
        for (row, count) in &mut now.calls {
            let Some(before) = agreed.calls.get(row) else { continue };
            // Bad luck with seeds does not come three times.
            for _ in 0..2 {
                if count.is_more_than(*before) {
                    *count = per_call(row).least(*count);
                }
            }
        }
    }
    compare(&agreed, &now)
}

fn compare(agreed: &Figures, now: &Figures) -> ExitCode {
    let comparable = agreed.of == now.of;
    if !comparable {
        eprintln!("SKIPPED instructions: the figures are of {}, this is {}", agreed.of, now.of);
    }
    println!("{:<24}{:>20}{:>20}", "instructions per call", "agreed, locked", "now, locked");
    let mut grown = Vec::new();
    for (row, count) in &now.calls {
        let before = agreed.calls.get(row).copied();
        let show = |count: Count| format!("{:>12}{:>8.2}", count.instructions, count.locked);
        println!("  {row:<22}{:>20}{}", before.map_or_else(String::new, show), show(*count));
        if before.is_none_or(|before| count.is_more_than(before)) {
            grown.push(row.as_str());
        }
    }
    if grown.is_empty() || !comparable {
        return ExitCode::SUCCESS;
    }
    eprintln!(
        "instructions: more than agreed, by over 5 %, or by half a locked one more: {}",
        grown.join(", ")
    );
    eprintln!("instructions: find the cause, or say why in the commit that runs it with --accept");
    ExitCode::FAILURE
}

#[allow(clippy::cast_precision_loss, reason = "counts are small")]
fn ratio(now: u64, before: u64) -> f64 {
    now as f64 / before as f64
}

fn compiler() -> String {
    let rustc = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = Command::new(rustc).arg("--version").output().map(|out| out.stdout).unwrap_or_default();
    // "rustc 1.95.0 (59807616e 2026-04-14)"
    let version = String::from_utf8_lossy(&version).into_owned();
    version.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

/// On all processors: what else a machine does is not counted.
fn all() -> BTreeMap<String, Count> {
    let (rows, calls) = (Mutex::new(ROWS.iter()), Mutex::new(BTreeMap::new()));
    let count = || {
        loop {
            let Some(row) = rows.lock().unwrap().next() else { return };
            let count = per_call(row);
            calls.lock().unwrap().insert((*row).to_owned(), count);
        }
    };
    thread::scope(|threads| {
        for _ in 0..thread::available_parallelism().map_or(1, NonZero::get) {
            threads.spawn(count);
        }
    });
    calls.into_inner().unwrap()
}

#[allow(clippy::cast_precision_loss, reason = "counts are small")]
fn per_call(row: &str) -> Count {
    let least = |calls| (0..RUNS).map(|_| counted(row, calls)).reduce(Count::least).unwrap();
    let (more, fewer) = (least(3 * CALLS), least(CALLS));
    let calls = 2 * CALLS as u64;
    let locked = (more.locked - fewer.locked) / calls as f64;
    Count {
        instructions: (more.instructions - fewer.instructions) / calls,
        locked: (locked * 100.0).round() / 100.0,
    }
}

/// Of a whole run.
#[allow(clippy::cast_precision_loss, reason = "counts are small")]
fn counted(row: &str, calls: usize) -> Count {
    let out = tempfile::NamedTempFile::new().unwrap();
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--dump-instr=yes"])
        .arg(format!("--callgrind-out-file={}", out.path().display()))
        .arg(env::current_exe().unwrap())
        .args(["work", row, &calls.to_string()])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // "==4711== Collected : 123456789"
    let count = said.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok());
    let instructions =
        count.unwrap_or_else(|| panic!("callgrind has not said how much it collected: {said}"));
    Count { instructions, locked: locked::sum(&fs::read_to_string(out.path()).unwrap()) as f64 }
}

#[derive(Clone, Serialize, Deserialize)]
struct User {
    id: u64,
    name: String,
    email: String,
    roles: Vec<String>,
    active: bool,
    balance: i64,
}

fn user(id: u64) -> User {
    User {
        id,
        name: format!("Somebody Of {id}"),
        email: format!("somebody.{id}@example.org"),
        roles: vec!["reader".into(), "author".into()],
        active: true,
        balance: 1_234_567,
    }
}

/// A remote store that is here: what the framework itself does on its way there is left to be counted.
#[derive(Default)]
struct Shelf(Mutex<HashMap<Place, Bytes>>);

/// By the hash of a key, which comes with it, and whether it is a mark.
type Place = (u64, bool);

impl Shelf {
    fn items(&self) -> MutexGuard<'_, HashMap<Place, Bytes>> {
        self.0.lock().unwrap()
    }
}

fn place(key: RawKey<'_>) -> Place {
    (key.hash, key.mark)
}

#[async_trait]
impl CacheProvider for Shelf {
    fn capabilities(&self) -> Capabilities {
        Capabilities::remote()
    }

    fn describe(&self) -> Description {
        Description::local("shelf")
    }

    async fn get_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<Option<Bytes>, BoxError>> {
        let items = self.items();
        keys.iter().map(|key| Ok(items.get(&place(*key)).cloned())).collect()
    }

    async fn put_many(&self, items: &[Put<'_>]) -> Vec<Result<(), BoxError>> {
        self.items().extend(items.iter().map(|item| (place(item.key), item.bytes.clone())));
        items.iter().map(|_| Ok(())).collect()
    }

    async fn remove_many(&self, keys: &[RawKey<'_>]) -> Vec<Result<(), BoxError>> {
        keys.iter().map(|_| Ok(())).collect()
    }
}

#[tokio::main(flavor = "current_thread")]
async fn run(row: &str, calls: usize) {
    let engine = if row == "l1_hit_moka" { Engine::Moka } else { Engine::Quick };
    let near = TracedCache::builder("near").level(Memory::entries(16 * KEYS as u64).engine(engine));
    let near: TracedCache<User> = near.policy(Policy::ttl(HOUR)).build().unwrap();
    let shelf: Arc<dyn CacheProvider> = Arc::new(Shelf::default());
    let far = TracedCache::builder("far").level(Arc::clone(&shelf));
    let far: TracedCache<User> = far.policy(Policy::ttl(HOUR)).build().unwrap();
    let keys: Vec<String> = (0..KEYS).map(|n| format!("user:{n:016}")).collect();
    let users: Vec<Arc<User>> = (0..KEYS).map(|n| Arc::new(user(n as u64))).collect();
    for (n, (key, user)) in keys.iter().zip(&users).enumerate() {
        let _ = near.set(key, Arc::clone(user)).await.unwrap();
        let _ = near.set(n as u64, Arc::clone(user)).await.unwrap();
    }
    let _ = far.set("one", Arc::clone(&users[7])).await.unwrap();
    let batch = &keys[..BATCH];
    let _ = far.set_many(batch.iter().zip(users.iter().map(Arc::clone))).await.unwrap();
    if row == "decode_100" {
        for _ in 0..calls / BATCH {
            let found = black_box(far.get_many(batch).await.unwrap());
            assert!(found.iter().all(Option::is_some));
        }
        return;
    }
    if row == "backfill" {
        let _ = far.set_many(keys.iter().zip(users.iter().map(Arc::clone))).await.unwrap();
        for _ in 0..calls / KEYS {
            // Its memory is empty. What building it takes is divided by a thousand.
            let both = TracedCache::builder("far")
                .level(Memory::entries(16 * KEYS as u64))
                .level(Arc::clone(&shelf));
            let both: TracedCache<User> = both.policy(Policy::ttl(HOUR)).build().unwrap();
            for key in &keys {
                assert!(black_box(both.get(key).await.unwrap()).is_some());
            }
        }
        return;
    }
    for n in 0..calls {
        let at = n % KEYS;
        let key = &keys[at];
        match row {
            "l1_hit" | "l1_hit_moka" => assert!(black_box(near.get(key).await.unwrap()).is_some()),
            "l1_hit_integer_key" => assert!(black_box(near.get(at as u64).await.unwrap()).is_some()),
            "get_or_set_hit" => {
                let load = |(), _| async { ok(user(0)) };
                drop(black_box(near.get_or_set_with(key, &(), load).await.unwrap()));
            }
            "l1_miss" => assert!(black_box(near.get((KEYS + at) as u64).await.unwrap()).is_none()),
            "l1_load" => {
                let load = |user, _| async move { ok(user) };
                drop(black_box(near.get_or_set_with((KEYS + n) as u64, &users[at], load).await.unwrap()));
            }
            "l1_set" => drop(black_box(near.set(key, Arc::clone(&users[at])).await.unwrap())),
            "encode" => drop(black_box(far.set(key, Arc::clone(&users[at])).await.unwrap())),
            "decode" => assert!(black_box(far.get("one").await.unwrap()).is_some()),
            _ => panic!("there is no row {row}"),
        }
    }
}
