//! `/proc/sys/net/*`: numbers on one line, or a list of ports.

use super::number::decimal;
use super::{ParseError, words};

/// Exactly `N` numbers.
pub fn numbers<const N: usize>(text: &[u8]) -> Result<[i64; N], ParseError> {
    let line = text.trim_ascii_end();
    let mut all = [0; N];
    let mut count = 0;
    for word in words(line) {
        let value = decimal(word).ok_or_else(|| ParseError::not_a_number(1, word))?;
        if let Some(place) = all.get_mut(count) {
            *place = value;
        }
        count += 1;
    }
    if count != N {
        return Err(ParseError::Uneven {
            line: 1,
            names: N,
            values: count,
        });
    }
    Ok(all)
}

/// `ip_local_port_range`: first and last.
pub fn port_range(text: &[u8]) -> Result<(u16, u16), ParseError> {
    let [first, last] = numbers(text)?;
    match (u16::try_from(first), u16::try_from(last)) {
        (Ok(first), Ok(last)) if first <= last => Ok((first, last)),
        _ => Err(ParseError::Shape {
            line: 1,
            what: "expected a range of ports",
        }),
    }
}

/// Ports of `ip_local_reserved_ports`: `8080,9148-9150`, or nothing. Ascending as the kernel prints them.
pub fn port_list(text: &[u8], out: &mut Vec<(u16, u16)>) -> Result<(), ParseError> {
    out.clear();
    let port = |word: &[u8]| {
        decimal(word)
            .and_then(|n| u16::try_from(n).ok())
            .ok_or_else(|| ParseError::not_a_number(1, word))
    };
    for part in text.trim_ascii().split(|b| *b == b',').filter(|part| !part.is_empty()) {
        let (first, last) = match memchr::memchr(b'-', part) {
            Some(dash) => (port(&part[..dash])?, port(&part[dash + 1..])?),
            None => (port(part)?, port(part)?),
        };
        out.push((first, last));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_numbers_as_expected() {
        assert_eq!(numbers(b"1\t2\t3\n"), Ok([1, 2, 3]));
        assert_eq!(numbers(b"262144\n"), Ok([262_144]));
        assert!(numbers::<2>(b"1\n").is_err() && numbers::<1>(b"1 2\n").is_err() && numbers::<1>(b"").is_err());
        assert_eq!(
            numbers::<1>(b"x\n"),
            Err(ParseError::NotANumber {
                line: 1,
                found: "x".into()
            })
        );
    }

    #[test]
    fn ports_in_ranges_and_lists() {
        assert_eq!(port_range(b"32768\t60999\n"), Ok((32_768, 60_999)));
        for bad in ["5 4\n", "1 65536\n", "-1 4\n", "1\n"] {
            assert!(port_range(bad.as_bytes()).is_err(), "{bad:?}");
        }
        let mut list = Vec::new();
        port_list(b"8080,9148-9150\n", &mut list).unwrap();
        assert_eq!(list, [(8080, 8080), (9148, 9150)]);
        port_list(b"\n", &mut list).unwrap();
        assert_eq!(list, []);
        for bad in ["x", "1-", "70000", "1,,x"] {
            assert!(port_list(bad.as_bytes(), &mut list).is_err(), "{bad:?}");
        }
    }
}
