//! What came of it.

use serde::{Deserialize, Serialize};

use crate::table;

/// A read that saw what it must not.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Example {
    pub(crate) rule: String,
    pub(crate) cache: String,
    pub(crate) seen: String,
    pub(crate) key: usize,
    pub(crate) version: u64,
    pub(crate) floor: u64,
}

/// The counts of one node, or of all together.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct NodeReport {
    pub(crate) loads: u64,
    pub(crate) invalidations: u64,
    pub(crate) sets: u64,
    /// Of those, answered `Pending`.
    pub(crate) pending: u64,
    /// Reads by where they were answered.
    pub(crate) near: u64,
    pub(crate) far: u64,
    pub(crate) joined: u64,
    /// From memory, and older than what the other process had been confirmed: allowed, until its message arrives.
    pub(crate) late_near: u64,
    /// From a load that had begun before the other process changed the key. Allowed likewise.
    pub(crate) late_joined: u64,
    /// Older than what this process had been answered.
    pub(crate) local: u64,
    /// From the second level or the source, and older than what had been confirmed.
    pub(crate) confirmed: u64,
    /// Older than what had been confirmed longer ago than the bound.
    pub(crate) settled: u64,
    /// Keys that did not reach their newest version within the bound.
    pub(crate) diverged: u64,
    pub(crate) converged_ms: u64,
    pub(crate) examples: Vec<Example>,
}

impl NodeReport {
    fn and(mut self, other: Self) -> Self {
        self.loads += other.loads;
        self.invalidations += other.invalidations;
        self.sets += other.sets;
        self.pending += other.pending;
        self.near += other.near;
        self.far += other.far;
        self.joined += other.joined;
        self.late_near += other.late_near;
        self.late_joined += other.late_joined;
        self.local += other.local;
        self.confirmed += other.confirmed;
        self.settled += other.settled;
        self.diverged += other.diverged;
        self.converged_ms = self.converged_ms.max(other.converged_ms);
        self.examples.extend(other.examples);
        self
    }

    fn reads(&self) -> u64 {
        self.near + self.far + self.joined
    }

    fn violations(&self) -> u64 {
        self.local + self.confirmed + self.settled + self.diverged
    }
}

/// One race.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Race {
    kind: &'static str,
    seconds: u64,
    bound_ms: u64,
    reads: u64,
    violations: u64,
    #[serde(flatten)]
    counts: NodeReport,
}

impl Race {
    pub(crate) fn new(kind: &'static str, seconds: u64, bound_ms: u64, nodes: Vec<NodeReport>) -> Self {
        let counts = nodes.into_iter().fold(NodeReport::default(), NodeReport::and);
        Self { kind, seconds, bound_ms, reads: counts.reads(), violations: counts.violations(), counts }
    }

    fn cells(&self) -> Vec<String> {
        let Self { kind, seconds, bound_ms, reads, violations, counts } = self;
        let NodeReport { loads, invalidations, sets, pending, near, far, joined, .. } = counts;
        let NodeReport { late_near, late_joined, local, confirmed, settled, diverged, converged_ms, .. } =
            counts;
        let numbers = [
            loads,
            invalidations,
            sets,
            pending,
            reads,
            near,
            far,
            joined,
            late_near,
            late_joined,
            local,
            confirmed,
            settled,
            diverged,
            violations,
        ];
        let mut cells = vec![format!("{kind}, {seconds} s")];
        cells.extend(numbers.map(ToString::to_string));
        cells.push(format!("{converged_ms} ms of {bound_ms}"));
        cells
    }
}

/// Both races.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) l2: &'static str,
    pub(crate) race: Race,
    pub(crate) control: Race,
}

impl Report {
    /// Nothing wrong with the cache, and something with the one by hand.
    pub(crate) fn good(&self) -> bool {
        self.race.violations == 0 && self.race.reads > 0 && self.control.violations > 0
    }

    pub(crate) fn text(&self, json: bool) -> String {
        if json && let Ok(line) = serde_json::to_string(self) {
            return line + "\n";
        }
        let head = [
            "cache",
            "loads",
            "invalid-\nations",
            "sets",
            "pending",
            "reads",
            "memory",
            "second level\nor source",
            "joined\na load",
            "late:\nmemory",
            "late:\njoined",
            "stale: same\nprocess",
            "stale:\nconfirmed",
            "stale: past\nthe bound",
            "not\nconverged",
            "violations",
            "converged\nwithin",
        ];
        let mut table = table::table(&head);
        table.add_rows([self.race.cells(), self.control.cells()]);
        let mut text = format!("two processes on one {}\n{table}\n", self.l2);
        for race in [&self.race, &self.control] {
            for Example { rule, cache, seen, key, version, floor } in race.counts.examples.iter().take(3) {
                text.push_str(&format!(
                    "{}: e.g. key {key} ({cache}, {seen}): version {version}, promised at least {floor} ({rule})\n",
                    race.kind
                ));
            }
        }
        let (real, control) = (&self.race, &self.control);
        text.push_str(&format!(
            "loads: {}, invalidations and sets: {}, reads: {}, violations: {}\n",
            real.counts.loads,
            real.counts.invalidations + real.counts.sets,
            real.reads,
            real.violations
        ));
        text.push_str(&format!("control, without leases and tickets: violations: {}\n", control.violations));
        text
    }
}
