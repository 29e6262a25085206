//! Which events are wanted: words are looked up in the dictionaries first, then the table of events is searched by ids.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sqlx::{PgConnection, Postgres, QueryBuilder};

use super::texts::{TextIds, Texts, text_ids};
use super::{Micros, QueryError, push_time};

/// Wanted and unwanted values of one key: `any` are alternatives, each of `none` rules out.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Terms<T> {
    pub any: Vec<T>,
    pub none: Vec<T>,
}

impl<T> Default for Terms<T> {
    fn default() -> Self {
        Self {
            any: Vec::new(),
            none: Vec::new(),
        }
    }
}

impl Network {
    /// Its first and its last address.
    pub(super) fn ends(&self) -> (IpAddr, IpAddr) {
        match self.address {
            IpAddr::V4(address) => {
                let host = u32::MAX.checked_shr(self.prefix.into()).unwrap_or(0);
                let first = address.to_bits() & !host;
                (
                    Ipv4Addr::from_bits(first).into(),
                    Ipv4Addr::from_bits(first | host).into(),
                )
            }
            IpAddr::V6(address) => {
                let host = u128::MAX.checked_shr(self.prefix.into()).unwrap_or(0);
                let first = address.to_bits() & !host;
                (
                    Ipv6Addr::from_bits(first).into(),
                    Ipv6Addr::from_bits(first | host).into(),
                )
            }
        }
    }

    fn is_host(&self) -> bool {
        self.prefix == if self.address.is_ipv4() { 32 } else { 128 }
    }
}

impl<T> Terms<T> {
    pub fn is_empty(&self) -> bool {
        self.any.is_empty() && self.none.is_empty()
    }
}

/// An address, or a network of that prefix length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Network {
    pub address: IpAddr,
    pub prefix: u8,
}

/// Keys are joined by "and". An empty word means: the event has none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct EventFilter {
    pub probe: Terms<String>,
    pub kind: Terms<String>,
    pub reason: Terms<String>,
    pub protocol: Terms<String>,
    pub node: Terms<String>,
    pub namespace: Terms<String>,
    pub pod: Terms<String>,
    pub workload: Terms<String>,
    /// Either end.
    pub ip: Terms<Network>,
    /// Either end.
    pub port: Terms<u16>,
    pub min_latency_ns: Option<i64>,
    /// Text in reason, process name, stack or attributes, without regard to case.
    pub q: Terms<String>,
}

impl EventFilter {
    /// Whether all events are wanted.
    pub(super) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// `from` inclusive, `to` exclusive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    pub from: Option<Micros>,
    pub to: Option<Micros>,
}

impl From<(Micros, Micros)> for Window {
    fn from((from, to): (Micros, Micros)) -> Self {
        Self {
            from: Some(from),
            to: Some(to),
        }
    }
}

impl Window {
    /// ` and ...` for a table of events under the alias `e`.
    pub(super) fn push(self, sql: &mut QueryBuilder<Postgres>) {
        if let Some(from) = self.from {
            sql.push(" and e.time >= ");
            push_time(sql, from);
        }
        if let Some(to) = self.to {
            sql.push(" and e.time < ");
            push_time(sql, to);
        }
    }

    /// ` and ...` for a table of the digest under the alias `e`, of whose buckets of that length these have a part in the window.
    pub(super) fn push_buckets(self, sql: &mut QueryBuilder<Postgres>, length: &'static str) {
        if let Some(from) = self.from {
            sql.push(" and e.time > ");
            push_time(sql, from);
            sql.push(" - interval '").push(length).push("'");
        }
        if let Some(to) = self.to {
            sql.push(" and e.time < ");
            push_time(sql, to);
        }
    }
}

/// The filter with ids in place of words.
#[derive(Debug)]
pub(super) struct Resolved<'a> {
    filter: &'a EventFilter,
    /// Up to this id events are in the digest: what is known from it is known of these.
    through: i64,
    /// So many are not in it yet.
    newer: i64,
    /// See migrations 0013 and 0015.
    values_after: i64,
    sports_after: i64,
    words: HashMap<String, i32>,
    nodes: HashMap<String, i32>,
    pods: Pods,
    /// The addresses that there are in wanted networks.
    networks: Option<Vec<String>>,
    q_any: Vec<TextIds>,
    q_none: Vec<TextIds>,
}

