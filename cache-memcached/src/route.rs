//! Which server a key lives on: rendezvous hashing.
//!
//! Every server scores every key, the highest score wins. A server that joins or leaves moves only the keys that it
//! wins or held; the order of the list does not matter. The hash is XXH3, whose values are fixed for good, over the
//! server's name as configured: all processes and releases agree, also where a name resolves differently.
//!
//! Another list is another store: a key that moves away and back would find what it left there, and nobody has told that
//! copy of what was invalidated in between. So lives and marks belong to a list, by its number.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// The servers' names, hashed once.
#[derive(Debug)]
pub(crate) struct Routes(Vec<[u8; 8]>);

impl Routes {
    pub(crate) fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        Self(names.into_iter().map(|name| xxh3_64(name.as_bytes()).to_le_bytes()).collect())
    }

    /// Index of the key's server.
    pub(crate) fn home(&self, key: &[u8]) -> usize {
        if self.0.len() == 1 {
            return 0;
        }
        let key = xxh3_64(key);
        // The name's hash settles a tie, not the position in the list.
        let score = |name: &[u8; 8]| (xxh3_64_with_seed(name, key), *name);
        self.0.iter().enumerate().max_by_key(|(_, name)| score(name)).map_or(0, |(index, _)| index)
    }
}

/// A list of servers.
#[derive(Debug)]
pub(crate) struct Placement {
    routes: Routes,
    /// Places of its servers among all that the provider knows.
    servers: Vec<usize>,
    /// Its number: the same for the same servers in any order. 0 for a single one, on which every key lives whatever its
    /// name is.
    pub(crate) list: u64,
}

impl Placement {
    pub(crate) fn new(names: &[String], servers: Vec<usize>) -> Self {
        let mut sorted: Vec<&str> = names.iter().map(String::as_str).collect();
        sorted.sort_unstable();
        let list = if sorted.len() > 1 { xxh3_64(sorted.join("\n").as_bytes()).max(1) } else { 0 };
        Self { routes: Routes::new(names.iter().map(String::as_str)), servers, list }
    }

    /// Place of the key's server.
    pub(crate) fn home(&self, key: &str) -> usize {
        self.servers.get(self.routes.home(key.as_bytes())).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So does one here: it empties the cache of every user with several servers.
    #[test]
    fn numbers_of_lists_are_stable_across_releases_and_know_no_order() {
        let list = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            Placement::new(&names, (0..names.len()).collect()).list
        };
        assert_eq!(list(&NAMES[..2]), 17_120_062_304_548_338_126);
        assert_eq!(list(&["cache-2:11211", "cache-1:11211"]), list(&NAMES[..2]));
        assert_ne!(list(&NAMES[..3]), list(&NAMES[..2]));
        assert_eq!(list(&NAMES[..1]), 0, "one server holds every key");
    }

    const NAMES: [&str; 5] =
        ["cache-1:11211", "cache-2:11211", "cache-3:11211", "10.0.0.4:11211", "[::1]:11215"];

    /// A change here sends every key of every user to another server: it needs a new major release.
    #[test]
    fn routes_are_stable_across_releases() {
        const GOLDEN: [usize; 20] = [0, 3, 1, 1, 3, 0, 2, 0, 4, 4, 3, 0, 1, 2, 4, 0, 3, 0, 1, 0];
        let routes = Routes::new(NAMES);
        let homes: Vec<usize> = (0..20).map(|i| routes.home(format!("users:{i}").as_bytes())).collect();
        assert_eq!(homes, GOLDEN);
    }

    #[test]
    fn order_of_the_list_does_not_matter() {
        let (a, mut turned) = (Routes::new(NAMES), NAMES);
        turned.reverse();
        let b = Routes::new(turned);
        for i in 0..1_000 {
            let key = format!("k:{i}");
            assert_eq!(NAMES[a.home(key.as_bytes())], turned[b.home(key.as_bytes())]);
        }
    }

    #[test]
    fn keys_spread_and_a_lost_server_moves_only_its_own() {
        let (five, four) = (Routes::new(NAMES), Routes::new(NAMES[..4].iter().copied()));
        let mut held = [0; 5];
        for i in 0..10_000 {
            let key = format!("k:{i}");
            let home = five.home(key.as_bytes());
            held[home] += 1;
            if home != 4 {
                assert_eq!(four.home(key.as_bytes()), home);
            }
        }
        assert!(held.iter().all(|n| (1_800..2_200).contains(n)), "{held:?}");
    }
}
