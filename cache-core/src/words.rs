//! The words of events: verbs, levels' calls and faults, scopes, states.

use crate::ErrorKind;

/// The verbs of a cache, as telemetry names them (`cache.operation`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Verb {
    /// `get` and `look`.
    Get,
    /// `get_or_set` in all its forms.
    GetOrSet,
    /// `get_many`.
    GetMany,
    /// `get_or_set_many`.
    GetOrSetMany,
    /// `set`.
    Set,
    /// `set_many`.
    SetMany,
    /// `invalidate`.
    Invalidate,
    /// `invalidate_many`.
    InvalidateMany,
    /// `invalidate_tag` and `invalidate_tags`.
    InvalidateTag,
    /// `expire`.
    Expire,
    /// `expire_tag` and `expire_tags`.
    ExpireTag,
    /// `expire_all`.
    ExpireAll,
    /// `clear`.
    Clear,
    /// `refresh`. Refreshes in the background are nobody's call.
    Refresh,
    /// `update`.
    Update,
    /// `save` of a cache with a source.
    Save,
    /// `delete` of a cache with a source.
    Delete,
    /// `warm`.
    Warm,
}

impl Verb {
    /// All verbs.
    pub const ALL: [Self; 18] = [
        Self::Get,
        Self::GetOrSet,
        Self::GetMany,
        Self::GetOrSetMany,
        Self::Set,
        Self::SetMany,
        Self::Invalidate,
        Self::InvalidateMany,
        Self::InvalidateTag,
        Self::Expire,
        Self::ExpireTag,
        Self::ExpireAll,
        Self::Clear,
        Self::Refresh,
        Self::Update,
        Self::Save,
        Self::Delete,
        Self::Warm,
    ];

    /// A low-cardinality word for telemetry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::GetOrSet => "get_or_set",
            Self::GetMany => "get_many",
            Self::GetOrSetMany => "get_or_set_many",
            Self::Set => "set",
            Self::SetMany => "set_many",
            Self::Invalidate => "invalidate",
            Self::InvalidateMany => "invalidate_many",
            Self::InvalidateTag => "invalidate_tag",
            Self::Expire => "expire",
            Self::ExpireTag => "expire_tag",
            Self::ExpireAll => "expire_all",
            Self::Clear => "clear",
            Self::Refresh => "refresh",
            Self::Update => "update",
            Self::Save => "save",
            Self::Delete => "delete",
            Self::Warm => "warm",
        }
    }
}

/// What is done at one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LevelOp {
    /// A read.
    Get,
    /// The right to fill: taken or renewed.
    Acquire,
    /// A write.
    Put,
    /// A removal.
    Remove,
    /// Marks are replaced: an invalidation of more than a key.
    Swap,
}

impl LevelOp {
    /// A low-cardinality word for telemetry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::Acquire => "acquire",
            Self::Put => "put",
            Self::Remove => "remove",
            Self::Swap => "swap",
        }
    }
}

/// Why a level did not do what it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LevelFault {
    /// The provider answered with an error.
    Error,
    /// It did not answer within the level's budget.
    Timeout,
    /// It panicked.
    Panic,
}

impl LevelFault {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Error, Self::Timeout, Self::Panic];

    /// A low-cardinality word for telemetry (`error.type`).
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Timeout => "timeout",
            Self::Panic => "panic",
        }
    }
}

/// What an invalidation names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Scope {
    /// A key.
    Key,
    /// A tag.
    Tag,
    /// The whole cache.
    Cache,
}

impl Scope {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Key, Self::Tag, Self::Cache];

    /// A low-cardinality word for telemetry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Key => "key",
            Self::Tag => "tag",
            Self::Cache => "clear",
        }
    }
}

/// State of a level's breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BreakerState {
    /// Requests go through.
    Closed,
    /// One request is on its way to find out.
    HalfOpen,
    /// Requests are not sent.
    Open,
}

impl BreakerState {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Closed, Self::HalfOpen, Self::Open];

    /// A low-cardinality word for telemetry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::HalfOpen => "half_open",
            Self::Open => "open",
        }
    }
}

/// How a load ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LoadEnd {
    /// With a value.
    Value,
    /// The source does not have the key.
    Absent,
    /// The held value is still right.
    Unchanged,
    /// An answer that is not stored.
    NotStored,
    /// It failed.
    Failed(ErrorKind),
}

impl LoadEnd {
    /// A low-cardinality word for telemetry.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Value => "value",
            Self::Absent => "absent",
            Self::Unchanged => "unchanged",
            Self::NotStored => "not_stored",
            Self::Failed(kind) => kind.as_str(),
        }
    }
}
