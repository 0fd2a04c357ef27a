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
        "XREAD" => streams(arguments, 0)?,
        // The group and its consumer may be called anything.
        "XREADGROUP" => streams(arguments, 3)?,
        "SCAN" | "KEYS" | "RANDOMKEY" | "SCRIPT" | "FUNCTION" | "MIGRATE" | "TS.MGET" | "TS.MRANGE"
        | "TS.MREVRANGE" | "TS.QUERYINDEX" => return None,
        // Of indexes.
        name if name.starts_with("FT.") => return None,
        _ => 0,
    };
    arguments.get(at).copied()
}

fn streams(arguments: &[&[u8]], from: usize) -> Option<usize> {
    let options = arguments.get(from..)?;
    let before = options.iter().position(|word| word.eq_ignore_ascii_case(b"STREAMS"))?;
    Some(from + before + 1)
}
