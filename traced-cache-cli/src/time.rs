//! Lengths of time as people read them.

use std::time::Duration;

/// Longer than anybody waits, and within the range of every clock.
pub(crate) const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// The two largest parts at most: `1h 30m`, `12s`, `250ms`. `Duration::MAX` is `forever`.
pub(crate) fn short(time: Duration) -> String {
    if time == Duration::MAX {
        return "forever".to_owned();
    }
    let rounded = match time {
        _ if time >= Duration::from_secs(1) => Duration::from_secs(time.as_secs()),
        _ if time >= Duration::from_millis(1) => Duration::from_millis(u64::from(time.subsec_millis())),
        _ => Duration::from_micros(u64::from(time.subsec_micros())),
    };
    let text = humantime::format_duration(rounded).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// For programs: seconds, or nothing for `Duration::MAX`.
pub(crate) fn seconds(time: Duration) -> Option<f64> {
    (time != Duration::MAX).then_some(time.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_parts_are_enough() {
        for (time, text) in [
            (Duration::ZERO, "0s"),
            (Duration::from_micros(1_500), "1ms"),
            (Duration::from_micros(15), "15us"),
            (Duration::from_millis(59_999), "59s"),
            (Duration::from_secs(3 * 3600 + 62), "3h 1m"),
            (Duration::MAX, "forever"),
        ] {
            assert_eq!(short(time), text);
        }
    }
}
