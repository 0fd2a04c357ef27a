//! What a server says first. One that wants no more clients says so without being asked and closes the connection; one that
//! waits for TLS may answer with an alert.

use std::sync::{Arc, OnceLock};

/// Enough for the line that is told on.
const MOST: usize = 512;

/// The first bytes that came over a connection.
#[derive(Clone, Default)]
pub(crate) struct First(Arc<OnceLock<Vec<u8>>>);

impl First {
    /// Keeps these, unless there are some.
    pub(crate) fn keep(&self, bytes: &[u8]) {
        self.0.get_or_init(|| bytes[..bytes.len().min(MOST)].to_vec());
    }

    /// Whether that may be a server that waits for TLS: it hangs up on anything else without a word, or with an alert.
    pub(crate) fn may_want_tls(&self) -> bool {
        const ALERT: u8 = 21; // RFC 8446, section 5.1
        self.0.get().is_none_or(|bytes| bytes.first() == Some(&ALERT))
    }

    /// The error that they are, without its sign. Not fit to be shown as it is.
    pub(crate) fn error(&self) -> Option<&str> {
        let text = self.0.get()?.strip_prefix(b"-")?;
        let line = text.split(|byte| *byte == b'\r').next()?;
        // It may have been cut.
        line.utf8_chunks().next().map(|chunk| chunk.valid())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_first_is_told_on_also_where_it_is_long() {
        let error = |bytes: &[u8]| {
            let first = First::default();
            first.keep(bytes);
            first.error().map(str::to_owned)
        };
        assert_eq!(
            error(b"-ERR max number of clients reached\r\n").unwrap(),
            "ERR max number of clients reached"
        );
        let long = format!("-DENIED {}\r\n", "é".repeat(600));
        let said = error(long.as_bytes()).unwrap();
        assert!(said.starts_with("DENIED é") && said.len() <= MOST);
        assert_eq!(error(b"+OK\r\n"), None);
    }
}
