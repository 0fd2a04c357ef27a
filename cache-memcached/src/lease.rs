//! Leases: the meta protocol's vivify, compare-and-swap and win flags.
//!
//! The right to fill a key that is absent is a placeholder in its place; the right to fill one that is not (a refresh) is
//! an item of its own, named after the key and the entry to replace: the server gives its own "win" for a live item once
//! only, and never again if the winner dies. Either way the fill replaces exactly the version that the lease saw, so
//! whatever is put or removed in between refuses it, and no write of anybody has to think of leases.

mod acquire;
mod asking;
mod keeping;

use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::{BufMut, BytesMut};
use cache_core::{Acquire, Acquired, BoxError, Fill, Lease, Leases, RawKey, is_written};
use xxhash_rust::xxh3::{xxh3_128, xxh3_128_with_seed};

use self::{asking::Asking, keeping::Keeping};
use crate::{
    Error, ErrorKind, MemcachedProvider,
    item::{Item, TOMBSTONE_SECONDS},
    provider::Routed,
    server::{Answer, Server, Under},
    transport::{Command, Look, NO_RESULT, Reply, When},
    wire::exptime,
};

/// What a [`Lease`] holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Token {
    /// The server's life.
    life: u64,
    /// The version that the fill is to replace.
    cas: u64,
    right: Right,
}

/// What the right to fill is, besides that version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Right {
    /// Nothing: the placeholder is the lease.
    Absent,
    Refresh(Refresh),
    /// A writer's hold: the version of its item.
    Hold(u64),
}

/// A version that no item has: where two writers met, neither fills.
const NEVER: u64 = 0;

/// The right to replace an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Refresh {
    /// The entry's id, 0 for one that cannot be read.
    of: u64,
    /// The version of the item that is the right.
    cas: u64,
}

impl Token {
    fn seal(self) -> Lease {
        let mut out = BytesMut::with_capacity(32);
        out.put_u64_le(self.life);
        out.put_u64_le(self.cas);
        match self.right {
            Right::Absent => {}
            Right::Hold(cas) => out.put_u64_le(cas),
            Right::Refresh(Refresh { of, cas }) => {
                out.put_u64_le(of);
                out.put_u64_le(cas);
            }
        }
        Lease(out.freeze())
    }

    /// `None`: not one of ours.
    fn open(lease: &Lease) -> Option<Self> {
        let mut numbers = [0; 4];
        let (words, rest) = lease.0.as_chunks();
        if !rest.is_empty() || words.len() > numbers.len() {
            return None;
        }
        for (number, word) in numbers.iter_mut().zip(words) {
            *number = u64::from_le_bytes(*word);
        }
        let [life, cas, of, right] = numbers;
        match words.len() {
            2 => Some(Self { life, cas, right: Right::Absent }),
            3 => Some(Self { life, cas, right: Right::Hold(of) }),
            4 => Some(Self { life, cas, right: Right::Refresh(Refresh { of, cas: right }) }),
            _ => None,
        }
    }

    fn is_refresh(lease: &Lease) -> bool {
        Self::open(lease).is_some_and(|token| matches!(token.right, Right::Refresh(_)))
    }

    /// The item that is the lease, and its version.
    fn item(&self, key: String, prefix: &str) -> (String, u64) {
        match self.right {
            Right::Absent => (key, self.cas),
            Right::Hold(cas) => (hold_key(prefix, &key), cas),
            Right::Refresh(Refresh { of, cas }) => (right_key(prefix, &key, of), cas),
        }
    }
}

/// Where the right to replace an entry lies. No key of a cache looks like it: those have a colon behind the prefix.
fn right_key(prefix: &str, key: &str, of: u64) -> String {
    format!("{prefix}~lease-{:032x}", xxh3_128_with_seed(key.as_bytes(), of))
}

/// Where a writer's hold of a key lies.
fn hold_key(prefix: &str, key: &str) -> String {
    format!("{prefix}~hold-{:032x}", xxh3_128(key.as_bytes()))
}