#[derive(Debug)]
pub(super) enum Pods {
    All,
    /// These only.
    Only(Vec<i32>),
    /// All others, those that are not known too.
    Not(Vec<i32>),
}

/// More addresses than this are not looked for one by one: so many are frequent enough to be met on the way.
const MOST_ADDRESSES: i64 = 3000;

/// So many are compared with those of an event in less time than it takes to look into these.
const FEW_ATTRIBUTES: usize = 8;

impl EventFilter {
    pub(super) async fn resolve(&self, db: &mut PgConnection, window: Window) -> Result<Resolved<'_>, QueryError> {
        let words: Vec<&str> = [&self.probe, &self.kind, &self.reason, &self.protocol]
            .into_iter()
            .flat_map(|terms| terms.any.iter().chain(&terms.none))
            .map(String::as_str)
            .collect();
        let nodes: Vec<&str> = self
            .node
            .any
            .iter()
            .chain(&self.node.none)
            .map(String::as_str)
            .collect();
        // Asked for before what is in the digest, which then is of the same events or of more.
        let sql = "select through, last - through, values_after, sports_after \
                   from sonde_store.event_digest, sonde_store.event_ids";
        let (through, newer, values_after, sports_after) = sqlx::query_as(sql).fetch_one(&mut *db).await?;
        Ok(Resolved {
            filter: self,
            through,
            newer,
            values_after,
            sports_after,
            words: ids(
                db,
                "select text, id from sonde_store.strings where text = any($1)",
                &words,
            )
            .await?,
            nodes: ids(
                db,
                "select name, id from sonde_store.nodes where name = any($1)",
                &nodes,
            )
            .await?,
            pods: self.pods(db).await?,
            networks: addresses(db, &self.ip, window).await?,
            q_any: text_ids(db, &self.q.any, Some(window)).await?,
            q_none: text_ids(db, &self.q.none, None).await?,
        })
    }

    async fn pods(&self, db: &mut PgConnection) -> Result<Pods, QueryError> {
        let keys = [
            ("namespace", &self.namespace),
            ("name", &self.pod),
            ("workload", &self.workload),
        ];
        if keys.iter().all(|(_, terms)| terms.is_empty()) {
            return Ok(Pods::All);
        }
        let only = keys.iter().any(|(_, terms)| !terms.any.is_empty());
        let mut sql = QueryBuilder::<Postgres>::new("select id from sonde_store.pods where ");
        if only {
            sql.push("true");
            for (column, terms) in keys {
                if !terms.any.is_empty() {
                    sql.push(" and ")
                        .push(column)
                        .push(" = any(")
                        .push_bind(&terms.any)
                        .push(")");
                }
                if !terms.none.is_empty() {
                    sql.push(" and ")
                        .push(column)
                        .push(" <> all(")
                        .push_bind(&terms.none)
                        .push(")");
                }
            }
        } else {
            sql.push("false");
            for (column, terms) in keys {
                sql.push(" or ")
                    .push(column)
                    .push(" = any(")
                    .push_bind(&terms.none)
                    .push(")");
            }
        }
        let ids = sql.build_query_scalar().persistent(false).fetch_all(db).await?;
        Ok(if only { Pods::Only(ids) } else { Pods::Not(ids) })
    }
}

async fn ids(db: &mut PgConnection, sql: &'static str, words: &[&str]) -> Result<HashMap<String, i32>, QueryError> {
    if words.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<(String, i32)> = sqlx::query_as(sql).bind(words).fetch_all(db).await?;
    Ok(rows.into_iter().collect())
}

