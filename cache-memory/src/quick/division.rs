//! How a store is divided into parts.

use std::{num::NonZeroUsize, thread};

use crate::engine::Settings;

/// A part never holds fewer entries than this, if there are several: the fewer, the more unevenly parts fill.
const LEAST_ENTRIES: u64 = 512;
/// Parts of a large store hold about as many. Looking through one takes some tens of microseconds.
const MOST_ENTRIES: u64 = 4096;
/// The same in bytes. The lower bound is also one for the heaviest entry.
const LEAST_BYTES: u64 = 4 << 20;
const MOST_BYTES: u64 = 64 << 20;
/// Parts are there before their entries are: 256 bytes each, so that a bound which is none costs 16 MiB. Larger parts are
/// only slower to look through.
const MOST_PARTS: u64 = 1 << 16;
/// What an entry is taken to weigh where nothing is known. Only the memory of what has left depends on it.
const USUAL_WEIGHT: u64 = 1024;
/// Share of a part for what is asked for more than once. One entry cannot be heavier than it.
pub(super) const HOT: f64 = 0.9;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Division {
    /// A power of two.
    pub(super) parts: u64,
    /// Of one part, in entries or bytes.
    pub(super) room: u64,
    /// About how many entries that is.
    pub(super) entries: u64,
}

impl Division {
    pub(super) fn of(settings: Settings) -> Self {
        let threads = thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self::on(settings, u64::try_from(threads).unwrap_or(1))
    }

    fn on(settings: Settings, threads: u64) -> Self {
        let capacity = settings.capacity;
        let (least, most, weight) = match settings.weighs {
            true => (LEAST_BYTES, MOST_BYTES, USUAL_WEIGHT),
            false => (LEAST_ENTRIES, MOST_ENTRIES, 1),
        };
        let wanted = (4 * threads).max(capacity / most).min(capacity / least).clamp(1, MOST_PARTS);
        let parts = 1 << wanted.ilog2();
        // Rounded down, so that the whole stays within its bound.
        let room = capacity / parts;
        Self { parts, room, entries: room / weight }
    }

    /// The heaviest entry that stays.
    #[allow(
        clippy::cast_precision_loss,
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "quick_cache counts like this"
    )]
    pub(super) fn heaviest(self) -> u64 {
        (self.room as f64 * HOT) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Engine;

    fn division(capacity: u64, weighs: bool, threads: u64) -> Division {
        Division::on(Settings { engine: Engine::Quick, capacity, weighs, engine_expiry: true }, threads)
    }

    #[test]
    fn small_stores_are_whole_and_large_ones_have_small_parts() {
        for (capacity, threads, parts) in [
            (1, 64, 1),
            (1023, 64, 1),
            (4096, 2, 8),
            (4096, 64, 8),
            (1_000_000, 2, 128),
            (10_000_000, 2, 2048),
        ] {
            let division = division(capacity, false, threads);
            assert_eq!(division.parts, parts, "{capacity} entries, {threads} threads");
            assert!(division.parts * division.room <= capacity);
        }
        for weighs in [false, true] {
            assert_eq!(division(u64::MAX, weighs, 2).parts, MOST_PARTS);
        }
        assert_eq!(division(1 << 20, true, 64).parts, 1);
        assert_eq!(division(64 << 20, true, 2).parts, 8);
        assert_eq!(division(64 << 30, true, 2).parts, 1024);
        assert!(division(1 << 30, true, 64).heaviest() > 3_500_000);
    }
}
