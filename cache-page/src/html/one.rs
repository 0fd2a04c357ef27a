//! One cache.

use std::fmt::{self, Display};

use super::{
    Done, With, chart, frame, home,
    overview::{evicted, held, state},
    text::{Bytes, Count, Micros, Percent, Seconds, Text},
};
use crate::{
    PageBuilder,
    look::{At, Entry, Look},
    report::{Cache, Counts, Details, Estimate, HotKey, Level, Setting},
};

pub(crate) fn one(options: &PageBuilder, cache: &Cache, done: &Done<'_>) -> String {
    let body = With(|f: &mut fmt::Formatter<'_>| {
        write!(f, "<h1>{}</h1>\n{}{}", Text(&cache.name), outcome(done), forms(options, cache, done))?;
        write!(
            f,
            "<div data-live>\n{}{}",
            figures(cache),
            section("Hit rate over time", chart::history(&cache.history))
        )?;
        write!(
            f,
            "{}{}",
            section("Who served look-ups", served(cache)),
            section("How long calls took", latency(cache))
        )?;
        write!(
            f,
            "{}{}",
            section("Levels", levels(cache)),
            section("Misses, errors, invalidations", wrong(cache))
        )?;
        if let Some(Details { policy, hot_keys, estimate }) = &cache.details {
            write!(f, "{}", section("If memory were smaller or larger", sizes(estimate.as_ref(), cache)))?;
            write!(f, "{}", section("Hottest keys", hottest(options, hot_keys)))?;
            write!(f, "{}", section("Policy", settings(policy)))?;
        }
        f.write_str("</div>\n")
    });
    let title = format!("{} · {}", cache.name, options.title);
    frame(options, &title, &[(&*options.title, home(options)), (&*cache.name, "")], body)
}

fn section(title: &str, body: impl Display) -> impl Display {
    let title = title.to_owned();
    With(move |f: &mut fmt::Formatter<'_>| write!(f, "<section>\n<h2>{title}</h2>\n{body}</section>\n"))
}

fn figures(cache: &Cache) -> impl Display + '_ {
    With(move |f: &mut fmt::Formatter<'_>| {
        let figure = |f: &mut fmt::Formatter<'_>, name: &str, value: &dyn Display, more: &dyn Display| {
            writeln!(f, "<div><dt>{name}</dt><dd>{value}<small>{more}</small></dd></div>")
        };
        let now = &cache.now;
        f.write_str("<dl class=\"figures\">\n")?;
        let all = format!("{} since the start", Percent(cache.hit_rate));
        figure(f, "Hit rate", &Percent(now.hit_rate), &all)?;
        figure(f, "Look-ups", &Count(cache.lookups), &format_args!("{:.1} a second", now.lookups_per_s))?;
        let mean = cache.load_mean_us.map(|mean| format!("{} each", Micros(mean))).unwrap_or_default();
        figure(f, "Loads", &Count(cache.loads), &mean)?;
        figure(f, "Time saved", &Seconds(cache.time_saved_s), &"of loads not made")?;
        figure(
            f,
            "Stale",
            &Count(cache.stale),
            &format_args!("{} remembered as absent", Count(cache.negative)),
        )?;
        let failed = format!("{} failed loads", Count(cache.load_errors));
        figure(f, "Errors", &Count(cache.errors), &failed)?;
        figure(f, "Journal", &Count(cache.journal.pending), &"invalidations not delivered")?;
        figure(f, "State", &state(cache), &"")?;
        f.write_str("</dl>\n")
    })
}

/// A table with a header row; `numbers`: columns after the first are figures.
fn table(
    name: &str,
    heads: &'static [&'static str],
    rows: impl Fn(&mut fmt::Formatter<'_>) -> fmt::Result,
) -> impl Display {
    let id = name.to_lowercase().replace(' ', "-");
    let name = name.to_owned();
    With(move |f: &mut fmt::Formatter<'_>| {
        write!(
            f,
            "<div class=\"wide\" id=\"{id}\" tabindex=\"0\" role=\"region\" aria-label=\"{name}\">\n<table>\n<thead><tr>"
        )?;
        for head in heads {
            write!(f, "<th scope=\"col\">{head}</th>")?;
        }
        f.write_str("</tr></thead>\n<tbody>\n")?;
        rows(f)?;
        f.write_str("</tbody>\n</table>\n</div>\n")
    })
}