/// None where no network is wanted, or has too many addresses.
async fn addresses(
    db: &mut PgConnection,
    ip: &Terms<Network>,
    window: Window,
) -> Result<Option<Vec<String>>, QueryError> {
    let networks: Vec<&Network> = ip.any.iter().filter(|n| !n.is_host()).collect();
    if networks.is_empty() {
        return Ok(None);
    }
    let mut sql =
        QueryBuilder::<Postgres>::new("select distinct host(address) from sonde_store.event_addresses e where true");
    window.push_buckets(&mut sql, "1 day");
    sql.push(" and (false");
    for network in networks {
        let (first, last) = network.ends();
        sql.push(" or address between ").push_bind(first.to_string());
        sql.push("::inet and ").push_bind(last.to_string()).push("::inet");
    }
    sql.push(") limit ").push_bind(MOST_ADDRESSES + 1);
    let there: Vec<String> = sql.build_query_scalar().persistent(false).fetch_all(db).await?;
    Ok((there.len() as i64 <= MOST_ADDRESSES).then_some(there))
}

/// What is newer than the digest is not among what is known from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Newer {
    /// Beside what is known, all that is newer.
    Too,
    /// Whoever asks looks for that by itself.
    Apart,
}

impl Newer {
    /// ` or ...` at the end of what the digest knows.
    fn push(self, sql: &mut QueryBuilder<Postgres>, through: i64) {
        if self == Self::Too {
            sql.push(" or e.id > ").push_bind(through);
        }
    }
}

impl<'a> Resolved<'a> {
    /// ` and ...` for a table of events under the alias `e`.
    pub(super) fn push(&self, sql: &mut QueryBuilder<Postgres>, window: Window) {
        window.push(sql);
        self.push_terms(sql);
        self.push_findable(sql, Newer::Too);
    }

    /// ` and ...` that says nothing new, but that an index finds.
    pub(super) fn push_findable(&self, sql: &mut QueryBuilder<Postgres>, newer: Newer) {
        self.push_addresses(sql, newer);
        self.push_found(sql, newer);
    }

    /// Whether some of that is known from the digest.
    pub(super) fn is_of_digest(&self) -> bool {
        self.networks.is_some() || self.knows_texts()
    }

    /// Whether it is known of every wanted text which attributes hold it.
    fn knows_texts(&self) -> bool {
        !self.q_any.is_empty() && self.q_any.iter().all(|ids| ids.attributes.is_some())
    }

    /// ` and ...` that says nothing new, but that is quick to tell of an event: to look into the attributes of each takes
    /// longer than all else.
    pub(super) fn push_quick(&self, sql: &mut QueryBuilder<Postgres>) {
        let attributes = self.q_any.iter().filter_map(|ids| ids.attributes.as_ref());
        if attributes.map(|a| a.objects.len()).sum::<usize>() <= FEW_ATTRIBUTES {
            self.push_found(sql, Newer::Too);
        }
    }

    /// Whether the index for searches can find what is wanted, and not only rule out.
    pub(super) fn is_indexed(&self) -> bool {
        let filter = self.filter;
        let words = |terms: &Terms<String>| !terms.any.is_empty() && !terms.any.iter().any(String::is_empty);
        [&filter.kind, &filter.reason, &filter.protocol, &filter.node]
            .into_iter()
            .any(words)
            || matches!(self.pods, Pods::Only(_))
            || !filter.port.any.is_empty()
            || filter.min_latency_ns.is_some()
            || self.knows_texts()
            || (!filter.ip.any.is_empty() && (self.networks.is_some() || filter.ip.any.iter().all(Network::is_host)))
    }

    /// How many values the index for searches is asked for, about.
    pub(super) fn lookups(&self) -> usize {
        let filter = self.filter;
        let pods = match &self.pods {
            Pods::Only(ids) => ids.len(),
            _ => 0,
        };
        let texts: usize = self
            .q_any
            .iter()
            .map(|ids| 2 * ids.words.len() + ids.stacks.len() + ids.attributes.as_ref().map_or(0, |a| a.objects.len()))
            .sum();
        let addresses = filter.ip.any.len() + self.networks.as_ref().map_or(0, Vec::len);
        let words = [&filter.kind, &filter.reason, &filter.protocol, &filter.node];
        let words = words.iter().map(|terms| terms.any.len().max(1)).product::<usize>();
        words
            * [pods, texts, 2 * addresses, 2 * filter.port.any.len()]
                .into_iter()
                .max()
                .unwrap_or(0)
                .max(1)
    }

