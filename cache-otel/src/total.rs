//! A server's count, as it is reported.

/// A server that begins anew counts from zero, but what is reported never goes back: the SDK subtracts.
#[derive(Default)]
pub(crate) struct Total {
    /// What the server said last.
    last: u64,
    sum: u64,
}

impl Total {
    /// The server says so now.
    pub(crate) fn hear(&mut self, now: u64) {
        self.sum = self.sum.saturating_add(now.checked_sub(self.last).unwrap_or(now));
        self.last = now;
    }

    pub(crate) fn sum(&self) -> u64 {
        self.sum
    }
}
