//! Query parameters: repeatable, `!` negates, and none is taken that nobody reads. What may be given is read from the
//! documentation of the endpoint, so the two cannot differ.

use std::net::IpAddr;

use sonde_common::time::{Span, now_ns};
use utoipa::IntoParams;
use utoipa::openapi::path::Parameter;

use super::problem::Problem;
use crate::store::query::Micros;
use crate::store::query::filter::{Network, Terms};

/// Values of one key that are taken at most: each may cost a look into a dictionary.
const MAX_VALUES: usize = 100;
const MAX_VALUE: usize = 1024;

#[derive(Debug)]
pub(crate) struct Params {
    pairs: Vec<(String, String)>,
}

impl Params {
    /// Reads a query string. `D` documents what is known.
    pub(crate) fn read<D: IntoParams>(query: Option<&str>) -> Result<Self, Problem> {
        Self::of(query, &D::into_params(|| None))
    }

    /// The same where two structs document the parameters.
    pub(crate) fn read_both<D: IntoParams, E: IntoParams>(query: Option<&str>) -> Result<Self, Problem> {
        Self::of(query, &[D::into_params(|| None), E::into_params(|| None)].concat())
    }

    fn of(query: Option<&str>, documented: &[Parameter]) -> Result<Self, Problem> {
        let known: Vec<&str> = documented.iter().map(|p| p.name.as_str()).collect();
        let pairs: Vec<(String, String)> = form_urlencoded::parse(query.unwrap_or_default().as_bytes())
            .into_owned()
            .collect();
        for (name, value) in &pairs {
            if !known.contains(&name.as_str()) {
                let shown: String = name.chars().take(100).collect();
                return Err(Problem::bad(
                    &shown,
                    format!("unknown parameter `{shown}`; known are {}", known.join(", ")),
                ));
            }
            if value.len() > MAX_VALUE {
                return Err(Problem::bad(name, format!("`{name}` is longer than {MAX_VALUE} bytes")));
            }
            if value.contains('\0') {
                return Err(Problem::bad(name, format!("`{name}` contains a NUL byte")));
            }
            if pairs.iter().filter(|(other, _)| other == name).count() > MAX_VALUES {
                return Err(Problem::bad(
                    name,
                    format!("`{name}` is given more than {MAX_VALUES} times"),
                ));
            }
        }
        Ok(Self { pairs })
    }

