//! Tables for people: caches, their levels, servers.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use indicatif::{HumanBytes, HumanCount};

use crate::{
    counts::{Caches, Counts, count},
    servers::Row,
    time::short,
};

const NOTHING: &str = "-";
/// No cache has more levels; a service may claim anything.
const LEVELS: usize = 16;

/// `over`: the time that the counts cover, which are then shown per second; `None`: since the start.
pub(crate) fn caches(all: &Caches, over: Option<Duration>) -> String {
    let per = if over.is_some() { "/s" } else { "" };
    let levels = all.values().flat_map(|counts| counts.hits_at.keys());
    let levels = levels.filter_map(|level| level.strip_prefix('l')?.parse().ok());
    let depth: usize = levels.filter(|level| *level <= LEVELS).max().unwrap_or(1);
    let mut head = vec!["cache".to_owned(), format!("look-ups{per}"), "hit rate".to_owned()];
    head.extend((1..=depth).map(|level| format!("L{level}")));
    head.extend(["stale", "absent"].map(str::to_owned));
    head.extend(["loads", "failed", "errors"].map(|name| format!("{name}{per}")));
    head.extend(["load", "p50", "p99", "saved", "pending"].map(str::to_owned));
    head.push(format!("lost{per}"));
    let mut table = table(&head);
    for (name, counts) in all {
        let number = |n: f64| number(n, over);
        let mut row =
            vec![name.clone(), number(counts.lookups()), percent(counts.share(counts.served("hit")))];
        row.extend((1..=depth).map(|level| {
            let hits = counts.hits_at.get(&format!("l{level}")).copied().unwrap_or_default();
            percent(counts.share(hits))
        }));
        row.extend(["stale", "negative"].map(|result| percent(counts.share(counts.served(result)))));
        row.extend([counts.loads, counts.load_errors, counts.errors].map(number));
        let times =
            [counts.load_times.mean(), counts.lookup_times.quantile(0.5), counts.lookup_times.quantile(0.99)];
        row.extend(times.map(time));
        row.push(time(Some(counts.saved)));
        row.push(number_of(counts.pending));
        row.push(number(counts.lost));
        table.add_row(row);
    }
    table.to_string()
}

/// What the levels did, one line each.
pub(crate) fn levels(all: &Caches, over: Option<Duration>) -> String {
    let per = if over.is_some() { "/s" } else { "" };
    let mut head = vec!["cache".to_owned(), "level".to_owned()];
    head.extend(["keys asked", "failed", "unsent", "evicted"].map(|name| format!("{name}{per}")));
    head.extend(["had", "entries", "memory", "breaker"].map(str::to_owned));
    let mut table = table(&head);
    for (name, level, counts) in
        all.iter().flat_map(|(name, Counts { levels, .. })| levels.iter().map(move |(l, c)| (name, l, c)))
    {
        let asked: f64 = counts.answers.values().sum();
        // The sum of an empty iterator of floats is -0.0.
        let of = |answer: &str| counts.answers.get(answer).copied().unwrap_or_default();
        let had = of("hit") + of("negative");
        table.add_row([
            name.clone(),
            level.to_uppercase(),
            number(asked, over),
            number(counts.errors, over),
            number(counts.unsent, over),
            number(counts.evicted, over),
            percent((asked > 0.0).then(|| had / asked)),
            counts.entries.map_or_else(|| NOTHING.to_owned(), number_of),
            counts.bytes.map_or_else(|| NOTHING.to_owned(), |n| HumanBytes(count(n)).to_string()),
            counts.breaker.clone().unwrap_or_else(|| NOTHING.to_owned()),
        ]);
    }
    table.to_string()
}

/// What servers say of themselves.
pub(crate) fn servers(rows: &[Row], over: Option<Duration>) -> String {
    let evicted = if over.is_some() { "evicted/s" } else { "evicted" };
    let lookups = if over.is_some() { "look-ups/s" } else { "look-ups" };
    let head = ["provider", "server", "up", "items", "memory", "of", lookups, "hit rate", evicted, "clients"];
    let mut table = table(&head.map(str::to_owned));
    let mut silent = String::new();
    for row in rows {
        let status = match &row.status {
            Ok(status) => status,
            Err(error) => {
                silent.push_str(&format!("\n{} ({}): CANNOT BE USED: {error}", row.provider, row.backend));
                continue;
            }
        };
        let text = |n: Option<u64>| n.map_or_else(|| NOTHING.to_owned(), |n| HumanCount(n).to_string());
        let rate = |n: Option<u64>| n.map_or_else(|| NOTHING.to_owned(), |n| number(float(n), over));
        let bytes = |n: Option<u64>| n.map_or_else(|| NOTHING.to_owned(), |n| HumanBytes(n).to_string());
        let version = status.version.as_deref().map(|v| format!(" {v}")).unwrap_or_default();
        table.add_row([
            row.provider.clone(),
            format!("{}{version} at {}", row.backend, status.address),
            status.uptime.map_or_else(|| NOTHING.to_owned(), short),
            text(status.items),
            bytes(status.memory_used),
            match status.memory_max {
                Some(0) => "no limit".to_owned(),
                max => bytes(max),
            },
            rate(status.hits.zip(status.misses).map(|(hits, misses)| hits.saturating_add(misses))),
            percent(status.hit_rate()),
            rate(status.evicted),
            text(status.connections),
        ]);
    }
    match silent.len() {
        0 => table.to_string(),
        _ if table.row_count() == 0 => silent.trim_start().to_owned(),
        _ => format!("{table}{silent}"),
    }
}

/// An empty table; its columns but the first hold numbers.
pub(crate) fn table(head: &[String]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(head.iter().cloned());
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

fn number(n: f64, over: Option<Duration>) -> String {
    match over.map(|time| n / time.as_secs_f64().max(1e-3)) {
        None => number_of(n),
        Some(rate) if rate == 0.0 || rate >= 100.0 => number_of(rate),
        Some(rate) => format!("{rate:.1}"),
    }
}

pub(crate) fn number_of(n: f64) -> String {
    HumanCount(count(n)).to_string()
}

pub(crate) fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| NOTHING.to_owned(), |share| format!("{:.1} %", share * 100.0))
}

pub(crate) fn time(seconds: Option<f64>) -> String {
    let seconds =
        seconds.filter(|s| s.is_finite() && *s >= 0.0).and_then(|s| Duration::try_from_secs_f64(s).ok());
    match seconds {
        None => NOTHING.to_owned(),
        Some(Duration::ZERO) => "0s".to_owned(),
        Some(time) if time < Duration::from_secs(60) => format!("{time:.1?}"),
        Some(time) => short(time),
    }
}

#[allow(clippy::cast_precision_loss, reason = "for people")]
pub(crate) fn float(n: u64) -> f64 {
    n as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counts::Level;

    /// A page leaves out answers that a level has never given.
    #[test]
    fn a_level_that_had_nothing_yet_had_nothing() {
        let level = Level { answers: [("miss".to_owned(), 2.0)].into(), ..Level::default() };
        let counts = Counts { levels: [("l1".to_owned(), level)].into(), ..Counts::default() };
        let shown = levels(&[("users".to_owned(), counts)].into(), None);
        assert!(shown.contains(" 0.0 %") && !shown.contains("-0"), "{shown}");
    }
}