fn served(cache: &Cache) -> impl Display + '_ {
    With(move |f: &mut fmt::Formatter<'_>| {
        let rows = |f: &mut fmt::Formatter<'_>| {
            for part in &cache.served {
                let by = match part.by.as_str() {
                    "coalesced" => "another call's load",
                    "miss" => "no level: a load, or nothing",
                    level => level,
                };
                writeln!(
                    f,
                    "<tr><th scope=\"row\"><span class=\"swatch by-{}\"></span> {}</th><td>{}</td><td>{}</td></tr>",
                    chart::class(&part.by),
                    Text(by),
                    Count(part.lookups),
                    Percent((cache.lookups > 0).then_some(part.share)),
                )?;
            }
            Ok(())
        };
        write!(
            f,
            "{}{}",
            chart::served(&cache.served),
            table("Served by", &["By", "Look-ups", "Share"], rows)
        )
    })
}

fn latency(cache: &Cache) -> impl Display + '_ {
    With(move |f: &mut fmt::Formatter<'_>| {
        if cache.latency.is_empty() {
            return f.write_str("<p>No calls in the last minute.</p>\n");
        }
        let rows = |f: &mut fmt::Formatter<'_>| {
            for row in &cache.latency {
                let level = row.level.as_ref().map(|level| format!(" at {level}")).unwrap_or_default();
                writeln!(
                    f,
                    "<tr><th scope=\"row\">{}{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                    Text(&row.outcome.replace('_', " ")),
                    Text(&level),
                    Count(row.count),
                    Micros(row.mean_us),
                    Micros(row.p50_us),
                    Micros(row.p95_us),
                    Micros(row.p99_us),
                )?;
            }
            Ok(())
        };
        let heads = &["Outcome", "Calls", "Mean", "p50", "p95", "p99"];
        writeln!(
            f,
            "{}<p class=\"note\">Of the last one to two minutes. One in 256 hits in memory is timed, and stands for all.</p>",
            table("Latency", heads, rows)
        )
    })
}

fn words(counts: &Counts) -> impl Display + '_ {
    With(move |f: &mut fmt::Formatter<'_>| {
        if counts.is_empty() {
            return f.write_str("–");
        }
        for (at, (word, count)) in counts.iter().enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}{} {}", Text(&word.replace('_', " ")), Count(*count))?;
        }
        Ok(())
    })
}

fn levels(cache: &Cache) -> impl Display + '_ {
    With(move |f: &mut fmt::Formatter<'_>| {
        let rows = |f: &mut fmt::Formatter<'_>| {
            for level in &cache.levels {
                writeln!(
                    f,
                    "<tr><th scope=\"row\">{} {}{}</th><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
                    Text(&level.level),
                    Text(level.system),
                    With(|f: &mut fmt::Formatter<'_>| match &level.address {
                        Some(address) => write!(f, "<small>{}</small>", Text(address)),
                        None => Ok(()),
                    }),
                    Count(level.asked),
                    Percent(level.hit_rate),
                    words(&level.outcomes),
                    breaker(level),
                    held(level),
                    evicted(level),
                )?;
            }
            Ok(())
        };
        let heads = &["Level", "Asked", "Had it", "Answers", "Breaker", "Holds", "Let go"];
        write!(f, "{}", table("Levels", heads, rows))?;
        for level in cache.levels.iter().filter(|level| !level.settings.is_empty()) {
            write!(f, "<h3>{} runs under</h3>\n{}", Text(&level.level), settings(&level.settings))?;
        }
        Ok(())
    })
}

fn breaker(level: &Level) -> impl Display + '_ {
    With(move |f: &mut fmt::Formatter<'_>| match level.breaker {
        None => f.write_str("–"),
        Some(state) => {
            let class = if state == "closed" { "good" } else { "bad" };
            write!(
                f,
                "<span class=\"{class}\">{}</span><small>opened {} times</small>",
                state.replace('_', " "),
                Count(level.breaker_openings)
            )
        }
    })
}

fn settings(settings: &[Setting]) -> impl Display + '_ {
    With(move |f: &mut fmt::Formatter<'_>| {
        if settings.is_empty() {
            return f
                .write_str("<p>The page has not been shown this cache: only its counts are known.</p>\n");
        }
        f.write_str("<dl class=\"settings\">\n")?;
        for Setting { name, value } in settings {
            writeln!(f, "<div><dt>{}</dt><dd>{}</dd></div>", Text(name), Text(value))?;
        }
        f.write_str("</dl>\n")
    })
}

