//! Recorded traces, read as a stream: memory stays the same however long they are.
//!
//! A trace is a list of keys, plain or packed with xz or gzip: either one key a line (any UTF-8 text; blank lines are
//! skipped), or big-endian 32-bit integers. Packing is told by the first bytes, the form by the content: a control
//! character other than tab and line ends within the first 64 KiB means integers.

mod error;
mod packing;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    fs::File,
    io::{self, BufRead, Read},
    path::{Path, PathBuf},
};

pub use error::{Fault, TraceError};
use packing::{Packing, XZ_MEMORY, foreign, unpack, wants_memory};

/// Keys handed out at once.
const CHUNK: usize = 1024;
/// The longest key in bytes: without a bound, a file without line ends would be read whole.
const LINE: usize = 64 << 10;
/// How much of a trace is looked at to tell its form.
const SNIFFED: u64 = 64 << 10;
const AGAIN: &str = "copy or download the file again";

/// How keys are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Form {
    /// One key a line.
    Lines,
    /// Big-endian 32-bit integers.
    Integers,
}

impl Form {
    /// In words.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Lines => "one key a line",
            Self::Integers => "32-bit integers",
        }
    }
}

/// Some keys of a trace, in its order.
#[derive(Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Keys {
    /// Integers, as they are written.
    Integers(Vec<u32>),
    /// Lines of text.
    Lines(Lines),
}

impl Keys {
    /// How many.
    pub fn len(&self) -> usize {
        match self {
            Self::Integers(all) => all.len(),
            Self::Lines(all) => all.ends.len(),
        }
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Lines without their ends, in one piece of memory.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lines {
    text: String,
    ends: Vec<usize>,
}

impl Lines {
    /// One after the other.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.text[start..*end])
    }

    fn push(&mut self, line: &str) {
        self.text.push_str(line);
        self.ends.push(self.text.len());
    }
}

/// A trace under way.
pub struct Trace {
    input: Box<dyn BufRead + Send>,
    file: PathBuf,
    packing: Packing,
    form: Form,
    /// By its content, which may deceive; else by whoever reads it.
    told: bool,
    keys: u64,
    line: u64,
}

/// Its keys stay out.
impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").field("file", &self.file).field("form", &self.form).finish_non_exhaustive()
    }
}

impl Trace {
    /// Opens a file. `form`: as which its keys are read; told by the content where it is `None`.
    ///
    /// # Errors
    /// [`Fault::Unreadable`], [`Fault::Foreign`], or a fault of its beginning.
    pub fn open(file: &Path, form: Option<Form>) -> Result<Self, TraceError> {
        let input = File::open(file).map_err(|error| unreadable(file, error))?;
        Self::read(input, file, form)
    }

