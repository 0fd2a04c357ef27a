//! Replies from bytes that arrive in any pieces (RESP3).
//!
//! Where a reply ends is found here. Strings and lists of them, which look-ups get, are parts of the input buffer; anything
//! else is read by the client library. A string over the limit is not kept: an error stands in its place.

use bytes::{Buf, Bytes, BytesMut};
use redis::{RedisError, Value, parse_redis_value};

/// Longest line: a number, an error, a status.
const LINE_MAX: usize = 64 << 10;
/// Largest string: the server's own ceiling (`proto-max-bulk-len`) unless it was raised.
const STRING_MAX: usize = 512 << 20;
/// Strings of this size are always read: what a server says of itself comes as such, too.
const ALWAYS: usize = 1 << 20;
/// In the place of a string that was not kept.
const LEFT_OUT: &[u8] = b"-TOOLARGE\r\n";
/// Most elements of all lists of a reply: each takes memory, however short. None of our requests has such an answer. A push
/// that has more ends the connection, and that is a gap.
const ELEMENTS_MAX: u64 = 1 << 20;
/// Most bytes of a reply beside the values that were asked for. The same goes for a push that has more.
const BESIDE_MAX: usize = 64 << 20;
/// Lists within lists.
const DEPTH_MAX: usize = 32;
/// Room for the next read.
const READ_ROOM: usize = 64 << 10;
/// Replies up to this size leave the buffer as it is.
const KEEP: usize = 256 << 10;
/// Most that is allocated at a time for a string that has been announced.
const AHEAD_MAX: usize = 1 << 20;

/// What a server says.
#[derive(Debug)]
pub(crate) enum Reply {
    /// A string, a part of the input buffer.
    Text(Bytes),
    Nil,
    /// A list of strings and nothings.
    Texts(Vec<Option<Bytes>>),
    Other(Value),
    /// None of its own: it was gathered with others, and one of them has failed all. To be asked alone.
    AskAlone,
}

impl Reply {
    /// Copied, so that nothing keeps the input buffer alive.
    pub(crate) fn into_value(self) -> Value {
        let copied = |text: Bytes| Value::BulkString(text.to_vec());
        match self {
            Self::Text(text) => copied(text),
            Self::Nil | Self::AskAlone => Value::Nil,
            Self::Texts(texts) => {
                Value::Array(texts.into_iter().map(|text| text.map_or(Value::Nil, copied)).collect())
            }
            Self::Other(value) => value,
        }
    }
}

/// The peer does not speak RESP3.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Garbled;

/// Input that has not made up a reply so far.
pub(super) struct Frames {
    input: BytesMut,
    scan: Scan,
    /// Longest string that is kept.
    most: usize,
    /// Of a string that is not: where it goes on, and how many bytes are to come.
    left_out: (usize, usize),
}

/// What there is of a reply.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    Part,
    All,
    /// A string that is not to be kept begins there, and is so long with what ends it.
    Large(usize, usize),
}

/// How far a reply has been looked through.
#[derive(Default)]
struct Scan {
    at: usize,
    /// Bytes that the input must have before it can go on.
    wants: usize,
    /// Elements to come, of each list that has begun.
    open: Vec<u64>,
    /// Elements of all lists that have begun.
    elements: u64,
    /// Whether it is more than a string or a list of strings.
    odd: bool,
}

impl Frames {
    /// Keeps strings of up to `most` bytes, and of up to a MiB in any case.
    pub(super) fn new(most: usize) -> Self {
        let input = BytesMut::new();
        Self { input, scan: Scan::default(), most: most.max(ALWAYS), left_out: (0, 0) }
    }

    /// Where the next bytes go.
    pub(super) fn room(&mut self) -> &mut BytesMut {
        let missing = self.scan.wants.saturating_sub(self.input.len()).min(AHEAD_MAX);
        if self.input.capacity() - self.input.len() < missing.max(READ_ROOM / 4) {
            self.input.reserve(missing.max(READ_ROOM));
        }
        &mut self.input
    }

    /// What has come, of what is yet to be read.
    pub(super) fn unread(&self) -> &[u8] {
        &self.input
    }

    /// The next complete reply, to a question for so many values: it may be as large as these and a bit more.
    pub(super) fn next(&mut self, values: usize) -> Result<Option<Reply>, RedisError> {
        let room = values.saturating_mul(self.most).saturating_add(BESIDE_MAX);
        while self.has_left_out() {
            match self.scan.end(&self.input, self.most, room) {
                Ok(Found::Part) => return Ok(None),
                Ok(Found::All) => return self.take().map(Some),
                Ok(Found::Large(at, length)) => self.leave_out(at, length),
                Err(Garbled) => return Err(garbled()),
            }
        }
        Ok(None)
    }

