//! What servers say of themselves: `stats`, on a connection of its own, since its reply has a form of its own.

use std::{
    io::{self, ErrorKind::UnexpectedEof},
    time::Duration,
};

use cache_core::ServerStatus;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    time::timeout,
};

use crate::{
    ErrorKind,
    dial::{Dial, Stream},
    endpoint::Endpoint,
    error::Fault,
    login::{UNAUTHENTICATED, WANTED},
};

/// Most bytes of the reply that are read. A server's is about two thousand.
const REPLY_MAX: usize = 64 << 10;

/// Asks a server. Ends within the limit.
pub(crate) async fn ask(dial: &Dial, limit: Duration) -> Result<ServerStatus, Fault> {
    match timeout(limit, stats(dial, limit)).await {
        Ok(text) => Ok(read(&dial.endpoint, &text?)),
        Err(_elapsed) => Err(Fault::new(ErrorKind::Timeout, "no answer to stats in time")),
    }
}

async fn stats(dial: &Dial, limit: Duration) -> Result<String, Fault> {
    let lost = |error| Fault::caused(ErrorKind::Connect, "no answer to stats", error);
    let mut stream = dial.connect(limit).await?;
    let mut reply = Vec::new();
    let asked = converse(&mut stream, &mut reply).await;
    asked.map_err(|error| dial.unheard(reply.first().copied(), lost(error)))?;
    match reply.starts_with(UNAUTHENTICATED) {
        true => Err(WANTED),
        false => Ok(String::from_utf8_lossy(&reply).into_owned()),
    }
}

async fn converse(stream: &mut Stream, reply: &mut Vec<u8>) -> io::Result<()> {
    stream.write_all(b"stats\r\n").await?;
    stream.flush().await?;
    // `END`, or the one line of an error.
    while !reply.ends_with(b"END\r\n") && (reply.starts_with(b"STAT ") || !reply.ends_with(b"\r\n")) {
        if reply.len() > REPLY_MAX || stream.read_buf(reply).await? == 0 {
            return Err(UnexpectedEof.into());
        }
    }
    Ok(())
}

fn read(endpoint: &Endpoint, text: &str) -> ServerStatus {
    let field = |name: &str| {
        let of = |line: &'_ str| {
            let (found, value) = line.strip_prefix("STAT ")?.split_once(' ')?;
            (found == name && value.len() <= 100).then(|| value.to_owned())
        };
        text.lines().find_map(of)
    };
    let number = |name: &str| field(name)?.parse::<u64>().ok();
    let mut status = ServerStatus::at(endpoint.to_string());
    status.version = field("version");
    status.uptime = number("uptime").map(Duration::from_secs);
    status.memory_used = number("bytes");
    status.memory_max = number("limit_maxbytes");
    status.items = number("curr_items");
    status.hits = number("get_hits");
    status.misses = number("get_misses");
    status.evicted = number("evictions");
    status.connections = number("curr_connections");
    status
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_said_is_not_made_up() {
        let endpoint = Endpoint::parse("server", "memcached://host:1").unwrap();
        let mut status = ServerStatus::at("host:1");
        assert_eq!(read(&endpoint, "ERROR\r\n"), status);
        status.items = Some(7);
        status.version = Some("1.6.18".into());
        let text =
            "STAT curr_items 7\r\nSTAT version 1.6.18\r\nSTAT get_hits many\r\nSTAT bytes_read 5\r\nEND\r\n";
        assert_eq!(read(&endpoint, text), status);
    }
}
