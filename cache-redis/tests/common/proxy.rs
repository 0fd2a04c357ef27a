//! Stands between a client and its server, counts round trips, and cuts.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    sync::watch,
};

#[derive(Clone, Default)]
pub(crate) struct Proxy(Arc<Shared>);

#[derive(Default)]
struct Shared {
    port: u16,
    trips: AtomicU64,
    cut: AtomicBool,
    accepted: AtomicUsize,
    /// Connections below this number pass on no requests.
    held: watch::Sender<usize>,
    /// What is asked from this word on is under way, and no further.
    torn: watch::Sender<Option<&'static str>>,
}

impl Proxy {
    /// Listens on a port of its own.
    pub(crate) async fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let shared = Shared { port: listener.local_addr().unwrap().port(), ..Shared::default() };
        let proxy = Self(Arc::new(shared));
        let task = proxy.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                tokio::spawn(task.clone().serve(client, server));
            }
        });
        proxy
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.0.port)
    }

    /// How often a client has sent something after it had been answered.
    pub(crate) fn trips(&self) -> u64 {
        self.0.trips.load(Ordering::SeqCst)
    }

    /// The next request reaches the server; its answer does not come back, and the connection breaks.
    pub(crate) fn cut_next_answer(&self) {
        self.0.cut.store(true, Ordering::SeqCst);
    }

    /// From now on the requests of connections that are there are under way, and no further.
    pub(crate) fn hold(&self) {
        self.0.held.send_replace(self.0.accepted.load(Ordering::SeqCst));
    }

    /// From now on what is asked in one piece with this word arrives in two, of which the second one is under way, and no
    /// further.
    pub(crate) fn tear_before(&self, word: &'static str) {
        self.0.torn.send_replace(Some(word));
    }

    /// They arrive, whoever has left meanwhile.
    pub(crate) fn release(&self) {
        self.0.held.send_replace(0);
        self.0.torn.send_replace(None);
    }

    async fn serve(self, mut client: TcpStream, mut server: TcpStream) {
        let number = self.0.accepted.fetch_add(1, Ordering::SeqCst);
        let (mut asked, mut answered) = (vec![0; 1 << 16], vec![0; 1 << 16]);
        let mut listening = true;
        loop {
            tokio::select! {
                read = client.read(&mut asked) => {
                    let Ok(1..) = read else { return };
                    if std::mem::take(&mut listening) {
                        self.0.trips.fetch_add(1, Ordering::SeqCst);
                    }
                    // An error means that the test is over.
                    let _ = self.0.held.subscribe().wait_for(|held| number >= *held).await;
                    let asked = &asked[..read.unwrap()];
                    let word = *self.0.torn.borrow();
                    let at = word.and_then(|word| asked.windows(word.len()).position(|part| part == word.as_bytes()));
                    let (now, later) = asked.split_at(at.unwrap_or(asked.len()));
                    if server.write_all(now).await.is_err() {
                        return;
                    }
                    if !later.is_empty() {
                        let _ = self.0.torn.subscribe().wait_for(Option::is_none).await;
                        if server.write_all(later).await.is_err() {
                            return;
                        }
                    }
                }
                read = server.read(&mut answered) => {
                    let Ok(1..) = read else { return };
                    listening = true;
                    if self.0.cut.swap(false, Ordering::SeqCst)
                        || client.write_all(&answered[..read.unwrap()]).await.is_err()
                    {
                        return;
                    }
                }
            }
        }
    }
}

/// The port of one that passes everything on, but changes what a client says first.
pub(crate) async fn first_words_changed(server: u16, from: &str, to: &str) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (from, to) = (from.to_owned(), to.to_owned());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (from, to) = (from.clone(), to.clone());
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", server)).await.unwrap();
                let mut said = vec![0; 4096];
                let read = client.read(&mut said).await.unwrap();
                let said = String::from_utf8(said[..read].to_vec()).unwrap().replace(&from, &to);
                server.write_all(said.as_bytes()).await.unwrap();
                let _ = copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    port
}
