//! What happens in a history, one thing after the other.

use std::time::Duration;

use cache_core::testing::{ChaosOp, Fault};
use fastrand::Rng;

use crate::{calls::Call, model::KEYS, shape::Shape};

const MS: Duration = Duration::from_millis(1);

/// One step. It stands for itself: any of them may be left out, and the others are what they were.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Call {
        node: usize,
        call: Call,
        keys: [usize; 2],
        leaves: Option<usize>,
        seed: u64,
    },
    /// What has begun goes on for a while.
    Run(usize),
    Pass(Duration),
    Fault {
        node: usize,
        level: usize,
        op: ChaosOp,
        fault: Fault,
    },
    FaultAll {
        node: usize,
        fault: Fault,
    },
    Link {
        node: usize,
        link: LinkStep,
    },
    Deliver {
        node: usize,
        letters: usize,
    },
    /// Memory lets go of a key.
    Forget {
        node: usize,
        key: usize,
    },
    Close {
        node: usize,
        limit: Duration,
    },
    /// A node ends without `close`, as far as callers let it.
    Leave {
        node: usize,
    },
    Store {
        level: usize,
        loss: Loss,
    },
    Jump(i64),
    /// Another policy.
    Rules {
        node: usize,
        policy: usize,
    },
    /// To the one or the other of its stores.
    Move {
        node: usize,
        level: usize,
        side: usize,
    },
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum LinkStep {
    Cut {
        noticed: bool,
    },
    Deafen,
    /// What it takes is acknowledged so much later.
    Slow(Duration),
    Mend,
}

/// What becomes of a store.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Loss {
    Dump,
    Restore,
    Evict(usize),
    Revoke(usize),
    Marks,
}

pub(crate) fn draw(seed: u64, shape: &Shape, count: usize) -> Vec<Step> {
    let mut dice = Rng::with_seed(seed);
    let mut steps = Vec::with_capacity(count);
    while steps.len() < count {
        steps.extend(step(&mut dice, shape));
    }
    steps
}

fn step(dice: &mut Rng, shape: &Shape) -> Option<Step> {
    let node = dice.usize(..shape.nodes);
    let level = dice.usize(..shape.levels.max(1));
    let has_levels = shape.levels > 0;
    Some(match dice.usize(..100) {
        0..=51 => {
            let leaves = (shape.leave && dice.usize(..10) < 3).then(|| dice.usize(1..26));
            let keys = [dice.usize(..shape.keys), dice.usize(..shape.keys)];
            Step::Call { node, call: Call::any(dice), keys, leaves, seed: dice.u64(..) }
        }
        52..=74 => Step::Run(dice.usize(..20)),
        75..=81 if shape.is_orderly() => Step::Pass(MS * dice.u32(..10)),
        75..=81 => Step::Pass(MS * if dice.u8(..5) == 0 { dice.u32(..900) } else { dice.u32(..60) }),
        82..=85 if shape.faults && has_levels => {
            let op = ChaosOp::ALL[dice.usize(..ChaosOp::ALL.len())];
            Step::Fault { node, level, op, fault: fault(dice, shape) }
        }
        86 if shape.faults && has_levels => {
            let fault = [Fault::None, Fault::None, Fault::Fail, Fault::LoseReply][dice.usize(..4)];
            Step::FaultAll { node, fault }
        }
        87 | 88 if shape.cuts && shape.backplane => {
            let link = match dice.u8(..8) {
                0 => LinkStep::Cut { noticed: true },
                1 => LinkStep::Cut { noticed: false },
                2 => LinkStep::Deafen,
                3 => LinkStep::Slow(MS * dice.u32(..400)),
                4 => LinkStep::Slow(Duration::ZERO),
                _ => LinkStep::Mend,
            };
            Step::Link { node, link }
        }
        89..=92 if shape.lag && shape.backplane => Step::Deliver { node, letters: dice.usize(1..6) },
        93 if shape.memory => Step::Forget { node, key: dice.usize(..KEYS) },
        94 if shape.churn && dice.bool() => Step::Close { node, limit: MS * dice.u32(..500) },
        94 if shape.churn => Step::Leave { node },
        95 | 96 if shape.loss && has_levels => {
            let key = dice.usize(..KEYS);
            let loss = match dice.u8(..6) {
                0 => Loss::Dump,
                1 | 2 => Loss::Restore,
                3 => Loss::Evict(key),
                4 => Loss::Revoke(key),
                _ => Loss::Marks,
            };
            Step::Store { level, loss }
        }
        96 if shape.moves => Step::Move { node, level, side: dice.usize(..2) },
        98 if shape.rules => Step::Rules { node, policy: dice.usize(..4) },
        97 if shape.jumps => Step::Jump(if dice.bool() { 5_000 } else { -5_000 }),
        _ => return None,
    })
}

fn fault(dice: &mut Rng, shape: &Shape) -> Fault {
    match dice.u8(..12) {
        0..=3 => Fault::None,
        4 => Fault::Fail,
        5 => Fault::FailSome(0.5),
        6 => Fault::LoseReply,
        7 => Fault::Corrupt,
        8 if shape.delays => Fault::Delay(MS * dice.u32(..400)),
        9 if shape.delays => Fault::DelayReply(MS * dice.u32(..400)),
        10 if shape.delays => Fault::Hang,
        11 => Fault::Panic,
        _ => Fault::FailSome(0.2),
    }
}
