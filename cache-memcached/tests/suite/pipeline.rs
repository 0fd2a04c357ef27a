//! What only the pipelined connection does.

use std::{
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use cache_core::{CacheProvider, Unreadable};
use cache_memcached::ErrorKind;
use tokio::time::timeout;

use super::common::{
    Server, builder, eventually,
    fake::{Fake, answer, asks_for_life, opaque},
    item, key, kind, provider,
};

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn z2_a_refused_item_leaves_its_neighbours_alone() {
    let server = Server::with(&["-I", "512k"]);
    let cache = provider(&server);
    cache.put(item("k", b"old")).await.unwrap();
    let big = vec![1; 600_000];
    let batch = [item("a", b"1"), item("k", &big), item("b", b"2")];
    let kinds: Vec<_> =
        cache.put_many(&batch).await.into_iter().map(|r| r.map_err(|e| kind::<()>(Err(e)))).collect();
    assert_eq!(kinds, [Ok(()), Err(ErrorKind::TooLarge), Ok(())]);
    for (id, expected) in [("a", Some("1")), ("k", None), ("b", Some("2"))] {
        assert_eq!(cache.get(key(id)).await.unwrap().as_deref(), expected.map(str::as_bytes));
    }
}

#[tokio::test]
async fn z_a_foreign_item_over_the_limit_is_skipped_and_the_connection_goes_on() {
    let server = Server::start();
    let cache = builder(server.url()).value_max(1000).build().unwrap();
    cache.put(item("small", b"y")).await.unwrap();
    let mut request = b"ms ns:big 900000 T0\r\n".to_vec();
    request.extend_from_slice(&vec![b'x'; 900_000]);
    request.extend_from_slice(b"\r\n");
    assert_eq!(server.raw(&request), "HD\r\n");
    let before = server.number("total_connections");
    let mut got = cache.get_many(&[key("small"), key("big"), key("small")]).await;
    assert_eq!(got.pop().unwrap().unwrap().unwrap(), "y");
    let big = got.pop().unwrap().unwrap_err();
    assert_eq!(big.downcast_ref(), Some(&Unreadable::TooLarge));
    assert_eq!(got.pop().unwrap().unwrap().unwrap(), "y");
    assert!(cache.get(key("small")).await.unwrap().is_some());
    assert_eq!(server.number("total_connections") - before, 1, "only the one that asks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x_dropped_waiters_cost_no_connection_and_mix_nothing_up() {
    let server = Server::start();
    let cache = provider(&server);
    let ids: Vec<String> = (0..64).map(|i| format!("id-{i}")).collect();
    let items: Vec<_> = ids.iter().map(|id| item(id, id.as_bytes())).collect();
    assert!(cache.put_many(&items).await.iter().all(Result::is_ok));
    let before = server.number("total_connections");
    let tasks = (0..64usize).map(|task| {
        let (cache, ids) = (cache.clone(), ids.clone());
        tokio::spawn(async move {
            for round in 0..500usize {
                let id = &ids[(task * 7 + round * 13) % 64];
                let mut call = cache.get(key(id));
                if (task + round) % 9 == 0 {
                    for _ in 0..round % 3 {
                        if futures::poll!(&mut call).is_ready() {
                            break;
                        }
                    }
                } else {
                    assert_eq!(call.await.unwrap().unwrap(), id.as_bytes());
                }
            }
        })
    });
    for task in futures::future::join_all(tasks).await {
        task.unwrap();
    }
    assert_eq!(server.number("total_connections") - before, 1, "only the one that asks");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_killed_under_load_every_call_ends_and_all_recover() {
    let server = Server::start();
    let cache = builder(server.url()).breaker(5, Duration::from_millis(20)).build().unwrap();
    let (wrong, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let load = |calls: usize| {
        let tasks = (0..32usize).map(|task| {
            let (cache, wrong, ended) = (cache.clone(), Arc::clone(&wrong), Arc::clone(&ended));
            tokio::spawn(async move {
                let id = format!("id-{task}");
                for _ in 0..calls {
                    let _ = cache.put(item(&id, id.as_bytes())).await;
                    if let Ok(Some(got)) = cache.get(key(&id)).await {
                        wrong.fetch_add(usize::from(got != id.as_bytes()), Ordering::Relaxed);
                    }
                    ended.fetch_add(1, Ordering::Relaxed);
                    tokio::task::yield_now().await;
                }
            })
        });
        futures::future::join_all(tasks)
    };
    for _ in 0..3 {
        let running = tokio::spawn(load(300));
        eventually("load has begun", async || ended.swap(0, Ordering::Relaxed) > 50).await;
        tokio::task::block_in_place(|| server.restart());
        timeout(LONG, running).await.expect("no call hangs").unwrap().into_iter().for_each(Result::unwrap);
    }
    eventually("recovery", async || cache.put(item("k", b"v")).await.is_ok()).await;
    assert_eq!(wrong.load(Ordering::Relaxed), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r_stopped_under_load_every_call_ends() {
    let server = Server::start();
    let cache = builder(server.url())
        .response_timeout(Duration::from_millis(150))
        .breaker(5, Duration::from_millis(20))
        .build()
        .unwrap();
    let ids: Vec<String> = (0..64).map(|i| format!("id-{i}")).collect();
    let items: Vec<_> = ids.iter().map(|id| item(id, id.as_bytes())).collect();
    assert!(cache.put_many(&items).await.iter().all(Result::is_ok));
    let stopped = server.stop();
    let calls = futures::future::join_all(ids.iter().map(|id| cache.get(key(id))));
    let ends = timeout(LONG, calls).await.expect("no call hangs");
    assert!(ends.into_iter().all(|r| kind(r) == ErrorKind::Timeout));
    drop(stopped);
    eventually("recovery", async || cache.get(key("id-0")).await.is_ok()).await;
    for id in &ids {
        assert_eq!(cache.get(key(id)).await.unwrap().unwrap(), id.as_bytes());
    }
}

#[tokio::test]
async fn r_large_values_both_ways_on_one_connection() {
    let server = Server::with(&["-m", "256"]);
    let cache = builder(server.url()).response_timeout(LONG).build().unwrap();
    let values: Vec<Vec<u8>> = (0..40u32)
        .map(|i| (0..1_000_000u32).map(|b| ((b * (i + 1)) >> 3).to_le_bytes()[0]).collect())
        .collect();
    let ids: Vec<String> = (0..40).map(|i| format!("id-{i}")).collect();
    // Far more than the socket's buffers hold, in both directions at once.
    let writes = futures::future::join_all(ids.iter().zip(&values).map(async |(id, value)| {
        cache.put(item(id, value)).await.unwrap();
        cache.get(key(id)).await.unwrap().unwrap()
    }));
    for (got, value) in writes.await.into_iter().zip(&values) {
        assert!(got == value);
    }
}

/// It says so to a new connection, and reads nothing of it.
#[tokio::test]
async fn r_a_server_that_takes_no_more_connections_is_not_connected_to() {
    // With more threads, so few would be none.
    let server = Server::with(&["-c", "20", "-t", "2"]);
    let connect = || TcpStream::connect(server.addr()).unwrap();
    let others: Vec<_> = (0..40).map(|_| connect()).collect();
    // Whoever has waited for the server to start had a place, too, which may be free only now.
    let (mut placed, mut refused) = (Vec::new(), 0);
    while refused < 20 {
        let one = provider(&server);
        match one.ping().await {
            Ok(()) => {
                placed.push(one);
                refused = 0;
            }
            Err(_full) => refused += 1,
        }
    }
    let cache = builder(server.url()).breaker(1_000_000, Duration::from_millis(1)).build().unwrap();
    for _ in 0..3 {
        assert_eq!(kind(cache.ping().await), ErrorKind::Connect);
        assert_eq!(kind(cache.remove(key("k")).await), ErrorKind::Connect);
    }
    drop((others, placed));
    eventually("there is room again", async || cache.put(item("k", b"v")).await.is_ok()).await;
}

#[tokio::test]
async fn r_a_budget_shorter_than_a_connect_gets_its_connection_in_the_end() {
    let accepted = Arc::new(AtomicUsize::new(0));
    let fake = Fake::start({
        let accepted = Arc::clone(&accepted);
        move |mut peer, _| {
            accepted.fetch_add(1, Ordering::Relaxed);
            async move {
                while let Some(line) = peer.line().await {
                    peer.say(answer(&line).as_bytes()).await;
                }
            }
        }
    })
    .await;
    let cache = builder(fake.url()).build().unwrap();
    // Polled once: the connect goes on without its caller.
    let mut call = cache.get(key("k"));
    assert!(futures::poll!(&mut call).is_pending());
    drop(call);
    eventually("connected", async || accepted.load(Ordering::Relaxed) == 1).await;
    assert_eq!(cache.get(key("k")).await.unwrap().unwrap(), "value of ns:k");
    assert_eq!(accepted.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn r_a_lost_connection_costs_no_call() {
    let fake = Fake::start(|mut peer, _| async move {
        // Every connection gives one value, then hangs up on the next request for one.
        let mut answered = false;
        while let Some(line) = peer.line().await {
            if !asks_for_life(&line) && std::mem::replace(&mut answered, true) {
                return peer.reset();
            }
            peer.say(answer(&line).as_bytes()).await;
        }
    })
    .await;
    let cache = builder(fake.url()).build().unwrap();
    for _ in 0..10 {
        assert_eq!(cache.get(key("a")).await.unwrap().unwrap(), "value of ns:a");
    }
}

#[tokio::test]
async fn v_an_id_of_another_call_ends_the_connection() {
    let fake = Fake::start(|mut peer, _| async move {
        while let Some(line) = peer.line().await {
            if asks_for_life(&line) {
                peer.say(answer(&line).as_bytes()).await;
                continue;
            }
            let other = opaque(&line).replace(" O", " O9");
            peer.say(format!("VA 1{other}\r\nx\r\n").as_bytes()).await;
        }
    })
    .await;
    let cache = builder(fake.url()).build().unwrap();
    assert_eq!(kind(cache.get(key("a")).await), ErrorKind::Protocol);
    assert_eq!(kind(cache.put(item("a", b"v")).await), ErrorKind::InDoubt);
}

#[tokio::test]
async fn v_an_endless_line_is_not_collected() {
    let fake = Fake::start(|mut peer, _| async move {
        peer.line().await;
        while peer.say(&[b'x'; 4096]).await {}
    })
    .await;
    let cache = builder(fake.url()).build().unwrap();
    assert_eq!(kind(timeout(LONG, cache.get(key("a"))).await.unwrap()), ErrorKind::Protocol);
}

#[tokio::test]
async fn r_too_many_calls_are_refused_not_collected() {
    let fake = Fake::start(|mut peer, _| async move {
        if let Some(line) = peer.line().await {
            peer.say(answer(&line).as_bytes()).await;
        }
        while peer.line().await.is_some() {}
    })
    .await;
    let cache = builder(fake.url()).response_timeout(LONG).build().unwrap();
    cache.ping().await.unwrap();
    let big = Bytes::from(vec![1; 1_000_000]);
    let ids: Vec<String> = (0..200).map(|i| i.to_string()).collect();
    let mut calls = Vec::new();
    let mut refused = 0;
    for id in &ids {
        let mut put = item(id, b"");
        put.bytes = big.clone();
        let mut call = cache.put(put);
        if let std::task::Poll::Ready(result) = futures::poll!(&mut call) {
            assert_eq!(kind(result), ErrorKind::Overloaded);
            refused += 1;
        }
        calls.push(call);
    }
    assert!(refused > 50, "{refused}");
}

#[test]
fn x_a_runtime_that_nobody_drives_does_not_hang_calls_on_another() {
    let server = Server::start();
    let cache = builder(server.url())
        .connect_timeout(Duration::from_millis(100))
        .response_timeout(Duration::from_millis(100))
        .build()
        .unwrap();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let asleep = runtime();
    asleep.block_on(cache.put(item("k", b"v"))).unwrap();
    runtime().block_on(async {
        eventually("it moves over", async || cache.get(key("k")).await.is_ok()).await;
        assert_eq!(timeout(LONG, cache.get(key("k"))).await.unwrap().unwrap().unwrap(), "v");
    });
    drop(asleep);
}

/// Some end in the middle of look-ups, and of connects.
#[test]
fn runtimes_come_and_go() {
    let server = Server::start();
    // Calls that a busy machine cuts off late are not what this is about.
    let cache = builder(server.url())
        .response_timeout(LONG)
        .breaker(1_000_000, Duration::from_millis(1))
        .build()
        .unwrap();
    for n in 0..60 {
        let mut runtime = match n % 2 {
            0 => tokio::runtime::Builder::new_current_thread(),
            _ => tokio::runtime::Builder::new_multi_thread(),
        };
        let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            for task in 0..20 {
                let cache = cache.clone();
                tokio::spawn(async move {
                    loop {
                        let _ = cache.get(key(&task.to_string())).await;
                        tokio::task::yield_now().await;
                    }
                });
            }
            timeout(LONG, cache.put(item("k", b"v"))).await.unwrap().unwrap();
            assert_eq!(timeout(LONG, cache.get(key("k"))).await.unwrap().unwrap().unwrap(), "v");
            // Each ends at another point of what the tasks do.
            tokio::time::sleep(Duration::from_millis(n % 7)).await;
        });
    }
}

#[test]
fn a_runtime_that_ends_is_no_failure_of_the_server() {
    let server = Server::start();
    let cache = builder(server.url()).response_timeout(LONG).breaker(1, 10 * LONG).build().unwrap();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let (first, second) = (runtime(), runtime());
    first.block_on(cache.ping()).unwrap();
    let stopped = server.stop();
    let mut put = cache.put(item("k", b"v"));
    assert!(second.block_on(async { futures::poll!(&mut put) }).is_pending());
    // The connection goes with it.
    drop(first);
    drop(stopped);
    let put = second.block_on(put);
    assert!(put.is_ok() || kind(put) == ErrorKind::InDoubt);
    second.block_on(cache.put(item("k", b"v"))).unwrap();
    drop(second);
    // While it connects.
    let third = runtime();
    let mut put = cache.put(item("k", b"v"));
    assert!(third.block_on(async { futures::poll!(&mut put) }).is_pending());
    drop(third);
    runtime().block_on(put).unwrap();
}

/// Such a task panics, each time.
#[test]
fn a_runtime_without_timers_is_told_of() {
    let server = Server::start();
    let cache = provider(&server);
    let without = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let error = without.block_on(cache.get(key("k"))).unwrap_err();
    assert!(error.to_string().contains("enable_all"), "{error}");
    assert_eq!(kind::<()>(Err(error)), ErrorKind::NoRuntime);
    let with = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    with.block_on(eventually("connected", async || cache.get(key("k")).await.is_ok()));
}

/// Not even what a call that was under way leaves behind opens it again.
#[tokio::test]
async fn closed_stays_closed() {
    let server = Server::start();
    let cache = builder(server.url()).response_timeout(LONG).breaker(1, LONG).build().unwrap();
    cache.put(item("k", b"v")).await.unwrap();
    let stopped = server.stop();
    let (mut goes_on, mut gives_up) = (cache.get(key("k")), cache.get(key("k")));
    assert!(futures::poll!(&mut goes_on).is_pending());
    // Long enough to count against the server.
    assert!(timeout(Duration::from_millis(50), &mut gives_up).await.is_err());
    cache.close().await;
    drop(stopped);
    drop(gives_up);
    assert_eq!(kind(timeout(LONG, goes_on).await.unwrap()), ErrorKind::Closed);
}

/// More than may wait on one connection.
#[tokio::test]
async fn r_a_batch_of_any_size_is_answered() {
    let server = Server::start();
    let cache = builder(server.url()).response_timeout(LONG).build().unwrap();
    cache.put(item("7", b"v")).await.unwrap();
    let ids: Vec<String> = (0..70_000).map(|n| n.to_string()).collect();
    let keys: Vec<_> = ids.iter().map(|id| key(id)).collect();
    let found = cache.get_many(&keys).await;
    let failed = found.iter().filter(|found| found.is_err()).count();
    assert_eq!(failed, 0);
    assert_eq!(found[7].as_ref().unwrap().as_deref(), Some(&b"v"[..]));
}

#[tokio::test]
async fn connections_are_told_as_they_stand() {
    let (one, other) = (Server::start(), Server::start());
    let cache = builder(one.url()).server(other.url()).build().unwrap();
    assert_eq!(cache.pool(), None, "nobody has asked yet");
    cache.servers().await;
    assert_eq!(cache.pool(), None, "that goes by connections of its own");
    cache.ping().await.unwrap();
    let pool = cache.pool().unwrap();
    assert_eq!((pool.idle, pool.used, pool.max, pool.pending), (2, 0, 2, 0));
    assert_eq!((pool.made, pool.made_in.len(), pool.timeouts, pool.errors), (2, 2, 0, 0));
    other.kill();
    eventually("lost", async || {
        let pool = cache.pool().unwrap();
        (pool.idle, pool.errors) == (1, 1)
    })
    .await;
    cache.ping().await.unwrap_err();
    let pool = cache.pool().unwrap();
    assert!(pool.made == 2 && pool.errors > 1, "{pool:?}");
    cache.close().await;
    assert_eq!(cache.pool(), None);
}

#[tokio::test]
async fn calls_that_wait_for_a_connection_are_pending() {
    // It takes a connection, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("memcached://{}", silent.local_addr().unwrap());
    let cache = builder(url).login("user", "secret").connect_timeout(Duration::from_millis(300));
    let cache = cache.build().unwrap();
    let call = tokio::spawn({
        let cache = cache.clone();
        async move { cache.ping().await.is_err() }
    });
    eventually("waits", async || cache.pool().is_some_and(|pool| pool.pending == 1)).await;
    assert!(call.await.unwrap());
    let pool = cache.pool().unwrap();
    assert_eq!((pool.idle, pool.pending, pool.made, pool.timeouts, pool.errors), (0, 0, 0, 1, 0));
}
