//! One process of the race: writers of its own keys, readers of all, a check of every read.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::{sync::RwLock, task::JoinSet};
use traced_cache::{BoxError, Delivery};

use crate::{
    failure::Failure,
    options::Settings,
    remote::Remote,
    report::{Example, NodeReport},
    source::{Floors, KEYS, Source},
    subject::{Loader, RECOVERY, Seen, Subject, bound, owner},
};

/// Readers of each of the two caches of a node.
const READERS: usize = 16;
/// Keys of a batch.
const BATCH: usize = 4;
/// Examples of violations that a node keeps.
const EXAMPLES: usize = 5;

#[derive(Default)]
struct Counts {
    loads: Arc<AtomicU64>,
    invalidations: AtomicU64,
    sets: AtomicU64,
    updates: AtomicU64,
    tags: AtomicU64,
    clears: AtomicU64,
    pending: AtomicU64,
    near: AtomicU64,
    far: AtomicU64,
    joined: AtomicU64,
    unsaid: AtomicU64,
    local: AtomicU64,
    confirmed: AtomicU64,
    settled: AtomicU64,
    diverged: AtomicU64,
    late_near: AtomicU64,
    late_joined: AtomicU64,
    late_far: AtomicU64,
    examples: Mutex<Vec<Example>>,
}

struct Node {
    number: usize,
    source: Source,
    remote: Remote,
    /// Memory in front of the second level. It writes.
    layered: Subject,
    /// The second level alone.
    direct: Subject,
    loader: Loader,
    /// They may replace the master while it is alive.
    sentinels: bool,
    /// The newest version whose write by this node has answered, by key.
    answered: Vec<AtomicU64>,
    /// Of a key one writer at a time: who writes them all keeps the others out.
    writing: RwLock<()>,
    counts: Counts,
    until: Instant,
}

/// What a read has to keep to, as it stood when the read began.
struct Promised {
    floors: Floors,
    /// The newest version whose write by this node had answered.
    answered: u64,
    master: String,
}

/// Runs a node to its end.
pub(crate) fn run(settings: &Settings) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(Failure::run)?;
    runtime.block_on(race(settings)).map_err(Failure::run)
}

