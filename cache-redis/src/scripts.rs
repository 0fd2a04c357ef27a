//! What runs inside the server.
//!
//! Scripts write only keys that nobody tracks: a client that asked not to hear of its own writes hears of those that
//! its scripts make. The exceptions, [`VOID`], [`MARK`] and a [`SWAP`] of its own, are for servers that let no
//! transaction run: most often they are out of memory.

use std::sync::LazyLock;

use redis::{Pipeline, Value};

/// A script and the name under which the server keeps it.
pub(crate) struct Script {
    code: &'static str,
    sha: String,
}

/// How a script is named in a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// By its digest: short, and refused by a server that has not seen it since its start.
    Digest,
    /// By its text, which the server keeps then.
    Text,
}

impl Script {
    fn new(code: &'static str) -> Self {
        Self { code, sha: redis::Script::new(code).get_hash().to_owned() }
    }

    /// Begins the command. Arguments follow.
    pub(crate) fn on<'a>(&self, pipeline: &'a mut Pipeline, form: Form, keys: &[&str]) -> &'a mut Pipeline {
        match form {
            Form::Digest => pipeline.cmd("EVALSHA").arg(&self.sha),
            Form::Text => pipeline.cmd("EVAL").arg(self.code),
        }
        .arg(keys.len())
        .arg(keys)
    }
}

/// Whether the server does not know a script. Inside of a transaction, too.
pub(crate) fn is_unknown(reply: &Value) -> bool {
    match reply {
        Value::ServerError(error) => error.code() == "NOSCRIPT",
        Value::Array(replies) => replies.iter().any(is_unknown),
        _ => false,
    }
}

/// Answers with the value, if the asker does not hold it already. Else with a number: 1, the asker has the lease now; 0,
/// somebody else has it; 2, nobody is to have it: a writer keeps the key, or what the asker wants to replace is gone.
///
/// Keys: value, lease, hold. Arguments: token, life in ms, tombstone, what the asker holds: nothing (empty), an entry (the
/// 8 bytes of its id), anything (`*`), and `1` if that must be there still. Only the head of the value is compared, so that a
/// large one is not copied for nothing. What has another type is nothing, as for a look-up, be it in the place of the value,
/// the lease or the hold. Sent twice under one token it answers the same.
///
/// The server ends leases and holds by its wall clock. Where that was put back, or is behind that of the server before, they
/// live for as much longer: what is met ends after five times the life that is asked for, which those of a large batch need.
/// Redis before 7 does not know `LT`.
pub(crate) static ACQUIRE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "\
local function is_there(key)
  if type(redis.pcall('GET', key)) ~= 'string' then return false end
  redis.pcall('PEXPIRE', key, 5 * ARGV[2], 'LT')
  return true
end
local head = redis.pcall('GETRANGE', KEYS[1], 0, 21)
if type(head) == 'string' and #head > 0 and head ~= ARGV[3] and ARGV[4] ~= '*' then
  if #ARGV[4] == 0 or string.sub(head, 15, 22) ~= ARGV[4] then return redis.call('GET', KEYS[1]) end
elseif ARGV[5] == '1' then return 2
end
if is_there(KEYS[3]) then return 2 end
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end
if redis.pcall('GET', KEYS[2]) == ARGV[1] then return 1 end
if is_there(KEYS[2]) then return 0 end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return 1",
    )
});

/// Puts an entry beside its key, where a `RENAME` in the same transaction moves it, and ends the lease, and the hold if it
/// is one. 1, or 0 if the lease was lost.
///
/// Where there is no transaction, because the right to begin one has just been taken away, others may come in between:
/// whatever writes the key removes what is beside it, too, so that nothing is left to be moved.
///
/// Keys: lease, scratch, hold. Arguments: token, entry, and its life in ms unless it has no end.
pub(crate) static FILL: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "\
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[3] then redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3]) else redis.call('SET', KEYS[2], ARGV[2]) end
redis.call('DEL', KEYS[1])
if redis.pcall('GET', KEYS[3]) == ARGV[1] then redis.call('DEL', KEYS[3]) end
return 1",
    )
});

/// Keeps a key for a writer, and gives it the one lease that can fill it; where another writer has it, no lease can.
///
/// Keys: lease, hold. Arguments: token, life in ms. Sent twice under one token it is one hold.
pub(crate) static HOLD: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "\
local other = redis.pcall('GET', KEYS[2])
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
if type(other) == 'string' and other ~= ARGV[1] then redis.call('SET', KEYS[1], 'X', 'PX', ARGV[2])
else redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) end
return 1",
    )
});

