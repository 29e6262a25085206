//! The readings of an hour, folded: no database, no clock. What a counter rose by, how far a gauge went, minute by minute.

use std::collections::HashMap;

use sonde_proto::ABSENT;

use crate::store::catalogue::{Definition, Kind};
use crate::store::query::Micros;

pub(super) const MINUTES: usize = 60;
const MINUTE: Micros = 60_000_000;
pub(super) const HOUR: Micros = 3_600_000_000;

/// One subject and label set of a probe.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(super) struct Key {
    pub(super) node: i32,
    pub(super) pod: i32,
    pub(super) labels: Vec<i32>,
}

/// A column, and where it is in the values of a reading.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Part {
    pub(super) kind: Kind,
    pub(super) at: usize,
    pub(super) width: usize,
}

/// The columns of a probe in the order of its definition.
pub(super) fn parts(definition: &Definition) -> Vec<Part> {
    let mut at = 0;
    let part = |column: &crate::store::catalogue::Column| {
        let part = Part {
            kind: column.kind,
            at,
            width: column.width(),
        };
        at += part.width;
        part
    };
    definition.columns.iter().map(part).collect()
}

/// Readings as they come: values of all columns one after the other, [`ABSENT`] where there is none.
#[derive(Debug, Default)]
pub(super) struct Readings {
    /// Number of the series, time.
    of: Vec<(u32, Micros)>,
    values: Vec<i64>,
}

impl Readings {
    pub(super) fn push(&mut self, series: u32, time: Micros, values: &[i64]) {
        self.of.push((series, time));
        self.values.extend_from_slice(values);
    }

    /// Values in it.
    pub(super) fn len(&self) -> usize {
        self.values.len()
    }
}

/// An hour of some nodes.
#[derive(Debug)]
pub(super) struct Hour {
    pub(super) start: Micros,
    pub(super) parts: Vec<Part>,
    pub(super) series: Vec<Series>,
    places: HashMap<Key, u32>,
}

#[derive(Debug)]
pub(super) struct Series {
    pub(super) key: Key,
    /// By minute.
    pub(super) readings: [u16; MINUTES],
    pub(super) columns: Vec<Folded>,
    /// The newest value of each column.
    pub(super) last: Vec<i64>,
    /// Counters whose first value in this hour had none before it.
    pub(super) firsts: Vec<First>,
}

#[derive(Debug)]
pub(super) struct First {
    pub(super) column: usize,
    minute: usize,
    values: Vec<i64>,
}

#[derive(Debug)]
pub(super) enum Folded {
    /// A counter, or the counters of a histogram.
    Counted(Counted),
    /// By minute; none without a value in this hour.
    Gauge(Option<Box<[Spread; MINUTES]>>),
}

/// Minutes are bits, the first one the lowest.
#[derive(Debug, Default)]
pub(super) struct Counted {
    /// Has a value.
    pub(super) seen: u64,
    /// Has a value whose increase is known.
    pub(super) known: u64,
    /// For each minute `width` increases; none where nothing moved.
    pub(super) increases: Option<Vec<i64>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Spread {
    pub(super) min: i64,
    pub(super) max: i64,
    pub(super) sum: i128,
    pub(super) count: u32,
}

impl Spread {
    pub(super) fn average(&self) -> f64 {
        self.sum as f64 / f64::from(self.count)
    }

    fn add(&mut self, value: i64) {
        *self = self.with(&Self {
            min: value,
            max: value,
            sum: i128::from(value),
            count: 1,
        });
    }

    pub(super) fn with(&self, other: &Self) -> Self {
        match (self.count, other.count) {
            (_, 0) => *self,
            (0, _) => *other,
            _ => Self {
                min: self.min.min(other.min),
                max: self.max.max(other.max),
                sum: self.sum + other.sum,
                count: self.count + other.count,
            },
        }
    }
}

impl Hour {
    pub(super) fn new(start: Micros, parts: Vec<Part>) -> Self {
        Self {
            start,
            parts,
            series: Vec::new(),
            places: HashMap::new(),
        }
    }

    /// One that only remembers the newest values.
    pub(super) fn before(parts: Vec<Part>) -> Self {
        Self::new(Micros::MAX, parts)
    }

    pub(super) fn width(&self) -> usize {
        self.parts.last().map_or(0, |p| p.at + p.width)
    }

    pub(super) fn place(&self, key: &Key) -> Option<&Series> {
        self.places.get(key).map(|at| &self.series[*at as usize])
    }