    /// The reply that has been looked through.
    fn take(&mut self) -> Result<Reply, RedisError> {
        let Scan { at, odd, .. } = std::mem::take(&mut self.scan);
        let frame = self.input.split_to(at);
        if at > KEEP {
            // Otherwise the buffer keeps the size of the largest reply.
            let mut rest = BytesMut::with_capacity(READ_ROOM.max(self.input.len()));
            rest.extend_from_slice(&self.input);
            self.input = rest;
        }
        Ok(if odd { Reply::Other(read(&frame)?) } else { texts(frame.freeze()) })
    }

    /// Puts an error in the place of the string whose line has just been looked at. What has come behind that line is the
    /// smaller part: split off, it would have all that is kept in front of it move, for each such string of a list.
    fn leave_out(&mut self, at: usize, length: usize) {
        let come = self.input[at..].to_vec();
        self.input.truncate(self.scan.at);
        self.input.extend_from_slice(LEFT_OUT);
        self.left_out = (self.input.len(), length);
        self.input.extend_from_slice(&come);
    }

    /// Drops what has come of a string that is not kept; whether that was all of it.
    fn has_left_out(&mut self) -> bool {
        let (at, length) = self.left_out;
        if length > 0 {
            let come = length.min(self.input.len() - at);
            self.input.copy_within(at + come.., at);
            self.input.truncate(self.input.len() - come);
            self.left_out.1 -= come;
        }
        self.left_out.1 == 0
    }
}

fn read(frame: &[u8]) -> Result<Value, RedisError> {
    let read = match frame.first() {
        // It may quote what was sent, which need not be text, nor end where a character does.
        Some(b'-') => parse_redis_value(String::from_utf8_lossy(frame).as_bytes()),
        _ => parse_redis_value(frame),
    };
    read.map_err(|_unread| garbled())
}

/// An answer that RESP3 does not have, or that does not fit the question.
pub(super) fn garbled() -> RedisError {
    (redis::ErrorKind::Parse, "the answer does not fit the question, or is no RESP3").into()
}

impl Scan {
    /// Whether the input holds the whole reply, which then ends at `at`, and not behind `room` bytes.
    fn end(&mut self, input: &[u8], most: usize, room: usize) -> Result<Found, Garbled> {
        if input.len() < self.wants {
            return Ok(Found::Part);
        }
        loop {
            let Some((sign, line, behind)) = line(input, self.at)? else {
                return Ok(Found::Part);
            };
            let mut elements = 0;
            match sign {
                b'$' | b'=' | b'!' => {
                    let length = length(line, STRING_MAX as u64)?;
                    if sign != b'$' && length.is_none() {
                        return Err(Garbled);
                    }
                    if let Some(length) = length {
                        // Within the limit, which is a `usize`.
                        let length = usize::try_from(length).unwrap_or(STRING_MAX);
                        let end = behind + length;
                        if length > most {
                            return Ok(Found::Large(behind, length + 2));
                        }
                        if input.len() < end + 2 {
                            if end > room {
                                return Err(Garbled);
                            }
                            self.wants = end + 2;
                            return Ok(Found::Part);
                        }
                        if &input[end..end + 2] != b"\r\n" {
                            return Err(Garbled);
                        }
                        self.at = end + 2;
                    } else {
                        self.at = behind;
                    }
                }
                b'*' | b'~' | b'>' | b'%' | b'|' => {
                    elements = match length(line, ELEMENTS_MAX)? {
                        Some(count) => count,
                        None if sign == b'*' => 0,
                        None => return Err(Garbled),
                    };
                    if matches!(sign, b'%' | b'|') {
                        elements *= 2;
                    }
                    // What it is about comes behind an attribute.
                    elements += u64::from(sign == b'|');
                    self.at = behind;
                }
                b'_' if !line.is_empty() => return Err(Garbled),
                b'_' | b':' | b'+' | b'-' | b',' | b'#' | b'(' => self.at = behind,
                _ => return Err(Garbled),
            }
            if self.at > room {
                return Err(Garbled);
            }
            self.odd |= match (sign, self.open.len()) {
                (b'$' | b'_', _) => false,
                // No list at all is nothing.
                (b'*', 0) => line.first() == Some(&b'-'),
                _ => true,
            };
            if elements > 0 {
                self.elements += elements;
                if self.open.len() >= DEPTH_MAX || self.elements > ELEMENTS_MAX {
                    return Err(Garbled);
                }
                self.open.push(elements);
                continue;
            }
            // One element less of the list around it, and of the one around that if it was the last.
            loop {
                let Some(left) = self.open.last_mut() else { return Ok(Found::All) };
                *left -= 1;
                if *left > 0 {
                    break;
                }
                self.open.pop();
            }
        }
    }
}

