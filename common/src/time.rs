//! UTC instants as Unix nanoseconds, and durations as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Now, in nanoseconds since 1970-01-01 UTC.
pub fn now_ns() -> u64 {
    std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_nanos() as u64)
}

/// RFC 3339 in UTC with microseconds: what PostgreSQL keeps and what the API shows.
pub fn rfc3339(unix_ns: u64) -> String {
    let micros = i64::try_from(unix_ns / 1000).unwrap_or(i64::MAX);
    match jiff::Timestamp::from_microsecond(micros) {
        Ok(t) => format!("{t:.6}"),
        Err(_) => String::new(),
    }
}

/// A duration in configuration: a number with a unit, `250ms`, `15s`, `5m`, `2h`, `7d`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl Span {
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }
    pub const fn as_nanos(self) -> u64 {
        self.0.as_nanos() as u64
    }
}

const UNITS: [(&str, u64); 5] = [
    ("ms", 1),
    ("s", 1000),
    ("m", 60_000),
    ("h", 3_600_000),
    ("d", 86_400_000),
];

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, unit) = text.split_at(digits);
        let expected = || {
            format!(
                "`{text}` is not a duration: expected a whole number with a unit, such as `250ms`, `15s`, `5m`, `2h` or `7d`"
            )
        };
        if unit.is_empty() && !number.is_empty() {
            return Err(format!("`{text}` has no unit, try `{text}s`"));
        }
        let number: u64 = number.parse().map_err(|_| expected())?;
        let (_, millis) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(expected)?;
        let millis = number
            .checked_mul(*millis)
            .filter(|m| *m <= 3650 * 86_400_000)
            .ok_or_else(|| format!("`{text}` is longer than ten years"))?;
        Ok(Self(Duration::from_millis(millis)))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis() as u64;
        let (name, size) = UNITS
            .iter()
            .rev()
            .find(|(_, size)| millis != 0 && millis.is_multiple_of(*size))
            .unwrap_or(&UNITS[1]);
        write!(f, "{}{name}", millis / size)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl serde::de::Visitor<'_> for Visitor {
            type Value = Span;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration with a unit, such as `15s`")
            }
            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Span, E> {
                text.parse().map_err(E::custom)
            }
            fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<Span, E> {
                self.visit_str(&number.to_string())
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl Serialize for Span {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_has_a_unit() {
        assert_eq!("15s".parse::<Span>(), Ok(Span::from_secs(15)));
        assert_eq!("250ms".parse::<Span>(), Ok(Span(Duration::from_millis(250))));
        assert_eq!("7d".parse::<Span>().unwrap().to_string(), "7d");
        assert_eq!(Span::from_secs(90).to_string(), "90s");
        assert_eq!("15".parse::<Span>().unwrap_err(), "`15` has no unit, try `15s`");
        for bad in ["", "s", "1.5s", "-1s", "1w", "99999999999999999999d", "5000d"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn time_is_shown_as_rfc_3339_in_utc() {
        assert_eq!(rfc3339(1_795_344_717_123_456_789), "2026-11-22T10:51:57.123456Z");
    }
}
