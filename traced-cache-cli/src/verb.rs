//! What the command does, a file for each verb.

pub(crate) mod bench;
pub(crate) mod check;
pub(crate) mod completions;
pub(crate) mod explain;
pub(crate) mod get;
pub(crate) mod inspect;
pub(crate) mod invalidate;
mod left;
mod numbers;
pub(crate) mod replay;
pub(crate) mod stats;
pub(crate) mod warm;