    pub(crate) fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs
            .iter()
            .filter(move |(n, _)| n == name)
            .map(|(_, value)| value.as_str())
    }

    /// A parameter that can be given once.
    pub(crate) fn one<'a>(&'a self, name: &'a str) -> Result<Option<&'a str>, Problem> {
        let mut values = self.all(name);
        let first = values.next();
        match values.next() {
            None => Ok(first),
            Some(_) => Err(Problem::bad(name, format!("`{name}` is given more than once"))),
        }
    }

    /// Words; a leading `!` negates.
    pub(crate) fn words(&self, name: &str) -> Terms<String> {
        self.terms(name, |value| Ok::<_, Problem>(value.to_owned()))
            .unwrap_or_default()
    }

    /// Values of a kind; a leading `!` negates.
    pub(crate) fn terms<T, E>(&self, name: &str, parse: impl Fn(&str) -> Result<T, E>) -> Result<Terms<T>, E> {
        let mut terms = Terms::default();
        for value in self.all(name) {
            match value.strip_prefix('!') {
                Some(value) => terms.none.push(parse(value)?),
                None => terms.any.push(parse(value)?),
            }
        }
        Ok(terms)
    }

    /// `10.1.2.3`, `10.0.0.0/8`, `fd00::1`.
    pub(crate) fn networks(&self, name: &str) -> Result<Terms<Network>, Problem> {
        self.terms(name, |value| {
            network(value).ok_or_else(|| {
                Problem::bad(
                    name,
                    format!(
                        "`{name}={value}`: expected an address such as `10.1.2.3` or a network such as `10.0.0.0/8`"
                    ),
                )
            })
        })
    }

    pub(crate) fn ports(&self, name: &str) -> Result<Terms<u16>, Problem> {
        self.terms(name, |value| {
            let port = value.parse().ok().filter(|_| value.bytes().all(|b| b.is_ascii_digit()));
            port.ok_or_else(|| Problem::bad(name, format!("`{name}={value}`: expected a port from 0 to 65535")))
        })
    }

    /// `10ms`, or a number of nanoseconds.
    pub(crate) fn nanoseconds(&self, name: &str) -> Result<Option<i64>, Problem> {
        let Some(value) = self.one(name)? else { return Ok(None) };
        let ns = match value.parse::<u64>() {
            Ok(ns) => i64::try_from(ns).ok(),
            Err(_) => value
                .parse::<Span>()
                .ok()
                .and_then(|span| i64::try_from(span.as_nanos()).ok()),
        };
        ns.map(Some).ok_or_else(|| {
            Problem::bad(
                name,
                format!("`{name}={value}`: expected a duration such as `10ms`, or nanoseconds"),
            )
        })
    }

    pub(crate) fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.one(name)? {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(value) => Err(Problem::bad(
                name,
                format!("`{name}={value}`: expected `true` or `false`"),
            )),
        }
    }

    /// A whole number within bounds.
    pub(crate) fn number(&self, name: &str, default: u32, max: u32) -> Result<u32, Problem> {
        let Some(value) = self.one(name)? else {
            return Ok(default);
        };
        let number = value.parse().ok().filter(|n| (1..=max).contains(n));
        number.ok_or_else(|| {
            Problem::bad(
                name,
                format!("`{name}={value}`: expected a whole number from 1 to {max}"),
            )
        })
    }

    /// A word of a fixed set, the first one being the default.
    pub(crate) fn choice<T: Copy>(&self, name: &str, choices: &[(&str, T)]) -> Result<T, Problem> {
        let Some(value) = self.one(name)? else {
            return Ok(choices[0].1);
        };
        choices
            .iter()
            .find(|(word, _)| *word == value)
            .map(|(_, choice)| *choice)
            .ok_or_else(|| {
                let words: Vec<_> = choices.iter().map(|(word, _)| *word).collect();
                Problem::bad(name, format!("`{name}={value}`: expected one of {}", words.join(", ")))
            })
    }

    pub(crate) fn span(&self, name: &str) -> Result<Option<Span>, Problem> {
        let Some(value) = self.one(name)? else { return Ok(None) };
        match value.parse::<Span>() {
            Ok(span) if span > Span::from_secs(0) => Ok(Some(span)),
            Ok(_) => Err(Problem::bad(
                name,
                format!("`{name}={value}`: expected a duration longer than nothing"),
            )),
            Err(reason) => Err(Problem::bad(name, format!("`{name}`: {reason}"))),
        }
    }

    pub(crate) fn time(&self, name: &str, now: Micros) -> Result<Option<Micros>, Problem> {
        let Some(value) = self.one(name)? else { return Ok(None) };
        time(value, now).map(Some).ok_or_else(|| {
            Problem::bad(name, format!("`{name}={value}`: expected RFC 3339 such as `2026-01-31T10:00:00Z`, `now`, or a time ago such as `-15m`"))
        })
    }

    /// `from` and `to`: the last `default` up to now unless given.
    pub(crate) fn range(&self, default: Span) -> Result<(Micros, Micros), Problem> {
        let now = now_micros();
        let to = self.time("to", now)?.unwrap_or(now);
        let from = self.time("from", now)?.unwrap_or_else(|| to.min(now) - micros(default));
        if from >= to {
            return Err(Problem::bad("from", "`from` is not before `to`"));
        }
        Ok((from, to))
    }
}

pub(crate) fn now_micros() -> Micros {
    i64::try_from(now_ns() / 1000).unwrap_or(i64::MAX)
}

pub(crate) fn micros(span: Span) -> Micros {
    i64::try_from(span.0.as_micros()).unwrap_or(i64::MAX)
}

fn network(text: &str) -> Option<Network> {
    let (address, prefix) = match text.split_once('/') {
        None => (text, None),
        Some((address, prefix)) => (address, Some(prefix)),
    };
    let address: IpAddr = address.parse().ok()?;
    let max = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => max,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits.parse().ok().filter(|p| *p <= max)?,
        Some(_) => return None,
    };
    Some(Network { address, prefix })
}

