//! The task of one connection: makes it, stays with it until it ends, and makes the next.

use std::{future::pending, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use super::Keeper;
use crate::{
    backoff::Backoff,
    clocks::Now,
    connection::{Link, There},
    home::Home,
    state::State,
    ticks::every,
    watch::Watch,
};

/// A connection that lived at least this long was a good one: its loss is answered at once, and a server that sends us
/// away (`READONLY`) makes us connect anew at most this often.
const STABLE: Duration = Duration::from_secs(1);

/// Says so when the task ends, however it does, so that callers do not wait for a task that is no more.
pub(super) struct IdleAtEnd(pub(super) Arc<Keeper>);

impl Drop for IdleAtEnd {
    fn drop(&mut self) {
        self.0.publish(State::ended());
        self.0.deaf();
    }
}

pub(super) async fn run(guard: IdleAtEnd) {
    let keeper = &*guard.0;
    let mut backoff = Backoff::new();
    let blind = keeper.settings.blind();
    let mut told = Instant::now();
    loop {
        let Some(attempt) = keeper.unless_closed(keeper.connect(true)).await else { return };
        match attempt {
            Ok((link, driver)) => {
                let since = Instant::now();
                if !keeper.publish(State::Up(Arc::clone(&link)))
                    || stay(keeper, link, driver).await == End::Closed
                {
                    return;
                }
                keeper.publish(State::Trying);
                keeper.dials().lost();
                keeper.deaf();
                told = Instant::now();
                if since.elapsed() >= STABLE {
                    backoff.reset();
                } else if pause(keeper, backoff.after_loss()).await == End::Closed {
                    return;
                }
            }
            Err(error) => {
                if let Some(watch) = &keeper.pushes.watch {
                    watch.fails(&error);
                }
                keeper.publish(State::Down(error));
                if told.elapsed() >= blind {
                    keeper.deaf();
                    told = Instant::now();
                }
                if pause(keeper, backoff.after_failure()).await == End::Closed {
                    return;
                }
                // One server of many is no reason to make a whole batch wait: it is away until it is back.
                if !matches!(keeper.home, Home::Node(..) | Home::NodeReplica(_) | Home::Replica(_)) {
                    keeper.publish(State::Trying);
                }
            }
        }
    }
}

#[derive(PartialEq, Eq)]
enum End {
    Lost,
    Closed,
}

async fn pause(keeper: &Keeper, by: Duration) -> End {
    tokio::select! {
        biased;
        () = keeper.closed() => End::Closed,
        () = sleep(by) => End::Lost,
    }
}

/// Stays with a connection until it ends, and with those that take its place without a break.
async fn stay(keeper: &Keeper, link: Arc<Link>, driver: JoinHandle<()>) -> End {
    let mut looks = every(keeper.settings.response_timeout / 2);
    let mut beats = every(keeper.settings.heartbeat);
    let mut renewed = Instant::now();
    let mut vigil = Vigil::over(keeper, link, driver);
    loop {
        tokio::select! {
            biased;
            () = keeper.closed() => {
                vigil.close().await;
                return End::Closed;
            }
            _ = &mut vigil.driver => return End::Lost,
            () = &mut vigil.replaced => return vigil.condemn(),
            () = keeper.renew.notified() => {
                if renewed.elapsed() < STABLE {
                    continue;
                }
                renewed = Instant::now();
                // Requests under way on the old one may end: it is a replica, which takes no writes. Its driver ends with the
                // last of them.
                if let Some(Ok((link, driver))) = keeper.unless_closed(keeper.connect(false)).await {
                    keeper.publish(State::Up(Arc::clone(&link)));
                    vigil = Vigil::over(keeper, link, driver);
                }
            }
            watch = comes(vigil.watch, &mut vigil.newest) => {
                if !vigil.follows(watch).await {
                    return vigil.condemn();
                }
            }
            alive = ends(&mut vigil.beat) => {
                vigil.beat = None;
                if !alive {
                    return vigil.condemn();
                }
            }
            () = ends(&mut vigil.clocks) => vigil.clocks = None,
            _ = beats.tick(), if vigil.beat.is_none() => {
                if !vigil.begin_beat().await {
                    return vigil.condemn();
                }
            }
            _ = looks.tick() => {
                if !vigil.look().await {
                    return vigil.condemn();
                }
            }
        }
    }
}

/// What is known of one connection while it lasts, and what is being asked over it.
///
/// A connection on which nothing comes back any more is as good as lost, though the kernel may not know for minutes: when
/// requests were sent and no answer came since the last look, the server has to answer a `PING` in time. And it has to answer
/// one after each time of use: where an answer is missing, or there is one too many, each goes to who has not asked for it.
struct Vigil<'k> {
    keeper: &'k Keeper,
    link: Arc<Link>,
    driver: JoinHandle<()>,
    /// Ends when sentinels have replaced its server.
    replaced: BoxFuture<'k, ()>,
    watch: Option<&'k Watch>,
    /// Tells of those who want to hear of changes since.
    newest: Option<watch::Receiver<u64>>,
    /// Whether the server answers a `PING` of the last heartbeat.
    beat: Option<BoxFuture<'k, bool>>,
    /// How much had been sent by then.
    asked: u64,
    clocks: Option<BoxFuture<'k, ()>>,
    /// How much had been sent when it was last known that nothing waits.
    quiet_from: u64,
    /// How much had been answered at the last look.
    heard: u64,
}

