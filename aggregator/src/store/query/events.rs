//! Events by time, and events as they become visible.

use serde_json::{Map, Value};
use sqlx::types::Json;
use sqlx::{PgConnection, Postgres, QueryBuilder};

use super::filter::{EventFilter, Newer, Resolved, Window};
use super::hours::Hours;
use super::names::{COLUMNS, Stored, named};
use super::narrow::Narrowed;
use super::search::{Asker, Running};
use super::{Micros, QueryError, micros, push_time};
use crate::store::Store;

/// One event with names in place of ids.
#[derive(Clone, Debug, Default)]
pub struct EventRow {
    pub time: Micros,
    pub id: i64,
    pub node: String,
    /// Empty: the node itself; none: a network namespace of no known pod.
    pub namespace: Option<String>,
    pub pod: Option<String>,
    pub workload: Option<String>,
    pub probe: String,
    pub kind: String,
    pub reason: Option<String>,
    pub protocol: Option<String>,
    pub saddr: Option<String>,
    pub sport: Option<i32>,
    pub daddr: Option<String>,
    pub dport: Option<i32>,
    pub peer_node: Option<String>,
    pub peer_namespace: Option<String>,
    pub peer_pod: Option<String>,
    pub peer_workload: Option<String>,
    pub peer_service: Option<String>,
    pub direction: i16,
    pub latency_ns: Option<i64>,
    pub cpu: Option<i32>,
    pub pid: Option<i32>,
    pub comm: Option<String>,
    pub state: Option<String>,
    pub interface: Option<String>,
    pub suppressed: i64,
    pub stack: Option<Vec<String>>,
    pub attributes: Option<Json<Map<String, Value>>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Order {
    Asc,
    Desc,
}

/// Where a page ended. Events that arrive later do not move it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    pub time: Micros,
    pub id: i64,
}

/// Which part of what matches.
enum Slice {
    ByTime(Order, Option<Position>),
    ById { after: i64, up_to: i64 },
}

impl Store {
    /// One page, in order of (time, id). `after` is the position of the last event of the page before.
    pub async fn events(
        &self,
        filter: &EventFilter,
        window: Window,
        order: Order,
        after: Option<Position>,
        limit: u32,
    ) -> Result<Vec<EventRow>, QueryError> {
        let db = self.begin_search(Asker::Search).await?;
        event_slice(db, filter, window, &Slice::ByTime(order, after), limit).await
    }

    /// Events that became visible after `after` and not after `up_to`, in the order in which they did.
    pub async fn events_since(
        &self,
        filter: &EventFilter,
        window: Window,
        after: i64,
        up_to: i64,
        limit: u32,
    ) -> Result<Vec<EventRow>, QueryError> {
        let db = self.begin_search(Asker::Stream).await?;
        event_slice(db, filter, window, &Slice::ById { after, up_to }, limit).await
    }

    /// When an event happened; None: there is no such event (any more).
    pub async fn event_time(&self, id: i64) -> Result<Option<Micros>, QueryError> {
        let sql = concat!("select ", micros!("time"), " from sonde_store.events where id = $1");
        let mut running = self.begin_search(Asker::Stream).await?;
        let time = sqlx::query_scalar(sql).bind(id).fetch_optional(running.db()).await?;
        running.done();
        Ok(time)
    }
}

async fn event_slice(
    mut running: Running,
    filter: &EventFilter,
    window: Window,
    slice: &Slice,
    limit: u32,
) -> Result<Vec<EventRow>, QueryError> {
    let db = running.db();
    let resolved = filter.resolve(db, window).await?;
    let question = Question {
        resolved: &resolved,
        window,
        slice,
        limit,
    };
    let page = match slice {
        Slice::ByTime(order, after) if !filter.is_empty() => page(db, &question, *order, *after).await?,
        _ => question.ask(db, Way::Planned, &Part::default()).await?,
    };
    let rows = named(db, page).await?;
    running.done();
    Ok(rows)
}

