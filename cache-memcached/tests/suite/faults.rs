//! Servers that die, stop, lie or crawl; callers that walk away.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use super::common::{
    Server, builder, eventually,
    fake::{Fake, answer, asks_for_life, opaque, value_of},
    few_connections, item, key, kind, provider,
};
use cache_core::{BoxError, CacheProvider};
use cache_memcached::{ErrorKind, MemcachedProvider};
use tokio::time::timeout;

/// Longer than any call may take, on a noisy machine.
const LONG: Duration = Duration::from_secs(10);

fn quick(url: String) -> MemcachedProvider {
    builder(url)
        .response_timeout(Duration::from_millis(150))
        .connect_timeout(Duration::from_millis(150))
        .breaker(1_000_000, Duration::from_millis(1))
        .build()
        .unwrap()
}

#[tokio::test]
async fn r_a_restarted_server_is_used_again_at_once() {
    let server = Server::start();
    let cache = provider(&server);
    for _ in 0..3 {
        cache.put(item("k", b"v")).await.unwrap();
        server.restart();
        // The dead connection in the pool costs no request.
        assert!(cache.get(key("k")).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn r_a_killed_server_refuses_then_recovers() {
    let server = Server::start();
    let cache = builder(server.url()).breaker(3, Duration::from_millis(50)).build().unwrap();
    cache.put(item("k", b"v")).await.unwrap();
    server.kill();
    for _ in 0..3 {
        assert_eq!(kind(cache.get(key("k")).await), ErrorKind::Connect);
    }
    // Now it is left alone, and whoever hears of that hears why.
    let error = cache.put(item("k", b"v")).await.unwrap_err();
    let told = cache_core::with_causes(&*error);
    assert!(told.contains("is left alone") && told.contains("refused"), "{told}");
    assert_eq!(kind::<()>(Err(error)), ErrorKind::Sick);
    server.restart();
    eventually("recovery", async || cache.put(item("k", b"v")).await.is_ok()).await;
    assert!(cache.get(key("k")).await.unwrap().is_some());
}

#[tokio::test]
async fn r_a_ping_closes_the_breaker_early() {
    let server = Server::start();
    let cache = builder(server.url()).breaker(1, LONG * 100).build().unwrap();
    server.kill();
    assert_eq!(kind(cache.get(key("k")).await), ErrorKind::Connect);
    assert_eq!(kind(cache.get(key("k")).await), ErrorKind::Sick);
    server.restart();
    cache.ping().await.unwrap();
    assert!(cache.get(key("k")).await.unwrap().is_none());
}

#[tokio::test]
async fn r_a_stopped_server_costs_the_response_timeout_and_writes_are_in_doubt() {
    let server = Server::start();
    // Each on a connection that is up: once the first call has ended it, nothing more is sent before the server answers.
    let all: [MemcachedProvider; 6] = std::array::from_fn(|_| quick(server.url()));
    for cache in &all {
        cache.put(item("k", b"v")).await.unwrap();
    }
    let stopped = server.stop();
    let calls = async {
        let [a, b, c, d, e, f] = &all;
        assert_eq!(kind(a.get(key("k")).await), ErrorKind::Timeout);
        assert_eq!(kind(b.put(item("k", b"w")).await), ErrorKind::InDoubt);
        assert_eq!(kind(c.remove(key("k")).await), ErrorKind::InDoubt);
        let both = d.put_many(&[item("a", b"1"), item("b", b"2")]).await;
        assert!(both.into_iter().all(|r| kind(r) == ErrorKind::InDoubt));
        assert!(e.get_many(&[key("a"), key("b")]).await.into_iter().all(|r| kind(r) == ErrorKind::Timeout));
        assert_eq!(kind(f.ping().await), ErrorKind::Timeout);
        // A new connection asks for the server's life first. A pool has no notion of a connection.
        let expected = if crate::POOLED { ErrorKind::InDoubt } else { ErrorKind::Timeout };
        assert_eq!(kind(f.put(item("k", b"w")).await), expected);
    };
    timeout(LONG, calls).await.expect("all calls end");
    let cache = &all[0];
    drop(stopped);
    eventually("recovery", async || cache.put(item("k", b"x")).await.is_ok()).await;
    // Doubtful writes may have happened before; never after this one was acknowledged on their heels.
    assert!(cache.get(key("k")).await.is_ok());
}

#[tokio::test]
async fn r_callers_with_short_budgets_open_the_breaker_too() {
    let server = Server::start();
    let cache = builder(server.url()).breaker(3, LONG).build().unwrap();
    cache.put(item("k", b"v")).await.unwrap();
    let _stopped = server.stop();
    for _ in 0..3 {
        assert!(timeout(Duration::from_millis(40), cache.get(key("k"))).await.is_err());
    }
    assert_eq!(kind(cache.get(key("k")).await), ErrorKind::Sick);
}

#[tokio::test]
async fn m10_a_dead_server_fails_only_its_own_keys() {
    let servers = [Server::start(), Server::start(), Server::start()];
    let cache = builder(servers[0].url())
        .servers(servers[1..].iter().map(|s| s.url()))
        .breaker(2, LONG)
        .build()
        .unwrap();
    let ids: Vec<String> = (0..300).map(|i| format!("id-{i}")).collect();
    let items: Vec<_> = ids.iter().map(|id| item(id, id.as_bytes())).collect();
    let keys: Vec<_> = ids.iter().map(|id| key(id)).collect();
    assert!(cache.put_many(&items).await.iter().all(Result::is_ok));
    // All but its life item.
    let lost = usize::try_from(servers[1].number("curr_items") - 1).unwrap();
    servers[1].kill();
    for round in 0..5 {
        let got = cache.get_many(&keys).await;
        let failed: Vec<BoxError> = got
            .into_iter()
            .zip(&ids)
            .filter_map(|(r, id)| match r {
                Ok(value) => {
                    assert_eq!(value.unwrap(), id.as_bytes());
                    None
                }
                Err(error) => Some(error),
            })
            .collect();
        assert_eq!(failed.len(), lost);
        let expected = if round < 2 { ErrorKind::Connect } else { ErrorKind::Sick };
        assert!(failed.into_iter().all(|e| kind::<()>(Err(e)) == expected), "{round}");
    }
    assert_eq!(cache.put_many(&items).await.iter().filter(|r| r.is_err()).count(), lost);
    assert_eq!(cache.remove_many(&keys).await.iter().filter(|r| r.is_err()).count(), lost);
    // Nothing has moved to another server: they hold tombstones of their own keys, and their life items.
    let held = servers[0].number("curr_items") + servers[2].number("curr_items");
    assert_eq!(usize::try_from(held).unwrap(), 300 - lost + 2);
    assert!(cache.ping().await.is_err());
}

#[tokio::test]
async fn x_a_connection_dropped_in_mid_reply_is_not_used_again() {
    let fake = Fake::start(|mut peer, _| async move {
        while let Some(line) = peer.line().await {
            let reply = answer(&line);
            let (head, tail) = reply.split_at(reply.len() / 2);
            // Long enough for the caller of the slow key to walk away in between.
            if line.contains("slow") {
                peer.say(head.as_bytes()).await;
                tokio::time::sleep(Duration::from_millis(60)).await;
                peer.say(tail.as_bytes()).await;
            } else {
                peer.say(reply.as_bytes()).await;
            }
        }
    })
    .await;
    let cache = few_connections(fake.url(), 1).breaker(1_000_000, LONG).build().unwrap();
    for i in 0..20 {
        let slow = format!("slow-{i}");
        assert!(timeout(Duration::from_millis(30), cache.get(key(&slow))).await.is_err());
        let id = format!("quick-{i}");
        assert_eq!(cache.get(key(&id)).await.unwrap().unwrap(), value_of(&format!("mg ns:{id}")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x_dropped_callers_never_mix_up_replies() {
    let server = Server::start();
    // Of a machine that is busy, slow replies are not what this is about.
    let cache = few_connections(server.url(), 8)
        .response_timeout(Duration::from_secs(30))
        .breaker(1_000_000, Duration::from_millis(1));
    let cache = Arc::new(cache.build().unwrap());
    let ids: Vec<String> = (0..64).map(|i| format!("id-{i}")).collect();
    let items: Vec<_> = ids.iter().map(|id| item(id, id.as_bytes())).collect();
    assert!(cache.put_many(&items).await.iter().all(Result::is_ok));
    let tasks = (0..16u32).map(|task| {
        let (cache, ids) = (Arc::clone(&cache), ids.clone());
        tokio::spawn(async move {
            let mut dropped = 0;
            for round in 0..200u32 {
                let id = &ids[((task * 7 + round * 13) % 64) as usize];
                let mut call = cache.get(key(id));
                if (task + round) % 3 == 0 {
                    // Polled once or twice, then dropped.
                    for _ in 0..=round % 2 {
                        if futures::poll!(&mut call).is_ready() {
                            break;
                        }
                        tokio::task::yield_now().await;
                    }
                    dropped += 1;
                } else {
                    assert_eq!(call.await.unwrap().unwrap(), id.as_bytes());
                }
            }
            dropped
        })
    });
    for task in futures::future::join_all(tasks).await {
        assert!(task.unwrap() > 50);
    }
}

#[tokio::test]
async fn r_replies_byte_by_byte_are_read() {
    let fake = Fake::start(|mut peer, _| async move {
        while let Some(line) = peer.line().await {
            for byte in answer(&line).bytes() {
                peer.say(&[byte]).await;
                tokio::task::yield_now().await;
            }
        }
    })
    .await;
    let cache = provider_of(&fake);
    let keys = ["a", "b", "c"].map(key);
    for (got, id) in cache.get_many(&keys).await.into_iter().zip(["a", "b", "c"]) {
        assert_eq!(got.unwrap().unwrap(), format!("value of ns:{id}"));
    }
}

#[tokio::test]
async fn r_a_reset_in_mid_reply_costs_a_read_nothing_and_two_are_an_error() {
    let fake = Fake::start(|mut peer, count| async move {
        while let Some(line) = peer.line().await {
            let reply = answer(&line);
            if !asks_for_life(&line) && ([0, 2, 3, 4].contains(&count) || line.contains("last")) {
                peer.say(&reply.as_bytes()[..reply.len() / 2]).await;
                return peer.reset();
            }
            peer.say(reply.as_bytes()).await;
        }
    })
    .await;
    let cache = provider_of(&fake);
    assert_eq!(cache.get(key("a")).await.unwrap().unwrap(), "value of ns:a");
    for id in ["last", "b"] {
        assert_eq!(kind(cache.get(key(id)).await), ErrorKind::Connect);
    }
    assert_eq!(cache.get(key("c")).await.unwrap().unwrap(), "value of ns:c");
}

#[tokio::test]
async fn r_a_write_cut_off_before_its_answer_is_in_doubt() {
    let fake = Fake::start(|mut peer, _| async move {
        while let Some(line) = peer.line().await.filter(|line| asks_for_life(line)) {
            peer.say(answer(&line).as_bytes()).await;
        }
        peer.line().await;
        peer.reset();
    })
    .await;
    let cache = provider_of(&fake);
    assert_eq!(kind(cache.put(item("a", b"v")).await), ErrorKind::InDoubt);
}

/// A server that keeps the old value when it refuses a new one, unlike 1.6.
#[tokio::test]
async fn z2_a_refused_put_is_followed_by_a_removal() {
    for (reply, expected) in [
        ("SERVER_ERROR out of memory storing object\r\n", ErrorKind::Refused),
        ("SERVER_ERROR object too large for cache\r\n", ErrorKind::TooLarge),
    ] {
        let removed = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&removed);
        let fake = Fake::start(move |mut peer, _| {
            let seen = Arc::clone(&seen);
            async move {
                while let Some(line) = peer.line().await {
                    if asks_for_life(&line) {
                        peer.say(answer(&line).as_bytes()).await;
                    } else if line.starts_with("ms ns:k ") {
                        peer.line().await;
                        peer.say(reply.as_bytes()).await;
                    } else if line.starts_with("md ns:k") {
                        seen.store(true, Ordering::Release);
                        peer.say(format!("HD{}\r\n", opaque(&line)).as_bytes()).await;
                    }
                }
            }
        })
        .await;
        let cache = provider_of(&fake);
        assert_eq!(kind(cache.put(item("k", b"new")).await), expected);
        assert!(removed.load(Ordering::Acquire));
    }
}

#[tokio::test]
async fn r_a_server_that_never_answers_costs_bounded_time() {
    let fake = Fake::start(|mut peer, _| async move { while peer.line().await.is_some() {} }).await;
    let cache = few_connections(fake.url(), 2)
        .response_timeout(Duration::from_millis(100))
        .connect_timeout(Duration::from_millis(100))
        .breaker(1_000_000, LONG)
        .build()
        .unwrap();
    let start = Instant::now();
    // More callers than connections: waiting for one is bounded, too.
    let ids: Vec<String> = (0..50).map(|i| i.to_string()).collect();
    let all = futures::future::join_all(ids.iter().map(|id| cache.get(key(id)))).await;
    assert!(all.into_iter().all(|r| kind(r) == ErrorKind::Timeout));
    assert!(start.elapsed() < LONG);
}

#[tokio::test]
async fn v_garbage_is_an_error_without_its_text() {
    const REPLIES: [&str; 9] = [
        "hunter2 hunter2\r\n",
        "VA\r\n",
        "VA hunter2\r\n",
        "VA -1\r\n",
        "VA 18446744073709551615\r\n",
        "VA 3\r\nabcdef",
        "HTTP/1.1 400 Bad Request\r\n\r\n",
        "SERVER_ERROR hunter2\r\n",
        "CLIENT_ERROR hunter2\r\n",
    ];
    for reply in REPLIES {
        let fake = Fake::start(move |mut peer, _| async move {
            while peer.line().await.is_some() {
                peer.say(reply.as_bytes()).await;
            }
        })
        .await;
        let cache = quick(fake.url());
        for _ in 0..2 {
            let error = timeout(LONG, cache.get(key("secret-key"))).await.unwrap().unwrap_err();
            let mut text = format!("{error} {error:?}");
            let mut cause = error.source();
            while let Some(inner) = cause {
                text += &format!(" {inner} {inner:?}");
                cause = inner.source();
            }
            assert!(!text.contains("hunter2") && !text.contains("secret-key"), "{text}");
            assert!(text.contains(&fake.addr.to_string()), "{text}");
        }
        assert!(cache.put(item("k", b"v")).await.is_err());
    }
}

#[tokio::test]
async fn v_replies_out_of_turn_are_an_error_never_another_keys_value() {
    let fake = Fake::start(|mut peer, _| async move {
        while let (Some(first), Some(second)) = (peer.line().await, peer.line().await) {
            peer.say((answer(&second) + &answer(&first)).as_bytes()).await;
        }
    })
    .await;
    let cache = quick(fake.url());
    for _ in 0..3 {
        assert!(cache.get_many(&[key("a"), key("b")]).await.iter().all(Result::is_err));
    }
}

fn provider_of(fake: &Fake) -> MemcachedProvider {
    builder(fake.url()).build().unwrap()
}
