use cache_macros::cached;

struct Error;

#[cached("users")]
async fn reference(id: u64) -> Result<&'static str, Error> {
    let _ = id;
    Ok("")
}

#[cached("users")]
async fn unnamed(id: u64) -> Option<impl Into<u64>> {
    Some(id)
}

fn main() {}
