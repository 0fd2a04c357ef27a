//! Why levels fail, as the caches' events tell it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use traced_cache::{CacheInfo, Event, Observer, with_causes};

/// The last failure of each level, 0 being the nearest, and what an operator may want to put right.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults(Arc<Mutex<Heard>>);

#[derive(Debug, Default)]
struct Heard {
    levels: BTreeMap<u8, String>,
    advice: Vec<String>,
}

impl Faults {
    pub(crate) fn of(&self, level: u8) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).levels.get(&level).cloned()
    }

    pub(crate) fn advice(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).advice.clone()
    }
}

impl Observer for Faults {
    fn event(&self, _: &CacheInfo, event: &Event<'_>) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Level { level, fault: Some(fault), error, .. } => {
                let text = error.map_or_else(|| fault.as_str().to_owned(), with_causes);
                heard.levels.insert(*level, text);
            }
            Event::Advice(text) if !heard.advice.iter().any(|known| known == text) => {
                heard.advice.push((*text).to_owned());
            }
            _ => {}
        }
    }
}
