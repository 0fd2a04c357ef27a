//! `check`

use std::fmt::Write;

use serde_json::json;
use traced_cache::config::{CachesBuilder, ExplainedProvider, Explanation};

use super::explain;
use crate::{
    end::{Exit, Failure},
    options::CheckOptions,
    output::Output,
};

pub(crate) async fn run(builder: CachesBuilder, out: Output, options: CheckOptions) -> Result<Exit, Failure> {
    let path = options.file.checked()?;
    let explanation = match options.offline {
        true => builder.explain(path)?,
        false => builder.explain_and_ping(path).await?,
    };
    let fine = explanation.is_fine();
    let answer = json!({
        "file": explanation.file,
        "fine": fine,
        "caches": explanation.caches.iter().map(|cache| &cache.name).collect::<Vec<_>>(),
        "providers": explain::providers(&explanation),
        "problems": explanation.problems,
        "advice": advice(&explanation),
    });
    out.answer(&answer, text(&explanation, fine))?;
    Ok(if fine { Exit::Done } else { Exit::Failed })
}

fn text(explanation: &Explanation, fine: bool) -> String {
    let Explanation { file, providers, caches, problems, .. } = explanation;
    let answers = |provider: &ExplainedProvider| !matches!(provider.answered, Some(Err(_)));
    let word = match (fine, problems.is_empty()) {
        (true, _) => "right",
        // The file needs no change.
        (false, true) if providers.iter().all(answers) => "right, but a backplane is down",
        (false, true) => "right, but a server cannot be used",
        (false, false) => "not right here",
    };
    let mut text = format!("{file}: {word}; {}", count(caches.len(), "cache", "caches"));
    for provider in providers {
        // Writing to a string cannot fail.
        let _ = write!(text, "\nprovider {}: {}", provider.name, provider.backend);
        if let Some(address) = &provider.address {
            let _ = write!(text, " at {address}");
        }
        match &provider.answered {
            Some(Ok(())) => text.push_str(", answers"),
            Some(Err(error)) => {
                let _ = write!(text, ", CANNOT BE USED: {error}");
            }
            None => {}
        }
        match &provider.backplane {
            Some(Ok(())) => text.push_str(", its backplane is up"),
            Some(Err(error)) => {
                let _ = write!(text, ", BACKPLANE IS DOWN: {error}");
            }
            None => {}
        }
    }
    for problem in problems {
        let _ = write!(text, "\nproblem: {problem}");
    }
    for line in advice(explanation) {
        let _ = write!(text, "\nadvice: {line}");
    }
    text
}

/// The advice about each cache, with its name, and then about the file as a whole.
fn advice(explanation: &Explanation) -> Vec<String> {
    let of_caches = explanation.caches.iter().flat_map(|cache| {
        let name = &cache.name;
        cache.advice.iter().map(move |line| format!("{name}: {line}"))
    });
    of_caches.chain(explanation.advice.iter().cloned()).collect()
}

pub(crate) fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}
