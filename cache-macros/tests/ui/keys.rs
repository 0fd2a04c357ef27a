use cache_macros::CacheKey;

#[derive(CacheKey, Clone, PartialEq, Eq, Hash)]
struct Nothing;

#[derive(CacheKey, Clone, PartialEq, Eq, Hash)]
enum Never {}

#[derive(CacheKey)]
enum Borrowed<'a> {
    Slug(&'a str),
}

#[derive(CacheKey, Clone, PartialEq, Eq, Hash)]
struct TooMany(u8, u8, u8, u8, u8, u8, u8, u8, u8, u8, u8, u8, u8);

#[derive(CacheKey)]
union Bits {
    a: u32,
    b: i32,
}

fn main() {}
