use cache_macros::cached;

struct Error;

#[cached("users")]
async fn mutable(db: &mut u64, id: u64) -> Result<u64, Error> {
    Ok(id + *db)
}

#[cached("users")]
async fn pattern((a, b): (u64, u64)) -> Result<u64, Error> {
    Ok(a + b)
}

#[cached("users")]
async fn unnamed_type(id: impl Into<u64>) -> Result<u64, Error> {
    Ok(id.into())
}

#[cached("users")]
async fn many(a: u8, b: u8, c: u8, d: u8, e: u8, f: u8, g: u8, h: u8, i: u8, j: u8, k: u8, l: u8, m: u8) -> u8 {
    a + b + c + d + e + f + g + h + i + j + k + l + m
}

struct Users(u64);

impl Users {
    #[cached("users")]
    async fn changing(&mut self, id: u64) -> Result<u64, Error> {
        self.0 += id;
        Ok(self.0)
    }

    #[cached("users")]
    async fn changing_by_type(self: &mut Self, id: u64) -> Result<u64, Error> {
        Ok(self.0 + id)
    }
}

#[cached("users")]
async fn perhaps_mutable(db: Option<&mut u64>, id: u64) -> Result<u64, Error> {
    Ok(id + db.map_or(0, |db| *db))
}

#[cached("users", key = ids.len())]
async fn borrows_inside(ids: &[&str]) -> Result<u64, Error> {
    Ok(ids.len() as u64)
}

#[cached("users", skip(name))]
async fn borrows_by_name<'a>(name: std::borrow::Cow<'a, str>, id: u64) -> Result<u64, Error> {
    Ok(id + name.len() as u64)
}

fn main() {}
