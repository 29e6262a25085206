//! What changed in the cluster.

use sqlx::{Postgres, QueryBuilder};

use super::events::Position;
use super::filter::Terms;
use super::pods::push_terms;
use super::{Micros, QueryError, micros, push_time};
use crate::store::Store;

/// Names are empty where they do not apply.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct ChangeRow {
    pub id: i64,
    pub time: Micros,
    pub since: Micros,
    pub kind: String,
    pub node: String,
    pub namespace: String,
    pub pod: String,
    pub workload_kind: String,
    pub workload: String,
    pub service: String,
    pub before: Option<String>,
    pub after: Option<String>,
    pub detail: String,
}

#[derive(Clone, Debug, Default)]
pub struct ChangeFilter {
    pub kind: Terms<String>,
    pub node: Terms<String>,
    pub namespace: Terms<String>,
    pub pod: Terms<String>,
    pub workload: Terms<String>,
    pub service: Terms<String>,
}

impl Store {
    /// One page of the changes that can have happened in the span, newest first. `after` is the position of the last
    /// change of the page before.
    pub async fn changes(
        &self,
        filter: &ChangeFilter,
        (from, to): (Micros, Micros),
        after: Option<Position>,
        limit: u32,
    ) -> Result<Vec<ChangeRow>, QueryError> {
        let mut sql = QueryBuilder::<Postgres>::new(concat!(
            "select id, ",
            micros!("time"),
            " as time, ",
            micros!("since"),
            " as since, kind, node, namespace, pod, workload_kind, workload, service, before, after, detail \
             from sonde_store.changes c where c.time >= "
        ));
        push_time(&mut sql, from);
        sql.push(" and c.since < ");
        push_time(&mut sql, to);
        for (column, terms) in [
            ("c.kind", &filter.kind),
            ("c.node", &filter.node),
            ("c.namespace", &filter.namespace),
            ("c.pod", &filter.pod),
            ("c.workload", &filter.workload),
            ("c.service", &filter.service),
        ] {
            push_terms(&mut sql, column, terms);
        }
        if let Some(after) = after {
            sql.push(" and (c.time, c.id) < (");
            push_time(&mut sql, after.time);
            sql.push(", ").push_bind(after.id).push(") and c.time <= ");
            push_time(&mut sql, after.time);
        }
        sql.push(" order by c.time desc, c.id desc limit ")
            .push_bind(i64::from(limit));
        Ok(sql.build_query_as().persistent(false).fetch_all(self.pool()).await?)
    }
}
