//! Why a level has no answer.

use crate::{BoxError, Error, ErrorKind, LevelFault};

/// Why a level has no answer.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Not asked: the breaker is open, or a call of the same batch has just failed.
    Skipped,
    Failed(LevelFault, Option<BoxError>),
}

impl Failure {
    /// The provider's own error.
    pub(super) fn of(cause: BoxError) -> Self {
        Self::Failed(LevelFault::Error, Some(cause))
    }

    /// Its caller did not get on with it, and others have written since.
    pub(crate) fn overtaken() -> Self {
        Self::Failed(
            LevelFault::Timeout,
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

    pub(crate) fn into_error(self, level: u8) -> Error {
        let at = usize::from(level) + 1;
        match self {
            Self::Skipped => Error::new(
                ErrorKind::Level,
                format!("level {at} is not being asked: its breaker is open after failures"),
            ),
            // Why, says the cause.
            Self::Failed(_, Some(cause)) => {
                Error::with_source(ErrorKind::Level, format!("level {at} failed"), cause)
            }
            Self::Failed(fault, None) => Error::new(
                ErrorKind::Level,
                match fault {
                    LevelFault::Error => format!("level {at} failed"),
                    LevelFault::Timeout => format!("level {at} did not answer within its `budget`"),
                    LevelFault::Panic => format!("level {at} failed: its provider panicked"),
                },
            ),
        }
    }
}

fn spread(failure: Failure, over: usize) -> Vec<Failure> {
    let again = match &failure {
        Failure::Skipped => None,
        Failure::Failed(fault, _) => Some(*fault),
    };
    let mut all: Vec<Failure> =
        (1..over).map(|_| again.map_or(Failure::Skipped, |fault| Failure::Failed(fault, None))).collect();
    all.insert(0, failure);
    all
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
