//! Pods by number, and who had which address when.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use sonde_proto::v1;
use sqlx::{PgConnection, Row as _};

use super::schema;

/// How long after its end a pod is still looked for by address: events come late.
const REMEMBER_NS: u64 = 3_600_000_000_000;

/// Numbers of the pods that batches spoke of lately.
#[derive(Debug, Default)]
pub(super) struct Pods {
    /// By node, then sandbox: the number, and what was stored of it last.
    known: HashMap<i32, HashMap<String, (i32, Arc<v1::Pod>)>>,
    addresses: HashMap<IpAddr, Vec<Holder>>,
}

/// A pod that has or had an address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Holder {
    pod: i32,
    node: i32,
    from_ns: u64,
    /// `u64::MAX` while it is there.
    to_ns: u64,
}

impl Pods {
    pub(super) fn clear(&mut self) {
        self.known.clear();
        self.addresses.clear();
    }

    /// Stores those pods that are new or changed; `wanted` are (node, pod) in the order of the batches.
    pub(super) async fn store(
        &mut self,
        connection: &mut PgConnection,
        wanted: &[(i32, &v1::Pod)],
    ) -> sqlx::Result<()> {
        // The newest word on a sandbox counts; a statement may touch each row only once.
        let mut seen = HashSet::new();
        let mut changed: Vec<(i32, &v1::Pod)> = wanted
            .iter()
            .rev()
            .copied()
            .filter(|(node, pod)| seen.insert((*node, pod.sandbox.as_str())))
            .filter(|(node, pod)| self.get(*node, &pod.sandbox).is_none_or(|(_, known)| **known != **pod))
            .collect();
        if changed.is_empty() {
            return Ok(());
        }
        // One order for everybody, so that two aggregators cannot wait for each other.
        changed.sort_unstable_by_key(|(node, pod)| (*node, pod.sandbox.as_str()));
        let mut tx = schema::begin(connection).await?;
        let ids = upsert(&mut tx, &changed).await?;
        tx.commit().await?;
        for ((node, pod), id) in changed.iter().zip(ids) {
            self.remember(id, *node, pod);
        }
        Ok(())
    }

    fn get(&self, node: i32, sandbox: &str) -> Option<&(i32, Arc<v1::Pod>)> {
        self.known.get(&node)?.get(sandbox)
    }

    /// The number of a pod that was stored.
    pub(super) fn id(&self, node: i32, sandbox: &str) -> Option<i32> {
        self.get(node, sandbox).map(|(id, _)| *id)
    }

    fn remember(&mut self, id: i32, node: i32, pod: &v1::Pod) {
        let holder = Holder {
            pod: id,
            node,
            from_ns: pod.valid_from_ns,
            to_ns: if pod.valid_to_ns == 0 {
                u64::MAX
            } else {
                pod.valid_to_ns
            },
        };
        let pods = self.known.entry(node).or_default();
        if let Some((_, before)) = pods.insert(pod.sandbox.clone(), (id, Arc::new(pod.clone()))) {
            for ip in before.ips.iter().filter_map(|ip| address(ip)) {
                self.forget_holder(ip, id);
            }
        }
        // Pods of the host's network have the node's address, which says nothing about them.
        if !pod.host_network {
            for ip in pod.ips.iter().filter_map(|ip| address(ip)) {
                self.hold(ip, holder.clone());
            }
        }
    }

    fn hold(&mut self, ip: IpAddr, holder: Holder) {
        self.forget_holder(ip, holder.pod);
        self.addresses.entry(ip).or_default().push(holder);
    }

    fn forget_holder(&mut self, ip: IpAddr, pod: i32) {
        if let Some(holders) = self.addresses.get_mut(&ip) {
            holders.retain(|h| h.pod != pod);
            if holders.is_empty() {
                self.addresses.remove(&ip);
            }
        }
    }

    /// The pod that had this address at that time: one of the asking node first, since addresses may repeat between
    /// nodes; `None` where several others had it.
    pub(super) fn by_address(&self, ip: IpAddr, at_ns: u64, node: i32) -> Option<i32> {
        let holders = self.addresses.get(&ip)?;
        let fitting = |own: bool| {
            let mut fitting = holders
                .iter()
                .filter(move |h| (h.node == node) == own && h.from_ns <= at_ns && at_ns < h.to_ns)
                .map(|h| h.pod);
            match (fitting.next(), fitting.next()) {
                (found, None) => Ok(found),
                _ => Err(()),
            }
        };
        match fitting(true) {
            Ok(None) => fitting(false).ok().flatten(),
            found => found.ok().flatten(),
        }
    }

