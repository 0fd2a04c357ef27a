//! What is told to other nodes, at once or when the channel is back.

use std::sync::{Arc, atomic::Ordering};

use scopeguard::ScopeGuard;

use super::{BUDGET, Plane, message::Told};
use crate::{
    Delivery, Event, LevelFault, RawKey, SpanKind, SpanStart, Stamp, Value,
    inner::Inner,
    mark::Reach,
    pending::{Due, Pending},
    replay::{BATCH, Pause},
    stats::OnBackplane,
    within::within,
};

impl<T: Value> Inner<T> {
    /// Tells the other nodes that keys have changed. What the channel does not take is told when it is back.
    pub(crate) async fn tell(self: &Arc<Self>, keys: &[RawKey<'_>]) -> Delivery {
        let Some(plane) = self.plane.as_ref().filter(|plane| !plane.is_heard(&self.around.name)) else {
            return Delivery::Confirmed;
        };
        // Messages of a large batch take longer than one of them may: sent all at once, the last would be given up on a
        // channel that is well.
        const AT_ONCE: usize = 256;
        let send = async |key: &RawKey<'_>| self.send_now(plane, &Told::Key(key.id)).await;
        let mut delivery = Delivery::Confirmed;
        // Also where its caller leaves before the channel has taken them.
        let mut untold = scopeguard::guard(keys, |untold| {
            untold.iter().for_each(|key| plane.pending.add(key.id));
            self.tell_later(plane);
        });
        for keys in keys.chunks(AT_ONCE) {
            let sent = futures::future::join_all(keys.iter().map(send)).await;
            for (key, sent) in keys.iter().zip(sent) {
                if !sent {
                    plane.pending.add(key.id);
                    delivery = Delivery::Pending;
                }
            }
            *untold = &untold[keys.len()..];
        }
        delivery
    }

    /// Tells the other nodes that the whole cache has been cleared.
    pub(crate) async fn tell_clear(self: &Arc<Self>) -> Delivery {
        self.tell_or(&Told::Clear, Pending::add_clear).await
    }

    /// Tells the other nodes that every entry has been expired.
    pub(crate) async fn tell_expire(self: &Arc<Self>) -> Delivery {
        // What is told late is widened: the other nodes must not go on with what was fresh.
        self.tell_or(&Told::ExpireAll, Pending::add_clear).await
    }

    /// Tells the other nodes that tags have been invalidated, under this number.
    pub(crate) async fn tell_tags(
        self: &Arc<Self>,
        tags: &[Box<str>],
        reach: Reach,
        number: Stamp,
    ) -> Delivery {
        self.tell_or(&Told::Tags { reach, number, tags }, |pending| pending.add_tags(tags, reach)).await
    }

    async fn tell_or(self: &Arc<Self>, told: &Told<'_>, keep: impl FnOnce(&Pending)) -> Delivery {
        let Some(plane) = self.plane.as_ref().filter(|plane| !plane.is_heard(&self.around.name)) else {
            return Delivery::Confirmed;
        };
        // Also where its caller leaves before the channel has taken it.
        let untold = scopeguard::guard(keep, |keep| {
            keep(&plane.pending);
            self.tell_later(plane);
        });
        if self.send_now(plane, told).await {
            ScopeGuard::into_inner(untold);
            return Delivery::Confirmed;
        }
        Delivery::Pending
    }

    /// Hands a message to the channel, for a caller who waits: not to one that hangs.
    async fn send_now(&self, plane: &Plane, told: &Told<'_>) -> bool {
        !plane.is_silent() && self.send_message(plane, told).await
    }

    async fn send_message(&self, plane: &Plane, told: &Told<'_>) -> bool {
        let start = SpanStart { kind: SpanKind::Publish, key: None, keys: told.keys(), root: false };
        let spans = self.observers().span(&start);
        let channel = plane.channel.load_full();
        let call = channel.carrier.publish(&self.around.name, told.encode(plane.node, self.shared_us()));
        let sent = self.around.clock.timeout(BUDGET, spans.around(call)).await;
        plane.silent.store(sent.is_none(), Ordering::Release);
        let fault = match &sent {
            Some(Ok(())) => None,
            Some(Err(_)) => Some(LevelFault::Error),
            None => Some(LevelFault::Timeout),
        };
        if let Some(fault) = fault {
            spans.failed(fault.as_str());
        }
        spans.end();
        let sent = fault.is_none();
        if sent {
            self.stats().on_backplane(OnBackplane::Sent);
            self.observers().event(&Event::BackplaneSent);
        }
        sent
    }

    pub(crate) fn tell_later(self: &Arc<Self>, plane: &Plane) {
        if plane.pending.len() == 0 {
            return;
        }
        self.count_pending();
        if plane.pending.claim() {
            // As the replay of a level's: see there.
            let claimed = scopeguard::guard(Arc::clone(self), |inner| {
                inner.plane.iter().for_each(|plane| plane.pending.unclaim());
            });
            self.spawn(within(self.observers().ambient(), async move {
                claimed.retell().await;
                ScopeGuard::into_inner(claimed);
            }));
        }
    }

    /// One round. `false`: the channel is not well.
    async fn retell_some(&self, plane: &Plane) -> bool {
        match plane.pending.due(BATCH) {
            // Nobody is told values.
            None | Some(Due::Values(_)) => {}
            Some(Due::Clear(number)) => {
                if !self.send_message(plane, &Told::Clear).await {
                    return false;
                }
                plane.pending.delivered_clear(number);
            }
            Some(Due::Tags(reach, due)) => {
                let tags: Vec<Box<str>> = due.iter().map(|(tag, _)| tag.clone()).collect();
                // Under no number: what was missed is not known by now.
                let told = Told::Tags { reach, number: Stamp::default(), tags: &tags };
                if !self.send_message(plane, &told).await {
                    return false;
                }
                due.iter().for_each(|(tag, number)| plane.pending.delivered_tag(tag, *number));
            }
            Some(Due::Keys(due)) => {
                for (id, number) in due {
                    if !self.send_message(plane, &Told::Key(&id)).await {
                        return false;
                    }
                    plane.pending.delivered(&id, number);
                }
            }
        }
        true
    }

    async fn retell(self: &Arc<Self>) {
        let Some(plane) = &self.plane else { return };
        let mut pause = Pause::FIRST;
        loop {
            let start =
                SpanStart { kind: SpanKind::Replay, key: None, keys: plane.pending.len(), root: true };
            let spans = self.observers().span(&start);
            let well = spans.around(self.retell_some(plane)).await;
            spans.end();
            self.count_pending();
            if plane.pending.len() == 0 && plane.pending.release() {
                return;
            }
            match well {
                true => pause = Pause::FIRST,
                false => self.around.clock.sleep(pause.next()).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use async_trait::async_trait;
    use bytes::Bytes;

    use super::*;
    use crate::{Backplane, BoxError, Clock, Listener, TracedCache, testing::MapProvider};

    /// Takes a tenth of a millisecond for each message, one after the other.
    struct Steady(Clock, tokio::sync::Mutex<()>);
    #[async_trait]
    impl Backplane for Steady {
        async fn publish(&self, _: &str, _: Bytes) -> Result<(), BoxError> {
            let _turn = self.1.lock().await;
            self.0.sleep(Duration::from_micros(100)).await;
            Ok(())
        }
        fn subscribe(&self, _: &str, _: Arc<dyn Listener>) {}
    }

    #[tokio::test]
    async fn a_batch_is_told_of_however_large() {
        let (clock, time) = Clock::manual();
        let cache: TracedCache<String> = TracedCache::builder("users")
            .level(MapProvider::new().clock(clock.clone()))
            .backplane(Steady(clock.clone(), tokio::sync::Mutex::default()))
            .clock(clock)
            .build()
            .unwrap();
        // More than are remembered.
        let told = cache.invalidate_many(0..12_000_u64);
        let pass = async {
            loop {
                tokio::task::yield_now().await;
                time.advance(Duration::from_micros(100));
            }
        };
        let told = tokio::select! {
            biased;
            told = told => told.unwrap(),
            () = pass => unreachable!("time passes for ever"),
        };
        assert_eq!((told, cache.stats().pending), (Delivery::Confirmed, 0));
    }
}
