//! The same memory as a plain provider of bytes.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail their test")]

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use cache_core::{CacheId, CacheProvider, ErrorKind, Put, RawKey};
use cache_memory::{Engine, Memory};

const FOREVER: Duration = Duration::MAX;

fn item<'a>(key: RawKey<'a>, bytes: &'static [u8], ttl: Duration) -> Put<'a> {
    Put { key, bytes: Bytes::from_static(bytes), ttl }
}

#[tokio::test]
async fn bytes_come_back_for_every_cache_of_that_name() {
    let memory: Arc<dyn CacheProvider> = Memory::bytes(1 << 20).into();
    let (a, b) = (RawKey::new(CacheId(1), "users", "1"), RawKey::new(CacheId(2), "users", "1"));
    memory.put(item(a, b"\0\xff", FOREVER)).await.unwrap();
    assert_eq!(memory.get(b).await.unwrap().as_deref(), Some(&b"\0\xff"[..]));
    assert!(memory.get(RawKey::new(CacheId(1), "orders", "1")).await.unwrap().is_none());
    memory.remove(b).await.unwrap();
    memory.remove(b).await.unwrap();
    assert!(memory.get(a).await.unwrap().is_none());
}

#[tokio::test]
async fn batches_answer_in_order() {
    let memory = Memory::entries(10);
    let key = |id| RawKey::new(CacheId(1), "n", id);
    let put = memory.put_many(&[item(key("a"), b"1", FOREVER), item(key("b"), b"2", FOREVER)]).await;
    assert!(put.iter().all(Result::is_ok));
    let got: Vec<_> =
        memory.get_many(&[key("b"), key("x"), key("a")]).await.into_iter().map(Result::unwrap).collect();
    assert_eq!(got, [Some(Bytes::from_static(b"2")), None, Some(Bytes::from_static(b"1"))]);
}

/// Whatever is overwritten and removed at once, and has lasted so long: moka's books are behind its writes.
async fn room_comes_back(ttl: Duration, lasts: Duration) {
    for engine in Engine::ALL {
        let memory = Memory::bytes(1 << 20).engine(engine).engine_expiry(true);
        let key = RawKey::new(CacheId(1), "n", "a");
        for _ in 0..10 {
            memory.put(item(key, &[7; 10_000], ttl)).await.unwrap();
            memory.maintain();
            std::thread::sleep(lasts);
            memory.put(item(key, b"small", FOREVER)).await.unwrap();
            memory.remove(key).await.unwrap();
        }
        memory.maintain();
        assert_eq!(memory.in_process().unwrap().weight(), 0, "{engine}");
    }
}

#[tokio::test]
async fn room_comes_back_whatever_was_there_before_the_last() {
    room_comes_back(FOREVER, Duration::ZERO).await;
}

/// What nobody finds any more is in its books still.
#[tokio::test]
async fn room_comes_back_of_what_had_expired_before_the_last() {
    room_comes_back(Duration::from_millis(5), Duration::from_millis(10)).await;
}

#[tokio::test]
async fn t_a_ttl_ends_with_and_without_the_engines_timer() {
    for (engine, on) in Engine::ALL.into_iter().flat_map(|engine| [(engine, true), (engine, false)]) {
        let memory = Memory::entries(10).engine(engine).engine_expiry(on);
        let key = RawKey::new(CacheId(1), "n", "a");
        memory.put(item(key, b"1", Duration::from_nanos(1))).await.unwrap();
        assert!(memory.get(key).await.unwrap().is_none());
        memory.put(item(key, b"2", FOREVER)).await.unwrap();
        assert!(memory.get(key).await.unwrap().is_some());
    }
}

#[tokio::test]
async fn z_an_item_over_the_bound_is_refused_and_leaves_nothing() {
    for engine in Engine::ALL {
        let memory = Memory::bytes(1_000).engine(engine);
        let key = RawKey::new(CacheId(1), "n", "secret-key");
        memory.put(item(key, b"small", FOREVER)).await.unwrap();
        let error = memory.put(item(key, &[7; 1_001], FOREVER)).await.unwrap_err();
        assert!(!error.to_string().contains("secret"));
        assert!(memory.get(key).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_cache_that_clears_spares_the_bytes() {
    for engine in Engine::ALL {
        let memory = Memory::entries(10).engine(engine);
        let key = RawKey::new(CacheId(1), "n", "a");
        memory.put(item(key, b"1", FOREVER)).await.unwrap();
        memory.in_process().unwrap().clear(CacheId(1));
        assert!(memory.get(key).await.unwrap().is_some());
    }
}

#[test]
fn b_a_bound_without_room_is_a_config_error() {
    for (memory, field) in
        [(Memory::entries(0), "Memory::entries = 0"), (Memory::bytes(10), "Memory::bytes = 10")]
    {
        let error = memory.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Config);
        assert!(error.to_string().starts_with(field), "{error}");
    }
    assert!(Memory::entries(1).check().is_ok());
    let error = "ram".parse::<Engine>().unwrap_err();
    assert_eq!(error.to_string(), "engine = \"ram\": use \"quick\" or \"moka\"");
    assert!(Engine::ALL.iter().all(|engine| engine.to_string().parse::<Engine>().unwrap() == *engine));
}
