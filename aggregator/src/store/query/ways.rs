//! How a page of events is found, and what the index for searches has of time.

use sqlx::{Postgres, QueryBuilder};

use super::events::Order;
use super::filter::Window;
use super::{Micros, bucket};

/// How a page is found. Where matches are frequent it is quick to go through events in their order until it is full; where
/// they are rare the index for searches finds them all. The planner guesses from each filter by itself, and is wrong by
/// orders of magnitude where filters depend on each other: so a bounded part is looked through first, and of what is then to be
/// fetched by the index, first that of the nearest minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Planned,
    /// So many events are looked through.
    Nearest(i64),
    /// What the index finds in so many slots of time. None: all of it.
    Indexed(Option<i32>),
}

/// Events that are looked through for a page before anything else.
pub(super) const NEAREST: i64 = 8_000;
/// The index is asked for each slot and each wanted value by itself: so often at most, beyond what has to be.
const MOST_LOOKUPS: usize = 2_000;
/// The same where slots had nothing.
const MOST_GUESSES: usize = 600;
/// Slots that are asked for first: the one where the page begins may hold little of it.
pub(super) const FEW: i32 = 2;
const MORE: usize = 6;
/// To ask the index for so many takes longer than to ask the digest first where there are some.
pub(super) const MANY_VALUES: usize = 50;
/// So many events are fetched at once rather than looked for slot by slot.
pub(super) const SOME: f64 = 3_000.0;
const MANY: usize = 72;

impl Way {
    /// Where the nearest events had so many for the page that looking through more of them costs less than fetching all that
    /// two slots have. Measured: an event looked through takes 0.5 us, one that is fetched 6, and slots of a busy day have
    /// 350,000 each. With few events all of this is quick.
    pub(super) fn more_of_the_nearest(self, found: usize, limit: usize) -> Option<Self> {
        let near = self == Self::Nearest(NEAREST) && found * found > 20 * limit;
        near.then(|| Self::Nearest(2 * NEAREST * limit as i64 / found as i64))
    }

    /// Where slots had any, as many as should have enough, else some times more, if that is not nearly all. `lookups` is how
    /// many values the index is asked for.
    pub(super) fn by_index(self, found: usize, limit: usize, lookups: usize) -> Self {
        let (slots, most) = match self {
            Self::Nearest(_) => (FEW as usize, MOST_LOOKUPS),
            Self::Indexed(Some(slots)) if found > 0 => (slots as usize * (limit * 3 / 2).div_ceil(found), MOST_LOOKUPS),
            Self::Indexed(Some(slots)) => (slots as usize * MORE, MOST_GUESSES),
            _ => return Self::Indexed(None),
        };
        let bounded = slots <= MANY && slots * lookups <= most;
        Self::Indexed(bounded.then_some(slots as i32))
    }
}

/// Slots of time, which the indexes for searches have, at that end of the window where the page begins.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Slots {
    first: i32,
    count: i32,
}

/// Slots of five weeks.
const MOST_SLOTS: i32 = 35 * 24 * 6;
/// Ten minutes, counted from 1970.
const SLOT: Micros = 600_000_000;
/// Partitions are days of UTC.
pub(super) const DAY: Micros = 144 * SLOT;

impl Slots {
    /// From `begin` on in that order. None where they would be all that is left of the window.
    pub(super) fn new(window: Window, order: Order, begin: Option<Micros>, count: i32) -> Option<Self> {
        let (from, to, begin) = (window.from?, window.to?, begin?);
        let first = match order {
            Order::Asc => bucket(begin, SLOT),
            Order::Desc => bucket(begin, SLOT).saturating_sub(count - 1),
        };
        let slots = Self { first, count };
        let part = match order {
            Order::Asc => slots.end() < to,
            Order::Desc => slots.begin() > from,
        };
        part.then_some(slots)
    }

    /// All that have a part in the window, where they are not too many.
    pub(super) fn all(window: Window) -> Option<Self> {
        let (first, last) = (bucket(window.from?, SLOT), bucket(window.to?, SLOT));
        let count = last.checked_sub(first)?.checked_add(1)?;
        (0..=MOST_SLOTS).contains(&count).then_some(Self { first, count })
    }

    pub(super) fn count(&self) -> i32 {
        self.count
    }

