//! Readings as series of Prometheus' remote-write, with a stale marker where one ends.

use std::collections::{HashMap, HashSet};

use sonde_common::prom::Type;
use sonde_common::time::now_ns;
use sonde_push::Request;
use sonde_push::remote_write::{Family, Kind, Labels, STALE, Version, Writer};

use super::metrics::Encode;
use crate::live::{Column, Mask, Reading, Selector, Suffix, Wanted};

/// Samples of a request: what receivers take, and what a failed one costs.
const SAMPLES: u64 = 5_000;

/// Of what was sent last, by node and probe.
type Sent = HashMap<(String, String), Reading>;

#[derive(Debug)]
pub(super) struct RemoteWrite {
    pub version: Version,
    pub selectors: Vec<Selector>,
    /// Labels that every series gets.
    pub more: Vec<(String, String)>,
    sent: Sent,
    /// Readings whose series were told to have ended, and when.
    ended: HashMap<(String, String), u64>,
}

/// What ended longer ago is forgotten: no reading that old is shown.
const FORGET_NS: u64 = 3_600_000_000_000;

impl RemoteWrite {
    pub(super) fn new(version: Version, selectors: Vec<Selector>, more: Vec<(String, String)>) -> Self {
        Self {
            version,
            selectors,
            more,
            sent: Sent::new(),
            ended: HashMap::new(),
        }
    }
}

impl Encode for RemoteWrite {
    fn encode(&mut self, readings: Vec<Reading>, send: &mut dyn FnMut(Request)) {
        let before = std::mem::take(&mut self.sent);
        let mut out = Out {
            writer: Writer::new(self.version),
            version: self.version,
            more: &self.more,
            send,
        };
        for reading in readings {
            let key = (reading.node().to_owned(), reading.probe().to_owned());
            // A node that speaks again may begin with what it read before its silence was noticed. A receiver refuses what is
            // older than the end, and everything else in that request with it.
            if self.ended.get(&key).is_some_and(|end| reading.time_ns() <= *end) {
                continue;
            }
            match before.get(&key) {
                // The same, perhaps without the rows of pods that ended since.
                Some(old) if old.time_ns() >= reading.time_ns() => {
                    if !reading.has_rows_of(old) {
                        out.end_what_is_gone(old, Some(&reading), end_of(old), &self.selectors);
                    }
                }
                old => {
                    if let Some(old) = old {
                        out.end_what_is_gone(old, Some(&reading), reading.time_ns(), &self.selectors);
                    }
                    out.values(&reading, &self.selectors);
                }
            }
            self.sent.insert(key, reading);
        }
        let now = now_ns();
        self.ended.retain(|_, end| now.saturating_sub(*end) < FORGET_NS);
        for (key, old) in before {
            if !self.sent.contains_key(&key) {
                let end = end_of(&old);
                out.end_what_is_gone(&old, None, end, &self.selectors);
                self.ended.insert(key, end);
            }
        }
        out.flush();
    }
}

/// Now, and behind the last value also where the node's clock is ahead of ours.
fn end_of(old: &Reading) -> u64 {
    now_ns().max(old.time_ns() + 1_000_000)
}

struct Out<'a> {
    writer: Writer,
    version: Version,
    more: &'a [(String, String)],
    send: &'a mut dyn FnMut(Request),
}

