//! Why a level has no answer, or no room.

use bytes::Bytes;

use super::Tier;
use crate::{BoxError, Error, ErrorKind, LevelFault, Unreadable};

/// Why a level has no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Not asked: the breaker is open, or a call of the same batch has just failed.
    Skipped,
    /// Not asked: its mark cannot be read, so nobody would believe what is stored.
    Mute,
    Failed(LevelFault, Option<BoxError>),
}

impl Failure {
    /// The provider's own error.
    pub(super) fn of(cause: BoxError) -> Self {
        Self::Failed(LevelFault::Error, Some(cause))
    }

    /// Why the provider does not hand out what it has found: then the level is well.
    pub(crate) fn unreadable(&self) -> Option<Unreadable> {
        match self {
            Self::Failed(_, Some(cause)) => cause.downcast_ref().copied(),
            _ => None,
        }
    }

    /// The same as bytes that nothing reads: none, which no envelope and no mark is.
    pub(crate) fn or_nothing_readable(self) -> Result<Bytes, Self> {
        self.unreadable().map(|_| Bytes::new()).ok_or(self)
    }

    /// Its caller did not get on with it, and others have written since.
    pub(crate) fn overtaken() -> Self {
        Self::Failed(
            LevelFault::Error,
            Some("the write stood still for too long, and others have overtaken it".into()),
        )
    }

    /// The store has become another one while it was asked, and the new one may not know of it.
    pub(crate) fn left() -> Self {
        Self::Failed(
            LevelFault::Error,
            Some("the store was replaced by another one while it was asked".into()),
        )
    }

    /// Others were quicker, every time.
    pub(crate) fn busy() -> Self {
        Self::Failed(LevelFault::Error, Some("others invalidate all the time".into()))
    }

    pub(crate) fn into_error(self, tier: &Tier) -> Error {
        let at = tier.number();
        let (said, cause) = match self {
            Self::Skipped => (
                format!("level {at} is not being asked: its breaker is open after failures"),
                tier.trouble.last(),
            ),
            // The level's own words, and not what comes of its silence.
            Self::Mute => match tier.trouble.last() {
                Some(cause) => (format!("level {at} failed"), Some(cause)),
                None => (
                    format!(
                        "level {at} does not say which of its entries are valid: its mark cannot be read"
                    ),
                    None,
                ),
            },
            // Why, says the cause.
            Self::Failed(LevelFault::Error, cause) => {
                (format!("level {at} failed"), cause.or_else(|| tier.trouble.last()))
            }
            Self::Failed(LevelFault::Timeout, cause) => {
                (format!("level {at} did not answer within its `budget`"), cause)
            }
            Self::Failed(LevelFault::Panic, cause) => {
                (format!("level {at} failed: its provider panicked"), cause)
            }
        };
        match cause {
            Some(cause) => Error::with_source(ErrorKind::Level, said, cause),
            None => Error::new(ErrorKind::Level, said),
        }
    }
}

/// Why a level cannot hold a value.
#[derive(Clone, Copy)]
pub(crate) enum Unfit {
    NotEncoded,
    TooLarge,
}

impl Unfit {
    pub(crate) fn into_error(self, tier: &Tier) -> Error {
        let why = match self {
            Self::NotEncoded => "its codec or its encryption cannot write it".to_owned(),
            Self::TooLarge => {
                let limit = tier.caps.value_max.unwrap_or(usize::MAX);
                format!("it takes more there than the {limit} bytes of its `value_max`")
            }
        };
        Error::new(ErrorKind::Level, format!("level {} cannot hold the value: {why}", tier.number()))
    }
}

/// One failure of as many items: the first has the cause.
fn spread(failure: Failure, over: usize) -> Vec<Failure> {
    let again = match &failure {
        Failure::Skipped | Failure::Mute => None,
        Failure::Failed(fault, _) => Some(*fault),
    };
    let others = (1..over).map(|_| again.map_or(Failure::Skipped, |fault| Failure::Failed(fault, None)));
    std::iter::once(failure).chain(others).collect()
}

pub(crate) fn skipped<R>(items: usize) -> Vec<Result<R, Failure>> {
    (0..items).map(|_| Err(Failure::Skipped)).collect()
}

pub(crate) fn flatten<R>(
    called: Result<Vec<Result<R, BoxError>>, Failure>,
    items: usize,
) -> Vec<Result<R, Failure>> {
    match called {
        Ok(results) => results.into_iter().map(|result| result.map_err(Failure::of)).collect(),
        Err(failure) if items > 0 => spread(failure, items).into_iter().map(Err).collect(),
        Err(_) => Vec::new(),
    }
}
