//! All caches.

use std::fmt::{self, Display};

use super::{
    With, chart, frame, home,
    text::{Bytes, Count, Micros, Percent, Seconds, Text},
};
use crate::{
    PageBuilder,
    report::{Cache, Level, Report},
};

const HEAD: [&str; 12] = [
    "Cache",
    "Hit rate",
    "Over time",
    "Look-ups/s",
    "Served by",
    "Half of calls within",
    "Loads",
    "Time saved",
    "Stale",
    "Errors",
    "State",
    "In memory",
];

pub(crate) fn overview(options: &PageBuilder, report: &Report) -> String {
    let body = With(|f: &mut fmt::Formatter<'_>| {
        write!(f, "<div data-live>\n<h1>{}</h1>\n", Text(&report.title))?;
        if report.caches.is_empty() {
            f.write_str("<p>No cache has been built with this page as its observer.</p>\n")?;
        } else {
            table(f, options, report)?;
        }
        #[allow(clippy::cast_precision_loss, reason = "for people")]
        let watched = Seconds(report.watched_s as f64);
        write!(f, "<p class=\"note\">Counts since each cache was built; watched for {watched}.</p>\n</div>\n")
    });
    frame(options, &report.title, &[(&*options.title, home(options))], body)
}

fn table(f: &mut fmt::Formatter<'_>, options: &PageBuilder, report: &Report) -> fmt::Result {
    f.write_str(
        "<div class=\"wide\" id=\"caches\" tabindex=\"0\" role=\"region\" aria-label=\"Caches\">\n<table>\n<thead><tr>",
    )?;
    for head in HEAD {
        write!(f, "<th scope=\"col\">{head}</th>")?;
    }
    f.write_str("</tr></thead>\n<tbody>\n")?;
    for cache in &report.caches {
        row(f, options, cache)?;
    }
    f.write_str("</tbody>\n</table>\n</div>\n")
}

fn row(f: &mut fmt::Formatter<'_>, options: &PageBuilder, cache: &Cache) -> fmt::Result {
    let name = Text(&cache.name);
    writeln!(
        f,
        "<tr><th scope=\"row\"><a id=\"to-{name}\" href=\"{}/caches/{name}\">{name}</a></th>\
         <td><strong>{}</strong><small>all {}</small></td><td>{}</td><td>{:.0}</td><td>{}{}</td>\
         <td>{}</td><td>{}<small>{}</small></td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
        Text(&options.path),
        Percent(cache.now.hit_rate),
        Percent(cache.hit_rate),
        chart::spark(&cache.history),
        cache.now.lookups_per_s,
        chart::served(&cache.served),
        shares(cache),
        medians(cache),
        Count(cache.loads),
        With(|f: &mut fmt::Formatter<'_>| match cache.load_mean_us {
            Some(mean) => write!(f, "{} each", Micros(mean)),
            None => Ok(()),
        }),
        Seconds(cache.time_saved_s),
        Count(cache.stale),
        errors(cache),
        state(cache),
        memory(cache),
    )
}

fn shares(cache: &Cache) -> impl Display + '_ {
    With(move |f: &mut fmt::Formatter<'_>| {
        f.write_str("<small>")?;
        for (at, part) in cache.served.iter().filter(|part| part.lookups > 0).enumerate() {
            let dot = if at > 0 { " · " } else { "" };
            write!(f, "{dot}{} {}", Text(&part.by), Percent(Some(part.share)))?;
        }
        f.write_str("</small>")
    })
}

/// Those that matter most: what levels served, and what had to be loaded.
fn medians(cache: &Cache) -> impl Display + '_ {
    With(move |f: &mut fmt::Formatter<'_>| {
        f.write_str("<small>")?;
        let rows = cache.latency.iter().filter(|row| row.outcome == "hit" || row.outcome == "loaded");
        for (at, row) in rows.enumerate() {
            let end = if at > 0 { "<br>" } else { "" };
            let what = row.level.as_deref().unwrap_or(row.outcome);
            write!(f, "{end}{} {}", Text(what), Micros(row.p50_us))?;
        }
        f.write_str("</small>")
    })
}

fn errors(cache: &Cache) -> impl Display + '_ {
    With(move |f: &mut fmt::Formatter<'_>| {
        let faults: u64 = cache.levels.iter().flat_map(|level| level.faults.values()).sum();
        write!(f, "{}", Count(cache.errors))?;
        if cache.load_errors > 0 {
            write!(f, "<small>{} loads</small>", Count(cache.load_errors))?;
        }
        if faults > 0 {
            write!(f, "<small>{} of levels</small>", Count(faults))?;
        }
        Ok(())
    })
}

/// What an operator has to look at first.
pub(super) fn state(cache: &Cache) -> impl Display + '_ {
    With(move |f: &mut fmt::Formatter<'_>| {
        let mut is_well = true;
        for level in cache.levels.iter().filter(|level| level.breaker.is_some_and(|state| state != "closed"))
        {
            is_well = false;
            let state = level.breaker.unwrap_or_default().replace('_', " ");
            write!(f, "<span class=\"bad\">{} breaker {state}</span> ", Text(&level.level))?;
        }
        if cache.journal.pending > 0 {
            is_well = false;
            write!(f, "<span class=\"bad\">journal {}</span> ", Count(cache.journal.pending))?;
        }
        if is_well {
            f.write_str("<span class=\"good\">well</span>")?;
        }
        Ok(())
    })
}

fn memory(cache: &Cache) -> impl Display + '_ {
    With(move |f: &mut fmt::Formatter<'_>| {
        for level in cache.levels.iter().filter(|level| level.in_process) {
            write!(f, "{}<small>{}</small>", held(level), evicted(level))?;
        }
        Ok(())
    })
}

/// How full a level in this process is.
pub(super) fn held(level: &Level) -> impl Display + '_ {
    With(move |f: &mut fmt::Formatter<'_>| {
        let Some(entries) = level.entries else { return f.write_str("–") };
        match (level.bytes, level.capacity) {
            (None, Some(capacity)) => write!(f, "{} of {}", Count(entries), Count(capacity)),
            (Some(bytes), Some(capacity)) => {
                write!(f, "{} ({} of {})", Count(entries), Bytes(bytes), Bytes(capacity))
            }
            (Some(bytes), None) => write!(f, "{} ({})", Count(entries), Bytes(bytes)),
            (None, None) => write!(f, "{}", Count(entries)),
        }
    })
}

pub(super) fn evicted(level: &Level) -> impl Display + '_ {
    With(move |f: &mut fmt::Formatter<'_>| match &level.evictions {
        Some(evictions) => {
            write!(f, "evicted {}, expired {}", Count(evictions.size), Count(evictions.expired))
        }
        None => f.write_str("–"),
    })
}
