//! The tables that a newcomer sees.

use std::time::Duration;

use cache_otel::names;
use comfy_table::CellAlignment;
use indicatif::HumanCount;

use crate::{
    metrics::{Reading, Value},
    table::table,
    tour::Step,
};

/// Look-ups, as the first table names them.
const COUNTED: [(&str, Option<&str>, &str); 4] = [
    ("hit", Some("l1"), "L1 hits"),
    ("hit", Some("l2"), "L2 hits"),
    ("coalesced", None, "waited"),
    ("miss", None, "misses"),
];

pub(crate) fn tables(rows: usize, l2: Option<&str>, steps: &[Step], reading: &Reading) -> String {
    let below = l2.map(|system| format!(", then L2 ({system})")).unwrap_or_default();
    let counted = COUNTED.iter().filter(|(_, level, _)| l2.is_some() || *level != Some("l2"));
    let mut head = vec!["what happened", "took, each"];
    head.extend(counted.clone().map(|(_, _, name)| *name));
    head.push("loads");
    let mut tour = table(&head);
    for step in steps {
        let mut row = vec![step.what.clone(), time(step.took)];
        row.extend(
            counted
                .clone()
                .map(|(result, level, _)| HumanCount(step.seen.lookups(result, *level)).to_string()),
        );
        row.push(HumanCount(step.seen.count(names::LOADS, &[])).to_string());
        tour.add_row(row);
    }
    format!(
        "A cache of `Character` in L1 (memory){below}, in front of SQLite with {rows} rows.\n{tour}\n\
         took: the mean; of L1 hits one in 256 is timed. waited: answered by a load that another caller had started.\n\
         loads: runs of the loader, one for a batch.\n\n\
         What OpenTelemetry recorded in all, as your dashboard would get it:\n{}\n",
        recorded(reading)
    )
}

fn recorded(reading: &Reading) -> String {
    let mut all = table(&["metric", "attributes", "value"]);
    if let Some(attributes) = all.column_mut(1) {
        attributes.set_cell_alignment(CellAlignment::Left);
    }
    for ((name, attributes), value) in &reading.0 {
        let value = match value {
            // Series are there from zero on, for whatever may happen; those that nothing happened to are left out.
            Value::Count(0) | Value::Times(0, _) => continue,
            Value::Count(n) => HumanCount(*n).to_string(),
            Value::Held(n) => n.to_string(),
            Value::Share(share) => format!("{share:.4}"),
            Value::Times(times, seconds) => {
                #[allow(clippy::cast_precision_loss, reason = "a mean for people")]
                let mean = seconds / *times as f64;
                format!("{times} x {}", time(Duration::try_from_secs_f64(mean).unwrap_or_default()))
            }
        };
        let attributes = attributes.iter().filter(|(key, _)| *key != names::CACHE_NAME);
        let attributes: Vec<_> = attributes.map(|(key, value)| format!("{key}={value}")).collect();
        all.add_row([name.clone(), attributes.join(" "), value]);
    }
    all.to_string()
}

fn time(took: Duration) -> String {
    format!("{took:.1?}")
}
