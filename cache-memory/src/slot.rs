//! What an engine holds under a key.

use std::time::Instant;

use bytes::Bytes;
use cache_core::Object;

use crate::key::Key;

#[derive(Clone)]
pub(crate) enum Slot {
    /// Until when it is usable is the cache's to judge, on its own clock.
    Object(Object),
    /// Judged here, on the system's clock.
    Bytes { bytes: Bytes, until: Option<Instant> },
}

impl Slot {
    /// Bytes that the slot counts for, `overhead` being what the engine adds to each.
    pub(crate) fn weight(&self, key: &Key, overhead: u32) -> u32 {
        let value = match self {
            Self::Object(object) => object.weight(),
            Self::Bytes { bytes, .. } => u32::try_from(bytes.len()).unwrap_or(u32::MAX),
        };
        value.saturating_add(u32::try_from(key.text_len()).unwrap_or(u32::MAX)).saturating_add(overhead)
    }

    /// Before what nobody is to find any more is dropped. No lock of the store may be held.
    #[inline]
    pub(crate) fn outlive_locks(&self) {
        if let Self::Object(object) = self {
            object.outlive_locks();
        }
    }

    #[inline]
    pub(crate) fn object(&self) -> Option<&Object> {
        match self {
            Self::Object(object) => Some(object),
            Self::Bytes { .. } => None,
        }
    }

    /// Bytes whose time is not over.
    pub(crate) fn bytes(&self) -> Option<Bytes> {
        match self {
            Self::Bytes { bytes, until } if until.is_none_or(|until| Instant::now() < until) => {
                Some(bytes.clone())
            }
            _ => None,
        }
    }
}
