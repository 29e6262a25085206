//! A page of a search: which questions are put to the table of events, one after the other, until it is full.

use serde_json::Value;
use sqlx::types::Json;
use sqlx::{PgConnection, Postgres, QueryBuilder};

use super::events::{Order, Position, Slice};
use super::filter::{Newer, Resolved, Window};
use super::names::{COLUMNS, Stored};
use super::narrow::Narrowed;
use super::ways::{DAY, FEW, MANY_VALUES, NEAREST, SOME, Slots, Way};
use super::{Micros, QueryError, hours, push_time};

/// So many events that are newer than the digest are looked through at once. There are more while it catches up.
const MOST_NEWER: i64 = 200_000;

/// The first events in that order, by whatever way finds them soonest.
pub(super) async fn page(
    db: &mut PgConnection,
    question: &Question<'_>,
    order: Order,
    after: Option<Position>,
) -> Result<Vec<Stored>, QueryError> {
    let (limit, resolved) = (question.limit as usize, question.resolved);
    let (mut way, mut narrowed, mut newer) = (Way::Nearest(NEAREST), None, None);
    let (mut begin, mut skipped) = (question.begin(order, after), false);
    let few_newer = resolved.newer() <= MOST_NEWER;
    let (mut looked, mut counted) = (!few_newer, false);
    loop {
        let part = Part {
            slots: match way {
                Way::Indexed(Some(count)) => Slots::new(question.window, order, begin, count),
                _ => None,
            },
            narrowed: narrowed.as_ref().filter(|narrowed: &&Narrowed| !narrowed.is_empty()),
            skipped: begin.filter(|_| skipped),
        };
        let mut found = question.ask(db, way, &part).await?;
        if question.is_of_digest(way, &part) {
            let newer = match &newer {
                Some(newer) if few_newer => newer,
                _ => newer.insert(question.newer(db, part.slots.as_ref().filter(|_| !few_newer)).await?),
            };
            part.add(&mut found, newer, way, order);
            found.truncate(limit);
        }
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
        // Where an index would be asked for long, or cannot be asked.
        let early = matches!(way, Way::Nearest(_)) && (resolved.lookups() > MANY_VALUES || !resolved.is_indexed());
        if let (true, Some(start)) = (found.is_empty() && (part.slots.is_some() || early), begin) {
            if !std::mem::replace(&mut looked, true)
                && let Some(next) = hours::next(db, resolved, question.window, order, start).await?
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
            none => none.insert(Narrowed::find(db, resolved, question.window).await?),
        };
        way = match narrowed.is_empty() && !resolved.is_indexed() {
            true => Way::Planned,
            false => way.by_index(found.len(), limit, resolved.lookups().max(narrowed.lookups())),
        };
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

pub(super) struct Question<'a> {
    pub(super) resolved: &'a Resolved<'a>,
    pub(super) window: Window,
    pub(super) slice: &'a Slice,
    pub(super) limit: u32,
}

impl Part<'_> {
    /// Adds what is newer than the digest, as far as this part goes: up to the far end of its slots, or from where the page begins
    /// to where nearest ones were looked through.
    fn add(&self, found: &mut Vec<Stored>, newer: &[Stored], way: Way, order: Order) {
        let within = |event: &&Stored| match (way, &self.slots, self.skipped, order) {
            (Way::Indexed(_), Some(slots), _, Order::Asc) => event.time < slots.end(),
            (Way::Indexed(_), Some(slots), _, Order::Desc) => event.time >= slots.begin(),
            (Way::Planned | Way::Nearest(_), _, Some(begin), Order::Asc) => event.time < begin,
            (Way::Planned | Way::Nearest(_), _, Some(begin), Order::Desc) => event.time > begin,
            _ => true,
        };
        found.extend(newer.iter().filter(within).cloned());
        found.sort_unstable_by_key(|event| (event.time, event.id));
        if order == Order::Desc {
            found.reverse();
        }
    }
}

