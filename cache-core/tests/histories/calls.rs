//! What callers do, and what they may be shown.

use std::{
    panic::resume_unwind,
    pin::Pin,
    sync::{Arc, Mutex, atomic::Ordering::SeqCst},
    task::{Context, Poll},
    time::Duration,
};

use cache_core::{
    Access, BoxError, Delivery, Error, ErrorKind, Found, Loaded, Moment, Outcome, Source, Verb,
};
use fastrand::Rng;
use futures::{
    FutureExt,
    future::{BoxFuture, join_all},
};

use crate::{
    model::{Asked, Effect, KEYS, Life, Reach, Shown, TAGS, Tagged, Tick, tag_of},
    node::{Node, World, id},
};

const MS: Duration = Duration::from_millis(1);

/// A call of the cache.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Call {
    Get(Access),
    Look(Access),
    GetOrSet(Access),
    IfChanged,
    Refresh,
    GetMany,
    GetOrSetMany,
    Warm,
    Inspect,
    Set,
    SetAbsent,
    SetMany,
    Invalidate,
    InvalidateMany,
    Expire,
    InvalidateTag,
    ExpireTag,
    Clear,
    ExpireAll,
    Update,
    SourceGet,
    Save,
    Delete,
}

impl Call {
    /// How often each is made.
    const ALL: [(usize, Self); 30] = [
        (8, Self::Get(Access::Normal)),
        (2, Self::Get(Access::AllowStale)),
        (6, Self::Look(Access::Normal)),
        (4, Self::Look(Access::AllowStale)),
        (2, Self::Look(Access::CacheOnly)),
        (24, Self::GetOrSet(Access::Normal)),
        (2, Self::GetOrSet(Access::AllowStale)),
        (1, Self::GetOrSet(Access::CacheOnly)),
        (1, Self::GetOrSet(Access::Reload)),
        (1, Self::GetOrSet(Access::Bypass)),
        (4, Self::IfChanged),
        (3, Self::Refresh),
        (5, Self::GetMany),
        (6, Self::GetOrSetMany),
        (2, Self::Warm),
        (1, Self::Inspect),
        (8, Self::Set),
        (1, Self::SetAbsent),
        (3, Self::SetMany),
        (6, Self::Invalidate),
        (2, Self::InvalidateMany),
        (3, Self::Expire),
        (3, Self::InvalidateTag),
        (2, Self::ExpireTag),
        (2, Self::Clear),
        (1, Self::ExpireAll),
        (4, Self::Update),
        (3, Self::SourceGet),
        (3, Self::Save),
        (1, Self::Delete),
    ];

    pub(crate) fn any(dice: &mut Rng) -> Self {
        let mut at = dice.usize(..Self::ALL.iter().map(|(weight, _)| weight).sum::<usize>());
        for (weight, call) in Self::ALL {
            if at < weight {
                return call;
            }
            at -= weight;
        }
        Self::Look(Access::Normal)
    }

    fn verb(self) -> Option<Verb> {
        Some(match self {
            Self::Get(_) | Self::Look(_) => Verb::Get,
            Self::GetOrSet(_) | Self::IfChanged | Self::SourceGet => Verb::GetOrSet,
            Self::Refresh => Verb::Refresh,
            Self::GetMany => Verb::GetMany,
            Self::GetOrSetMany => Verb::GetOrSetMany,
            Self::Warm => Verb::Warm,
            Self::Inspect => return None,
            Self::Set | Self::SetAbsent => Verb::Set,
            Self::SetMany => Verb::SetMany,
            Self::Invalidate => Verb::Invalidate,
            Self::InvalidateMany => Verb::InvalidateMany,
            Self::Expire => Verb::Expire,
            Self::InvalidateTag => Verb::InvalidateTag,
            Self::ExpireTag => Verb::ExpireTag,
            Self::Clear => Verb::Clear,
            Self::ExpireAll => Verb::ExpireAll,
            Self::Update => Verb::Update,
            Self::Save => Verb::Save,
            Self::Delete => Verb::Delete,
        })
    }

