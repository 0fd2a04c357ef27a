//! A TCP proxy that injects faults between a client and its server.

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr, TcpListener as StdListener},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc as acks,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinSet,
    time::sleep,
};

/// Stands between a client and a server, and passes bytes on until told otherwise.
///
/// Runs on a thread of its own, so it goes on while the test's runtime is busy or gone. Each switch has taken effect
/// when its method returns. On drop all connections are reset and the port is closed.
pub struct Proxy {
    port: u16,
    commands: Option<mpsc::UnboundedSender<Command>>,
    thread: Option<JoinHandle<()>>,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    accepted: AtomicUsize,
    open: AtomicUsize,
    orders: AtomicUsize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    Pass,
    Delay(Duration),
    Slow(Duration),
    Blackhole,
    Mute,
    /// Bytes, and a number that tells this order from an earlier one.
    Truncate(usize, usize),
    Refuse,
}

struct Command {
    /// `None`: cut.
    mode: Option<Mode>,
    done: acks::Sender<()>,
}

impl Proxy {
    /// Listens on a free loopback port on behalf of `target`, which need not be up yet.
    pub fn start(target: SocketAddr) -> Self {
        let (port, listener) = (0..64)
            .find_map(|_| {
                let port = crate::port::free();
                Some((port, StdListener::bind((Ipv4Addr::LOCALHOST, port)).ok()?))
            })
            .expect("no free port for a proxy");
        let counts = Arc::new(Counts::default());
        let (commands, inbox) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("cannot build the proxy's runtime");
        let thread = thread::Builder::new()
            .name("proxy".to_owned())
            .spawn({
                let counts = Arc::clone(&counts);
                move || runtime.block_on(serve(listener, target, inbox, counts))
            })
            .expect("cannot start the proxy's thread");
        Self { port, commands: Some(commands), thread: Some(thread), counts }
    }

    /// The port clients connect to.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The address clients connect to.
    pub fn addr(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// Connections accepted since the start.
    pub fn accepted(&self) -> usize {
        self.counts.accepted.load(Ordering::Acquire)
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.counts.open.load(Ordering::Acquire)
    }

    /// No fault; the state at the start. What was held goes on.
    pub fn pass(&self) {
        self.send(Some(Mode::Pass));
    }

    /// Replies come later by `by`, at most twice that under load.
    pub fn delay(&self, by: Duration) {
        self.send(Some(Mode::Delay(by)));
    }

    /// Replies come byte by byte, `pause` apart.
    pub fn slow(&self, pause: Duration) {
        self.send(Some(Mode::Slow(pause)));
    }

    /// Connects, then nothing: bytes of both directions are held, not lost. They go on when another mode is set.
    pub fn blackhole(&self) {
        self.send(Some(Mode::Blackhole));
    }

    /// Requests reach the server, replies are thrown away: the outcome of a write stays unknown.
    pub fn mute(&self) {
        self.send(Some(Mode::Mute));
    }

    /// After `bytes` more bytes of replies, counted per connection, the connection is reset.
    pub fn truncate(&self, bytes: usize) {
        let order = self.counts.orders.fetch_add(1, Ordering::Relaxed);
        self.send(Some(Mode::Truncate(bytes, order)));
    }

    /// Resets all connections and refuses new ones, as if the server had died.
    pub fn refuse(&self) {
        self.send(Some(Mode::Refuse));
    }

    /// Resets all connections now; new ones find the mode unchanged.
    pub fn cut(&self) {
        self.send(None);
    }

    fn send(&self, mode: Option<Mode>) {
        let (done, wait) = acks::channel();
        let sent =
            self.commands.as_ref().is_some_and(|commands| commands.send(Command { mode, done }).is_ok());
        assert!(sent && wait.recv().is_ok(), "the proxy has died");
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.commands = None;
        if let Some(thread) = self.thread.take() {
            // Its panic has been reported already, and a second one here would abort.
            let _ = thread.join();
        }
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy").field("port", &self.port).field("open", &self.open()).finish_non_exhaustive()
    }
}

async fn serve(
    listener: StdListener,
    target: SocketAddr,
    mut inbox: mpsc::UnboundedReceiver<Command>,
    counts: Arc<Counts>,
) {
    let address = listener.local_addr().expect("a bound listener has an address");
    listener.set_nonblocking(true).expect("cannot make the listener non-blocking");
    let mut listener = Some(TcpListener::from_std(listener).expect("cannot adopt the listener"));
    let mode = watch::Sender::new(Mode::Pass);
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            command = inbox.recv() => {
                let Some(command) = command else { break };
                match command.mode {
                    None => connections.shutdown().await,
                    Some(Mode::Refuse) => {
                        listener = None;
                        mode.send_replace(Mode::Refuse);
                        connections.shutdown().await;
                    }
                    Some(next) => {
                        mode.send_replace(next);
                        if listener.is_none() {
                            listener = Some(bind_again(address).await);
                        }
                    }
                }
                // The sender may have given up; that is its affair.
                let _ = command.done.send(());
            }
            Some(client) = accept(listener.as_ref()) => {
                counts.accepted.fetch_add(1, Ordering::AcqRel);
                let open = Open::new(client, &counts);
                connections.spawn(connection(open, target, mode.subscribe()));
            }
            Some(_) = connections.join_next() => {}
        }
    }
    connections.shutdown().await;
}

