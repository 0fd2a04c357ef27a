//! All that is wrong with a file, not only what is found first.

use super::{
    fault::Fault,
    node::{Node, Place, Step},
};

/// So many are enough to mend at a time.
const MOST: usize = 20;

/// How often a tree is read again. Of a mistake may follow two that are none.
const TIMES: usize = 3 * MOST;

/// A mistake, by what may be found only because of another one.
pub(super) enum Mistake {
    /// A name, a type or a reference: of one field, whatever stands beside it.
    Form(Fault),
    /// What a provider, a keyring or a cache makes of all of its fields.
    Sense(Fault),
}

/// The first mistake of a tree, and those that are found when it is read without what was wrong, in the order of the file.
/// What may be one only because of what was taken out is left out.
pub(super) fn all(first: Mistake, mut tree: Node, read: impl Fn(Node) -> Result<(), Mistake>) -> Vec<Fault> {
    let mut faults: Vec<Fault> = Vec::new();
    let mut out: Vec<Vec<Step>> = Vec::new();
    let mut next = Some(first);
    for _ in 0..TIMES {
        let (fault, of_all) = match next {
            Some(Mistake::Form(fault)) => (fault, false),
            Some(Mistake::Sense(fault)) => (fault, true),
            None => break,
        };
        let taken = tree.take_out(&fault.path);
        let follows = |out: &Vec<Step>| names(&fault.path, out) || (of_all && shares(&fault.path, out));
        if !out.iter().any(follows) {
            faults.push(fault);
        }
        if faults.len() == MOST {
            break;
        }
        let Some(taken) = taken else { break };
        out.push(taken);
        next = read(tree.clone()).err();
    }
    faults.sort_by_key(|fault| fault.place.as_ref().map_or(0, Place::line));
    faults
}

/// Whether what stands at `path` is around, within, or may be the name of what is not at `out` any more.
fn names(path: &[Step], out: &[Step]) -> bool {
    let whole = out.len() <= 2;
    let who_names_it: &[&str] = match (section(out), out.get(1).map(Step::name)) {
        (Some("providers"), _) if whole => &["defaults", "caches"],
        (Some("keyrings"), _) if whole => &["defaults", "providers", "caches"],
        (Some("defaults"), None | Some("levels")) => &["caches"],
        _ => &[],
    };
    path.starts_with(out)
        || out.starts_with(path)
        || section(path).is_some_and(|section| who_names_it.contains(&section))
}

/// Whether both are of one provider, keyring or cache, whose default for what is out may contradict what is left.
fn shares(path: &[Step], out: &[Step]) -> bool {
    let inherits = section(path) == Some("caches") && section(out) == Some("defaults");
    inherits || (path.len() > 1 && path.iter().take(2).eq(out.iter().take(2)))
}

fn section(path: &[Step]) -> Option<&str> {
    path.first().map(Step::name)
}
