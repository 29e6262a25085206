//! Lines of the page. Names, labels, bounds and timestamps are text already; only values are written for each sample.

use std::fmt::Write as _;

use sonde_common::prom::{EOF, Format, Number, Page, escape_value};
use sonde_proto::ABSENT;

use super::super::meta::{ColumnMeta, Suffix};
use super::{Kind, Mask, Part, Sink};

/// The page goes out in pieces of about this size, so that its length costs no memory.
const PIECE: usize = 128 << 10;

/// Between a sample's value and the next line: milliseconds, or seconds in OpenMetrics.
pub(super) fn stamp(format: Format, time_ns: u64) -> String {
    let ms = time_ns / 1_000_000;
    match format {
        Format::Text => format!(" {ms}\n"),
        Format::OpenMetrics => format!(" {}.{:03}\n", ms / 1000, ms % 1000),
    }
}

/// A bucket's bound as it is shown, and as selectors see it. OpenMetrics wants whole numbers as floats.
pub(super) fn bound(format: Format, le: &str) -> String {
    let whole = le.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-');
    match format {
        Format::OpenMetrics if whole => format!("{le}.0"),
        _ => le.into(),
    }
}

/// Between a bucket's labels and its value.
pub(super) fn bucket(le: &str) -> String {
    format!(",le=\"{le}\"}} ")
}

pub(super) struct Writer<'a> {
    format: Format,
    piece: String,
    sink: Sink<'a>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(format: Format, sink: Sink<'a>) -> Self {
        Self {
            format,
            piece: empty(),
            sink,
        }
    }

    /// One family with all its samples; nothing at all if there are none. False: nobody wants more.
    pub(super) fn family(&mut self, parts: &[Part]) -> bool {
        let Some(column) = parts.first().map(|part| part.column.meta) else {
            return true;
        };
        // A histogram without its buckets is none, and OpenMetrics lets nobody say that it is.
        if self.format == Format::OpenMetrics && !parts.iter().all(|part| part.column.whole) {
            let apart = |suffix: &Suffix| self.samples(parts, unknown(column, *suffix), Some(*suffix));
            return column.suffixes().iter().all(apart);
        }
        let mut head = Page::of(self.format);
        head.family(&column.family, column.kind(), &column.help);
        self.samples(parts, head.finish(), None)
    }

    /// Of all kinds, or of one.
    fn samples(&mut self, parts: &[Part], head: String, only: Option<Suffix>) -> bool {
        let mut values = Vec::new();
        // It is written with the first sample.
        let mut head = Some(head);
        for part in parts {
            let kinds = part.column.kinds.iter();
            let kinds: Vec<&Kind> = kinds.filter(|k| only.is_none_or(|o| o == k.suffix)).collect();
            let by_kind = kinds.iter().fold(0, |mask: Mask, kind| mask | kind.by);
            part.source.snapshot.column(part.column.index, &mut values);
            for (row, values) in values.chunks_exact(part.column.meta.width()).enumerate() {
                let by = part.source.rows.by(row);
                if by & by_kind == 0 || values.contains(&ABSENT) {
                    continue;
                }
                if let Some(head) = head.take() {
                    self.piece.push_str(&head);
                }
                self.row(part, row, &kinds, by, values);
                if self.piece.len() >= PIECE && !self.flush() {
                    return false;
                }
            }
        }
        true
    }

    /// All series of a row that somebody wants, one after another, from one reading.
    fn row(&mut self, part: &Part, row: usize, kinds: &[&Kind], by: Mask, values: &[i64]) {
        let (column, source) = (part.column, &part.source);
        let [of_subject, of_row] = source.snapshot.labels(row).text();
        let counts = &values[..column.buckets.len()];
        let mut line = |start: &str, bucket: &str, value: Number| {
            for text in [start, of_subject, of_row, bucket] {
                self.piece.push_str(text);
            }
            value.write(&mut self.piece);
            self.piece.push_str(&source.stamp);
        };
        for kind in kinds.iter().filter(|kind| kind.by & by != 0) {
            match kind.suffix {
                Suffix::Bucket => {
                    let mut count: i64 = 0;
                    for ((text, who), in_bucket) in column.buckets.iter().zip(counts) {
                        count = count.saturating_add(*in_bucket);
                        if who & by != 0 {
                            line(&kind.start, text, Number::from(count));
                        }
                    }
                }
                Suffix::Count => {
                    let count = counts.iter().fold(0_i64, |sum, value| sum.saturating_add(*value));
                    line(&kind.start, "} ", Number::from(count));
                }
                // The sum stands behind the counts; what has no buckets has one value.
                Suffix::Sum | Suffix::Plain => line(&kind.start, "} ", column.meta.value(values[counts.len()])),
            }
        }
    }

    /// The rest of a page that is whole.
    pub(super) fn finish(&mut self) -> bool {
        if self.format == Format::OpenMetrics {
            self.piece.push_str(EOF);
        }
        self.piece.is_empty() || self.flush()
    }

    fn flush(&mut self) -> bool {
        (self.sink)(std::mem::replace(&mut self.piece, empty()))
    }
}

fn empty() -> String {
    String::with_capacity(PIECE + (4 << 10))
}

/// What begins a family of one kind of a histogram's series.
fn unknown(column: &ColumnMeta, suffix: Suffix) -> String {
    let name = format!("{}{}", column.family, suffix.as_str());
    let mut head = format!("# HELP {name} ");
    escape_value(&mut head, &column.help);
    let _ = writeln!(head, "\n# TYPE {name} unknown");
    head
}
