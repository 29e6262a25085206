//! Services and what stands behind them, as they were at one time.

use std::collections::BTreeMap;

use serde_json::Value;
use sqlx::types::Json;
use sqlx::{Postgres, QueryBuilder};

use super::filter::Terms;
use super::pods::push_terms;
use super::{Micros, QueryError, micros, push_time};
use crate::store::Store;

#[derive(Clone, Debug, sqlx::FromRow)]
pub struct ServiceRow {
    pub id: i64,
    pub namespace: String,
    pub service: String,
    /// `type`, `ports`, `selector`.
    pub detail: Value,
    pub ips: Vec<String>,
    pub labels: Json<BTreeMap<String, String>>,
    pub valid_from: Micros,
    pub valid_to: Option<Micros>,
    pub endpoints_total: i64,
    pub endpoints_ready: i64,
    /// The first ones: `{ip, pod, node, ready}`.
    pub endpoints: Value,
}

#[derive(Clone, Debug, Default)]
pub struct ServiceFilter {
    pub namespace: Terms<String>,
    pub service: Terms<String>,
    /// One of its addresses.
    pub ip: Option<std::net::IpAddr>,
    /// None: now.
    pub at: Option<Micros>,
}

/// Where a page ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePosition {
    pub namespace: String,
    pub service: String,
    pub id: i64,
}

impl Store {
    /// One page, in order of (namespace, service). Of each at most `most` endpoints.
    pub async fn services(
        &self,
        filter: &ServiceFilter,
        after: Option<&ServicePosition>,
        (limit, most): (u32, u32),
    ) -> Result<Vec<ServiceRow>, QueryError> {
        let mut sql = QueryBuilder::<Postgres>::new(concat!(
            "select o.id, o.namespace, o.name as service, o.detail, \
             array(select host(ip) from unnest(o.ips) ip) as ips, o.labels, ",
            micros!("o.valid_from"),
            " as valid_from, ",
            micros!("o.valid_to"),
            " as valid_to, e.total as endpoints_total, e.ready as endpoints_ready, e.shown as endpoints \
             from sonde_store.cluster_objects o left join lateral (\
             select count(*) as total, count(*) filter (where ready) as ready, \
             coalesce(jsonb_agg(jsonb_build_object('ip', host(ip), 'pod', pod, 'node', node, 'ready', ready) \
                 order by ip) filter (where number <= "
        ));
        sql.push_bind(i64::from(most)).push(
            "), '[]') as shown from (select ip, max(pod) as pod, max(node) as node, bool_or(ready) as ready, \
             row_number() over (order by ip) as number from sonde_store.cluster_endpoints \
             where namespace = o.namespace and service = o.name",
        );
        push_at(&mut sql, "", filter.at);
        sql.push(" group by ip) each) e on true where o.kind = 'Service'");
        push_at(&mut sql, "o.", filter.at);
        push_terms(&mut sql, "o.namespace", &filter.namespace);
        push_terms(&mut sql, "o.name", &filter.service);
        if let Some(ip) = filter.ip {
            sql.push(" and ").push_bind(ip.to_string()).push("::inet = any(o.ips)");
        }
        if let Some(after) = after {
            sql.push(" and (o.namespace, o.name, o.id) > (")
                .push_bind(&after.namespace)
                .push(", ")
                .push_bind(&after.service)
                .push(", ")
                .push_bind(after.id)
                .push(")");
        }
        sql.push(" order by o.namespace, o.name, o.id limit ")
            .push_bind(i64::from(limit));
        Ok(sql.build_query_as().persistent(false).fetch_all(self.pool()).await?)
    }
}

fn push_at(sql: &mut QueryBuilder<Postgres>, table: &'static str, at: Option<Micros>) {
    let (from, to) = (format!("{table}valid_from"), format!("{table}valid_to"));
    match at {
        None => {
            sql.push(format!(" and {to} is null"));
        }
        Some(at) => {
            sql.push(format!(" and {from} <= "));
            push_time(sql, at);
            sql.push(format!(" and ({to} is null or {to} > "));
            push_time(sql, at);
            sql.push(")");
        }
    }
}
