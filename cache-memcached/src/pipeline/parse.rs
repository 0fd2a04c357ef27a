//! Replies from bytes that arrive in any pieces.

use bytes::{Buf, Bytes, BytesMut};

use crate::login::UNAUTHENTICATED;

/// Longest reply line. The meta protocol's are far shorter.
const LINE_MAX: usize = 2048;
/// The server's own ceiling for an item.
const ITEM_MAX: u64 = 1 << 30;
/// Values up to this size leave the input buffer as it is.
const KEEP: usize = 256 << 10;
/// Room for the next read.
const READ_ROOM: usize = 16 << 10;

/// What a reply says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// `VA`: the item, a part of the input buffer; `None` when it is over the limit, and was skipped.
    Value(Option<Bytes>),
    /// `HD`.
    Done,
    /// `EN`.
    Miss,
    /// `NF`.
    NotFound,
    /// `EX` or `NS`: a condition that does not hold.
    NotStored,
    /// `SERVER_ERROR object too large for cache`.
    TooLarge,
    /// `SERVER_ERROR out of memory ...`.
    NoMemory,
    /// Another `SERVER_ERROR`: the line is an answer, the stream goes on.
    Failed,
    /// `CLIENT_ERROR`, `ERROR`: the command was not understood; what follows may be anything.
    Rejected,
    /// The server wants a login first.
    LoginWanted,
    /// The server has as many connections as it takes. It has read nothing, and closes this one.
    Full,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) body: Body,
    /// The opaque id, where the reply carries one.
    pub(super) id: Option<u64>,
    /// The item's version, 0 where the reply carries none.
    pub(super) cas: u64,
    /// The item is marked stale.
    pub(super) stale: bool,
    /// The reader is to fill it.
    pub(super) won: bool,
    /// Seconds that it still lives, `u32::MAX` without an end, 0 where the reply does not say.
    pub(super) left: u32,
}

/// What a server says to a connection that is one too many.
const FULL: &[u8] = b"ERROR Too many open connections";

/// The peer does not speak the meta protocol.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Garbled;

#[derive(Debug)]
pub(super) struct Parser {
    input: BytesMut,
    state: State,
    value_max: usize,
}

#[derive(Debug)]
enum State {
    Line,
    /// A value and its line end.
    Value(Answer, usize),
    /// So many bytes of a value that nobody wants.
    Skip(Answer, u64),
}

impl Parser {
    pub(super) fn new(value_max: usize) -> Self {
        Self { input: BytesMut::with_capacity(READ_ROOM), state: State::Line, value_max }
    }

    /// The first of the bytes that are yet to be read.
    pub(super) fn first(&self) -> Option<u8> {
        self.input.first().copied()
    }

    /// Where the next bytes go. No more than an announced value within the limit needs, or one read's worth.
    pub(super) fn room(&mut self) -> &mut BytesMut {
        let missing = match self.state {
            State::Value(_, length) => (length + 2).saturating_sub(self.input.len()),
            State::Line | State::Skip(..) => 0,
        };
        if self.input.capacity() - self.input.len() < missing.max(READ_ROOM / 4) {
            self.input.reserve(missing.max(READ_ROOM));
        }
        &mut self.input
    }

    /// Whether a reply has begun and not ended.
    #[cfg(test)]
    fn in_mid_reply(&self) -> bool {
        !matches!(self.state, State::Line) || !self.input.is_empty()
    }

