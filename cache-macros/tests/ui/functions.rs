use cache_macros::cached;

struct Error;

#[cached("users")]
fn blocking(id: u64) -> Result<u64, Error> {
    Ok(id)
}

#[cached("users")]
struct Users;

trait Source {
    #[cached("users")]
    async fn user(&self, id: u64) -> Result<u64, Error>;
}

#[cached("users")]
async fn nothing(id: u64) {
    let _ = id;
}

fn main() {}
