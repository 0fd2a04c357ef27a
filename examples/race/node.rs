//! One process of the race: writers of its own keys, readers of all, a check of every read.

use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use futures::FutureExt;
use tokio::{sync::RwLock, task::JoinSet};
use traced_cache::{BoxError, Delivery};

use crate::{
    failure::Failure,
    options::{Levels, Settings},
    remote::Remote,
    report::{Example, NodeReport},
    source::{Floors, KEYS, NODES, Source},
    subject::{Loader, RECOVERY, Seen, Subject, bound, is_of_a_level, is_of_a_load, keys_of, owner},
};

/// Readers of each of the two caches of a node.
const READERS: usize = 16;
/// Keys of a batch.
const BATCH: usize = 4;
/// No call takes that long: nobody is at a key for longer than its loads take, but for a lease whose holder has gone, which
/// lasts for three seconds.
const LONG: Duration = Duration::from_millis(2_500);
/// The same while the server suffers: level, breaker and lease together.
const VERY_LONG: Duration = Duration::from_secs(15);
/// How often a node looks whether it gets on.
const TICK: Duration = Duration::from_millis(50);
/// A call that has not ended by then never will.
const FOR_EVER: Duration = Duration::from_secs(45);
/// Examples of violations that a node keeps.
const EXAMPLES: usize = 5;

#[derive(Default)]
struct Counts {
    loads: Arc<AtomicU64>,
    invalidations: AtomicU64,
    sets: AtomicU64,
    updates: AtomicU64,
    through: AtomicU64,
    expiries: AtomicU64,
    tags: AtomicU64,
    clears: AtomicU64,
    pending: AtomicU64,
    near: AtomicU64,
    far: AtomicU64,
    joined: AtomicU64,
    stale: AtomicU64,
    unsaid: AtomicU64,
    left: AtomicU64,
    failed: AtomicU64,
    held_up: AtomicU64,
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
    /// Callers leave in the middle of their calls.
    hasty: bool,
    levels: Levels,
    /// What no call takes.
    long: Duration,
    /// Microseconds for which the machine has let this process stand, and with it all of its calls.
    stood: AtomicU64,
    /// They may replace the master while it is alive.
    sentinels: bool,
    /// The newest version whose write by this node has answered, by key.
    answered: Vec<AtomicU64>,
    /// The same of expiries: what is older may stand in, and is not fresh.
    ended: Vec<AtomicU64>,
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
    /// The same of expiries.
    ended: u64,
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
    let Settings { source, l2, l3, run, node: number, kind, seconds, disturbed, hasty, levels } = settings;
    let source = Source::connect(*source).await?;
    let remote = Remote::new(l2, run)?;
    let deeper = l3.as_ref().map(|l3| Remote::new(l3, run)).transpose()?;
    let deeper = deeper.as_ref();
    let counts = Counts::default();
    let loader = Loader {
        source: source.clone(),
        loads: Arc::clone(&counts.loads),
        moody: Arc::new(AtomicBool::new(false)),
        tags: *levels != Levels::Plain,
    };
    let layered = Subject::new(settings, &remote, deeper, &loader, true)?;
    let direct = Subject::new(settings, &remote, deeper, &loader, false)?;
    // Connected, and listening, before the race begins.
    let first = keys_of(*number).next().unwrap_or_default();
    layered.read(first, &loader).await?;
    direct.read(first, &loader).await?;
    source.meet().await?;
    loader.moody.store(*hasty, Ordering::Relaxed);
    let node = Arc::new(Node {
        number: *number,
        source: source.clone(),
        remote,
        layered,
        direct,
        loader,
        hasty: *hasty,
        levels: *levels,
        long: if *disturbed { VERY_LONG } else { LONG },
        stood: AtomicU64::new(0),
        sentinels: l2.starts_with("redis+sentinel"),
        answered: (0..KEYS).map(|_| AtomicU64::new(0)).collect(),
        ended: (0..KEYS).map(|_| AtomicU64::new(0)).collect(),
        writing: RwLock::default(),
        counts,
        until: Instant::now() + Duration::from_secs(*seconds),
    });
    // Until the runtime ends, with the race.
    tokio::spawn(Arc::clone(&node).tick());
    let mut tasks = JoinSet::new();
    // One key changes with all others only: a writer of its own would hide a tag that nobody has heard of.
    for key in keys_of(node.number).skip(1) {
        tasks.spawn(Arc::clone(&node).write(key));
    }
    tasks.spawn(Arc::clone(&node).write_all());
    for reader in 0..2 * READERS {
        let layered = reader % 2 == 0;
        if layered || node.reads_directly() {
            tasks.spawn(Arc::clone(&node).read_all(layered));
        }
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    // From here on the source stands still.
    source.meet().await?;
    node.loader.moody.store(false, Ordering::Relaxed);
    let recovery = if *disturbed { RECOVERY } else { Duration::ZERO };
    let converged = node.converge(bound(*kind, *levels, &node.remote) + recovery).await?;
    source.report(&serde_json::to_string(&node.report(converged))?).await?;
    // Nobody leaves a load behind that another node waits for.
    source.meet().await
}

impl Node {
    fn owns(&self, key: usize) -> bool {
        owner(key) == self.number
    }

