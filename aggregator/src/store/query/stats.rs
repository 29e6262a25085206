//! Counts of events over time and by one field: from the digest of events (`store/digest.rs`) where it has what is asked for,
//! else in one pass over the events.

use sonde_common::time::now_ns;
use sqlx::{PgConnection, Postgres, QueryBuilder, Row as _};

use super::cover::{Piece, cover};
use super::filter::{EventFilter, Pods, Resolved};
use super::search::Asker;
use super::ways::Slots;
use super::{HOUR, MINUTE, Micros, QueryError, push_time};
use crate::store::Store;

/// What events can be counted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    Type,
    Reason,
    Probe,
    Protocol,
    Node,
    Namespace,
    Pod,
    Workload,
    Interface,
    Comm,
    State,
    Direction,
    Saddr,
    Daddr,
    Sport,
    Dport,
}

impl Field {
    pub const ALL: [(&'static str, Self); 16] = [
        ("type", Self::Type),
        ("reason", Self::Reason),
        ("probe", Self::Probe),
        ("protocol", Self::Protocol),
        ("node", Self::Node),
        ("namespace", Self::Namespace),
        ("pod", Self::Pod),
        ("workload", Self::Workload),
        ("interface", Self::Interface),
        ("comm", Self::Comm),
        ("state", Self::State),
        ("direction", Self::Direction),
        ("saddr", Self::Saddr),
        ("daddr", Self::Daddr),
        ("sport", Self::Sport),
        ("dport", Self::Dport),
    ];

    /// What is grouped by in the table of events, and how a group then gets its name (`k` is the group).
    const fn columns(self) -> (&'static str, &'static str) {
        // The empty word stands for none.
        const WORD: &str = "(select nullif(text, '') from sonde_store.strings where id = k)";
        const ADDRESS: &str = "host(nullif(k, '::/0'))";
        match self {
            Self::Type => ("e.type", WORD),
            Self::Reason => ("e.reason", WORD),
            Self::Probe => ("e.probe", WORD),
            Self::Protocol => ("e.protocol", WORD),
            Self::Interface => ("e.interface", WORD),
            Self::Comm => ("e.comm", WORD),
            Self::State => ("e.state", WORD),
            Self::Node => ("e.node_id", "(select name from sonde_store.nodes where id = k)"),
            Self::Namespace => ("e.pod_id", "(select namespace from sonde_store.pods where id = k)"),
            Self::Pod => ("e.pod_id", "(select name from sonde_store.pods where id = k)"),
            Self::Workload => (
                "e.pod_id",
                "(select nullif(workload, '') from sonde_store.pods where id = k)",
            ),
            Self::Direction => (
                "e.direction",
                "case k when 1 then 'ingress' when 2 then 'egress' when 3 then 'forward' end",
            ),
            Self::Saddr => ("e.saddr", ADDRESS),
            Self::Daddr => ("e.daddr", ADDRESS),
            Self::Sport => ("e.sport", "nullif(k, -1)::text"),
            Self::Dport => ("e.dport", "nullif(k, -1)::text"),
        }
    }

    /// Its number in the tables of values, and the same of an event as it is there, without nulls.
    const fn value(self) -> Option<(i16, &'static str)> {
        match self {
            Self::Interface => Some((1, "coalesce(e.interface, 0)")),
            Self::Comm => Some((2, "coalesce(e.comm, 0)")),
            Self::State => Some((3, "coalesce(e.state, 0)")),
            Self::Dport => Some((4, "coalesce(e.dport, -1)")),
            Self::Sport => Some((5, "coalesce(e.sport, -1)")),
            Self::Saddr => Some((1, "coalesce(e.saddr, '::/0')")),
            Self::Daddr => Some((2, "coalesce(e.daddr, '::/0')")),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Number of the step since the beginning, and events in it; steps without events are left out.
    pub steps: Vec<(i64, i64)>,
    /// Most frequent first. None: events that have no value there.
    pub top: Vec<(Option<String>, i64)>,
}

/// Tables of counts, which are by time and some of the columns of events; longest buckets first.
#[derive(Debug, PartialEq, Eq)]
struct Digest {
    levels: &'static [(&'static str, Micros)],
    /// The column of the value, where there is one row for each value of a field.
    value: Option<&'static str>,
    /// Which column of `event_digest` says from which event on there is this one; none: from the first.
    after: Option<&'static str>,
}

/// What is beyond the ends of whole buckets has no more slots than that: half of an hour, and where it begins.
const END_SLOTS: i32 = 4;
/// More values of a filter are looked for without slots, in each of which each would be.
const END_LOOKUPS: usize = 4;

static KINDS: Digest = Digest {
    levels: &[("event_kinds_10m", 10 * MINUTE), ("event_kinds_1m", MINUTE)],
    value: None,
    after: None,
};
static SUBJECTS: Digest = Digest {
    levels: &[
        ("event_subjects_6h", 6 * HOUR),
        ("event_subjects_1h", HOUR),
        ("event_subjects_10m", 10 * MINUTE),
    ],
    value: None,
    after: None,
};
static WORDS: Digest = Digest {
    levels: &[("event_words_6h", 6 * HOUR), ("event_words_1h", HOUR)],
    value: Some("e.word"),
    after: Some("values_after"),
};
static WORDS_OF_TYPES: Digest = Digest {
    levels: &[("event_words_1h", HOUR)],
    ..WORDS
};
static SPORTS: Digest = Digest {
    after: Some("sports_after"),
    ..WORDS
};
static ENDS: Digest = Digest {
    levels: &[("event_ends_6h", 6 * HOUR), ("event_ends_1h", HOUR)],
    value: Some("e.address"),
    after: Some("values_after"),
};
static ENDS_OF_TYPES: Digest = Digest {
    levels: &[("event_ends_1h", HOUR)],
    ..ENDS
};

/// Groups of columns that a question is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct About {
    /// Some types and not all.
    types: bool,
    probe: bool,
    /// Reason, protocol, direction.
    kind: bool,
    /// Node and pod.
    subject: bool,
    /// A field that is counted by value.
    value: Option<&'static Digest>,
    /// What no digest has.
    other: bool,
}

