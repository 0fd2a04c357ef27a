//! Single items.

use std::time::Duration;

use bytes::Bytes;

use super::room::{Room, ok};
use crate::{CacheProvider, Capabilities};

const LARGE: usize = 100 * 1024;
/// A larger limit than this is not tried out.
const TRIED: usize = 64 << 20;

pub(super) fn holds_large(capabilities: &Capabilities) -> bool {
    capabilities.value_max.is_none_or(|max| max >= LARGE)
}

pub(super) fn has_a_limit(capabilities: &Capabilities) -> bool {
    capabilities.value_max.is_some_and(|max| max <= TRIED)
}

/// What no compression makes small.
fn noise(len: usize) -> Bytes {
    let mut dice = fastrand::Rng::with_seed(len as u64);
    let mut noise = vec![0; len];
    dice.fill(&mut noise);
    noise.into()
}

fn limit(provider: &dyn CacheProvider) -> usize {
    provider.capabilities().value_max.expect("applies to providers with a limit")
}

/// Capabilities leave room for what the framework needs, and the description names a system.
pub async fn capabilities_make_sense(provider: &dyn CacheProvider) {
    let capabilities = provider.capabilities();
    assert_eq!(capabilities, provider.capabilities(), "capabilities are constant");
    assert!(capabilities.ttl_step > Duration::ZERO, "ttl_step is positive");
    assert!(
        capabilities.ttl_max.is_none_or(|max| max >= capabilities.ttl_step),
        "ttl_max is at least ttl_step"
    );
    assert!(capabilities.key_max.is_none_or(|max| max >= 64), "a shortened key keeps some of its text");
    assert!(capabilities.value_max.is_none_or(|max| max >= 256), "an envelope fits");
    assert!(!provider.describe().system.is_empty(), "the system has a name");
    ok(provider.check().map_err(Into::into));
}

/// A sign of life.
pub async fn ping_answers(provider: &dyn CacheProvider) {
    ok(provider.ping().await);
}

/// A miss is `None`, never an error.
pub async fn miss_is_none(provider: &dyn CacheProvider) {
    assert!(!Room::new().has(provider, "absent").await);
}

/// What was put comes back, more than once.
pub async fn put_then_get(provider: &dyn CacheProvider) {
    let room = Room::new();
    room.put(provider, "k", "value").await;
    for _ in 0..3 {
        assert_eq!(room.get(provider, "k").await.as_deref(), Some(&b"value"[..]));
    }
}

/// The last put counts, whether it is longer or shorter.
pub async fn overwrite_replaces(provider: &dyn CacheProvider) {
    let room = Room::new();
    for value in ["middling", "much longer than before", "s", "s"] {
        room.put(provider, "k", value).await;
        assert_eq!(room.get(provider, "k").await.as_deref(), Some(value.as_bytes()));
    }
}

/// A removed item is a miss, and can be put again.
pub async fn remove_makes_a_miss(provider: &dyn CacheProvider) {
    let room = Room::new();
    for _ in 0..2 {
        room.put(provider, "k", "v").await;
        room.put(provider, "other", "v").await;
        room.remove(provider, "k").await;
        assert!(!room.has(provider, "k").await);
        assert!(room.has(provider, "other").await);
    }
}

/// Removing what is not there succeeds, as does removing twice.
pub async fn remove_what_is_absent(provider: &dyn CacheProvider) {
    let room = Room::new();
    room.remove(provider, "never there").await;
    room.put(provider, "k", "v").await;
    room.remove(provider, "k").await;
    room.remove(provider, "k").await;
    assert!(!room.has(provider, "k").await);
}

