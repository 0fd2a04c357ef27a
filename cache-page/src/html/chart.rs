//! Pictures, as SVG. Colours are the style sheet's.

use std::fmt::{self, Display};

use super::{
    With,
    text::{Count, Percent, Seconds, Text},
};
use crate::report::{History, Served};

const WIDTH: f64 = 1200.0;
const HEIGHT: f64 = 190.0;
/// Room for words at the left, and below.
const LEFT: f64 = 48.0;
const BELOW: f64 = 20.0;

#[allow(clippy::cast_precision_loss, reason = "positions in a picture")]
fn x(at: usize, of: usize, left: f64, width: f64) -> f64 {
    // The newest at the right.
    left + (width - left) * (at as f64 + 0.5) / of.max(1) as f64
}

/// The line of the hit rate; gaps where nobody asked.
fn line(f: &mut fmt::Formatter<'_>, history: &History, left: f64, width: f64, height: f64) -> fmt::Result {
    let mut begun = false;
    for (at, point) in history.points.iter().enumerate() {
        let Some(rate) = point.hit_rate() else {
            begun = false;
            continue;
        };
        let (x, y) = (x(at, history.points.len(), left, width), 2.0 + (height - 4.0) * (1.0 - rate));
        // A line of no length is a dot.
        let to = if begun { "L" } else { "M" };
        write!(f, "{to}{x:.1} {y:.1}")?;
        if !begun {
            write!(f, "L{x:.1} {y:.1}")?;
        }
        begun = true;
    }
    Ok(())
}

/// A line in a table's cell.
pub(super) fn spark(history: &History) -> impl Display + '_ {
    With(move |f: &mut fmt::Formatter<'_>| {
        f.write_str(
            "<svg class=\"spark\" viewBox=\"0 0 120 26\" aria-hidden=\"true\"><path class=\"line\" d=\"",
        )?;
        line(f, history, 0.0, 120.0, 26.0)?;
        f.write_str("\"/></svg>")
    })
}

/// Hit rate over time, with look-ups as bars behind it.
pub(super) fn history(history: &History) -> impl Display + '_ {
    With(move |f: &mut fmt::Formatter<'_>| {
        let points = &history.points;
        let (foot, most) = (HEIGHT - BELOW, points.iter().map(|point| point.lookups).max().unwrap_or(0));
        #[allow(clippy::cast_precision_loss, reason = "positions in a picture")]
        let seconds = (history.step_s * points.len() as u64) as f64;
        let last = points.iter().rev().find_map(|point| point.hit_rate());
        write!(
            f,
            "<svg class=\"chart\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-labelledby=\"chart-says\">\
             <title id=\"chart-says\">Hit rate over the last {}, {} at the end; up to {} look-ups in {} s</title>",
            Seconds(seconds),
            Percent(last),
            Count(most),
            history.step_s,
        )?;
        for (share, word) in [(1.0, "100 %"), (0.5, "50 %"), (0.0, "0 %")] {
            let y = 2.0 + (foot - 4.0) * (1.0 - share);
            write!(
                f,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{WIDTH}\"/>\
                 <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{word}</text>",
                LEFT - 6.0,
                (y + 4.0).max(11.0),
            )?;
        }
        #[allow(clippy::cast_precision_loss, reason = "positions in a picture")]
        let wide = ((WIDTH - LEFT) / points.len().max(1) as f64 * 0.8).max(0.5);
        f.write_str("<path class=\"bars\" d=\"")?;
        for (at, point) in points.iter().enumerate().filter(|(_, point)| point.lookups > 0) {
            #[allow(clippy::cast_precision_loss, reason = "positions in a picture")]
            let tall = (foot - 4.0) * 0.4 * point.lookups as f64 / most.max(1) as f64;
            let x = x(at, points.len(), LEFT, WIDTH) - wide / 2.0;
            write!(f, "M{x:.1} {:.1}v{:.1}h{wide:.1}v{tall:.1}z", foot - 2.0, -tall)?;
        }
        f.write_str("\"/><path class=\"line\" d=\"")?;
        line(f, history, LEFT, WIDTH, foot)?;
        write!(
            f,
            "\"/><text x=\"{LEFT}\" y=\"{y}\">{} ago</text>\
             <text x=\"{WIDTH}\" y=\"{y}\" text-anchor=\"end\">now</text></svg>\n\
             <p class=\"key\"><span class=\"swatch line\"></span> hit rate \
             <span class=\"swatch bars\"></span> look-ups, up to {} in {} s</p>\n",
            Seconds(seconds),
            Count(most),
            history.step_s,
            y = HEIGHT - 4.0,
        )
    })
}

/// Who served look-ups: a bar, nearest level first.
pub(super) fn served(served: &[Served]) -> impl Display + '_ {
    With(move |f: &mut fmt::Formatter<'_>| {
        f.write_str("<svg class=\"bar\" viewBox=\"0 0 100 8\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"")?;
        for (at, part) in served.iter().filter(|part| part.lookups > 0).enumerate() {
            let comma = if at > 0 { ", " } else { "" };
            write!(f, "{comma}{} {}", Text(&part.by), Percent(Some(part.share)))?;
        }
        f.write_str("\">")?;
        let mut from = 0.0;
        for part in served {
            let wide = part.share * 100.0;
            if wide > 0.0 {
                let by = class(&part.by);
                write!(
                    f,
                    "<rect class=\"by-{by}\" x=\"{from:.2}\" y=\"0\" width=\"{wide:.2}\" height=\"8\"/>"
                )?;
            }
            from += wide;
        }
        f.write_str("</svg>")
    })
}

/// The style of who served it; beyond the third all levels look alike.
pub(super) fn class(by: &str) -> &str {
    match by {
        "l1" | "l2" | "l3" | "coalesced" | "miss" => by,
        _ => "l3",
    }
}

/// A share of one, as a bar.
pub(super) fn share(share: f64) -> impl Display {
    With(move |f: &mut fmt::Formatter<'_>| {
        let wide = share.clamp(0.0, 1.0) * 100.0;
        write!(
            f,
            "<svg class=\"bar\" viewBox=\"0 0 100 8\" preserveAspectRatio=\"none\" aria-hidden=\"true\">\
             <rect class=\"by-l1\" width=\"{wide:.2}\" height=\"8\"/></svg>"
        )
    })
}
