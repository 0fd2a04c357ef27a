//! What a provider answers.

use bytes::Bytes;

use crate::{Acquired, BoxError, Lease, Swapped, Unreadable};

/// What a provider answers: one result, or one for each key.
pub(crate) trait Answer {
    fn count(&self) -> usize;
    /// The first failure.
    fn failure(&self) -> Option<&BoxError>;
    /// Whether anything went well.
    fn is_well(&self) -> bool;
    /// Bytes of items, which the last `marks` are none of.
    fn bytes(&self, marks: usize) -> usize;
}

/// What was found and is not handed out is an answer, too.
fn failure<R>(result: &Result<R, BoxError>) -> Option<&BoxError> {
    result.as_ref().err().filter(|error| !error.is::<Unreadable>())
}

impl<R: Received> Answer for Result<R, BoxError> {
    fn count(&self) -> usize {
        1
    }

    fn failure(&self) -> Option<&BoxError> {
        failure(self)
    }

    fn is_well(&self) -> bool {
        failure(self).is_none()
    }

    fn bytes(&self, marks: usize) -> usize {
        self.as_ref().ok().filter(|_| marks == 0).map_or(0, Received::bytes)
    }
}

impl<R: Received> Answer for Vec<Result<R, BoxError>> {
    fn count(&self) -> usize {
        self.len()
    }

    fn failure(&self) -> Option<&BoxError> {
        self.iter().find_map(failure)
    }

    fn is_well(&self) -> bool {
        self.is_empty() || self.iter().any(|r| failure(r).is_none())
    }

    fn bytes(&self, marks: usize) -> usize {
        self.iter().rev().skip(marks).flatten().map(Received::bytes).sum()
    }
}

/// What a call brings back, for its span.
pub(crate) trait Received {
    /// Bytes of items.
    fn bytes(&self) -> usize {
        0
    }
}

impl Received for () {}
impl Received for bool {}
impl Received for Swapped {}
impl Received for Option<Bytes> {
    fn bytes(&self) -> usize {
        self.as_ref().map_or(0, Bytes::len)
    }
}
impl Received for Lease {}
impl Received for Acquired {
    fn bytes(&self) -> usize {
        match self {
            Self::Found(bytes) => bytes.len(),
            Self::Granted(_) | Self::Held | Self::Kept => 0,
        }
    }
}
