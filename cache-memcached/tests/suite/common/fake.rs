//! A server that misbehaves as told.

use std::{future::Future, net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// A connection of a [`Fake`].
pub struct Peer(pub BufReader<TcpStream>);

impl Peer {
    /// The next request line, without its end; `None` when the client has hung up.
    pub async fn line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        match self.0.read_until(b'\n', &mut line).await {
            Ok(n) if n > 0 => Some(String::from_utf8_lossy(&line).trim_end().to_owned()),
            _ => None,
        }
    }

    /// Whether the bytes could be written.
    pub async fn say(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).await.is_ok()
    }

    /// Ends the connection with a reset instead of a close.
    #[allow(deprecated, reason = "zero linger does not block; tokio warns of the others")]
    pub fn reset(self) {
        let _ = self.0.get_ref().set_linger(Some(std::time::Duration::ZERO));
    }
}

/// Runs `script` on every connection, until dropped.
pub struct Fake {
    pub addr: SocketAddr,
    _tasks: JoinSet<()>,
}

impl Fake {
    pub async fn start<F: Future<Output = ()> + Send + 'static>(
        script: impl Fn(Peer, usize) -> F + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let script = Arc::new(script);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut peers = JoinSet::new();
            let mut count = 0;
            while let Ok((stream, _)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                peers.spawn(script(Peer(BufReader::new(stream)), count));
                count += 1;
            }
        });
        Self { addr, _tasks: tasks }
    }

    pub fn url(&self) -> String {
        format!("memcached://{}", self.addr)
    }
}

/// The opaque token of a request line, with a space in front, to be echoed.
pub fn opaque(line: &str) -> String {
    let token = line.split(' ').skip(2).find(|t| t.len() > 1 && t.starts_with('O'));
    token.map(|t| format!(" {t}")).unwrap_or_default()
}

/// The value that a well-behaved fake holds under the key of this request line.
pub fn value_of(line: &str) -> String {
    format!("value of {}", line.split(' ').nth(1).unwrap_or_default())
}

/// The life that a fake lives.
pub const LIFE: &str = "12345678";

/// Whether this request line asks for the life item.
pub fn asks_for_life(line: &str) -> bool {
    line.starts_with("mg ~life ")
}

/// A right answer to an `mg` line.
pub fn answer(line: &str) -> String {
    let value = if asks_for_life(line) { format!("E{LIFE}") } else { format!("V{LIFE}{}", value_of(line)) };
    format!("VA {} c1{}\r\n{value}\r\n", value.len(), opaque(line))
}
