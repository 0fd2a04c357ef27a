//! The task of one connection: makes it, stays with it until it ends, and makes the next.

use std::{future::pending, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval_at, sleep, timeout},
};

use super::Keeper;
use crate::{
    backoff::Backoff,
    clocks::Now,
    connection::{Link, There},
    home::Home,
    state::State,
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

/// Stays with a connection until it ends.
///
/// A connection on which nothing comes back any more is as good as lost, though the kernel may not know for minutes: when
/// requests were sent and no answer came since the last look, the server has to answer a `PING` in time. And it has to answer
/// one after each time of use: where an answer is missing, or there is one too many, each goes to who has not asked for it.
async fn stay(keeper: &Keeper, mut link: Arc<Link>, mut driver: JoinHandle<()>) -> End {
    let limit = keeper.settings.response_timeout;
    let mut looks = interval_at(Instant::now() + limit / 2, limit / 2);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut quiet_from, mut heard) = link.greeted;
    let mut renewed = Instant::now();
    let watch = keeper.pushes.watch.as_deref();
    let mut newest = watch.map(Watch::newest);
    let mut beats = interval_at(Instant::now() + keeper.settings.heartbeat, keeper.settings.heartbeat);
    beats.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut beat: Option<Beat<'_>> = None;
    let mut asked = link.greeted.0;
    let mut clocks: Option<BoxFuture<'_, ()>> = None;
    let mut other = replaced(keeper, &link);
    loop {
        tokio::select! {
            biased;
            () = keeper.closed() => {
                // Requests under way hold the link and may end; then the driver ends, too. Nobody waits for our own.
                drop((link, beat, clocks));
                if timeout(limit, &mut driver).await.is_err() {
                    driver.abort();
                }
                return End::Closed;
            }
            _ = &mut driver => return End::Lost,
            () = &mut other => {
                link.condemn();
                return End::Lost;
            }
            () = keeper.renew.notified() => {
                if renewed.elapsed() < STABLE {
                    continue;
                }
                renewed = Instant::now();
                // Requests under way on the old one may end: it is a replica, which takes no writes.
                if let Some(Ok((next, next_driver))) = keeper.unless_closed(keeper.connect(false)).await {
                    keeper.publish(State::Up(Arc::clone(&next)));
                    // The old driver goes on for requests under way and ends with the last of them.
                    (link, driver) = (next, next_driver);
                    (newest, beat) = (watch.map(Watch::newest), None);
                    clocks = None;
                    (quiet_from, heard) = link.greeted;
                    asked = quiet_from;
                    other = replaced(keeper, &link);
                }
            }
            watch = comes(watch, &mut newest) => {
                if !follows(keeper, watch, &link).await {
                    return End::Lost;
                }
            }
            alive = ends(&mut beat) => {
                beat = None;
                if !alive {
                    link.condemn();
                    return End::Lost;
                }
            }
            () = ends(&mut clocks) => clocks = None,
            _ = beats.tick(), if beat.is_none() => {
                if clocks.is_none() && link.server.time.is_some() && keeper.ahead.is_doubtful(Now::read()) {
                    let link = Arc::clone(&link);
                    clocks = Some(Box::pin(async move { keeper.set_clocks(&link).await }));
                }
                // Of caches that go, nobody tells.
                if let Some(watch) = watch
                    && watch.is_stale(&link)
                    && !follows(keeper, watch, &link).await
                {
                    return End::Lost;
                }
                let (sent, _) = link.progress();
                if let Some(watch) = watch.filter(|watch| !watch.is_empty()) {
                    let link = Arc::clone(&link);
                    let limit = keeper.settings.heartbeat_timeout;
                    let proves = |at| watch.proves(keeper.id, at);
                    beat = Some(Box::pin(async move { link.answers(limit, proves).await }));
                } else if sent > asked {
                    asked = sent + 1;
                    let link = Arc::clone(&link);
                    beat = Some(Box::pin(async move { link.answers(limit, |_| {}).await }));
                }
            }
            _ = looks.tick() => {
                let (sent, answered) = link.progress();
                if answered == heard && sent > quiet_from {
                    let there = tokio::select! {
                        there = keeper.unless_closed(link.is_there(limit)) => there,
                        _ = &mut driver => return End::Lost,
                    };
                    match there {
                        Some(There::No) => {
                            link.condemn();
                            return End::Lost;
                        }
                        // What had been put to it by then waits for nothing any more, nor does the `PING`.
                        Some(There::Answers) => quiet_from = sent + 1,
                        // It may not even have been put to a connection that has no room.
                        Some(There::IsBusy) | None => {}
                    }
                }
                heard = answered.max(link.progress().1);
            }
        }
    }
}

/// Has the server watch what is wanted now. `false`: it does not, and the connection is given up.
async fn follows(keeper: &Keeper, watch: &Watch, link: &Link) -> bool {
    let followed = keeper.followed(watch, link, keeper.settings.silence());
    let lost = matches!(keeper.unless_closed(followed).await, Some(Err(_)));
    if lost {
        link.condemn();
    }
    !lost
}

/// Ends when sentinels have replaced the server of a connection.
fn replaced<'a>(keeper: &'a Keeper, link: &Link) -> BoxFuture<'a, ()> {
    let Home::Sentinels(sentinels) = &keeper.home else { return Box::pin(pending()) };
    let master = link.endpoint.clone();
    Box::pin(async move { sentinels.replaced(&keeper.settings, &master).await })
}

type Beat<'a> = BoxFuture<'a, bool>;

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