impl About {
    fn filter(filter: &EventFilter) -> Self {
        Self {
            types: !filter.kind.is_empty(),
            probe: !filter.probe.is_empty(),
            kind: !(filter.reason.is_empty() && filter.protocol.is_empty()),
            subject: !(filter.node.is_empty()
                && filter.namespace.is_empty()
                && filter.pod.is_empty()
                && filter.workload.is_empty()),
            value: None,
            other: !(filter.ip.is_empty() && filter.port.is_empty() && filter.q.is_empty())
                || filter.min_latency_ns.is_some(),
        }
    }

    fn and(self, field: Field) -> Self {
        use Field as F;
        match field {
            F::Type => self,
            F::Probe => Self { probe: true, ..self },
            F::Reason | F::Protocol | F::Direction => Self { kind: true, ..self },
            F::Node | F::Namespace | F::Pod | F::Workload => Self { subject: true, ..self },
            F::Interface | F::Comm | F::State | F::Dport => Self {
                value: Some(if self.types { &WORDS_OF_TYPES } else { &WORDS }),
                ..self
            },
            F::Saddr | F::Daddr => Self {
                value: Some(if self.types { &ENDS_OF_TYPES } else { &ENDS }),
                ..self
            },
            F::Sport if self.types => Self { other: true, ..self },
            F::Sport => Self {
                value: Some(&SPORTS),
                ..self
            },
        }
    }