/// The first events in that order, by whatever way finds them soonest.
async fn page(
    db: &mut PgConnection,
    question: &Question<'_>,
    order: Order,
    after: Option<Position>,
) -> Result<Vec<Stored>, QueryError> {
    let limit = question.limit as usize;
    let (mut way, mut narrowed) = (Way::Nearest(NEAREST), None);
    let (mut begin, mut skipped, mut looked) = (question.begin(order, after), false, false);
    loop {
        let part = Part {
            slots: match way {
                Way::Indexed(Some(count)) => Slots::new(question.window, order, begin, count),
                _ => None,
            },
            narrowed: narrowed.as_ref().filter(|narrowed: &&Narrowed| !narrowed.is_empty()),
            skipped,
        };
        let found = question.ask(db, way, &part).await?;
        let whole = match way {
            Way::Nearest(_) => false,
            Way::Indexed(_) => part.slots.is_none(),
            Way::Planned => true,
        };
        if whole || found.len() >= limit {
            return Ok(found);
        }
        if let Some(more) = way.more_of_the_nearest(found.len(), limit) {
            way = more;
            continue;
        }
        if let (Some(slots), Some(start), true) = (&part.slots, begin, found.is_empty())
            && !std::mem::replace(&mut looked, true)
            && let Some(hours) = Hours::find(db, question.resolved, question.window).await?
        {
            match hours.next(order, start) {
                Some(next) if slots.has(next) => {}
                Some(next) => {
                    (begin, skipped) = (Some(next), true);
                    continue;
                }
                None => {
                    way = Way::Indexed(None);
                    continue;
                }
            }
        }
        let narrowed = match &mut narrowed {
            Some(narrowed) => narrowed,
            none => none.insert(Narrowed::find(db, question.resolved, question.window).await?),
        };
        way = match narrowed.is_empty() && !question.resolved.is_indexed() {
            true => Way::Planned,
            false => {
                let lookups = question.resolved.lookups().max(narrowed.lookups());
                way.by_index(found.len(), limit, lookups)
            }
        };
    }
}

/// How a page is found. Where matches are frequent it is quick to go through events in their order until it is full; where
/// they are rare the index for searches finds them all. The planner guesses from each filter by itself, and is wrong by
/// orders of magnitude where filters depend on each other: so a bounded part is looked through first, and of what is then to be
/// fetched by the index, first that of the nearest minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Planned,
    /// So many events are looked through.
    Nearest(i64),
    /// What the index finds in so many slots of time. None: all of it.
    Indexed(Option<i32>),
}

/// Events that are looked through for a page before anything else.
const NEAREST: i64 = 8_000;
/// The index is asked for each slot and each wanted value by itself: so often at most, beyond what has to be.
const MOST_LOOKUPS: usize = 2_000;
/// Slots that are asked for first: the one where the page begins may hold little of it.
const FEW: i32 = 2;
const MORE: usize = 6;
const MANY: usize = 72;

impl Way {
    /// Where the nearest events had so many for the page that looking through more of them costs less than fetching all that
    /// two slots have. Measured: an event looked through takes 0.5 us, one that is fetched 6, and slots of a busy day have
    /// 350,000 each. With few events all of this is quick.
    fn more_of_the_nearest(self, found: usize, limit: usize) -> Option<Self> {
        let near = self == Self::Nearest(NEAREST) && found * found > 20 * limit;
        near.then(|| Self::Nearest(2 * NEAREST * limit as i64 / found as i64))
    }

    /// Where slots had any, as many as should have enough, else some times more, if that is not nearly all. `lookups` is how
    /// many values the index is asked for.
    fn by_index(self, found: usize, limit: usize, lookups: usize) -> Self {
        let slots = match self {
            Self::Nearest(_) => FEW as usize,
            Self::Indexed(Some(slots)) if found > 0 => slots as usize * (limit * 3 / 2).div_ceil(found),
            Self::Indexed(Some(slots)) => slots as usize * MORE,
            _ => return Self::Indexed(None),
        };
        let bounded = slots <= MANY && slots * lookups <= MOST_LOOKUPS;
        Self::Indexed(bounded.then_some(slots as i32))
    }
}

/// Slots of time, which the indexes for searches have, at that end of the window where the page begins.
#[derive(Debug, PartialEq, Eq)]
struct Slots {
    first: i32,
    count: i32,
}