fn wrong(cache: &Cache) -> impl Display + '_ {
    With(move |f: &mut fmt::Formatter<'_>| {
        let line = |f: &mut fmt::Formatter<'_>, name: &str, value: &dyn Display| {
            writeln!(f, "<div><dt>{name}</dt><dd>{value}</dd></div>")
        };
        f.write_str("<dl class=\"settings\">\n")?;
        line(f, "misses by reason", &words(&cache.miss_reasons))?;
        line(f, "errors by kind", &words(&cache.errors_by_kind))?;
        for level in cache.levels.iter().filter(|level| !level.in_process) {
            line(f, &format!("{} failed", Text(&level.level)), &words(&level.faults))?;
            line(f, &format!("{} could not be read", Text(&level.level)), &words(&level.unreadable))?;
            line(f, &format!("{} was not sent", Text(&level.level)), &Count(level.unsent))?;
        }
        line(f, "fills overtaken", &Count(cache.fills_overtaken))?;
        line(f, "invalidations", &words(&cache.invalidations))?;
        let journal = &cache.journal;
        let values =
            format!("{} stored late, {} lost", Count(journal.values_stored), Count(journal.values_lost));
        line(f, "values in the journal", &values)?;
        if let Some(plane) = &cache.backplane {
            let heard = format!(
                "sent {}, received {}, not understood {}, gaps {}",
                Count(plane.sent),
                Count(plane.received),
                Count(plane.noise),
                Count(plane.gaps)
            );
            line(f, "backplane", &heard)?;
        }
        f.write_str("</dl>\n")
    })
}

fn sizes<'a>(estimate: Option<&'a Estimate>, cache: &'a Cache) -> impl Display + 'a {
    With(move |f: &mut fmt::Formatter<'_>| {
        let Some(estimate) = estimate else {
            return f.write_str(
                "<p>Too few look-ups so far, or no level in memory that says how large it is.</p>\n",
            );
        };
        let rows = |f: &mut fmt::Formatter<'_>| {
            for size in &estimate.sizes {
                let word = match size.factor {
                    factor if factor < 1.0 => "half",
                    factor if factor < 1.5 => "as it is",
                    factor if factor < 3.0 => "double",
                    _ => "four times",
                };
                writeln!(
                    f,
                    "<tr><th scope=\"row\">{word}</th><td>{}</td><td>{}</td></tr>",
                    Percent(Some(size.hit_rate)),
                    chart::share(size.hit_rate),
                )?;
            }
            Ok(())
        };
        let near = cache.served.first().filter(|_| cache.lookups > 0).map(|served| served.share);
        writeln!(
            f,
            "{}<p class=\"note\">What l1 would serve fresh of all look-ups, estimated from {} of the keys and {} of their \
             look-ups; so far it has served {}. Invalidations and sets are not taken into account.</p>",
            table("Memory", &["Memory", "Hit rate", ""], rows),
            Percent(Some(estimate.keys)),
            Count(estimate.lookups),
            Percent(near),
        )
    })
}

fn hottest<'a>(options: &'a PageBuilder, keys: &'a [HotKey]) -> impl Display + 'a {
    With(move |f: &mut fmt::Formatter<'_>| {
        if keys.is_empty() {
            return f.write_str("<p>None stands out, or too few look-ups so far.</p>\n");
        }
        let rows = |f: &mut fmt::Formatter<'_>| {
            for hot in keys {
                let masked = With(|f: &mut fmt::Formatter<'_>| match &hot.key {
                    Some(key) => write!(f, "<code>{}</code>", Text(key)),
                    None => write!(f, "masked <code>#{}</code>", Text(&hot.id)),
                });
                writeln!(f, "<tr><th scope=\"row\">{masked}</th><td>{}</td></tr>", Percent(Some(hot.share)))?;
            }
            Ok(())
        };
        write!(f, "{}", table("Hot keys", &["Key", "Of look-ups"], rows))?;
        if options.show_key.is_none() {
            f.write_str("<p class=\"note\">Keys are masked unless the service's code says otherwise.</p>\n")?;
        }
        Ok(())
    })
}

/// What somebody may send, outside of what is replaced all the time.
fn forms<'a>(options: &'a PageBuilder, cache: &'a Cache, done: &'a Done<'_>) -> impl Display + 'a {
    With(move |f: &mut fmt::Formatter<'_>| {
        if options.look_up.is_none() {
            return Ok(());
        }
        let to = format!("{}/caches/{}", options.path, cache.name);
        let key = if let Done::Looked { key, .. } = done { key } else { "" };
        write!(
            f,
            "<section class=\"forms\">\n<h2>Look a key up</h2>\n\
             <form method=\"post\" action=\"{}\" autocomplete=\"off\">\n<label for=\"key\">Key</label>\n\
             <input id=\"key\" name=\"key\" value=\"{}\" required maxlength=\"4096\" spellcheck=\"false\">\n\
             <button name=\"action\" value=\"look-up\">Look up</button>\n",
            Text(&to),
            Text(key)
        )?;
        if options.invalidate {
            write!(
                f,
                "<button name=\"action\" value=\"invalidate\" class=\"danger\">Invalidate key</button>\n</form>\n\
                 <form method=\"post\" action=\"{}\" autocomplete=\"off\">\n<label for=\"tag\">Tag</label>\n\
                 <input id=\"tag\" name=\"tag\" required maxlength=\"4096\" spellcheck=\"false\">\n\
                 <button name=\"action\" value=\"invalidate-tag\" class=\"danger\">Invalidate tag</button>\n",
                Text(&to)
            )?;
        }
        f.write_str("</form>\n</section>\n")
    })
}

