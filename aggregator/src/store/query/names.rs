//! Names for events. The table of events has ids; what they stand for is looked up once for a whole page, each kind of it in
//! one statement that is always the same: joined to the page, dictionaries and pods would be read from end to end each time.

use std::collections::{BTreeSet, HashMap};

use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;

use super::events::EventRow;
use super::{Micros, QueryError, micros, rfc3339};

/// What [`Stored`] is read from, of the table of events under the alias `e`.
pub(super) const COLUMNS: &str = concat!(
    micros!("e.time"),
    " as time, e.id, e.node_id, e.pod_id, e.peer_pod_id, e.peer_object_id, e.probe, e.type as kind, e.reason, e.protocol, \
     host(e.saddr) as saddr, e.sport, host(e.daddr) as daddr, e.dport, e.direction, e.latency_ns, e.cpu, e.pid, e.comm, e.state, \
     e.interface, e.suppressed, e.stack_id, e.attributes"
);

/// An event as it is stored.
#[derive(Clone, Debug, sqlx::FromRow)]
pub(super) struct Stored {
    pub(super) time: Micros,
    pub(super) id: i64,
    node_id: i32,
    pod_id: Option<i32>,
    peer_pod_id: Option<i32>,
    peer_object_id: Option<i64>,
    probe: i32,
    kind: i32,
    reason: Option<i32>,
    protocol: Option<i32>,
    saddr: Option<String>,
    sport: Option<i32>,
    daddr: Option<String>,
    dport: Option<i32>,
    direction: i16,
    latency_ns: Option<i64>,
    cpu: Option<i32>,
    pid: Option<i32>,
    comm: Option<i32>,
    state: Option<i32>,
    interface: Option<i32>,
    suppressed: i64,
    stack_id: Option<i32>,
    attributes: Option<Json<Map<String, Value>>>,
}

#[derive(sqlx::FromRow)]
struct Pod {
    id: i32,
    /// None: of the row that stands for nodes.
    node_id: Option<i32>,
    namespace: String,
    name: String,
    workload: String,
    ips: Vec<String>,
}

/// What has the address of a peer without being a pod of ours: an object of the cluster.
#[derive(sqlx::FromRow)]
struct Object {
    id: i64,
    kind: String,
    namespace: String,
    name: String,
    workload: String,
    node: String,
}

/// The same with names in place of ids.
pub(super) async fn named(db: &mut PgConnection, page: Vec<Stored>) -> Result<Vec<EventRow>, QueryError> {
    if page.is_empty() {
        return Ok(Vec::new());
    }
    let pods = pods(db, &page).await?;
    let found = found(db, &page, &pods).await?;
    let words = page.iter().flat_map(|e| {
        let words = [e.reason, e.protocol, e.comm, e.state, e.interface];
        [Some(e.probe), Some(e.kind)].into_iter().chain(words)
    });
    let of_pods = pods.values().chain(found.values()).map(|pod| pod.node_id);
    let nodes = page.iter().map(|e| Some(e.node_id)).chain(of_pods);
    let names = Names {
        words: texts(db, "select id, text from sonde_store.strings where id = any($1)", words).await?,
        nodes: texts(db, "select id, name from sonde_store.nodes where id = any($1)", nodes).await?,
        stacks: stacks(db, &page).await?,
        objects: objects(db, &page).await?,
        pods,
    };
    let row = |(at, event)| names.row(event, found.get(&at));
    page.into_iter().enumerate().map(row).collect()
}

/// Ids to be looked up, each once.
fn wanted<T: Ord>(ids: impl Iterator<Item = Option<T>>) -> Vec<T> {
    ids.flatten().collect::<BTreeSet<T>>().into_iter().collect()
}

async fn texts(
    db: &mut PgConnection,
    sql: &'static str,
    ids: impl Iterator<Item = Option<i32>>,
) -> Result<HashMap<i32, String>, QueryError> {
    let rows: Vec<(i32, String)> = sqlx::query_as(sql).bind(wanted(ids)).fetch_all(db).await?;
    Ok(rows.into_iter().collect())
}

async fn stacks(db: &mut PgConnection, page: &[Stored]) -> Result<HashMap<i32, Vec<String>>, QueryError> {
    let ids = wanted(page.iter().map(|e| e.stack_id));
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<(i32, Vec<String>)> = sqlx::query_as("select id, frames from sonde_store.stacks where id = any($1)")
        .bind(ids)
        .fetch_all(db)
        .await?;
    Ok(rows.into_iter().collect())
}

async fn pods(db: &mut PgConnection, page: &[Stored]) -> Result<HashMap<i32, Pod>, QueryError> {
    let ids = wanted(page.iter().flat_map(|e| [e.pod_id, e.peer_pod_id]));
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<Pod> = sqlx::query_as(
        "select p.id, p.node_id, p.namespace, p.name, p.workload, \
         array(select host(ip) from unnest(p.ips) ip) as ips from sonde_store.pods p where p.id = any($1)",
    )
    .bind(ids)
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|pod| (pod.id, pod)).collect())
}

async fn objects(db: &mut PgConnection, page: &[Stored]) -> Result<HashMap<i64, Object>, QueryError> {
    let ids = wanted(page.iter().map(|e| e.peer_object_id));
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let rows: Vec<Object> = sqlx::query_as(
        "select id, kind, namespace, name, workload, node from sonde_store.cluster_objects where id = any($1)",
    )
    .bind(ids)
    .fetch_all(db)
    .await?;
    Ok(rows.into_iter().map(|object| (object.id, object)).collect())
}