/// Makes a key a miss and revokes its lease where the server is out of memory and refuses everything else, transactions
/// too: it lets a script run to its end whose first write takes no memory, such as `DEL`. With a token, only if that lease
/// still holds. A client that tracks the key hears of it: that costs a miss.
///
/// Keys: value, lease, scratch. Arguments: tombstone, its life in ms, perhaps a token.
pub(crate) static VOID: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "\
if ARGV[3] and redis.call('GET', KEYS[2]) ~= ARGV[3] then return 0 end
redis.call('DEL', KEYS[2], KEYS[3])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1",
    )
});

/// Puts the mark of a cache where the server is out of memory and refuses `SET`, in the way of [`SWAP`].
///
/// Key: mark. Arguments: mark, and its life in ms unless it has no end.
pub(crate) static MARK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "\
redis.pcall('RENAME', KEYS[1], KEYS[1])
if ARGV[2] then redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2]) else redis.call('SET', KEYS[1], ARGV[1]) end
return 1",
    )
});

/// Notes that a master has been met: the number of the cluster, a new one if the master was not known.
///
/// Key: the record, a hash. Arguments: the master, a new number. A record that has met too many begins anew, and so does what
/// has another type; what is no number gives way to one. `RENAME` onto itself does nothing and takes no memory. After a first
/// write of that kind a server that is out of memory lets the others run: a master that is well must not wait until another one
/// has memory again.
pub(crate) static MEET: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "\
local number = redis.pcall('HGET', KEYS[1], 'number')
if type(number) == 'table' then
  redis.call('DEL', KEYS[1])
  number = false
elseif number and (#number ~= 16 or string.find(number, '%X') or not string.find(number, '[^0]')) then
  number = false
end
if number and redis.call('HEXISTS', KEYS[1], ARGV[1]) == 1 then return number end
redis.pcall('RENAME', KEYS[1], KEYS[1])
if redis.call('HLEN', KEYS[1]) > 1000 then redis.call('DEL', KEYS[1]) end
redis.call('HSET', KEYS[1], ARGV[1], 1, 'number', ARGV[2])
return ARGV[2]",
    )
});

/// Lengthens a lease that still holds, and its hold. Keys: lease, hold. Arguments: token, life in ms.
pub(crate) static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "\
for _, key in ipairs(KEYS) do
  if redis.pcall('GET', key) == ARGV[1] then redis.call('PEXPIRE', key, ARGV[2]) end
end",
    )
});

/// Ends a lease that still holds, and its hold. Keys: lease, hold. Argument: token.
pub(crate) static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "\
for _, key in ipairs(KEYS) do
  if redis.pcall('GET', key) == ARGV[1] then redis.call('DEL', key) end
end",
    )
});

/// Replaces marks, all or none: 0, or the position of the first that is not what the caller has seen and what it is. The new
/// mark of a cache, which is tracked, is put beside it, where a `RENAME` in the same transaction moves it.
///
/// What reads as a miss is nothing: another type, a tombstone, and what is too long to be a mark.
///
/// What would stay as it is, without an end, is only compared; what was to live longer still does. As with [`MEET`], a first
/// write that takes no memory, and does nothing, lets the others run where there is none left. None is removed before it is
/// set: while a slot moves, a key that is not there any more cannot be set, and its mark would be lost.
///
/// Keys: marks, and scratch where one is put there. Arguments: the position of that one, or 0; then four to each mark: 1 if
/// something was seen, what it was, what takes its place, its life in ms or nothing.
pub(crate) static SWAP: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "\
for i = 1, (#ARGV - 1) / 4 do
  local at = i * 4 - 3
  local now = redis.pcall('GET', KEYS[i])
  if type(now) ~= 'string' or #now > 1000 or now == '\\0removed' then now = false end
  if now ~= (ARGV[at + 1] == '1' and ARGV[at + 2]) then return {i, now} end
end
redis.pcall('RENAME', KEYS[1], KEYS[1])
for i = 1, (#ARGV - 1) / 4 do
  local at = i * 4 - 3
  local life = tonumber(ARGV[at + 4])
  if life or ARGV[at + 2] ~= ARGV[at + 3] then
    local key = tonumber(ARGV[1]) == i and KEYS[#KEYS] or KEYS[i]
    local left = life and ARGV[at + 1] == '1' and redis.call('PTTL', KEYS[i]) or 0
    if life and left ~= -1 then redis.call('SET', key, ARGV[at + 3], 'PX', math.max(life, left))
    else redis.call('SET', key, ARGV[at + 3]) end
  end
end
return 0",
    )
});