    /// Where it can be found. None: in the events only.
    fn digest(self) -> Option<&'static Digest> {
        match self {
            Self { other: true, .. } => None,
            Self {
                value: Some(digest), ..
            } => (!self.probe && !self.kind && !self.subject).then_some(digest),
            Self {
                kind: true,
                subject: true,
                ..
            } => None,
            Self { subject: true, .. } => Some(&SUBJECTS),
            Self { .. } => Some(&KINDS),
        }
    }
}

/// One of the two questions: how many in each step, or how many of each value.
struct Question<'a> {
    resolved: &'a Resolved<'a>,
    range: (Micros, Micros),
    /// Tables that answer it; none: the events do.
    levels: Vec<(&'static str, Micros)>,
    /// See [`Digest::value`].
    value: Option<&'static str>,
    /// Events with ids above the first and up to the second are in them.
    within: (i64, i64),
    by: By,
}

/// Which events by their ids.
#[derive(Clone, Copy)]
enum Ids {
    InDigest,
    Before,
    After,
}

#[derive(Clone, Copy)]
enum By {
    Step { first: Micros, step: Micros },
    Field(Field),
}

impl Store {
    /// `from` and `to` bound the time; steps of that length are counted from `first`.
    pub async fn event_counts(
        &self,
        filter: &EventFilter,
        range: (Micros, Micros),
        (first, step): (Micros, Micros),
        by: Field,
        top: u32,
    ) -> Result<Counts, QueryError> {
        let mut running = self.begin_search(Asker::Search).await?;
        let db = running.db();
        let resolved = filter.resolve(db, range.into()).await?;
        let about = About::filter(filter);
        let of_steps = about.digest().map_or(Vec::new(), |digest| {
            let levels = digest.levels.iter().copied();
            levels.filter(|(_, bucket)| step % bucket == 0).collect()
        });
        let counted = about.and(by).digest();
        let of_top = counted.map_or(Vec::new(), |digest| digest.levels.to_vec());
        let digest = !(of_steps.is_empty() && of_top.is_empty());
        let mut sql = if !digest {
            one_pass(&resolved, range, (first, step), by)
        } else {
            let (after, through) = begin(db, counted.and_then(|digest| digest.after)).await?;
            let question = |levels, by| Question {
                resolved: &resolved,
                range,
                levels,
                value: None,
                within: (0, through),
                by,
            };
            let mut sql = QueryBuilder::new("with steps as (");
            question(of_steps, By::Step { first, step }).push(&mut sql);
            sql.push("), by_field as (");
            let mut top = question(of_top, By::Field(by));
            top.value = counted.and_then(|digest| digest.value);
            top.within.0 = after;
            top.push(&mut sql);
            sql.push(")");
            sql
        };
        sql.push(
            " select true as by_step, k::bigint as s, null as name, n::bigint as n from steps where n > 0 union all \
             (select false, null, name, sum(n)::bigint as n from (select ",
        );
        sql.push(by.columns().1)
            .push(" as name, n from by_field where n > 0) named group by name order by n desc, name limit ")
            .push_bind(i64::from(top))
            .push(") order by by_step, s, n desc, name");
        let mut counts = Counts::default();
        for row in sql.build().persistent(false).fetch_all(&mut *db).await? {
            let n = row.try_get("n")?;
            if row.try_get("by_step")? {
                counts.steps.push((row.try_get("s")?, n));
            } else {
                counts.top.push((row.try_get("name")?, n));
            }
        }
        if digest {
            sqlx::raw_sql("commit").execute(&mut *db).await?;
        }
        running.done();
        Ok(counts)
    }
}

/// What is read from now on belongs together. The id goes into the statement as a number and not as a query: the planner, which
/// cannot know what a query will find, would take a third of all events to be newer.
async fn begin(db: &mut PgConnection, after: Option<&'static str>) -> Result<(i64, i64), QueryError> {
    sqlx::raw_sql("begin isolation level repeatable read read only")
        .execute(&mut *db)
        .await?;
    let mut sql = QueryBuilder::<Postgres>::new("select ");
    sql.push(after.unwrap_or("0::bigint"));
    sql.push(", through from sonde_store.event_digest");
    Ok(sql.build_query_as().fetch_one(db).await?)
}

