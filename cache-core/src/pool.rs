//! How a provider's own connections stand.

use std::{collections::VecDeque, time::Duration};

/// A provider's own connections as they stand, and what has come of making them. Counts are of the provider's whole life.
#[non_exhaustive]
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolStatus {
    /// Connections that are up and take the next call. One that all calls share is idle in this sense, however many are under
    /// way on it.
    pub idle: u64,
    /// Connections that are up and lent to one caller each.
    pub used: u64,
    /// The most that there may be.
    pub max: u64,
    /// Calls that wait for a connection.
    pub pending: u64,
    /// Connections that were made.
    pub made: u64,
    /// How long the latest of those took until they could take calls, oldest first: [`TIMES`](Self::TIMES) at most.
    pub made_in: VecDeque<Duration>,
    /// Attempts to connect that were given up, as the server had not answered in time.
    pub timeouts: u64,
    /// Attempts that failed otherwise, and connections that were lost.
    pub errors: u64,
}

impl PoolStatus {
    /// Of how many connections the time is kept.
    pub const TIMES: usize = 64;

    /// Counts a connection that was made.
    pub fn count_made(&mut self, took: Duration) {
        self.made += 1;
        if self.made_in.len() >= Self::TIMES {
            self.made_in.pop_front();
        }
        self.made_in.push_back(took);
    }
}
