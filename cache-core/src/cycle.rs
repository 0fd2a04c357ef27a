//! Finds loaders that wait for each other.
//!
//! Every load has a number. A caller that waits for a load from inside another load adds an edge to one process-wide
//! graph; an edge that would close a circle is refused with a typed error instead of a deadlock. Only calls from inside
//! loaders come here.

use std::{
    collections::HashMap,
    sync::{
        LazyLock, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Names one run of a loader in this process. The members of a batch share one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct LoadId(u64);

impl LoadId {
    pub(crate) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

tokio::task_local! {
    static CURRENT: LoadId;
}

/// Who waits for whom; a loader may wait for several others at once, and for one of them more than once.
static WAITS: LazyLock<Mutex<HashMap<LoadId, Vec<LoadId>>>> = LazyLock::new(Mutex::default);

/// Runs a loader as `id`: calls made from inside it are known as its own, but for those from tasks that it spawns.
pub(crate) async fn running<F: Future>(id: LoadId, loader: F) -> F::Output {
    CURRENT.scope(id, loader).await
}

/// An edge, for as long as the caller waits.
pub(crate) struct Waiting(Option<(LoadId, LoadId)>);

impl Waiting {
    /// Whether it is a load that waits.
    pub(crate) fn is_of_a_load(&self) -> bool {
        self.0.is_some()
    }
}

/// About to wait for `target`. `None`: that would never end.
pub(crate) fn wait_for(target: LoadId) -> Option<Waiting> {
    let Ok(me) = CURRENT.try_with(|id| *id) else {
        return Some(Waiting(None));
    };
    let mut waits = WAITS.lock().unwrap_or_else(PoisonError::into_inner);
    let mut todo = vec![target];
    let mut seen = Vec::new();
    while let Some(at) = todo.pop() {
        if at == me {
            return None;
        }
        if !seen.contains(&at) {
            seen.push(at);
            todo.extend(waits.get(&at).into_iter().flatten());
        }
    }
    waits.entry(me).or_default().push(target);
    Some(Waiting(Some((me, target))))
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some((me, target)) = self.0 else { return };
        let mut waits = WAITS.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(targets) = waits.get_mut(&me) {
            if let Some(at) = targets.iter().position(|t| *t == target) {
                targets.swap_remove(at);
            }
            if targets.is_empty() {
                waits.remove(&me);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_circle_is_refused_and_a_diamond_is_not() {
        let (a, b, c) = (LoadId::next(), LoadId::next(), LoadId::next());
        assert!(wait_for(a).is_some(), "outside of loads nothing is recorded");
        running(a, async {
            assert!(wait_for(a).is_none(), "its own key");
            let _ab = wait_for(b).unwrap();
            let ac = wait_for(c).unwrap();
            running(b, async {
                let _bc = wait_for(c).unwrap();
                running(c, async {
                    assert!(wait_for(a).is_none());
                    assert!(wait_for(b).is_none());
                })
                .await;
            })
            .await;
            drop(ac);
            running(c, async { assert!(wait_for(b).is_some(), "b waits for nobody now") }).await;
        })
        .await;
        assert!(WAITS.lock().unwrap().values().flatten().all(|t| ![a, b, c].contains(t)));
    }
}
