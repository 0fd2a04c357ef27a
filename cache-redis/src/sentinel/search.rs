//! The search for the master.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, btree_map::Entry},
    sync::Arc,
    time::Duration,
};

use tokio::{
    task::{JoinHandle, JoinSet},
    time::{Instant, sleep_until},
};

use super::{Named, Sentinels, is_answer};
use crate::{
    Error, ErrorKind,
    address::Endpoint,
    connection::{Link, Pushes},
    greet::{Role, Server, late, open},
    settings::Settings,
};

/// How long sentinels that have said nothing are waited for where there is a master that others name: they may know of a
/// later failover.
const PATIENCE: Duration = Duration::from_millis(200);

type Found = (Link, JoinHandle<()>);

enum Step {
    /// What the sentinel of that number says.
    Said(usize, Result<Option<Named>, Error>),
    /// What has come of the server there.
    Opened(Endpoint, Result<Box<Found>, Error>),
}

/// What is known so far.
#[derive(Default)]
struct Search {
    /// Sentinels that have not answered.
    asked: BTreeSet<usize>,
    /// Who is named, with the latest failover by which it is.
    epochs: BTreeMap<Endpoint, u64>,
    /// Of those, who has not answered.
    opening: BTreeSet<Endpoint>,
    /// Of those, who says of itself that it is the master.
    found: BTreeMap<Endpoint, Box<Found>>,
    /// Why one of those is not.
    refusal: Option<Error>,
    /// Sentinels that know no master of that name.
    unknown: Vec<usize>,
    /// Sentinels that could not be asked.
    silent: Vec<(usize, Error)>,
}

impl Sentinels {
    /// Asks all at once and connects to who they say, until there is one who says of itself that it is the master. Of
    /// several, the one of the latest failover, or none: a sentinel that was cut off may still name the old one, which may
    /// be back and not know that it has been replaced. Bounded by the connect timeout: whoever has not answered by then is told of
    /// beside what the others have said.
    ///
    /// Who has heard of a later failover does not go back because those who know of it are slow or away: that takes the
    /// word of most, who count anew after a `SENTINEL REMOVE`, or have undone it.
    pub(crate) async fn connect(
        &self,
        settings: &Arc<Settings>,
        generation: u64,
        last: &Server,
        pushes: &Pushes,
    ) -> Result<Found, Error> {
        let mut steps = JoinSet::new();
        for number in 0..self.at.len() {
            let (all, settings) = (self.clone(), Arc::clone(settings));
            steps.spawn(async move { Step::Said(number, all.ask(number, &settings).await) });
        }
        let mut search = Search { asked: (0..self.at.len()).collect(), ..Search::default() };
        let latest = self.latest().clone();
        let was_replaced = |named: &Named| {
            latest.as_ref().is_some_and(|latest| named.epoch < latest.epoch && named.at != latest.at)
        };
        let over = Instant::now() + settings.connect_timeout;
        let mut enough = over;
        loop {
            let step = tokio::select! {
                biased;
                step = steps.join_next() => step,
                () = sleep_until(enough) => break,
            };
            match step {
                None => break,
                Some(Err(_gone)) => {
                    return Err(Error::new(ErrorKind::NoRuntime, "the runtime ended while connecting"));
                }
                Some(Ok(Step::Opened(at, opened))) => search.opened(at, opened),
                Some(Ok(Step::Said(number, said))) => {
                    if let Some(at) = search.said(number, said) {
                        let (settings, last, pushes) = (Arc::clone(settings), last.clone(), pushes.clone());
                        steps.spawn(async move {
                            let from = at.clone();
                            let opened = open(&settings, from, Role::Master, generation, &last, &pushes);
                            Step::Opened(at, opened.await.map(Box::new))
                        });
                    }
                }
            }
            enough = match search.master() {
                Some(_) if search.asked.is_empty() => break,
                Some(master) if !was_replaced(&master) => enough.min(Instant::now() + PATIENCE),
                _ => over,
            };
        }
        let Some(master) = search.master() else { return Err(search.failed(self, settings)) };
        let most = search.have_named(self.at.len()) * 2 > self.at.len();
        if was_replaced(&master) && !most {
            return Err(search.outdated(&master.at, self, settings));
        }
        let found = search.found.remove(&master.at);
        if most || latest.is_none_or(|latest| latest.epoch <= master.epoch) {
            *self.latest() = Some(master);
        }
        found.map(|found| *found).ok_or_else(|| search.failed(self, settings))
    }