    /// Another cache at a level without leases is like another process: what it loads may be stored late.
    fn reads_directly(&self) -> bool {
        self.levels != Levels::Plain
    }

    /// A key to read.
    fn any(&self) -> usize {
        let at = fastrand::usize(..KEYS);
        if self.reads_directly() { at } else { at - at % NODES + self.number }
    }

    async fn tick(self: Arc<Self>) {
        loop {
            let from = Instant::now();
            tokio::time::sleep(TICK).await;
            let late = from.elapsed().saturating_sub(TICK);
            self.stood.fetch_add(u64::try_from(late.as_micros()).unwrap_or(0), Ordering::Relaxed);
        }
    }

    fn stood(&self) -> Duration {
        Duration::from_micros(self.stood.load(Ordering::Relaxed))
    }

    /// Makes a call to its end, unless its caller leaves, where callers are `hasty`. `None`: it has left, or the call has
    /// failed as loads do.
    async fn call<R>(
        &self,
        key: usize,
        hasty: bool,
        call: impl Future<Output = Result<R, BoxError>>,
    ) -> Result<Option<R>, BoxError> {
        let (began, stood) = (Instant::now(), self.stood());
        let leaves = hasty && fastrand::u8(..4) == 0;
        let ended = match leaves {
            // Wherever it waits, or just when.
            true if fastrand::bool() => polled(fastrand::u8(..8), call).await,
            true => tokio::time::timeout(Duration::from_millis(fastrand::u64(..20)), call).await.ok(),
            false => tokio::time::timeout(FOR_EVER, call).await.ok(),
        };
        let took = began.elapsed().saturating_sub(self.stood().saturating_sub(stood));
        if took > self.long {
            self.counts.held_up.fetch_add(1, Ordering::Relaxed);
            self.example("held up", "any", &format!("a call of {took:?}"), key, 0, 0);
        }
        match ended {
            None => {
                self.counts.left.fetch_add(1, Ordering::Relaxed);
                Ok(None)
            }
            Some(Err(error))
                if self.hasty && is_of_a_load(&error)
                    || self.levels == Levels::Surface && is_of_a_level(&error) =>
            {
                self.counts.failed.fetch_add(1, Ordering::Relaxed);
                Ok(None)
            }
            Some(ended) => ended.map(Some),
        }
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

    /// Changes a key at the source and tells the cache: an invalidation, the new value, and an update in turn; where callers
    /// are hasty, now and then that what it holds is not fresh any more.
    async fn write(self: Arc<Self>, key: usize) -> Result<(), BoxError> {
        while Instant::now() < self.until {
            tokio::time::sleep(Duration::from_micros(fastrand::u64(1_000..50_000))).await;
            let _alone = self.writing.read().await;
            if fastrand::u8(..4) == 0 {
                self.write_through(key).await?;
                continue;
            }
            let version = self.source.change(key).await?;
            let master = self.master();
            let expires = self.hasty && version % 4 == 0;
            let (count, call) = match version % 3 {
                _ if expires => (&self.counts.expiries, self.layered.expire(key).boxed()),
                0 => (&self.counts.sets, self.layered.set(key, version).boxed()),
                1 => (&self.counts.invalidations, self.layered.invalidate(key).boxed()),
                _ => (&self.counts.updates, self.layered.update(key, version, &self.loader).boxed()),
            };
            count.fetch_add(1, Ordering::Relaxed);
            match self.call(key, self.hasty, call).await? {
                Some(_) if expires => self.ended[key].store(version, Ordering::SeqCst),
                // Who has left has told nobody, but by the next change.
                None if fastrand::bool() => {}
                None => self.invalidate(key, version).await?,
                told => self.told(&[(key, version)], told, Some(&master)).await?,
            }
        }
        if self.hasty {
            // In the end all are to be up to date.
            let _alone = self.writing.read().await;
            let version = self.source.change(key).await?;
            self.invalidate(key, version).await?;
        }
        Ok(())
    }

    /// Has the cache change a key at the source. Nobody leaves: the write would go on, and its version come after others.
    async fn write_through(&self, key: usize) -> Result<(), BoxError> {
        let version = self.source.get(key).await? + 1;
        let master = self.master();
        self.counts.through.fetch_add(1, Ordering::Relaxed);
        let call = self.layered.write_through(key, version, &self.loader);
        match self.call(key, false, call).await? {
            // Whether the source took it or not: what was there before is gone from the cache of this process.
            None => self.answered[key].store(self.source.get(key).await?, Ordering::SeqCst),
            told => self.told(&[(key, version)], told, Some(&master)).await?,
        }
        Ok(())
    }

    /// Without leaving.
    async fn invalidate(&self, key: usize, version: u64) -> Result<(), BoxError> {
        let master = self.master();
        let delivery = self.call(key, false, self.layered.invalidate(key)).await?;
        self.told(&[(key, version)], delivery, Some(&master)).await
    }

    /// Changes all of its keys at the source and tells the cache at once: by their tag, or by clearing it.
    /// Hasty callers also end their freshness.
    async fn write_all(self: Arc<Self>) -> Result<(), BoxError> {
        for turn in 0_u64.. {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(50..500))).await;
            if Instant::now() >= self.until {
                break;
            }
            let _alone = self.writing.write().await;
            let changed = self.change_all().await?;
            let expires = self.hasty && turn % 4 == 3;
            let (count, call) = match turn % 3 {
                _ if expires => (
                    &self.counts.expiries,
                    match turn % 8 {
                        3 => self.layered.expire_all_of(self.number).boxed(),
                        _ => self.layered.expire_all().boxed(),
                    },
                ),
                0 => (&self.counts.clears, self.layered.clear().boxed()),
                _ => (&self.counts.tags, self.layered.invalidate_all_of(self.number).boxed()),
            };
            count.fetch_add(1, Ordering::Relaxed);
            let key = self.number;
            let delivery = match self.call(key, self.hasty, call).await? {
                Some(_) if expires => {
                    for (key, version) in changed {
                        self.ended[key].store(version, Ordering::SeqCst);
                    }
                    continue;
                }
                // One of its keys has no other writer.
                None => self.call(key, false, self.layered.invalidate_all_of(self.number)).await?,
                told => told,
            };
            self.told(&changed, delivery, None).await?;
        }
        if self.hasty {
            // As of a single key.
            let _alone = self.writing.write().await;
            let changed = self.change_all().await?;
            let delivery = self.call(self.number, false, self.layered.invalidate_all_of(self.number)).await?;
            self.told(&changed, delivery, None).await?;
        }
        Ok(())
    }