    /// How many of the two keys it looks up, and counts as look-ups.
    fn lookups(self, both: usize) -> usize {
        match self {
            Self::GetMany | Self::GetOrSetMany => both,
            Self::Get(_)
            | Self::Look(_)
            | Self::GetOrSet(_)
            | Self::IfChanged
            | Self::Refresh
            | Self::SourceGet => 1,
            _ => 0,
        }
    }

    /// Whether it goes on when its caller leaves.
    fn is_task(self) -> bool {
        matches!(self, Self::Update | Self::Save | Self::Delete)
    }
}

/// Gives up after so many polls.
struct Leaves<F> {
    work: Pin<Box<F>>,
    polls: usize,
}

impl<F: Future> Future for Leaves<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.polls == 0 {
            return Poll::Ready(None);
        }
        self.polls -= 1;
        let polled = self.work.as_mut().poll(cx).map(Some);
        if polled.is_pending() && self.polls == 0 {
            cx.waker().wake_by_ref();
        }
        polled
    }
}

/// Who makes a call, and what is drawn for it.
#[derive(Clone)]
pub(crate) struct Caller {
    pub(crate) world: Arc<World>,
    pub(crate) node: Arc<Node>,
    pub(crate) keys: [usize; 2],
    /// After how many polls it leaves.
    pub(crate) leaves: Option<usize>,
    pub(crate) dice: Arc<Mutex<Rng>>,
}

type Answer<T> = Result<T, Error>;
type FromSource = Result<Loaded<u64>, BoxError>;

impl Caller {
    fn below(&self, n: usize) -> usize {
        self.dice.lock().unwrap().usize(..n)
    }

    fn note(&self, line: &str) {
        self.world.note(format!("n{} {line}", self.node.name));
    }

    /// The keys of a batch.
    fn both(&self) -> Vec<usize> {
        let [one, other] = self.keys;
        if one == other { vec![one] } else { vec![one, other] }
    }

    /// Waits for a call, or leaves. A closed cache refuses.
    async fn ask<T>(&self, call: impl Future<Output = Answer<T>>) -> Option<Answer<T>> {
        let closed = self.node.closed.load(SeqCst);
        let answer = Leaves { work: Box::pin(call), polls: self.leaves.unwrap_or(usize::MAX) }.await;
        if let Some(Err(error)) = &answer {
            self.node.watch.fails(error);
        }
        if closed && let Some(Ok(_)) = answer {
            self.world.wrong(format!("n{} answers after it was closed", self.node.name));
        }
        answer
    }

    fn saw(&self, verb: Verb, what: &str, key: usize, asked: &Asked, answer: Option<Answer<Found<u64>>>) {
        let found = match answer {
            Some(Ok(found)) => found,
            other => {
                return self.note(&format!("{what} k{key} -> {:?}", other.map(|other| other.map(|_| ()))));
            }
        };
        let (value, outcome, level) = (found.value().map(|value| **value), found.outcome(), found.level());
        self.node.watch.answers(verb, outcome);
        self.note(&format!("{what} k{key} of {} -> {value:?} {outcome:?} {level:?}", asked.at));
        let (world, node) = (&self.world, &self.node);
        match value {
            Some(value) => {
                let is_found = matches!(outcome, Outcome::Hit | Outcome::Stale);
                let remote = usize::from(world.shape.memory);
                let shown = Shown {
                    stale: outcome == Outcome::Stale,
                    found: is_found,
                    // What is stale may be what a load of before falls back on.
                    from_remote: outcome == Outcome::Hit && level.is_some_and(|level| level >= remote),
                };
                world.shows(what, node, key, asked, value, shown);
            }
            None if outcome == Outcome::Absent => {
                world.judge(what, node, key, world.model(|model| model.shows_absence(asked, key)));
            }
            None => {}
        }
    }