    /// Why no master was found. `unknown`: those who know none of that name.
    fn nobody(&self, unknown: &[usize], mut silent: Vec<(usize, Error)>) -> Error {
        let fix = "use the name of their `sentinel monitor`";
        if silent.is_empty() {
            let names: Vec<String> = self.at.iter().map(ToString::to_string).collect();
            let fix = format!("the sentinels at {} know no master of that name: {fix}", names.join(", "));
            return Error::config("url", self.url(), fix);
        }
        // Those who are away may know it.
        let strange = format!("it knows no master {:?}: {fix}", self.master);
        let strange = |number: &usize| (*number, Error::new(ErrorKind::Unavailable, &*strange));
        silent.extend(unknown.iter().map(strange));
        silent.sort_by_key(|(number, _)| *number);
        let answers = silent.iter().any(|(_, error)| is_answer(error));
        let telling = silent.iter().filter(|(_, error)| is_answer(error) == answers);
        let kinds: HashSet<ErrorKind> = telling.map(|(_, error)| error.kind()).collect();
        let kind = match kinds.into_iter().collect::<Vec<_>>().as_slice() {
            [kind] => *kind,
            _ => ErrorKind::Connect,
        };
        let setting = match kind {
            ErrorKind::Auth => silent.iter().find_map(|(_, error)| error.setting()),
            _ => None,
        };
        let each = self.each(&silent, setting);
        let message = format!("no sentinel says where the master is: {each}");
        let url = self.url();
        let text = match kind {
            ErrorKind::Auth => return Error::logins(setting, message),
            ErrorKind::Server => format!("url = {url}: {message}; is that a sentinel?"),
            ErrorKind::Connect | ErrorKind::Timeout => {
                format!("url = {url}: {message}; start one, or correct its host and port")
            }
            _ => format!("url = {url}: {message}"),
        };
        Error::new(kind, text)
    }

    /// As far as it may be shown.
    fn url(&self) -> String {
        format!("redis+sentinel://***/{}", self.master)
    }

    /// Who could not be asked, and why; without `setting`, where that is told of all.
    fn each(&self, silent: &[(usize, Error)], setting: Option<&str>) -> String {
        let each = silent.iter().map(|(number, error)| {
            let at = &self.at[*number];
            format!("{at} ({})", error.at(at, setting))
        });
        each.collect::<Vec<_>>().join(", ")
    }
}

impl Search {
    /// Who is named for the first time.
    fn said(&mut self, number: usize, said: Result<Option<Named>, Error>) -> Option<Endpoint> {
        self.asked.remove(&number);
        match said {
            Ok(Some(Named { at, epoch })) => match self.epochs.entry(at.clone()) {
                Entry::Vacant(new) => {
                    new.insert(epoch);
                    self.opening.insert(at.clone());
                    return Some(at);
                }
                Entry::Occupied(mut known) => {
                    known.insert(epoch.max(*known.get()));
                }
            },
            Ok(None) => self.unknown.push(number),
            Err(error) => self.silent.push((number, error)),
        }
        None
    }

    fn opened(&mut self, at: Endpoint, opened: Result<Box<Found>, Error>) {
        self.opening.remove(&at);
        match opened {
            Ok(found) => {
                self.found.insert(at, found);
            }
            // What one who is there says is told, not that another one is not.
            Err(error) if !self.refusal.as_ref().is_some_and(is_answer) => self.refusal = Some(error),
            Err(_) => {}
        }
    }

    /// Who was found of those that the latest failover has made the master, and which one that is.
    fn master(&self) -> Option<Named> {
        let latest = *self.epochs.values().max()?;
        let (at, _) =
            self.epochs.iter().find(|(at, epoch)| **epoch == latest && self.found.contains_key(*at))?;
        Some(Named { at: at.clone(), epoch: latest })
    }

    /// How many sentinels have named somebody.
    fn have_named(&self, all: usize) -> usize {
        all - self.asked.len() - self.unknown.len() - self.silent.len()
    }

    /// Why there is no master.
    fn failed(mut self, sentinels: &Sentinels, settings: &Settings) -> Error {
        self.give_up(sentinels, settings);
        self.refusal.unwrap_or_else(|| sentinels.nobody(&self.unknown, self.silent))
    }

    /// Why the one who is named is not taken for it.
    fn outdated(mut self, master: &Endpoint, sentinels: &Sentinels, settings: &Settings) -> Error {
        self.give_up(sentinels, settings);
        self.refusal.unwrap_or_else(|| {
            let (name, away) = (&sentinels.master, sentinels.each(&self.silent, None));
            let text = format!(
                "{master} was replaced as the master {name:?}, and who may know by whom is away: {away}"
            );
            Error::new(ErrorKind::Unavailable, text)
        })
    }

    /// Whoever has not answered is late.
    fn give_up(&mut self, sentinels: &Sentinels, settings: &Settings) {
        if let (None, Some(at)) = (&self.refusal, self.opening.first()) {
            let who = format_args!("the master {:?} at {at}", sentinels.master);
            self.refusal = Some(late(settings, who));
        }
        let asked = std::mem::take(&mut self.asked);
        self.silent.extend(asked.into_iter().map(|number| (number, late(settings, "it"))));
    }
}
