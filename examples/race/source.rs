//! The source: one version per key, and what has been promised about it. The parent keeps it; nodes ask over TCP.
//!
//! A line asks, a line answers, in order. Everything goes through one lock, so there is one order of all that happens.

use std::{
    collections::{BTreeMap, VecDeque},
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    sync::{Barrier, mpsc, oneshot},
};
use traced_cache::BoxError;

/// Nodes of a race.
pub(crate) const NODES: usize = 2;
/// Keys of a race. Each is written by one node only.
pub(crate) const KEYS: usize = 16;

#[derive(Default)]
struct Key {
    version: u64,
    /// The newest version whose own write has answered `Confirmed`, by the master at which.
    confirmed: BTreeMap<String, u64>,
    /// What was confirmed when, as far as it is younger than the bound.
    recent: VecDeque<(u64, Instant)>,
    /// The newest version that was confirmed longer ago than the bound.
    settled: u64,
}

/// What no read that begins now may be older than.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Floors {
    /// A read of the second level, or of the source, by a process with this master.
    pub(crate) here: u64,
    /// Confirmed, but perhaps at a master that was replaced while it was alive, or is about to be; or together with others,
    /// by a tag or a clear, which other processes hear of later.
    pub(crate) anywhere: u64,
    /// Any read: so long ago that every process has heard of it.
    pub(crate) settled: u64,
}

/// The parent's side.
pub(crate) struct Table {
    keys: Mutex<Vec<Key>>,
    /// How long memory of the other process may be behind.
    bound: Duration,
    barrier: Barrier,
    reports: Mutex<Vec<String>>,
}

impl Table {
    pub(crate) fn new(bound: Duration) -> Arc<Self> {
        Arc::new(Self {
            keys: Mutex::new((0..KEYS).map(|_| Key::default()).collect()),
            bound,
            // The nodes, and who disturbs the server.
            barrier: Barrier::new(NODES + 1),
            reports: Mutex::default(),
        })
    }

    /// Answers nodes until dropped.
    pub(crate) async fn serve(self: Arc<Self>, listener: TcpListener) -> io::Result<()> {
        let mut nodes = tokio::task::JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await?;
            nodes.spawn(Arc::clone(&self).attend(stream));
        }
    }

    async fn attend(self: Arc<Self>, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let (read, mut write) = stream.into_split();
        let mut lines = BufReader::new(read).lines();
        while let Some(line) = lines.next_line().await? {
            let answer = match line.split_once(' ') {
                Some(("report", report)) => {
                    self.reports.lock().unwrap_or_else(PoisonError::into_inner).push(report.to_owned());
                    "0".to_owned()
                }
                _ if line == "meet" => {
                    self.meet().await;
                    "0".to_owned()
                }
                _ => self.answer(&line).ok_or(io::ErrorKind::InvalidData)?,
            };
            write.write_all(format!("{answer}\n").as_bytes()).await?;
        }
        Ok(())
    }

    /// Waits until every node has come here.
    pub(crate) async fn meet(&self) {
        self.barrier.wait().await;
    }

    fn answer(&self, line: &str) -> Option<String> {
        let mut words = line.split(' ');
        let verb = words.next()?;
        let at: usize = words.next()?.parse().ok()?;
        let mut keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let key = keys.get_mut(at)?;
        Some(match verb {
            "get" => key.version.to_string(),
            "change" => {
                key.version += 1;
                key.version.to_string()
            }
            "confirm" => {
                let version = words.next()?.parse().ok()?;
                if let Some(master) = words.next().filter(|master| !master.is_empty()) {
                    key.confirmed.insert(master.to_owned(), version);
                }
                key.recent.push_back((version, Instant::now()));
                "0".to_owned()
            }
            "floors" => {
                while let Some((version, _)) = key.recent.front().filter(|(_, at)| at.elapsed() > self.bound)
                {
                    key.settled = *version;
                    key.recent.pop_front();
                }
                let here = key.confirmed.get(words.next()?).copied().unwrap_or(0);
                let young = key.recent.back().map_or(0, |(version, _)| *version);
                let anywhere = key.confirmed.values().fold(young, |newest, version| newest.max(*version));
                format!("{here} {anywhere} {}", key.settled)
            }
            _ => return None,
        })
    }

    pub(crate) fn reports(&self) -> Vec<String> {
        std::mem::take(&mut *self.reports.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

type Question = (String, oneshot::Sender<String>);

/// A node's side.
#[derive(Clone)]
pub(crate) struct Source(mpsc::UnboundedSender<Question>);

impl Source {
    pub(crate) async fn connect(at: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(at).await?;
        stream.set_nodelay(true)?;
        let (read, mut write) = stream.into_split();
        let (ask, mut asked) = mpsc::unbounded_channel::<Question>();
        let (sent, mut waiting) = mpsc::unbounded_channel::<oneshot::Sender<String>>();
        tokio::spawn(async move {
            while let Some(question) = asked.recv().await {
                let mut text = String::new();
                let mut next = Some(question);
                while let Some((line, answer)) = next {
                    text.push_str(&line);
                    text.push('\n');
                    // Without a reader the question is dropped, and whoever asked is told.
                    let _ = sent.send(answer);
                    next = asked.try_recv().ok();
                }
                if write.write_all(text.as_bytes()).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            let mut lines = BufReader::new(read).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let Some(answer) = waiting.recv().await else { return };
                // Whoever asked may have left.
                let _ = answer.send(line);
            }
        });
        Ok(Self(ask))
    }

    async fn ask(&self, line: String) -> Result<String, BoxError> {
        let (answer, answered) = oneshot::channel();
        self.0.send((line, answer)).ok();
        Ok(answered.await.map_err(|_gone| "the source is gone")?)
    }

    /// The version that a key has now.
    pub(crate) async fn get(&self, key: usize) -> Result<u64, BoxError> {
        Ok(self.ask(format!("get {key}")).await?.parse()?)
    }

    /// Gives a key its next version.
    pub(crate) async fn change(&self, key: usize) -> Result<u64, BoxError> {
        Ok(self.ask(format!("change {key}")).await?.parse()?)
    }

    /// Notes that whatever is older than this version is gone from that master, or that a tag or a clear has been confirmed.
    pub(crate) async fn confirm(
        &self,
        key: usize,
        version: u64,
        master: Option<&str>,
    ) -> Result<(), BoxError> {
        self.ask(format!("confirm {key} {version} {}", master.unwrap_or_default())).await.map(drop)
    }

    pub(crate) async fn floors(&self, key: usize, master: &str) -> Result<Floors, BoxError> {
        let line = self.ask(format!("floors {key} {master}")).await?;
        let mut floors = line.split(' ').map(str::parse);
        let mut next = || floors.next().ok_or("not an answer of the source");
        Ok(Floors { here: next()??, anywhere: next()??, settled: next()?? })
    }

    /// Waits until every node has come here.
    pub(crate) async fn meet(&self) -> Result<(), BoxError> {
        self.ask("meet".to_owned()).await.map(drop)
    }

    pub(crate) async fn report(&self, report: &str) -> Result<(), BoxError> {
        self.ask(format!("report {report}")).await.map(drop)
    }
}
