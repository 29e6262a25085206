//! Prometheus text exposition format 0.0.4, written the one way it may be written.

use std::fmt::Write as _;

/// `text/plain; version=0.0.4`.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

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
    text: String,
}

impl Page {
    pub fn new() -> Self {
        Self::default()
    }

    /// `# HELP` and `# TYPE` of a family.
    pub fn family(&mut self, name: &str, kind: Type, help: &str) {
        let _ = write!(self.text, "# HELP {name} ");
        escape_help(&mut self.text, help);
        let _ = writeln!(self.text, "\n# TYPE {name} {}", kind.as_str());
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

    /// Lines that were rendered as a page of their own.
    pub fn append(&mut self, page: &str) {
        self.text.push_str(page);
    }

    /// A family with one sample and no labels.
    pub fn single(&mut self, name: &str, kind: Type, help: &str, value: impl Into<Number>) {
        self.family(name, kind, help);
        self.sample(name, &[], value);
    }

    pub fn finish(self) -> String {
        self.text
    }
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
            Self::Int(value) => write!(out, "{value}"),
            Self::Float(value) if value.is_nan() => write!(out, "NaN"),
            Self::Float(value) if value.is_infinite() => write!(out, "{}Inf", if value > 0.0 { '+' } else { '-' }),
            Self::Float(value) => write!(out, "{value}"),
        };
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
