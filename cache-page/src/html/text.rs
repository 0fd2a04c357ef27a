//! Text and figures.

use std::fmt::{self, Display, Write};

/// Text in HTML, between tags or in quotes.
pub(super) struct Text<'a>(pub(super) &'a str);

impl Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// `12,345`.
pub(super) struct Count(pub(super) u64);

impl Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let digits = self.0.to_string();
        for (at, digit) in digits.chars().enumerate() {
            if at > 0 && (digits.len() - at).is_multiple_of(3) {
                f.write_char(',')?;
            }
            f.write_char(digit)?;
        }
        Ok(())
    }
}

/// `93.4 %`, or a dash where there is nothing to divide.
pub(super) struct Percent(pub(super) Option<f64>);

impl Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            // So that what is not all does not look like all, nor what is not nothing like nothing.
            Some(share) if share < 1.0 && share > 0.9994 => f.write_str("99.9 %"),
            Some(share) if share > 0.0 && share < 0.0005 => f.write_str("&lt;0.1 %"),
            Some(share) => write!(f, "{:.1} %", share * 100.0),
            None => f.write_str("–"),
        }
    }
}

/// Microseconds, in the unit that suits: `146 ns`, `24.5 µs`, `1.9 ms`, `2.5 s`.
pub(super) struct Micros(pub(super) f64);

impl Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0;
        match micros {
            m if m < 1.0 => write!(f, "{:.0} ns", m * 1e3),
            m if m < 1e3 => write!(f, "{m:.1} µs"),
            m if m < 1e6 => write!(f, "{:.1} ms", m / 1e3),
            m => write!(f, "{}", Seconds(m / 1e6)),
        }
    }
}

/// `2.5 s`, `3 m 20 s`, `2 h 5 m`, `3 d 4 h`.
pub(super) struct Seconds(pub(super) f64);

impl Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
        let whole = self.0.max(0.0) as u64;
        match whole {
            0..60 => write!(f, "{:.1} s", self.0),
            60..3600 => write!(f, "{} m {} s", whole / 60, whole % 60),
            3600..86_400 => write!(f, "{} h {} m", whole / 3600, whole / 60 % 60),
            _ => write!(f, "{} d {} h", whole / 86_400, whole / 3600 % 24),
        }
    }
}

/// `512 B`, `1.5 KiB`, `3.0 MiB`, `2.0 GiB`.
pub(super) struct Bytes(pub(super) u64);

impl Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        #[allow(clippy::cast_precision_loss, reason = "for people")]
        let bytes = self.0 as f64;
        match self.0 {
            0..1024 => write!(f, "{} B", self.0),
            1024..1_048_576 => write!(f, "{:.1} KiB", bytes / 1024.0),
            1_048_576..1_073_741_824 => write!(f, "{:.1} MiB", bytes / 1_048_576.0),
            _ => write!(f, "{:.1} GiB", bytes / 1_073_741_824.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(Text("<a b='c' d=\"e\">&").to_string(), "&lt;a b=&#39;c&#39; d=&quot;e&quot;&gt;&amp;");
    }

    #[test]
    fn figures_read_well() {
        assert_eq!(
            [0, 999, 1000, 1_234_567].map(|n| Count(n).to_string()),
            ["0", "999", "1,000", "1,234,567"]
        );
        let percents = [None, Some(0.0), Some(1e-5), Some(0.934), Some(0.99999), Some(1.0)]
            .map(|n| Percent(n).to_string());
        assert_eq!(percents, ["–", "0.0 %", "&lt;0.1 %", "93.4 %", "99.9 %", "100.0 %"]);
        let times = [0.146, 24.5, 1900.0, 2_500_000.0, 200_000_000.0].map(|n| Micros(n).to_string());
        assert_eq!(times, ["146 ns", "24.5 µs", "1.9 ms", "2.5 s", "3 m 20 s"]);
        assert_eq!([7500.0, 273_600.0].map(|n| Seconds(n).to_string()), ["2 h 5 m", "3 d 4 h"]);
        assert_eq!(
            [512, 1536, 3 << 20, 2 << 30].map(|n| Bytes(n).to_string()),
            ["512 B", "1.5 KiB", "3.0 MiB", "2.0 GiB"]
        );
    }
}
