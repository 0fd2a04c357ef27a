//! What went wrong last at a level.

use std::sync::{Mutex, PoisonError};

use crate::{BoxError, LevelFault, with_causes};

/// Told to those who are not let through any more, and to those who find the level's mark unknown.
#[derive(Default)]
pub(super) struct Trouble(Mutex<Option<Box<str>>>);

impl Trouble {
    pub(super) fn note(&self, fault: LevelFault, cause: Option<&BoxError>) {
        let said = match (cause, fault) {
            (Some(cause), _) => with_causes(&**cause),
            (None, LevelFault::Error) => return,
            (None, LevelFault::Timeout) => "no answer within its `budget`".to_owned(),
            (None, LevelFault::Panic) => "its provider panicked".to_owned(),
        };
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(said.into());
    }

    pub(super) fn last(&self) -> Option<BoxError> {
        let said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        said.as_deref().map(BoxError::from)
    }
}
