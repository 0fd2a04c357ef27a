//! Single look-ups that are gathered into batches.
#![allow(clippy::unwrap_used, reason = "in tests, what goes wrong must fail the test")]

mod common;

use std::{panic::AssertUnwindSafe, time::Duration};

use cache_core::CacheProvider;
use cache_redis::RedisProvider;
use common::{RedisServer, get, key, put, until};
use futures::{
    FutureExt,
    future::{join, join_all},
};
use tokio::time::timeout;

const HANG: Duration = Duration::from_secs(20);

async fn filled(server: &RedisServer, keys: usize) -> RedisProvider {
    let provider = RedisProvider::builder(server.url()).build().unwrap();
    for n in 0..keys {
        put(&provider, &n.to_string(), &format!("value {n}")).await;
    }
    provider
}

async fn check(provider: &RedisProvider, n: usize) {
    let found = timeout(HANG, get(provider, &n.to_string())).await.unwrap().unwrap();
    assert_eq!(found, Some(format!("value {n}")));
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

/// Starts look-ups that cannot be answered yet. The first is the leader.
async fn start<F: Future + Unpin>(calls: &mut [F]) {
    for call in calls {
        assert!(timeout(Duration::from_millis(1), call).await.is_err(), "the server stands still");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_look_ups_share_commands_and_get_their_own_values() {
    let server = RedisServer::start();
    let provider = filled(&server, 100).await;
    let before = server.calls("get");
    let tasks = (0..64).map(|task| {
        let provider = provider.clone();
        tokio::spawn(async move {
            for n in 0..200 {
                check(&provider, (task * 31 + n) % 100).await;
                if n % 50 == 0 {
                    assert_eq!(get(&provider, "nope").await.unwrap(), None);
                }
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
    let commands = server.calls("get") - before + server.calls("mget");
    assert!(server.calls("mget") > 0 && commands < 64 * 204, "{commands} commands");
}

/// On one thread: the connection's task does not write while they ask.
#[tokio::test]
async fn one_key_asked_many_times_is_sent_once_a_round() {
    let server = RedisServer::start();
    let provider = filled(&server, 1).await;
    server.stop();
    let (leader, rest) = (get(&provider, "0"), join_all((0..7).map(|_| get(&provider, "0"))));
    let mut all = Box::pin(join(leader, rest));
    start(std::slice::from_mut(&mut all)).await;
    server.cont();
    let (first, rest) = timeout(HANG, all).await.unwrap();
    for found in rest.into_iter().chain([first]) {
        assert_eq!(found.unwrap().as_deref(), Some("value 0"));
    }
    // One command for those that wait, or more where it starts while they ask.
    let (gets, rounds) = (server.calls("get"), server.calls("mget"));
    assert!(rounds > 0 && gets + rounds < 8, "{gets} GET, {rounds} MGET");
    let info: String = server.command(&["INFO", "stats"]).unwrap();
    let hits = format!("keyspace_hits:{}\r\n", gets + rounds);
    assert!(info.contains(&hits), "one key in each of {gets} GET and {rounds} MGET: {info}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lone_look_up_is_a_plain_get() {
    let server = RedisServer::start();
    let provider = filled(&server, 1).await;
    for _ in 0..20 {
        check(&provider, 0).await;
    }
    assert_eq!((server.calls("get"), server.calls("mget")), (20, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_leaves_leaves_the_others_alone() {
    let server = RedisServer::start();
    let provider = filled(&server, 10).await;
    // Who leaves: the leader, two of those who wait, or all but one.
    for leavers in [vec![0], vec![1, 2], vec![0, 1, 2, 3, 4]] {
        server.stop();
        let mut calls: Vec<_> = (0..6).map(|n| Some(Box::pin(check(&provider, n)))).collect();
        for call in calls.iter_mut().flatten() {
            start(std::slice::from_mut(call)).await;
        }
        for leaver in leavers {
            calls[leaver] = None;
        }
        server.cont();
        timeout(HANG, join_all(calls.into_iter().flatten())).await.unwrap();
        check(&provider, 9).await;
    }
}

/// Reads, writes and batches of many callers, of whom one in three leaves at some point: what each gets is his own.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_gets_the_answer_of_another_whoever_leaves() {
    let server = RedisServer::start();
    let provider = filled(&server, 100).await;
    let one = async |provider: &RedisProvider, random: &mut fastrand::Rng| match random.u8(0..8) {
        0 => {
            let n = random.usize(0..100);
            put(provider, &n.to_string(), &format!("value {n}")).await;
        }
        1 => {
            let ids: Vec<String> =
                (0..random.usize(1..20)).map(|_| random.usize(0..100).to_string()).collect();
            let keys: Vec<_> = ids.iter().map(|id| key(id)).collect();
            for (id, found) in ids.iter().zip(provider.get_many(&keys).await) {
                assert!(found.unwrap().unwrap().ends_with(format!("value {id}").as_bytes()));
            }
        }
        _ => check(provider, random.usize(0..100)).await,
    };
    let tasks = (0..48).map(|task| {
        let provider = provider.clone();
        tokio::spawn(async move {
            let mut random = fastrand::Rng::with_seed(task);
            for _ in 0..500 {
                let polls = if random.u8(0..3) == 0 { random.usize(1..4) } else { usize::MAX };
                let mut own = random.fork();
                let mut call = Box::pin(one(&provider, &mut own));
                let mut polled = 0;
                timeout(
                    HANG,
                    std::future::poll_fn(|cx| {
                        polled += 1;
                        match call.as_mut().poll(cx) {
                            std::task::Poll::Pending if polled < polls => std::task::Poll::Pending,
                            _ => std::task::Poll::Ready(()),
                        }
                    }),
                )
                .await
                .unwrap();
            }
        })
    });
    for task in join_all(tasks).await {
        task.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_look_up_that_nobody_goes_on_with_holds_up_nobody() {
    let server = RedisServer::start();
    let provider = filled(&server, 4).await;
    // What a loop over `select!` does to the one while it handles the other.
    let mut stalled = Box::pin(check(&provider, 0));
    server.stop();
    assert!(futures::poll!(&mut stalled).is_pending());
    server.cont();
    for n in 1..4 {
        check(&provider, n).await;
        let provider = provider.clone();
        tokio::spawn(async move { check(&provider, n).await }).await.unwrap();
    }
    stalled.await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_panics_hands_the_queue_on() {
    let server = RedisServer::start();
    let provider = filled(&server, 4).await;
    server.stop();
    let leader = async {
        let look_up = provider.get(key("0"));
        let panics = async {
            tokio::task::yield_now().await;
            panic!("on purpose");
        };
        join(look_up, panics).await
    };
    let mut leader = Box::pin(AssertUnwindSafe(leader).catch_unwind());
    // One poll sends the look-up, the next panics.
    assert!(futures::poll!(&mut leader).is_pending());
    let mut waiting = Box::pin(join_all((1..4).map(|n| check(&provider, n))));
    start(std::slice::from_mut(&mut waiting)).await;
    assert!(leader.await.is_err());
    server.cont();
    timeout(HANG, waiting).await.unwrap();
}

#[test]
fn a_runtime_that_ends_under_the_leader_strands_nobody() {
    let server = RedisServer::start();
    let (first, second) = (runtime(), runtime());
    let provider = first.block_on(filled(&server, 4));
    server.stop();
    let leader = first.spawn({
        let provider = provider.clone();
        async move { check(&provider, 0).await }
    });
    first.block_on(async { tokio::time::sleep(Duration::from_millis(20)).await });
    let waiting: Vec<_> = (1..4)
        .map(|n| {
            let provider = provider.clone();
            second.spawn(async move { check(&provider, n).await })
        })
        .collect();
    second.block_on(async { tokio::time::sleep(Duration::from_millis(20)).await });
    // The leader and the connection go with it.
    drop(first);
    server.cont();
    assert!(second.block_on(leader).unwrap_err().is_cancelled());
    for waiting in waiting {
        second.block_on(waiting).unwrap();
    }
}

/// What ends with the runtime of the callers must not start anew on it: nothing runs there any more.
#[test]
fn a_runtime_that_ends_under_gathered_lookups() {
    let server = RedisServer::start();
    let (first, second) = (runtime(), runtime());
    let provider = first.block_on(filled(&server, 1));
    server.stop();
    let mut calls: Vec<_> = (0..8).map(|_| Box::pin(get(&provider, "0"))).collect();
    // One goes alone, the next is a round, and the rest wait for it.
    second.block_on(start(&mut calls[..2]));
    until("a round", || provider.connections()[0].in_flight == 2);
    second.block_on(start(&mut calls[2..]));
    drop(second);
    server.cont();
    for found in first.block_on(async { timeout(HANG, join_all(calls)).await }).unwrap() {
        assert_eq!(found.unwrap().as_deref(), Some("value 0"));
    }
}

#[test]
fn a_side_runtime_that_rests_holds_up_nobody() {
    let server = RedisServer::start();
    let main = runtime();
    let provider = main.block_on(filled(&server, 4));
    let side = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for _ in 0..5 {
        side.block_on(join_all((0..4).map(|n| check(&provider, n))));
        main.block_on(check(&provider, 0));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_may_not_be_read_fails_alone() {
    let server = RedisServer::start();
    filled(&server, 4).await;
    server
        .command::<()>(&[
            "ACL",
            "SETUSER",
            "ann",
            "on",
            ">pw",
            "+get",
            "+mget",
            "~v:{users:0}",
            "~v:{users:1}",
            "~v:{users:2}",
        ])
        .unwrap();
    let url = format!("redis://ann:pw@127.0.0.1:{}", server.port());
    let provider = RedisProvider::builder(url).build().unwrap();
    check(&provider, 0).await;
    let ids = ["0", "1", "2", "3"];
    // Whether four calls meet is a matter of timing: until some have been gathered.
    for _ in 0..1_000 {
        let found = join_all(ids.iter().map(|id| get(&provider, id))).await;
        let found: Vec<_> = found.into_iter().map(Result::ok).collect();
        assert_eq!(found.iter().map(Option::is_some).collect::<Vec<_>>(), [true, true, true, false]);
        if server.command::<String>(&["INFO", "commandstats"]).unwrap().contains("mget") {
            return;
        }
    }
    panic!("nothing was gathered");
}
