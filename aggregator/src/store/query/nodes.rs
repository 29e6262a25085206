//! Nodes, each with the number of its pods.

use std::collections::BTreeMap;

use sqlx::types::Json;

use super::{Micros, QueryError, micros};
use crate::store::Store;

#[derive(Clone, Debug, sqlx::FromRow)]
pub struct NodeRow {
    pub node: String,
    pub version: String,
    pub kernel: String,
    pub boot_id: Option<String>,
    pub first_seen: Micros,
    pub last_seen: Micros,
    pub interval_ns: i64,
    pub pods: i64,
    /// From the Kubernetes API, where that knows the node.
    pub labels: Option<Json<BTreeMap<String, String>>>,
    pub ips: Option<Vec<String>>,
    pub ready: Option<String>,
}

impl Store {
    pub async fn nodes(&self) -> Result<Vec<NodeRow>, QueryError> {
        let sql = concat!(
            "select n.name as node, n.version, n.kernel, n.boot_id::text, ",
            micros!("n.first_seen"),
            " as first_seen, ",
            micros!("n.last_seen"),
            " as last_seen, n.interval_ns, \
             (select count(*) from sonde_store.pods p where p.node_id = n.id and p.valid_to is null) as pods, \
             o.labels, array(select host(ip) from unnest(o.ips) ip) as ips, o.state->>'ready' as ready \
             from sonde_store.nodes n left join sonde_store.cluster_objects o \
             on o.kind = 'Node' and o.namespace = '' and o.name = n.name and o.valid_to is null order by n.name"
        );
        Ok(sqlx::query_as(sql).fetch_all(self.pool()).await?)
    }
}
