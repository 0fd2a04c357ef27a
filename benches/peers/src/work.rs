//! What is cached, and what is asked for.

use serde::{Deserialize, Serialize};

pub const KEYS: usize = 10_000;

/// 155 bytes of JSON or so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct User {
    pub id: u64,
    pub name: String,
    pub email: String,
    pub roles: Vec<String>,
    pub active: bool,
    pub balance: i64,
}

impl User {
    pub fn of(key: &str) -> Self {
        let id = key.bytes().fold(0, |id, byte| id * 31 % 1_000_003 + u64::from(byte));
        Self {
            id,
            name: format!("Somebody Of {id}"),
            email: format!("somebody.{id}@example.org"),
            roles: vec!["reader".into(), "author".into()],
            active: true,
            balance: 1_234_567,
        }
    }

    pub fn json(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("it is made of strings and numbers")
    }
}

pub fn decode(bytes: &[u8]) -> User {
    serde_json::from_slice(bytes).expect("this program has written it")
}

/// 21 bytes each.
pub fn keys(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{prefix}:{n:0width$}", width = 20 - prefix.len())).collect()
}

/// A raw client's key, with as long a name in front as our caches have.
pub fn raw_key(key: &str) -> String {
    format!("plain:{key}")
}

/// In an order that has nothing to do with theirs, the same in every run.
pub fn shuffled(mut keys: Vec<String>) -> Vec<String> {
    let mut dice = Dice::new(0);
    for at in (1..keys.len()).rev() {
        keys.swap(at, (dice.next() * (at + 1) as f64) as usize);
    }
    keys
}

/// Reads of 10,000 keys with the skew of Zipf's law (exponent 0.99), each thread's in an order of its own.
pub struct Reads {
    keys: Vec<String>,
    order: Vec<Vec<u32>>,
}

impl Reads {
    pub fn new(count: usize, threads: usize) -> &'static Self {
        let mut sums = Vec::with_capacity(KEYS);
        let mut sum = 0.0;
        for rank in 1..=KEYS {
            sum += (rank as f64).powf(-0.99);
            sums.push(sum);
        }
        let order = (0..threads)
            .map(|thread| {
                let mut dice = Dice::new(thread as u64);
                (0..count).map(|_| sums.partition_point(|s| *s < dice.next() * sum) as u32).collect()
            })
            .collect();
        // Rows borrow it for as long as the program runs.
        Box::leak(Box::new(Self { keys: keys("user", KEYS), order }))
    }

    pub fn keys(&self) -> &[String] {
        &self.keys
    }

    pub fn of(&'static self, thread: usize) -> impl ExactSizeIterator<Item = &'static String> + Clone {
        self.order[thread].iter().map(|at| &self.keys[*at as usize])
    }
}

/// splitmix64: the same draws in every run.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(0x9E37_79B9 + seed)
    }

    /// From 0, and below 1.
    pub fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
