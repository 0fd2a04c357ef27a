//! Leases: the right to fill a key of a remote level.

use std::{fmt, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;

use crate::{BoxError, EntryId, Put, RawKey};

/// The right to fill one key of a level. Opaque to the framework.
#[derive(Clone, PartialEq, Eq)]
pub struct Lease(pub Bytes);

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lease")
    }
}

/// A wish to fill one key.
#[derive(Clone, Copy, Debug)]
pub struct Acquire<'a> {
    /// Which key.
    pub key: RawKey<'a>,
    /// What the asker holds of it and wants to replace; it counts as nothing. Any other entry is an answer.
    pub holding: Holding,
}

/// What an asker holds of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holding {
    /// Nothing.
    Nothing,
    /// An entry with this id, at [`ENTRY_ID_AT`](crate::ENTRY_ID_AT) of its bytes.
    Entry(EntryId),
    /// Something that cannot be read: whatever is there is to be replaced.
    Unreadable,
    /// An entry with this id, and nothing else is to be replaced: nobody has written the key since as long as the store
    /// holds it still. Where there is nothing, or an invalidation, the answer is [`Acquired::Kept`].
    Still(EntryId),
}

/// What became of it.
#[derive(Clone)]
#[non_exhaustive]
pub enum Acquired {
    /// The right to fill, until it ends by time or an invalidation or set of the key revokes it.
    Granted(Lease),
    /// Somebody else has it.
    Held,
    /// Not to be had: a writer keeps the key, see [`Leases::hold_many`], and who loads now may get what is being replaced
    /// and must not store it. Or what was still to be there, [`Holding::Still`], is not.
    Kept,
    /// There is an entry that the asker does not hold.
    Found(Bytes),
}

/// Values stay out of `Debug` output.
impl fmt::Debug for Acquired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Granted(lease) => f.debug_tuple("Granted").field(lease).finish(),
            Self::Held => f.write_str("Held"),
            Self::Kept => f.write_str("Kept"),
            Self::Found(bytes) => f.debug_tuple("Found").field(&bytes.len()).finish(),
        }
    }
}

/// One fill under a lease.
#[derive(Clone, Debug)]
pub struct Fill<'a> {
    /// The item.
    pub put: Put<'a>,
    /// The right to store it.
    pub lease: Lease,
}

/// Leases of a store: "Scaling Memcache at Facebook", NSDI 2013, section 3.2.1.
///
/// Results are per item, in the order of the request and of the same length. A lease that is lost, expired or evicted
/// refuses a fill: absence never grants.
#[async_trait]
pub trait Leases: Send + Sync {
    /// Asks for the right to fill keys, for `life` at most (rounded to what the store can). One round trip.
    async fn acquire_many(&self, wanted: &[Acquire<'_>], life: Duration) -> Vec<Result<Acquired, BoxError>>;

    /// Stores each item whose lease still holds, and ends the lease. `false`: refused, the store holds what it held.
    async fn fill_many(&self, fills: &[Fill<'_>]) -> Vec<Result<bool, BoxError>>;

    /// Keeps keys for somebody who is about to write to the source behind them: makes each a miss, revokes its lease, and
    /// gives nobody another one for `life`, whatever is invalidated meanwhile. One round trip.
    ///
    /// The answer is the one lease that can fill the key; filling with it, or giving it back, ends the hold. Where a hold
    /// meets another one, neither can fill: which of the two writes the source took last is not known here. A put is not
    /// kept out, and revokes the right to fill.
    async fn hold_many(&self, keys: &[RawKey<'_>], life: Duration) -> Vec<Result<Lease, BoxError>>;

    /// Lengthens leases that still hold, and holds, to `life` from now.
    async fn renew_many(&self, leases: &[(RawKey<'_>, Lease)], life: Duration) -> Vec<Result<(), BoxError>>;

    /// Gives leases back unused, so that others need not wait for their end.
    async fn release_many(&self, leases: &[(RawKey<'_>, Lease)]) -> Vec<Result<(), BoxError>>;
}
