//! How an example ends when it cannot go on.

use std::process::ExitCode;

use traced_cache::{BoxError, with_causes};

/// Why a run ended early.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The options make no sense: exit code 2, as for options that cannot be parsed.
    Options(BoxError),
    /// Everything else: exit code 1.
    Run(BoxError),
}

impl Failure {
    /// For `map_err`.
    pub(crate) fn options(error: impl Into<BoxError>) -> Self {
        Self::Options(error.into())
    }

    /// For `map_err`.
    pub(crate) fn run(error: impl Into<BoxError>) -> Self {
        Self::Run(error.into())
    }

    /// One line with the causes that say something new, and the exit code.
    pub(crate) fn report(&self) -> (String, ExitCode) {
        let (error, code) = match self {
            Self::Options(error) => (error, ExitCode::from(2)),
            Self::Run(error) => (error, ExitCode::FAILURE),
        };
        (format!("error: {}", with_causes(&**error)), code)
    }
}
