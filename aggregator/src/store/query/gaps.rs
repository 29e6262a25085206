//! Spans in which something could not be seen.

use sqlx::{Postgres, QueryBuilder};

use super::filter::Terms;
use super::pods::push_terms;
use super::{Micros, QueryError, micros, push_time};
use crate::store::Store;

#[derive(Clone, Debug, sqlx::FromRow)]
pub struct GapRow {
    pub node: String,
    /// Empty: the whole node; none: a network namespace of no known pod.
    pub namespace: Option<String>,
    pub pod: Option<String>,
    /// Empty: all.
    pub probe: String,
    pub cause: String,
    pub from_time: Micros,
    pub to_time: Micros,
    /// 0: not countable.
    pub count: i64,
    pub detail: String,
}

#[derive(Clone, Debug, Default)]
pub struct GapFilter {
    pub node: Terms<String>,
    /// A gap of all probes belongs to each of them.
    pub probe: Terms<String>,
    pub cause: Terms<String>,
}

impl Store {
    /// Gaps that touch the span, newest first.
    pub async fn gaps(
        &self,
        filter: &GapFilter,
        (from, to): (Micros, Micros),
        limit: u32,
    ) -> Result<Vec<GapRow>, QueryError> {
        let mut sql = QueryBuilder::<Postgres>::new(concat!(
            "select n.name as node, p.namespace, p.name as pod, g.probe, g.cause, ",
            micros!("g.from_time"),
            " as from_time, ",
            micros!("g.to_time"),
            " as to_time, g.count, g.detail from sonde_store.gaps g join sonde_store.nodes n on n.id = g.node_id \
             left join sonde_store.pods p on p.id = g.pod_id where g.from_time < "
        ));
        push_time(&mut sql, to);
        sql.push(" and g.to_time >= ");
        push_time(&mut sql, from);
        let mut probe = filter.probe.clone();
        if !probe.any.is_empty() {
            probe.any.push(String::new());
        }
        push_terms(&mut sql, "n.name", &filter.node);
        push_terms(&mut sql, "g.probe", &probe);
        push_terms(&mut sql, "g.cause", &filter.cause);
        sql.push(" order by g.from_time desc, n.name, g.probe, g.cause limit ")
            .push_bind(i64::from(limit));
        Ok(sql.build_query_as().persistent(false).fetch_all(self.pool()).await?)
    }
}