/// Peers that their collectors could not name, by their places in the page: the pods that had their addresses at that time.
async fn found(
    db: &mut PgConnection,
    page: &[Stored],
    pods: &HashMap<i32, Pod>,
) -> Result<HashMap<usize, Pod>, QueryError> {
    let unnamed = page.iter().enumerate().filter(|(_, event)| event.peer_pod_id.is_none());
    let (mut places, mut addresses, mut times) = (Vec::new(), Vec::new(), Vec::new());
    for (at, event) in unnamed {
        if let Some(address) = peer_address(event, pods) {
            places.push(at);
            addresses.push(address);
            times.push(rfc3339(event.time));
        }
    }
    if places.is_empty() {
        return Ok(HashMap::new());
    }
    #[derive(sqlx::FromRow)]
    struct Found {
        place: i64,
        #[sqlx(flatten)]
        pod: Pod,
    }
    let rows: Vec<Found> = sqlx::query_as(
        "select asked.place, p.id, p.node_id, p.namespace, p.name, p.workload, '{}'::text[] as ips \
         from unnest($1::text[]::inet[], $2::text[]::timestamptz[]) with ordinality asked(address, time, place) \
         cross join lateral (select * from sonde_store.pods pp \
         where not pp.host_network and pp.ips @> array[asked.address] \
         and pp.valid_from <= asked.time and (pp.valid_to is null or pp.valid_to > asked.time) \
         order by pp.valid_from desc limit 1) p",
    )
    .bind(addresses)
    .bind(times)
    .fetch_all(db)
    .await?;
    let place = |row: &Found| {
        usize::try_from(row.place - 1)
            .ok()
            .and_then(|at| places.get(at).copied())
    };
    Ok(rows
        .into_iter()
        .filter_map(|row| Some((place(&row)?, row.pod)))
        .collect())
}

/// The one of the two addresses that is not the subject's, else the far end by direction.
fn peer_address<'a>(event: &'a Stored, pods: &HashMap<i32, Pod>) -> Option<&'a str> {
    let (saddr, daddr) = (event.saddr.as_deref(), event.daddr.as_deref());
    let ips = event
        .pod_id
        .and_then(|id| pods.get(&id))
        .map_or(&[][..], |pod| &pod.ips);
    let own = |address: Option<&str>| address.is_some_and(|address| ips.iter().any(|ip| ip == address));
    match event.direction {
        _ if own(saddr) => daddr,
        _ if own(daddr) => saddr,
        1 => saddr,
        2 => daddr,
        _ => None,
    }
}

struct Names {
    words: HashMap<i32, String>,
    nodes: HashMap<i32, String>,
    stacks: HashMap<i32, Vec<String>>,
    pods: HashMap<i32, Pod>,
    objects: HashMap<i64, Object>,
}

impl Names {
    fn pod(&self, id: Option<i32>) -> Option<&Pod> {
        self.pods.get(&id?)
    }

    fn word(&self, id: Option<i32>) -> Option<String> {
        self.words.get(&id?).cloned()
    }

    /// What every event has must be there.
    fn row(&self, event: Stored, found: Option<&Pod>) -> Result<EventRow, QueryError> {
        let missing = |what: &str, id: i32| {
            let why = format!("event {}: there is no {what} {id}", event.id);
            QueryError::Sql(sqlx::Error::Decode(why.into()))
        };
        let word = |id| self.words.get(&id).cloned().ok_or_else(|| missing("string", id));
        let node = self
            .nodes
            .get(&event.node_id)
            .cloned()
            .ok_or_else(|| missing("node", event.node_id))?;
        let (probe, kind) = (word(event.probe)?, word(event.kind)?);
        let pod = self.pod(event.pod_id);
        let peer = self.pod(event.peer_pod_id).or(found);
        let object = event.peer_object_id.and_then(|id| self.objects.get(&id));
        let of_pod = |get: fn(&Pod) -> &String| peer.map(|pod| get(pod).clone());
        let of_object = |get: fn(&Object) -> &String| object.map(|object| get(object).clone());
        let object_node = || {
            object.and_then(|object| match &*object.kind {
                "Node" => Some(object.name.clone()),
                _ => Some(object.node.clone()).filter(|node| !node.is_empty()),
            })
        };
        let object_pod = || {
            object.and_then(|object| match &*object.kind {
                "Pod" => Some(object.name.clone()),
                "Node" => Some(String::new()),
                _ => None,
            })
        };
        Ok(EventRow {
            peer_node: match event.peer_pod_id {
                Some(0) => Some(node.clone()),
                _ => peer
                    .and_then(|pod| self.nodes.get(&pod.node_id?).cloned())
                    .or_else(object_node),
            },
            peer_namespace: of_pod(|pod| &pod.namespace).or_else(|| of_object(|object| &object.namespace)),
            peer_pod: of_pod(|pod| &pod.name).or_else(object_pod),
            peer_workload: of_pod(|pod| &pod.workload).or_else(|| of_object(|object| &object.workload)),
            peer_service: object
                .filter(|object| object.kind == "Service" && found.is_none())
                .map(|object| object.name.clone()),
            time: event.time,
            id: event.id,
            node,
            namespace: pod.map(|pod| pod.namespace.clone()),
            pod: pod.map(|pod| pod.name.clone()),
            workload: pod.map(|pod| pod.workload.clone()),
            probe,
            kind,
            reason: self.word(event.reason),
            protocol: self.word(event.protocol),
            saddr: event.saddr,
            sport: event.sport,
            daddr: event.daddr,
            dport: event.dport,
            direction: event.direction,
            latency_ns: event.latency_ns,
            cpu: event.cpu,
            pid: event.pid,
            comm: self.word(event.comm),
            state: self.word(event.state),
            interface: self.word(event.interface),
            suppressed: event.suppressed,
            stack: event.stack_id.and_then(|id| self.stacks.get(&id).cloned()),
            attributes: event.attributes,
        })
    }
}
