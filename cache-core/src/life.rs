//! Lengths of time in four bytes.

use crate::Moment;

/// Eight digits and a power of ten of nanoseconds. Exact for what people write, `90s` or `1.5h`; what has more digits is
/// rounded down, by less than a ten-millionth of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Life(u32);

const DIGITS: u64 = 100_000_000;
const SHIFT: u32 = 27;
const FOREVER: Life = Life(u32::MAX);

impl Life {
    /// From one moment to a later one; to an earlier one it is nothing.
    pub(crate) fn between(from: Moment, to: Moment) -> Self {
        if to == Moment::NEVER {
            return FOREVER;
        }
        let mut digits = to.as_nanos().saturating_sub(from.as_nanos());
        let mut power = 0;
        while digits >= DIGITS {
            digits /= 10;
            power += 1;
        }
        // Below 2^27, so it always fits.
        u32::try_from(digits).map_or(FOREVER, |digits| Self(power << SHIFT | digits))
    }

    /// Its end, for one that begins at `from`.
    pub(crate) fn end(self, from: Moment) -> Moment {
        if self == FOREVER {
            return Moment::NEVER;
        }
        let digits = u64::from(self.0 & ((1 << SHIFT) - 1));
        Moment::from_nanos(from.as_nanos().saturating_add(digits * 10u64.pow(self.0 >> SHIFT)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn there_and_back(nanos: u64) -> u64 {
        let from = Moment::from_nanos(1_000_000_000_000_000_007);
        let to = Moment::from_nanos(from.as_nanos() + nanos);
        Life::between(from, to).end(from).as_nanos() - from.as_nanos()
    }

    #[test]
    fn t1_what_people_write_is_exact() {
        for nanos in [0, 1, 99_999_999] {
            assert_eq!(there_and_back(nanos), nanos);
        }
        for exact in [
            Duration::from_micros(1),
            Duration::from_millis(250),
            Duration::from_secs(100) - Duration::from_millis(1),
            Duration::from_secs(36 * 3600) + Duration::from_secs(1),
            Duration::from_secs(365 * 86_400),
        ] {
            let nanos = u64::try_from(exact.as_nanos()).unwrap();
            assert_eq!(there_and_back(nanos), nanos, "{exact:?}");
        }
    }

    #[test]
    fn t3_the_rest_loses_less_than_a_ten_millionth_and_never_grows() {
        let mut nanos = 1;
        while let Some(more) = u64::checked_mul(nanos, 3) {
            nanos = more + 1;
            if nanos > 1 << 62 {
                break;
            }
            let back = there_and_back(nanos);
            assert!(back <= nanos && nanos - back <= nanos / 10_000_000, "{nanos}: {back}");
        }
    }

    #[test]
    fn t4_the_ends_of_time() {
        let now = Moment::from_nanos(u64::MAX - 5);
        assert_eq!(Life::between(now, Moment::NEVER).end(now), Moment::NEVER);
        assert_eq!(Life::between(now, Moment::ORIGIN).end(now), now);
        assert_eq!(Life::between(Moment::ORIGIN, now).end(now), Moment::NEVER);
    }
}