    /// The same without the window.
    pub(super) fn push_terms(&self, sql: &mut QueryBuilder<Postgres>) {
        self.push_kinds(sql);
        self.push_nodes(sql);
        match &self.pods {
            Pods::All => {}
            Pods::Only(ids) => {
                sql.push(" and e.pod_id = any(").push_bind(ids.clone()).push(")");
            }
            Pods::Not(ids) => {
                sql.push(" and (e.pod_id is null or e.pod_id <> all(")
                    .push_bind(ids.clone())
                    .push("))");
            }
        }
        self.push_ends(sql);
        if let Some(latency) = self.filter.min_latency_ns {
            sql.push(" and e.latency_ns >= ").push_bind(latency);
        }
        self.push_text(sql);
    }

    pub(super) fn push_kinds(&self, sql: &mut QueryBuilder<Postgres>) {
        let filter = self.filter;
        push_ids(sql, "e.probe", &filter.probe, &self.words);
        push_ids(sql, "e.type", &filter.kind, &self.words);
        push_ids(sql, "e.reason", &filter.reason, &self.words);
        push_ids(sql, "e.protocol", &filter.protocol, &self.words);
    }

    /// Whether that says anything.
    pub(super) fn names_kinds(&self) -> bool {
        let filter = self.filter;
        let all = [&filter.probe, &filter.kind, &filter.reason, &filter.protocol];
        all.iter().any(|terms| !terms.is_empty())
    }

    pub(super) fn push_nodes(&self, sql: &mut QueryBuilder<Postgres>) {
        push_ids(sql, "e.node_id", &self.filter.node, &self.nodes);
    }

    pub(super) fn filter(&self) -> &'a EventFilter {
        self.filter
    }

    pub(super) fn pods(&self) -> &Pods {
        &self.pods
    }

    pub(super) fn through(&self) -> i64 {
        self.through
    }

    pub(super) fn newer(&self) -> i64 {
        self.newer
    }

    pub(super) fn values_after(&self) -> i64 {
        self.values_after
    }

    /// Addresses and ports: either end will do, and neither may be an unwanted one.
    fn push_ends(&self, sql: &mut QueryBuilder<Postgres>) {
        let networks = |terms: &[Network]| -> Vec<String> {
            terms.iter().map(|n| format!("{}/{}", n.address, n.prefix)).collect()
        };
        let ip = &self.filter.ip;
        if !ip.any.is_empty() {
            // Without coalesce, and hosts as equal: only so an index can be used. What is null is not wanted either way.
            let (hosts, nets): (Vec<Network>, Vec<Network>) = ip.any.iter().partition(|n| n.is_host());
            sql.push(" and (false");
            for (operator, terms) in [("=", hosts), ("<<=", nets)] {
                for end in ["saddr", "daddr"].into_iter().filter(|_| !terms.is_empty()) {
                    sql.push(format!(" or e.{end} {operator} any("))
                        .push_bind(networks(&terms))
                        .push("::text[]::inet[])");
                }
            }
            sql.push(")");
        }
        if !ip.none.is_empty() {
            sql.push(" and not (coalesce(e.saddr <<= any(")
                .push_bind(networks(&ip.none));
            sql.push("::text[]::inet[]), false) or coalesce(e.daddr <<= any(")
                .push_bind(networks(&ip.none));
            sql.push("::text[]::inet[]), false))");
        }
        let port = &self.filter.port;
        let numbers = |terms: &[u16]| -> Vec<i32> { terms.iter().map(|p| i32::from(*p)).collect() };
        if !port.any.is_empty() {
            sql.push(" and (e.sport = any(").push_bind(numbers(&port.any));
            sql.push(") or e.dport = any(").push_bind(numbers(&port.any)).push("))");
        }
        if !port.none.is_empty() {
            let numbers = numbers(&port.none);
            sql.push(" and not (coalesce(e.sport = any(").push_bind(numbers.clone());
            sql.push("), false) or coalesce(e.dport = any(")
                .push_bind(numbers)
                .push("), false))");
        }
    }

    /// None: no text is wanted, or it is not known of all events in the digest when there were some.
    pub(super) fn texts(&self) -> Option<Texts> {
        let known = self.knows_texts() && self.sports_after == 0;
        known.then(|| Texts::of(&self.q_any))
    }

    /// What an index finds of wanted networks: their addresses. It is asked beside the networks themselves.
    fn push_addresses(&self, sql: &mut QueryBuilder<Postgres>, newer: Newer) {
        let Some(there) = &self.networks else {
            return;
        };
        let hosts = self.filter.ip.any.iter().filter(|n| n.is_host());
        let all: Vec<String> = hosts
            .map(|n| n.address.to_string())
            .chain(there.iter().cloned())
            .collect();
        sql.push(" and (e.saddr = any(").push_bind(all.clone());
        sql.push("::text[]::inet[]) or e.daddr = any(").push_bind(all);
        sql.push("::text[]::inet[])");
        newer.push(sql, self.through);
        sql.push(")");
    }

    /// What an index finds of wanted texts where it is known which attributes hold them. It is asked beside the texts
    /// themselves.
    fn push_found(&self, sql: &mut QueryBuilder<Postgres>, newer: Newer) {
        if !self.knows_texts() {
            return;
        }
        let Texts {
            words, stacks, objects, ..
        } = Texts::of(&self.q_any);
        sql.push(" and (e.reason = any(").push_bind(words.clone());
        sql.push(") or e.comm = any(").push_bind(words);
        sql.push(") or e.stack_id = any(").push_bind(stacks);
        if !objects.is_empty() {
            sql.push(") or e.attributes @> any(")
                .push_bind(objects)
                .push("::text[]::jsonb[]");
        }
        sql.push(")");
        newer.push(sql, self.through);
        sql.push(")");
    }

    fn push_text(&self, sql: &mut QueryBuilder<Postgres>) {
        for (wanted, texts) in [(true, &self.q_any), (false, &self.q_none)] {
            if texts.is_empty() {
                continue;
            }
            sql.push(if wanted { " and (false" } else { " and not (false" });
            for ids in texts {
                ids.push(sql);
            }
            sql.push(")");
        }
    }
}

