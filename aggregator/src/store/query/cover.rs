//! How a span of time is made of buckets of several lengths, and of what has to be added and taken away at its ends.

use super::Micros;

/// Part of a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// Whole buckets of the level of that number.
    Buckets { level: usize, from: Micros, to: Micros },
    /// Events of a part of a bucket, one by one.
    Plus { from: Micros, to: Micros },
    /// Events that whole buckets have and the span has not.
    Minus { from: Micros, to: Micros },
}

/// Lengths of buckets, each a multiple of the next. At an end that is not that of a shortest bucket, the shorter part of that
/// bucket is looked at: what is after `now` is as good as empty, so a span up to now needs next to nothing there.
pub(super) fn cover(levels: &[Micros], (from, to): (Micros, Micros), now: Micros) -> Vec<Piece> {
    let Some(shortest) = levels.last() else {
        return vec![Piece::Plus { from, to }];
    };
    let floor = |time: Micros, bucket: Micros| time - time.rem_euclid(bucket);
    let ceil = |time: Micros, bucket: Micros| floor(time + bucket - 1, bucket);
    let mut pieces = Vec::new();
    let (before, after) = (floor(from, *shortest), ceil(from, *shortest));
    let begin = if from - before <= after - from {
        pieces.push(Piece::Minus { from: before, to: from });
        before
    } else {
        pieces.push(Piece::Plus { from, to: after });
        after
    };
    let (before, after) = (floor(to, *shortest), ceil(to, *shortest));
    let end = if after.min(now).max(to) - to <= to - before {
        pieces.push(Piece::Minus { from: to, to: after });
        after
    } else {
        pieces.push(Piece::Plus { from: before, to });
        before
    };
    if end <= begin {
        return vec![Piece::Plus { from, to }];
    }
    pieces.retain(|piece| match piece {
        Piece::Buckets { from, to, .. } | Piece::Plus { from, to } | Piece::Minus { from, to } => from < to,
    });
    let mut open = vec![(begin, end)];
    for (level, bucket) in levels.iter().enumerate() {
        let mut rest = Vec::new();
        for (begin, end) in open {
            let (from, to) = (ceil(begin, *bucket), floor(end, *bucket));
            if from < to {
                pieces.push(Piece::Buckets { level, from, to });
                rest.extend([(begin, from), (to, end)]);
            } else {
                rest.push((begin, end));
            }
        }
        open = rest.into_iter().filter(|(begin, end)| begin < end).collect();
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often an instant is counted.
    fn times(pieces: &[Piece], at: Micros) -> i32 {
        let has = |from: &Micros, to: &Micros| i32::from((*from..*to).contains(&at));
        pieces
            .iter()
            .map(|piece| match piece {
                Piece::Buckets { from, to, .. } | Piece::Plus { from, to } => has(from, to),
                Piece::Minus { from, to } => -has(from, to),
            })
            .sum()
    }

    #[test]
    fn every_instant_of_a_span_is_counted_once_and_no_other() {
        for levels in [&[12, 4][..], &[6], &[24, 12, 4], &[]] {
            for from in 0..40 {
                for to in from + 1..80 {
                    for now in [to, to + 3, 200] {
                        let pieces = cover(levels, (from, to), now);
                        for at in -30..120 {
                            let expected = i32::from((from..to).contains(&at));
                            assert_eq!(
                                times(&pieces, at),
                                expected,
                                "{at} in {from}..{to} now {now}: {pieces:?}"
                            );
                        }
                        for piece in &pieces {
                            if let Piece::Buckets { level, from, to } = piece {
                                assert_eq!((from % levels[*level], to % levels[*level]), (0, 0));
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn long_buckets_are_taken_first_and_now_needs_no_looking_back() {
        let pieces = cover(&[60, 10], (58, 249), 249);
        assert_eq!(
            pieces,
            [
                Piece::Plus { from: 58, to: 60 },
                Piece::Minus { from: 249, to: 250 },
                Piece::Buckets {
                    level: 0,
                    from: 60,
                    to: 240
                },
                Piece::Buckets {
                    level: 1,
                    from: 240,
                    to: 250
                },
            ]
        );
    }
}
