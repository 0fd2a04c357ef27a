//! Futures that are polled inside something: spans that are current, a caller's surroundings, the life of a cache. As
//! structs: an `async` block keeps a future that it is given twice, as its own and as the one that it awaits.

use std::{pin::Pin, sync::Arc, task};

use pin_project_lite::pin_project;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

use crate::Ambient;

/// Surroundings that a future is polled in.
pub(crate) trait Surroundings {
    /// One of them.
    type One: ?Sized;
    fn all(&self) -> &[Arc<Self::One>];
    fn within(one: &Self::One, work: &mut dyn FnMut());
}

impl Surroundings for Vec<Arc<dyn Ambient>> {
    type One = dyn Ambient;

    fn all(&self) -> &[Arc<dyn Ambient>] {
        self
    }

    fn within(one: &dyn Ambient, work: &mut dyn FnMut()) {
        one.within(work);
    }
}

impl<A: Surroundings> Surroundings for &A {
    type One = A::One;

    fn all(&self) -> &[Arc<A::One>] {
        A::all(self)
    }

    fn within(one: &A::One, work: &mut dyn FnMut()) {
        A::within(one, work);
    }
}

pin_project! {
    /// A future that is polled inside zero or more surroundings.
    pub(crate) struct Within<A, F> {
        #[pin]
        future: F,
        around: A,
    }
}

pub(crate) fn within<A: Surroundings, F: Future>(around: A, future: F) -> Within<A, F> {
    Within { future, around }
}

fn nest<A: Surroundings>(around: &[Arc<A::One>], work: &mut dyn FnMut()) {
    match around.split_first() {
        None => work(),
        Some((outer, inner)) => A::within(outer, &mut || nest::<A>(inner, work)),
    }
}

impl<A: Surroundings, F: Future> Future for Within<A, F> {
    type Output = F::Output;
    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> task::Poll<F::Output> {
        let this = self.project();
        let mut future = this.future;
        let around = this.around.all();
        if around.is_empty() {
            return future.poll(cx);
        }
        let mut polled = task::Poll::Pending;
        nest::<A>(around, &mut || polled = future.as_mut().poll(cx));
        polled
    }
}

pin_project! {
    /// Work that ends at the latest when a token is cancelled, and is not begun after. It is polled once more then, before
    /// the token counts: calls that see for themselves that their cache is closed say so.
    pub(crate) struct UntilCancelled<F> {
        #[pin]
        work: F,
        #[pin]
        cancelled: WaitForCancellationFutureOwned,
        // Until it has begun. Asked apart, as work that is ready at once need not enter the token's list.
        token: Option<CancellationToken>,
    }
}

pub(crate) fn until_cancelled<F: Future<Output = ()>>(
    token: &CancellationToken,
    work: F,
) -> UntilCancelled<F> {
    UntilCancelled { work, cancelled: token.clone().cancelled_owned(), token: Some(token.clone()) }
}

impl<F: Future<Output = ()>> Future for UntilCancelled<F> {
    type Output = ();
    fn poll(self: Pin<&mut Self>, cx: &mut task::Context<'_>) -> task::Poll<()> {
        let this = self.project();
        if this.token.take().is_some_and(|token| token.is_cancelled()) {
            return task::Poll::Ready(());
        }
        match this.work.poll(cx) {
            task::Poll::Ready(()) => task::Poll::Ready(()),
            task::Poll::Pending => this.cancelled.poll(cx),
        }
    }
}
