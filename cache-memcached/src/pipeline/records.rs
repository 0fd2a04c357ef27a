//! How requests are cut into records of TLS.
//!
//! While memcached waits for its socket, it does not look at what its TLS library has decrypted already (seen on 1.6.18:
//! of some thousand requests in records as large as they may be, the last hundreds had no answer until more was sent).
//! Something is left there when a record goes on behind the value that the server reads, or holds more than its buffer
//! has room for. So a record holds requests as a whole, or a part of one and nothing else.

/// What the server's buffer holds, and a record may.
const RECORD_MAX: usize = 16 << 10;

/// Where the next record ends.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Bytes to come of a request that is larger than a record.
    rest: usize,
}

impl Records {
    /// Length of the record that `requests` begin with: whole ones, after the rest of what was begun.
    pub(super) fn next(&self, requests: &[u8]) -> usize {
        if self.rest > 0 {
            return self.rest.min(RECORD_MAX).min(requests.len());
        }
        let mut end = 0;
        while let Some(length) = length_of_first(requests.get(end..).unwrap_or_default()) {
            if end + length > RECORD_MAX {
                break;
            }
            end += length;
        }
        // None fits: a part of the first.
        if end == 0 { RECORD_MAX.min(requests.len()) } else { end }
    }

    /// A record of that length has been taken.
    pub(super) fn taken(&mut self, length: usize, requests: &[u8]) {
        if self.rest == 0 {
            self.rest = length_of_first(requests).unwrap_or(length).max(length);
        }
        self.rest -= length;
    }
}

/// Bytes of the first request. `None`: there is none.
fn length_of_first(requests: &[u8]) -> Option<usize> {
    let line = requests.iter().position(|byte| *byte == b'\n')? + 1;
    let value = match requests.strip_prefix(b"ms ") {
        // `ms <key> <bytes> ...`, and a line end behind the value.
        Some(put) => {
            let size = put.split(|byte| *byte == b' ').nth(1)?;
            str::from_utf8(size).ok()?.parse::<usize>().ok()? + 2
        }
        None => 0,
    };
    Some(line + value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lengths of the records that are made of requests, each of them taken whole.
    fn cut(requests: &str) -> Vec<usize> {
        let (mut records, mut rest, mut lengths) = (Records::default(), requests.as_bytes(), Vec::new());
        while !rest.is_empty() {
            let length = records.next(rest);
            records.taken(length, rest);
            rest = &rest[length..];
            lengths.push(length);
        }
        assert_eq!(records.rest, 0);
        lengths
    }

    fn put(size: usize) -> String {
        format!("ms k {size} T9 O7\r\n{}\r\n", "\n".repeat(size))
    }

    #[test]
    fn a_record_ends_where_a_request_does() {
        let get = "mg k v O7\r\n";
        assert_eq!(cut(get), [get.len()]);
        assert_eq!(cut(&get.repeat(3)), [3 * get.len()]);
        let fit = RECORD_MAX / get.len();
        assert_eq!(cut(&get.repeat(fit + 1)), [fit * get.len(), get.len()]);
        let small = put(100);
        let fit = RECORD_MAX / small.len();
        assert_eq!(cut(&small.repeat(fit + 1)), [fit * small.len(), small.len()]);
        assert_eq!(cut(&[&*small, get, &put(0), &small].concat()).len(), 1);
    }

    #[test]
    fn a_large_request_has_records_of_its_own() {
        let get = "mg k v O7\r\n";
        for size in [RECORD_MAX - 30, RECORD_MAX, 2 * RECORD_MAX, 100_000] {
            let large = put(size);
            let lengths = cut(&[get, &large, get, get].concat());
            let (own, around) = (&lengths[1..lengths.len() - 1], [lengths[0], *lengths.last().unwrap()]);
            if large.len() + get.len() > RECORD_MAX {
                assert_eq!(around, [get.len(), 2 * get.len()], "{size}");
                assert_eq!(own.iter().sum::<usize>(), large.len(), "{size}");
            }
            assert!(lengths.iter().all(|length| *length <= RECORD_MAX));
        }
    }
}
