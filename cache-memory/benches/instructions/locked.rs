//! Which of the instructions that callgrind has counted lock a line of memory.

use std::{collections::HashSet, env, process::Command, sync::OnceLock};

/// How often instructions of this program that lock were run, by callgrind's output with `--dump-instr=yes`: see "Callgrind
/// Format Specification" in valgrind's manual.
pub(super) fn sum(profile: &str) -> u64 {
    let program = env::current_exe().unwrap();
    let program = program.to_str().unwrap();
    let (mut id, mut here, mut of_a_call, mut address, mut sum) = (None, false, false, 0, 0);
    for line in profile.lines() {
        if let Some(object) = line.strip_prefix("cob=").or_else(|| line.strip_prefix("ob=")) {
            // "(2) /path" where it is named first, "(2)" from then on.
            let (number, path) = object.split_once(' ').unwrap_or((object, ""));
            if path == program {
                id = Some(number.to_owned());
            }
            if line.starts_with('o') {
                here = id.as_deref() == Some(number);
            }
        } else if line.starts_with("calls=") {
            // What the next line tells is the cost of what was called.
            of_a_call = true;
        } else if line.starts_with(['0', '+', '-', '*']) {
            let mut words = line.split(' ');
            address = moved(address, words.next().unwrap_or_default());
            let cost: u64 = words.next_back().and_then(|cost| cost.parse().ok()).unwrap_or(0);
            if here && !of_a_call && locking().contains(&address) {
                sum += cost;
            }
            of_a_call = false;
        }
    }
    // Elsewhere than on x86 they have other names, and there are no figures.
    let counts = id.is_some() && (!locking().is_empty() || !cfg!(target_arch = "x86_64"));
    assert!(counts, "neither callgrind nor objdump may know the program by another name");
    sum
}

/// An address as it is given: in full, or by how far it is from the last one.
fn moved(from: u64, to: &str) -> u64 {
    let number = |text: &str| match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16).unwrap(),
        None => text.parse().unwrap(),
    };
    match to.split_at(1) {
        ("*", _) => from,
        ("+", by) => from + number(by),
        ("-", by) => from - number(by),
        _ => number(to),
    }
}

/// Addresses of this program's instructions that lock: an exchange with memory does without saying so.
fn locking() -> &'static HashSet<u64> {
    static ALL: OnceLock<HashSet<u64>> = OnceLock::new();
    ALL.get_or_init(|| {
        let program = env::current_exe().unwrap();
        let dump = Command::new("objdump").args(["-d", "--no-show-raw-insn"]).arg(program).output().unwrap();
        let locks = |instruction: &str| {
            instruction.starts_with("lock ") || instruction.starts_with("xchg ") && instruction.contains('(')
        };
        let address = |line: &str| {
            let (address, instruction) = line.trim_start().split_once(":\t")?;
            locks(instruction).then(|| u64::from_str_radix(address, 16).ok())?
        };
        String::from_utf8_lossy(&dump.stdout).lines().filter_map(address).collect()
    })
}
