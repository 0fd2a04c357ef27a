//! Asking for leases.

use std::collections::BTreeMap;

use cache_core::{Acquire, Acquired, Holding};

use super::{Refresh, Right, Token, hold_key, right_key};
use crate::{
    Error, ErrorKind, MemcachedProvider,
    error::Fault,
    item::{Item, Kind, entry_id},
    provider::Routed,
    server::{Answer, Under},
    transport::{Command, Look, NO_RESULT, Reply, Seen, When},
};

const NO_CAS: Fault = Fault::new(ErrorKind::Protocol, "the server does not tell versions of items");
const NO_MEMORY: Fault =
    Fault::new(ErrorKind::Refused, "the server has no memory for a lease (option -m, or evictions are off)");

pub(super) struct Wish {
    pub(super) key: String,
    holding: Holding,
    /// Which entry is to be replaced, and where the right to do so lies.
    right: Option<(u64, String)>,
}

/// What the first round has shown of one key.
struct Looked {
    /// `None`: not even a placeholder could be left.
    seen: Option<Seen>,
    life: u64,
    /// The right to refresh, where it was asked for and was to be had.
    right: Option<Refresh>,
    /// A writer keeps the key.
    kept: bool,
    /// The key was looked for twice.
    again: bool,
    /// What is there is no placeholder of ours: none lives for so long.
    lasts: bool,
}

enum Verdict {
    Told(Acquired),
    /// To be replaced by a placeholder: this version.
    Void(u64),
    /// There is nothing, and no memory for a placeholder. Nor does anybody else have the lease, so there is nobody to wait
    /// for.
    Full,
}

impl Looked {
    fn is_of_another_life(&self) -> bool {
        matches!(self.seen.as_ref().map(Seen::kind), Some(Kind::Entry(of, _)) if of != self.life)
    }

    fn verdict(&self, holding: Holding) -> Verdict {
        let still = matches!(holding, Holding::Still(_));
        let Some(seen) = &self.seen else {
            return if still { Verdict::Told(Acquired::Kept) } else { Verdict::Full };
        };
        let granted = |right| match self.kept {
            true => Verdict::Told(Acquired::Kept),
            false => Verdict::Told(Acquired::Granted(Token { life: self.life, cas: seen.cas, right }.seal())),
        };
        match seen.kind() {
            Kind::Placeholder if seen.won => granted(Right::Absent),
            Kind::Placeholder if self.kept => Verdict::Told(Acquired::Kept),
            // Perhaps the placeholder of our own first look: unless we take it over, nobody has the lease. If it is
            // another's, this costs one more load.
            Kind::Placeholder if (self.again || self.lasts) && !still => Verdict::Void(seen.cas),
            Kind::Placeholder => Verdict::Told(Acquired::Held),
            Kind::Entry(of, envelope) if of == self.life => {
                let held = match holding {
                    Holding::Nothing => false,
                    Holding::Entry(id) | Holding::Still(id) => entry_id(&envelope) == Some(id),
                    Holding::Unreadable => true,
                };
                match self.right {
                    _ if !held => Verdict::Told(Acquired::Found(envelope)),
                    Some(refresh) => granted(Right::Refresh(refresh)),
                    None if self.kept => Verdict::Told(Acquired::Kept),
                    None => Verdict::Told(Acquired::Held),
                }
            }
            Kind::Entry(..) | Kind::Life(_) | Kind::Void if self.kept || still => {
                Verdict::Told(Acquired::Kept)
            }
            Kind::Entry(..) | Kind::Life(_) | Kind::Void => Verdict::Void(seen.cas),
        }
    }
}

impl MemcachedProvider {
    pub(super) async fn acquire(&self, wishes: &[Wish], seconds: u32) -> Vec<Result<Acquired, Error>> {
        let mut looked = self.look(wishes, seconds).await;
        self.learn_lives(wishes, &mut looked).await;

        // Tombstones and the like become placeholders, and rights that are of no use go, in a second round.
        let mut results = Vec::with_capacity(wishes.len());
        let (mut second, mut places, mut unused) = (Vec::new(), Vec::new(), Vec::new());
        for (wish, looked) in wishes.iter().zip(looked) {
            let looked = match looked {
                Ok(looked) => looked,
                Err(error) => {
                    results.push(Err(error));
                    continue;
                }
            };
            let verdict = looked.verdict(wish.holding);
            if let (Some(right), Some((_, item))) = (looked.right, &wish.right)
                && !matches!(&verdict, Verdict::Told(Acquired::Granted(lease)) if Token::is_refresh(lease))
            {
                let remove = Command::Remove { key: item.clone(), cas: Some(right.cas) };
                unused.push(self.routed(&wish.key, remove, Under::Exactly(looked.life)));
            }
            results.push(match verdict {
                Verdict::Told(acquired) => Ok(acquired),
                Verdict::Full => Err(self.server(&wish.key).error(NO_MEMORY)),
                Verdict::Void(cas) => {
                    let (key, when) = (wish.key.clone(), When::Cas(cas));
                    let put = Command::Put { key, item: Item::Placeholder, exptime: seconds, when };
                    second.push(self.routed(&wish.key, put, Under::Exactly(looked.life)));
                    places.push(results.len());
                    Ok(Acquired::Held)
                }
            });
        }
        second.append(&mut unused);
        for (index, answer) in places.into_iter().zip(self.run(second).await) {
            results[index] = match answer {
                Ok(Answer { reply: Reply::Done(0), .. }) => Err(self.no_cas(&wishes[index])),
                Ok(Answer { reply: Reply::Done(cas), life, .. }) => {
                    Ok(Acquired::Granted(Token { life, cas, right: Right::Absent }.seal()))
                }
                Ok(_) => Ok(Acquired::Held),
                Err(error) => Err(error),
            };
        }
        results
    }

