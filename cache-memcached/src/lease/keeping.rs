//! Holds that go when the writer who has asked for them leaves.

use bytes::Bytes;
use tokio::runtime::Handle;

use super::hold_key;
use crate::{
    MemcachedProvider,
    item::Item,
    server::{Answer, Under},
    transport::{Command, Look, Reply},
};

/// A writer's holds that are under way.
pub(super) struct Keeping<'a> {
    provider: &'a MemcachedProvider,
    keys: &'a [String],
    /// What the holds of this call have in them, so that they are known without the answer.
    mark: Bytes,
    pub(super) is_answered: bool,
}

impl<'a> Keeping<'a> {
    pub(super) fn new(provider: &'a MemcachedProvider, keys: &'a [String]) -> Self {
        let mark = Bytes::copy_from_slice(&fastrand::u64(..).to_le_bytes());
        Self { provider, keys, mark, is_answered: false }
    }

    pub(super) fn item(&self) -> Item {
        Item::Bare(self.mark.clone())
    }
}

/// The writer has left, or does not wait any longer, and its hold would keep the key for nobody. It does not go on like a
/// request for a lease: the tombstones that it has yet to send would take away what is written meanwhile. Sent over the same
/// connection, this comes after what it has sent.
impl Drop for Keeping<'_> {
    fn drop(&mut self) {
        let Ok(runtime) = Handle::try_current() else { return };
        if self.is_answered {
            return;
        }
        let (provider, keys, mark) = (self.provider.clone(), self.keys.to_vec(), self.mark.clone());
        runtime.spawn(async move { provider.unhold(&keys, &mark).await });
    }
}

impl MemcachedProvider {
    /// Ends the holds that have this in them.
    async fn unhold(&self, keys: &[String], mark: &Bytes) {
        let hold = |key: &String| hold_key(&self.0.prefix, key);
        let look = |key| Command::Get { key: hold(key), look: Some(Look::default()) };
        let looks = keys.iter().map(|key| self.routed(key, look(key), Under::Unknown));
        let answers = self.run(looks.collect()).await;
        let ours = keys.iter().zip(answers).filter_map(|(key, answer)| match answer {
            Ok(Answer { reply: Reply::Item(Some(seen)), .. }) if seen.value.as_ref() == Some(mark) => {
                let remove = Command::Remove { key: hold(key), cas: Some(seen.cas) };
                Some(self.routed(key, remove, Under::Unknown))
            }
            _ => None,
        });
        self.run(ours.collect()).await;
    }
}
