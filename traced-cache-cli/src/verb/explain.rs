//! `explain`: the library does it.

use serde_json::{Value, json};
use traced_cache::config::{CachesBuilder, Explanation, Setting};

use crate::{
    end::{Exit, Failure},
    options::ExplainOptions,
    output::Output,
};

pub(crate) fn run(builder: CachesBuilder, out: Output, options: ExplainOptions) -> Result<Exit, Failure> {
    let explanation = builder.explain(options.file.checked()?)?;
    let answer = json!({
        "file": explanation.file,
        "providers": providers(&explanation),
        "caches": explanation.caches.iter().map(|cache| json!({
            "name": cache.name,
            "settings": settings(&cache.settings),
            "levels": cache.levels.iter().map(|level| json!({
                "provider": level.provider,
                "backend": level.backend,
                "settings": settings(&level.settings),
            })).collect::<Vec<_>>(),
            "advice": cache.advice,
        })).collect::<Vec<_>>(),
        "problems": explanation.problems,
        "advice": explanation.advice,
    });
    out.answer(&answer, &explanation)?;
    Ok(Exit::Done)
}

pub(crate) fn providers(explanation: &Explanation) -> Vec<Value> {
    let one = |provider: &traced_cache::config::ExplainedProvider| {
        json!({
            "name": provider.name,
            "backend": provider.backend,
            "address": provider.address,
            "settings": settings(&provider.settings),
            "caches": provider.caches,
            "answers": provider.answered.as_ref().map(Result::is_ok),
            "error": provider.answered.as_ref().and_then(|answer| answer.as_ref().err()),
            "backplane_up": provider.backplane.as_ref().map(Result::is_ok),
            "backplane_error": provider.backplane.as_ref().and_then(|up| up.as_ref().err()),
        })
    };
    explanation.providers.iter().map(one).collect()
}

fn settings(all: &[Setting]) -> Vec<Value> {
    let one =
        |setting: &Setting| json!({ "name": setting.name, "value": setting.value, "origin": setting.origin });
    all.iter().map(one).collect()
}
