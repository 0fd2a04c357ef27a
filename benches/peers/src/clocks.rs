//! Clocks for rows, and a machine that does not fall asleep.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

use rustix::time::{ClockId, clock_gettime};

/// CPU time of this thread. What else runs on the machine is not in it.
fn cpu() -> f64 {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    t.tv_sec as f64 * 1e9 + t.tv_nsec as f64
}

/// CPU nanoseconds that `work` takes, which stays on this thread, over `count`.
pub fn cpu_per(count: usize, work: impl FnOnce()) -> f64 {
    let started = cpu();
    work();
    (cpu() - started) / count as f64
}

/// Nanoseconds that `work` takes, over `count`.
pub fn wall_per(count: usize, work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_nanos() as f64 / count as f64
}

/// Keeps the CPUs from halting, at the lowest priority: what is measured is a round trip, not waking up a CPU, which
/// takes ten times as long on a virtual machine and is sometimes there and sometimes not.
pub struct Awake(Arc<AtomicBool>);

impl Awake {
    pub fn new() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        for _ in 0..thread::available_parallelism().map_or(1, |n| n.get()) {
            let stop = Arc::clone(&stop);
            thread::spawn(move || {
                // Of this thread only, on Linux. Elsewhere there is no such row.
                let _ = rustix::process::setpriority_process(None, 19);
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            });
        }
        Self(stop)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
