//! A backplane whose messages may be late, and be lost.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU8, Ordering::SeqCst},
    },
    time::Duration,
};

use async_trait::async_trait;
use bytes::Bytes;
use cache_core::{Backplane, BoxError, Clock, Listener};

use crate::model::Floors;

const UP: u8 = 0;
const DOWN: u8 = 1;
const DEAF: u8 = 2;

enum Letter {
    Message(Bytes),
    /// A store that tells of writes has had one: of a key, or of a mark.
    Changed(Option<String>),
    Gap,
    /// What its reader is bound to from here on: it comes behind the messages that say so.
    Binding(Floors),
}

/// All nodes' boxes.
#[derive(Clone)]
pub(crate) struct Post {
    boxes: Arc<Mutex<Vec<Arc<Inbox>>>>,
    lag: bool,
    clock: Clock,
    /// The store tells of writes, so that nobody need.
    tracks: bool,
}

/// A node's box, and what it is bound to.
pub(crate) struct Inbox {
    state: AtomicU8,
    letters: Mutex<VecDeque<Letter>>,
    listener: Mutex<Option<Arc<dyn Listener>>>,
    slow: Mutex<Duration>,
    bound: Mutex<Floors>,
}

impl Post {
    /// With `lag`, messages lie in the boxes until they are [taken out](Inbox::deliver).
    pub(crate) fn new(lag: bool, tracks: bool, clock: Clock) -> Self {
        Self { boxes: Arc::default(), lag, clock, tracks }
    }

    /// Somebody has written a key at the store, or a mark (`None`).
    pub(crate) fn changed(&self, id: Option<&str>) {
        self.send(|| Letter::Changed(id.map(str::to_owned)));
    }

    /// The store is not what it was.
    pub(crate) fn gap(&self) {
        self.send(|| Letter::Gap);
    }

    /// A new node's link, which is bound to this much from the start.
    pub(crate) fn join(&self, bound: Floors) -> Link {
        let inbox = Arc::new(Inbox {
            state: AtomicU8::new(UP),
            letters: Mutex::default(),
            listener: Mutex::default(),
            slow: Mutex::default(),
            bound: Mutex::new(bound),
        });
        self.boxes.lock().unwrap().push(Arc::clone(&inbox));
        Link { post: self.clone(), inbox }
    }

    /// Binds every node that hears, once it has heard what was sent before.
    pub(crate) fn bind(&self, floors: &Floors) {
        self.send(|| Letter::Binding(*floors));
    }

    fn send(&self, letter: impl Fn() -> Letter) {
        let boxes = self.boxes.lock().unwrap().clone();
        for inbox in boxes {
            if inbox.state.load(SeqCst) == UP {
                inbox.letters.lock().unwrap().push_back(letter());
                if !self.lag {
                    inbox.deliver(usize::MAX);
                }
            }
        }
    }
}

impl Inbox {
    /// What this node has answered or heard of.
    pub(crate) fn bound(&self) -> Floors {
        *self.bound.lock().unwrap()
    }

    pub(crate) fn bind(&self, floors: &Floors) {
        self.bound.lock().unwrap().raise(floors);
    }

    /// Takes out up to so many letters.
    pub(crate) fn deliver(&self, most: usize) {
        for _ in 0..most {
            let Some(letter) = self.letters.lock().unwrap().pop_front() else { return };
            match letter {
                Letter::Binding(floors) => self.bind(&floors),
                Letter::Message(bytes) => self.hear(|ear| ear.message(&bytes)),
                Letter::Changed(Some(id)) => self.hear(|ear| ear.changed(&id)),
                Letter::Changed(None) => self.hear(Listener::marker_changed),
                Letter::Gap => self.hear(Listener::gap),
            }
        }
    }

    fn hear(&self, what: impl Fn(&dyn Listener)) {
        if let Some(listener) = self.listener() {
            what(&*listener);
        }
    }

    fn listener(&self) -> Option<Arc<dyn Listener>> {
        self.listener.lock().unwrap().clone()
    }

    fn tell(&self, listener: &dyn Listener) {
        if self.state.load(SeqCst) == DOWN { listener.down() } else { listener.gap() }
    }
}

/// One node's end of the [`Post`].
#[derive(Clone)]
pub(crate) struct Link {
    post: Post,
    pub(crate) inbox: Arc<Inbox>,
}

impl Link {
    pub(crate) fn is_up(&self) -> bool {
        self.inbox.state.load(SeqCst) == UP
    }

    /// What is sent fails, and nothing is heard. The node is told at once, or not before the link is mended.
    pub(crate) fn cut(&self, noticed: bool) {
        self.inbox.state.store(DOWN, SeqCst);
        if noticed && let Some(listener) = self.inbox.listener() {
            self.inbox.tell(&*listener);
        }
    }

    /// What others send does not arrive, and nobody notices.
    pub(crate) fn deafen(&self) {
        self.inbox.state.store(DEAF, SeqCst);
    }

    pub(crate) fn answers_after(&self, by: Duration) {
        *self.inbox.slow.lock().unwrap() = by;
    }

    /// Hears again, and of the gap: from then on it is bound to all that has been confirmed.
    pub(crate) fn mend(&self, confirmed: &Floors) {
        self.inbox.state.store(UP, SeqCst);
        if let Some(listener) = self.inbox.listener() {
            self.inbox.tell(&*listener);
        }
        self.inbox.bind(confirmed);
    }

    /// For a node that is gone.
    pub(crate) fn leave(&self) {
        self.post.boxes.lock().unwrap().retain(|inbox| !Arc::ptr_eq(inbox, &self.inbox));
    }
}

#[async_trait]
impl Backplane for Link {
    async fn publish(&self, _cache: &str, message: Bytes) -> Result<(), BoxError> {
        if self.inbox.state.load(SeqCst) == DOWN {
            return Err("the link is cut".into());
        }
        self.post.send(|| Letter::Message(message.clone()));
        // Taken, and the answer on its way.
        let slow = *self.inbox.slow.lock().unwrap();
        if slow > Duration::ZERO {
            self.post.clock.sleep(slow).await;
        }
        tokio::task::yield_now().await;
        Ok(())
    }

    fn hears_writes(&self, _cache: &str) -> bool {
        self.post.tracks
    }

    fn subscribe(&self, _cache: &str, listener: Arc<dyn Listener>) {
        self.inbox.tell(&*listener);
        *self.inbox.listener.lock().unwrap() = Some(listener);
    }
}