impl<'k> Vigil<'k> {
    fn over(keeper: &'k Keeper, link: Arc<Link>, driver: JoinHandle<()>) -> Self {
        let watch = keeper.pushes.watch.as_deref();
        let (sent, answered) = link.greeted;
        Self {
            keeper,
            driver,
            replaced: replaced(keeper, &link),
            watch,
            newest: watch.map(Watch::newest),
            beat: None,
            asked: sent,
            clocks: None,
            quiet_from: sent,
            heard: answered,
            link,
        }
    }

    /// Lets requests under way end, as they hold the link, and the driver with them. Nobody waits for our own.
    async fn close(self) {
        let Self { keeper, link, mut driver, beat, clocks, .. } = self;
        drop((link, beat, clocks));
        if timeout(keeper.settings.response_timeout, &mut driver).await.is_err() {
            driver.abort();
        }
    }

    fn condemn(self) -> End {
        self.link.condemn();
        End::Lost
    }

    /// Has the server watch what is wanted now. `false`: it does not.
    async fn follows(&mut self, watch: &Watch) -> bool {
        let followed = self.keeper.followed(watch, &self.link, self.keeper.settings.silence());
        !matches!(self.keeper.unless_closed(followed).await, Some(Err(_)))
    }

    /// Asks what has to be asked once in a while. `false`: the connection is not what is needed.
    async fn begin_beat(&mut self) -> bool {
        let Self { keeper, watch, .. } = *self;
        if self.clocks.is_none() && self.link.server.time.is_some() && keeper.ahead.is_doubtful(Now::read()) {
            let link = Arc::clone(&self.link);
            self.clocks = Some(Box::pin(async move { keeper.set_clocks(&link).await }));
        }
        // Of caches that go, nobody tells.
        if let Some(watch) = watch
            && watch.is_stale(&self.link)
            && !self.follows(watch).await
        {
            return false;
        }
        let (sent, _) = self.link.progress();
        let link = Arc::clone(&self.link);
        if let Some(watch) = watch.filter(|watch| !watch.is_empty()) {
            let limit = keeper.settings.heartbeat_timeout;
            let proves = |at| watch.proves(keeper.id, at);
            self.beat = Some(Box::pin(async move { link.answers(limit, proves).await }));
        } else if sent > self.asked {
            self.asked = sent + 1;
            let limit = keeper.settings.response_timeout;
            self.beat = Some(Box::pin(async move { link.answers(limit, |_| {}).await }));
        }
        true
    }

