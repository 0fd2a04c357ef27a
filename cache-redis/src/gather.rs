//! Single look-ups that come while another is under way are gathered into one `MGET`.
//!
//! A look-up that comes alone is sent at once as a plain `GET`: no task, no delay. Those that come while it is under way
//! queue, and a task of its own sends them: a round. It takes what has queued when it gets to run, and again when it is
//! answered; as soon as enough are waiting, there is another one. A look-up never joins a command that was sent before it
//! came, so nobody gets an answer older than the question; and nobody waits for a caller, who may never look at his own
//! look-up again.

use std::{
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use futures::FutureExt;
use tokio::{sync::oneshot, task::yield_now};

use crate::{Error, ErrorKind, keeper::Keeper, read::of_keys, wire};

/// Waiting look-ups that start a round of their own, though others are under way.
const ENOUGH: usize = 16;
/// Rounds at a time.
const ROUNDS: usize = 6;
/// Keys per `MGET`.
const KEYS: usize = 512;
/// Waiting look-ups beyond which the next ones go alone. Reached only while the server is stuck.
const QUEUE: usize = 8 * KEYS;

type Answer = Result<Option<Bytes>, Error>;

struct Waiting {
    key: String,
    answer: oneshot::Sender<Answer>,
}

#[derive(Default)]
struct State {
    /// Whether one that came alone is under way.
    led: bool,
    /// Rounds.
    running: usize,
    /// Look-ups in them.
    under_way: usize,
    queue: Vec<Waiting>,
}

impl State {
    /// What goes into the next round. Whoever has left is left out.
    fn batch(&mut self) -> Vec<Waiting> {
        self.queue.retain(|waiting| !waiting.answer.is_closed());
        let rest = self.queue.split_off(self.queue.len().min(KEYS));
        mem::replace(&mut self.queue, rest)
    }

    /// Whether those who wait should not wait for the end of a round. Where very many come, rounds grow with them.
    fn is_enough(&self) -> bool {
        self.queue.len() >= ENOUGH.max(self.under_way / 4) && self.running < ROUNDS
    }
}

/// How several look-ups are put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Several {
    /// As one command.
    Mget,
    /// As a pipeline: keys of several slots are not for one command.
    Gets,
}

pub(crate) struct Gatherer {
    several: Several,
    keeper: Arc<Keeper>,
    state: Mutex<State>,
}

impl Gatherer {
    pub(crate) fn new(keeper: Arc<Keeper>, several: Several) -> Arc<Self> {
        Arc::new(Self { several, keeper, state: Mutex::default() })
    }

    pub(crate) fn several(&self) -> Several {
        self.several
    }

    /// Looks up one key. `key` makes it as it is on the wire.
    pub(crate) async fn get(self: &Arc<Self>, key: impl Fn() -> String) -> Answer {
        let turn = match self.keeper.gathers() {
            true => self.enter(key()),
            false => Turn::Alone(key()),
        };
        let (key, leading) = match turn {
            Turn::Lead(key, leading) => (key, Some(leading)),
            Turn::Alone(key) => (key, None),
            Turn::Wait(answer) => match answer.await {
                Ok(answer) => return answer,
                // The round ended without an answer for us.
                Err(_gone) => (key(), None),
            },
        };
        // Boxed: a look-up that waits, as most do where many come, has no room for one that is sent.
        let answer = self.alone(key).boxed().await;
        drop(leading);
        answer
    }

    /// The same without waiting for others, and without others waiting.
    async fn alone(&self, key: String) -> Answer {
        wire::found(self.keeper.read(&of_keys("GET", &[key])).await?)
    }

