//! Events by time, and events as they become visible.

use serde_json::{Map, Value};
use sqlx::types::Json;
use sqlx::{Postgres, QueryBuilder};

use super::filter::{EventFilter, Resolved, Window};
use super::search::{Asker, Running};
use super::{Micros, QueryError, micros, push_time};
use crate::store::Store;

/// One event with names in place of ids.
#[derive(Clone, Debug, Default, sqlx::FromRow)]
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

/// Names for the rows of `page`. A peer that the collector could not name is looked up by its address, among the pods
/// of that time: the one of the two addresses that is not the subject's, else the far end by direction. What is no pod
/// there was looked up in the facts of the cluster when the event was stored.
const NAMES: &str = concat!(
    "select ",
    micros!("e.time"),
    " as time, e.id, n.name as node, p.namespace, p.name as pod, p.workload, \
     probe.text as probe, type.text as kind, reason.text as reason, protocol.text as protocol, \
     host(e.saddr) as saddr, e.sport, host(e.daddr) as daddr, e.dport, \
     case when e.peer_pod_id = 0 then n.name else coalesce(peer.node, found.node, \
         case other.kind when 'Node' then other.name else nullif(other.node, '') end) end as peer_node, \
     coalesce(peer.namespace, found.namespace, other.namespace) as peer_namespace, \
     coalesce(peer.name, found.name, case other.kind when 'Pod' then other.name when 'Node' then '' end) as peer_pod, \
     coalesce(peer.workload, found.workload, other.workload) as peer_workload, \
     case when other.kind = 'Service' and found.name is null then other.name end as peer_service, \
     e.direction, e.latency_ns, e.cpu, e.pid, comm.text as comm, state.text as state, interface.text as interface, \
     e.suppressed, stack.frames as stack, e.attributes \
     from page e \
     join sonde_store.nodes n on n.id = e.node_id \
     join sonde_store.strings probe on probe.id = e.probe \
     join sonde_store.strings type on type.id = e.type \
     left join sonde_store.pods p on p.id = e.pod_id \
     left join sonde_store.strings reason on reason.id = e.reason \
     left join sonde_store.strings protocol on protocol.id = e.protocol \
     left join sonde_store.strings comm on comm.id = e.comm \
     left join sonde_store.strings state on state.id = e.state \
     left join sonde_store.strings interface on interface.id = e.interface \
     left join sonde_store.stacks stack on stack.id = e.stack_id \
     left join lateral (select pp.namespace, pp.name, pp.workload, \
         (select name from sonde_store.nodes where id = pp.node_id) as node \
         from sonde_store.pods pp where pp.id = e.peer_pod_id) peer on true \
     left join lateral (select pp.namespace, pp.name, pp.workload, \
         (select name from sonde_store.nodes where id = pp.node_id) as node \
         from sonde_store.pods pp \
         where e.peer_pod_id is null and not pp.host_network and pp.ips @> array[case \
             when e.saddr = any(p.ips) then e.daddr when e.daddr = any(p.ips) then e.saddr \
             when e.direction = 1 then e.saddr when e.direction = 2 then e.daddr end] \
         and pp.valid_from <= e.time and (pp.valid_to is null or pp.valid_to > e.time) \
         order by pp.valid_from desc limit 1) found on true \
     left join sonde_store.cluster_objects other on other.id = e.peer_object_id"
);

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
    let mut way = match slice {
        Slice::ByTime(..) if resolved.is_indexed() => Way::Nearest(NEAREST),
        _ => Way::Planned,
    };
    let limit_rows = limit as usize;
    loop {
        let mut sql = statement(&resolved, window, slice, limit, way);
        let rows: Vec<EventRow> = sql.build_query_as().persistent(false).fetch_all(&mut *db).await?;
        way = match way {
            Way::Nearest(_) if rows.len() < limit_rows => way.next(rows.len(), limit_rows),
            _ => {
                running.done();
                return Ok(rows);
            }
        };
    }
}

/// How a page is found. Where matches are frequent it is quick to go through events in their order until it is full; where
/// they are rare the index for searches finds them all. The planner guesses from each filter by itself, and is wrong by
/// orders of magnitude where filters depend on each other: so a bounded part is looked through first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    Planned,
    /// So many events are looked through.
    Nearest(i64),
    Search,
}

/// Events that are looked through for a page before anything else.
const NEAREST: i64 = 20_000;

impl Way {
    /// Where the nearest events had so many for the page that the rest of it cannot be far, more of them are looked through,
    /// at most ten times as many.
    fn next(self, found: usize, limit: usize) -> Self {
        match self {
            Self::Nearest(NEAREST) if found * 5 >= limit => Self::Nearest(2 * NEAREST * limit as i64 / found as i64),
            _ => Self::Search,
        }
    }
}

/// The page first, by ids alone; then names for its rows.
fn statement(resolved: &Resolved, window: Window, slice: &Slice, limit: u32, way: Way) -> QueryBuilder<Postgres> {
    let mut sql = QueryBuilder::new("with page as materialized (select * from ");
    sql.push(match way {
        Way::Nearest(_) => "(select * from sonde_store.events e where true",
        Way::Planned | Way::Search => "sonde_store.events e where true",
    });
    window.push(&mut sql);
    let order = match slice {
        Slice::ByTime(Order::Asc, after) => {
            push_after(&mut sql, *after, (" > (", " and e.time >= "));
            " order by e.time, e.id"
        }
        Slice::ByTime(Order::Desc, after) => {
            push_after(&mut sql, *after, (" < (", " and e.time <= "));
            " order by e.time desc, e.id desc"
        }
        Slice::ById { after, up_to } => {
            sql.push(" and e.id > ")
                .push_bind(*after)
                .push(" and e.id <= ")
                .push_bind(*up_to);
            " order by e.id"
        }
    };
    if let Way::Nearest(events) = way {
        sql.push(order).push(" limit ").push_bind(events).push(") e where true");
    }
    resolved.push_terms(&mut sql);
    match (way, slice) {
        // The order of an expression is that of no index.
        (Way::Search, Slice::ByTime(Order::Asc, _)) => sql.push(" order by e.time + interval '0', e.id"),
        (Way::Search, Slice::ByTime(Order::Desc, _)) => sql.push(" order by e.time + interval '0' desc, e.id desc"),
        _ => sql.push(order),
    };
    sql.push(" limit ")
        .push_bind(i64::from(limit))
        .push(") ")
        .push(NAMES)
        .push(order);
    sql
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
        assert_eq!(first.next(0, 100), Way::Search);
        assert_eq!(first.next(19, 100), Way::Search);
        assert_eq!(first.next(20, 100), Way::Nearest(10 * NEAREST));
        assert_eq!(first.next(99, 100), Way::Nearest(2 * NEAREST * 100 / 99));
        assert_eq!(Way::Nearest(10 * NEAREST).next(90, 100), Way::Search);
    }
}