fn outcome<'a>(done: &'a Done<'_>) -> impl Display + 'a {
    let line = |f: &mut fmt::Formatter<'_>, class: &str, role: &str, text: &dyn Display| {
        writeln!(f, "<p class=\"answer {class}\" role=\"{role}\">{text}</p>")
    };
    With(move |f: &mut fmt::Formatter<'_>| match done {
        Done::Nothing => Ok(()),
        Done::Refused { error } => line(f, "bad", "alert", &Text(error)),
        Done::Invalidated { confirmed: true } => {
            line(f, "good", "status", &"Invalidated: every level has it.")
        }
        Done::Invalidated { confirmed: false } => {
            let text = "Invalidated here; a level could not be reached, and hears of it when it is back.";
            line(f, "bad", "status", &text)
        }
        Done::Looked { key, look } => looked(f, key, look),
    })
}

fn looked(f: &mut fmt::Formatter<'_>, key: &str, look: &Look) -> fmt::Result {
    let by = match &look.served_by {
        Some(level) => format!("A look-up would be answered by {level}."),
        None => "No level has it fresh: a look-up would have it loaded.".to_owned(),
    };
    write!(
        f,
        "<section class=\"answer\">\n<h2>Key <code>{}</code></h2>\n<p role=\"status\">{by}</p>\n",
        Text(key)
    )?;
    for at in &look.levels {
        writeln!(f, "<h3>{} {}: {}</h3>", Text(&at.level), Text(at.system), Text(at.outcome))?;
        found(f, at)?;
    }
    f.write_str("</section>\n")
}

fn found(f: &mut fmt::Formatter<'_>, at: &At) -> fmt::Result {
    if let Some(error) = &at.error {
        writeln!(f, "<p class=\"bad\">{}</p>", Text(error))?;
    }
    if let Some(reason) = at.unreadable {
        writeln!(f, "<p class=\"bad\">cannot be read: {}</p>", Text(reason))?;
    }
    if let Some(entry) = &at.entry {
        said(f, entry)?;
    }
    if let Some(value) = &at.value {
        writeln!(f, "<pre tabindex=\"0\" aria-label=\"Value at {}\">{}</pre>", Text(&at.level), Text(value))?;
    }
    Ok(())
}

fn said(f: &mut fmt::Formatter<'_>, entry: &Entry) -> fmt::Result {
    let seconds = |time: Option<f64>| match time {
        Some(time) => Seconds(time).to_string(),
        None if entry.has_no_end => "no end".to_owned(),
        None => "not known".to_owned(),
    };
    let bytes = |bytes: usize| Bytes(u64::try_from(bytes).unwrap_or(u64::MAX)).to_string();
    let mut lines = vec![
        ("age", entry.age_s.map_or_else(|| "not known".to_owned(), |age| Seconds(age).to_string())),
        ("fresh for", seconds(entry.fresh_for_s)),
        ("usable for", seconds(entry.usable_for_s)),
        (
            "made by",
            match (entry.by_set, entry.load_us) {
                (Some(true), _) => "a set".to_owned(),
                (_, Some(took)) => format!("a load of {}", Micros(took)),
                _ => "not known".to_owned(),
            },
        ),
        ("tags", if entry.tags.is_empty() { "none".to_owned() } else { entry.tags.join(", ") }),
    ];
    lines.extend(entry.bytes.map(|size| ("size", bytes(size))));
    lines.extend(entry.value_bytes.map(|size| ("size of the value", bytes(size))));
    lines.extend(entry.etag.as_ref().map(|etag| ("etag", etag.clone())));
    let form: Vec<&str> = [entry.codec, entry.compression, entry.encrypted.then_some("encrypted")]
        .into_iter()
        .flatten()
        .collect();
    if !form.is_empty() {
        lines.push(("written as", form.join(", ")));
    }
    lines.extend(entry.schema.map(|schema| ("schema", schema.to_string())));
    f.write_str("<dl class=\"settings\">\n")?;
    for (name, value) in lines {
        writeln!(f, "<div><dt>{name}</dt><dd>{}</dd></div>", Text(&value))?;
    }
    f.write_str("</dl>\n")
}