    fn saw_many(
        &self,
        what: &str,
        asked: &[(usize, Asked)],
        answer: Option<Answer<Vec<Option<Arc<u64>>>>>,
        shown: Shown,
    ) {
        self.note(&format!(
            "{what} {:?} -> {answer:?}",
            asked.iter().map(|(key, _)| key).collect::<Vec<_>>()
        ));
        for ((key, asked), value) in asked.iter().zip(answer.and_then(Result::ok).into_iter().flatten()) {
            if let Some(value) = value {
                self.world.shows(what, &self.node, *key, asked, *value, shown);
            }
        }
    }

    fn asks(&self, keys: &[usize]) -> Vec<(usize, Asked)> {
        keys.iter().map(|key| (*key, self.world.asks(&self.node, *key))).collect()
    }

    /// A write: `values` are what it writes. Its answer binds its node, or all.
    async fn write(
        &self,
        what: &str,
        effect: Effect,
        start: Tick,
        values: &[u64],
        call: impl Future<Output = Answer<Delivery>>,
    ) -> Option<Answer<Delivery>> {
        self.note(&format!("{what} {:?} begins, {start}: {values:?}", effect.keys));
        let answer = self.ask(call).await;
        self.note(&format!("{what} {:?} of {start} -> {answer:?}", effect.keys));
        self.world.model(|model| {
            values.iter().for_each(|value| model.write_is_over(*value, self.world.clock.now()));
            // What is left in the middle of more than keys is told once more, nobody knows when, and overtakes what is loaded by
            // then.
            if answer.is_some() || effect.reach == Reach::Keys {
                model.write_ends(&effect.keys);
            }
        });
        if let Some(Ok(delivery)) = &answer {
            self.world.is_over(&self.node, &effect, start, delivery.is_confirmed());
        }
        answer
    }

    /// A write of nothing. Where a level shows its failures, it has been done on its node all the same.
    async fn end(&self, what: &str, effect: Effect, call: impl Future<Output = Answer<Delivery>>) {
        let start = self.begins(&effect);
        let answer = self.write(what, effect.clone(), start, &[], call).await;
        if let Some(Err(error)) = answer
            && error.kind() == ErrorKind::Level
        {
            self.world.is_over(&self.node, &effect, start, false);
        }
    }

    fn begins(&self, effect: &Effect) -> Tick {
        self.world.model(|model| model.write_begins(&effect.keys))
    }

    fn new_value(&self, life: Life, tags: Tagged) -> u64 {
        self.world.model(|model| model.written(self.node.name, life, tags))
    }

    fn life(&self) -> Life {
        *self.node.life.lock().unwrap()
    }

    /// Mostly that of the key.
    fn any_tags(&self, key: usize) -> Tagged {
        let mut tags = Tagged::default();
        if self.world.shape.tags {
            match self.below(8) {
                0 => {}
                1 => tags = [true; TAGS.len()],
                2 => tags[tag_of(key + 1)] = true,
                _ => tags[tag_of(key)] = true,
            }
        }
        tags
    }

    /// An answer's own ttl and grace, if it has any.
    fn any_times(&self) -> [Option<Duration>; 2] {
        if !self.world.shape.own_times {
            return [None; 2];
        }
        let ttl = self.world.shape.ttl();
        let own = match self.below(10) {
            0 => Some(Duration::ZERO),
            1 => Some(ttl / 8),
            2 => Some(2 * ttl),
            _ => None,
        };
        [own, (self.below(4) == 0).then(|| 4 * ttl)]
    }