/// A word that the dictionary does not have has no id: wanted, it finds nothing; unwanted, it rules nothing out.
fn push_ids(sql: &mut QueryBuilder<Postgres>, column: &'static str, terms: &Terms<String>, ids: &HashMap<String, i32>) {
    let known = |words: &[String]| -> Vec<i32> { words.iter().filter_map(|w| ids.get(w).copied()).collect() };
    let has_empty = |words: &[String]| words.iter().any(String::is_empty);
    if !terms.any.is_empty() {
        sql.push(" and (")
            .push(column)
            .push(" = any(")
            .push_bind(known(&terms.any))
            .push(")");
        if has_empty(&terms.any) {
            sql.push(" or ").push(column).push(" is null");
        }
        sql.push(")");
    }
    if !terms.none.is_empty() {
        sql.push(" and coalesce(")
            .push(column)
            .push(" <> all(")
            .push_bind(known(&terms.none))
            .push("), ");
        sql.push(if has_empty(&terms.none) { "false" } else { "true" })
            .push(")");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_goes_from_its_first_address_to_its_last() {
        for (address, prefix, first, last) in [
            ("10.1.2.3", 8, "10.0.0.0", "10.255.255.255"),
            ("10.1.2.3", 31, "10.1.2.2", "10.1.2.3"),
            ("10.1.2.3", 32, "10.1.2.3", "10.1.2.3"),
            ("10.1.2.3", 0, "0.0.0.0", "255.255.255.255"),
            ("fd00::1", 64, "fd00::", "fd00::ffff:ffff:ffff:ffff"),
            ("fd00::1", 128, "fd00::1", "fd00::1"),
            ("::", 0, "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"),
        ] {
            let network = Network {
                address: address.parse().unwrap(),
                prefix,
            };
            let ends = (first.parse().unwrap(), last.parse().unwrap());
            assert_eq!(network.ends(), ends, "{address}/{prefix}");
        }
    }
}
