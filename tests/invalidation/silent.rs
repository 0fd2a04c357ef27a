//! A channel of which nobody says any more that it has lost nothing: its reader stands still, or the whole process has.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use traced_cache::{
    Backplane, BoxError, Clock, Listener, Memory, Policy, TracedCache,
    testing::{MapProvider, Recorded, Recorder},
};

use crate::world::MS;

const SPAN: Duration = Duration::from_secs(4);

/// Does what the test says.
#[derive(Default)]
struct Channel(Mutex<Option<Arc<dyn Listener>>>);

#[async_trait::async_trait]
impl Backplane for Channel {
    async fn publish(&self, _: &str, _: bytes::Bytes) -> Result<(), BoxError> {
        Ok(())
    }

    fn subscribe(&self, _: &str, listener: Arc<dyn Listener>) {
        *self.0.lock().unwrap() = Some(listener);
    }
}

impl Channel {
    fn ear(&self) -> Arc<dyn Listener> {
        self.0.lock().unwrap().clone().unwrap()
    }
}

/// Which level answers.
async fn level(cache: &TracedCache<String>) -> Option<usize> {
    cache.look("k").await.unwrap().level()
}

#[tokio::test]
async fn memory_is_believed_for_as_long_as_the_channel_says() {
    let (clock, time) = Clock::manual();
    let (channel, other) = (Arc::new(Channel::default()), Arc::new(Channel::default()));
    let seen = Recorder::new();
    let cache: TracedCache<String> = TracedCache::builder("users")
        .level(Memory::entries(100))
        .backplane_shared(Arc::<Channel>::clone(&channel))
        .level(MapProvider::new().clock(clock.clone()))
        .policy(Policy::ttl(Duration::from_secs(3600)))
        .clock(clock)
        .observer(seen.clone())
        .build()
        .unwrap();
    let gaps = || seen.count(|event| matches!(event, Recorded::BackplaneGap));
    cache.get("k").await.unwrap();
    channel.ear().gap();
    assert!(cache.set("k", "v".to_owned()).await.unwrap().is_confirmed());
    time.advance(2 * SPAN);
    assert_eq!((level(&cache).await, gaps()), (Some(0), 1), "it has not said so far");

    channel.ear().believe(SPAN, SPAN);
    time.advance(SPAN - MS);
    assert_eq!(level(&cache).await, Some(0));
    channel.ear().believe(SPAN - MS, SPAN);
    time.advance(SPAN - 2 * MS);
    assert_eq!((level(&cache).await, gaps()), (Some(0), 1));
    time.advance(MS);
    // In the quick way, too.
    assert_eq!(cache.get("k").await.unwrap().as_deref().map(String::as_str), Some("v"));
    assert_eq!((level(&cache).await, gaps()), (Some(0), 2), "read anew");
    // What has been read anew is believed for as long.
    time.advance(SPAN - MS);
    assert_eq!(level(&cache).await, Some(0));
    time.advance(MS);
    assert_eq!((level(&cache).await, gaps()), (Some(1), 3));
    assert_eq!((level(&cache).await, gaps()), (Some(0), 3));

    // Another channel says nothing of it.
    cache.move_backplane(Arc::<Channel>::clone(&other)).unwrap();
    cache.get("absent").await.unwrap();
    other.ear().gap();
    level(&cache).await;
    let before = gaps();
    time.advance(10 * SPAN);
    channel.ear().believe(Duration::ZERO, SPAN);
    assert_eq!((level(&cache).await, gaps()), (Some(0), before));
}
