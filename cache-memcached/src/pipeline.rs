//! The transport on one pipelined connection per server.
//!
//! Callers append requests to one buffer; one task writes them, reads the replies in order, and hands them out. Where
//! nothing is under way, the caller writes its request itself, so an idle connection costs no switch of tasks. Under load,
//! the task lets callers run once after it has handed out several replies, and before it writes the first of several
//! requests: what they ask meanwhile goes out in one piece. The first of a crowd that was answered leaves its request to the
//! task, too: it would go alone.
//!
//! - Every request carries an opaque id, which its reply must echo: else the connection ends.
//! - A caller may leave at any time; its reply is read and dropped.
//! - Deadlines belong to the connection: when the oldest exchange is overdue, it ends, since a queue cannot skip.
//! - Connecting belongs to the task, so a caller's budget does not cut it short. After a failed connect, calls fail at once
//!   for 5 ms, doubling up to 500 ms; after a lost connection, the next call connects.
//! - Bounded: commands and bytes that wait, length of a reply line, size of a value before it is allocated.

mod driver;
mod frame;
mod io;
mod link;
mod parse;
mod queue;
mod records;

use std::{sync::Arc, time::Instant};

use cache_core::PoolStatus;
use tokio::{runtime::Handle, sync::oneshot};

pub(crate) use self::link::Made;
use self::{
    driver::Guard,
    link::{Link, Phase},
    queue::{Exchange, Kind, LOST, NO_ANSWER, Results, Waiter},
};
use crate::{
    ErrorKind,
    dial::Dial,
    error::Fault,
    transport::{Command, Limits, NO_RUNTIME, Reply, Transport},
};

/// Most commands without a reply.
const WAITING_MAX: usize = 1 << 16;
/// Most bytes of requests that have not been written; one exchange always fits.
const UNSENT_MAX: usize = 64 << 20;

#[derive(Debug)]
pub(crate) struct Pipeline(Arc<Link>);

impl Pipeline {
    pub(crate) fn new(dial: Dial, limits: Limits, value_max: usize, made: Made) -> Self {
        Self(Arc::new(Link::new(dial, limits, value_max, made)))
    }

    /// Adds how it stands, and says whether it is at rest.
    pub(crate) fn tell(&self, pool: &mut PoolStatus) -> bool {
        self.0.tell(pool)
    }

    /// Queues commands, and sees to it that somebody writes them.
    fn send(
        &self,
        commands: &[Command],
        waiter: Waiter,
        on: Option<Generation>,
        now: Instant,
    ) -> Result<Sent, Fault> {
        let Ok(handle) = Handle::try_current() else {
            return Err(NO_RUNTIME);
        };
        let limits = &self.0.limits;
        let mut state = self.0.lock();
        if state.queue.len() >= WAITING_MAX || state.out.len() >= UNSENT_MAX {
            return Err(Fault::new(ErrorKind::Overloaded, "too many calls wait; nothing was sent"));
        }
        if on.is_some_and(|on| on != state.generation) {
            return Err(LOST);
        }
        let (mut start, mut at_home) = (false, true);
        let mut deadline = now + limits.response_timeout;
        match &state.phase {
            Phase::Down { until, because: Some(fault) } if now < *until => return Err(fault.duplicate()),
            Phase::Down { .. } => {
                state.phase = Phase::Connecting(handle.id());
                start = true;
                deadline += limits.connect_timeout;
            }
            Phase::Connecting(home) => {
                deadline += limits.connect_timeout;
                at_home = *home == handle.id();
            }
            Phase::Up(_, home) => at_home = *home == handle.id(),
            Phase::Closed => return Err(Fault::new(ErrorKind::Closed, "the provider has been closed")),
        }
        let (idle, before) = (state.is_idle(), state.out.len());
        let first = state.next_id;
        state.next_id += commands.len() as u64;
        for (id, command) in (first..).zip(commands) {
            frame::encode(command, id, &mut state.out);
        }
        let start_at = state.total;
        state.total += (state.out.len() - before) as u64;
        state.queue.push(Exchange { first, start: start_at, deadline, waiter });
        if idle && before == 0 {
            state.write_now();
        }
        // The task already knows of earlier requests, and of a deadline.
        let rest = before == 0 && !state.out.is_empty();
        let wake = if rest || !state.armed { state.waker.take() } else { None };
        let generation = state.generation;
        drop(state);
        if let Some(waker) = wake {
            waker.wake();
        }
        if start {
            let home = handle.id();
            handle.spawn(driver::run(Guard::new(Arc::clone(&self.0), generation), home));
        }
        Ok(Sent { on: generation, away: !at_home })
    }

