//! What goes to the standard output, and progress on the error output.

use std::{
    fmt,
    io::{self, IsTerminal, Write},
};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::end::Failure;

/// Where answers go: text for people, or one JSON document for programs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Output {
    json: bool,
}

impl Output {
    pub(crate) fn new(json: bool) -> Self {
        Self { json }
    }

    pub(crate) fn is_json(self) -> bool {
        self.json
    }

    /// Prints an answer in the form that was asked for.
    pub(crate) fn answer(self, json: &impl Serialize, text: impl fmt::Display) -> Result<(), Failure> {
        let text = match self.json {
            true => serde_json::to_string(json).map_err(|error| Failure::failed(error.to_string()))?,
            false => text.to_string(),
        };
        write(plain(&text).trim_end_matches('\n')).map(drop)
    }

    /// A progress bar. There is none with `--json`, nor where the error output is not a terminal.
    pub(crate) fn bar(self, total: u64, of: &'static str) -> ProgressBar {
        self.styled(total, "{bar:40} {human_pos} of {human_len} {msg} ({eta} left)").with_message(of)
    }

    /// The same over the bytes of a file.
    pub(crate) fn bytes_bar(self, total: u64) -> ProgressBar {
        self.styled(total, "{bar:40} {percent:>3} % of the file, {msg} ({eta} left)")
    }

    fn styled(self, total: u64, template: &str) -> ProgressBar {
        if self.json || !io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
        ProgressBar::new(total).with_style(style)
    }
}

/// Removes control characters other than line ends: what stores, servers and services say must not control the terminal. JSON
/// stays valid, as it can have such characters in texts only.
pub(crate) fn plain(text: &str) -> String {
    escaped(text, |c| c != '\n')
}

/// The same for a text within a line: removes line ends, too.
pub(crate) fn word(text: &str) -> String {
    escaped(text, |_| true)
}

fn escaped(text: &str, which: impl Fn(char) -> bool) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        match c.is_control() && which(c) {
            true => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            false => out.push(c),
        }
        out
    })
}

/// Writes a line. `false` if the reader has closed the pipe, which is no failure.
pub(crate) fn write(text: &str) -> Result<bool, Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(Failure::failed(format!("standard output: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shown_moves_no_cursor() {
        assert_eq!(plain("a\n\u{1b}[2J\u{9b}é\t"), "a\n\\u001b[2J\\u009bé\\u0009");
        assert_eq!(word("a\r\nb"), "a\\u000d\\u000ab");
    }
}
