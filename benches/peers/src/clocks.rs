//! Clocks for rows, where they run, and a machine that does not fall asleep.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Instant,
};

#[cfg(target_os = "linux")]
use rustix::thread::{CpuSet, Pid, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// CPU time of this thread. What else runs on the machine is not in it.
fn cpu() -> f64 {
    let t = clock_gettime(ClockId::ThreadCPUTime);
    t.tv_sec as f64 * 1e9 + t.tv_nsec as f64
}

/// What the cheapest clock says that a time to live can be held against.
pub fn coarse_seconds() -> i64 {
    #[cfg(target_os = "linux")]
    let clock = ClockId::MonotonicCoarse;
    #[cfg(not(target_os = "linux"))]
    let clock = ClockId::Monotonic;
    clock_gettime(clock).tv_sec
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

/// Keeps this process and a server on one CPU, where what is measured is a round trip. Left alone, chance decides whether two
/// threads that wake each other sit on one CPU or on two, and then a virtual machine takes five times as long.
pub struct OneCpu {
    #[cfg(target_os = "linux")]
    before: CpuSet,
    #[cfg(target_os = "linux")]
    processes: [u32; 2],
}

#[cfg(target_os = "linux")]
impl OneCpu {
    pub fn new(server: Option<u32>) -> Self {
        let before = sched_getaffinity(None).expect("a thread may be asked where it runs");
        let own = std::process::id();
        let this = Self { before, processes: [own, server.unwrap_or(own)] };
        let first = (0..CpuSet::MAX_CPU).find(|cpu| before.is_set(*cpu)).expect("it runs somewhere");
        let mut one = CpuSet::new();
        one.set(first);
        this.bind(&one);
        this
    }

    /// All threads. One that ends meanwhile is no loss, and one that starts is where its parent is.
    fn bind(&self, cpus: &CpuSet) {
        for process in self.processes {
            let threads = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
            for id in threads.filter_map(|thread| thread.file_name().to_str()?.parse().ok()) {
                let _ = sched_setaffinity(Pid::from_raw(id), cpus);
            }
        }
    }
}

#[cfg(target_os = "linux")]
impl Drop for OneCpu {
    fn drop(&mut self) {
        self.bind(&self.before);
    }
}

#[cfg(not(target_os = "linux"))]
impl OneCpu {
    pub fn new(_server: Option<u32>) -> Self {
        Self {}
    }
}
