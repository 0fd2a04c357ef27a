//! The source as a cache writes through to it.

use std::{panic::resume_unwind, sync::atomic::Ordering, time::Duration};

use traced_cache::{BoxError, Loaded, Source};

use crate::subject::{Loader, owner, tag};

/// Takes its time on both sides of the change, in which others load; some writes fail, before it or after it.
pub(crate) struct Through(pub(crate) Loader);

impl Through {
    async fn write(&self, id: u64) -> Result<u64, BoxError> {
        let mood = if self.0.moody.load(Ordering::Relaxed) { fastrand::u8(..16) } else { u8::MAX };
        pause().await;
        if mood == 0 {
            return Err("on purpose".into());
        }
        let version = self.0.source.change(usize::try_from(id)?).await?;
        pause().await;
        match mood {
            1 => Err("on purpose".into()),
            // Nothing of it is printed.
            2 => resume_unwind(Box::new("on purpose")),
            _ => Ok(version),
        }
    }
}

async fn pause() {
    tokio::time::sleep(Duration::from_micros(fastrand::u64(..5_000))).await;
}

impl Source<u64, u64> for Through {
    async fn load(&self, id: &u64) -> Result<Loaded<u64>, BoxError> {
        self.0.clone().load_tagged(*id).await
    }

    async fn save(&self, id: &u64, version: &u64) -> Result<(), BoxError> {
        let written = self.write(*id).await?;
        if written == *version { Ok(()) } else { Err(format!("{version} was saved as {written}").into()) }
    }

    fn tags(&self, id: &u64, _: &u64) -> Vec<Box<str>> {
        match usize::try_from(*id) {
            Ok(key) if self.0.tags => vec![tag(owner(key)).into()],
            _ => Vec::new(),
        }
    }

    /// There is another version of it at once: a table has no holes here.
    async fn delete(&self, id: &u64) -> Result<(), BoxError> {
        self.write(*id).await.map(drop)
    }
}