    /// Number of a series, whether it was there or not.
    pub(super) fn number(&mut self, key: &Key) -> u32 {
        if let Some(at) = self.places.get(key) {
            return *at;
        }
        let at = self.series.len() as u32;
        self.places.insert(key.clone(), at);
        self.series.push(Series {
            key: key.clone(),
            readings: [0; MINUTES],
            columns: self
                .parts
                .iter()
                .map(|part| match part.kind {
                    Kind::Gauge => Folded::Gauge(None),
                    Kind::Counter | Kind::Histogram => Folded::Counted(Counted::default()),
                })
                .collect(),
            last: vec![ABSENT; self.width()],
            firsts: Vec::new(),
        });
        at
    }

    /// Folds readings in. Those of before the hour only tell what counters stood at. Everything that is folded later is
    /// later.
    pub(super) fn take(&mut self, readings: &mut Readings) {
        let width = self.width();
        let mut order: Vec<u32> = (0..readings.of.len() as u32).collect();
        order.sort_unstable_by_key(|at| readings.of[*at as usize]);
        for at in order {
            let (series, time) = readings.of[at as usize];
            let values = &readings.values[at as usize * width..][..width];
            let minute = (time >= self.start).then(|| ((time - self.start) / MINUTE) as usize);
            self.series[series as usize].take(&self.parts, minute.filter(|m| *m < MINUTES), values);
        }
        readings.of.clear();
        readings.values.clear();
    }
}

impl Series {
    fn take(&mut self, parts: &[Part], minute: Option<usize>, values: &[i64]) {
        if let Some(minute) = minute {
            self.readings[minute] = self.readings[minute].saturating_add(1);
        }
        for (column, part) in parts.iter().enumerate() {
            let now = &values[part.at..part.at + part.width];
            if now.iter().all(|v| *v == ABSENT) {
                continue;
            }
            let last = &mut self.last[part.at..part.at + part.width];
            if let Some(minute) = minute {
                match &mut self.columns[column] {
                    Folded::Gauge(minutes) => {
                        minutes.get_or_insert_with(|| Box::new([Spread::default(); MINUTES]))[minute].add(now[0]);
                    }
                    Folded::Counted(counted) => {
                        counted.seen |= 1 << minute;
                        if last.iter().all(|v| *v == ABSENT) {
                            self.firsts.push(First {
                                column,
                                minute,
                                values: now.to_vec(),
                            });
                        } else {
                            counted.rise(minute, last, now);
                        }
                    }
                }
            }
            for (last, now) in last.iter_mut().zip(now) {
                if *now != ABSENT {
                    *last = *now;
                }
            }
        }
    }

    pub(super) fn has_readings(&self) -> bool {
        self.readings.iter().any(|n| *n > 0)
    }

    /// The value that a column had before its first one here was found elsewhere.
    pub(super) fn settle(&mut self, parts: &[Part], column: usize, before: &[i64]) {
        let part = &parts[column];
        let before = &before[part.at..part.at + part.width];
        let Some(at) = self.firsts.iter().position(|f| f.column == column) else {
            return;
        };
        if before.iter().all(|v| *v == ABSENT) {
            return;
        }
        let first = self.firsts.swap_remove(at);
        if let Folded::Counted(counted) = &mut self.columns[column] {
            counted.rise(first.minute, before, &first.values);
        }
    }
}

impl Counted {
    /// A value below the one before is one that began again at 0. The counters of a histogram begin again together; its
    /// sum, the last of them, says nothing of that: what is observed may be negative.
    fn rise(&mut self, minute: usize, before: &[i64], now: &[i64]) {
        self.known |= 1 << minute;
        let width = now.len();
        let counts = width.max(2) - 1;
        let fell = |(before, now): (&i64, &i64)| *now != ABSENT && *before != ABSENT && now < before;
        let reset = before.iter().zip(now).take(counts).any(fell);
        for (at, (before, now)) in before.iter().zip(now).enumerate() {
            let increase = match (*before, *now) {
                (_, ABSENT) => 0,
                (ABSENT, now) => now,
                (_, now) if reset => now,
                (before, now) => now.saturating_sub(before),
            };
            // Negative only where a collector counts backwards from the start; an increase is never that.
            let increase = if at < counts { increase.max(0) } else { increase };
            if increase != 0 {
                let increases = self.increases.get_or_insert_with(|| vec![0; MINUTES * width]);
                let sum = &mut increases[minute * width + at];
                *sum = sum.saturating_add(increase);
            }
        }
    }
}
