use cache_macros::cached;

struct Error;

#[cached("users", ttl = 5)]
async fn unknown(id: u64) -> Result<u64, Error> {
    Ok(id)
}

#[cached("users", key = id, key = id)]
async fn twice(id: u64) -> Result<u64, Error> {
    Ok(id)
}

#[cached("users" key = id)]
async fn comma(id: u64) -> Result<u64, Error> {
    Ok(id)
}

#[cached("users", skip(db))]
async fn no_argument(id: u64) -> Result<u64, Error> {
    Ok(id)
}

#[cached("users", key = id)]
async fn both(#[skip] db: u64, id: u64) -> Result<u64, Error> {
    Ok(id + db)
}

fn main() {}