/// Years 1970 to 9999, so that PostgreSQL and JavaScript can follow.
fn time(text: &str, now: Micros) -> Option<Micros> {
    if text == "now" {
        return Some(now);
    }
    let time = match text.strip_prefix('-') {
        Some(ago) => now.checked_sub(micros(ago.parse().ok()?))?,
        // A plus that was not encoded has become a space.
        None => text.replace(' ', "+").parse::<jiff::Timestamp>().ok()?.as_microsecond(),
    };
    (0..=253_402_300_799_000_000).contains(&time).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(IntoParams)]
    #[expect(dead_code, reason = "documents parameters")]
    struct Known {
        a: String,
        from: String,
        to: String,
    }

    fn params(query: &str) -> Params {
        Params::read::<Known>(Some(query)).unwrap()
    }

    #[test]
    fn an_unknown_parameter_is_named_with_the_known_ones() {
        let problem = Params::read::<Known>(Some("a=1&b=2")).unwrap_err();
        assert_eq!(problem.detail(), "unknown parameter `b`; known are a, from, to");
        assert!(Params::read::<Known>(Some(&"a=1&".repeat(101))).is_err());
        assert!(Params::read::<Known>(Some(&format!("a={}", "x".repeat(1025)))).is_err());
        assert!(Params::read::<Known>(Some("a=%00")).is_err());
        assert!(Params::read::<Known>(None).unwrap().one("a").unwrap().is_none());
    }

    #[test]
    fn an_exclamation_mark_negates() {
        let terms = params("a=x&a=!y&a=&a=!&a=z%21").words("a");
        assert_eq!(terms.any, ["x", "", "z!"]);
        assert_eq!(terms.none, ["y", ""]);
        assert!(
            params("a=1&a=2")
                .one("a")
                .unwrap_err()
                .detail()
                .contains("more than once")
        );
    }

    #[test]
    fn addresses_and_networks_are_told_from_anything_else() {
        let ok = |text: &str, prefix| assert_eq!(network(text).unwrap().prefix, prefix, "{text}");
        ok("10.1.2.3", 32);
        ok("10.0.0.0/8", 8);
        ok("0.0.0.0/0", 0);
        ok("fd00::1", 128);
        ok("fd00::/64", 64);
        for bad in [
            "",
            "10.1.2",
            "10.1.2.3/33",
            "10.1.2.3/",
            "10.1.2.3/+8",
            "10.1.2.3/8/8",
            "::/129",
            "host",
            "10.1.2.3 ",
        ] {
            let problem = params(&format!("a={bad}")).networks("a").unwrap_err();
            assert!(problem.detail().contains("10.0.0.0/8"), "{bad}");
        }
    }

    #[test]
    fn ports_are_numbers() {
        assert_eq!(
            params("a=0&a=!65535").ports("a").unwrap(),
            Terms {
                any: vec![0],
                none: vec![65535]
            }
        );
        for bad in ["", "65536", "-1", "%2B1", "http", "1.5", "0x1"] {
            assert!(params(&format!("a={bad}")).ports("a").is_err(), "{bad}");
        }
    }

    #[test]
    fn a_latency_has_a_unit_or_is_in_nanoseconds() {
        let ok = |text: &str| params(&format!("a={text}")).nanoseconds("a").unwrap().unwrap();
        assert_eq!(ok("10ms"), 10_000_000);
        assert_eq!(ok("1500"), 1500);
        for bad in ["", "ms", "-1", "1.5s", "!10ms", "18446744073709551615", "10 ms"] {
            assert!(params(&format!("a={bad}")).nanoseconds("a").is_err(), "{bad}");
        }
    }

    #[test]
    fn numbers_flags_and_choices_are_bounded() {
        assert_eq!(params("").number("a", 7, 10).unwrap(), 7);
        assert_eq!(params("a=10").number("a", 7, 10).unwrap(), 10);
        for bad in ["0", "11", "-1", "", "x", "4294967296"] {
            assert!(params(&format!("a={bad}")).number("a", 7, 10).is_err(), "{bad}");
        }
        assert!(params("a=true").flag("a").unwrap());
        assert!(params("a=yes").flag("a").is_err());
        assert_eq!(params("a=two").choice("a", &[("one", 1), ("two", 2)]).unwrap(), 2);
        let problem = params("a=x").choice("a", &[("one", 1), ("two", 2)]).unwrap_err();
        assert_eq!(problem.detail(), "`a=x`: expected one of one, two");
    }

    #[test]
    fn times_are_absolute_or_ago() {
        const NOW: Micros = 1_795_344_717_123_456;
        for (text, expected) in [
            ("now", NOW),
            ("-15m", NOW - 900_000_000),
            ("-250ms", NOW - 250_000),
            ("2026-11-22T10:51:57.123456Z", NOW),
            ("2026-11-22T12:51:57.123456+02:00", NOW),
            ("2026-11-22T12:51:57.123456 02:00", NOW),
            ("1970-01-01T00:00:00Z", 0),
        ] {
            assert_eq!(time(text, NOW), Some(expected), "{text}");
        }
        for bad in [
            "",
            "-",
            "15m",
            "-15",
            "--15m",
            "-15m ",
            "yesterday",
            "2026-11-22",
            "2026-11-22T10:51:57",
            "1795344717",
            "1969-12-31T23:59:59Z",
            "2026-13-01T00:00:00Z",
            "-9999999999d",
            "-3650d1",
            "10000-01-01T00:00:00Z",
        ] {
            assert_eq!(time(bad, NOW), None, "{bad}");
        }
        assert_eq!(time("-1h", 0), None);
    }

    #[test]
    fn a_range_goes_forward() {
        let (from, to) = params("").range(Span::from_secs(60)).unwrap();
        assert_eq!(to - from, 60_000_000);
        let (from, to) = params("from=-2m&to=-1m").range(Span::from_secs(5)).unwrap();
        assert_eq!(to - from, 60_000_000);
        let (from, to) = params("to=-1h").range(Span::from_secs(60)).unwrap();
        assert_eq!(to - from, 60_000_000, "the default counts from the end");
        for bad in [
            "from=-1m&to=-2m",
            "from=now&to=now",
            "from=x",
            "to=x",
            "from=-1m&from=-2m",
        ] {
            assert!(params(bad).range(Span::from_secs(60)).is_err(), "{bad}");
        }
    }
}
