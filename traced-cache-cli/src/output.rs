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

    /// Writes the one or the other.
    pub(crate) fn answer(self, json: &impl Serialize, text: impl fmt::Display) -> Result<(), Failure> {
        let text = match self.json {
            true => serde_json::to_string(json).map_err(|error| Failure::failed(error.to_string()))?,
            false => text.to_string(),
        };
        write(text.trim_end_matches('\n'))
    }

    /// A bar for long work. None with `--json`, nor where the error output is no terminal.
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

/// Writes a line. A reader that has seen enough is no failure.
pub(crate) fn write(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{text}").and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::failed(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}
