//! The shortest history that still goes wrong.

use std::fmt::Write;

use crate::{run::run, shape::Shape, steps::Step};

/// Leaves out steps, fewer and fewer at a time, as long as the rest still goes wrong; then tells all that happens in it.
pub(crate) fn report(seed: u64, shape: Shape, mut steps: Vec<Step>) -> String {
    let mut ended = run(seed, shape, &steps);
    let mut chunk = steps.len().div_ceil(2);
    while chunk > 0 {
        let (mut at, before) = (0, steps.len());
        while at < steps.len() {
            let mut fewer = steps.clone();
            fewer.drain(at..(at + chunk).min(steps.len()));
            let shorter = run(seed, shape, &fewer);
            if shorter.wrong.is_some() {
                (steps, ended) = (fewer, shorter);
            } else {
                at += chunk;
            }
        }
        // Once more one by one, if that has helped.
        if chunk > 1 || steps.len() == before {
            chunk /= 2;
        }
    }
    let mut text = format!("history {seed}, {} steps of it, {shape:#?}\n", steps.len());
    for line in &ended.trace {
        let _ = writeln!(text, "  {line}");
    }
    text
}