/// Slots of five weeks.
const MOST_SLOTS: i32 = 35 * 24 * 6;
/// Ten minutes, counted from 1970.
const SLOT: Micros = 600_000_000;

impl Slots {
    fn of(time: Micros) -> i32 {
        i32::try_from(time.div_euclid(SLOT)).unwrap_or(if time < 0 { i32::MIN } else { i32::MAX })
    }

    /// From `begin` on in that order. None where they would be all that is left of the window.
    fn new(window: Window, order: Order, begin: Option<Micros>, count: i32) -> Option<Self> {
        let (from, to, begin) = (window.from?, window.to?, begin?);
        let first = match order {
            Order::Asc => Self::of(begin),
            Order::Desc => Self::of(begin).saturating_sub(count - 1),
        };
        let slots = Self { first, count };
        let part = match order {
            Order::Asc => slots.end() < to,
            Order::Desc => slots.begin() > from,
        };
        part.then_some(slots)
    }

    /// All that have a part in the window, where they are not too many.
    fn all(window: Window) -> Option<Self> {
        let (first, last) = (Self::of(window.from?), Self::of(window.to?));
        let count = last.checked_sub(first)?.checked_add(1)?;
        (0..=MOST_SLOTS).contains(&count).then_some(Self { first, count })
    }

    fn has(&self, time: Micros) -> bool {
        (self.begin()..self.end()).contains(&time)
    }

    fn begin(&self) -> Micros {
        Micros::from(self.first) * SLOT
    }

    fn end(&self) -> Micros {
        (Micros::from(self.first) + Micros::from(self.count)) * SLOT
    }

    /// ` and ...` for the index.
    fn push(&self, sql: &mut QueryBuilder<Postgres>) {
        let slots: Vec<i32> = (0..self.count).map(|n| self.first.saturating_add(n)).collect();
        sql.push(" and floor(extract(epoch from e.time at time zone 'UTC') / 600)::int = any(")
            .push_bind(slots)
            .push(")");
    }

    /// ` and ...` for what prunes partitions.
    fn push_bounds(&self, sql: &mut QueryBuilder<Postgres>) {
        sql.push(" and e.time >= ");
        push_time(sql, self.begin());
        sql.push(" and e.time < ");
        push_time(sql, self.end());
    }
}

/// Which part of the window the index is asked for.
#[derive(Debug, Default)]
struct Part<'a> {
    slots: Option<Slots>,
    narrowed: Option<&'a Narrowed>,
    /// The digest has nothing between where the page begins and these slots.
    skipped: bool,
}

struct Question<'a> {
    resolved: &'a Resolved<'a>,
    window: Window,
    slice: &'a Slice,
    limit: u32,
}

