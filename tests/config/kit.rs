//! Texts to registries.

use traced_cache::{
    Caches, Error,
    config::{CachesBuilder, Format},
};

/// Without any variable of this process.
pub(crate) fn sealed() -> CachesBuilder {
    Caches::builder().variables([("", ""); 0])
}

pub(crate) async fn toml(text: &str) -> Result<Caches, Error> {
    sealed().from_text(Format::Toml, text).await
}

/// The mistake in a text.
pub(crate) async fn mistake(text: &str) -> String {
    let error = toml(text).await.expect_err(text);
    assert_eq!(error.kind(), traced_cache::ErrorKind::Config, "{text}");
    let shown = error.to_string();
    assert!(!format!("{error:?} {shown}").contains("hunter2"), "a secret shows: {error:?}");
    shown
}