    pub(super) fn has(&self, time: Micros) -> bool {
        (self.begin()..self.end()).contains(&time)
    }

    pub(super) fn begin(&self) -> Micros {
        Micros::from(self.first) * SLOT
    }

    pub(super) fn end(&self) -> Micros {
        (Micros::from(self.first) + Micros::from(self.count)) * SLOT
    }

    /// ` and ...` for the index.
    pub(super) fn push(&self, sql: &mut QueryBuilder<Postgres>) {
        let slots: Vec<i32> = (0..self.count).map(|n| self.first.saturating_add(n)).collect();
        sql.push(" and floor(extract(epoch from e.time at time zone 'UTC') / 600)::int = any(")
            .push_bind(slots)
            .push(")");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_is_looked_through_where_the_rest_of_the_page_is_near() {
        let first = Way::Nearest(NEAREST);
        assert_eq!(first.more_of_the_nearest(44, 100), None);
        assert_eq!(first.more_of_the_nearest(50, 100), Some(Way::Nearest(32_000)));
        assert_eq!(first.more_of_the_nearest(500, 1000), Some(Way::Nearest(32_000)));
        assert_eq!(Way::Nearest(32_000).more_of_the_nearest(99, 100), None);
        assert_eq!(Way::Indexed(None).more_of_the_nearest(99, 100), None);
    }

    #[test]
    fn more_slots_are_asked_for_where_few_had_some_and_they_are_not_too_many() {
        let few = Way::Indexed(Some(FEW));
        assert_eq!(Way::Nearest(NEAREST).by_index(0, 100, 1), few);
        assert_eq!(Way::Nearest(NEAREST).by_index(99, 100, 1000), few);
        assert_eq!(Way::Nearest(NEAREST).by_index(99, 100, 1001), Way::Indexed(None));
        assert_eq!(few.by_index(0, 100, 50), Way::Indexed(Some(12)));
        assert_eq!(few.by_index(0, 100, 51), Way::Indexed(None));
        assert_eq!(few.by_index(0, 100, 1), Way::Indexed(Some(12)));
        assert_eq!(Way::Indexed(Some(12)).by_index(0, 100, 1), Way::Indexed(Some(72)));
        assert_eq!(Way::Indexed(Some(72)).by_index(0, 100, 1), Way::Indexed(None));
        assert_eq!(few.by_index(1, 100, 1), Way::Indexed(None));
        assert_eq!(few.by_index(10, 100, 1), Way::Indexed(Some(30)));
        assert_eq!(few.by_index(99, 100, 1), Way::Indexed(Some(4)));
        assert_eq!(few.by_index(10, 100, 100), Way::Indexed(None));
        assert_eq!(Way::Indexed(Some(30)).by_index(99, 100, 1), Way::Indexed(Some(60)));
        assert_eq!(Way::Indexed(Some(60)).by_index(99, 100, 1), Way::Indexed(None));
    }

    #[test]
    fn slots_begin_where_the_page_does() {
        let window = Window {
            from: Some(SLOT / 2),
            to: Some(10 * SLOT + SLOT / 2),
        };
        let end = 10 * SLOT + SLOT / 2;
        let slots = |order, begin, count| Slots::new(window, order, Some(begin), count).map(|s| (s.first, s.count));
        assert_eq!(slots(Order::Desc, end, 2), Some((9, 2)));
        assert_eq!(slots(Order::Desc, 5 * SLOT, 2), Some((4, 2)));
        assert_eq!(slots(Order::Asc, SLOT / 2, 2), Some((0, 2)));
        assert_eq!(slots(Order::Asc, 5 * SLOT, 2), Some((5, 2)));
        assert_eq!(slots(Order::Desc, end, 11), None);
        assert_eq!(slots(Order::Desc, SLOT, 2), None);
        assert_eq!(slots(Order::Asc, SLOT / 2, 10), Some((0, 10)));
        assert_eq!(slots(Order::Asc, SLOT / 2, 11), None);
        assert_eq!(slots(Order::Asc, 9 * SLOT, 2), None);
        assert_eq!(Slots::all(window), Some(Slots { first: 0, count: 11 }));
        let ages = Window {
            from: Some(0),
            to: Some(i64::MAX),
        };
        assert_eq!(Slots::all(ages), None);
    }
}