/// Both questions at once, from the events.
fn one_pass(
    resolved: &Resolved<'_>,
    range: (Micros, Micros),
    (first, step): (Micros, Micros),
    by: Field,
) -> QueryBuilder<Postgres> {
    let mut sql = QueryBuilder::new(
        "with groups as materialized (select s, k, count(*) as n, grouping(s) = 0 as by_step from (select ",
    );
    By::Step { first, step }.push(&mut sql, false);
    sql.push(" as s, ").push(by.columns().0);
    sql.push(" as k from sonde_store.events e where true");
    resolved.push(&mut sql, range.into());
    sql.push(
        ") e group by grouping sets ((s), (k))), steps as (select s as k, n from groups where by_step), \
         by_field as (select k, n from groups where not by_step)",
    );
    sql
}

impl By {
    /// The key. Tables of the digest have no nulls, and what is added to them must not either.
    fn push(self, sql: &mut QueryBuilder<Postgres>, beside_digest: bool) {
        match self {
            Self::Step { first, step } => {
                sql.push("(extract(epoch from e.time - ");
                push_time(sql, first);
                sql.push(") * 1000000)::bigint / ").push_bind(step);
            }
            Self::Field(Field::Reason) if beside_digest => {
                sql.push("coalesce(e.reason, 0)");
            }
            Self::Field(Field::Protocol) if beside_digest => {
                sql.push("coalesce(e.protocol, 0)");
            }
            Self::Field(Field::Namespace | Field::Pod | Field::Workload) if beside_digest => {
                sql.push("coalesce(e.pod_id, -1)");
            }
            Self::Field(field) => {
                let value = field.value().filter(|_| beside_digest);
                sql.push(value.map_or(field.columns().0, |(_, value)| value));
            }
        }
    }
}

impl Question<'_> {
    /// `select k, n`: a key, and how many.
    fn push(&self, sql: &mut QueryBuilder<Postgres>) {
        sql.push("select k, sum(n) as n from (");
        let lengths: Vec<Micros> = self.levels.iter().map(|(_, bucket)| *bucket).collect();
        for piece in cover(&lengths, self.range, now_micros()) {
            match piece {
                Piece::Buckets { level, from, to } => self.buckets(sql, self.levels[level].0, (from, to)),
                Piece::Plus { from, to } => self.events(sql, "count(*)", (from, to), Ids::InDigest),
                Piece::Minus { from, to } => self.events(sql, "-count(*)", (from, to), Ids::InDigest),
            }
            sql.push(" union all ");
        }
        if self.levels.is_empty() {
            // The last `union all` wants something.
            sql.push("select null, 0 where false");
        } else {
            if self.within.0 > 0 {
                self.events(sql, "count(*)", self.range, Ids::Before);
                sql.push(" union all ");
            }
            self.events(sql, "count(*)", self.range, Ids::After);
        }
        sql.push(") pieces group by k");
    }

    /// Steps are told from the few times of buckets, not from each row. Rows of values are about as many as values.
    fn buckets(&self, sql: &mut QueryBuilder<Postgres>, table: &'static str, span: (Micros, Micros)) {
        sql.push("(select ");
        match self.value {
            Some(column) => {
                sql.push(column);
            }
            None => self.by.push(sql, true),
        }
        sql.push(" as k, ")
            .push(if self.value.is_some() { "n" } else { "sum(n) as n" })
            .push(" from ");
        if matches!(self.by, By::Step { .. }) {
            sql.push("(select time, sum(n) as n from ");
        }
        sql.push("sonde_store.").push(table).push(" e where true");
        if let (Some(_), By::Field(field)) = (self.value, self.by) {
            sql.push(" and e.field = ")
                .push_bind(field.value().map(|(number, _)| number));
            // Not a sum of types and of all together.
            let all = self.resolved.filter().kind.is_empty();
            sql.push(if all { " and e.type = 0" } else { " and e.type <> 0" });
        }
        self.resolved.push(sql, span.into());
        if matches!(self.by, By::Step { .. }) {
            sql.push(" group by time) e");
        }
        sql.push(if self.value.is_some() { ")" } else { " group by 1)" });
    }

    fn events(&self, sql: &mut QueryBuilder<Postgres>, count: &'static str, span: (Micros, Micros), ids: Ids) {
        sql.push("(select ");
        self.by.push(sql, !self.levels.is_empty());
        sql.push(" as k, ")
            .push(count)
            .push(" as n from sonde_store.events e where true");
        if !self.levels.is_empty() {
            let (after, through) = self.within;
            match ids {
                Ids::Before => sql.push(" and e.id <= ").push_bind(after),
                Ids::After => sql.push(" and e.id > ").push_bind(through),
                Ids::InDigest => {
                    if after > 0 {
                        sql.push(" and e.id > ").push_bind(after);
                    }
                    sql.push(" and e.id <= ").push_bind(through)
                }
            };
        }
        self.resolved.push(sql, span.into());
        // The ends of a span are minutes: of a type an index would find the whole day, and only then what is in these. Of pods it
        // finds less than slots hold.
        if matches!(self.resolved.pods(), Pods::All)
            && self.resolved.is_indexed()
            && self.resolved.lookups() <= END_LOOKUPS
            && let Some(slots) = Slots::all(span.into()).filter(|slots| slots.count() <= END_SLOTS)
        {
            slots.push(sql);
        }
        sql.push(" group by 1)");
    }
}