    /// Makes the call.
    pub(crate) async fn make(mut self, call: Call) {
        let shape = &self.world.shape;
        if !shape.tags && matches!(call, Call::InvalidateTag | Call::ExpireTag) {
            return;
        }
        if shape.is_orderly() && call.is_task() {
            // Nobody would know when it has ended.
            self.leaves = None;
            if shape.nodes > 1 && matches!(call, Call::Save | Call::Delete) {
                // Nodes load side by side while a key is kept for its writer, and until it has been given back.
                return;
            }
        }
        self.note(&format!("{call:?} k{} k{}, leaves {:?}", self.keys[0], self.keys[1], self.leaves));
        let (cache, key, node) = (&self.node.cache, self.keys[0], &self.node);
        if let Some(verb) = call.verb() {
            node.watch.calls(verb, call.lookups(self.both().len()));
        }
        let name = format!("{call:?}");
        let what = name.as_str();
        match call {
            Call::Get(access) => {
                let asked = self.asks(&[key]);
                let answer = self.ask(cache.access(access).get(id(key))).await;
                let shown = Shown { stale: access == Access::AllowStale, found: true, from_remote: false };
                self.saw_many(what, &asked, answer.map(|answer| answer.map(|value| vec![value])), shown);
            }
            Call::Look(access) => {
                let asked = self.world.asks(node, key);
                let answer = self.ask(cache.access(access).look(id(key))).await;
                self.saw(Verb::Get, what, key, &asked, answer);
            }
            Call::GetOrSet(access) => {
                let asked = self.world.asks(node, key);
                let caller = self.clone();
                // Who bypasses the cache takes no lease, and waits for no other node.
                let called = if access == Access::Bypass { 0 } else { asked.at };
                let load = move |_: (), _| caller.load(key, called, access == Access::Normal, 0);
                let answer = self.ask(cache.access(access).look_or_set_with(id(key), &(), load)).await;
                self.saw(Verb::GetOrSet, what, key, &asked, answer);
            }
            Call::IfChanged => {
                let asked = self.asks(&[key]);
                let (caller, known) = (self.clone(), asked[0].1);
                let load = move |(), _, held: Option<cache_core::Held<u64>>| async move {
                    let Some(held) = held else { return caller.load(key, known.at, true, 0).await };
                    let held = **held.value();
                    let shown = Shown { stale: true, found: false, from_remote: false };
                    caller.world.shows("what is held", &caller.node, key, &known, held, shown);
                    let (begun, born) = (caller.world.model(|model| model.tick()), caller.world.clock.now());
                    let loaded = caller.clone().load(key, known.at, true, 0).await?;
                    if caller.below(2) == 0 {
                        return Ok(loaded);
                    }
                    caller.note(&format!("{held} is unchanged, says a load of {begun}"));
                    let times = caller.any_times();
                    let life = caller.life().own(times[0], times[1]);
                    caller.world.model(|model| model.unchanged(held, begun, born, life));
                    // It keeps the tags that it has.
                    Ok(answer(Loaded::unchanged(), times, Tagged::default()))
                };
                let answer = self.ask(cache.get_or_set_if_changed(id(key), &(), load)).await;
                self.saw_many(what, &asked, answer.map(|answer| answer.map(|value| vec![value])), LOADED);
            }
            Call::Refresh => {
                let asked = self.asks(&[key]);
                let (caller, called) = (self.clone(), asked[0].1.at);
                let load = move |(), _| caller.load(key, called, false, 0);
                let answer = self.ask(cache.refresh(id(key), &(), load)).await;
                self.saw_many(what, &asked, answer.map(|answer| answer.map(|value| vec![value])), LOADED);
            }
            Call::GetMany => {
                let asked = self.asks(&self.both());
                let answer = self.ask(cache.get_many(self.both().into_iter().map(id))).await;
                self.saw_many(what, &asked, answer, Shown { stale: false, found: true, from_remote: false });
            }
            Call::GetOrSetMany => {
                let asked = self.asks(&self.both());
                let (caller, called) = (self.clone(), asked[0].1.at);
                let load = move |(), ids: Vec<String>| {
                    let caller = caller.clone();
                    async move {
                        let one = |id: &String| {
                            caller.clone().loads(id[1..].parse().unwrap(), called, true, 0).boxed()
                        };
                        let made = join_all(ids.iter().map(one)).await;
                        // They come together, by the policy of then.
                        let all = ids.into_iter().zip(made);
                        all.map(|(id, made)| made.comes(&caller).map(|loaded| (id, loaded)))
                            .collect::<Result<Vec<_>, _>>()
                    }
                    .boxed()
                };
                let answer =
                    self.ask(cache.get_or_set_many(self.both().into_iter().map(id), &(), load)).await;
                self.saw_many(what, &asked, answer, LOADED);
            }
            Call::Warm => {
                let called = self.world.model(|model| model.tick());
                // Each key is a call of its own.
                self.both().iter().for_each(|_| self.node.watch.calls(Verb::GetOrSet, 1));
                let caller = self.clone();
                let load =
                    move |(), id: String| caller.clone().load(id[1..].parse().unwrap(), called, true, 0);
                // Not left: nobody could say which look-ups it had begun.
                let warmed = cache.warm(self.both().into_iter().map(id), 2, &(), load).await;
                warmed.failed.iter().for_each(|(_, error)| self.node.watch.fails(error));
                self.note(&format!("{what} -> {warmed:?}"));
            }
            Call::Inspect => {
                let answer = self.ask(cache.inspect(id(key))).await;
                self.note(&format!("{what} -> {:?}", answer.map(|answer| answer.is_ok())));
            }
            Call::Set => {
                let effect = Effect::keys(&[key]);
                let (start, times, tags) = (self.begins(&effect), self.any_times(), self.any_tags(key));
                let value = self.new_value(self.life().own(times[0], times[1]), tags);
                let set = cache.set_loaded(id(key), answer(Loaded::value(value), times, tags));
                self.write(what, effect, start, &[value], set).await;
            }
            Call::SetAbsent => {
                let effect = Effect::keys(&[key]);
                let start = self.begins(&effect);
                self.world.model(|model| model.clearing_begins(key));
                let written = self.new_value(self.life(), Tagged::default());
                self.write(what, effect, start, &[], cache.set_loaded(id(key), Loaded::absent())).await;
                self.world.model(|model| model.clearing_ends(key, written, self.world.clock.now()));
            }
            Call::SetMany => {
                let effect = Effect::keys(&self.both());
                let start = self.begins(&effect);
                // These have no tags.
                let values: Vec<_> =
                    self.both().iter().map(|_| self.new_value(self.life(), Tagged::default())).collect();
                let pairs = self.both().into_iter().map(id).zip(values.iter().copied());
                self.write(what, effect, start, &values, cache.set_many(pairs)).await;
            }
            Call::Invalidate => self.end(what, Effect::keys(&[key]), cache.invalidate(id(key))).await,
            Call::InvalidateMany => {
                let call = cache.invalidate_many(self.both().into_iter().map(id));
                self.end(what, Effect::keys(&self.both()), call).await;
            }
            Call::Expire => self.end(what, Effect::keys(&[key]).stale(), cache.expire(id(key))).await,
            Call::InvalidateTag => {
                self.end(what, Effect::tag(tag_of(key)), cache.invalidate_tag(TAGS[tag_of(key)])).await;
            }
            Call::ExpireTag => {
                self.end(what, Effect::tag(tag_of(key)).stale(), cache.expire_tag(TAGS[tag_of(key)])).await;
            }
            Call::Clear => self.end(what, Effect::all(), cache.clear()).await,
            Call::ExpireAll => self.end(what, Effect::all().stale(), cache.expire_all()).await,
            Call::Update => self.update(key).await,
            Call::SourceGet => {
                let asked = self.asks(&[key]);
                let source = cache.with_source(self.table(asked[0].1.at));
                let answer = self.ask(source.get(id(key))).await;
                self.saw_many(what, &asked, answer.map(|answer| answer.map(|value| vec![value])), LOADED);
            }
            Call::Save => {
                let mut tags = Tagged::default();
                tags[tag_of(key)] = self.world.shape.tags;
                let value = self.new_value(self.life(), tags);
                self.note(&format!("saves {value}"));
                // It goes on without its caller: then its value may come at any time.
                let values = if self.leaves.is_some() { vec![] } else { vec![value] };
                let source = cache.with_source(self.table(0));
                self.change(what, key, &values, source.save(id(key), value)).await;
            }
            Call::Delete => {
                let source = cache.with_source(self.table(0));
                self.change(what, key, &[], source.delete(id(key))).await;
            }
        }
    }

