//! What Grafana's back end puts into SQL for PostgreSQL, as in its source: pkg/tsdb/grafana-postgresql-datasource/macros.go
//! (`Interpolate`, `evaluateMacro`) and sqleng/sql_engine.go (`Interpolate`), version 11. Anything that it would refuse is an
//! error here too.

use anyhow::{Context as _, Result, bail};

/// The time range of a dashboard, in milliseconds since 1970, and how far points are apart, in milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    pub from: u64,
    pub to: u64,
    pub interval: u64,
}

impl Range {
    fn rfc3339(ms: u64) -> String {
        let (days, in_day) = (ms / 86_400_000, ms % 86_400_000);
        // Civil date from days since 1970 (Howard Hinnant's algorithm, for dates after 1970).
        let z = days + 719_468;
        let (era, of_era) = (z / 146_097, z % 146_097);
        let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
        let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * of_year + 2) / 153;
        let day = of_year - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 {
            month_from_march + 3
        } else {
            month_from_march - 9
        };
        let year = year_of_era + era * 400 + u64::from(month <= 2);
        let (h, m, s) = (in_day / 3_600_000, in_day / 60_000 % 60, in_day / 1000 % 60);
        format!(
            "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:03}Z",
            in_day % 1000
        )
    }
}

/// gtime.FormatInterval: the largest unit that fits.
pub(super) fn format_interval(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms}ms"),
        1000..60_000 => format!("{}s", ms / 1000),
        60_000..3_600_000 => format!("{}m", ms / 60_000),
        3_600_000..86_400_000 => format!("{}h", ms / 3_600_000),
        _ => format!("{}d", ms / 86_400_000),
    }
}

/// gtime.ParseInterval, in seconds.
fn parse_interval(text: &str) -> Result<f64> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let number: f64 = number
        .parse()
        .with_context(|| format!("error parsing interval {text}"))?;
    let seconds = match unit {
        "ms" => 0.001,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        "w" => 604_800.0,
        _ => bail!("error parsing interval {text}"),
    };
    Ok(number * seconds)
}

/// The statement that is sent to the database.
pub fn sql(text: &str, range: Range) -> Result<String> {
    let text = text
        .replace("$__interval_ms", &range.interval.to_string())
        .replace("$__interval", &format_interval(range.interval))
        .replace("$__unixEpochFrom()", &(range.from / 1000).to_string())
        .replace("$__unixEpochTo()", &(range.to / 1000).to_string());
    let mut out = String::new();
    let mut rest = text.as_str();
    // `\$([_a-zA-Z0-9]+)\(([^\)]*)\)`: arguments end at the first closing parenthesis.
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let call = &rest[at + 1..];
        let name_end = call
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(call.len());
        let (name, after) = call.split_at(name_end);
        let arguments = after.strip_prefix('(').and_then(|a| a.split_once(')'));
        let Some((arguments, after)) = arguments.filter(|_| !name.is_empty()) else {
            out.push('$');
            rest = call;
            continue;
        };
        let arguments: Vec<&str> = arguments.split(',').map(|a| a.trim_matches(' ')).collect();
        // A comma right behind it means the old form, which named the column.
        let name = if name == "__timeGroup" && after.starts_with(',') {
            "__timeGroupAlias"
        } else {
            name
        };
        out.push_str(&evaluate(name, &arguments, range)?);
        rest = after;
    }
    out.push_str(rest);
    Ok(out)
}

fn evaluate(name: &str, arguments: &[&str], range: Range) -> Result<String> {
    let column = arguments[0];
    let (from, to) = (Range::rfc3339(range.from), Range::rfc3339(range.to));
    let group = |of: &str| -> Result<String> {
        let interval = arguments
            .get(1)
            .with_context(|| format!("macro {name} needs time column and interval"))?;
        let seconds = parse_interval(interval.trim_matches('\''))?;
        Ok(format!("floor({of}/{seconds})*{seconds}"))
    };
    Ok(match name {
        "__time" => format!("{column} AS \"time\""),
        "__timeEpoch" => format!("extract(epoch from {column}) as \"time\""),
        "__timeFilter" => format!("{column} BETWEEN '{from}' AND '{to}'"),
        "__timeFrom" => format!("'{from}'"),
        "__timeTo" => format!("'{to}'"),
        "__timeGroup" => group(&format!("extract(epoch from {column})"))?,
        "__timeGroupAlias" => format!("{} AS \"time\"", group(&format!("extract(epoch from {column})"))?),
        "__unixEpochFilter" => format!("{column} >= {} AND {column} <= {}", range.from / 1000, range.to / 1000),
        "__unixEpochGroup" => group(&format!("({column})"))?,
        "__unixEpochGroupAlias" => format!("{} AS \"time\"", group(&format!("({column})"))?),
        _ => bail!("unknown macro \"{name}\""),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANGE: Range = Range {
        from: 1_523_547_180_000,
        to: 1_523_547_480_500,
        interval: 15_000,
    };

    /// As Grafana's own tests of its macros have it (macros_test.go).
    #[test]
    fn macros_become_what_grafana_makes_of_them() {
        for (text, expected) in [
            (
                "$__timeFilter(time)",
                "time BETWEEN '2018-04-12T15:33:00.000Z' AND '2018-04-12T15:38:00.500Z'",
            ),
            (
                "$__timeFrom() - $__timeTo(time)",
                "'2018-04-12T15:33:00.000Z' - '2018-04-12T15:38:00.500Z'",
            ),
            ("$__timeGroup(a , '5m')", "floor(extract(epoch from a)/300)*300"),
            (
                "$__timeGroup(a,'5m'), b",
                "floor(extract(epoch from a)/300)*300 AS \"time\", b",
            ),
            (
                "$__timeGroupAlias(a, $__interval) x",
                "floor(extract(epoch from a)/15)*15 AS \"time\" x",
            ),
            ("$__unixEpochFilter(t)", "t >= 1523547180 AND t <= 1523547480"),
            ("$__unixEpochGroup(t, '100ms')", "floor((t)/0.1)*0.1"),
            (
                "$__unixEpochFrom() $__interval_ms $1 cost$",
                "1523547180 15000 $1 cost$",
            ),
            ("$__time(t)", "t AS \"time\""),
        ] {
            assert_eq!(sql(text, RANGE).unwrap(), expected, "{text}");
        }
        for bad in ["$__timeGroup(t)", "$__nothing(t)", "$__timeGroup(t, 'x')"] {
            assert!(sql(bad, RANGE).is_err(), "{bad}");
        }
    }

    #[test]
    fn dates_are_right_around_leap_days() {
        for (ms, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400_000, "2000-02-29T00:00:00.000Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(Range::rfc3339(ms), expected);
        }
    }

    #[test]
    fn intervals_are_written_in_the_largest_unit() {
        assert_eq!(
            [500, 1000, 90_000, 7_200_000].map(format_interval),
            ["500ms", "1s", "1m", "2h"]
        );
    }
}
