//! One line for a slow command, and not too many of them.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

/// Lines in one second. When everything is slow, ten say so as well as ten thousand.
const A_SECOND: u64 = 10;

/// How many lines this second has seen: its number and the count in one.
#[derive(Default)]
pub(crate) struct Lines(AtomicU64);

impl Lines {
    fn may_write(&self) -> bool {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs() << 16;
        let seen = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |seen| {
            Some(if seen & !0xFFFF == now {
                seen.saturating_add(u64::from(seen & 0xFFFF < 0xFFFF))
            } else {
                now + 1
            })
        });
        match seen {
            Ok(seen) => seen & !0xFFFF != now || seen & 0xFFFF < A_SECOND,
            Err(_) => false,
        }
    }

    pub(crate) fn write(
        &self,
        client: &str,
        operation: &str,
        key: Option<&str>,
        length: usize,
        took: Duration,
    ) {
        if !self.may_write() {
            return;
        }
        // Its length tells a huge key from a usual one, and nothing else of it. Not every command has one.
        let key = key.or_else(|| (length > 0).then_some("***"));
        let key_length = key.map(|_| length);
        let took_ms = took.as_micros() as f64 / 1e3;
        tracing::warn!(
            target: "traced_cache::slow",
            client, operation, key, key_length, took_ms,
            "a slow command"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_ten_lines_a_second() {
        let lines = Lines::default();
        let written = (0..1000).filter(|_| lines.may_write()).count();
        assert!((10..=30).contains(&written), "{written}: over two seconds at most");
    }
}