    /// Through a source. Once that has been asked, the old value is gone from its node, whatever came of it.
    async fn change(
        &self,
        what: &str,
        key: usize,
        values: &[u64],
        call: impl Future<Output = Answer<Delivery>>,
    ) {
        let effect = Effect::keys(&[key]);
        let start = self.begins(&effect);
        let answer = self.write(what, effect.clone(), start, values, call).await;
        let asked = [ErrorKind::Load, ErrorKind::LoadPanicked, ErrorKind::LoadTimeout];
        if let Some(Err(error)) = answer
            && asked.contains(&error.kind())
        {
            self.world.is_over(&self.node, &effect, start, false);
        }
    }

    async fn update(&self, key: usize) {
        let effect = Effect::keys(&[key]);
        let (start, asked) = (self.begins(&effect), self.world.asks(&self.node, key));
        let last = Arc::new(Mutex::new(None));
        let (caller, seen) = (self.clone(), Arc::clone(&last));
        let change = move |(), _, held: Option<Arc<u64>>| {
            let (caller, seen) = (caller.clone(), Arc::clone(&seen));
            async move {
                let held = held.map(|held| *held);
                // What is fresh, or a miss.
                let shown = Shown { stale: true, found: false, from_remote: false };
                if let Some(held) = held {
                    caller.world.shows("what an update changes", &caller.node, key, &asked, held, shown);
                }
                // Born when it is made: what overtakes the update from here on has it made anew.
                let (times, tags, born) =
                    (caller.any_times(), caller.any_tags(key), caller.world.clock.now());
                let value = caller.new_value(Life::default(), tags);
                caller.world.model(|model| model.write_is_over(value, born));
                caller.note(&format!("update of {start} makes k{key} {value} of {held:?}"));
                *seen.lock().unwrap() = held;
                for _ in 0..caller.below(8) {
                    tokio::task::yield_now().await;
                }
                match caller.below(20) {
                    0 => Err::<Loaded<u64>, BoxError>("no change".into()),
                    _ => {
                        let life = caller.life().own(times[0], times[1]);
                        caller.world.model(|model| model.loaded(value, born, life, tags));
                        Ok(answer(Loaded::value(value), times, tags))
                    }
                }
            }
        };
        let update = self.node.cache.update(id(key), &(), change);
        let update = async { update.await.map(|updated| updated.delivery) };
        let answer = self.write("Update", effect, start, &[], update).await;
        let held = *last.lock().unwrap();
        if let (Some(Ok(_)), Some(held), true) = (answer, held, self.world.shape.leases) {
            let verdict = self.world.model(|model| model.updated(held));
            self.world.judge("update", &self.node, key, verdict);
        }
    }

