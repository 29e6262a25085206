//! Numbers as the kernel prints them, without going through UTF-8.

/// A decimal number with an optional minus. Unsigned 64-bit counters beyond `i64::MAX` stay at it: the one value that
/// would be misread is 292 years away at a billion a second.
pub(super) fn decimal(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', digits @ ..] => (true, digits),
        digits => (false, digits),
    };
    if digits.is_empty() || digits.len() > 20 {
        return None;
    }
    let mut value: u64 = 0;
    for digit in digits {
        let digit = digit.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        value = if digits.len() < 20 {
            value * 10 + u64::from(digit)
        } else {
            value.checked_mul(10)?.checked_add(u64::from(digit))?
        };
    }
    let value = i64::try_from(value).unwrap_or(i64::MAX);
    Some(if negative { -value } else { value })
}

/// Hexadecimal of at most 32 bits, as in softnet_stat.
pub(super) fn hex32(text: &[u8]) -> Option<u32> {
    if text.is_empty() || text.len() > 8 {
        return None;
    }
    text.iter()
        .try_fold(0u32, |value, b| Some(value << 4 | (*b as char).to_digit(16)?))
}

/// Hexadecimal of at most 64 bits; beyond `i64::MAX` it stays at it, as with [`decimal`].
pub(super) fn hex64(text: &[u8]) -> Option<i64> {
    if text.is_empty() || text.len() > 16 {
        return None;
    }
    let value = text.iter().try_fold(0u64, |value, b| {
        Some(value << 4 | u64::from((*b as char).to_digit(16)?))
    })?;
    Some(i64::try_from(value).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_to_the_last_digit() {
        for (text, value) in [
            ("0", Some(0)),
            ("-1", Some(-1)),
            ("9223372036854775807", Some(i64::MAX)),
            ("18446744073709551615", Some(i64::MAX)),
            ("18446744073709551616", None),
            ("99999999999999999999", None),
            ("00000000000000000000001", None),
            ("", None),
            ("-", None),
            ("1a", None),
            ("+1", None),
            (" 1", None),
        ] {
            assert_eq!(decimal(text.as_bytes()), value, "{text:?}");
        }
    }

    #[test]
    fn hexadecimals_of_64_bits() {
        assert_eq!(hex64(b"00000000000000fF"), Some(255));
        assert_eq!(hex64(b"ffffffffffffffff"), Some(i64::MAX));
        for bad in ["", "1ffffffffffffffff", "x", "-1"] {
            assert_eq!(hex64(bad.as_bytes()), None, "{bad:?}");
        }
    }

    #[test]
    fn hexadecimals_of_32_bits() {
        assert_eq!(hex32(b"ffffffff"), Some(u32::MAX));
        assert_eq!(hex32(b"0000001A"), Some(26));
        for bad in ["", "1ffffffff", "x", "-1"] {
            assert_eq!(hex32(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