/// Sign and text of a line, and where the next one begins.
type Line<'a> = (u8, &'a [u8], usize);

/// The line at `at`. `None`: it has not come as a whole.
fn line(input: &[u8], at: usize) -> Result<Option<Line<'_>>, Garbled> {
    let rest = input.get(at..).unwrap_or_default();
    let Some(end) = rest.iter().take(LINE_MAX).position(|byte| *byte == b'\n') else {
        return if rest.len() < LINE_MAX { Ok(None) } else { Err(Garbled) };
    };
    match rest[..end].split_first() {
        Some((sign, line)) => Ok(Some((*sign, line.strip_suffix(b"\r").ok_or(Garbled)?, at + end + 1))),
        None => Err(Garbled),
    }
}

/// How long what follows is. `None`: there is nothing, as opposed to something empty.
fn length(line: &[u8], most: u64) -> Result<Option<u64>, Garbled> {
    if line == b"-1" {
        return Ok(None);
    }
    if line.is_empty() || line.len() > 19 {
        return Err(Garbled);
    }
    let mut length = 0;
    for byte in line {
        if !byte.is_ascii_digit() {
            return Err(Garbled);
        }
        length = length * 10 + u64::from(byte - b'0');
    }
    if length <= most { Ok(Some(length)) } else { Err(Garbled) }
}

/// A reply that has been found to be a string, nothing, or a list of such.
fn texts(mut frame: Bytes) -> Reply {
    if frame.first() != Some(&b'*') {
        return next_text(&mut frame).map_or(Reply::Nil, Reply::Text);
    }
    let count = head(&mut frame).unwrap_or(0);
    Reply::Texts((0..count).map(|_| next_text(&mut frame)).collect())
}

/// Takes one element off a frame that is well-formed.
fn next_text(frame: &mut Bytes) -> Option<Bytes> {
    let length = head(frame)?;
    let text = frame.split_to(length.min(frame.len()));
    frame.advance(frame.len().min(2));
    Some(text)
}

