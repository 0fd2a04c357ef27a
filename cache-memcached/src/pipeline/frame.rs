//! Requests as bytes.

use std::io::Write;

use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{BufMut, BytesMut};

use crate::{transport::Command, wire::is_plain};

/// Appends one request with an opaque id. `Writer` over a growing buffer never fails.
pub(super) fn encode(command: &Command, id: u64, out: &mut BytesMut) {
    out.reserve(command.weight());
    let (verb, key) = match command {
        Command::Get { key } => ("mg ", key),
        Command::Put { key, .. } => ("ms ", key),
        Command::Remove { key } => ("md ", key),
    };
    out.put_slice(verb.as_bytes());
    let plain = key.bytes().all(is_plain);
    if plain {
        out.put_slice(key.as_bytes());
    } else {
        out.put_slice(STANDARD.encode(key).as_bytes());
    }
    match command {
        Command::Get { .. } => out.put_slice(b" v"),
        Command::Put { bytes, exptime, .. } => {
            let _ = write!(out.writer(), " {} T{exptime}", bytes.len());
        }
        Command::Remove { .. } => {}
    }
    let _ = write!(out.writer(), " O{id}");
    if !plain {
        out.put_slice(b" b");
    }
    out.put_slice(b"\r\n");
    if let Command::Put { bytes, .. } = command {
        out.put_slice(bytes);
        out.put_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn frame(command: &Command) -> String {
        let mut out = BytesMut::new();
        encode(command, 7, &mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    #[test]
    fn requests() {
        assert_eq!(frame(&Command::Get { key: "ns:k".into() }), "mg ns:k v O7\r\n");
        assert_eq!(frame(&Command::Remove { key: "ns:k".into() }), "md ns:k O7\r\n");
        let put = Command::Put { key: "ns:k".into(), bytes: Bytes::from_static(b"a\r\nb"), exptime: 9 };
        assert_eq!(frame(&put), "ms ns:k 4 T9 O7\r\na\r\nb\r\n");
    }

    #[test]
    fn y4_odd_keys_are_encoded() {
        assert_eq!(frame(&Command::Get { key: "a b".into() }), "mg YSBi v O7 b\r\n");
        let attack = frame(&Command::Get { key: "x\r\nms y 1\r\nz\r\n".into() });
        assert_eq!(attack.matches("\r\n").count(), 1);
    }
}