    /// Reads a trace; `file` is its name in errors. Looks at its beginning at once.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn read(
        input: impl Read + Send + 'static,
        file: &Path,
        form: Option<Form>,
    ) -> Result<Self, TraceError> {
        let (packing, magic, input) = unpack(input).map_err(|error| unreadable(file, error))?;
        let mut trace = Self {
            input,
            file: file.to_owned(),
            packing,
            form: Form::Lines,
            told: form.is_none(),
            keys: 0,
            line: 0,
        };
        let mut head = Vec::new();
        if let Err(error) = trace.input.by_ref().take(SNIFFED).read_to_end(&mut head) {
            // Not yet: the keys before it come first, so that it can be said where it is.
            trace.input = Box::new(Failing(Some(error)));
        }
        for bytes in [&magic, &head] {
            if let Some(what) = foreign(bytes) {
                return Err(trace.error(Fault::Foreign, what));
            }
        }
        if packing != Packing::Plain && Packing::of(&head) != Packing::Plain {
            return Err(trace.error(Fault::Foreign, "it is packed twice; unpack it once"));
        }
        let control = |byte: &u8| byte.is_ascii_control() && !b"\t\n\r".contains(byte);
        let told = if head.iter().any(control) { Form::Integers } else { Form::Lines };
        trace.form = form.unwrap_or(told);
        if trace.form == Form::Lines && head.starts_with("\u{feff}".as_bytes()) {
            head.drain(.."\u{feff}".len());
        }
        trace.input = Box::new(io::Cursor::new(head).chain(trace.input));
        Ok(trace)
    }

    /// How its keys are written.
    pub fn form(&self) -> Form {
        self.form
    }

    /// `plain`, `gzip` or `xz`.
    pub fn packing(&self) -> &'static str {
        self.packing.as_str()
    }

    /// The next keys; `None` at the end.
    ///
    /// # Errors
    /// What is wrong with the trace from here on.
    #[allow(clippy::should_implement_trait, reason = "it can fail, and then there is no more")]
    pub fn next(&mut self) -> Result<Option<Keys>, TraceError> {
        let keys = match self.form {
            Form::Integers => Keys::Integers(self.integers()?),
            Form::Lines => Keys::Lines(self.lines()?),
        };
        if !keys.is_empty() {
            self.keys += keys.len() as u64;
            return Ok(Some(keys));
        }
        if self.keys == 0 { Err(self.empty()) } else { Ok(None) }
    }

    fn integers(&mut self) -> Result<Vec<u32>, TraceError> {
        let mut bytes = Vec::with_capacity(CHUNK * 4);
        let read = self.input.by_ref().take(CHUNK as u64 * 4).read_to_end(&mut bytes);
        read.map_err(|error| {
            self.keys += bytes.len() as u64 / 4;
            self.failed(error)
        })?;
        let (whole, rest) = bytes.as_chunks::<4>();
        let integers: Vec<_> = whole.iter().map(|bytes| u32::from_be_bytes(*bytes)).collect();
        if rest.is_empty() {
            return Ok(integers);
        }
        self.keys += integers.len() as u64;
        Err(self.error(
            Fault::Cut,
            format!(
                "{} of the 4 bytes of an integer are left at the end, {}; {AGAIN}, or, if it has one key a line, say --format lines",
                rest.len(),
                self.after()
            ),
        ))
    }

    fn lines(&mut self) -> Result<Lines, TraceError> {
        let mut lines = Lines::default();
        let mut line = Vec::new();
        while lines.ends.len() < CHUNK {
            line.clear();
            let read = self.input.by_ref().take(LINE as u64 + 2).read_until(b'\n', &mut line);
            let read = read.map_err(|error| {
                self.keys += lines.ends.len() as u64;
                self.failed(error)
            })?;
            if read == 0 {
                break;
            }
            self.line += 1;
            let text = line.strip_suffix(b"\n").unwrap_or(&line);
            let text = text.strip_suffix(b"\r").unwrap_or(text);
            if text.len() > LINE {
                return Err(self.bad_line(format!("is longer than {LINE} bytes")));
            }
            let text = match std::str::from_utf8(text) {
                Ok(text) if text.contains('\0') => {
                    return Err(self.bad_line("has a zero byte".to_owned()));
                }
                Ok(text) => text,
                Err(error) => {
                    return Err(
                        self.bad_line(format!("is not UTF-8 from its byte {} on", error.valid_up_to() + 1))
                    );
                }
            };
            if !text.is_empty() {
                lines.push(text);
            }
        }
        Ok(lines)
    }

    fn bad_line(&self, what: String) -> TraceError {
        let fix = match self.told {
            true => {
                "one key a line is wanted; if these are big-endian 32-bit integers, say --format integers"
            }
            false => "one key a line is wanted, in UTF-8",
        };
        self.error(Fault::Foreign, format!("line {} {what}; {fix}", self.line))
    }

    fn empty(&self) -> TraceError {
        let unpacked = if self.packing == Packing::Plain { "" } else { " once unpacked" };
        self.error(Fault::Empty, format!("no key in it{unpacked}; give a trace with at least one"))
    }

    fn after(&self) -> String {
        format!("after {} {}", self.keys, if self.keys == 1 { "key" } else { "keys" })
    }

    fn error(&self, fault: Fault, message: impl Into<String>) -> TraceError {
        TraceError::new(&self.file, fault, message)
    }

    /// What an error while reading means.
    fn failed(&self, error: io::Error) -> TraceError {
        // The system's errors have a number, those of unpacking have none.
        if self.packing == Packing::Plain || error.raw_os_error().is_some() {
            return unreadable(&self.file, error);
        }
        let (packing, after) = (self.packing.as_str(), self.after());
        let (fault, message) = match error.kind() {
            io::ErrorKind::UnexpectedEof => {
                (Fault::Cut, format!("the {packing} data ends {after}, before its own end mark; {AGAIN}"))
            }
            _ if wants_memory(&error) => {
                let most = XZ_MEMORY >> 20;
                let what = format!("the {packing} data takes more than {most} MiB of memory to unpack");
                (
                    Fault::Unreadable,
                    format!("{what}; unpack it, or pack it with a smaller dictionary (xz -9)"),
                )
            }
            _ => (Fault::Corrupt, format!("the {packing} data is damaged {after}; {AGAIN}")),
        };
        self.error(fault, message).caused(error)
    }
}

/// Fails once, then is at its end.
struct Failing(Option<io::Error>);

impl Read for Failing {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        self.0.take().map_or(Ok(0), Err)
    }
}

impl BufRead for Failing {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.0.take().map_or(Ok(&[]), Err)
    }

    fn consume(&mut self, _: usize) {}
}

fn unreadable(file: &Path, error: io::Error) -> TraceError {
    TraceError::new(file, Fault::Unreadable, "give a file that exists and may be read").caused(error)
}

impl TraceError {
    /// A file that could not be opened as a trace.
    pub fn unreadable(file: &Path, error: io::Error) -> Self {
        unreadable(file, error)
    }
}