    /// `None` when no answer came. The connection's task always gives one; but if it runs on another runtime, perhaps
    /// nobody drives that, and then not even its deadline would end the call.
    #[allow(clippy::manual_async_fn, reason = "an `async fn` would keep each argument twice")]
    fn wait<T: Send>(
        &self,
        receiver: &mut oneshot::Receiver<T>,
        sent: &Sent,
    ) -> impl Future<Output = Option<T>> + Send {
        async move {
            if !sent.away {
                return receiver.await.ok();
            }
            let limit = self.0.limits.connect_timeout + self.0.limits.response_timeout;
            match Box::pin(tokio::time::timeout(limit, receiver)).await {
                Ok(answer) => answer.ok(),
                Err(_elapsed) => {
                    self.0.end(sent.on, &NO_ANSWER, true);
                    None
                }
            }
        }
    }
}

type Generation = crate::transport::Link;

/// What has been queued.
struct Sent {
    on: Generation,
    /// The connection's task runs on another runtime.
    away: bool,
}

fn unanswered(command: &Command) -> Fault {
    if command.is_write() { NO_ANSWER.in_doubt() } else { NO_ANSWER }
}

impl Transport for Pipeline {
    async fn run(&self, commands: &[Command], on: Option<Generation>) -> (Generation, Results) {
        if commands.is_empty() {
            return (on.unwrap_or_default(), Vec::new());
        }
        let (waiter, mut receiver) = Waiter::many(commands.iter().map(Kind::from).collect());
        match self.send(commands, waiter, on, Instant::now()) {
            Ok(sent) => {
                let none = || commands.iter().map(|command| Err(unanswered(command))).collect();
                (sent.on, self.wait(&mut receiver, &sent).await.unwrap_or_else(none))
            }
            Err(fault) => (on.unwrap_or_default(), commands.iter().map(|_| Err(fault.duplicate())).collect()),
        }
    }

    #[allow(clippy::manual_async_fn, reason = "an `async fn` would keep each argument twice")]
    fn one(
        &self,
        command: &Command,
        on: Option<Generation>,
        now: Instant,
    ) -> impl Future<Output = (Generation, Result<Reply, Fault>)> + Send {
        async move {
            let (waiter, mut receiver) = Waiter::one(command.into());
            match self.send(std::slice::from_ref(command), waiter, on, now) {
                Ok(sent) => {
                    let answer = self.wait(&mut receiver, &sent).await;
                    (sent.on, answer.unwrap_or_else(|| Err(unanswered(command))))
                }
                Err(fault) => (on.unwrap_or_default(), Err(fault)),
            }
        }
    }

    fn is_linked(&self) -> bool {
        true
    }

    fn reset(&self) {
        self.0.end_locked(self.0.lock(), &LOST, true);
    }

    fn close(&self) {
        let mut state = self.0.lock();
        let over = state.end(&LOST, true);
        state.phase = Phase::Closed;
        drop(state);
        over.tell();
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.close();
    }
}

#[cfg(test)]
mod tests {
    use std::{
        pin::pin,
        task::{Context, Wake, Waker},
        time::Duration,
    };

    use cache_core::testing::ends_within;
    use futures::{
        future::{join, join_all},
        poll,
    };
    use tokio::{
        io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
        net::{TcpListener, TcpStream},
        runtime::Builder,
        time::timeout,
    };

    use super::*;
    use crate::{endpoint::Endpoint, item::Item, transport::When};

    const HANG: Duration = Duration::from_secs(20);

    /// A caller who, when woken, does the next thing at once.
    struct Hasty(Arc<Pipeline>);

    impl Wake for Hasty {
        fn wake(self: Arc<Self>) {
            self.0.reset();
        }
    }

    #[test]
    fn who_is_told_of_the_end_may_use_the_connection() {
        ends_within(Duration::from_secs(10), move || {
            // Not driven: nothing else ends the connection.
            let runtime = Builder::new_current_thread().build().unwrap();
            let _on = runtime.enter();
            let endpoint = Endpoint { tls: false, host: "127.0.0.1".to_owned(), port: 1 };
            let limits = Limits {
                connect_timeout: Duration::from_secs(60),
                response_timeout: Duration::from_secs(60),
            };
            let dial = Dial { endpoint, tls: None, login: None };
            let pipeline = Arc::new(Pipeline::new(dial, limits, 100, Made::default()));
            let waker = Waker::from(Arc::new(Hasty(Arc::clone(&pipeline))));
            let asks = |end: fn(&Pipeline)| {
                let get = Command::get("k".to_owned());
                let mut call = pin!(pipeline.one(&get, None, Instant::now()));
                assert!(call.as_mut().poll(&mut Context::from_waker(&waker)).is_pending());
                end(&pipeline);
            };
            asks(Pipeline::reset);
            asks(|pipeline| {
                let generation = pipeline.0.lock().generation;
                pipeline.0.end(generation, &LOST, true);
            });
            asks(Pipeline::close);
        });
    }

