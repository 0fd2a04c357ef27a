//! A thousand callers, one cold key, a load of 50 ms: in one process and between two.

use std::{
    io::{BufRead, BufReader, Write, stdin},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use foyer::Cache as Foyer;
use hitbox::policy::PolicyConfig;
use hitbox_fn::cached;
use hitbox_moka::MokaBackend;
use tick::Clock;

use crate::{
    flights::runtime,
    memory::{HOUR, Response, multi_tier},
    ours::{Memory, Policy, RedisProvider, TracedCache, ok},
    rounds::{Row, Timed},
    work::User,
};

pub const LOAD: Duration = Duration::from_millis(50);
const CALLERS: usize = 1_000;

/// The last round's loads, by row.
#[derive(Clone, Default)]
pub struct Loads(Arc<AtomicUsize>);

impl Loads {
    pub fn last(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }

    async fn load(self, key: String) -> User {
        self.0.fetch_add(1, Ordering::SeqCst);
        tokio::time::sleep(LOAD).await;
        User::of(&key)
    }
}

/// Nanoseconds until all have been served.
fn crowd<Fut: Future<Output = ()> + Send + 'static>(callers: usize, call: impl Fn() -> Fut) -> f64 {
    runtime().block_on(async {
        let started = Instant::now();
        let callers: Vec<_> = (0..callers).map(|_| tokio::spawn(call())).collect();
        for caller in callers {
            caller.await.expect("calls do not panic");
        }
        started.elapsed().as_nanos() as f64
    })
}

#[cached(prefix = "crowd", skip(loads))]
async fn hitbox_crowd(id: String, loads: Loads) -> Response {
    Response { user: loads.load(id).await }
}

