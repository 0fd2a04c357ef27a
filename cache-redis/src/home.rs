//! Where connections lead.

use std::{
    fmt,
    sync::{Arc, Weak},
};

use crate::{
    address::{Endpoint, Place},
    cluster::Cluster,
    sentinel::Sentinels,
};

/// Gives addresses of servers.
pub(crate) type Addresses = Arc<dyn Fn() -> Vec<Endpoint> + Send + Sync>;

/// Where a keeper's connections lead.
#[derive(Clone)]
pub(crate) enum Home {
    At(Endpoint),
    Sentinels(Sentinels),
    /// A master of a cluster, which vouches for it.
    Node(Endpoint, Weak<Cluster>),
    /// A replica that the sentinels name.
    Replica(Sentinels),
    /// A replica in a cluster.
    NodeReplica(Endpoint),
    /// To any of these.
    Any(Addresses),
}

impl Home {
    pub(crate) fn of(place: &Place) -> Self {
        match place {
            Place::Sentinels { at, master } => {
                let (at, master) = (at.clone(), master.clone());
                Self::Sentinels(Sentinels { at, master, latest: Arc::default() })
            }
            Place::One(_) | Place::Cluster { .. } => Self::At(place.first().clone()),
        }
    }
}

impl fmt::Display for Home {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::At(endpoint) | Self::Node(endpoint, _) | Self::NodeReplica(endpoint) => {
                write!(f, "Redis at {endpoint}")
            }
            Self::Sentinels(Sentinels { master, .. }) => write!(f, "the master {master:?}"),
            Self::Replica(Sentinels { master, .. }) => write!(f, "every replica of the master {master:?}"),
            Self::Any(_) => f.write_str("every node of the cluster"),
        }
    }
}
