//! Whatever bytes a store holds: they are read, or they are a miss.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    cache_core::testing::read_anything(bytes);
});
