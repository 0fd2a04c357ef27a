//! Why levels fail, according to the caches' events.

use std::sync::{Arc, Mutex, PoisonError};

use traced_cache::{CacheInfo, Description, Event, LevelFault, Observer, with_causes};

use crate::session::LevelAt;

/// The last failure of each provider, and its advice for operators. Kept by provider, not by level: a verb may use a cache of
/// its own that has the remote levels only, where they have other numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults(Arc<Mutex<Heard>>);

#[derive(Debug, Default)]
struct Heard {
    providers: Vec<(Description, String)>,
    advice: Vec<String>,
}

impl Faults {
    pub(crate) fn of(&self, level: &LevelAt) -> Option<String> {
        let (at, heard) = (level.provider.describe(), self.0.lock().unwrap_or_else(PoisonError::into_inner));
        heard.providers.iter().find(|(known, _)| *known == at).map(|(_, text)| text.clone())
    }

    pub(crate) fn advice(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).advice.clone()
    }
}

impl Observer for Faults {
    fn event(&self, cache: &CacheInfo, event: &Event<'_>) {
        let mut heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Event::Level { level, fault: Some(fault), error, .. } => {
                let text = match (*error, *fault) {
                    (Some(error), _) => with_causes(error),
                    (None, LevelFault::Timeout) => "no answer within its budget".to_owned(),
                    (None, fault) => fault.as_str().to_owned(),
                };
                let Some(at) = cache.levels().get(usize::from(*level)) else { return };
                heard.providers.retain(|(known, _)| *known != at.provider);
                heard.providers.push((at.provider.clone(), text));
            }
            Event::Advice(text) if !heard.advice.iter().any(|known| known == text) => {
                heard.advice.push((*text).to_owned());
            }
            _ => {}
        }
    }
}