/// Rounded up, and one second on top: the server counts whole seconds of its own, and ends 2 s after 1 to 2 s.
fn lease_seconds(life: Duration) -> u32 {
    const MOST: u64 = 30 * 24 * 60 * 60;
    let seconds = life.as_secs().saturating_add(u64::from(life.subsec_nanos() > 0)).saturating_add(1);
    u32::try_from(seconds.min(MOST)).unwrap_or(0)
}

impl MemcachedProvider {
    fn routed(&self, key: &str, command: Command, under: Under) -> Routed {
        Routed { home: self.0.home(key), command, under }
    }

    fn server(&self, key: &str) -> &Server {
        &self.0.servers[self.0.home(key)]
    }
}

#[async_trait]
impl Leases for MemcachedProvider {
    async fn acquire_many(&self, wanted: &[Acquire<'_>], life: Duration) -> Vec<Result<Acquired, BoxError>> {
        let answers = Asking::new(self, wanted, life).await;
        answers.into_iter().map(|answer| answer.map_err(Into::into)).collect()
    }

    async fn fill_many(&self, fills: &[Fill<'_>]) -> Vec<Result<bool, BoxError>> {
        let now = SystemTime::now();
        let mut results: Vec<Result<bool, Error>> = fills.iter().map(|_| Ok(false)).collect();
        let tokens: Vec<Option<Token>> = fills.iter().map(|fill| Token::open(&fill.lease)).collect();
        let keys: Vec<String> = fills.iter().map(|fill| self.key(&fill.put.key)).collect();

        // A refresh ends its right first: one that has ended already refuses, though nothing has overtaken it.
        let (mut holds, mut ended, mut places) = (vec![true; fills.len()], Vec::new(), Vec::new());
        for (index, token) in tokens.iter().enumerate() {
            if let Some(token) = token.filter(|token| matches!(token.right, Right::Refresh(_))) {
                let (key, cas) = token.item(keys[index].clone(), &self.0.prefix);
                let remove = Command::Remove { key, cas: Some(cas) };
                ended.push(self.routed(&keys[index], remove, Under::Exactly(token.life)));
                places.push(index);
            }
        }
        for (index, answer) in places.into_iter().zip(self.run(ended).await) {
            holds[index] = matches!(answer, Ok(Answer { reply: Reply::Done(_), .. }));
            if let Err(error) = answer {
                results[index] = Err(error);
            }
        }

        let (mut stores, mut places) = (Vec::new(), Vec::new());
        for (index, fill) in fills.iter().enumerate() {
            let Some(token) = tokens[index].filter(|token| holds[index] && token.cas != NEVER) else {
                continue;
            };
            let (key, bytes) = (keys[index].clone(), fill.put.bytes.clone());
            if bytes.len() > self.0.value_max {
                results[index] = Err(self.too_large(bytes.len()));
                continue;
            }
            let (item, exptime) = (Item::Entry(token.life, bytes), exptime(fill.put.ttl, now));
            let put = Command::Put { key, item, exptime, when: When::Cas(token.cas) };
            stores.push(self.routed(&keys[index], put, Under::Exactly(token.life)));
            places.push(index);
        }
        for (index, answer) in places.into_iter().zip(self.run(stores).await) {
            results[index] = answer.map(|answer| matches!(answer.reply, Reply::Done(_)));
        }

        // A hold ends with its fill; should that fail, it ends by time.
        let mut over = Vec::new();
        for (index, (result, token)) in results.iter().zip(&tokens).enumerate() {
            if let (Ok(true), Some(token @ Token { right: Right::Hold(_), .. })) = (result, token) {
                let (key, cas) = token.item(keys[index].clone(), &self.0.prefix);
                let remove = Command::Remove { key, cas: Some(cas) };
                over.push(self.routed(&keys[index], remove, Under::Exactly(token.life)));
            }
        }
        self.run(over).await;

        // A writer's value: what was there before it may lie at the other home as well.
        let saved = |index: usize| {
            matches!(tokens[index], Some(Token { right: Right::Hold(_), .. }))
                || matches!(results[index], Ok(true)) && is_written(&fills[index].put.bytes)
        };
        let keys_saved: Vec<_> =
            fills.iter().map(|fill| &fill.put.key).enumerate().filter(|(index, _)| saved(*index)).collect();
        self.retire(keys_saved.into_iter(), &mut results).await;

        // What is too large, or refused for want of memory, leaves no lease behind, nor the value that it was to replace.
        let (mut cleared, mut ends) = (Vec::new(), Vec::new());
        for (index, (result, token)) in results.iter().zip(&tokens).enumerate() {
            if let (Err(error), Some(token)) = (result, token)
                && matches!(error.kind(), ErrorKind::TooLarge | ErrorKind::Refused)
            {
                let remove = Command::Remove { key: keys[index].clone(), cas: Some(token.cas) };
                ends.push(self.routed(&keys[index], remove, Under::Exactly(token.life)));
                cleared.push(index);
            }
        }
        for (index, answer) in cleared.into_iter().zip(self.run(ends).await) {
            if let Err(error) = answer {
                results[index] = Err(error);
            }
        }
        results.into_iter().map(|result| result.map_err(Into::into)).collect()
    }

    /// The hold is there before the tombstone: whoever has asked for a lease in between finds another version.
    async fn hold_many(&self, held: &[RawKey<'_>], life: Duration) -> Vec<Result<Lease, BoxError>> {
        let exptime = lease_seconds(life);
        let keys: Vec<String> = held.iter().map(|key| self.key(key)).collect();
        let mut keeping = Keeping::new(self, &keys);
        let hold = |key: &String, item, when| {
            let put = Command::Put { key: hold_key(&self.0.prefix, key), item, exptime, when };
            self.routed(key, put, Under::Known)
        };
        let mut commands = Vec::with_capacity(keys.len() * 2);
        for key in &keys {
            commands.push(hold(key, keeping.item(), When::Absent));
            let (item, when) = (Item::Tombstone, When::Always);
            let put = Command::Put { key: key.clone(), item, exptime: TOMBSTONE_SECONDS, when };
            commands.push(self.routed(key, put, Under::Known));
        }
        let mut answers = self.run(commands).await.into_iter();
        let mut results = Vec::with_capacity(keys.len());
        let (mut met, mut places) = (Vec::new(), Vec::new());
        for key in &keys {
            let mut next = || answers.next().unwrap_or_else(|| Err(self.server(key).error(NO_RESULT)));
            results.push(match (next(), next()) {
                (Ok(kept), Ok(put)) => match (kept.reply, put.reply) {
                    (Reply::Done(hold), Reply::Done(cas)) => {
                        Ok(Token { life: put.life, cas, right: Right::Hold(hold) })
                    }
                    (Reply::Refused, Reply::Done(_)) => {
                        met.push(hold(key, Item::Placeholder, When::Always));
                        places.push(results.len());
                        Ok(Token { life: put.life, cas: NEVER, right: Right::Hold(NEVER) })
                    }
                    _ => Err(self.server(key).error(NO_RESULT)),
                },
                (Err(error), _) | (_, Err(error)) => Err(error),
            });
        }
        // Another writer has it: kept on for this one as well.
        for (place, answer) in places.into_iter().zip(self.run(met).await) {
            results[place] = match (&results[place], answer) {
                (Ok(token), Ok(Answer { reply: Reply::Done(hold), .. })) => {
                    Ok(Token { right: Right::Hold(hold), ..*token })
                }
                (_, Ok(_)) => Err(self.server(&keys[place]).error(NO_RESULT)),
                (_, Err(error)) => Err(error),
            };
        }
        self.retire(held.iter().enumerate(), &mut results).await;
        keeping.is_answered = true;
        results.into_iter().map(|result| result.map(Token::seal).map_err(Into::into)).collect()
    }

    async fn renew_many(&self, leases: &[(RawKey<'_>, Lease)], life: Duration) -> Vec<Result<(), BoxError>> {
        let seconds = lease_seconds(life);
        let look = |wanted: &[Held], touch| {
            let look = Some(Look { touch, ..Look::default() });
            let get = |held: &Held| Command::Get { key: held.item.clone(), look };
            self.run(wanted.iter().map(|held| self.routed(&held.key, get(held), held.under)).collect())
        };
        let mut results: Vec<Result<(), Error>> = leases.iter().map(|_| Ok(())).collect();
        let mut wanted = self.held(leases.iter().map(|(key, lease)| (self.key(key), lease)));

        // Looks before it touches: what has overtaken the lease must not get the lease's short life.
        let mut answers = look(&wanted, None).await.into_iter();
        wanted.retain(|held| match answers.next() {
            Some(Ok(answer)) => held.is_in(&answer),
            Some(Err(error)) => {
                results[held.index] = Err(error);
                false
            }
            None => false,
        });
        let answers = look(&wanted, Some(seconds)).await;
        let mut mend = Vec::new();
        for (held, answer) in wanted.into_iter().zip(answers) {
            match answer {
                // Overtaken in between. An entry that ends early is a miss early; a tombstone has to stay.
                Ok(answer) => {
                    if matches!(&answer.reply, Reply::Item(Some(seen)) if seen.is_tombstone()) {
                        mend.push(held);
                    }
                }
                Err(error) => results[held.index] = Err(error),
            }
        }
        look(&mend, Some(TOMBSTONE_SECONDS)).await;
        results.into_iter().map(|result| result.map_err(Into::into)).collect()
    }

    async fn release_many(&self, leases: &[(RawKey<'_>, Lease)]) -> Vec<Result<(), BoxError>> {
        let mut results: Vec<Result<(), BoxError>> = leases.iter().map(|_| Ok(())).collect();
        let held = self.held(leases.iter().map(|(key, lease)| (self.key(key), lease)));
        for (held, answer) in held.iter().zip(self.release(&held).await) {
            if let Err(error) = answer {
                results[held.index] = Err(error.into());
            }
        }
        results
    }
}

/// A lease as an item.
struct Held {
    index: usize,
    /// Decides which server it is on.
    key: String,
    item: String,
    cas: u64,
    under: Under,
}

impl Held {
    fn is_in(&self, answer: &Answer) -> bool {
        matches!(&answer.reply, Reply::Item(Some(seen)) if seen.cas == self.cas)
    }
}

impl MemcachedProvider {
    /// Those that are ours, by their wire keys.
    fn held<'a>(&self, leases: impl Iterator<Item = (String, &'a Lease)>) -> Vec<Held> {
        let of = |(index, (key, lease)): (usize, (String, &Lease))| {
            let token = Token::open(lease)?;
            let (item, cas) = token.item(key.clone(), &self.0.prefix);
            Some(Held { index, key, item, cas, under: Under::Exactly(token.life) })
        };
        leases.enumerate().filter_map(of).collect()
    }

    async fn release(&self, held: &[Held]) -> Vec<Result<Answer, Error>> {
        let remove = |held: &Held| Command::Remove { key: held.item.clone(), cas: Some(held.cas) };
        self.run(held.iter().map(|held| self.routed(&held.key, remove(held), held.under)).collect()).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_and_strangers_do_not() {
        let token = Token { life: 1, cas: u64::MAX, right: Right::Absent };
        let refresh = Token { right: Right::Refresh(Refresh { of: 0, cas: 3 }), ..token };
        for token in [token, refresh, Token { right: Right::Hold(7), ..token }] {
            assert_eq!(Token::open(&token.seal()), Some(token));
        }
        for len in [0, 1, 8, 15, 17, 31, 33, 40, 64] {
            assert_eq!(Token::open(&Lease(vec![0; len].into())), None, "{len}");
        }
    }

    #[test]
    fn lease_time_is_never_shorter_than_asked() {
        for (asked, seconds) in [(0, 1), (1, 2), (1_000, 2), (1_001, 3), (10_000, 11)] {
            assert_eq!(lease_seconds(Duration::from_millis(asked)), seconds);
        }
        assert_eq!(lease_seconds(Duration::MAX), 2_592_000);
    }
}