    fn table(&self, called: Tick) -> Table {
        Table { caller: self.clone(), called }
    }

    /// What a loader does. `alone`: no other load may run beside it, unless it has been overtaken.
    fn load(self, key: usize, called: Tick, alone: bool, depth: usize) -> BoxFuture<'static, FromSource> {
        async move { self.clone().loads(key, called, alone, depth).await.comes(&self) }.boxed()
    }

    async fn loads(self, key: usize, called: Tick, alone: bool, depth: usize) -> Made {
        let world = &self.world;
        let alone = alone && depth == 0 && world.shape.is_orderly();
        let born = world.clock.now();
        let (begun, value, verdict) = world.model(|model| model.load_begins(key, called, alone));
        world.judge("a load", &self.node, key, verdict);
        self.note(&format!("load of k{key} begins, {begun}: {value}"));
        let _ends = scopeguard::guard((), |()| world.model(|model| model.load_ends(key, begun)));
        for _ in 0..self.below(12) {
            tokio::task::yield_now().await;
        }
        if world.shape.nested && depth < 2 && self.below(4) == 0 {
            let other = self.below(KEYS);
            let asked = world.asks(&self.node, other);
            self.node.watch.calls(Verb::GetOrSet, 1);
            let inner = self.clone();
            let load = move |(), _| inner.load(other, asked.at, false, depth + 1);
            let answer = self.node.cache.look_or_set_with(id(other), &(), load).boxed().await;
            if let Err(error) = &answer {
                self.node.watch.fails(error);
            }
            self.saw(Verb::GetOrSet, "nested", other, &asked, Some(answer));
        }
        if self.below(5) == 0 && !world.calm.load(SeqCst) {
            let by = self.dice.lock().unwrap().u32(..400);
            world.clock.sleep(MS * by).await;
        }
        let (times, tags) = (self.any_times(), self.any_tags(key));
        let end = self.below(50);
        let answer = match end {
            0..=4 => Err("the source is away".into()),
            5 | 6 => resume_unwind(Box::new("injected panic")),
            7 if !world.calm.load(SeqCst) => {
                world.clock.sleep(MS * 40_000).await;
                Err("at last".into())
            }
            8..=10 => Ok(answer(Loaded::absent(), times, Tagged::default())),
            11 | 12 => Ok(answer(Loaded::do_not_store(Some(value)), times, tags)),
            _ => Ok(answer(Loaded::value(value), times, tags)),
        };
        self.note(&format!("load of k{key} of {begun} ends: {answer:?}"));
        Made { key, begun, born, value, times, tags, answer, is_absent: (8..=10).contains(&end) }
    }
}

