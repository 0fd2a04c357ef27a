//! What came of it.

use serde::{Deserialize, Serialize};

use crate::{faults::Fault, table};

/// A read that saw what it must not.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Example {
    pub(crate) rule: String,
    pub(crate) cache: String,
    pub(crate) seen: String,
    pub(crate) key: usize,
    pub(crate) version: u64,
    pub(crate) floor: u64,
    /// The second level as it stood.
    pub(crate) level: String,
}

/// The counts of one node, or of all together.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct NodeReport {
    pub(crate) loads: u64,
    pub(crate) invalidations: u64,
    pub(crate) sets: u64,
    pub(crate) updates: u64,
    /// Saves and deletions through the cache.
    pub(crate) through: u64,
    pub(crate) expiries: u64,
    /// Invalidations of a tag, each of all keys of a process.
    pub(crate) tags: u64,
    pub(crate) clears: u64,
    /// Of those, answered `Pending`.
    pub(crate) pending: u64,
    /// Reads by where they were answered.
    pub(crate) near: u64,
    pub(crate) far: u64,
    pub(crate) joined: u64,
    /// Stale values, which stood in.
    pub(crate) stale: u64,
    /// By batches, key by key, and by refreshes: neither says where an answer comes from.
    pub(crate) unsaid: u64,
    /// Calls whose callers have left in the middle.
    pub(crate) left: u64,
    /// Calls that have failed as their loads did.
    pub(crate) failed: u64,
    /// From memory, and older than what the other process had been confirmed: allowed, until its message arrives.
    pub(crate) late_near: u64,
    /// From a load that had begun before the other process changed the key. Allowed likewise.
    pub(crate) late_joined: u64,
    /// Older than what had been confirmed at another master, while sentinels replace one that is alive, or by a tag or a
    /// clear. Allowed, until both processes hear of that.
    pub(crate) late_far: u64,
    /// Older than what this process had been answered.
    pub(crate) local: u64,
    /// From the second level or the source, and older than what had been confirmed.
    pub(crate) confirmed: u64,
    /// Older than what had been confirmed longer ago than the bound.
    pub(crate) settled: u64,
    /// Keys that did not reach their newest version within the bound.
    pub(crate) diverged: u64,
    /// Calls that had to wait for longer than anybody who is alive would make them.
    pub(crate) held_up: u64,
    pub(crate) converged_ms: u64,
    pub(crate) examples: Vec<Example>,
}

impl NodeReport {
    fn and(mut self, other: Self) -> Self {
        self.loads += other.loads;
        self.invalidations += other.invalidations;
        self.sets += other.sets;
        self.updates += other.updates;
        self.through += other.through;
        self.expiries += other.expiries;
        self.tags += other.tags;
        self.clears += other.clears;
        self.pending += other.pending;
        self.near += other.near;
        self.far += other.far;
        self.joined += other.joined;
        self.stale += other.stale;
        self.unsaid += other.unsaid;
        self.left += other.left;
        self.failed += other.failed;
        self.late_near += other.late_near;
        self.late_joined += other.late_joined;
        self.late_far += other.late_far;
        self.local += other.local;
        self.confirmed += other.confirmed;
        self.settled += other.settled;
        self.diverged += other.diverged;
        self.held_up += other.held_up;
        self.converged_ms = self.converged_ms.max(other.converged_ms);
        self.examples.extend(other.examples);
        self
    }

    fn reads(&self) -> u64 {
        self.near + self.far + self.joined + self.stale + self.unsaid
    }

    fn writes(&self) -> u64 {
        self.invalidations + self.sets + self.updates + self.through + self.expiries + self.tags + self.clears
    }

    fn violations(&self) -> u64 {
        self.local + self.confirmed + self.settled + self.diverged + self.held_up
    }
}

/// One race.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Race {
    kind: &'static str,
    seconds: u64,
    fault: Option<&'static str>,
    faults: u64,
    bound_ms: u64,
    reads: u64,
    violations: u64,
    #[serde(flatten)]
    counts: NodeReport,
}