/// Takes a line off a frame that is well-formed; the number in it.
fn head(frame: &mut Bytes) -> Option<usize> {
    let end = frame.iter().position(|byte| *byte == b'\n')?;
    let length = frame.get(1..end - 1).and_then(|line| length(line, u64::MAX).ok().flatten());
    frame.advance(end + 1);
    length.and_then(|length| usize::try_from(length).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(input: &[u8], step: usize) -> Result<Vec<String>, RedisError> {
        let mut frames = Frames::new(STRING_MAX);
        let mut replies = Vec::new();
        for piece in input.chunks(step) {
            frames.room().extend_from_slice(piece);
            while let Some(reply) = frames.next(1)? {
                replies.push(format!("{reply:?}"));
            }
        }
        assert!(frames.input.is_empty(), "{:?}", frames.input);
        Ok(replies)
    }

    #[test]
    fn any_cut_gives_the_same_replies() {
        let big = "x".repeat(40_000);
        let input = format!(
            "$3\r\nabc\r\n$-1\r\n_\r\n*2\r\n$1\r\na\r\n_\r\n*0\r\n*-1\r\n$0\r\n\r\n+OK\r\n:12\r\n-ERR no\r\n%1\r\n+a\r\n:1\r\n\
             >2\r\n$10\r\ninvalidate\r\n*1\r\n$1\r\nk\r\n*2\r\n*1\r\n$1\r\na\r\n$1\r\nb\r\n$40000\r\n{big}\r\n#t\r\n,1.5\r\n\
             =5\r\ntxt:a\r\n|1\r\n+a\r\n:1\r\n$1\r\nv\r\n*2\r\n$2\r\n\r\n\r\n$-1\r\n~1\r\n$1\r\na\r\n"
        );
        let whole = all(input.as_bytes(), usize::MAX).unwrap();
        assert_eq!(whole.len(), 20);
        assert_eq!(whole[0], r#"Text(b"abc")"#);
        assert_eq!((&*whole[1], &*whole[2]), ("Nil", "Nil"));
        assert_eq!(whole[3], r#"Texts([Some(b"a"), None])"#);
        assert_eq!(whole[4], "Texts([])");
        assert_eq!(whole[5], "Other(nil)");
        assert_eq!(whole[6], r#"Text(b"")"#);
        assert_eq!(whole[18], r#"Texts([Some(b"\r\n"), None])"#);
        for step in [1, 2, 3, 7, 1_000, 16_384] {
            assert_eq!(all(input.as_bytes(), step).unwrap(), whole, "{step}");
        }
    }

    /// Redis quotes arguments in it, and cuts them where it likes.
    #[test]
    fn an_error_may_quote_any_bytes() {
        let mut frames = Frames::new(STRING_MAX);
        let said =
            b"-ERR unknown command 'PUBLISH', with args beginning with: 'b:' '\xff\xc3' \r\n$1\r\na\r\n";
        frames.room().extend_from_slice(said);
        let Some(Reply::Other(Value::ServerError(error))) = frames.next(1).unwrap() else {
            panic!("no error")
        };
        assert_eq!(error.code(), "ERR");
        assert!(error.details().is_some_and(|text| text.starts_with("unknown command 'PUBLISH'")));
        assert!(matches!(frames.next(1).unwrap(), Some(Reply::Text(text)) if text == "a"));
    }

    #[test]
    fn a_large_reply_does_not_stay_in_the_buffer() {
        for large in [format!("$9000000\r\n{}\r\n", "x".repeat(9_000_000)), {
            let one = format!("$10000\r\n{}\r\n", "x".repeat(10_000));
            format!("*900\r\n{}", one.repeat(900))
        }] {
            let mut frames = Frames::new(STRING_MAX);
            let mut replies = Vec::new();
            for piece in (large + "$1\r\na\r\n$1\r\n").as_bytes().chunks(16_000) {
                frames.room().extend_from_slice(piece);
                while let Some(reply) = frames.next(1).unwrap() {
                    replies.push(reply);
                }
            }
            assert_eq!(replies.len(), 2);
            drop(replies);
            assert!(frames.room().capacity() <= 4 * READ_ROOM, "{}", frames.input.capacity());
        }
    }

    #[test]
    fn a_string_over_the_limit_is_never_held() {
        let large = "x".repeat(ALWAYS + 1);
        let (length, fits) = (large.len(), "y".repeat(ALWAYS));
        let input = format!(
            "${length}\r\n{large}\r\n*3\r\n$1\r\na\r\n${length}\r\n{large}\r\n$1\r\nb\r\n*1\r\n${length}\r\n{large}\r\n\
             ${ALWAYS}\r\n{fits}\r\n$1\r\nc\r\n"
        );
        for step in [1_000, 16_384, 65_537, usize::MAX] {
            let (mut frames, mut replies) = (Frames::new(5), Vec::new());
            for piece in input.as_bytes().chunks(step) {
                frames.room().extend_from_slice(piece);
                while let Some(reply) = frames.next(1).unwrap() {
                    replies.push(reply.into_value());
                }
                let held = frames.input.len();
                assert!(step > 1 << 20 || held <= ALWAYS + 2 * step, "{held} bytes are held");
            }
            let left_out = |value: &Value| matches!(value, Value::ServerError(e) if e.code() == "TOOLARGE");
            let text = |value: &Value, text: &str| *value == Value::BulkString(text.as_bytes().to_vec());
            let [first, Value::Array(three), Value::Array(one), kept, last] = &replies[..] else {
                panic!("{} replies", replies.len())
            };
            assert!(left_out(first) && left_out(&three[1]) && left_out(&one[0]), "{step}");
            assert!(text(&three[0], "a") && text(&three[2], "b") && text(last, "c"), "{step}");
            assert!(text(kept, &fits), "{step}");
            assert!(frames.input.is_empty());
        }
    }

    /// A reply of any shape.
    fn made_up(random: &mut fastrand::Rng, depth: usize, out: &mut String) {
        let text = |random: &mut fastrand::Rng| "\r\nab".repeat(random.usize(0..4));
        let texts_only = depth == 0 || random.bool();
        match random.u8(0..if texts_only { 3 } else { 12 }) {
            0 | 1 => {
                let text = text(random);
                out.push_str(&format!("${}\r\n{text}\r\n", text.len()));
            }
            2 => out.push_str(if random.bool() { "$-1\r\n" } else { "_\r\n" }),
            3 => out.push_str("+OK\r\n"),
            4 => out.push_str(":-12\r\n"),
            5 => out.push_str("-NOPERM no\r\n"),
            6 => out.push_str("#t\r\n"),
            7 => out.push_str(",1.5\r\n"),
            8 => out.push_str("=5\r\ntxt:a\r\n"),
            sign => {
                let (sign, each) = [("*", 1), ("~", 1), ("%", 2)][usize::from(sign - 9)];
                let count = random.usize(0..4);
                out.push_str(&format!("{sign}{count}\r\n"));
                (0..count * each).for_each(|_| made_up(random, depth - 1, out));
            }
        }
    }

    #[test]
    fn any_reply_is_what_the_client_library_reads() {
        for seed in 0..2_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut input = String::new();
            made_up(&mut random, 3, &mut input);
            let mut frames = Frames::new(STRING_MAX);
            let step = random.usize(1..9);
            let mut found = None;
            for piece in input.as_bytes().chunks(step) {
                assert!(found.is_none(), "{input:?}");
                frames.room().extend_from_slice(piece);
                found = frames.next(1).unwrap();
            }
            let found = found.map(Reply::into_value);
            assert_eq!(found, Some(parse_redis_value(input.as_bytes()).unwrap()), "{input:?}");
        }
    }

    /// A reply of any shape whose strings may be over a limit of 8, and the same with an error in the place of those.
    fn made_up_large(random: &mut fastrand::Rng, depth: usize, kept: bool, out: &mut [String; 2]) {
        let mut both = |text: &str| out.iter_mut().for_each(|out| out.push_str(text));
        match random.u8(0..if depth == 0 { 5 } else { 9 }) {
            0 if !kept => both("$-1\r\n"),
            1 if !kept => both(":-12\r\n"),
            sign @ 0..5 => {
                let text = "\r\n$9\r\n-E a\r\n".repeat(3);
                let length = random.usize(0..if kept { 9 } else { text.len() });
                let (sign, text) = match sign {
                    _ if kept => ("$", text[..length].to_owned()),
                    2 => ("=", format!("txt:{}", &text[..length])),
                    3 => ("!", format!("ERR {}", &text[..length].replace(['\r', '\n'], "x"))),
                    _ => ("$", text[..length].to_owned()),
                };
                let whole = format!("{sign}{}\r\n{text}\r\n", text.len());
                let [input, expected] = out;
                expected.push_str(if text.len() > 8 { "-TOOLARGE\r\n" } else { &whole });
                input.push_str(&whole);
            }
            5 => {
                both("|1\r\n");
                (0..3).for_each(|_| made_up_large(random, depth - 1, false, out));
            }
            sign => {
                let (sign, each) = [("*", 1), ("~", 1), ("%", 2)][usize::from(sign - 6)];
                let count = random.usize(0..5);
                both(&format!("{sign}{count}\r\n"));
                (0..count * each).for_each(|_| made_up_large(random, depth - 1, false, out));
            }
        }
    }

    #[test]
    fn wherever_a_string_is_left_out_and_the_input_is_cut_the_rest_stays_the_same() {
        for seed in 0..2_000 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut texts = [String::new(), String::new()];
            for _ in 0..random.usize(1..6) {
                if random.u8(0..6) == 0 {
                    texts.iter_mut().for_each(|text| text.push_str(">2\r\n$4\r\npush\r\n"));
                }
                made_up_large(&mut random, 3, false, &mut texts);
            }
            let [input, expected] = texts;
            let wide = random.usize(1..60);
            let (mut frames, mut found) = (Frames { most: 8, ..Frames::new(0) }, Vec::new());
            let mut rest = input.as_bytes();
            while !rest.is_empty() {
                let (piece, later) = rest.split_at(random.usize(1..=wide).min(rest.len()));
                rest = later;
                frames.room().extend_from_slice(piece);
                while let Some(reply) = frames.next(1).unwrap_or_else(|_| panic!("{seed} {input:?}")) {
                    found.push(format!("{reply:?}"));
                }
            }
            assert!(frames.input.is_empty(), "{seed} {input:?}");
            assert_eq!(found, all(expected.as_bytes(), usize::MAX).unwrap(), "{seed} {input:?}");
        }
    }

    /// A list of many would take seconds else, in which the connection serves nobody.
    #[test]
    fn what_is_kept_stays_where_it_is_while_others_are_left_out() {
        let mut frames = Frames::new(5);
        frames.room().reserve(8 * ALWAYS);
        let (kept, large) = ("x".repeat(ALWAYS), "x".repeat(ALWAYS + 1));
        let pair = format!("${}\r\n{kept}\r\n${}\r\n{large}\r\n", kept.len(), large.len());
        let input = format!("*6\r\n{}", pair.repeat(3));
        let at = frames.input.as_ptr();
        let (mut pieces, mut found) = (input.as_bytes().chunks(READ_ROOM / 4), None);
        while found.is_none() {
            assert_eq!(frames.input.as_ptr(), at);
            frames.room().extend_from_slice(pieces.next().unwrap());
            found = frames.next(1).unwrap();
        }
        let Some(Reply::Other(Value::Array(found))) = found else { panic!("no list") };
        assert_eq!(found.iter().filter(|value| matches!(value, Value::BulkString(_))).count(), 3);
    }

    #[test]
    fn garbage_is_refused_and_never_allocated_for() {
        for input in [
            "hello\r\n",
            "\r\n",
            "$\r\n",
            "$x\r\n",
            "$-2\r\n",
            "=-1\r\n",
            "%-1\r\n",
            "_5\r\n",
            ":x\r\n",
            "$+1\r\n",
            "$536870913\r\n",
            "$99999999999999999999\r\n",
            "*1048577\r\n",
            "$1\r\nabcd",
            "$1\nab",
            "HTTP/1.1 400 Bad Request\r\n",
        ] {
            assert!(all(input.as_bytes(), usize::MAX).is_err(), "{input:?}");
        }
        assert!(all("*1\r\n".repeat(DEPTH_MAX + 1).as_bytes(), usize::MAX).is_err());
        assert!(all(&vec![b'+'; LINE_MAX + 1], usize::MAX).is_err());
        let mut frames = Frames::new(STRING_MAX);
        frames.room().extend_from_slice(b"$536870912\r\n");
        assert!(frames.next(1).unwrap().is_none());
        assert!(frames.room().capacity() <= 2 * AHEAD_MAX);
        let mut frames = Frames::new(STRING_MAX);
        frames.room().extend_from_slice(b"*1048576\r\n");
        assert!(frames.next(1).unwrap().is_none());
        assert!(frames.room().capacity() <= 2 * READ_ROOM);
    }

    /// How many bytes of an endless list are held before it is refused, as an answer to a question for so many values.
    fn held(sign: &str, element: &[u8], values: usize) -> usize {
        let mut frames = Frames::new(0);
        frames.room().extend_from_slice(format!("{sign}{ELEMENTS_MAX}\r\n").as_bytes());
        loop {
            match frames.next(values) {
                Ok(Some(_)) => panic!("it has an end"),
                Ok(None) => frames.room().extend_from_slice(element),
                Err(_) => return frames.input.len(),
            }
        }
    }

    #[test]
    fn a_reply_is_no_larger_than_what_was_asked_for() {
        let value = format!("$1048576\r\n{}\r\n", "x".repeat(1 << 20));
        let line = format!("-{}\r\n", "E ".repeat(10_000));
        for (sign, values) in [("*", 1), (">", 0), ("*", 20)] {
            for element in [value.as_bytes(), line.as_bytes()] {
                let held = held(sign, element, values);
                let room = BESIDE_MAX + values * ALWAYS;
                assert!(held <= room + element.len() && held > room - element.len(), "{held}");
            }
        }
        // What was asked for fits.
        let mut frames = Frames::new(0);
        frames.room().extend_from_slice(b"*100\r\n");
        (0..100).for_each(|_| frames.room().extend_from_slice(value.as_bytes()));
        assert!(matches!(frames.next(100), Ok(Some(Reply::Texts(texts))) if texts.len() == 100));
    }

    #[test]
    fn elements_count_in_whatever_list_they_are() {
        let half = ELEMENTS_MAX / 2;
        let lists = |sign: &str| {
            format!("*2\r\n{}", format!("{sign}{half}\r\n{}", ":1\r\n".repeat(half as usize)).repeat(2))
        };
        assert!(all(lists("*").as_bytes(), usize::MAX).is_err());
        let once = format!("*1\r\n*{half}\r\n{}", ":1\r\n".repeat(half as usize));
        assert_eq!(all(once.as_bytes(), usize::MAX).unwrap().len(), 1);
    }
}