impl Out<'_> {
    fn values(&mut self, reading: &Reading, selectors: &[Selector]) {
        let Some(wanted) = reading.wanted(selectors) else {
            return;
        };
        let rows = Rows::new(self.more, reading, &wanted);
        let time_ms = millis(reading.time_ns());
        let mut room = Vec::new();
        for column in reading.columns() {
            let series = Series::new(column, &wanted);
            reading.each(column, &mut room, |row, values| {
                if let Some((labels, by)) = rows.get(row) {
                    self.row(&series, labels, by, time_ms, |place| match place {
                        Place::Bucket(at) => values[..=at].iter().map(|count| *count as f64).sum(),
                        Place::Count => values[..column.bounds().len()].iter().map(|count| *count as f64).sum(),
                        Place::Value => column.value(values[column.bounds().len()]),
                    });
                }
            });
        }
    }

    /// Series that were sent and are not there any more, as of `end_ns`.
    fn end_what_is_gone(&mut self, old: &Reading, new: Option<&Reading>, end_ns: u64, selectors: &[Selector]) {
        let Some(wanted) = old.wanted(selectors) else { return };
        // In most readings all rows are those of the one before, and so is what they have.
        let same_rows = new.is_some_and(|new| new.has_rows_of(old));
        let left: HashMap<[&str; 2], usize> = match new {
            Some(new) => (0..new.rows()).map(|row| (new.row_key(row), row)).collect(),
            None => HashMap::new(),
        };
        let rows = Rows::new(self.more, old, &wanted);
        let time_ms = millis(end_ns);
        let (mut room, mut new_room) = (Vec::new(), Vec::new());
        for column in old.columns() {
            let mut has_value: HashSet<usize> = HashSet::new();
            if let Some(new) = new
                && let Some(same) = new.columns().find(|new| new.family() == column.family())
            {
                new.each(same, &mut new_room, |row, _| {
                    has_value.insert(row);
                });
            }
            let series = Series::new(column, &wanted);
            old.each(column, &mut room, |row, _| {
                let now = if same_rows {
                    Some(row)
                } else {
                    left.get(&old.row_key(row)).copied()
                };
                if now.is_some_and(|now| has_value.contains(&now)) {
                    return;
                }
                if let Some((labels, by)) = rows.get(row) {
                    self.row(&series, labels, by, time_ms, |_| STALE);
                }
            });
        }
    }

    fn row(&mut self, series: &Series<'_>, labels: &Labels, by: Mask, time_ms: i64, value: impl Fn(Place) -> f64) {
        for one in series.all.iter().filter(|one| one.by & by != 0) {
            let le = one.le.map(|le| ("le", le));
            self.writer
                .sample(&series.family, &one.name, labels, le, time_ms, value(one.place));
        }
        if self.writer.values() >= SAMPLES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let full = std::mem::replace(&mut self.writer, Writer::new(self.version));
        if !full.is_empty() {
            (self.send)(Request {
                values: full.values(),
                body: full.pack(),
                time_ns: now_ns(),
            });
        }
    }
}

fn millis(ns: u64) -> i64 {
    (ns / 1_000_000) as i64
}

/// Labels of the rows that somebody wants, made once for all columns.
struct Rows(Vec<Option<(Labels, Mask)>>);

impl Rows {
    fn new(more: &[(String, String)], reading: &Reading, wanted: &Wanted<'_>) -> Self {
        let row = |row| {
            let by = wanted.row(reading, row);
            let more = more.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            (by != 0).then(|| (Labels::new(reading.all_labels(row).chain(more)), by))
        };
        Self((0..reading.rows()).map(row).collect())
    }

    fn get(&self, row: usize) -> Option<(&Labels, Mask)> {
        self.0[row].as_ref().map(|(labels, by)| (labels, *by))
    }
}

/// Where a series' value is in a row's column.
#[derive(Clone, Copy)]
enum Place {
    /// All counts up to this one.
    Bucket(usize),
    Count,
    Value,
}

/// The series of a column.
struct Series<'a> {
    family: Family<'a>,
    all: Vec<One<'a>>,
}

struct One<'a> {
    name: String,
    le: Option<&'a str>,
    place: Place,
    by: Mask,
}

impl<'a> Series<'a> {
    fn new(column: Column<'a>, wanted: &Wanted<'_>) -> Self {
        let one = |suffix: Suffix, le: Option<&'a str>, place| One {
            name: format!("{}{}", column.family(), suffix.as_str()),
            le,
            place,
            by: wanted.series(column, suffix, le),
        };
        let (kind, all) = match column.kind() {
            Type::Histogram => {
                let buckets = column.bounds().iter().enumerate();
                let mut all: Vec<_> = buckets
                    .map(|(at, le)| one(Suffix::Bucket, Some(le), Place::Bucket(at)))
                    .collect();
                all.push(one(Suffix::Sum, None, Place::Value));
                all.push(one(Suffix::Count, None, Place::Count));
                (Kind::Histogram, all)
            }
            Type::Counter => (Kind::Counter, vec![one(Suffix::Plain, None, Place::Value)]),
            Type::Gauge => (Kind::Gauge, vec![one(Suffix::Plain, None, Place::Value)]),
        };
        Self {
            family: Family {
                name: column.family(),
                help: column.help(),
                kind,
            },
            all,
        }
    }
}
