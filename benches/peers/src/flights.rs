//! Reads of a remote store, so many at a time.

use std::sync::OnceLock;

use tokio::runtime::Runtime;

use crate::clocks::wall_per;

/// Two workers, whatever the machine has: what is compared should do the same everywhere.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().build().expect("a runtime can be had")
    })
}

/// Nanoseconds per key: `flights` spawned tasks share the keys, and each has one read under way.
pub fn read_all<Fut: Future<Output = ()> + Send>(
    keys: &'static [String],
    flights: usize,
    read: impl Fn(&'static String) -> Fut + Clone + Send + 'static,
) -> f64 {
    wall_per(keys.len(), || {
        runtime().block_on(async {
            let tasks: Vec<_> = (0..flights)
                .map(|flight| {
                    let read = read.clone();
                    tokio::spawn(async move {
                        for key in keys.iter().skip(flight).step_by(flights) {
                            read(key).await;
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("reads do not panic");
            }
        });
    })
}