impl Question<'_> {
    /// Without names.
    pub(super) async fn whole(&self, db: &mut PgConnection) -> Result<Vec<Stored>, QueryError> {
        self.ask(db, Way::Planned, &Part::default()).await
    }

    /// Whether some of what is asked for is known from the digest, so that what is newer lacks. It is asked for apart, by its ids: in
    /// one condition with what is known the planner finds it by the times of whole slots.
    fn is_of_digest(&self, way: Way, part: &Part<'_>) -> bool {
        match way {
            Way::Planned | Way::Nearest(_) => part.skipped.is_some(),
            Way::Indexed(_) => part.skipped.is_some() || part.narrowed.is_some() || self.resolved.is_of_digest(),
        }
    }

    /// The first ones of the window, or of these slots of it, that are newer than the digest.
    async fn newer(&self, db: &mut PgConnection, slots: Option<&Slots>) -> Result<Vec<Stored>, QueryError> {
        let mut sql = QueryBuilder::new("select ");
        sql.push(COLUMNS)
            .push(" from (select * from sonde_store.events e where e.id > ");
        sql.push_bind(self.resolved.through());
        self.push_times(&mut sql, self.span(slots));
        self.resolved.push_terms(&mut sql);
        let order = self.push_limited(&mut sql);
        sql.push(") e").push(order);
        Ok(sql.build_query_as().persistent(false).fetch_all(db).await?)
    }

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
        self.push_events(&mut sql, None);
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
                let order = self.push_events(sql, part.skipped);
                self.resolved.push_terms(sql);
                sql.push(order).push(" limit ").push_bind(i64::from(self.limit));
                order
            }
            Way::Nearest(events) => self.push_nearest(sql, events, part.skipped),
            Way::Indexed(_) => self.push_indexed(sql, part),
        }
    }

    /// What there is among so many events from there on.
    fn push_nearest(&self, sql: &mut QueryBuilder<Postgres>, events: i64, begin: Option<Micros>) -> &'static str {
        sql.push("select * from (");
        let order = self.push_events(sql, begin);
        sql.push(order).push(" limit ").push_bind(events).push(") e where true");
        self.resolved.push_terms(sql);
        self.resolved.push_quick(sql);
        sql.push(order).push(" limit ").push_bind(i64::from(self.limit));
        order
    }

    /// Where the page begins.
    fn begin(&self, order: Order, after: Option<Position>) -> Option<Micros> {
        let (Window { from, to }, after) = (self.window, after.map(|after| after.time));
        match order {
            Order::Asc => from.max(after),
            Order::Desc => to.map(|to| after.map_or(to, |after| after.min(to))),
        }
    }

    fn order(&self) -> &'static str {
        match self.slice {
            Slice::ByTime(Order::Asc, _) => " order by e.time, e.id",
            Slice::ByTime(Order::Desc, _) => " order by e.time desc, e.id desc",
            Slice::ById { .. } => " order by e.id",
        }
    }

    /// All events that may be meant, without the filter, for who goes through them in their order, maybe only from there on.
    fn push_events(&self, sql: &mut QueryBuilder<Postgres>, begin: Option<Micros>) -> &'static str {
        sql.push("select * from sonde_store.events e where true");
        self.window.push(sql);
        if let Some(begin) = begin {
            sql.push(match self.slice {
                Slice::ByTime(Order::Asc, _) => " and e.time >= ",
                _ => " and e.time <= ",
            });
            push_time(sql, begin);
        }
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
        if let Some(slots) = &part.slots {
            slots.push(sql);
        } else if self.resolved.filter().min_latency_ns.is_some()
            && let Some(all) = Slots::all(self.window)
        {
            // Latencies are found by slot and no other way.
            all.push(sql);
        }
        self.push_times(sql, self.span(part.slots.as_ref()));
        self.resolved.push_terms(sql);
        if self.is_of_digest(Way::Indexed(None), part) {
            self.resolved.push_findable(sql, Newer::Apart);
            sql.push(" and e.id <= ").push_bind(self.resolved.through());
        }
        if let Some(narrowed) = part.narrowed {
            narrowed.push(sql);
        }
        self.push_limited(sql)
    }

    /// What these slots have of the window.
    fn span(&self, slots: Option<&Slots>) -> (Option<Micros>, Option<Micros>) {
        let Window { from, to } = self.window;
        match slots {
            Some(slots) => (from.max(Some(slots.begin())), to.map(|to| to.min(slots.end()))),
            None => (from, to),
        }
    }

    /// ` and ...`: whole days prune partitions; what is exact is said of an expression, as an index by time has hundreds of
    /// thousands of events where few are wanted.
    fn push_times(&self, sql: &mut QueryBuilder<Postgres>, (mut from, mut to): (Option<Micros>, Option<Micros>)) {
        match self.slice {
            Slice::ByTime(Order::Asc, Some(after)) => from = from.max(Some(after.time)),
            Slice::ByTime(Order::Desc, Some(after)) => to = to.map(|to| to.min(after.time + 1)),
            _ => {}
        }
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
