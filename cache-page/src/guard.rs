//! Who may look keys up.

use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use axum::http::{HeaderMap, header};
use base64::{Engine, engine::general_purpose::STANDARD};

type Allows = dyn Fn(&HeaderMap) -> bool + Send + Sync;

/// Who may look keys up, and make them gone: asked at each request for that.
#[derive(Clone)]
pub struct Guard {
    allows: Arc<Allows>,
    /// A browser may ask its user for a password.
    asks: bool,
}

impl Guard {
    /// Whoever knows a password (HTTP basic authentication, under any name). It goes over the wire as it is: put TLS in front.
    /// An empty one, of a variable that is not set say, opens nothing.
    pub fn password(password: impl Into<String>) -> Self {
        let password = password.into();
        let allows = move |headers: &HeaderMap| given(headers).is_some_and(|given| same(&given, &password));
        Self { allows: Arc::new(allows), asks: true }
    }

    /// Your own way: a header that a proxy sets for whom it knows, a session's cookie. A panic in it is a no.
    pub fn by(allows: impl Fn(&HeaderMap) -> bool + Send + Sync + 'static) -> Self {
        Self { allows: Arc::new(allows), asks: false }
    }

    pub(crate) fn allows(&self, headers: &HeaderMap) -> bool {
        catch_unwind(AssertUnwindSafe(|| (self.allows)(headers))).unwrap_or(false)
    }

    pub(crate) const fn asks(&self) -> bool {
        self.asks
    }
}

impl fmt::Debug for Guard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Guard").finish_non_exhaustive()
    }
}

fn given(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = text.split_once(' ')?;
    let decoded = STANDARD.decode(encoded.trim()).ok().filter(|_| scheme.eq_ignore_ascii_case("basic"))?;
    let pair = String::from_utf8(decoded).ok()?;
    Some(pair.split_once(':')?.1.to_owned())
}

/// Takes the same time wherever they differ.
fn same(given: &str, wanted: &str) -> bool {
    let (given, wanted) = (given.as_bytes(), wanted.as_bytes());
    let differing = given.iter().zip(wanted).fold(0, |sum, (a, b)| sum | (a ^ b));
    !wanted.is_empty() && given.len() == wanted.len() && std::hint::black_box(differing) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_password_opens() {
        let guard = Guard::password("open sesame");
        let with = |text: &str| HeaderMap::from_iter([(header::AUTHORIZATION, text.parse().unwrap())]);
        let basic = |pair: &str| with(&format!("Basic {}", STANDARD.encode(pair)));
        assert!(guard.allows(&basic("anyone:open sesame")) && guard.allows(&basic(":open sesame")));
        for wrong in ["anyone:open", "anyone:open sesame ", "open sesame", "anyone:", "open sesame:"] {
            assert!(!guard.allows(&basic(wrong)), "{wrong}");
        }
        assert!(
            !guard.allows(&HeaderMap::new())
                && !guard.allows(&with("Basic ???"))
                && !guard.allows(&with("x"))
        );
        assert!(!Guard::password("").allows(&basic("anyone:")), "an empty one opens nothing");
        assert!(!format!("{guard:?}").contains("sesame"));
    }
}
