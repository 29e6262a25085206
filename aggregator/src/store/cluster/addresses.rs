//! Who in the cluster had which address when, as the Kubernetes API has it: for peers that no collector speaks of.

use std::collections::HashMap;
use std::net::IpAddr;

use sqlx::{PgConnection, Row as _};

/// How long after its end something is still looked for by address: events come late.
const REMEMBER_NS: u64 = 3_600_000_000_000;

#[derive(Debug, Default)]
pub(in crate::store) struct ClusterAddresses {
    holders: HashMap<IpAddr, Vec<Holder>>,
}

/// The order is that in which an address is looked for: a node's address may be an external one of a service too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Pod,
    Service,
    Node,
}

#[derive(Clone, Debug)]
struct Holder {
    object: i64,
    kind: Kind,
    /// Of a node; of others it is not needed.
    node: Option<Box<str>>,
    from_ns: u64,
    /// `u64::MAX` while it has it.
    to_ns: u64,
}

impl ClusterAddresses {
    pub(in crate::store) fn clear(&mut self) {
        self.holders.clear();
    }

    fn at(&self, ip: IpAddr, at_ns: u64) -> impl Iterator<Item = &Holder> {
        let all = self.holders.get(&ip).map_or(&[][..], Vec::as_slice);
        all.iter().filter(move |h| h.from_ns <= at_ns && at_ns < h.to_ns)
    }

    /// What had this address at that time; `None` where several of one kind had it.
    pub(in crate::store) fn by_address(&self, ip: IpAddr, at_ns: u64) -> Option<i64> {
        let kind = self.at(ip, at_ns).map(|h| h.kind).min()?;
        let mut fitting = self.at(ip, at_ns).filter(|h| h.kind == kind);
        match (fitting.next(), fitting.next()) {
            (Some(one), None) => Some(one.object),
            _ => None,
        }
    }

    /// Whether the node of that name had this address at that time.
    pub(in crate::store) fn is_node(&self, ip: IpAddr, at_ns: u64, node: &str) -> bool {
        self.at(ip, at_ns).any(|h| h.node.as_deref() == Some(node))
    }

    fn hold(&mut self, ip: IpAddr, holder: Holder) {
        let holders = self.holders.entry(ip).or_default();
        holders.retain(|h| h.object != holder.object);
        holders.push(holder);
    }

    /// Reads what changed since `since` seconds ago (all that still matters: `None`).
    pub(in crate::store) async fn refresh(
        &mut self,
        connection: &mut PgConnection,
        since: Option<f64>,
    ) -> sqlx::Result<()> {
        let rows = sqlx::query(
            "select id, kind, name, (extract(epoch from valid_from) * 1000000)::bigint as valid_from, \
             (extract(epoch from valid_to) * 1000000)::bigint as valid_to, \
             array(select host(ip) from unnest(ips) ip) as ips \
             from sonde_store.cluster_objects where ips <> '{}' \
             and (valid_to is null or valid_to > now() - interval '1 hour') \
             and ($1::float8 is null or updated > now() - make_interval(secs => $1))",
        )
        .bind(since)
        .fetch_all(connection)
        .await?;
        for row in rows {
            let ns = |us: i64| u64::try_from(us).unwrap_or(0) * 1000;
            let kind = match row.get("kind") {
                "Pod" => Kind::Pod,
                "Service" => Kind::Service,
                "Node" => Kind::Node,
                _ => continue,
            };
            let holder = Holder {
                object: row.get("id"),
                kind,
                node: (kind == Kind::Node).then(|| row.get::<&str, _>("name").into()),
                from_ns: ns(row.get("valid_from")),
                to_ns: row.get::<Option<i64>, _>("valid_to").map_or(u64::MAX, ns),
            };
            for ip in row.get::<Vec<String>, _>("ips") {
                if let Ok(ip) = ip.parse::<IpAddr>() {
                    self.hold(ip.to_canonical(), holder.clone());
                }
            }
        }
        Ok(())
    }

    /// Forgets what ended long ago.
    pub(in crate::store) fn prune(&mut self, now_ns: u64) {
        self.holders.retain(|_, holders| {
            holders.retain(|h| h.to_ns >= now_ns.saturating_sub(REMEMBER_NS));
            !holders.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(object: i64, kind: Kind, from_ns: u64, to_ns: u64) -> Holder {
        Holder {
            object,
            kind,
            node: (kind == Kind::Node).then(|| format!("n{object}").into()),
            from_ns,
            to_ns,
        }
    }

    #[test]
    fn an_address_is_whose_it_was_then_and_nobodys_where_two_claim_it() {
        let ip = IpAddr::from([10, 96, 0, 7]);
        let mut all = ClusterAddresses::default();
        all.hold(ip, holder(1, Kind::Service, 100, u64::MAX));
        all.hold(ip, holder(1, Kind::Service, 100, 200));
        all.hold(ip, holder(2, Kind::Service, 250, u64::MAX));
        assert_eq!(
            [99, 100, 199, 200, 249, 250].map(|at| all.by_address(ip, at)),
            [None, Some(1), Some(1), None, None, Some(2)]
        );
        all.hold(ip, holder(3, Kind::Service, 300, u64::MAX));
        assert_eq!(all.by_address(ip, 300), None);
        all.hold(ip, holder(4, Kind::Node, 300, u64::MAX));
        assert_eq!(
            all.by_address(ip, 300),
            None,
            "not the node's because services disagree"
        );
        all.hold(ip, holder(5, Kind::Pod, 300, u64::MAX));
        assert_eq!(all.by_address(ip, 300), Some(5));
        assert!(all.is_node(ip, 300, "n4") && !all.is_node(ip, 299, "n4") && !all.is_node(ip, 300, "n5"));
        all.prune(201 + REMEMBER_NS);
        assert_eq!(all.by_address(ip, 150), None);
        assert_eq!(all.by_address(ip, 260), Some(2));
    }
}
