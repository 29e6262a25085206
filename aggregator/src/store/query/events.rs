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
    let (mut begin, mut skipped) = (question.begin(order, after), false);
    let (mut looked, mut counted) = (false, false);
    loop {
        let part = Part {
            slots: match way {
                Way::Indexed(Some(count)) => Slots::new(question.window, order, begin, count),
                _ => None,
            },
            narrowed: narrowed.as_ref().filter(|narrowed: &&Narrowed| !narrowed.is_empty()),
            skipped: begin.filter(|_| skipped),
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
        let many = way == Way::Nearest(NEAREST) && question.resolved.lookups() > MANY_VALUES;
        if let (true, Some(start)) = (found.is_empty() && (part.slots.is_some() || many), begin) {
            if !std::mem::replace(&mut looked, true)
                && let Some(hours) = Hours::find(db, question.resolved, question.window).await?
                && let Some(next) = hours.next(db, question.resolved, order, start).await?
                && Slots::new(question.window, order, begin, FEW).is_some_and(|near| !near.has(next))
            {
                (begin, skipped, way) = (Some(next), true, Way::Nearest(NEAREST));
                continue;
            }
            if part.slots.is_some()
                && !std::mem::replace(&mut counted, true)
                && question.estimate(db, &part).await? <= SOME
            {
                way = Way::Indexed(None);
                continue;
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
/// The same where slots had nothing.
const MOST_GUESSES: usize = 600;
/// Slots that are asked for first: the one where the page begins may hold little of it.
const FEW: i32 = 2;
const MORE: usize = 6;
/// To ask the index for so many takes longer than to ask the digest first where there are some.
const MANY_VALUES: usize = 50;
/// So many events are fetched at once rather than looked for slot by slot.
const SOME: f64 = 3_000.0;
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
struct Slots {
    first: i32,
    count: i32,
}

/// Slots of five weeks.
const MOST_SLOTS: i32 = 35 * 24 * 6;
/// Ten minutes, counted from 1970.
const SLOT: Micros = 600_000_000;
/// Partitions are days of UTC.
const DAY: Micros = 144 * SLOT;

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
}

/// Which part of the window the index is asked for.
#[derive(Debug, Default)]
struct Part<'a> {
    slots: Option<Slots>,
    narrowed: Option<&'a Narrowed>,
    /// Where it begins, if the digest has nothing between there and where the page does.
    skipped: Option<Micros>,
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

    /// How many events the planner takes the index to find in the whole window.
    async fn estimate(&self, db: &mut PgConnection, part: &Part<'_>) -> Result<f64, QueryError> {
        let mut sql = QueryBuilder::new("explain (format json) ");
        self.push_events(&mut sql);
        self.resolved.push_terms(&mut sql);
        self.resolved.push_findable(&mut sql, Newer::Apart);
        if let Some(narrowed) = part.narrowed {
            narrowed.push(&mut sql);
        }
        let Json(plan): Json<Value> = sql.build_query_scalar().persistent(false).fetch_one(db).await?;
        Ok(plan[0]["Plan"]["Plan Rows"].as_f64().unwrap_or(f64::MAX))
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
            Way::Nearest(events) => match part.skipped {
                None => self.push_nearest(sql, events, None),
                Some(begin) => {
                    sql.push("select * from ((");
                    self.push_nearest(sql, events, Some(begin));
                    sql.push(") union all (");
                    self.push_newer(sql, self.before(begin));
                    self.push_end_of_union(sql)
                }
            },
            Way::Indexed(_) => {
                let of_digest = part.skipped.is_some() || part.narrowed.is_some() || self.resolved.is_of_digest();
                if !of_digest {
                    return self.push_indexed(sql, part);
                }
                // What is newer than the digest is asked for apart: in one condition with what is known from it, the planner finds
                // that by the times of whole slots.
                sql.push("select * from ((");
                self.push_indexed(sql, part);
                sql.push(") union all (");
                self.push_newer(sql, self.span_of_newer(part));
                self.push_end_of_union(sql)
            }
        }
    }

    fn push_end_of_union(&self, sql: &mut QueryBuilder<Postgres>) -> &'static str {
        let order = self.order();
        sql.push(")) e").push(order);
        sql.push(" limit ").push_bind(i64::from(self.limit));
        order
    }

    /// What there is among so many events from there on.
    fn push_nearest(&self, sql: &mut QueryBuilder<Postgres>, events: i64, begin: Option<Micros>) -> &'static str {
        sql.push("select * from (");
        let order = self.push_events(sql);
        if let Some(begin) = begin {
            sql.push(match self.slice {
                Slice::ByTime(Order::Asc, _) => " and e.time >= ",
                _ => " and e.time <= ",
            });
            push_time(sql, begin);
        }
        sql.push(order).push(" limit ").push_bind(events).push(") e where true");
        self.resolved.push_terms(sql);
        self.resolved.push_quick(sql);
        sql.push(order).push(" limit ").push_bind(i64::from(self.limit));
        order
    }

    /// What is newer than the digest, in that span.
    fn push_newer(&self, sql: &mut QueryBuilder<Postgres>, span: (Option<Micros>, Option<Micros>)) {
        sql.push("select * from sonde_store.events e where e.id > ")
            .push_bind(self.resolved.through());
        self.push_times(sql, span);
        self.resolved.push_terms(sql);
        self.push_limited(sql);
    }

    /// Where the page begins.
    fn begin(&self, order: Order, after: Option<Position>) -> Option<Micros> {
        let (Window { from, to }, after) = (self.window, after.map(|after| after.time));
        match order {
            Order::Asc => from.max(after),
            Order::Desc => to.map(|to| after.map_or(to, |after| after.min(to))),
        }
    }

    /// The span between where the page begins and there.
    fn before(&self, begin: Micros) -> (Option<Micros>, Option<Micros>) {
        let Window { from, to } = self.window;
        match self.slice {
            Slice::ByTime(Order::Asc, _) => (from, Some(begin)),
            _ => (Some(begin + 1), to),
        }
    }

    fn order(&self) -> &'static str {
        match self.slice {
            Slice::ByTime(Order::Asc, _) => " order by e.time, e.id",
            Slice::ByTime(Order::Desc, _) => " order by e.time desc, e.id desc",
            Slice::ById { .. } => " order by e.id",
        }
    }

    /// All events that may be meant, without the filter, for who goes through them in their order.
    fn push_events(&self, sql: &mut QueryBuilder<Postgres>) -> &'static str {
        sql.push("select * from sonde_store.events e where true");
        self.window.push(sql);
        match self.slice {
            Slice::ByTime(Order::Asc, after) => push_after(sql, *after, (" > (", " and e.time >= ")),
            Slice::ByTime(Order::Desc, after) => push_after(sql, *after, (" < (", " and e.time <= ")),
            Slice::ById { after, up_to } => {
                sql.push(" and e.id > ")
                    .push_bind(*after)
                    .push(" and e.id <= ")
                    .push_bind(*up_to);
            }
        }
        self.order()
    }

    /// What the index for searches finds.
    fn push_indexed(&self, sql: &mut QueryBuilder<Postgres>, part: &Part<'_>) -> &'static str {
        sql.push("select * from sonde_store.events e where true");
        let (mut from, mut to) = (self.window.from, self.window.to);
        if let Some(slots) = &part.slots {
            from = from.max(Some(slots.begin()));
            to = to.map(|to| to.min(slots.end()));
            slots.push(sql);
        } else if self.resolved.filter().min_latency_ns.is_some()
            && let Some(all) = Slots::all(self.window)
        {
            // Latencies are found by slot and no other way.
            all.push(sql);
        }
        self.push_times(sql, (from, to));
        self.resolved.push_terms(sql);
        if part.skipped.is_some() || part.narrowed.is_some() || self.resolved.is_of_digest() {
            self.resolved.push_findable(sql, Newer::Apart);
            sql.push(" and e.id <= ").push_bind(self.resolved.through());
        }
        if let Some(narrowed) = part.narrowed {
            narrowed.push(sql);
        }
        self.push_limited(sql)
    }

    /// Up to the far end of the slots: between them and where the page begins there may be newer ones.
    fn span_of_newer(&self, part: &Part<'_>) -> (Option<Micros>, Option<Micros>) {
        let Window { from, to } = self.window;
        match (&part.slots, self.slice) {
            (Some(slots), Slice::ByTime(Order::Asc, _)) => (from, to.map(|to| to.min(slots.end()))),
            (Some(slots), _) => (from.max(Some(slots.begin())), to),
            (None, _) => (from, to),
        }
    }

    /// ` and ...`: whole days prune partitions; what is exact is said of an expression, as an index by time has hundreds of
    /// thousands of events where few are wanted.
    fn push_times(&self, sql: &mut QueryBuilder<Postgres>, (from, to): (Option<Micros>, Option<Micros>)) {
        if let Some(from) = from {
            sql.push(" and e.time >= ");
            push_time(sql, from - from.rem_euclid(DAY));
            sql.push(" and e.time + interval '0' >= ");
            push_time(sql, from);
        }
        if let Some(to) = to {
            sql.push(" and e.time < ");
            push_time(sql, to + (-to).rem_euclid(DAY));
            sql.push(" and e.time + interval '0' < ");
            push_time(sql, to);
        }
        if let Slice::ByTime(order, Some(after)) = self.slice {
            sql.push(match order {
                Order::Asc => " and (e.time + interval '0', e.id) > (",
                Order::Desc => " and (e.time + interval '0', e.id) < (",
            });
            push_time(sql, after.time);
            sql.push(", ").push_bind(after.id).push(")");
        }
    }

    /// The order of an expression is that of no index. By which columns that is.
    fn push_limited(&self, sql: &mut QueryBuilder<Postgres>) -> &'static str {
        sql.push(match self.slice {
            Slice::ByTime(Order::Asc, _) => " order by e.time + interval '0', e.id",
            Slice::ByTime(Order::Desc, _) => " order by e.time + interval '0' desc, e.id desc",
            Slice::ById { .. } => self.order(),
        });
        sql.push(" limit ").push_bind(i64::from(self.limit));
        self.order()
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
