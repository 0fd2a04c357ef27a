//! docs/telemetry.md says where each of the seeds' rows is met, and what it names exists.

use std::{fs, path::PathBuf};

/// Rows by letter, and how many there are of each.
const ROWS: [(&str, usize); 10] =
    [("M", 39), ("S", 39), ("P", 32), ("Q", 5), ("L", 8), ("K", 9), ("H", 3), ("G", 8), ("T", 6), ("V", 2)];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn rows() -> Vec<Vec<String>> {
    let page = fs::read_to_string(root().join("docs/telemetry.md")).unwrap();
    let cells = |line: &str| {
        let inner = line.trim().trim_matches('|');
        inner.split(" | ").map(|cell| cell.trim().to_owned()).collect::<Vec<_>>()
    };
    let is_row = |line: &&str| {
        line.strip_prefix("| ").is_some_and(|rest| {
            let id: String = rest.chars().take_while(|c| c.is_ascii_alphanumeric()).collect();
            id.len() > 1
                && ROWS
                    .iter()
                    .any(|(letter, _)| id.strip_prefix(letter).is_some_and(|n| n.parse::<usize>().is_ok()))
        })
    };
    page.lines().filter(is_row).map(cells).collect()
}

#[test]
fn every_row_of_the_seeds_is_there_once_and_none_is_empty() {
    let rows = rows();
    assert_eq!(rows.len(), 151);
    let mut expected = ROWS.iter().flat_map(|(letter, n)| (1..=*n).map(move |at| format!("{letter}{at}")));
    for row in &rows {
        assert_eq!(Some(&row[0]), expected.next().as_ref());
        assert_eq!(row.len(), 4, "{row:?}");
        assert!(row.iter().all(|cell| cell.len() > 1), "an empty cell in {row:?}");
    }
}

#[test]
fn every_test_that_a_row_names_exists() {
    let mut sources = String::new();
    let mut folders = vec![root()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let path = entry.path();
            let name = entry.file_name();
            if path.is_dir() && name != "target" && !name.to_string_lossy().starts_with('.') {
                folders.push(path);
            } else if path.extension().is_some_and(|e| e == "rs" || e == "yml" || e == "json") {
                sources.push_str(&fs::read_to_string(path).unwrap_or_default());
            }
        }
    }
    for row in rows() {
        for name in row[3].split('`').skip(1).step_by(2) {
            let shown = sources.contains(&format!("fn {name}("))
                || sources.contains(&format!("alertname: {name}"))
                || root().join(name).exists();
            assert!(shown, "{}: there is no `{name}`", row[0]);
        }
    }
}