    /// Reads the pods that any aggregator changed since `since` seconds ago (all that still matter: `None`).
    pub(super) async fn refresh(&mut self, connection: &mut PgConnection, since: Option<f64>) -> sqlx::Result<()> {
        let rows = sqlx::query(
            "select p.id, p.node_id, (extract(epoch from p.valid_from) * 1000000)::bigint as valid_from, \
             (extract(epoch from p.valid_to) * 1000000)::bigint as valid_to, \
             array(select host(ip) from unnest(p.ips) ip) as ips \
             from sonde_store.pods p join sonde_store.nodes n on n.id = p.node_id \
             where not p.host_network and p.ips <> '{}' \
             and (p.valid_to > now() - interval '1 hour' \
                  or p.valid_to is null and n.last_seen > now() - interval '1 day') \
             and ($1::float8 is null or p.updated > now() - make_interval(secs => $1))",
        )
        .bind(since)
        .fetch_all(connection)
        .await?;
        for row in rows {
            let us = |value: i64| value.max(0) as u64 * 1000;
            let ips: Vec<String> = row.get("ips");
            for ip in ips.iter().filter_map(|ip| ip.parse().ok()) {
                self.hold(
                    ip,
                    Holder {
                        pod: row.get("id"),
                        node: row.get("node_id"),
                        from_ns: us(row.get("valid_from")),
                        to_ns: row.get::<Option<i64>, _>("valid_to").map_or(u64::MAX, us),
                    },
                );
            }
        }
        Ok(())
    }

    /// Forgets pods that ended long ago.
    pub(super) fn prune(&mut self, now_ns: u64) {
        let old = |to_ns: u64| to_ns < now_ns.saturating_sub(REMEMBER_NS);
        self.addresses.retain(|_, holders| {
            holders.retain(|h| !old(h.to_ns));
            !holders.is_empty()
        });
        self.known.retain(|_, pods| {
            pods.retain(|_, (_, pod)| pod.valid_to_ns == 0 || !old(pod.valid_to_ns));
            !pods.is_empty()
        });
    }
}

/// 4 or 16 bytes in network order; IPv4 addresses that are mapped into IPv6 are IPv4.
pub(super) fn address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => Some(IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        16 => Some(IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?).to_canonical()),
        _ => None,
    }
}

