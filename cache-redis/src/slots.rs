//! Slots of a cluster, and who serves them.

use std::collections::HashSet;

use redis::{ServerError, Value};

use crate::{
    Error, ErrorKind,
    address::{Endpoint, is_host},
    wire::text,
};

pub(crate) const SLOTS: u16 = 16384;

/// Most masters of a map: each gets a connection. Clusters are not made for more.
const MASTERS_MAX: usize = 1000;

/// In the place of the name of a node that is to go by one, and has none (`cluster-preferred-endpoint-type hostname`).
const UNNAMED: &str = "?";

/// The slot of a key, by what it has in braces.
pub(crate) fn slot(key: &str) -> u16 {
    let tag = key
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'))
        .map(|(tag, _)| tag)
        .filter(|tag| !tag.is_empty())
        .unwrap_or(key);
    crc16::State::<crc16::XMODEM>::calculate(tag.as_bytes()) % SLOTS
}

/// A server's word that somebody else serves a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Redirect {
    pub(crate) slot: u16,
    /// `None`: the same host as who says so.
    pub(crate) host: Option<String>,
    pub(crate) port: u16,
    /// For this one time, as the key is being moved.
    pub(crate) ask: bool,
}

impl Redirect {
    pub(crate) fn of(error: &ServerError) -> Option<Self> {
        let ask = match error.code() {
            "MOVED" => false,
            "ASK" => true,
            _ => return None,
        };
        let mut words = error.details()?.split(' ');
        let slot = words.next()?.parse().ok().filter(|slot| *slot < SLOTS)?;
        let (host, port) = words.next()?.rsplit_once(':')?;
        // Where it is, another look at the map says.
        if host == UNNAMED {
            return None;
        }
        let host = Some(host.trim_matches(['[', ']'])).filter(|host| !host.is_empty());
        if !host.is_none_or(is_host) {
            return None;
        }
        Some(Self { slot, host: host.map(str::to_owned), port: port.parse().ok()?, ask })
    }

    pub(crate) fn endpoint(&self, said_by: &Endpoint) -> Endpoint {
        let host = self.host.clone().unwrap_or_else(|| host_of(said_by));
        Endpoint::Tcp { host, port: self.port }
    }
}

fn host_of(endpoint: &Endpoint) -> String {
    match endpoint {
        Endpoint::Tcp { host, .. } => host.clone(),
        Endpoint::Unix { path } => path.clone(),
    }
}

/// A range of slots, its master and the master's replicas.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Range {
    pub(crate) first: u16,
    pub(crate) last: u16,
    pub(crate) master: Endpoint,
    pub(crate) replicas: Vec<Endpoint>,
}

/// A reply to `CLUSTER SLOTS`, sorted.
pub(crate) fn ranges(reply: &Value, said_by: &Endpoint) -> Result<Vec<Range>, Error> {
    let Value::Array(items) = reply else {
        return Err(Error::protocol("no list where the slots of a cluster were asked for"));
    };
    let too_many = || Error::protocol("more ranges or masters than a cluster has");
    if items.len() > usize::from(SLOTS) {
        return Err(too_many());
    }
    let mut ranges: Vec<Range> = items.iter().filter_map(|item| range(item, said_by)).collect();
    if ranges.is_empty() {
        return Err(Error::new(
            ErrorKind::Unavailable,
            format!("the cluster serves no slots, as far as {said_by} knows"),
        ));
    }
    if ranges.iter().map(|range| &range.master).collect::<HashSet<_>>().len() > MASTERS_MAX {
        return Err(too_many());
    }
    ranges.sort();
    Ok(ranges)
}

fn range(item: &Value, said_by: &Endpoint) -> Option<Range> {
    let Value::Array(parts) = item else { return None };
    let [Value::Int(first), Value::Int(last), master, replicas @ ..] = parts.as_slice() else { return None };
    let in_range = |slot: &i64| u16::try_from(*slot).ok().filter(|slot| *slot < SLOTS);
    let mut replicas: Vec<_> = replicas.iter().filter_map(|node| address(node, said_by)).collect();
    replicas.sort();
    Some(Range {
        first: in_range(first)?,
        last: in_range(last)?,
        master: address(master, said_by)?,
        replicas,
    })
}

fn address(node: &Value, said_by: &Endpoint) -> Option<Endpoint> {
    let Value::Array(parts) = node else { return None };
    let [host, Value::Int(port), more @ ..] = parts.as_slice() else { return None };
    let host = match text(host).filter(|host| !host.is_empty()) {
        Some(UNNAMED) => ip(more)?.to_owned(),
        Some(host) => Some(host).filter(|host| is_host(host))?.to_owned(),
        // A node that does not know its own address leaves it out.
        None => host_of(said_by),
    };
    // One that nobody can reach has none.
    Some(Endpoint::Tcp { host, port: u16::try_from(*port).ok().filter(|port| *port != 0)? })
}