/// Never ends without a listener.
async fn accept(listener: Option<&TcpListener>) -> Option<TcpStream> {
    match listener {
        Some(listener) => match listener.accept().await {
            Ok((stream, _)) => Some(stream),
            Err(_) => {
                // Out of descriptors, say: another turn, but not a busy one.
                sleep(Duration::from_millis(10)).await;
                None
            }
        },
        None => std::future::pending().await,
    }
}

async fn bind_again(address: SocketAddr) -> TcpListener {
    let mut last = None;
    for _ in 0..500 {
        match TcpListener::bind(address).await {
            Ok(listener) => return listener,
            Err(error) => last = Some(error),
        }
        sleep(Duration::from_millis(10)).await;
    }
    panic!("the proxy's port {} was taken by another process: {last:?}", address.port());
}

/// A client's connection: reset on drop, unless it ended well.
struct Open {
    stream: TcpStream,
    ended_well: bool,
    counts: Arc<Counts>,
}

impl Open {
    fn new(stream: TcpStream, counts: &Arc<Counts>) -> Self {
        counts.open.fetch_add(1, Ordering::AcqRel);
        Self { stream, ended_well: false, counts: Arc::clone(counts) }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        if !self.ended_well {
            // Fails only on a socket that is dead already.
            let _ = self.stream.set_zero_linger();
        }
        self.counts.open.fetch_sub(1, Ordering::AcqRel);
    }
}

async fn connection(mut client: Open, target: SocketAddr, mut mode: watch::Receiver<Mode>) {
    unfrozen(&mut mode).await;
    let Ok(mut server) = TcpStream::connect(target).await else { return };
    // Small writes must not wait for acknowledgements here; where that fails, they do.
    let _ = (client.stream.set_nodelay(true), server.set_nodelay(true));
    let (mut from_client, mut to_client) = client.stream.split();
    let (mut from_server, mut to_server) = server.split();
    let mut requests = Pump { mode: mode.clone(), replies: false, left: None };
    let mut replies = Pump { mode, replies: true, left: None };
    let requests = async {
        requests.run(&mut from_client, &mut to_server).await?;
        to_server.shutdown().await
    };
    let replies = async {
        replies.run(&mut from_server, &mut to_client).await?;
        to_client.shutdown().await
    };
    tokio::pin!(requests, replies);
    let end = tokio::select! {
        end = &mut replies => end,
        end = &mut requests => match end {
            // The client has said all; the server may still answer.
            Ok(()) => replies.await,
            error => error,
        },
    };
    client.ended_well = end.is_ok();
}

async fn unfrozen(mode: &mut watch::Receiver<Mode>) {
    // An error means that the proxy is being dropped, and this task with it.
    let _ = mode.wait_for(|mode| *mode != Mode::Blackhole).await;
}

/// One direction of one connection.
struct Pump {
    mode: watch::Receiver<Mode>,
    replies: bool,
    /// The order of [`Mode::Truncate`] being followed, and the bytes left of it.
    left: Option<(usize, usize)>,
}

impl Pump {
    async fn run(
        &mut self,
        from: &mut (impl AsyncReadExt + Unpin),
        to: &mut (impl AsyncWriteExt + Unpin),
    ) -> io::Result<()> {
        let mut buffer = vec![0; 16 * 1024];
        loop {
            unfrozen(&mut self.mode).await;
            let read = tokio::select! {
                read = from.read(&mut buffer) => read?,
                _ = self.mode.changed() => continue,
            };
            if read == 0 {
                return Ok(());
            }
            let mut rest = &buffer[..read];
            let mut delayed = false;
            while !rest.is_empty() {
                unfrozen(&mut self.mode).await;
                let mode = *self.mode.borrow_and_update();
                let mode = if self.replies { mode } else { Mode::Pass };
                let take = match mode {
                    Mode::Delay(by) if !delayed => {
                        delayed = self.pause(by).await;
                        continue;
                    }
                    Mode::Slow(_) => 1,
                    Mode::Mute => {
                        rest = &[];
                        continue;
                    }
                    Mode::Truncate(bytes, order) => self.allowed(bytes, order)?.min(rest.len()),
                    _ => rest.len(),
                };
                let (now, later) = rest.split_at(take);
                to.write_all(now).await?;
                rest = later;
                match mode {
                    Mode::Truncate(bytes, order) => {
                        self.left = self.left.map(|(order, left)| (order, left - take));
                        self.allowed(bytes, order)?;
                    }
                    Mode::Slow(pause) => {
                        self.pause(pause).await;
                    }
                    _ => {}
                }
            }
        }
    }

    /// Reply bytes that may still pass; an error, and with it a reset, when there are none.
    fn allowed(&mut self, bytes: usize, order: usize) -> io::Result<usize> {
        let left = match self.left {
            Some((of, left)) if of == order => left,
            _ => bytes,
        };
        self.left = Some((order, left));
        if left == 0 { Err(io::ErrorKind::ConnectionReset.into()) } else { Ok(left) }
    }

    /// Whether all of `by` passed; another mode ends the pause.
    async fn pause(&mut self, by: Duration) -> bool {
        tokio::select! {
            () = sleep(by) => true,
            _ = self.mode.changed() => false,
        }
    }
}
