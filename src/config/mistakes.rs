//! Finds all mistakes of a file, not only the first.

use super::{
    fault::Fault,
    node::{Node, Place, Step},
};

/// More than this many at a time help nobody.
const MOST: usize = 20;

/// How often a tree is read again at most. One mistake may cause two others, which are not reported.
const TIMES: usize = 3 * MOST;

/// A mistake, by what else it may be a consequence of.
pub(super) enum Mistake {
    /// Of one field, whatever stands beside it: an unknown name, a wrong type, a bad reference.
    Form(Fault),
    /// Of a provider, a keyring or a cache as a whole, whose fields do not go together.
    Sense(Fault),
}

/// All mistakes, in the order of the file: the first, and those found by reading the tree again without the field that was
/// wrong. What may be wrong only because that field was taken out is not reported.
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

/// Whether `path` is around or within `out`, which has been taken out, or may name what was there.
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

/// Whether both are of one provider, keyring or cache: the default of the field that was taken out may not go with the rest.
fn shares(path: &[Step], out: &[Step]) -> bool {
    let inherits = section(path) == Some("caches") && section(out) == Some("defaults");
    inherits || (path.len() > 1 && path.iter().take(2).eq(out.iter().take(2)))
}

fn section(path: &[Step]) -> Option<&str> {
    path.first().map(Step::name)
}