/// What a load has made.
struct Made {
    key: usize,
    begun: Tick,
    born: Moment,
    value: u64,
    times: [Option<Duration>; 2],
    tags: Tagged,
    answer: FromSource,
    is_absent: bool,
}

impl Made {
    /// It is the cache's from here on.
    fn comes(self, caller: &Caller) -> FromSource {
        let Self { key, begun, born, value, times, tags, answer, is_absent } = self;
        let life = caller.life().own(times[0], times[1]);
        caller.world.model(|model| {
            model.loaded(value, born, life, tags);
            if is_absent {
                model.absent(key, begun, born, life);
            }
        });
        answer
    }
}

/// An answer with times and tags of its own.
fn answer(mut loaded: Loaded<u64>, [ttl, grace]: [Option<Duration>; 2], tags: Tagged) -> Loaded<u64> {
    if let Some(ttl) = ttl {
        loaded = loaded.ttl(ttl);
    }
    if let Some(grace) = grace {
        loaded = loaded.grace(grace);
    }
    loaded.tags(TAGS.into_iter().zip(tags).filter_map(|(tag, has)| has.then_some(tag)))
}

/// Loaded by this call or another, or what stands in.
const LOADED: Shown = Shown { stale: true, found: false, from_remote: false };

/// The source, as one call meets it.
struct Table {
    caller: Caller,
    called: Tick,
}

impl Table {
    async fn changes(&self, failed: impl FnOnce()) -> Result<(), BoxError> {
        let caller = &self.caller;
        for _ in 0..caller.below(12) {
            tokio::task::yield_now().await;
        }
        match caller.below(10) {
            0 => failed(),
            1 => {
                failed();
                resume_unwind(Box::new("injected panic"));
            }
            _ => return Ok(()),
        }
        Err("the source is away".into())
    }
}

impl Source<String, u64> for Table {
    async fn load(&self, key: &String) -> Result<Loaded<u64>, BoxError> {
        self.caller.clone().load(key[1..].parse()?, self.called, true, 0).await
    }

    async fn save(&self, _: &String, value: &u64) -> Result<(), BoxError> {
        self.changes(|| self.caller.world.model(|model| model.refused(*value))).await
    }

    fn tags(&self, key: &String, _: &u64) -> Vec<Box<str>> {
        let tags = self.caller.world.shape.tags.then(|| TAGS[tag_of(key[1..].parse().unwrap())].into());
        tags.into_iter().collect()
    }

    async fn delete(&self, _: &String) -> Result<(), BoxError> {
        self.changes(|| ()).await
    }
}