fn now_micros() -> Micros {
    Micros::try_from(now_ns() / 1000).unwrap_or(Micros::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::filter::Terms;
    use super::*;

    #[test]
    fn a_question_is_answered_where_all_that_it_is_about_is_known() {
        let terms = || Terms {
            any: vec!["x".to_owned()],
            none: vec![],
        };
        let none = EventFilter::default();
        let kind = EventFilter {
            kind: terms(),
            ..EventFilter::default()
        };
        let reason = EventFilter {
            reason: terms(),
            ..EventFilter::default()
        };
        let probe = EventFilter {
            probe: terms(),
            ..EventFilter::default()
        };
        let pod = EventFilter {
            pod: terms(),
            ..EventFilter::default()
        };
        let text = EventFilter {
            q: terms(),
            ..EventFilter::default()
        };
        for (filter, by, expected) in [
            (&none, Field::Type, Some(&KINDS)),
            (&none, Field::Direction, Some(&KINDS)),
            (&none, Field::Pod, Some(&SUBJECTS)),
            (&none, Field::Saddr, Some(&ENDS)),
            (&none, Field::Comm, Some(&WORDS)),
            (&none, Field::Sport, Some(&SPORTS)),
            (&kind, Field::Sport, None),
            (&none, Field::Dport, Some(&WORDS)),
            (&kind, Field::Dport, Some(&WORDS_OF_TYPES)),
            (&kind, Field::Saddr, Some(&ENDS_OF_TYPES)),
            (&reason, Field::Daddr, None),
            (&probe, Field::State, None),
            (&pod, Field::Comm, None),
            (&kind, Field::Reason, Some(&KINDS)),
            (&kind, Field::Namespace, Some(&SUBJECTS)),
            (&reason, Field::Type, Some(&KINDS)),
            (&reason, Field::Node, None),
            (&pod, Field::Type, Some(&SUBJECTS)),
            (&pod, Field::Reason, None),
            (&text, Field::Type, None),
        ] {
            assert_eq!(About::filter(filter).and(by).digest(), expected, "{filter:?} {by:?}");
        }
    }
}
