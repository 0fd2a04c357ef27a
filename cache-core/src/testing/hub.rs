//! Several nodes in one process: a backplane whose links can be cut.

use std::{
    collections::HashMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU8, AtomicUsize, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{Backplane, BoxError, Listener};

/// Connects the nodes of a test. Delivers at once, in order, on the publisher's thread.
///
/// ```
/// use cache_core::testing::Hub;
/// let hub = Hub::new();
/// let (a, b) = (hub.node(), hub.node());
/// // Give `a` and `b` to the builders of two caches of one name; then:
/// b.cut();
/// // ... a invalidates, b does not hear of it ...
/// b.heal();
/// // ... and now b knows that it may have missed something.
/// ```
#[derive(Clone, Default)]
pub struct Hub(Arc<Mutex<Vec<Weak<Node>>>>);

#[derive(Default)]
struct Node {
    state: AtomicU8,
    listeners: Mutex<HashMap<String, Vec<Arc<dyn Listener>>>>,
    published: AtomicUsize,
}

const UP: u8 = 0;
const CUT: u8 = 1;
const MUTE: u8 = 2;

impl Hub {
    /// A hub without nodes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Another node's link.
    pub fn node(&self) -> Link {
        let node = Arc::new(Node::default());
        lock(&self.0).push(Arc::downgrade(&node));
        Link { hub: self.clone(), node }
    }
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub").finish_non_exhaustive()
    }
}

/// One node's link to a [`Hub`]. Clones are the same link.
#[derive(Clone)]
pub struct Link {
    hub: Hub,
    node: Arc<Node>,
}

impl Link {
    /// Cuts it: what this node publishes fails, and it hears nothing.
    pub fn cut(&self) {
        self.node.state.store(CUT, Ordering::SeqCst);
    }

    /// Loses messages in both directions without anybody noticing.
    pub fn mute(&self) {
        self.node.state.store(MUTE, Ordering::SeqCst);
    }

    /// Delivers again after [`mute`](Self::mute), without anybody noticing that anything was lost.
    pub fn unmute(&self) {
        self.node.state.store(UP, Ordering::SeqCst);
    }

    /// Mends it, and tells its listeners that they may have missed something.
    pub fn heal(&self) {
        self.node.state.store(UP, Ordering::SeqCst);
        self.notice();
    }

    /// Tells this node's listeners of a gap, as a channel does that has been silent; where it is cut, that it is down.
    pub fn notice(&self) {
        let listeners: Vec<_> = lock(&self.node.listeners).values().flatten().cloned().collect();
        for listener in listeners {
            self.node.tell(&*listener);
        }
    }

    /// Messages that this node has handed over.
    pub fn published(&self) -> usize {
        self.node.published.load(Ordering::SeqCst)
    }

    /// Delivers bytes to this node as if they had come over the channel.
    pub fn deliver(&self, cache: &str, message: &[u8]) {
        self.node.hear(cache, message);
    }
}

impl Node {
    fn tell(&self, listener: &dyn Listener) {
        match self.state.load(Ordering::SeqCst) {
            CUT => listener.down(),
            _ => listener.gap(),
        }
    }

    fn hear(&self, cache: &str, message: &[u8]) {
        let listeners = lock(&self.listeners).get(cache).cloned().unwrap_or_default();
        for listener in listeners {
            listener.message(message);
        }
    }
}

#[async_trait]
impl Backplane for Link {
    async fn publish(&self, cache: &str, message: Bytes) -> Result<(), BoxError> {
        match self.node.state.load(Ordering::SeqCst) {
            CUT => return Err("the link is cut".into()),
            MUTE => return Ok(()),
            _ => {}
        }
        self.node.published.fetch_add(1, Ordering::SeqCst);
        let nodes: Vec<_> = lock(&self.hub.0).iter().filter_map(Weak::upgrade).collect();
        for node in nodes {
            // Its own messages too: a channel may send them back.
            if node.state.load(Ordering::SeqCst) == UP {
                node.hear(cache, &message);
            }
        }
        Ok(())
    }

    fn subscribe(&self, cache: &str, listener: Arc<dyn Listener>) {
        self.node.tell(&*listener);
        let known = lock(&self.node.listeners).get(cache).cloned().unwrap_or_default();
        let gone: Vec<_> = known.iter().filter(|listener| listener.is_closed()).collect();
        let mut all = lock(&self.node.listeners);
        let listeners = all.entry(cache.to_owned()).or_default();
        listeners.retain(|listener| !gone.iter().any(|gone| Arc::ptr_eq(gone, listener)));
        listeners.push(listener);
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