    /// Gives each of its keys another version at the source.
    async fn change_all(&self) -> Result<Vec<(usize, u64)>, BoxError> {
        let mut changed = Vec::new();
        for key in keys_of(self.number) {
            changed.push((key, self.source.change(key).await?));
        }
        Ok(changed)
    }

    /// Notes what the cache has promised by an answer.
    async fn told(
        &self,
        changed: &[(usize, u64)],
        delivery: Option<Delivery>,
        master: Option<&str>,
    ) -> Result<(), BoxError> {
        // It has not ended at all, which is reported.
        let Some(delivery) = delivery else { return Ok(()) };
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
                _ => drop(self.read(self.any(), layered, self.hasty).await?),
            }
            tokio::time::sleep(Duration::from_micros(fastrand::u64(..2_000))).await;
        }
        Ok(())
    }

    async fn read_many(&self, layered: bool) -> Result<(), BoxError> {
        let mut keys: Vec<usize> = (0..BATCH).map(|_| self.any()).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut promised = Vec::new();
        for key in &keys {
            promised.push(self.promised(*key).await?);
        }
        let call = self.subject(layered).read_many(&keys, &self.loader);
        let Some(versions) = self.call(keys[0], self.hasty, call).await? else { return Ok(()) };
        for ((key, version), promised) in keys.into_iter().zip(versions).zip(promised) {
            self.check(key, layered, version, Seen::Unsaid, &promised);
        }
        Ok(())
    }

    async fn refresh(&self, layered: bool) -> Result<(), BoxError> {
        let key = self.any();
        let promised = self.promised(key).await?;
        let call = self.subject(layered).refresh(key, &self.loader);
        let Some(version) = self.call(key, self.hasty, call).await? else { return Ok(()) };
        self.check(key, layered, version, Seen::Unsaid, &promised);
        Ok(())
    }

    async fn read(&self, key: usize, layered: bool, hasty: bool) -> Result<Option<u64>, BoxError> {
        let promised = self.promised(key).await?;
        let call = self.subject(layered).read(key, &self.loader);
        let Some((version, seen)) = self.call(key, hasty, call).await? else { return Ok(None) };
        self.check(key, layered, version, seen, &promised);
        Ok(Some(version))
    }

    fn subject(&self, layered: bool) -> &Subject {
        if layered { &self.layered } else { &self.direct }
    }

    async fn promised(&self, key: usize) -> Result<Promised, BoxError> {
        let master = self.master();
        let floors = self.source.floors(key, &master).await?;
        let [answered, ended] =
            [&self.answered, &self.ended].map(|versions| versions[key].load(Ordering::SeqCst));
        Ok(Promised { floors, answered, ended, master })
    }

    /// Checks a read against what had been promised when it began.
    fn check(&self, key: usize, layered: bool, version: u64, seen: Seen, promised: &Promised) {
        let counts = &self.counts;
        let Promised { floors: Floors { here, anywhere, settled }, answered, ended, master } = promised;
        let stayed = self.master() == *master;
        // Where it is not said where an answer comes from, it may be as late as one from memory.
        let (reads, late) = match seen {
            Seen::Near => (&counts.near, Some(&counts.late_near)),
            Seen::Far => (&counts.far, Some(&counts.late_far)),
            Seen::Joined => (&counts.joined, Some(&counts.late_joined)),
            Seen::Stale => (&counts.stale, None),
            Seen::Unsaid => (&counts.unsaid, None),
        };
        reads.fetch_add(1, Ordering::Relaxed);
        let (rule, floor, broken) = if layered && version < *answered {
            ("same process", *answered, &counts.local)
        } else if layered && !matches!(seen, Seen::Stale | Seen::Unsaid) && version < *ended {
            ("same process, fresh", *ended, &counts.local)
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
        let cache = if layered { "memory and second level" } else { "second level alone" };
        let seen = format!("{seen:?}").to_lowercase();
        self.example(rule, cache, &seen, key, version, floor);
    }

    fn example(&self, rule: &str, cache: &str, seen: &str, key: usize, version: u64, floor: u64) {
        let mut examples = self.counts.examples.lock().unwrap_or_else(PoisonError::into_inner);
        if examples.len() < EXAMPLES {
            examples.push(Example {
                rule: rule.to_owned(),
                cache: cache.to_owned(),
                seen: seen.to_owned(),
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
        let caches = if self.reads_directly() { &[true, false][..] } else { &[true] };
        for key in (0..KEYS).filter(|key| self.reads_directly() || self.owns(*key)) {
            let newest = self.source.get(key).await?;
            for layered in caches {
                while self.read(key, *layered, false).await? != Some(newest) {
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
        let Counts { loads, invalidations, sets, updates, through, expiries, tags, clears, pending, .. } =
            &self.counts;
        let Counts { near, far, joined, stale, unsaid, left, failed, .. } = &self.counts;
        let Counts { local, confirmed, settled, diverged, held_up, .. } = &self.counts;
        let Counts { late_near, late_joined, late_far, examples, .. } = &self.counts;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        NodeReport {
            loads: count(loads),
            invalidations: count(invalidations),
            sets: count(sets),
            updates: count(updates),
            through: count(through),
            expiries: count(expiries),
            tags: count(tags),
            clears: count(clears),
            pending: count(pending),
            near: count(near),
            far: count(far),
            joined: count(joined),
            stale: count(stale),
            unsaid: count(unsaid),
            left: count(left),
            failed: count(failed),
            local: count(local),
            confirmed: count(confirmed),
            settled: count(settled),
            diverged: count(diverged),
            held_up: count(held_up),
            late_near: count(late_near),
            late_joined: count(late_joined),
            late_far: count(late_far),
            converged_ms: u64::try_from(converged.as_millis()).unwrap_or(u64::MAX),
            examples: examples.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}

/// Polls a call, and leaves it when it has had to wait that often.
async fn polled<F: Future>(waits: u8, call: F) -> Option<F::Output> {
    let mut call = pin!(call);
    let mut left = waits;
    poll_fn(|context| match call.as_mut().poll(context) {
        Poll::Ready(ended) => Poll::Ready(Some(ended)),
        Poll::Pending if left == 0 => Poll::Ready(None),
        Poll::Pending => {
            left -= 1;
            Poll::Pending
        }
    })
    .await
}