    pub(super) fn wish(&self, wish: &Acquire<'_>) -> Wish {
        let key = self.key(&wish.key);
        let of = match wish.holding {
            Holding::Nothing => None,
            Holding::Entry(id) | Holding::Still(id) => Some(id.0),
            Holding::Unreadable => Some(0),
        };
        let right = of.map(|of| (of, right_key(&self.0.prefix, &key, of)));
        Wish { key, holding: wish.holding, right }
    }

    /// The first round. The right to refresh is asked for before the entry is read: what is read after that is what the
    /// right is for. A writer's hold is looked for after it: one that comes later changes the version that was read.
    async fn look(&self, wishes: &[Wish], seconds: u32) -> Vec<Result<Looked, Error>> {
        let mut asked: Vec<Routed> = Vec::with_capacity(wishes.len());
        for Wish { key, right, holding } in wishes {
            if let Some((_, item)) = right {
                let (item, when) = (item.clone(), When::Absent);
                let put = Command::Put { key: item, item: Item::Placeholder, exptime: seconds, when };
                asked.push(self.routed(key, put, Under::Known));
            }
            let vivify = (!matches!(holding, Holding::Still(_))).then_some(seconds);
            let look = Some(Look { vivify, ..Look::default() });
            asked.push(self.routed(key, Command::Get { key: key.clone(), look }, Under::Known));
            let hold = Command::Get { key: hold_key(&self.0.prefix, key), look: Some(Look::default()) };
            asked.push(self.routed(key, hold, Under::Known));
        }
        let mut answers = self.run(asked).await.into_iter();
        // Those of a large batch live for longer than this one asks for. What lives for longer still, or for ever, nobody waits for.
        let longest = seconds.saturating_mul(5);
        let looked = wishes.iter().map(|wish| {
            let mut next = || answers.next().unwrap_or_else(|| Err(self.server(&wish.key).error(NO_RESULT)));
            let right = wish.right.as_ref().map(|(of, _)| (*of, next()));
            let answer = next();
            let kept = matches!(next()?.reply, Reply::Item(Some(hold)) if hold.left <= longest);
            let right = match right {
                Some((_, Err(error))) => return Err(error),
                Some((of, Ok(Answer { reply: Reply::Done(cas), .. }))) => Some(Refresh { of, cas }),
                _ => None,
            };
            match answer? {
                Answer { reply: Reply::Item(Some(seen)), .. } if seen.cas == 0 => Err(self.no_cas(wish)),
                Answer { reply: Reply::Item(seen), life, again } => {
                    let lasts = seen.as_ref().is_some_and(|seen| seen.left > longest);
                    Ok(Looked { seen, life, right, kept, again, lasts })
                }
                Answer { life, again, .. } => {
                    Ok(Looked { seen: None, life, right, kept, again, lasts: false })
                }
            }
        });
        looked.collect()
    }

    /// An entry of another life than the one known here may be of a newer one: asks each such server once. Otherwise fresh
    /// entries of other processes would be taken for old ones.
    async fn learn_lives(&self, wishes: &[Wish], looked: &mut [Result<Looked, Error>]) {
        let mut lives: BTreeMap<usize, Result<u64, Error>> = BTreeMap::new();
        for (wish, looked) in wishes.iter().zip(looked) {
            let Ok(found) = looked else { continue };
            if !found.is_of_another_life() {
                continue;
            }
            let home = self.0.home(&wish.key);
            let life = match lives.get(&home) {
                Some(life) => life.clone(),
                None => self.0.servers[home].life_now().await,
            };
            lives.insert(home, life.clone());
            match life {
                Ok(life) => found.life = life,
                Err(error) => *looked = Err(error),
            }
        }
    }

    fn no_cas(&self, wish: &Wish) -> Error {
        self.server(&wish.key).error(NO_CAS)
    }
}
