//! Folded hours as rows of COPY. What is the case for most series takes no room: nothing moved is null. The views in
//! `tables.rs` read what is written here.

use super::fold::{Counted, Folded, Hour, MINUTES, Series, Spread};
use super::tables::Length;
use crate::store::catalogue::Kind;
use crate::store::copy::CopyBuffer;

/// There was no value.
pub(super) const ABSENT_MARK: i64 = -1;
/// There was one value, the first ever: nothing to compare it with.
pub(super) const FIRST_MARK: i64 = -2;

/// Rows of all series that have readings; gives their number.
pub(super) fn rows(out: &mut CopyBuffer, hour: &Hour, series: &[Series], length: Length) -> u64 {
    let fields = hour
        .parts
        .iter()
        .map(|part| if part.kind == Kind::Gauge { 3 } else { 1 });
    let fields: usize = fields.sum();
    let mut rows = 0;
    for series in series.iter().filter(|s| s.has_readings()) {
        rows += 1;
        out.row(4 + series.key.labels.len() + fields);
        out.time(hour.start as u64 * 1000);
        out.i32(series.key.node);
        out.i32(series.key.pod);
        series.key.labels.iter().for_each(|label| out.i32(*label));
        match length {
            Length::Minute => minutes(out, hour, series),
            Length::Hour => whole(out, hour, series),
        }
    }
    rows
}

fn whole(out: &mut CopyBuffer, hour: &Hour, series: &Series) {
    out.i32(series.readings.iter().map(|n| i32::from(*n)).sum());
    for (part, column) in hour.parts.iter().zip(&series.columns) {
        match column {
            Folded::Gauge(minutes) => {
                let all = minutes
                    .as_ref()
                    .map(|m| m.iter().fold(Spread::default(), |a, b| a.with(b)));
                let Some(all) = all.filter(|all| all.count > 0) else {
                    (0..3).for_each(|_| out.null());
                    continue;
                };
                out.i64(all.min);
                out.opt_i64((all.max != all.min).then_some(all.max));
                out.opt_f64((all.max != all.min).then(|| all.average()));
            }
            Folded::Counted(counted) => {
                let mark = match counted {
                    Counted { known: 1.., .. } => None,
                    Counted { seen: 1.., .. } => Some(FIRST_MARK),
                    _ => Some(ABSENT_MARK),
                };
                let sums = counted.increases.as_ref().map(|increases| {
                    let mut sums = vec![0_i64; part.width];
                    for (at, increase) in increases.iter().enumerate() {
                        let sum = &mut sums[at % part.width];
                        *sum = sum.saturating_add(*increase);
                    }
                    sums
                });
                match (mark, sums) {
                    (None, None) => out.null(),
                    (Some(mark), _) if part.width == 1 => out.i64(mark),
                    (None, Some(sums)) if part.width == 1 => out.i64(sums[0]),
                    (Some(mark), _) => out.i64_array(&[mark], i64::MIN),
                    (None, Some(sums)) => out.i64_array(&sums, i64::MIN),
                }
            }
        }
    }
}

fn minutes(out: &mut CopyBuffer, hour: &Hour, series: &Series) {
    let readings = &series.readings;
    if readings.iter().all(|n| *n == readings[0]) {
        out.i32_array([Some(i32::from(readings[0]))].into_iter());
    } else {
        out.i32_array(readings.iter().map(|n| (*n > 0).then_some(i32::from(*n))));
    }
    let there = |minute: usize| readings[minute] > 0;
    for (part, column) in hour.parts.iter().zip(&series.columns) {
        match column {
            Folded::Gauge(minutes) => gauge(out, minutes.as_deref(), there),
            Folded::Counted(counted) => counts(out, counted, part.width, there),
        }
    }
}

fn counts(out: &mut CopyBuffer, counted: &Counted, width: usize, there: impl Fn(usize) -> bool) {
    if counted.seen == 0 {
        return out.i64_array(&[], i64::MIN);
    }
    let known = |minute: usize| counted.known & (1 << minute) != 0;
    if counted.increases.is_none() && (0..MINUTES).all(|m| known(m) || !there(m)) {
        return out.null();
    }
    let mut values = vec![i64::MIN; MINUTES * width];
    for minute in (0..MINUTES).filter(|m| there(*m)) {
        if !known(minute) {
            values[minute * width] = ABSENT_MARK;
        } else if let Some(increases) = &counted.increases {
            for at in minute * width..(minute + 1) * width {
                if increases[at] != 0 {
                    values[at] = increases[at];
                }
            }
        }
    }
    out.i64_array(&values, i64::MIN);
}

fn gauge(out: &mut CopyBuffer, minutes: Option<&[Spread; MINUTES]>, there: impl Fn(usize) -> bool) {
    let Some(minutes) = minutes else {
        return (0..3).for_each(|_| out.null());
    };
    let first = minutes.iter().find(|m| m.count > 0).expect("made for a value");
    let same = |m: usize| minutes[m].count > 0 && minutes[m].min == first.min && minutes[m].max == first.min;
    if (0..MINUTES).all(|m| same(m) || !there(m)) {
        out.i64_array(&[first.min], i64::MIN);
        return (0..2).for_each(|_| out.null());
    }
    let has = |m: &Spread| m.count > 0;
    let spread = |m: &Spread| has(m) && m.max != m.min;
    let lows: Vec<i64> = minutes.iter().map(|m| if has(m) { m.min } else { i64::MIN }).collect();
    out.i64_array(&lows, i64::MIN);
    if !minutes.iter().any(spread) {
        return (0..2).for_each(|_| out.null());
    }
    let highs: Vec<i64> = minutes
        .iter()
        .map(|m| if spread(m) { m.max } else { i64::MIN })
        .collect();
    out.i64_array(&highs, i64::MIN);
    out.f64_array(minutes.iter().map(|m| spread(m).then(|| m.average())));
}