/// Values are opaque: all byte values, and what protocols end their replies with.
pub async fn every_byte_survives(provider: &dyn CacheProvider) {
    let room = Room::new();
    let all: Vec<u8> = (0..=255).chain((0..=255).rev()).collect();
    let values: [&[u8]; 10] = [
        &all,
        b"\r\n",
        b"END\r\n",
        b"x\r\nEN\r\nVA 1 k\r\ny\r\n",
        b"$-1\r\n",
        b"*0\r\n",
        b"-ERR no\r\n",
        b"\0",
        b"\0\0\0\0\0\0\0\0",
        b"12345",
    ];
    for value in values {
        room.put(provider, "k", value.to_vec()).await;
        assert_eq!(room.get(provider, "k").await.as_deref(), Some(value));
    }
}

/// The smallest value there is.
pub async fn one_byte_value(provider: &dyn CacheProvider) {
    let room = Room::new();
    for byte in [0, b'\n', b' ', 255] {
        room.put(provider, "k", vec![byte]).await;
        assert_eq!(room.get(provider, "k").await.as_deref(), Some(&[byte][..]));
    }
}

/// 100 KiB that no compression makes small.
pub async fn large_value(provider: &dyn CacheProvider) {
    let room = Room::new();
    let value = noise(LARGE);
    room.put(provider, "k", value.clone()).await;
    assert!(room.get(provider, "k").await == Some(value), "100 KiB come back as they were");
}

/// Values just above a MiB and 16 MiB, where stores cut: whole, or not at all.
pub async fn larger_values_come_whole(provider: &dyn CacheProvider) {
    let room = Room::new();
    let max = provider.capabilities().value_max.unwrap_or(usize::MAX);
    for len in [1 << 20, 16 << 20].map(|len| len + 1).into_iter().filter(|len| *len <= max) {
        let value = noise(len);
        room.put(provider, "k", "small and old").await;
        let put = provider.put(room.item("k", value.clone())).await;
        let found = room.get(provider, "k").await;
        // A bounded store may let it go at once.
        assert!(
            found.is_none() || (put.is_ok() && found == Some(value)),
            "{len} bytes were put, and {} other ones are there: what is refused or cut is a `value_max`",
            found.map_or(0, |found| found.len())
        );
        room.remove(provider, "k").await;
    }
}

/// An item of exactly `value_max` bytes is kept, under a short key and a long one.
///
/// What is that large is removed again, here as elsewhere: a bounded store may evict one for the other.
pub async fn value_at_the_limit(provider: &dyn CacheProvider) {
    let room = Room::new();
    let value = noise(limit(provider));
    for id in ["k".to_owned(), "long".repeat(100)] {
        room.put(provider, &id, value.clone()).await;
        assert!(
            room.get(provider, &id).await.as_ref() == Some(&value),
            "value_max bytes come back as they were"
        );
        room.remove(provider, &id).await;
    }
}

/// Z2: an item over the limit leaves nothing of the old value, whether it is refused or not.
pub async fn too_large_leaves_nothing(provider: &dyn CacheProvider) {
    let room = Room::new();
    for over in [1, 4096] {
        let value = noise(limit(provider) + over);
        room.put(provider, "k", "small and old").await;
        let refused = provider.put(room.item("k", value.clone())).await.is_err();
        room.expect_replaced(provider, "k", (!refused).then_some(value)).await;
        room.put(provider, "k", "small and new").await;
        assert_eq!(room.get(provider, "k").await.as_deref(), Some(&b"small and new"[..]));
    }
}

/// An error is logged and shown: it holds neither the key nor the value that it is about.
pub async fn refusals_are_discreet(provider: &dyn CacheProvider) {
    let room = Room::new();
    let value = "secret value ".repeat(limit(provider) / 10);
    let Err(refused) = provider.put(room.item("secret key", value)).await else { return };
    let mut said = format!("{refused:?}");
    let mut error: Option<&dyn std::error::Error> = Some(&*refused);
    while let Some(part) = error {
        said = format!("{said} {part}");
        error = part.source();
    }
    // Also as the numbers of its bytes.
    let bytes = format!("{:?}", b"secret value");
    let tells = |what: &str| said.contains(what);
    assert!(!tells("secret key") && !tells("secret%20key"), "the error holds the key");
    assert!(!tells("secret value") && !tells(bytes.trim_end_matches(']')), "the error holds the value");
}
