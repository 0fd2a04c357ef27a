//! Finds JSON numbers that would not survive being read into 64 bits.

/// Digits that tell any two numbers of 64 bits apart.
const DIGITS: usize = 17;

/// The column, counted from 1, of the first number in a valid JSON text that would change when it is read and written again.
pub(crate) fn changed(json: &[u8]) -> Option<usize> {
    let mut at = 0;
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => at = after_string(json, at),
            b'-' | b'0'..=b'9' => {
                let part = |byte: &&u8| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
                let end = at + json[at..].iter().take_while(part).count();
                if !std::str::from_utf8(&json[at..end]).is_ok_and(stays) {
                    return Some(at + 1);
                }
                at = end;
            }
            _ => at += 1,
        }
    }
    None
}

fn after_string(json: &[u8], from: usize) -> usize {
    let mut at = from + 1;
    while let Some(byte) = json.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    at
}

fn stays(number: &str) -> bool {
    if !number.contains(['.', 'e', 'E']) {
        return number.parse::<u64>().is_ok() || number.parse::<i64>().is_ok();
    }
    let mantissa = number.split(['e', 'E']).next().unwrap_or_default();
    let digits: String = mantissa.chars().filter(char::is_ascii_digit).collect();
    let digits = digits.trim_start_matches('0');
    let digits = if mantissa.contains('.') { digits.trim_end_matches('0') } else { digits };
    let is_zero = digits.is_empty();
    digits.len() <= DIGITS
        // Too small for 64 bits: nothing would be left of it.
        && number.parse::<f64>().is_ok_and(|value| value.is_normal() || value == 0.0 && is_zero)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_would_be_another_one_is_found() {
        for fine in [
            "0",
            "-1",
            "18446744073709551615",
            "-9223372036854775808",
            "1.5",
            "1.50000000000000000000",
            "1e300",
            "0.0",
            "0.10000000000000001",
            "-0.0e5",
            "{\"123456789012345678901234567890\": \"\\\"99999999999999999999999\"}",
        ] {
            assert_eq!(changed(fine.as_bytes()), None, "{fine}");
        }
        for (text, column) in [
            ("123456789012345678901234567890", 1),
            ("[1, 18446744073709551616]", 5),
            ("-9223372036854775809", 1),
            ("{\"a\": 0.123456789012345678}", 7),
            ("1e-400", 1),
        ] {
            assert_eq!(changed(text.as_bytes()), Some(column), "{text}");
        }
    }
}