    /// Answers look-ups, so many in one go, and as many again, with misses.
    async fn answer(listener: TcpListener, crowd: usize) {
        let (read, mut write) = listener.accept().await.unwrap().0.into_split();
        let mut lines = BufReader::new(read).lines();
        for count in [crowd, crowd] {
            let mut replies = String::new();
            for _ in 0..count {
                let line = lines.next_line().await.unwrap().unwrap();
                replies += &format!("EN {}\r\n", line.rsplit_once(' ').unwrap().1);
            }
            write.write_all(replies.as_bytes()).await.unwrap();
        }
    }

    /// Whether each of so many callers, who have been answered at once, has then written for itself.
    async fn written_at_once(crowd: usize) -> Vec<bool> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let endpoint = Endpoint { tls: false, host: "127.0.0.1".to_owned(), port };
        let limits = Limits { connect_timeout: HANG, response_timeout: HANG };
        let pipeline =
            Arc::new(Pipeline::new(Dial { endpoint, tls: None, login: None }, limits, 100, Made::default()));
        let calls = (0..crowd).map(|_| {
            let pipeline = Arc::clone(&pipeline);
            tokio::spawn(async move {
                let get = Command::get("k".to_owned());
                let _ = pipeline.one(&get, None, Instant::now()).await;
                let mut again = pin!(pipeline.one(&get, None, Instant::now()));
                assert!(poll!(&mut again).is_pending());
                let written = pipeline.0.lock().out.is_empty();
                assert!(again.await.1.is_ok());
                written
            })
        });
        let all = join_all(calls.collect::<Vec<_>>());
        let (all, ()) = timeout(HANG, join(all, answer(listener, crowd))).await.unwrap();
        all.into_iter().map(Result::unwrap).collect()
    }

    #[tokio::test]
    async fn the_first_of_a_crowd_that_was_answered_waits_for_the_others() {
        assert_eq!(written_at_once(9).await, [false; 9]);
        // Fewer are no crowd.
        let first = |crowd| (0..crowd).map(|n| n == 0).collect::<Vec<_>>();
        assert_eq!(written_at_once(8).await, first(8));
        assert_eq!(written_at_once(2).await, first(2));
        assert_eq!(written_at_once(1).await, [true]);
    }

    /// How two puts fail of which the task holds all of the second, and a part of the first, when the connection ends.
    async fn fates(end: fn(&Pipeline, TcpStream)) -> [ErrorKind; 2] {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let endpoint = Endpoint { tls: false, host: "127.0.0.1".to_owned(), port };
        let limits = Limits { connect_timeout: HANG, response_timeout: HANG };
        let pipeline =
            Arc::new(Pipeline::new(Dial { endpoint, tls: None, login: None }, limits, 100, Made::default()));
        let puts = [32 << 20, 1].map(|size| {
            let item = Item::Bare(vec![0; size].into());
            let put = Command::Put { key: "k".to_owned(), item, exptime: 0, when: When::Always };
            let pipeline = Arc::clone(&pipeline);
            tokio::spawn(async move { pipeline.one(&put, None, Instant::now()).await.1.unwrap_err().kind })
        });
        let (peer, _) = listener.accept().await.unwrap();
        // On one thread: what is taken by the task is written as far as the socket takes it.
        timeout(HANG, async {
            while !pipeline.0.lock().writing {
                tokio::task::yield_now().await;
            }
        })
        .await
        .unwrap();
        end(&pipeline, peer);
        let [first, second] = puts;
        timeout(HANG, async { [first.await.unwrap(), second.await.unwrap()] }).await.unwrap()
    }

    #[tokio::test]
    async fn what_the_task_holds_is_in_doubt_where_another_ends_the_connection() {
        assert_eq!(fates(|pipeline, _| pipeline.reset()).await, [ErrorKind::InDoubt; 2]);
        let task_ends = fates(|_, peer| drop(peer)).await;
        assert_eq!(task_ends, [ErrorKind::InDoubt, ErrorKind::Connect], "the task knows what has left");
    }
}
