//! Counts of events over time and by one field, in one pass over the table.

use sqlx::{Postgres, QueryBuilder, Row as _};

use super::filter::{EventFilter, Window};
use super::{Micros, QueryError, push_time};
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
        const WORD: &str = "(select text from sonde_store.strings where id = k)";
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
            Self::Saddr => ("e.saddr", "host(k)"),
            Self::Daddr => ("e.daddr", "host(k)"),
            Self::Sport => ("e.sport", "k::text"),
            Self::Dport => ("e.dport", "k::text"),
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

impl Store {
    /// `from` and `to` bound the time; steps of that length are counted from `first`.
    pub async fn event_counts(
        &self,
        filter: &EventFilter,
        (from, to): (Micros, Micros),
        (first, step): (Micros, Micros),
        by: Field,
        top: u32,
    ) -> Result<Counts, QueryError> {
        let mut db = self.pool().acquire().await?;
        let resolved = filter.resolve(&mut db).await?;
        let (column, name) = by.columns();
        let mut sql = QueryBuilder::<Postgres>::new(
            "with groups as materialized (select s, k, count(*) as n, grouping(s) = 0 as by_step from (\
             select (extract(epoch from e.time - ",
        );
        push_time(&mut sql, first);
        sql.push(") * 1000000)::bigint / ")
            .push_bind(step)
            .push(" as s, ")
            .push(column);
        sql.push(" as k from sonde_store.events e where true");
        resolved.push(
            &mut sql,
            Window {
                from: Some(from),
                to: Some(to),
            },
        );
        sql.push(") e group by grouping sets ((s), (k))), top as (select ")
            .push(name);
        sql.push(" as name, n from groups where not by_step) ");
        sql.push("select true as by_step, s, null as name, n::bigint as n from groups where by_step union all ");
        sql.push("(select false, null, name, sum(n)::bigint as n from top group by name order by n desc, name limit ");
        sql.push_bind(i64::from(top))
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
        Ok(counts)
    }
}
