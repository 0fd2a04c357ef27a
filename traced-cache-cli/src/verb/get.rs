//! `get`: which level would answer, and with what.

use serde_json::json;
use traced_cache::{Opaque, Shown, config::CachesBuilder};

use super::inspect::{self, Row};
use crate::{
    end::{Exit, Failure},
    keys,
    options::GetOptions,
    output::{Output, word},
    session::Session,
    time::short,
};

pub(crate) async fn run(builder: CachesBuilder, out: Output, options: GetOptions) -> Result<Exit, Failure> {
    let keys = keys::all(&options.keys)?;
    if keys.is_empty() && options.keys.keys_from.is_none() {
        return Err(Failure::wrong("KEY", "none", "name a key, or a file of them with --keys-from"));
    }
    let name = &options.cache;
    let session = Session::open(builder, &options.file).await?;
    let cache = session.cache::<Opaque>(name)?;
    let levels = session.shared_levels(name)?;
    // The call itself says what cannot be used.
    let _ = Session::reach(&levels).await;
    let schema = inspect::schema(&session, name);
    let bar = out.bar(keys.len() as u64, "keys");
    let (mut rows, mut lines, mut worst) = (Vec::new(), Vec::new(), Exit::Done);
    for key in &keys {
        let inspection = inspect::look(&cache, key, schema, options.show_value).await?;
        let ended = inspect::exit(&inspection);
        worst = worse(worst, ended);
        // Where no level has a usable entry, the last one that has something to report.
        let told = inspect::served_by(&inspection).or_else(|| {
            let remote = || inspection.levels.iter().filter(|level| !level.in_process);
            remote().find(|level| level.entry.is_some() || level.error.is_some()).or_else(|| remote().next())
        });
        let row = told.and_then(|found| Some(Row { at: levels.get(found.level)?, found }));
        if let Some(row) = row {
            let mut json = row.json();
            if let serde_json::Value::Object(fields) = &mut json {
                fields.insert("key".to_owned(), key.as_str().into());
            }
            rows.push(json);
            lines.push(line(key, &row));
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    out.answer(&json!({ "cache": name, "keys": rows }), lines.join("\n"))?;
    Ok(worst)
}

/// Failures count more than unreadable entries, and those more than absence.
fn worse(a: Exit, b: Exit) -> Exit {
    let weight = |exit| match exit {
        Exit::Failed => 3,
        Exit::Unreadable => 2,
        Exit::Missing => 1,
        _ => 0,
    };
    if weight(b) > weight(a) { b } else { a }
}

fn line(key: &str, row: &Row<'_>) -> String {
    let mut parts = vec![format!("{}: {}", word(key), row.state())];
    if row.found.entry.is_some() {
        parts.push(row.at.place());
    }
    if let Some(entry) = &row.found.entry {
        parts.extend(entry.age.map(|age| format!("age {}", short(age))));
        parts.extend(entry.fresh_for.map(|left| format!("fresh for {}", short(left))));
        parts.extend(entry.bytes.map(|bytes| format!("{bytes} bytes")));
    }
    parts.extend(row.found.unreadable.map(|reason| reason.as_str().to_owned()));
    parts.extend(row.found.error.clone());
    let mut line = parts.join(", ");
    match &row.found.value {
        Some(Shown::Json(text)) => line = format!("{line}\n{text}"),
        Some(Shown::Bytes(bytes)) => line = format!("{line}\n{}", inspect::hex(bytes)),
        _ => {}
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_that_failed_decides() {
        assert_eq!(worse(Exit::Done, Exit::Missing), Exit::Missing);
        assert_eq!(worse(Exit::Failed, Exit::Unreadable), Exit::Failed);
        assert_eq!(worse(Exit::Unreadable, Exit::Missing), Exit::Unreadable);
    }
}
