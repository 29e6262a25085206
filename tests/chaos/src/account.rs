//! Who is missing, and what can be told about it. No file, no database, no clock.
//!
//! What a process hands over goes to its spool in order. So when something of a run reached the spool, all before it had been
//! dealt with: it is in the spool or counted as lost. Only what comes after the last of these was, when the process was
//! killed, still in its memory and is in no count.

use std::collections::HashSet;

/// Handed over, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Item {
    pub run: u64,
    pub id: u64,
    pub time_us: u64,
}

/// What is not in the tables.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Must be counted.
    pub counted: Vec<Item>,
    /// Went with the memory of a process that was killed, counted or not.
    pub with_the_process: Vec<Item>,
}

pub fn missing(
    items: &[Item],
    spooled: impl Fn(u64) -> bool,
    stored: impl Fn(u64) -> bool,
    killed: &HashSet<u64>,
) -> Missing {
    let mut missing = Missing::default();
    for run in items.chunk_by(|a, b| a.run == b.run) {
        let last = run.iter().rposition(|item| spooled(item.id) || stored(item.id));
        for (at, item) in run.iter().enumerate().filter(|(_, item)| !stored(item.id)) {
            let dealt_with = last.is_some_and(|last| at <= last) || !killed.contains(&item.run);
            if dealt_with {
                missing.counted.push(*item);
            } else {
                missing.with_the_process.push(*item);
            }
        }
    }
    missing
}

/// A span that a gap tells of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    pub from_us: u64,
    pub to_us: u64,
}

/// Those that are in none of the spans.
pub fn outside<'a>(items: &'a [Item], spans: &[Span]) -> Vec<&'a Item> {
    let mut sorted = spans.to_vec();
    sorted.sort_unstable_by_key(|span| span.from_us);
    // Where spans overlap they become one, so that the last one that begins in time is the only one to look at.
    let mut apart: Vec<Span> = Vec::new();
    for span in sorted {
        match apart.last_mut() {
            Some(last) if span.from_us <= last.to_us => last.to_us = last.to_us.max(span.to_us),
            _ => apart.push(span),
        }
    }
    let covered = |item: &&Item| {
        let begun = apart.partition_point(|span| span.from_us <= item.time_us);
        begun > 0 && item.time_us <= apart[begun - 1].to_us
    };
    items.iter().filter(|item| !covered(item)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items(run: u64, ids: std::ops::Range<u64>) -> Vec<Item> {
        ids.map(|id| Item {
            run,
            id,
            time_us: id * 10,
        })
        .collect()
    }

    fn ids(items: &[Item]) -> Vec<u64> {
        items.iter().map(|item| item.id).collect()
    }

    #[test]
    fn what_comes_before_the_last_that_was_spooled_must_be_counted() {
        let items = [items(1, 0..5), items(2, 5..8)].concat();
        // 3 was seen in the spool and is gone, 4 never was; run 2 ended in order without a trace.
        let found = missing(&items, |id| id == 3, |id| matches!(id, 0 | 2), &HashSet::from([1]));
        assert_eq!(ids(&found.counted), [1, 3, 5, 6, 7]);
        assert_eq!(ids(&found.with_the_process), [4]);
    }

    #[test]
    fn of_a_killed_run_without_a_trace_nothing_has_to_be_counted() {
        let found = missing(&items(1, 0..3), |_| false, |_| false, &HashSet::from([1]));
        assert_eq!((found.counted.len(), ids(&found.with_the_process)), (0, vec![0, 1, 2]));
    }

    #[test]
    fn a_span_has_its_ends_and_one_inside_another_takes_nothing_from_it() {
        let all = items(1, 0..9);
        let span = |from_us, to_us| Span { from_us, to_us };
        let outside: Vec<u64> = outside(&all, &[span(60, 70), span(10, 40), span(15, 20)])
            .iter()
            .map(|item| item.id)
            .collect();
        assert_eq!(outside, [0, 5, 8]);
    }
}
