use cache_macros::cached;
use traced_cache::BoxError;

trait Source {
    fn user(&self, id: u64) -> impl Future<Output = Result<u64, BoxError>> + Send;
}

#[derive(Clone)]
struct Users;

impl Source for Users {
    #[cached("users")]
    async fn user(&self, id: u64) -> Result<u64, BoxError> {
        Ok(id)
    }
}

#[async_trait::async_trait]
trait Store {
    async fn read(&self, id: u64) -> Result<u64, BoxError>;
}

#[async_trait::async_trait]
impl Store for Users {
    #[cached("users")]
    async fn read(&self, id: u64) -> Result<u64, BoxError> {
        Ok(id)
    }
}

fn main() {}