    /// The next complete reply.
    pub(super) fn next(&mut self) -> Result<Option<Answer>, Garbled> {
        if matches!(self.state, State::Line) {
            let Some(end) = self.input.iter().position(|b| *b == b'\n') else {
                return if self.input.len() > LINE_MAX { Err(Garbled) } else { Ok(None) };
            };
            let line = &self.input[..end];
            if line.len() > LINE_MAX {
                return Err(Garbled);
            }
            let (answer, length) = line_of(line.strip_suffix(b"\r").ok_or(Garbled)?)?;
            self.input.advance(end + 1);
            match length {
                None => return Ok(Some(answer)),
                Some(length) if length > self.value_max as u64 => {
                    self.state = State::Skip(answer, length + 2);
                }
                // Within the limit, which is a `usize`.
                Some(length) => self.state = State::Value(answer, usize::try_from(length).unwrap_or(0)),
            }
        }
        match &mut self.state {
            State::Value(_, length) if self.input.len() < *length + 2 => return Ok(None),
            State::Value(_, length) => {
                let length = *length;
                if &self.input[length..length + 2] != b"\r\n" {
                    return Err(Garbled);
                }
                let value = self.input.split_to(length).freeze();
                self.input.advance(2);
                if length > KEEP {
                    // Otherwise the buffer keeps the size of the largest value.
                    let mut rest = BytesMut::with_capacity(READ_ROOM.max(self.input.len()));
                    rest.extend_from_slice(&self.input);
                    self.input = rest;
                }
                if let State::Value(mut answer, _) = std::mem::replace(&mut self.state, State::Line) {
                    answer.body = Body::Value(Some(value));
                    return Ok(Some(answer));
                }
            }
            State::Skip(_, left) => {
                let now = usize::try_from(*left).unwrap_or(usize::MAX).min(self.input.len());
                self.input.advance(now);
                *left -= now as u64;
                if *left > 0 {
                    return Ok(None);
                }
                if let State::Skip(answer, _) = std::mem::replace(&mut self.state, State::Line) {
                    return Ok(Some(answer));
                }
            }
            State::Line => {}
        }
        Err(Garbled)
    }
}

/// A reply line, and the length of the value that follows it.
fn line_of(line: &[u8]) -> Result<(Answer, Option<u64>), Garbled> {
    let mut tokens = line.split(|b| *b == b' ').filter(|t| !t.is_empty());
    let verb = tokens.next().ok_or(Garbled)?;
    let mut length = None;
    let body = match verb {
        b"HD" => Body::Done,
        b"EN" => Body::Miss,
        b"NF" => Body::NotFound,
        b"EX" | b"NS" => Body::NotStored,
        b"VA" => {
            let announced = number(tokens.next().ok_or(Garbled)?).ok_or(Garbled)?;
            if announced > ITEM_MAX {
                return Err(Garbled);
            }
            length = Some(announced);
            Body::Value(None)
        }
        b"SERVER_ERROR" if line.ends_with(b"object too large for cache") => Body::TooLarge,
        b"SERVER_ERROR" if line[verb.len()..].starts_with(b" out of memory") => Body::NoMemory,
        b"SERVER_ERROR" => Body::Failed,
        b"CLIENT_ERROR" if line == UNAUTHENTICATED => Body::LoginWanted,
        b"ERROR" if line == FULL => Body::Full,
        b"CLIENT_ERROR" | b"ERROR" => Body::Rejected,
        _ => return Err(Garbled),
    };
    let mut answer = Answer { body, id: None, cas: 0, stale: false, won: false, left: 0 };
    if matches!(answer.body, Body::Value(_) | Body::Done | Body::Miss | Body::NotFound | Body::NotStored) {
        for token in tokens {
            match token {
                [b'O', id @ ..] => answer.id = Some(number(id).ok_or(Garbled)?),
                [b'c', cas @ ..] => answer.cas = number(cas).ok_or(Garbled)?,
                b"t-1" => answer.left = u32::MAX,
                [b't', left @ ..] => {
                    answer.left = u32::try_from(number(left).ok_or(Garbled)?).unwrap_or(u32::MAX);
                }
                b"X" => answer.stale = true,
                b"W" => answer.won = true,
                _ => {}
            }
        }
    }
    Ok((answer, length))
}

