//! Taking the leases of remote levels before a load begins, and keeping them while it runs.

use std::{convert::Infallible, sync::Arc, time::Duration};

use bytes::Bytes;
use futures::{
    FutureExt,
    future::{Either, select},
};
use scopeguard::ScopeGuard;

use crate::{
    Acquire, Acquired, Begun, Entry, Holding, Lease, Moment, RawKey, Value, envelope,
    flight::Flight,
    inner::{Inner, Seen},
    returning::Lent,
    slots::Ticket,
    tier::{Failure, Tier},
    within::within,
};

/// Life of a lease. Renewed while its load runs, so that a process that dies keeps others waiting no longer than this.
pub(crate) const LEASE: Duration = Duration::from_secs(3);
/// Life of a writer's hold, renewed likewise: a process that dies while it writes the source keeps others from storing no
/// longer than this, and its write is over by then.
pub(crate) const HOLD: Duration = Duration::from_secs(5);
/// How long to wait for another process's load where the policy sets neither a wait budget nor a hard limit.
pub(crate) const LONGEST_WAIT: Duration = Duration::from_secs(30);
const FIRST_PAUSE: Duration = Duration::from_millis(3);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// How long who waits for another process pauses before it asks again: a share of what it has waited already, so that the
/// answer comes at most that much late.
pub(crate) fn pause_after(waited: Duration) -> Duration {
    (waited / 16).clamp(FIRST_PAUSE, LONGEST_PAUSE)
}

/// The leases that one fill holds: one for each level.
pub(crate) type Rights = Vec<Right>;

/// The lease of one level.
#[derive(Clone)]
pub(crate) struct Right {
    pub(crate) level: u8,
    pub(crate) lease: Lease,
    /// When it was granted, the level had nothing of the key.
    pub(crate) of_nothing: bool,
}

impl Right {
    /// Of a level that may have something of the key.
    pub(crate) fn new(level: u8, lease: Lease) -> Self {
        Self { level, lease, of_nothing: false }
    }
}

/// One key on its way to the right to be loaded.
pub(crate) struct Wish<'k, T> {
    pub(crate) key: RawKey<'k>,
    pub(crate) rights: Rights,
    /// Another process has filled it meanwhile.
    pub(crate) found: Option<Seen<T>>,
    /// Opened before it was last asked for again: what was found then may be kept under this, whatever has become of the key
    /// before. Where the store tells of what others fill, their fill itself has revoked all that was open.
    pub(crate) ticket: Option<Ticket<T>>,
    /// A writer keeps it: what is loaded now is stored nowhere.
    pub(crate) kept: bool,
    holding: Holding,
    /// The next level to ask.
    at: u8,
    tries: u8,
}

/// Wishes that wait for other processes, and since when.
pub(crate) struct Standing {
    since: Moment,
    /// When leases that are held meanwhile were renewed.
    renewed: Moment,
}

impl Standing {
    pub(crate) fn new(since: Moment) -> Self {
        Self { since, renewed: since }
    }
}

impl<'k, T> Wish<'k, T> {
    pub(crate) fn new(key: RawKey<'k>, held: Option<&Entry<T>>, rights: Rights) -> Self {
        let holding = held.map_or(Holding::Nothing, |entry| Holding::Entry(entry.id));
        Self { key, rights, found: None, ticket: None, kept: false, holding, at: 0, tries: 0 }
    }

    /// For a load that replaces whatever there is.
    pub(crate) fn replacing(key: RawKey<'k>, rights: Rights) -> Self {
        Self { holding: Holding::Unreadable, ..Self::new(key, None, rights) }
    }

    /// For one level only.
    pub(crate) fn at(key: RawKey<'k>, held: Option<&Entry<T>>, level: u8) -> Self {
        Self { at: level, ..Self::new(key, held, Rights::new()) }
    }
}

