//! The addresses of a name, of which one may be dead.

use std::time::Duration;

use futures::{StreamExt, stream::FuturesUnordered};
use tokio::time::sleep;

/// For how long an address has it to itself, while it does not answer (RFC 8305, section 5).
const ALONE: Duration = Duration::from_millis(250);

/// What comes of the first address, or of whatever else leads to a server, with which all goes well. The next one is tried
/// when one has failed, or has not answered for 250 ms, or a quarter of `limit`, which is what the caller gives all of them:
/// of the addresses of a name, one may lead nowhere, or to a server that hangs. `None`: there are no addresses.
///
/// Where none goes well, the error of one that `is_there`, if any is: who has answered has more to say. Attempts that are under
/// way when it ends, or is dropped, are dropped. Needs tokio's timers.
pub async fn first_of<A, T, E, F: Future<Output = Result<T, E>>>(
    addresses: impl IntoIterator<Item = A>,
    limit: Duration,
    attempt: impl Fn(A) -> F,
    is_there: impl Fn(&E) -> bool,
) -> Option<Result<T, E>> {
    let mut addresses = addresses.into_iter().peekable();
    let mut attempts = FuturesUnordered::new();
    let mut refusal = None;
    loop {
        attempts.extend(addresses.next().map(&attempt));
        tokio::select! {
            biased;
            ended = attempts.next() => match ended {
                Some(Ok(done)) => return Some(Ok(done)),
                Some(Err(error)) if refusal.as_ref().is_some_and(&is_there) => drop(error),
                Some(Err(error)) => refusal = Some(error),
                None => return refusal.map(Err),
            },
            () = sleep(ALONE.min(limit / 4)), if addresses.peek().is_some() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, net::SocketAddr};

    use tokio::time::timeout;

    use super::*;

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    /// Addresses by their ports: 0 hangs, up to 9 is not there, up to 99 refuses, others answer.
    async fn tried(ports: &[u16]) -> Option<Result<u16, u16>> {
        let attempt = |address: SocketAddr| async move {
            match address.port() {
                0 => pending().await,
                port @ ..100 => Err(port),
                port => Ok(port),
            }
        };
        let addresses = ports.iter().copied().map(address);
        let limit = Duration::from_secs(4);
        timeout(limit, first_of(addresses, limit, attempt, |port| *port > 9)).await.expect("in time")
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_answers_is_enough() {
        for ports in [&[100, 101][..], &[0, 100], &[1, 100], &[0, 1, 0, 0, 10, 100]] {
            let began = tokio::time::Instant::now();
            assert_eq!(tried(ports).await, Some(Ok(100)), "{ports:?}");
            let waited = u32::try_from(ports.iter().filter(|port| **port == 0).count()).unwrap();
            assert!(began.elapsed() <= waited * Duration::from_millis(251), "{ports:?}");
        }
        assert_eq!(tried(&[]).await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_answered_has_more_to_say() {
        for (ports, error) in [(&[1, 2][..], 2), (&[10, 1], 10), (&[1, 10, 2], 10)] {
            assert_eq!(tried(ports).await, Some(Err(error)), "{ports:?}");
        }
    }
}