/// Their numbers, in the order given. Where the Kubernetes API knows a pod, its workload and labels count, and what the
/// collector says of them is kept beside.
async fn upsert(connection: &mut PgConnection, pods: &[(i32, &v1::Pod)]) -> sqlx::Result<Vec<i32>> {
    let text = |get: fn(&v1::Pod) -> &str| pods.iter().map(|(_, pod)| get(pod)).collect::<Vec<_>>();
    let micros = |ns: u64| (ns / 1000) as i64;
    let ips = |(_, pod): &(i32, &v1::Pod)| {
        let ips: Vec<String> = pod
            .ips
            .iter()
            .filter_map(|ip| address(ip))
            .map(|ip| ip.to_string())
            .collect();
        format!("{{{}}}", ips.join(","))
    };
    let labels = |(_, pod): &(i32, &v1::Pod)| serde_json::to_string(&pod.labels).expect("texts become JSON");
    let rows: Vec<(i32, i32, String)> = sqlx::query_as(
        "insert into sonde_store.pods (node_id, sandbox, uid, namespace, name, workload_kind, workload, host_network, \
         netns_inode, netns_cookie, ips, labels, valid_from, valid_to, said) \
         select t.node_id, t.sandbox, t.uid, t.namespace, t.name, \
         case when o.workload <> '' then o.workload_kind else t.workload_kind end, \
         coalesce(nullif(o.workload, ''), t.workload), t.host_network, t.netns_inode, \
         t.netns_cookie::numeric, t.ips::inet[], coalesce(o.labels, t.labels::jsonb), to_timestamp(0) + valid_from * interval '1 microsecond', \
         to_timestamp(0) + valid_to * interval '1 microsecond', \
         case when o.labels is not null then jsonb_build_object('workload_kind', t.workload_kind, \
             'workload', t.workload, 'labels', t.labels::jsonb) end \
         from unnest($1::int[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::bool[], \
         $9::bigint[], $10::text[], $11::text[], $12::text[], $13::bigint[], $14::bigint[]) as t(node_id, sandbox, uid, \
         namespace, name, workload_kind, workload, host_network, netns_inode, netns_cookie, ips, labels, valid_from, \
         valid_to) \
         left join lateral (select c.workload_kind, c.workload, c.labels from sonde_store.cluster_objects c \
             where c.runtime_uid = t.uid and t.uid <> '' and c.kind = 'Pod' order by c.id desc limit 1) o on true \
         on conflict (node_id, sandbox) do update set uid = excluded.uid, namespace = excluded.namespace, \
         name = excluded.name, workload_kind = excluded.workload_kind, workload = excluded.workload, \
         host_network = excluded.host_network, netns_inode = excluded.netns_inode, \
         netns_cookie = excluded.netns_cookie, ips = excluded.ips, labels = excluded.labels, \
         valid_from = excluded.valid_from, valid_to = excluded.valid_to, said = excluded.said, updated = now() \
         returning id, node_id, sandbox",
    )
    .bind(pods.iter().map(|(node, _)| *node).collect::<Vec<_>>())
    .bind(text(|p| &p.sandbox))
    .bind(text(|p| &p.uid))
    .bind(text(|p| &p.namespace))
    .bind(text(|p| &p.name))
    .bind(text(|p| &p.workload_kind))
    .bind(text(|p| &p.workload))
    .bind(pods.iter().map(|(_, pod)| pod.host_network).collect::<Vec<_>>())
    .bind(pods.iter().map(|(_, pod)| pod.netns_inode as i64).collect::<Vec<_>>())
    .bind(pods.iter().map(|(_, pod)| pod.netns_cookie.to_string()).collect::<Vec<_>>())
    .bind(pods.iter().map(ips).collect::<Vec<_>>())
    .bind(pods.iter().map(labels).collect::<Vec<_>>())
    .bind(pods.iter().map(|(_, pod)| micros(pod.valid_from_ns)).collect::<Vec<_>>())
    .bind(
        pods.iter()
            .map(|(_, pod)| (pod.valid_to_ns != 0).then(|| micros(pod.valid_to_ns)))
            .collect::<Vec<_>>(),
    )
    .fetch_all(connection)
    .await?;
    let ids: HashMap<(i32, &str), i32> = rows
        .iter()
        .map(|(id, node, sandbox)| ((*node, sandbox.as_str()), *id))
        .collect();
    let id = |(node, pod): &(i32, &v1::Pod)| ids.get(&(*node, pod.sandbox.as_str())).copied();
    pods.iter()
        .map(id)
        .collect::<Option<_>>()
        .ok_or(sqlx::Error::RowNotFound)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(sandbox: &str, ip: [u8; 4], from_ns: u64, to_ns: u64) -> v1::Pod {
        v1::Pod {
            sandbox: sandbox.into(),
            ips: vec![ip.to_vec()],
            valid_from_ns: from_ns,
            valid_to_ns: to_ns,
            ..Default::default()
        }
    }

    #[test]
    fn an_address_belongs_to_the_pod_that_had_it_then() {
        let mut pods = Pods::default();
        let ip = IpAddr::from([10, 0, 0, 1]);
        pods.remember(1, 7, &pod("a", [10, 0, 0, 1], 100, 0));
        pods.remember(1, 7, &pod("a", [10, 0, 0, 1], 100, 200));
        pods.remember(2, 7, &pod("b", [10, 0, 0, 1], 200, 0));
        assert_eq!(pods.by_address(ip, 99, 7), None);
        assert_eq!(pods.by_address(ip, 199, 7), Some(1));
        assert_eq!(pods.by_address(ip, 200, 7), Some(2));
        assert_eq!(pods.by_address(ip, 200, 8), Some(2), "from another node too");
    }

    #[test]
    fn an_address_that_repeats_between_nodes_is_the_own_nodes_or_nobodys() {
        let mut pods = Pods::default();
        let ip = IpAddr::from([10, 0, 0, 1]);
        for node in [7, 8] {
            pods.remember(node, node, &pod("a", [10, 0, 0, 1], 100, 0));
        }
        assert_eq!(pods.by_address(ip, 150, 7), Some(7));
        assert_eq!(pods.by_address(ip, 150, 9), None);
    }

    #[test]
    fn pods_that_ended_long_ago_and_changed_addresses_are_forgotten() {
        let mut pods = Pods::default();
        pods.remember(1, 7, &pod("a", [10, 0, 0, 1], 100, 200));
        pods.remember(2, 7, &pod("b", [10, 0, 0, 2], 100, 0));
        pods.remember(2, 7, &pod("b", [10, 0, 0, 3], 100, 0));
        assert_eq!(pods.by_address(IpAddr::from([10, 0, 0, 2]), 150, 7), None);
        pods.prune(201 + REMEMBER_NS);
        assert_eq!((pods.known[&7].len(), pods.addresses.len()), (1, 1));
        assert_eq!(pods.id(7, "a"), None);
        assert_eq!(pods.id(7, "b"), Some(2));
    }
}
