//! Prometheus text exposition format 0.0.4 and OpenMetrics 1.0, each written the one way it may be written.
//!
//! Where the two differ: OpenMetrics names a counter's family without `_total`, has `# UNIT`, escapes quotes in help, and
//! ends with `# EOF`. Its counters must end in `_total`, so one that is called otherwise is told as `unknown` there: a
//! series has the same name in both.

use std::fmt::Write as _;

/// `text/plain; version=0.0.4`.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";
/// The last line of an OpenMetrics page.
pub const EOF: &str = "# EOF\n";

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Format {
    /// Prometheus text 0.0.4.
    #[default]
    Text,
    /// OpenMetrics 1.0.
    OpenMetrics,
}

impl Format {
    pub const ALL: [Self; 2] = [Self::Text, Self::OpenMetrics];

    pub const fn content_type(self) -> &'static str {
        match self {
            Self::Text => CONTENT_TYPE,
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    Counter,
    Gauge,
    Histogram,
}

impl Type {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// A page under construction. A family is begun once and then gets all its samples.
#[derive(Debug, Default)]
pub struct Page {
    format: Format,
    text: String,
}

impl Page {
    pub fn new() -> Self {
        Self::default()
    }

    pub fn of(format: Format) -> Self {
        Self {
            format,
            text: String::new(),
        }
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// What describes a family. Its unit is the one its name ends with, if that is a base unit.
    pub fn family(&mut self, name: &str, kind: Type, help: &str) {
        let unit = ["seconds", "bytes"]
            .into_iter()
            .find(|unit| ends_with(name, kind, unit));
        self.family_in(name, kind, help, unit.unwrap_or_default());
    }

    /// The same in a unit; OpenMetrics is told of it where the name ends with it.
    pub fn family_in(&mut self, name: &str, kind: Type, help: &str, unit: &str) {
        let (family, type_name) = match (self.format, kind, name.strip_suffix("_total")) {
            (Format::OpenMetrics, Type::Counter, Some(family)) => (family, "counter"),
            (Format::OpenMetrics, Type::Counter, None) => (name, "unknown"),
            _ => (name, kind.as_str()),
        };
        let _ = write!(self.text, "# HELP {family} ");
        match self.format {
            Format::Text => escape_help(&mut self.text, help),
            Format::OpenMetrics => escape_value(&mut self.text, help),
        }
        let _ = writeln!(self.text, "\n# TYPE {family} {type_name}");
        if self.format == Format::OpenMetrics && !unit.is_empty() && ends_with(name, kind, unit) {
            let _ = writeln!(self.text, "# UNIT {family} {unit}");
        }
    }

    /// A sample of the family begun last.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Into<Number>) {
        self.text.push_str(name);
        if !labels.is_empty() {
            self.text.push('{');
            write_labels(&mut self.text, labels.iter().copied());
            self.text.push('}');
        }
        self.text.push(' ');
        value.into().write(&mut self.text);
        self.text.push('\n');
    }

    /// A sample whose labels are rendered already, by [`write_labels`]: for pages on which they repeat.
    pub fn rendered(&mut self, name: &str, labels: &str, value: impl Into<Number>) {
        self.text.push_str(name);
        self.text.push('{');
        self.text.push_str(labels);
        self.text.push_str("} ");
        value.into().write(&mut self.text);
        self.text.push('\n');
    }

    /// A sample in parts that are rendered already: name and suffix, and labels one after another, each but the first
    /// with its comma.
    pub fn parts(&mut self, name: [&str; 2], labels: [&str; 3], value: impl Into<Number>) {
        let [name, suffix] = name;
        let [first, second, third] = labels;
        for part in [name, suffix, "{", first, second, third, "} "] {
            self.text.push_str(part);
        }
        value.into().write(&mut self.text);
        self.text.push('\n');
    }

    /// Lines that were rendered as a page of their own.
    pub fn append(&mut self, page: &str) {
        self.text.push_str(page);
    }

    pub fn len(&self) -> usize {
        self.text.len()
    }

    pub fn is_empty(&self) -> bool {
        self.text.is_empty()
    }

    /// Gives what is written so far to `take` and goes on with an empty page.
    pub fn drain(&mut self, take: impl FnOnce(&str)) {
        take(&self.text);
        self.text.clear();
    }

