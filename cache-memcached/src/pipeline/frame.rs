//! Requests as bytes.

use std::io::Write;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{BufMut, BytesMut};

use crate::{
    transport::{Command, When},
    wire::is_plain_text,
};

/// Appends one request with an opaque id. `Writer` over a growing buffer never fails.
pub(super) fn encode(command: &Command, id: u64, out: &mut BytesMut) {
    out.reserve(command.weight());
    let verb = match command {
        Command::Get { .. } => "mg ",
        Command::Put { .. } => "ms ",
        Command::Remove { .. } => "md ",
    };
    out.put_slice(verb.as_bytes());
    let key = command.key();
    let plain = is_plain_text(key);
    if plain {
        out.put_slice(key.as_bytes());
    } else {
        out.put_slice(STANDARD.encode(key).as_bytes());
    }
    match command {
        Command::Get { look: None, .. } => out.put_slice(b" v"),
        Command::Get { look: Some(look), .. } => {
            out.put_slice(b" v c t");
            for (flag, seconds) in [(" N", look.vivify), (" T", look.touch)] {
                if let Some(seconds) = seconds {
                    let _ = write!(out.writer(), "{flag}{seconds}");
                }
            }
        }
        Command::Put { item, exptime, when, .. } => {
            let _ = write!(out.writer(), " {} T{exptime}", item.len());
            match when {
                When::Always if command.wants_version() => out.put_slice(b" c"),
                When::Always => {}
                When::Absent => out.put_slice(b" ME c"),
                When::Cas(cas) => {
                    let _ = write!(out.writer(), " C{cas} c");
                }
            }
        }
        Command::Remove { cas: None, .. } => {}
        Command::Remove { cas: Some(cas), .. } => {
            let _ = write!(out.writer(), " C{cas}");
        }
    }
    out.put_slice(b" O");
    // Every request has one, and `write!` takes many times as long.
    out.put_slice(itoa::Buffer::new().format(id).as_bytes());
    if !plain {
        out.put_slice(b" b");
    }
    out.put_slice(b"\r\n");
    if let Command::Put { item, .. } = command {
        item.write(out);
        out.put_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::{item::Item, transport::Look};

    fn frame(command: &Command) -> String {
        let mut out = BytesMut::new();
        encode(command, 7, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn requests() {
        let key = || "ns:k".to_owned();
        assert_eq!(frame(&Command::get(key())), "mg ns:k v O7\r\n");
        let get = |vivify, touch| Command::Get { key: key(), look: Some(Look { vivify, touch }) };
        assert_eq!(frame(&get(None, None)), "mg ns:k v c t O7\r\n");
        assert_eq!(frame(&get(Some(3), Some(4))), "mg ns:k v c t N3 T4 O7\r\n");
        assert_eq!(frame(&Command::Remove { key: key(), cas: None }), "md ns:k O7\r\n");
        assert_eq!(frame(&Command::Remove { key: key(), cas: Some(5) }), "md ns:k C5 O7\r\n");
        let put = |item, when| frame(&Command::Put { key: key(), item, exptime: 9, when });
        let entry = Item::Entry(u64::from_le_bytes(*b"12345678"), Bytes::from_static(b"a\r\nb"));
        assert_eq!(put(entry, When::Always), "ms ns:k 13 T9 O7\r\nV12345678a\r\nb\r\n");
        assert_eq!(put(Item::Tombstone, When::Always), "ms ns:k 1 T9 c O7\r\nT\r\n");
        assert_eq!(put(Item::Tombstone, When::Absent), "ms ns:k 1 T9 ME c O7\r\nT\r\n");
        assert_eq!(put(Item::Placeholder, When::Cas(5)), "ms ns:k 0 T9 C5 c O7\r\n\r\n");
    }

    #[test]
    fn y4_odd_keys_are_encoded() {
        assert_eq!(frame(&Command::get("a b".into())), "mg YSBi v O7 b\r\n");
        let attack = frame(&Command::get("x\r\nms y 1\r\nz\r\n".into()));
        assert_eq!(attack.matches("\r\n").count(), 1);
    }
}
