//! Interleaved rounds. The machine is shared and its speed wanders; what two rows cost in one round is comparable, what they
//! cost in different ones is not. So a ratio is the median of the rounds' ratios.

use std::collections::BTreeMap;

use serde::Serialize;

/// A way to do something, timed anew in every round.
pub struct Row {
    pub name: &'static str,
    /// Nanoseconds per operation.
    pub time: Box<dyn FnMut() -> f64>,
}

impl Row {
    pub fn new(name: &'static str, time: impl FnMut() -> f64 + 'static) -> Self {
        Self { name, time: Box::new(time) }
    }
}

/// The rows of one table, as timed.
#[derive(Serialize)]
pub struct Timed {
    pub name: &'static str,
    /// The row that the others are compared with.
    pub base: &'static str,
    pub rows: BTreeMap<&'static str, Vec<f64>>,
    #[serde(skip)]
    order: Vec<&'static str>,
}

impl Timed {
    /// Runs all rows in turn, every other round backwards, so that no row always follows the same one. Each runs twice, of
    /// which the second counts: what the CPU still has in its caches, and the server's, is then the row's own. Left by its
    /// neighbour it was worth an eighth, to those whose neighbours read the same keys. A round before the first is not counted.
    pub fn run(name: &'static str, base: &'static str, rounds: usize, mut rows: Vec<Row>) -> Self {
        eprint!("{name}:");
        let order: Vec<_> = rows.iter().map(|row| row.name).collect();
        let mut nanos: BTreeMap<_, Vec<f64>> = order.iter().map(|name| (*name, Vec::new())).collect();
        for round in 0..=rounds {
            let count = rows.len();
            for at in 0..count {
                let at = if round % 2 == 0 { at } else { count - 1 - at };
                let row = &mut rows[at];
                (row.time)();
                let took = (row.time)();
                if round > 0 {
                    nanos.get_mut(row.name).expect("every row has a place").push(took);
                }
            }
            eprint!(" {round}");
        }
        eprintln!();
        Self { name, base, rows: nanos, order }
    }

    /// The median of the rounds' ratios of two rows.
    pub fn ratio(&self, over: &str, under: &str) -> f64 {
        median(self.rows[over].iter().zip(&self.rows[under]).map(|(a, b)| a / b))
    }

    pub fn median(&self, row: &str) -> f64 {
        median(self.rows[row].iter().copied())
    }

    pub fn order(&self) -> &[&'static str] {
        &self.order
    }

    /// Of these rows, the one with the lowest median.
    pub fn fastest(&self, among: &[&'static str]) -> &'static str {
        among.iter().min_by(|a, b| self.median(a).total_cmp(&self.median(b))).expect("there is at least one")
    }
}

pub fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<_> = values.collect();
    all.sort_by(f64::total_cmp);
    if all.len() % 2 == 1 { all[all.len() / 2] } else { (all[all.len() / 2 - 1] + all[all.len() / 2]) / 2.0 }
}
