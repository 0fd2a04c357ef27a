//! Which argument of a command is a key.

/// The first key among the arguments of a command whose name is in capital letters. `None` where it has no key, or at no place
/// that is simple to tell.
pub(super) fn first<'a>(command: &str, arguments: &[&'a [u8]]) -> Option<&'a [u8]> {
    let at = match command {
        "OBJECT" | "XGROUP" | "XINFO" | "BITOP" => 1,
        // After the number of keys.
        "SINTERCARD" | "ZINTERCARD" | "ZUNION" | "ZINTER" | "ZDIFF" | "LMPOP" | "ZMPOP" | "MSETEX" => 1,
        // After a time as well.
        "BLMPOP" | "BZMPOP" => 2,
        "XREAD" | "XREADGROUP" => streams(command, arguments)?,
        "SCAN" | "KEYS" | "RANDOMKEY" | "SCRIPT" | "FUNCTION" | "MIGRATE" | "TS.MGET" | "TS.MRANGE"
        | "TS.MREVRANGE" | "TS.QUERYINDEX" => return None,
        // Of indexes.
        name if name.starts_with("FT.") => return None,
        _ => 0,
    };
    arguments.get(at).copied()
}

/// Where a read of streams has its options: a group and its consumer may be called anything.
fn options(command: &str) -> usize {
    if command == "XREADGROUP" { 3 } else { 0 }
}

fn streams(command: &str, arguments: &[&[u8]]) -> Option<usize> {
    let from = options(command);
    let before = arguments.get(from..)?.iter().position(|word| word.eq_ignore_ascii_case(b"STREAMS"))?;
    Some(from + before + 1)
}

/// Whether a read of streams waits for something to come.
pub(super) fn blocks(command: &str, arguments: &[&[u8]]) -> bool {
    let end = streams(command, arguments).unwrap_or(arguments.len());
    let options = arguments.get(options(command)..end).unwrap_or_default();
    options.iter().any(|word| word.eq_ignore_ascii_case(b"BLOCK"))
}