/// In one process. Every row has a fresh cache in each round.
pub fn one_process(rounds: usize, redis: &str) -> (Timed, Vec<(&'static str, Loads)>) {
    let mut counts = Vec::new();
    let mut count = |name| {
        let loads = Loads::default();
        counts.push((name, loads.clone()));
        loads
    };
    let key = || "user:of:them:all".to_owned();
    let loads = count("raw moka::future");
    let mut rows = vec![Row::new("raw moka::future", move || {
        loads.0.store(0, Ordering::SeqCst);
        let cache = moka::future::Cache::<String, Arc<User>>::new(100);
        let loads = loads.clone();
        crowd(CALLERS, || {
            let (cache, loads) = (cache.clone(), loads.clone());
            async move { drop(cache.get_with(key(), async { Arc::new(loads.load(key()).await) }).await) }
        })
    })];
    let loads = count("own");
    rows.push(Row::new("own", move || {
        loads.0.store(0, Ordering::SeqCst);
        let builder = TracedCache::<User>::builder("crowd").level(Memory::entries(100));
        let cache = builder.policy(Policy::ttl(HOUR)).build().expect("the settings are right");
        crowd(CALLERS, || {
            let (cache, loads) = (cache.clone(), loads.clone());
            async move {
                let load = |loads: Loads, key| async move { ok(loads.load(key).await) };
                cache.get_or_set_with(key(), &loads, load).await.expect("it loads");
            }
        })
    }));
    let loads = count("foyer memory");
    rows.push(Row::new("foyer memory", move || {
        loads.0.store(0, Ordering::SeqCst);
        let cache: Foyer<String, Arc<User>> = Foyer::builder(100).build();
        crowd(CALLERS, || {
            let (cache, loads) = (cache.clone(), loads.clone());
            async move {
                let load = || async move { Ok::<_, std::io::Error>(Arc::new(loads.load(key()).await)) };
                cache.get_or_fetch(&key(), load).await.expect("it loads");
            }
        })
    }));
    let loads = count("cachet, stampede protection");
    rows.push(Row::new("cachet, stampede protection", move || {
        loads.0.store(0, Ordering::SeqCst);
        let clock = runtime().block_on(async { Clock::new_tokio() });
        let builder = cachet::Cache::builder::<String, Arc<User>>(clock).memory().ttl(HOUR);
        let cache = Arc::new(builder.stampede_protection().build());
        crowd(CALLERS, || {
            let (cache, loads) = (Arc::clone(&cache), loads.clone());
            async move {
                let load = || async { Arc::new(loads.load(key()).await) };
                cache.get_or_insert(&key(), load).await.expect("it loads");
            }
        })
    }));
    let loads = count("multi-tier-cache");
    let (url, mut round) = (redis.to_owned(), 0);
    rows.push(Row::new("multi-tier-cache", move || {
        loads.0.store(0, Ordering::SeqCst);
        round += 1;
        let key = format!("crowd:{round}");
        let cache = runtime().block_on(multi_tier(&url));
        crowd(CALLERS, || {
            let (cache, loads, key) = (Arc::clone(&cache), loads.clone(), key.clone());
            async move {
                let strategy = multi_tier_cache::CacheStrategy::LongTerm;
                let load = || async { Ok(loads.load(key.clone()).await) };
                cache.get_or_compute_typed(&key, strategy, load).await.expect("it loads");
            }
        })
    }));
    let loads = count("hitbox, as it comes");
    rows.push(Row::new("hitbox, as it comes", move || {
        loads.0.store(0, Ordering::SeqCst);
        let cache = Arc::new(
            hitbox_fn::Cache::builder()
                .backend(MokaBackend::builder().max_entries(100).build())
                .policy(PolicyConfig::builder().ttl(HOUR).build())
                .build(),
        );
        crowd(CALLERS, || {
            let (cache, loads) = (Arc::clone(&cache), loads.clone());
            async move { drop(hitbox_crowd(key(), loads).cache(&*cache).await) }
        })
    }));
    (Timed::run("1,000 callers, one process", "raw moka::future", rounds, rows), counts)
}

/// One of two processes; see [`node`].
struct Node {
    process: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Node {
    fn start(redis: &str) -> Self {
        let itself = std::env::current_exe().expect("this program has a path");
        let mut process = Command::new(itself)
            .args(["node", redis])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program starts");
        let input = process.stdin.take().expect("it is piped");
        let output = BufReader::new(process.stdout.take().expect("it is piped"));
        let mut node = Self { process, input, output };
        assert_eq!(node.line(), "ready");
        node
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("the node lives");
        line.trim().to_owned()
    }

    fn ask(&mut self, key: &str) {
        writeln!(self.input, "{key}").expect("the node lives");
        self.input.flush().expect("the node lives");
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// What came of a crowd between two processes.
pub struct Between {
    /// From the first caller to the last answer, over the time of a load, in each round.
    pub times: Vec<f64>,
    /// The most loads of a round.
    pub loads: usize,
}

/// Half of the callers in each of two processes, over one Redis.
pub fn two_processes(rounds: usize, redis: &str) -> Between {
    let mut nodes = [Node::start(redis), Node::start(redis)];
    let mut between = Between { times: Vec::new(), loads: 0 };
    eprint!("1,000 callers, two processes:");
    for round in 0..=rounds {
        let key = format!("crowd:{round}");
        let started = Instant::now();
        nodes.iter_mut().for_each(|node| node.ask(&key));
        let loads: usize = nodes.iter_mut().map(|node| node.line().parse::<usize>().expect("a count")).sum();
        let took = started.elapsed();
        if round > 0 {
            between.times.push(took.as_secs_f64() / LOAD.as_secs_f64());
            between.loads = between.loads.max(loads);
        }
        eprint!(" {round}");
    }
    eprintln!();
    between
}

/// What such a process does: for each key that it reads, 500 callers; then it says how often it has loaded.
pub fn node(redis: &str) {
    let redis = RedisProvider::builder(redis).build().expect("the url is right");
    let cache = TracedCache::<User>::builder("crowd")
        .level(Memory::entries(1_000))
        .level(redis)
        .policy(Policy::ttl(HOUR))
        .build()
        .expect("the settings are right");
    runtime().block_on(cache.get("nothing")).expect("redis is there");
    println!("ready");
    for key in stdin().lines() {
        let (key, loads) = (key.expect("the parent lives"), Loads::default());
        crowd(CALLERS / 2, || {
            let (cache, key, loads) = (cache.clone(), key.clone(), loads.clone());
            async move {
                let load = |loads: Loads, key| async move { ok(loads.load(key).await) };
                cache.get_or_set_with(key, &loads, load).await.expect("it loads");
            }
        });
        println!("{}", loads.last());
    }
}
