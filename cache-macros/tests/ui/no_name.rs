use cache_macros::cached;

struct Error;

#[cached]
async fn user(id: u64) -> Result<u64, Error> {
    Ok(id)
}

fn main() {}