impl Question<'_> {
    async fn ask(&self, db: &mut PgConnection, way: Way, part: &Part<'_>) -> Result<Vec<Stored>, QueryError> {
        let mut sql = QueryBuilder::new("select ");
        sql.push(COLUMNS).push(" from (");
        let order = self.push(&mut sql, way, part);
        sql.push(") e").push(order);
        Ok(sql.build_query_as().persistent(false).fetch_all(db).await?)
    }

    /// `select * from ... limit ...`. In which order.
    fn push(&self, sql: &mut QueryBuilder<Postgres>, way: Way, part: &Part<'_>) -> &'static str {
        match way {
            Way::Planned => {
                let order = self.push_events(sql);
                self.resolved.push_terms(sql);
                sql.push(order).push(" limit ").push_bind(i64::from(self.limit));
                order
            }
            Way::Nearest(events) => {
                sql.push("select * from (");
                let order = self.push_events(sql);
                sql.push(order).push(" limit ").push_bind(events).push(") e where true");
                self.resolved.push_terms(sql);
                self.resolved.push_quick(sql);
                sql.push(order).push(" limit ").push_bind(i64::from(self.limit));
                order
            }
            Way::Indexed(_) => {
                let of_digest = part.skipped || part.narrowed.is_some() || self.resolved.is_of_digest();
                if !of_digest {
                    let order = self.push_events(sql);
                    return self.push_indexed(sql, part, order);
                }
                // What is newer than the digest is asked for apart: in one condition with what is known from it, the planner finds
                // that by the times of whole slots.
                sql.push("select * from ((");
                let order = self.push_events(sql);
                self.resolved.push_findable(sql, Newer::Apart);
                if let Some(narrowed) = part.narrowed {
                    narrowed.push(sql);
                }
                let through = self.resolved.through();
                sql.push(" and e.id <= ").push_bind(through);
                self.push_indexed(sql, part, order);
                sql.push(") union all (");
                self.push_events(sql);
                sql.push(" and e.id > ").push_bind(through);
                self.push_newer(sql, part, order);
                sql.push(")) e").push(order);
                sql.push(" limit ").push_bind(i64::from(self.limit));
                order
            }
        }
    }

    /// Where the page begins.
    fn begin(&self, order: Order, after: Option<Position>) -> Option<Micros> {
        let (Window { from, to }, after) = (self.window, after.map(|after| after.time));
        match order {
            Order::Asc => from.max(after),
            Order::Desc => to.map(|to| after.map_or(to, |after| after.min(to))),
        }
    }

    /// All events that may be meant, without the filter.
    fn push_events(&self, sql: &mut QueryBuilder<Postgres>) -> &'static str {
        sql.push("select * from sonde_store.events e where true");
        self.window.push(sql);
        match self.slice {
            Slice::ByTime(Order::Asc, after) => {
                push_after(sql, *after, (" > (", " and e.time >= "));
                " order by e.time, e.id"
            }
            Slice::ByTime(Order::Desc, after) => {
                push_after(sql, *after, (" < (", " and e.time <= "));
                " order by e.time desc, e.id desc"
            }
            Slice::ById { after, up_to } => {
                sql.push(" and e.id > ")
                    .push_bind(*after)
                    .push(" and e.id <= ")
                    .push_bind(*up_to);
                " order by e.id"
            }
        }
    }

    fn push_indexed(&self, sql: &mut QueryBuilder<Postgres>, part: &Part<'_>, order: &'static str) -> &'static str {
        self.resolved.push_terms(sql);
        if let Some(slots) = &part.slots {
            slots.push(sql);
            slots.push_bounds(sql);
        } else if self.resolved.filter().min_latency_ns.is_some()
            && let Some(all) = Slots::all(self.window)
        {
            // Latencies are found by slot and no other way.
            all.push(sql);
        }
        self.push_limited(sql, order)
    }

    /// Up to the far end of the slots: between them and where the page begins there may be newer ones.
    fn push_newer(&self, sql: &mut QueryBuilder<Postgres>, part: &Part<'_>, order: &'static str) {
        self.resolved.push_terms(sql);
        match (&part.slots, self.slice) {
            (Some(slots), Slice::ByTime(Order::Asc, _)) => {
                sql.push(" and e.time < ");
                push_time(sql, slots.end());
            }
            (Some(slots), _) => {
                sql.push(" and e.time >= ");
                push_time(sql, slots.begin());
            }
            (None, _) => {}
        }
        self.push_limited(sql, order);
    }

    /// The order of an expression is that of no index.
    fn push_limited(&self, sql: &mut QueryBuilder<Postgres>, order: &'static str) -> &'static str {
        sql.push(match self.slice {
            Slice::ByTime(Order::Asc, _) => " order by e.time + interval '0', e.id",
            Slice::ByTime(Order::Desc, _) => " order by e.time + interval '0' desc, e.id desc",
            Slice::ById { .. } => order,
        });
        sql.push(" limit ").push_bind(i64::from(self.limit));
        order
    }
}

/// The bound is said twice: a comparison of rows prunes no partitions, one of the time does.
fn push_after(sql: &mut QueryBuilder<Postgres>, after: Option<Position>, (rows, time): (&str, &str)) {
    let Some(after) = after else { return };
    sql.push(" and (e.time, e.id)").push(rows);
    push_time(sql, after.time);
    sql.push(", ").push_bind(after.id).push(")").push(time);
    push_time(sql, after.time);
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