/// What is told of a node beside its preferred address: its id, and pairs of names and values.
fn ip(more: &[Value]) -> Option<&str> {
    let of = |name, value| if text(name)? == "ip" { text(value) } else { None };
    let ip = match more.get(1)? {
        Value::Map(pairs) => pairs.iter().find_map(|(name, value)| of(name, value)),
        Value::Array(words) => words.chunks_exact(2).find_map(|pair| of(&pair[0], &pair[1])),
        _ => None,
    };
    ip.filter(|ip| is_host(ip) && *ip != UNNAMED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::HOST_MAX;

    fn bulk(text: &str) -> Value {
        Value::BulkString(text.into())
    }

    fn tcp(host: &str, port: u16) -> Endpoint {
        Endpoint::Tcp { host: host.into(), port }
    }

    #[test]
    fn slots_are_those_of_the_server() {
        // By `CLUSTER KEYSLOT`.
        assert_eq!((slot("foo"), slot("123456789"), slot("{user1000}.following")), (12182, 12739, 3443));
        assert_eq!(slot("{user1000}.followers"), slot("user1000"));
        assert_eq!(slot("foo{}{bar}"), 8363);
        assert_eq!(slot("foo{{bar}}zap"), slot("{bar"));
        assert_eq!(slot(""), 0);
    }

    #[test]
    fn ranges_are_read() {
        let node =
            |host: Value, port| Value::Array(vec![host, Value::Int(port), bulk("id"), Value::Array(vec![])]);
        let range = |first, last, nodes: Vec<Value>| {
            Value::Array([vec![Value::Int(first), Value::Int(last)], nodes].concat())
        };
        let said_by = tcp("here", 1);
        let reply = Value::Array(vec![
            range(100, 16383, vec![node(bulk("b"), 2)]),
            range(
                0,
                99,
                vec![node(Value::Nil, 1), node(bulk("d"), 4), node(bulk("c"), 3), node(bulk("?"), 5)],
            ),
            range(0, 16384, vec![node(bulk("b"), 2)]),
            range(0, 1, vec![]),
            Value::Nil,
        ]);
        let ranges = ranges(&reply, &said_by).unwrap();
        let replicas = vec![tcp("c", 3), tcp("d", 4)];
        assert_eq!(ranges[0], Range { first: 0, last: 99, master: tcp("here", 1), replicas });
        assert_eq!(ranges[1], Range { first: 100, last: 16383, master: tcp("b", 2), replicas: vec![] });
        assert_eq!(ranges.len(), 2);
        assert!(super::ranges(&Value::Array(vec![]), &said_by).is_err());
        assert!(super::ranges(&Value::Nil, &said_by).is_err());
    }

    #[test]
    fn what_is_no_name_of_a_host_names_no_node() {
        let (said_by, long) = (tcp("here", 1), "h".repeat(HOST_MAX + 1));
        for host in ["h\nlevel=error fake", "h\u{1b}[2J", "h h", "hö", &long] {
            let named = Value::Array(vec![bulk(host), Value::Int(1)]);
            assert_eq!(address(&named, &said_by), None, "{host:?}");
            let ip = Value::Array(vec![bulk("ip"), bulk(host)]);
            let unnamed = Value::Array(vec![bulk(UNNAMED), Value::Int(1), bulk("id"), ip]);
            assert_eq!(address(&unnamed, &said_by), None, "{host:?}");
            let said = redis::parse_redis_value(format!("-MOVED 1 {host}:1\r\n").as_bytes());
            if let Ok(Value::ServerError(said)) = said {
                assert_eq!(Redirect::of(&said), None, "{host:?}");
            }
        }
        for host in ["::1", "fe80::1%eth0", "my_node-1.example.", &long[1..]] {
            assert_eq!(address(&Value::Array(vec![bulk(host), Value::Int(1)]), &said_by), Some(tcp(host, 1)));
        }
    }

    #[test]
    fn a_map_is_no_larger_than_that_of_a_cluster() {
        let map = |count: usize, masters: i64| {
            let range = |port| {
                let node = Value::Array(vec![bulk("h"), Value::Int(1 + port % masters)]);
                Value::Array(vec![Value::Int(0), Value::Int(0), node])
            };
            ranges(&Value::Array((0..count as i64).map(range).collect()), &tcp("here", 1))
                .map(|ranges| ranges.len())
        };
        assert_eq!(map(16384, 1000).unwrap(), 16384);
        assert!(map(16385, 1).is_err() && map(1001, 1001).is_err());
    }
}
