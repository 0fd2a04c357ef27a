//! Requests for leases that go on when whoever has asked leaves.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use cache_core::{Acquire, Acquired};
use futures::future::BoxFuture;
use tokio::runtime::Handle;

use super::{acquire::Wish, lease_seconds};
use crate::{Error, MemcachedProvider};

type Answers = Vec<Result<Acquired, Error>>;

/// A request for leases that is under way.
pub(super) struct Asking {
    provider: MemcachedProvider,
    /// Boxed, so that it can move to a task. `None`: over.
    work: Option<BoxFuture<'static, (Vec<Wish>, Answers)>>,
}

impl Asking {
    pub(super) fn new(provider: &MemcachedProvider, wanted: &[Acquire<'_>], life: Duration) -> Self {
        let wishes: Vec<Wish> = wanted.iter().map(|wish| provider.wish(wish)).collect();
        let asker = provider.clone();
        let work = Box::pin(async move {
            let answers = asker.acquire(&wishes, lease_seconds(life)).await;
            (wishes, answers)
        });
        Self { provider: provider.clone(), work: Some(work) }
    }
}

impl Future for Asking {
    type Output = Answers;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Answers> {
        let Some(mut work) = self.work.take() else { return Poll::Ready(Vec::new()) };
        match work.as_mut().poll(cx) {
            Poll::Ready((_, answers)) => Poll::Ready(answers),
            Poll::Pending => {
                self.work = Some(work);
                Poll::Pending
            }
        }
    }
}

/// Whoever has asked has left, or does not wait any longer. What is granted all the same would keep others waiting until it
/// ends, and only the answer tells which version it has.
impl Drop for Asking {
    fn drop(&mut self) {
        let (Some(work), Ok(runtime)) = (self.work.take(), Handle::try_current()) else { return };
        let provider = self.provider.clone();
        runtime.spawn(async move {
            let (wishes, answers) = work.await;
            let lent = wishes.into_iter().zip(&answers).filter_map(|(wish, answer)| match answer {
                Ok(Acquired::Granted(lease)) => Some((wish.key, lease)),
                _ => None,
            });
            provider.release(&provider.held(lent)).await;
        });
    }
}