    /// A family with one sample and no labels.
    pub fn single(&mut self, name: &str, kind: Type, help: &str, value: impl Into<Number>) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    /// The lines, without the last one of OpenMetrics ([`EOF`]): the page may be a part of another.
    pub fn finish(self) -> String {
        self.text
    }
}

/// Whether a name ends with a unit, before the `_total` of a counter.
fn ends_with(name: &str, kind: Type, unit: &str) -> bool {
    let stem = match kind {
        Type::Counter => name.strip_suffix("_total").unwrap_or(name),
        _ => name,
    };
    stem.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_'))
}

/// Counters stay whole numbers to the last digit; everything else is a float.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    Int(i128),
    Float(f64),
}

impl Number {
    pub fn write(self, out: &mut String) {
        let _ = match self {
            Self::Int(value) => {
                let mut digits = itoa::Buffer::new();
                // Almost all fit, and 128 bits take several times as long to divide.
                out.push_str(match i64::try_from(value) {
                    Ok(value) => digits.format(value),
                    Err(_) => digits.format(value),
                });
                Ok(())
            }
            Self::Float(value) if value.is_nan() => write!(out, "NaN"),
            Self::Float(value) if value.is_infinite() => write!(out, "{}Inf", if value > 0.0 { '+' } else { '-' }),
            Self::Float(value) => write!(out, "{value}"),
        };
    }
}

/// How a stored integer becomes a value in its unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    One,
    /// `1e-9` is kept as its inverse: a division by 1e9 rounds right, a product with 1e-9 does not.
    Divide(f64),
    Multiply(f64),
}

impl Scale {
    /// Of a factor; 0, as protobuf has it where nothing is set, is 1.
    pub fn new(factor: f64) -> Self {
        if factor == 0.0 || factor == 1.0 || !factor.is_finite() {
            return Self::One;
        }
        let inverse = (1.0 / factor).round();
        if factor.abs() < 1.0 && (inverse * factor - 1.0).abs() < 1e-12 {
            Self::Divide(inverse)
        } else {
            Self::Multiply(factor)
        }
    }

    pub fn apply(self, stored: i128) -> Number {
        match self {
            Self::One => Number::Int(stored),
            Self::Divide(by) => Number::Float(stored as f64 / by),
            Self::Multiply(by) => Number::Float(stored as f64 * by),
        }
    }
}

macro_rules! from_int {
    ($($t:ty),*) => { $(impl From<$t> for Number { fn from(value: $t) -> Self { Self::Int(value as i128) } })* };
}
from_int!(u8, u16, u32, u64, usize, i32, i64, bool);

impl From<f64> for Number {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

/// `a="x",b="y"` with values escaped.
pub fn write_labels<'a>(out: &mut String, labels: impl IntoIterator<Item = (&'a str, &'a str)>) {
    for (i, (name, value)) in labels.into_iter().enumerate() {
        if i > 0 {
            out.push(',');
        }
        out.push_str(name);
        out.push_str("=\"");
        escape_value(out, value);
        out.push('"');
    }
}

/// Backslash, double quote and line feed, as the format asks.
pub fn escape_value(out: &mut String, value: &str) {
    if !value.contains(['\\', '"', '\n']) {
        out.push_str(value);
        return;
    }
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

/// Help text: backslash and line feed.
pub fn escape_help(out: &mut String, help: &str) {
    for c in help.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_written_as_prometheus_reads_it() {
        let mut page = Page::new();
        page.family("x_total", Type::Counter, "a \\ b\nc");
        page.sample("x_total", &[("pod", "a\"b\\c\nd"), ("node", "n")], u64::MAX);
        page.rendered("x_total", "pod=\"p\"", 1u8);
        page.single("y", Type::Gauge, "h", 0.5);
        assert_eq!(
            page.finish(),
            "# HELP x_total a \\\\ b\\nc\n# TYPE x_total counter\n\
             x_total{pod=\"a\\\"b\\\\c\\nd\",node=\"n\"} 18446744073709551615\n\
             x_total{pod=\"p\"} 1\n\
             # HELP y h\n# TYPE y gauge\ny 0.5\n"
        );
    }

    #[test]
    fn openmetrics_names_families_without_total_tells_units_and_escapes_quotes() {
        let mut page = Page::of(Format::OpenMetrics);
        page.family("x_seconds_total", Type::Counter, "a \"b\"");
        page.parts(["x_seconds", "_total"], ["a=\"1\"", ",b=\"2\"", ""], 1u8);
        page.family_in("y_packets", Type::Gauge, "h", "packets");
        page.family_in("z", Type::Gauge, "h", "packets");
        page.single("readbytes", Type::Counter, "a name that is not ours", 7u8);
        assert_eq!(
            page.finish(),
            "# HELP x_seconds a \\\"b\\\"\n# TYPE x_seconds counter\n# UNIT x_seconds seconds\n\
             x_seconds_total{a=\"1\",b=\"2\"} 1\n\
             # HELP y_packets h\n# TYPE y_packets gauge\n# UNIT y_packets packets\n\
             # HELP z h\n# TYPE z gauge\n\
             # HELP readbytes a name that is not ours\n# TYPE readbytes unknown\nreadbytes 7\n"
        );
    }

    #[test]
    fn floats_that_are_not_numbers_have_their_own_words() {
        for (value, text) in [
            (f64::NAN, "NaN"),
            (f64::INFINITY, "+Inf"),
            (f64::NEG_INFINITY, "-Inf"),
            (1e21, "1000000000000000000000"),
        ] {
            let mut out = String::new();
            Number::Float(value).write(&mut out);
            assert_eq!(out, text);
        }
    }
}
