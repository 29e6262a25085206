//! Pods as they are and as they were.

use std::collections::BTreeMap;

use sqlx::types::Json;
use sqlx::{Postgres, QueryBuilder};

use super::filter::Terms;
use super::{Micros, QueryError, micros, push_time};
use crate::store::Store;

#[derive(Clone, Debug, sqlx::FromRow)]
pub struct PodRow {
    pub id: i32,
    pub node: String,
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    pub workload: String,
    pub workload_kind: String,
    pub sandbox: String,
    pub ips: Vec<String>,
    pub labels: Json<BTreeMap<String, String>>,
    pub host_network: bool,
    pub netns_inode: i64,
    pub valid_from: Micros,
    pub valid_to: Option<Micros>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct PodFilter {
    pub node: Terms<String>,
    pub namespace: Terms<String>,
    pub pod: Terms<String>,
    pub workload: Terms<String>,
    pub when: When,
}

/// When the pod was there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum When {
    #[default]
    Now,
    At(Micros),
    /// At some time from the first to the second.
    Within(Micros, Micros),
    Ever,
}

/// Where a page ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPosition {
    pub namespace: String,
    pub pod: String,
    pub id: i32,
}

impl Store {
    /// One page, in order of (namespace, pod, age).
    pub async fn pods(
        &self,
        filter: &PodFilter,
        after: Option<&PodPosition>,
        limit: u32,
    ) -> Result<Vec<PodRow>, QueryError> {
        let mut sql = QueryBuilder::<Postgres>::new(concat!(
            "select p.id, n.name as node, p.namespace, p.name as pod, p.uid, p.workload, p.workload_kind, p.sandbox, \
             array(select host(ip) from unnest(p.ips) ip) as ips, p.labels, p.host_network, p.netns_inode, ",
            micros!("p.valid_from"),
            " as valid_from, ",
            micros!("p.valid_to"),
            " as valid_to from sonde_store.pods p join sonde_store.nodes n on n.id = p.node_id where true"
        ));
        push_terms(&mut sql, "n.name", &filter.node);
        push_terms(&mut sql, "p.namespace", &filter.namespace);
        push_terms(&mut sql, "p.name", &filter.pod);
        push_terms(&mut sql, "p.workload", &filter.workload);
        match filter.when {
            When::Now => {
                sql.push(" and p.valid_to is null");
            }
            When::At(time) => push_span(&mut sql, (time, " <= "), time),
            When::Within(from, to) => push_span(&mut sql, (to, " < "), from),
            When::Ever => {}
        }
        if let Some(after) = after {
            sql.push(" and (p.namespace, p.name, p.id) > (")
                .push_bind(&after.namespace);
            sql.push(", ")
                .push_bind(&after.pod)
                .push(", ")
                .push_bind(after.id)
                .push(")");
        }
        sql.push(" order by p.namespace, p.name, p.id limit ")
            .push_bind(i64::from(limit));
        Ok(sql.build_query_as().persistent(false).fetch_all(self.pool()).await?)
    }
}

pub(super) fn push_terms(sql: &mut QueryBuilder<Postgres>, column: &'static str, terms: &Terms<String>) {
    if !terms.any.is_empty() {
        sql.push(" and ")
            .push(column)
            .push(" = any(")
            .push_bind(terms.any.clone())
            .push(")");
    }
    if !terms.none.is_empty() {
        sql.push(" and ")
            .push(column)
            .push(" <> all(")
            .push_bind(terms.none.clone())
            .push(")");
    }
}

/// There before `end` and not gone by `start`.
fn push_span(sql: &mut QueryBuilder<Postgres>, (end, before): (Micros, &'static str), start: Micros) {
    sql.push(" and p.valid_from").push(before);
    push_time(sql, end);
    sql.push(" and (p.valid_to is null or p.valid_to > ");
    push_time(sql, start);
    sql.push(")");
}
