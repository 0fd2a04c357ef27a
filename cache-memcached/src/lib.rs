//! memcached.