impl<T: Value> Inner<T> {
    /// Asks every level that has leases once. Wishes that stay open wait for somebody else.
    pub(crate) async fn ask(self: &Arc<Self>, wishes: &mut [Wish<'_, T>], begun: &Begun) {
        for tier in self.tiers.iter() {
            for wish in wishes.iter_mut().filter(|w| w.at == tier.index) {
                let has = wish.rights.iter().any(|right| right.level == tier.index);
                // A level whose epoch is unknown did not answer just now, and could not be filled.
                let unknown = tier.stamp().epoch == 0;
                if !tier.leases() || has || unknown || tier.masks(wish.key.id) {
                    wish.at += 1;
                }
            }
            if wishes.iter().any(|w| w.found.is_none() && w.at == tier.index) {
                self.ask_level(tier, wishes, begun).await;
            }
        }
    }

    pub(crate) async fn ask_level(self: &Arc<Self>, tier: &Tier, wishes: &mut [Wish<'_, T>], begun: &Begun) {
        loop {
            let mut asking: Vec<_> =
                wishes.iter_mut().filter(|w| w.found.is_none() && w.at == tier.index).collect();
            let wanted: Vec<_> = asking.iter().map(|w| Acquire { key: w.key, holding: w.holding }).collect();
            if wanted.is_empty() {
                return;
            }
            let (mut again, told) = (false, tier.told_again());
            for (wish, answer) in asking.iter_mut().zip(self.acquire_many(tier, &wanted).await) {
                match answer {
                    Ok(Acquired::Granted(lease)) => {
                        let of_nothing = wish.holding == Holding::Nothing;
                        wish.rights.push(Right { level: tier.index, lease, of_nothing });
                        wish.at += 1;
                    }
                    Ok(Acquired::Held) => {}
                    Ok(Acquired::Kept) => {
                        wish.kept = true;
                        wish.at += 1;
                    }
                    // It has yet to hear that this is gone.
                    Ok(Acquired::Found(_)) if tier.masks(wish.key.id) || tier.told_again() != told => {
                        wish.at += 1;
                    }
                    Ok(Acquired::Found(bytes)) => {
                        again |= self.found(tier, wish, &bytes, begun).await;
                    }
                    // Without its lease the level is not filled.
                    Err(_) => wish.at += 1,
                }
            }
            if !again {
                return;
            }
        }
    }

    /// Asks a level for leases, once those of these keys that this process gives back are there.
    pub(crate) async fn acquire_many(
        &self,
        tier: &Tier,
        wanted: &[Acquire<'_>],
    ) -> Vec<std::result::Result<Acquired, Failure>> {
        if self.returning.is_any() {
            let back = self.returning.are_back(wanted.iter().map(|wish| wish.key.hash));
            // Boxed, as it is hardly ever waited for. Too late: it is asked for like anybody's.
            let _ = self.around.clock.timeout(tier.budget(), back).boxed().await;
            let left = self.returning.take_left(wanted.iter().map(|wish| wish.key.hash), self.now());
            if !left.is_empty() {
                self.release(&left).boxed().await;
            }
        }
        tier.acquire_many(&self.around, wanted, LEASE).await
    }

    /// Takes what another process has stored, or says that it is of no use and the level should be asked again.
    async fn found(&self, tier: &Tier, wish: &mut Wish<'_, T>, bytes: &Bytes, begun: &Begun) -> bool {
        if let Some(entry) = self.readable(wish.key, tier, bytes, begun).await {
            wish.found = Some(Seen { entry, level: tier.index });
            return false;
        }
        wish.holding = match envelope::open(wish.key, bytes) {
            Ok((header, _)) => Holding::Entry(header.id),
            Err(_) => Holding::Unreadable,
        };
        wish.tries += 1;
        if wish.tries > 3 {
            wish.at += 1;
            return false;
        }
        true
    }

    /// Asks for one and waits for it, unless its load is cancelled. That counts between questions only: the answer to one
    /// may be a lease, which has to be given back.
    pub(crate) async fn stand_alone(
        self: &Arc<Self>,
        wish: &mut Wish<'_, T>,
        begun: &Begun,
        flight: &Flight<T>,
    ) {
        let wishes = std::slice::from_mut(wish);
        let mut standing = Standing::new(self.now());
        self.ask(wishes, begun).await;
        self.stand(wishes, begun, &mut standing, || flight.is_aborted()).await;
    }

    /// Asks again and again for wishes that all have to wait, until one of them has its rights or an answer. `false`: the
    /// wait budget is over, and they load without the right to fill the level that somebody else is about to fill; or
    /// whoever wished has given up.
    pub(crate) async fn stand(
        self: &Arc<Self>,
        wishes: &mut [Wish<'_, T>],
        begun: &Begun,
        standing: &mut Standing,
        given_up: impl Fn() -> bool + Send,
    ) -> bool {
        let policy = self.policy();
        let budget = policy.wait.or(policy.hard).unwrap_or(LONGEST_WAIT);
        while wishes.iter().all(|wish| self.waits(wish)) {
            let waited = self.now().since(standing.since);
            if waited >= budget {
                return false;
            }
            self.around.clock.sleep(pause_after(waited)).await;
            if given_up() {
                return false;
            }
            if self.now().since(standing.renewed) >= LEASE / 3 {
                standing.renewed = self.now();
                // Of nearer levels, while a deeper one is waited for.
                let rights: Vec<_> = wishes.iter().map(|wish| (wish.key, wish.rights.clone())).collect();
                self.renew(&rights, LEASE).await;
            }
            wishes.iter_mut().for_each(|wish| wish.ticket = Some(self.slots.open(wish.key)));
            self.ask(wishes, begun).await;
        }
        true
    }

    /// Whether this wish waits for another process.
    pub(crate) fn waits(&self, wish: &Wish<'_, T>) -> bool {
        wish.found.is_none() && usize::from(wish.at) < self.tiers.len()
    }

    /// Waits for work, and keeps leases alive until it has ended. Its caller pins it: an argument that is pinned here would lie
    /// in the future twice.
    pub(crate) async fn keeping<W: Future + Unpin>(
        &self,
        rights: &[(RawKey<'_>, Rights)],
        life: Duration,
        work: W,
    ) -> W::Output {
        if rights.iter().all(|(_, rights)| rights.is_empty()) {
            return work.await;
        }
        // Boxed: what needs no lease, as all that stays in memory, would carry its size.
        match select(work, self.keep_alive(rights, life).boxed()).await {
            Either::Left((ended, _)) => ended,
            Either::Right((never, _)) => match never {},
        }
    }

    /// Keeps leases alive for as long as it is polled.
    async fn keep_alive(&self, rights: &[(RawKey<'_>, Rights)], life: Duration) -> Infallible {
        loop {
            self.around.clock.sleep(life / 3).await;
            self.renew(rights, life).await;
        }
    }

    async fn renew(&self, rights: &[(RawKey<'_>, Rights)], life: Duration) {
        for tier in self.tiers.iter().filter(|t| t.leases()) {
            let held = at_level(rights, tier.index);
            if !held.is_empty() {
                tier.renew_many(&self.around, &held, life).await;
            }
        }
    }

    /// Gives leases back that no fill has used, without making anybody wait for it.
    pub(crate) fn give_back(self: &Arc<Self>, key: RawKey<'_>, rights: Rights) {
        if !rights.is_empty() {
            self.give_back_many(vec![(key, rights)]);
        }
    }

    /// The same for many keys, one round trip per level.
    pub(crate) fn give_back_many(self: &Arc<Self>, rights: Vec<(RawKey<'_>, Rights)>) {
        let lent: Vec<_> = rights
            .into_iter()
            .filter(|(_, rights)| !rights.is_empty())
            .map(|(key, rights)| Lent { id: key.id.into(), hash: key.hash, rights })
            .collect();
        if lent.is_empty() {
            return;
        }
        let inner = Arc::clone(self);
        let on_the_way = self.returning.begin(lent.iter().map(|lent| lent.hash).collect());
        // Where the task is dropped, or never begins, its runtime ends: whoever asks next is on another one.
        let giving = scopeguard::guard((lent, on_the_way), move |(lent, _ends)| {
            inner.returning.leave(lent, inner.now());
        });
        let inner = Arc::clone(self);
        self.spawn(within(self.observers().ambient(), async move {
            inner.release(&giving.0).await;
            ScopeGuard::into_inner(giving);
        }));
    }

    /// Ends leases, one round trip per level.
    async fn release(&self, lent: &[Lent]) {
        let rights: Vec<_> =
            lent.iter().map(|lent| (self.rekey(&lent.id, lent.hash), lent.rights.clone())).collect();
        for tier in &self.tiers {
            let held = at_level(&rights, tier.index);
            if !held.is_empty() {
                tier.release_many(&self.around, &held).await;
            }
        }
    }
}

fn at_level<'k>(rights: &[(RawKey<'k>, Rights)], level: u8) -> Vec<(RawKey<'k>, Lease)> {
    rights
        .iter()
        .flat_map(|(key, rights)| rights.iter().map(move |right| (*key, right)))
        .filter(|(_, right)| right.level == level)
        .map(|(key, right)| (key, right.lease.clone()))
        .collect()
}