async fn race(settings: &Settings) -> Result<(), BoxError> {
    let Settings { source, l2, run, node: number, kind, seconds, disturbed } = settings;
    let source = Source::connect(*source).await?;
    let remote = Remote::new(l2, run)?;
    let counts = Counts::default();
    let loader = Loader { source: source.clone(), loads: Arc::clone(&counts.loads) };
    let layered = Subject::new(*kind, &remote, true)?;
    let direct = Subject::new(*kind, &remote, false)?;
    // Connected, and listening, before the race begins.
    layered.read(0, &loader).await?;
    direct.read(0, &loader).await?;
    source.meet().await?;
    let node = Arc::new(Node {
        number: *number,
        source: source.clone(),
        remote,
        layered,
        direct,
        loader,
        sentinels: l2.starts_with("redis+sentinel"),
        answered: (0..KEYS).map(|_| AtomicU64::new(0)).collect(),
        writing: RwLock::default(),
        counts,
        until: Instant::now() + Duration::from_secs(*seconds),
    });
    let mut tasks = JoinSet::new();
    // One key changes with all others only: a writer of its own would hide a tag that nobody has heard of.
    for key in (0..KEYS).filter(|key| node.owns(*key)).skip(1) {
        tasks.spawn(Arc::clone(&node).write(key));
    }
    tasks.spawn(Arc::clone(&node).write_all());
    for reader in 0..2 * READERS {
        tasks.spawn(Arc::clone(&node).read_all(reader % 2 == 0));
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    // From here on the source stands still.
    source.meet().await?;
    let recovery = if *disturbed { RECOVERY } else { Duration::ZERO };
    let converged = node.converge(bound(*kind, &node.remote) + recovery).await?;
    source.report(&serde_json::to_string(&node.report(converged))?).await?;
    // Nobody leaves a load behind that another node waits for.
    source.meet().await
}

impl Node {
    fn owns(&self, key: usize) -> bool {
        owner(key) == self.number
    }

    /// The server that is the master for this node. Where sentinels name it, it may be none for a while.
    fn master(&self) -> String {
        match &self.remote {
            Remote::Redis(redis) if self.sentinels => {
                let up = redis.connections().pop().filter(|now| now.state == "up");
                up.map_or_else(|| "none".to_owned(), |now| now.address)
            }
            _ => "always".to_owned(),
        }
    }

    /// Changes a key at the source and tells the cache: an invalidation, the new value, and an update in turn.
    async fn write(self: Arc<Self>, key: usize) -> Result<(), BoxError> {
        while Instant::now() < self.until {
            tokio::time::sleep(Duration::from_micros(fastrand::u64(1_000..50_000))).await;
            let _alone = self.writing.read().await;
            let version = self.source.change(key).await?;
            let master = self.master();
            let (count, delivery) = match version % 3 {
                0 => (&self.counts.sets, self.layered.set(key, version).await?),
                1 => (&self.counts.invalidations, self.layered.invalidate(key).await?),
                _ => (&self.counts.updates, self.layered.update(key, version).await?),
            };
            count.fetch_add(1, Ordering::Relaxed);
            self.told(&[(key, version)], delivery, Some(&master)).await?;
        }
        Ok(())
    }

    /// Changes all of its keys at the source and tells the cache at once: by their tag, or by clearing it.
    async fn write_all(self: Arc<Self>) -> Result<(), BoxError> {
        for turn in 0_u64.. {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(50..500))).await;
            if Instant::now() >= self.until {
                break;
            }
            let _alone = self.writing.write().await;
            let mut changed = Vec::new();
            for key in (0..KEYS).filter(|key| self.owns(*key)) {
                changed.push((key, self.source.change(key).await?));
            }
            let (count, delivery) = match turn % 3 {
                0 => (&self.counts.clears, self.layered.clear().await?),
                _ => (&self.counts.tags, self.layered.invalidate_all_of(self.number).await?),
            };
            count.fetch_add(1, Ordering::Relaxed);
            self.told(&changed, delivery, None).await?;
        }
        Ok(())
    }

    /// Notes what the cache has promised by an answer.
    async fn told(
        &self,
        changed: &[(usize, u64)],
        delivery: Delivery,
        master: Option<&str>,
    ) -> Result<(), BoxError> {
        for (key, version) in changed {
            self.answered[*key].store(*version, Ordering::SeqCst);
            if delivery.is_confirmed() {
                self.source.confirm(*key, *version, master).await?;
            }
        }
        if !delivery.is_confirmed() {
            self.counts.pending.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Reads keys at random, some in batches, and loads some anew.
    async fn read_all(self: Arc<Self>, layered: bool) -> Result<(), BoxError> {
        while Instant::now() < self.until {
            match fastrand::u8(..16) {
                0 | 1 => self.read_many(layered).await?,
                2 => self.refresh(layered).await?,
                _ => drop(self.read(fastrand::usize(..KEYS), layered).await?),
            }
            tokio::time::sleep(Duration::from_micros(fastrand::u64(..2_000))).await;
        }
        Ok(())
    }

    async fn read_many(&self, layered: bool) -> Result<(), BoxError> {
        let mut keys: Vec<usize> = (0..BATCH).map(|_| fastrand::usize(..KEYS)).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut promised = Vec::new();
        for key in &keys {
            promised.push(self.promised(*key).await?);
        }
        let versions = self.subject(layered).read_many(&keys, &self.loader).await?;
        for ((key, version), promised) in keys.into_iter().zip(versions).zip(promised) {
            self.check(key, layered, version, Seen::Unsaid, &promised);
        }
        Ok(())
    }

    async fn refresh(&self, layered: bool) -> Result<(), BoxError> {
        let key = fastrand::usize(..KEYS);
        let promised = self.promised(key).await?;
        let version = self.subject(layered).refresh(key, &self.loader).await?;
        self.check(key, layered, version, Seen::Unsaid, &promised);
        Ok(())
    }

    async fn read(&self, key: usize, layered: bool) -> Result<u64, BoxError> {
        let promised = self.promised(key).await?;
        let (version, seen) = self.subject(layered).read(key, &self.loader).await?;
        self.check(key, layered, version, seen, &promised);
        Ok(version)
    }

    fn subject(&self, layered: bool) -> &Subject {
        if layered { &self.layered } else { &self.direct }
    }

    async fn promised(&self, key: usize) -> Result<Promised, BoxError> {
        let master = self.master();
        let floors = self.source.floors(key, &master).await?;
        Ok(Promised { floors, answered: self.answered[key].load(Ordering::SeqCst), master })
    }

    /// Checks a read against what had been promised when it began.
    fn check(&self, key: usize, layered: bool, version: u64, seen: Seen, promised: &Promised) {
        let counts = &self.counts;
        let Promised { floors: Floors { here, anywhere, settled }, answered, master } = promised;
        let stayed = self.master() == *master;
        // Where it is not said where an answer comes from, it may be as late as one from memory.
        let (reads, late) = match seen {
            Seen::Near => (&counts.near, Some(&counts.late_near)),
            Seen::Far => (&counts.far, Some(&counts.late_far)),
            Seen::Joined => (&counts.joined, Some(&counts.late_joined)),
            Seen::Unsaid => (&counts.unsaid, None),
        };
        reads.fetch_add(1, Ordering::Relaxed);
        let (rule, floor, broken) = if layered && version < *answered {
            ("same process", *answered, &counts.local)
        } else if seen == Seen::Far && stayed && version < *here {
            ("confirmed", *here, &counts.confirmed)
        } else if version < *settled {
            ("within the bound", *settled, &counts.settled)
        } else {
            if let Some(late) = late.filter(|_| version < *anywhere) {
                late.fetch_add(1, Ordering::Relaxed);
            }
            return;
        };
        broken.fetch_add(1, Ordering::Relaxed);
        let mut examples = counts.examples.lock().unwrap_or_else(PoisonError::into_inner);
        if examples.len() < EXAMPLES {
            let cache = if layered { "memory and second level" } else { "second level alone" };
            let seen = format!("{seen:?}").to_lowercase();
            examples.push(Example {
                rule: rule.to_owned(),
                cache: cache.to_owned(),
                seen,
                key,
                version,
                floor,
                level: format!("{:?}", self.remote),
            });
        }
    }

    /// Waits until both caches have every key's newest version. Says how long the last one took; what has not come
    /// within the bound is counted.
    async fn converge(&self, bound: Duration) -> Result<Duration, BoxError> {
        let since = Instant::now();
        for key in 0..KEYS {
            let newest = self.source.get(key).await?;
            for layered in [true, false] {
                while self.read(key, layered).await? != newest {
                    if since.elapsed() > bound {
                        self.counts.diverged.fetch_add(1, Ordering::Relaxed);
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(2)).await;
                }
            }
        }
        Ok(since.elapsed())
    }

    fn report(&self, converged: Duration) -> NodeReport {
        let Counts { loads, invalidations, sets, updates, tags, clears, pending, .. } = &self.counts;
        let Counts { near, far, joined, unsaid, .. } = &self.counts;
        let Counts { local, confirmed, settled, diverged, .. } = &self.counts;
        let Counts { late_near, late_joined, late_far, examples, .. } = &self.counts;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NodeReport {
            loads: count(loads),
            invalidations: count(invalidations),
            sets: count(sets),
            updates: count(updates),
            tags: count(tags),
            clears: count(clears),
            pending: count(pending),
            near: count(near),
            far: count(far),
            joined: count(joined),
            unsaid: count(unsaid),
            local: count(local),
            confirmed: count(confirmed),
            settled: count(settled),
            diverged: count(diverged),
            late_near: count(late_near),
            late_joined: count(late_joined),
            late_far: count(late_far),
            converged_ms: u64::try_from(converged.as_millis()).unwrap_or(u64::MAX),
            examples: examples.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