fn number(token: &[u8]) -> Option<u64> {
    let digit = |byte: &u8| byte.is_ascii_digit().then(|| u64::from(byte - b'0'));
    let (first, rest) = token.split_first()?;
    rest.iter().try_fold(digit(first)?, |number, byte| number.checked_mul(10)?.checked_add(digit(byte)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(input: &[u8], step: usize, value_max: usize) -> Result<Vec<Answer>, Garbled> {
        let mut parser = Parser::new(value_max);
        let mut answers = Vec::new();
        for piece in input.chunks(step) {
            parser.room().extend_from_slice(piece);
            while let Some(answer) = parser.next()? {
                answers.push(answer);
            }
        }
        assert!(!parser.in_mid_reply());
        Ok(answers)
    }

    fn answer(body: Body, id: Option<u64>) -> Answer {
        Answer { body, id, cas: 0, stale: false, won: false, left: 0 }
    }

    #[test]
    fn r_any_cut_gives_the_same_answers() {
        let big = "x".repeat(20_000);
        let input = format!(
            "VA 3 O1\r\nabc\r\nEN O2\r\nHD O3\r\nNF O4\r\nEX c0 O10\r\nNS O11\r\nVA 4 O5\r\n\r\n\r\n\r\nEN\r\nVA 20000 O6\r\n{big}\r\n\
             SERVER_ERROR object too large for cache\r\nSERVER_ERROR out of memory storing object\r\n\
             VA 20001 O7\r\n{big}y\r\nSERVER_ERROR what\r\nVA 0 c18446744073709551615 O8 W t-1\r\n\r\nVA 1 X t600 O9\r\na\r\n\
             HD c12 O12\r\n"
        );
        let value = |text: &str| Body::Value(Some(Bytes::copy_from_slice(text.as_bytes())));
        let expected = [
            answer(value("abc"), Some(1)),
            answer(Body::Miss, Some(2)),
            answer(Body::Done, Some(3)),
            answer(Body::NotFound, Some(4)),
            answer(Body::NotStored, Some(10)),
            answer(Body::NotStored, Some(11)),
            answer(value("\r\n\r\n"), Some(5)),
            answer(Body::Miss, None),
            answer(value(&big), Some(6)),
            answer(Body::TooLarge, None),
            answer(Body::NoMemory, None),
            answer(Body::Value(None), Some(7)),
            answer(Body::Failed, None),
            Answer { won: true, cas: u64::MAX, left: u32::MAX, ..answer(value(""), Some(8)) },
            Answer { stale: true, left: 600, ..answer(value("a"), Some(9)) },
            Answer { cas: 12, ..answer(Body::Done, Some(12)) },
        ];
        for step in [1, 2, 3, 7, 1_000, 16_384, usize::MAX] {
            assert_eq!(all(input.as_bytes(), step, 20_000).unwrap(), expected, "{step}");
        }
    }

    #[test]
    fn a_large_value_does_not_stay_in_the_buffer() {
        let mut parser = Parser::new(1 << 20);
        let input = format!("VA 1000000 O1\r\n{}\r\nEN O2\r\n", "x".repeat(1_000_000));
        let mut answers = 0;
        for piece in input.as_bytes().chunks(16_000) {
            parser.room().extend_from_slice(piece);
            while parser.next().unwrap().is_some() {
                answers += 1;
            }
        }
        assert_eq!(answers, 2);
        assert!(parser.room().capacity() <= 4 * READ_ROOM);
    }

    #[test]
    fn v_garbage_is_refused_and_never_allocated_for() {
        for input in [
            "\r\n",
            "hello\r\n",
            "VA\r\n",
            "VA x\r\n",
            "VA -1\r\n",
            "VA +1\r\n",
            "VA 1073741825\r\n",
            "VA 99999999999999999999\r\n",
            "VA 3\r\nabcde",
            "HD Ox\r\n",
            "HD c-1\r\n",
            "HD t-2\r\n",
            "HD c18446744073709551616\r\n",
            "HD\n",
        ] {
            assert_eq!(all(input.as_bytes(), usize::MAX, 100), Err(Garbled), "{input:?}");
        }
        assert_eq!(all(&[b'x'; LINE_MAX + 1], 100, 100), Err(Garbled));
        let mut parser = Parser::new(100);
        parser.room().extend_from_slice(b"VA 1073741824\r\n");
        assert_eq!(parser.next(), Ok(None));
        assert!(parser.room().capacity() < 2 * READ_ROOM);
    }
}
