//! Peers that became known late. An event names the pod at its other end when it is stored; the node of that pod may tell of
//! it only afterwards. Then the events that have its address, and no peer, get it.

use sqlx::PgConnection;

use super::{Store, schema};

/// Pods that changed so long ago are looked at again: transactions that were open when we looked last. Somewhat more
/// than the time between two looks.
const CHANGED_SECONDS: f64 = 70.0;
/// How far back events are named: as far as addresses are kept in memory for those that come.
const EVENTS_SECONDS: f64 = 3600.0;

/// The rules are those of `encode::peer` and `Pods::by_address`: the far end is told by the subject's own address, else by the
/// direction; a pod of the same node goes first; where several could have had the address nobody is named.
const REPAIR: &str = "
with ips as materialized (
    select distinct ip from sonde_store.pods p, unnest(p.ips) ip
    where p.updated > now() - make_interval(secs => $1) and not p.host_network and p.id <> 0),
open as (
    select e.time, e.id, e.node_id, e.pod_id,
           case when e.saddr = any (s.ips) and e.daddr <> all (s.ips) then e.daddr
                when e.daddr = any (s.ips) and e.saddr <> all (s.ips) then e.saddr
                when e.direction = 1 then e.saddr when e.direction = 2 then e.daddr end as other
    from ips
    cross join lateral (
        select * from sonde_store.events e where e.saddr = ips.ip and e.time > now() - make_interval(secs => $2)
        union
        select * from sonde_store.events e where e.daddr = ips.ip and e.time > now() - make_interval(secs => $2)) e
    left join sonde_store.pods s on s.id = e.pod_id
    where e.peer_pod_id is null),
found as (
    select distinct o.time, o.id, o.pod_id, case holders.own when 1 then holders.own_id when 0 then
        case holders.others when 1 then holders.other_id end end as peer
    from open o
    join ips on ips.ip = o.other
    cross join lateral (
        select count(*) filter (where h.node_id = o.node_id) as own, min(h.id) filter (where h.node_id = o.node_id) as own_id,
               count(*) filter (where h.node_id <> o.node_id) as others, min(h.id) filter (where h.node_id <> o.node_id) as other_id
        from sonde_store.pods h
        where h.ips @> array[o.other] and not h.host_network
          and h.valid_from <= o.time and (h.valid_to is null or o.time < h.valid_to)) holders)
update sonde_store.events e set peer_pod_id = f.peer, peer_object_id = null
from found f
where e.time = f.time and e.id = f.id and e.time > now() - make_interval(secs => $2) and e.peer_pod_id is null
  and f.peer is not null and f.peer is distinct from f.pod_id";

/// Names what can be named now; how many events that were. Any number of aggregators may do so.
pub(super) async fn repair(connection: &mut PgConnection) -> sqlx::Result<u64> {
    let mut tx = schema::begin(connection).await?;
    let done = sqlx::query(REPAIR)
        .bind(CHANGED_SECONDS)
        .bind(EVENTS_SECONDS)
        .execute(&mut *tx)
        .await?;
    tx.commit().await?;
    Ok(done.rows_affected())
}

impl Store {
    /// Names peers of events that became known after the events were stored. Upkeep does it all the time.
    pub async fn repair_peers(&self) -> sqlx::Result<u64> {
        repair(&mut *self.inner.pools.admin.acquire().await?).await
    }
}