impl Race {
    pub(crate) fn new(
        kind: &'static str,
        seconds: u64,
        fault: Option<Fault>,
        faults: u64,
        bound_ms: u64,
        nodes: Vec<NodeReport>,
    ) -> Self {
        let counts = nodes.into_iter().fold(NodeReport::default(), NodeReport::and);
        let fault = fault.map(Fault::as_str);
        Self {
            kind,
            seconds,
            fault,
            faults,
            bound_ms,
            reads: counts.reads(),
            violations: counts.violations(),
            counts,
        }
    }

    pub(crate) fn failed(&self) -> bool {
        self.violations > 0
    }

    /// Line by line what the table shows.
    fn lines(&self) -> Vec<(&'static str, String)> {
        let Self { seconds, faults, bound_ms, reads, violations, counts, .. } = self;
        let NodeReport {
            loads, invalidations, sets, updates, through, expiries, tags, clears, pending, ..
        } = counts;
        let NodeReport { near, far, joined, stale, unsaid, left, failed, .. } = counts;
        let NodeReport {
            late_near,
            late_joined,
            late_far,
            local,
            confirmed,
            settled,
            diverged,
            held_up,
            converged_ms,
            ..
        } = counts;
        vec![
            ("seconds", seconds.to_string()),
            ("faults of the server", faults.to_string()),
            ("loads", loads.to_string()),
            ("invalidations", invalidations.to_string()),
            ("sets", sets.to_string()),
            ("updates", updates.to_string()),
            ("writes through the cache", through.to_string()),
            ("expiries", expiries.to_string()),
            ("invalidations of a tag", tags.to_string()),
            ("clears", clears.to_string()),
            ("of those, pending", pending.to_string()),
            ("calls whose callers have left", left.to_string()),
            ("calls that failed as their loads did", failed.to_string()),
            ("reads, all checked", reads.to_string()),
            ("  from memory", near.to_string()),
            ("    late, as it may be: not told yet, or within its ttl_cap", late_near.to_string()),
            ("  from the second level, or an own load", far.to_string()),
            ("    late, as it may be: a tag, a clear, or at another master", late_far.to_string()),
            ("  by joining a load", joined.to_string()),
            ("    late, as it may be: begun before the other's change", late_joined.to_string()),
            ("  stale, standing in", stale.to_string()),
            ("  in batches and by refreshes, which do not say", unsaid.to_string()),
            ("violations", violations.to_string()),
            ("  older than what this process had been answered", local.to_string()),
            ("  older than what any process had been confirmed", confirmed.to_string()),
            ("  late by more than the bound", settled.to_string()),
            ("  keys not up to date at the end, after the bound", diverged.to_string()),
            ("  calls held up by nobody who is alive", held_up.to_string()),
            ("ms until all keys were", converged_ms.to_string()),
            ("ms, the bound", bound_ms.to_string()),
        ]
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
        let Race { reads, fault, faults, .. } = self.race;
        !self.race.failed() && reads > 0 && (fault.is_none() || faults > 0) && self.control.failed()
    }

    pub(crate) fn text(&self, json: bool) -> String {
        if json && let Ok(line) = serde_json::to_string(self) {
            return line + "\n";
        }
        let mut table = table::table(&["", self.race.kind, self.control.kind]);
        for ((what, real), (_, control)) in self.race.lines().into_iter().zip(self.control.lines()) {
            table.add_row([what.to_owned(), real, control]);
        }
        let fault = self.race.fault.map(|fault| format!(", which is {fault}")).unwrap_or_default();
        let mut text =
            format!("Two processes share one {}{fault}. `naive` is the control.\n{table}\n", self.l2);
        for race in [&self.race, &self.control] {
            for Example { rule, cache, seen, key, version, floor, level } in
                race.counts.examples.iter().take(3)
            {
                text.push_str(&format!(
                    "{}: e.g. key {key} ({cache}, {seen}): version {version}, promised at least {floor} ({rule}); {level}\n",
                    race.kind
                ));
            }
        }
        let (real, control) = (&self.race, &self.control);
        text.push_str(&format!(
            "loads: {}, invalidations and sets: {}, reads: {}, violations: {}\n",
            real.counts.loads,
            real.counts.writes(),
            real.reads,
            real.violations
        ));
        text.push_str(&format!("control, without leases and tickets: violations: {}\n", control.violations));
        text
    }
}