    /// Whether it may be alive: something has come back since the last look, or nothing has been sent.
    async fn look(&mut self) -> bool {
        let (sent, answered) = self.link.progress();
        if answered == self.heard && sent > self.quiet_from {
            let there = self.link.is_there(self.keeper.settings.response_timeout);
            let there = tokio::select! {
                there = self.keeper.unless_closed(there) => there,
                _ = &mut self.driver => return false,
            };
            match there {
                Some(There::No) => return false,
                // What had been put to it by then waits for nothing any more, nor does the `PING`.
                Some(There::Answers) => self.quiet_from = sent + 1,
                // It may not even have been put to a connection that has no room.
                Some(There::IsBusy) | None => {}
            }
        }
        self.heard = answered.max(self.link.progress().1);
        true
    }
}

/// Ends when sentinels have replaced the server of a connection.
fn replaced<'a>(keeper: &'a Keeper, link: &Link) -> BoxFuture<'a, ()> {
    let Home::Sentinels(sentinels) = &keeper.home else { return Box::pin(pending()) };
    let master = link.endpoint.clone();
    Box::pin(async move { sentinels.replaced(&keeper.settings, &master).await })
}

async fn ends<T>(work: &mut Option<BoxFuture<'_, T>>) -> T {
    match work {
        Some(work) => work.await,
        None => pending().await,
    }
}

/// Ends when there is somebody new who wants to hear of changes.
async fn comes<'a>(watch: Option<&'a Watch>, newest: &mut Option<watch::Receiver<u64>>) -> &'a Watch {
    if let (Some(watch), Some(newest)) = (watch, newest)
        && newest.changed().await.is_ok()
    {
        return watch;
    }
    pending().await
}

#[cfg(test)]
mod tests {
    use test_servers::RedisServer;

    use super::*;
    use crate::{RedisProvider, advice::Advice, clocks::Measured, connection::Pushes};

    /// As if it had been put on by an hour while the connection goes on.
    #[tokio::test]
    async fn a_wall_clock_that_is_set_is_compared_with_the_servers_anew() {
        let Some(server) = RedisServer::start() else { return };
        let provider =
            RedisProvider::builder(server.url()).heartbeat(Duration::from_millis(20)).build().unwrap();
        let settings = Arc::clone(provider.settings());
        let home = Home::of(&settings.place);
        let keeper = Keeper::new(settings, home, Pushes::unheard(&Arc::new(Advice::default())));
        keeper.link().await.unwrap();
        const HOUR_MS: i64 = 3_600_000;
        let now = Now::read();
        let before = Now { wall_ms: now.wall_ms - HOUR_MS, ..now };
        keeper.ahead.begin(Measured { ahead_ms: HOUR_MS, give_ms: 0 }, before);
        let corrected = async {
            while keeper.time_offset_ms() == HOUR_MS {
                sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(10), corrected).await.expect("it is asked for the time");
        assert!(keeper.time_offset_ms().abs() < 1000, "one machine, one clock");
        assert_eq!(keeper.reconnects(), 0);
        keeper.close().await;
    }

    /// A caller may be faster than the watch, which must not begin to count after what it sends.
    #[tokio::test]
    async fn the_first_request_of_a_connection_is_watched() {
        let Some(server) = RedisServer::start() else { return };
        let built = RedisProvider::builder(server.url()).response_timeout(Duration::from_millis(50)).build();
        let settings = Arc::clone(built.unwrap().settings());
        let home = Home::of(&settings.place);
        let keeper = Keeper::new(settings, home, Pushes::unheard(&Arc::new(Advice::default())));
        let (link, driver) = keeper.connect(true).await.unwrap();
        server.stop();
        let first = Arc::clone(&link);
        let get = redis::cmd("GET").arg("k").to_owned();
        let mut first = Box::pin(async move { first.command(&get).await });
        assert!(futures::poll!(&mut first).is_pending());
        let end = timeout(Duration::from_secs(10), stay(&keeper, link, driver)).await;
        assert!(end.expect("it is given up") == End::Lost);
        assert!(timeout(Duration::from_secs(10), first).await.expect("its caller hears of it").is_err());
    }
}
