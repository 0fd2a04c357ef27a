//! Tables for people, JSON for programs.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::Serialize;
use serde_json::json;

use crate::{
    rounds::Timed,
    targets::{Goal, Ratio},
};

pub fn print(tables: &[&Timed], notes: &[(&str, String)]) {
    for table in tables {
        println!("\n{:<44}{:>12}{:>10}", table.name, "median ns", "ratio");
        for row in table.order() {
            let note = notes.iter().find(|(of, _)| *of == format!("{}/{row}", table.name));
            let note = note.map_or(String::new(), |(_, note)| format!("  {note}"));
            let (median, ratio) = (table.median(row), table.ratio(row, table.base));
            println!("  {row:<42}{median:>12.0}{ratio:>10.2}{note}");
        }
    }
}

pub fn print_footprint(footprint: &BTreeMap<String, [f64; 2]>) {
    println!("\n{:<44}{:>12}{:>10}", "bytes, each", "asked for", "resident");
    for (row, [bytes, resident]) in footprint {
        println!("  {row:<42}{bytes:>12.0}{resident:>10.0}");
    }
}

pub fn print_ratios(ratios: &[Ratio]) {
    println!("\n{:<54}{:>8}  {:<14}", "ratio", "value", "target");
    for Ratio { name, value, goal, of } in ratios {
        let target = match goal {
            Goal::AtMost(most) => format!("at most {most}"),
            Goal::AtLeast(least) => format!("at least {least}"),
            Goal::None => String::new(),
        };
        let met = match goal.is_met(*value) {
            Some(true) => "met",
            Some(false) => "MISSED",
            None => "",
        };
        println!("  {name:<52}{value:>8.3}  {target:<14}  {met:<7} {of}");
    }
}

#[derive(Serialize)]
struct Target {
    #[serde(skip_serializing_if = "Option::is_none")]
    at_most: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    at_least: Option<f64>,
    met: bool,
}

pub fn write(
    path: &Path,
    quick: bool,
    tables: &[&Timed],
    footprint: &BTreeMap<String, [f64; 2]>,
    ratios: &[Ratio],
) -> io::Result<()> {
    let values: BTreeMap<_, _> = ratios.iter().map(|r| (r.name, r.value)).collect();
    let targets: BTreeMap<_, _> = ratios
        .iter()
        .filter_map(|r| {
            let (at_most, at_least) = match r.goal {
                Goal::AtMost(most) => (Some(most), None),
                Goal::AtLeast(least) => (None, Some(least)),
                Goal::None => return None,
            };
            Some((r.name, Target { at_most, at_least, met: r.goal.is_met(r.value)? }))
        })
        .collect();
    let tables: Vec<_> = tables
        .iter()
        .map(|table| {
            let rows: Vec<_> = table
                .order()
                .iter()
                .map(|row| {
                    json!({
                        "row": row,
                        "median_ns": table.median(row),
                        "over_base": table.ratio(row, table.base),
                        "rounds_ns": table.rows[row],
                    })
                })
                .collect();
            json!({ "name": table.name, "base": table.base, "rows": rows })
        })
        .collect();
    let footprint: BTreeMap<_, _> = footprint
        .iter()
        .map(|(row, [bytes, resident])| (row, json!({ "bytes": bytes, "resident": resident })))
        .collect();
    let json = json!({
        "quick": quick,
        "ratios": values,
        "targets": targets,
        "tables": tables,
        "footprint": footprint,
    });
    fs::create_dir_all(path.parent().unwrap_or(Path::new(".")))?;
    fs::write(path, serde_json::to_string_pretty(&json)?)
}
