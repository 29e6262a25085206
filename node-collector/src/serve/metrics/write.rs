//! Groups as text.

use sonde_common::prom::{Format, Number, Page, Type};

use super::group::{Column, Group, Series};

/// The page goes out in pieces of about this size, so that its length costs no memory.
const PIECE: usize = 64 << 10;

/// A page in the making that is given away piece by piece.
pub(super) struct Out<'a> {
    pub page: Page,
    sink: &'a mut dyn FnMut(&str),
}

impl<'a> Out<'a> {
    pub(super) fn new(format: Format, sink: &'a mut dyn FnMut(&str)) -> Self {
        Self {
            page: Page::of(format),
            sink,
        }
    }

    fn breathe(&mut self) {
        if self.page.len() >= PIECE {
            self.page.drain(|text| (self.sink)(text));
        }
    }

    pub(super) fn finish(mut self) {
        self.page.drain(|text| (self.sink)(text));
    }
}

/// Family by family; one without values is not there. Returns the number of samples.
pub(super) fn write(group: &Group<'_>, out: &mut Out<'_>) -> usize {
    let mut samples = 0;
    let mut buckets = Vec::new();
    for (index, column) in group.columns.iter().enumerate() {
        let mut begun = false;
        let les = match column.kind {
            Type::Histogram => les(column, out.page.format()),
            Type::Counter | Type::Gauge => Vec::new(),
        };
        for series in &group.series {
            let written = match column.kind {
                Type::Histogram => {
                    if group.buckets(series, index, &mut buckets) {
                        begin(&mut out.page, column, &mut begun);
                        histogram(&mut out.page, column, series, &les, &buckets)
                    } else {
                        0
                    }
                }
                Type::Counter | Type::Gauge => match group.value(series, index) {
                    Some(value) => {
                        begin(&mut out.page, column, &mut begun);
                        line(&mut out.page, column, "", series, "", column.scale.apply(value));
                        1
                    }
                    None => 0,
                },
            };
            samples += written;
            out.breathe();
        }
    }
    samples
}

fn begin(page: &mut Page, column: &Column, begun: &mut bool) {
    if !std::mem::replace(begun, true) {
        page.family_in(&column.name, column.kind, &column.help, column.unit);
    }
}

fn line(page: &mut Page, column: &Column, suffix: &str, series: &Series, le: &str, value: Number) {
    page.parts([&column.name, suffix], [&series.owner.labels, &series.own, le], value);
}

/// `,le="0.001"` of each bucket. OpenMetrics wants whole numbers as floats.
fn les(column: &Column, format: Format) -> Vec<String> {
    let of = |bound: &f64| {
        let point = if format == Format::OpenMetrics && bound.fract() == 0.0 {
            ".0"
        } else {
            ""
        };
        format!(",le=\"{bound}{point}\"")
    };
    let mut all: Vec<String> = column.bounds.iter().map(of).collect();
    all.push(",le=\"+Inf\"".into());
    all
}

/// `values`: the count of each bucket, not cumulated, the last one without bound, then the sum.
fn histogram(page: &mut Page, column: &Column, series: &Series, les: &[String], values: &[i128]) -> usize {
    let Some((sum, counts)) = values.split_last() else {
        return 0;
    };
    let mut count = 0;
    for (le, bucket) in les.iter().zip(counts) {
        count += bucket;
        line(page, column, "_bucket", series, le, Number::Int(count));
    }
    line(page, column, "_sum", series, "", column.scale.apply(*sum));
    line(page, column, "_count", series, "", Number::Int(count));
    les.len() + 2
}
