//! Which airports are asked for, in which order.

use std::{collections::HashMap, path::Path, sync::Arc};

use cache_replay::{Keys as Piece, Trace, TraceError};
use traced_cache::BoxError;

/// Codes, one after the other.
pub(crate) enum Keys {
    Zipf {
        codes: Vec<Arc<str>>,
        sums: Vec<f64>,
        draws: fastrand::Rng,
    },
    Traced {
        codes: Vec<Arc<str>>,
        trace: Trace,
        known: HashMap<String, usize>,
        piece: std::vec::IntoIter<usize>,
    },
}

impl Keys {
    /// Without end; the first codes are asked for most.
    pub(crate) fn zipf(exponent: f64, seed: u64, codes: Vec<Arc<str>>) -> Self {
        let mut sum = 0.0;
        let sums = (1..=codes.len())
            .map(|rank| {
                #[allow(clippy::cast_precision_loss, reason = "some thousands")]
                let weight = (rank as f64).powf(-exponent);
                sum += weight;
                sum
            })
            .collect();
        Self::Zipf { codes, sums, draws: fastrand::Rng::with_seed(seed) }
    }

    /// In the order of a trace; the first key of it that is new stands for the first code, and so on, around.
    pub(crate) fn traced(file: &Path, codes: Vec<Arc<str>>) -> Result<Self, TraceError> {
        let trace = Trace::open(file, None)?;
        Ok(Self::Traced { codes, trace, known: HashMap::new(), piece: Vec::new().into_iter() })
    }

    /// The next one; `None` at the end of a trace.
    pub(crate) fn next(&mut self) -> Result<Option<Arc<str>>, BoxError> {
        match self {
            Self::Zipf { codes, sums, draws } => {
                let draw = draws.f64() * sums.last().copied().unwrap_or_default();
                let rank = sums.partition_point(|sum| *sum <= draw).min(codes.len() - 1);
                Ok(Some(Arc::clone(&codes[rank])))
            }
            Self::Traced { codes, trace, known, piece } => loop {
                if let Some(at) = piece.next() {
                    return Ok(Some(Arc::clone(&codes[at % codes.len()])));
                }
                let Some(keys) = trace.next()? else { return Ok(None) };
                let mut number = |key: String| {
                    let next = known.len();
                    *known.entry(key).or_insert(next)
                };
                let all: Vec<usize> = match &keys {
                    Piece::Integers(all) => all.iter().map(|key| number(key.to_string())).collect(),
                    Piece::Lines(all) => all.iter().map(|key| number(key.to_owned())).collect(),
                    _ => return Err("keys of this form are not known here".into()),
                };
                *piece = all.into_iter();
            },
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    fn codes(count: usize) -> Vec<Arc<str>> {
        (0..count).map(|n| n.to_string().into()).collect()
    }

    fn counts(exponent: f64) -> Vec<usize> {
        let mut keys = Keys::zipf(exponent, 7, codes(100));
        let mut counts = vec![0; 100];
        for _ in 0..100_000 {
            counts[keys.next().unwrap().unwrap().parse::<usize>().unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn ranks_have_their_shares() {
        let even = counts(0.0);
        assert!(even.iter().all(|count| (800..1200).contains(count)), "{even:?}");
        // The first has 1 / (1 + 1/2 + ... + 1/100), the tenth a tenth of that.
        let uneven = counts(1.0);
        assert!((18_500..20_000).contains(&uneven[0]) && (1_700..2_200).contains(&uneven[9]), "{uneven:?}");
    }

    #[test]
    fn a_trace_is_asked_for_in_its_order_and_ends() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "x\ny\nx\nz\nw\n").unwrap();
        let mut keys = Keys::traced(file.path(), codes(3)).unwrap();
        let mut all = Vec::new();
        while let Some(code) = keys.next().unwrap() {
            all.push(code.to_string());
        }
        assert_eq!(all, ["0", "1", "0", "2", "0"]);
    }
}
