//! Which events are wanted: words are looked up in the dictionaries first, then the table of events is searched by ids.

use std::collections::HashMap;
use std::net::IpAddr;

use sqlx::{PgConnection, Postgres, QueryBuilder};

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

/// `from` inclusive, `to` exclusive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    pub from: Option<Micros>,
    pub to: Option<Micros>,
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
}

/// The filter with ids in place of words.
#[derive(Debug)]
pub(super) struct Resolved<'a> {
    filter: &'a EventFilter,
    words: HashMap<String, i32>,
    nodes: HashMap<String, i32>,
    pods: Pods,
    q_any: Vec<TextIds>,
    q_none: Vec<TextIds>,
}

#[derive(Debug)]
enum Pods {
    All,
    /// These only.
    Only(Vec<i32>),
    /// All others, those that are not known too.
    Not(Vec<i32>),
}

/// Words and stacks that hold a text.
#[derive(Debug)]
struct TextIds {
    text: String,
    words: Vec<i32>,
    stacks: Vec<i32>,
}

impl EventFilter {
    pub(super) async fn resolve(&self, db: &mut PgConnection) -> Result<Resolved<'_>, QueryError> {
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
        Ok(Resolved {
            filter: self,
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
            q_any: text_ids(db, &self.q.any).await?,
            q_none: text_ids(db, &self.q.none).await?,
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

async fn text_ids(db: &mut PgConnection, texts: &[String]) -> Result<Vec<TextIds>, QueryError> {
    let mut out = Vec::with_capacity(texts.len());
    for text in texts {
        let words = "select id from sonde_store.strings where position(lower($1) in lower(text)) > 0";
        let stacks = "select id from sonde_store.stacks \
                      where position(lower($1) in lower(array_to_string(frames, E'\\n'))) > 0";
        out.push(TextIds {
            text: text.clone(),
            words: sqlx::query_scalar(words).bind(text).fetch_all(&mut *db).await?,
            stacks: sqlx::query_scalar(stacks).bind(text).fetch_all(&mut *db).await?,
        });
    }
    Ok(out)
}

impl Resolved<'_> {
    /// ` and ...` for a table of events under the alias `e`.
    pub(super) fn push(&self, sql: &mut QueryBuilder<Postgres>, window: Window) {
        window.push(sql);
        self.push_terms(sql);
    }

    /// Whether the index for searches can find what is wanted, and not only rule out.
    pub(super) fn is_indexed(&self) -> bool {
        let filter = self.filter;
        let words = |terms: &Terms<String>| !terms.any.is_empty() && !terms.any.iter().any(String::is_empty);
        [&filter.kind, &filter.reason, &filter.node].into_iter().any(words)
            || matches!(self.pods, Pods::Only(_))
            || !filter.port.any.is_empty()
            || (!filter.ip.any.is_empty() && filter.ip.any.iter().all(Network::is_host))
    }

    /// The same without the window.
    pub(super) fn push_terms(&self, sql: &mut QueryBuilder<Postgres>) {
        let filter = self.filter;
        push_ids(sql, "e.probe", &filter.probe, &self.words);
        push_ids(sql, "e.type", &filter.kind, &self.words);
        push_ids(sql, "e.reason", &filter.reason, &self.words);
        push_ids(sql, "e.protocol", &filter.protocol, &self.words);
        push_ids(sql, "e.node_id", &filter.node, &self.nodes);
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
        if let Some(latency) = filter.min_latency_ns {
            sql.push(" and e.latency_ns >= ").push_bind(latency);
        }
        self.push_text(sql);
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

    fn push_text(&self, sql: &mut QueryBuilder<Postgres>) {
        for (wanted, texts) in [(true, &self.q_any), (false, &self.q_none)] {
            if texts.is_empty() {
                continue;
            }
            sql.push(if wanted { " and (false" } else { " and not (false" });
            for ids in texts {
                for column in ["e.reason", "e.comm"] {
                    sql.push(" or coalesce(")
                        .push(column)
                        .push(" = any(")
                        .push_bind(ids.words.clone())
                        .push("), false)");
                }
                sql.push(" or coalesce(e.stack_id = any(")
                    .push_bind(ids.stacks.clone())
                    .push("), false)");
                sql.push(" or exists (select from jsonb_each_text(e.attributes) a where position(lower(");
                sql.push_bind(ids.text.clone())
                    .push(") in lower(a.key || ' ' || a.value)) > 0)");
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