    fn enter(self: &Arc<Self>, key: String) -> Turn {
        let mut state = self.lock();
        if state.running == 0 && !state.led {
            state.led = true;
            return Turn::Lead(key, Leading(Arc::clone(self)));
        }
        if state.queue.len() >= QUEUE {
            return Turn::Alone(key);
        }
        let starts = match state.running == 0 || state.is_enough() {
            // Not the caller's runtime: that one may rest, or end, with others waiting.
            true => match self.keeper.runtime() {
                Some(runtime) => Some(runtime),
                None => return Turn::Alone(key),
            },
            false => None,
        };
        state.running += usize::from(starts.is_some());
        let (sender, receiver) = oneshot::channel();
        state.queue.push(Waiting { key, answer: sender });
        // A runtime that has ended drops the round in here, which takes the lock.
        drop(state);
        if let Some(runtime) = starts {
            runtime.spawn(rounds(Running { gatherer: Arc::clone(self), keys: 0, over: false }));
        }
        Turn::Wait(receiver)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn round(&self, mut batch: Vec<Waiting>) {
        // Those who ask for one key stand next to each other, and it is sent once.
        batch.sort_unstable_by(|one, other| one.key.cmp(&other.key));
        let mut keys: Vec<String> = Vec::with_capacity(batch.len());
        let mut waiting = Vec::with_capacity(batch.len());
        for Waiting { key, answer } in batch {
            if keys.last() != Some(&key) {
                keys.push(key);
            }
            waiting.push((keys.len() - 1, answer));
        }
        let answers = self.keeper.look_up(&keys, self.several).await;
        if let Some(Err(error)) = answers.first()
            && error.kind() == ErrorKind::Denied
            && self.several == Several::Mget
        {
            // One key that the user may not read fails the whole command. Each goes alone, as its drop tells it.
            return;
        }
        let mut waiting = waiting.into_iter().peekable();
        for (at, answer) in answers.into_iter().enumerate() {
            while let Some((_, sender)) = waiting.next_if(|(place, _)| *place == at) {
                // Who has left wants no answer. A copy only where there is another who wants it, too.
                if waiting.peek().is_some_and(|(place, _)| *place == at) {
                    let _ = sender.send(answer.clone());
                } else {
                    let _ = sender.send(answer);
                    break;
                }
            }
        }
    }
}

enum Turn {
    Lead(String, Leading),
    Wait(oneshot::Receiver<Answer>),
    Alone(String),
}

/// A look-up that came alone.
struct Leading(Arc<Gatherer>);

impl Drop for Leading {
    fn drop(&mut self) {
        self.0.lock().led = false;
    }
}

/// A round. However it ends, by a drop or a panic too, nobody goes on waiting for it.
struct Running {
    gatherer: Arc<Gatherer>,
    /// Look-ups in it.
    keys: usize,
    /// It found nobody waiting, and does not count any more.
    over: bool,
}

impl Running {
    fn next(&mut self) -> Vec<Waiting> {
        let mut state = self.gatherer.lock();
        let batch = state.batch();
        state.under_way = state.under_way - self.keys + batch.len();
        self.keys = batch.len();
        // Before anybody else can queue for it.
        if batch.is_empty() {
            state.running -= 1;
            self.over = true;
        }
        batch
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.over {
            return;
        }
        let mut state = self.gatherer.lock();
        state.running -= 1;
        state.under_way -= self.keys;
        if state.running == 0 {
            // Those who wait are woken by the drop and go alone. Another round in its place might be dropped as well, at
            // once, and so on: this runtime may be ending.
            let rest = mem::take(&mut state.queue);
            drop(state);
            drop(rest);
        }
    }
}

async fn rounds(mut running: Running) {
    loop {
        // Lets those who are about to ask do so, or those who have been answered ask again, so that the round is a full one.
        yield_now().await;
        let batch = running.next();
        if batch.is_empty() {
            return;
        }
        running.gatherer.round(batch).await;
    }
}

#[cfg(test)]
mod tests {
    use cache_core::{CacheId, CacheProvider, RawKey};

    use crate::RedisProvider;

    /// Every read boxes one. Where tasks move between threads, a block that the threads' own lists do not take (glibc: over
    /// 1,032 bytes) costs a lock that all of them want.
    #[test]
    fn a_read_that_waits_is_small() {
        let provider = RedisProvider::builder("redis://127.0.0.1").build().unwrap();
        let size = size_of_val(&*provider.get(RawKey::new(CacheId(1), "ns", "id")));
        assert!(size <= 400, "{size}");
    }
}
