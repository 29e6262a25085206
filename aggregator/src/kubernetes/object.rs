//! An object of the API as it is compared and stored: facts, which have a history, and state, of which only the newest
//! is kept because what it went through is told by changes. Nothing here reads a clock or knows a table.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::api;
use crate::store::query::Micros;

/// What is watched, in the order in which it is best known: owners before what they own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    ReplicaSet,
    Job,
    ControllerRevision,
    Node,
    Service,
    EndpointSlice,
    Pod,
}

impl Kind {
    pub(crate) const ALL: [Self; 7] = [
        Self::ReplicaSet,
        Self::Job,
        Self::ControllerRevision,
        Self::Node,
        Self::Service,
        Self::EndpointSlice,
        Self::Pod,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ReplicaSet => "ReplicaSet",
            Self::Job => "Job",
            Self::ControllerRevision => "ControllerRevision",
            Self::Node => "Node",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::Pod => "Pod",
        }
    }

    pub(crate) fn of(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    /// As the API's paths have it.
    pub(crate) fn plural(self) -> &'static str {
        match self {
            Self::ReplicaSet => "replicasets",
            Self::Job => "jobs",
            Self::ControllerRevision => "controllerrevisions",
            Self::Node => "nodes",
            Self::Service => "services",
            Self::EndpointSlice => "endpointslices",
            Self::Pod => "pods",
        }
    }

    /// API group and version, as a path.
    pub(super) fn group(self) -> &'static str {
        match self {
            Self::ReplicaSet | Self::ControllerRevision => "/apis/apps/v1",
            Self::Job => "/apis/batch/v1",
            Self::EndpointSlice => "/apis/discovery.k8s.io/v1",
            Self::Node | Self::Service | Self::Pod => "/api/v1",
        }
    }

    pub(super) fn is_namespaced(self) -> bool {
        self != Self::Node
    }

    /// Of these the API is asked for the metadata alone.
    pub(super) fn is_metadata_only(self) -> bool {
        matches!(self, Self::ReplicaSet | Self::Job)
    }
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Object {
    pub(crate) kind: Kind,
    pub(crate) uid: String,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) created: Option<Micros>,
    pub(crate) facts: Facts,
    pub(crate) state: State,
    pub(crate) notes: Notes,
    /// Of an EndpointSlice.
    pub(crate) endpoints: Vec<Endpoint>,
}

/// What an address, a name or a row needs to know. Another value makes another row, with its own span of validity.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Facts {
    /// Where a pod was scheduled.
    pub(crate) node: String,
    /// The uid by which a node's container runtime knows a pod.
    pub(crate) runtime_uid: String,
    /// The controller; none for what nobody controls.
    pub(crate) owner: Option<Owner>,
    /// Addresses by which it, and nobody else, is known in the cluster. Sorted.
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) labels: BTreeMap<String, String>,
    /// What else is shown: ports of a service, addresses of a node.
    pub(crate) detail: Value,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Owner {
    pub(crate) kind: String,
    pub(crate) name: String,
    pub(crate) uid: String,
}

/// Kept with the newest row only, to be compared with what comes next, also after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct State {
    /// `ready`, `not ready`, `unknown`; none: not to be said, as of a pod that has ended its work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) ready: Option<Ready>,
    /// By container; those that never restarted are left out.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) restarts: BTreeMap<String, i64>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(crate) boot_id: String,
    #[serde(skip_serializing_if = "is_false")]
    pub(crate) cordoned: bool,
    /// Of a ReplicaSet or ControllerRevision, within its owner.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) revision: Option<i64>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks for a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ready {
    #[serde(rename = "ready")]
    Yes,
    #[serde(rename = "not ready")]
    No,
    #[serde(rename = "unknown")]
    Unknown,
}

impl Ready {
    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Yes => "ready",
            Self::No => "not ready",
            Self::Unknown => "unknown",
        }
    }
}

/// What explains a change; not kept.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Notes {
    pub(crate) ready_at: Option<Micros>,
    pub(crate) ready_why: String,
    /// When the kubelet took the pod on.
    pub(crate) started: Option<Micros>,
    /// By container: when and how the run before this one ended.
    pub(crate) ends: BTreeMap<String, (Option<Micros>, String)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) ip: IpAddr,
    /// Empty where it is none.
    pub(crate) pod: String,
    pub(crate) node: String,
    pub(crate) ready: bool,
}

impl Facts {
    /// The same for the same facts, also in another process.
    pub(crate) fn digest(&self) -> i64 {
        let text = serde_json::to_vec(self).expect("facts become JSON");
        let hash = Sha256::digest(&text);
        i64::from_be_bytes(hash[..8].try_into().expect("SHA-256 has 32 bytes"))
    }
}

/// The API's object, read.
pub(super) trait Read: serde::de::DeserializeOwned + Clone + Send + 'static {
    fn object(self, kind: Kind) -> Object;
}

fn micros(time: Option<jiff::Timestamp>) -> Option<Micros> {
    time.map(|t| t.as_microsecond())
}

fn base(kind: Kind, meta: api::Meta) -> Object {
    let owner = meta.owner_references.into_iter().find(|o| o.controller);
    Object {
        kind,
        facts: Facts {
            owner: owner.map(|o| Owner {
                kind: o.kind,
                name: o.name,
                uid: o.uid,
            }),
            detail: json!({}),
            ..Facts::default()
        },
        uid: meta.uid,
        namespace: meta.namespace,
        name: meta.name,
        version: meta.resource_version,
        created: micros(meta.creation_timestamp),
        state: State::default(),
        notes: Notes::default(),
        endpoints: Vec::new(),
    }
}

/// Addresses that are no addresses (`None`, host names, nothing) are passed over.
fn addresses<'a>(texts: impl IntoIterator<Item = &'a str>) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = texts
        .into_iter()
        .filter_map(|text| text.parse::<IpAddr>().ok())
        .map(|ip| ip.to_canonical())
        .collect();
    ips.sort_unstable();
    ips.dedup();
    ips
}

impl Read for api::MetaOnly {
    fn object(self, kind: Kind) -> Object {
        let revision = self
            .metadata
            .annotations
            .revision
            .as_deref()
            .and_then(|r| r.parse().ok());
        let mut object = base(kind, self.metadata);
        object.state.revision = revision;
        object
    }
}

impl Read for api::ControllerRevision {
    fn object(self, kind: Kind) -> Object {
        let mut object = base(kind, self.metadata);
        object.state.revision = Some(self.revision);
        object
    }
}

impl Read for api::Pod {
    fn object(mut self, kind: Kind) -> Object {
        let labels = std::mem::take(&mut self.metadata.labels);
        let mirror = self.metadata.annotations.mirror.take();
        let mut object = base(kind, self.metadata);
        let status = self.status;
        let over = matches!(status.phase.as_str(), "Succeeded" | "Failed");
        // A pod that has ended keeps its address in the API while the network gives it to the next one. One of the
        // host's network has the node's, which says nothing about it.
        if !over && !self.spec.host_network {
            let all = status.pod_ips.iter().map(|p| p.ip.as_str());
            object.facts.ips = addresses(all.chain([status.pod_ip.as_str()]));
        }
        object.facts.runtime_uid = mirror.unwrap_or_else(|| object.uid.clone());
        object.facts.node = self.spec.node_name;
        object.facts.labels = labels;
        if self.spec.host_network {
            object.facts.detail = json!({"host_network": true});
        }
        let ready = status.conditions.into_iter().find(|c| c.kind == "Ready");
        object.state.ready = match (&ready, status.phase.as_str()) {
            (_, "Succeeded") => None,
            (Some(c), _) if c.status == "True" => Some(Ready::Yes),
            (Some(c), _) if c.status == "Unknown" => Some(Ready::Unknown),
            _ => Some(Ready::No),
        };
        if let Some(c) = ready {
            object.notes.ready_at = micros(c.last_transition_time);
            object.notes.ready_why = why(c.reason, c.message);
        }
        object.notes.started = micros(status.start_time);
        for c in status
            .container_statuses
            .into_iter()
            .chain(status.init_container_statuses)
        {
            if c.restart_count > 0 {
                object.state.restarts.insert(c.name.clone(), c.restart_count);
                if let Some(end) = c.last_state.terminated {
                    let how = format!("{}, exit code {}", end.reason.unwrap_or_default(), end.exit_code);
                    let how = how.trim_start_matches(", ").to_owned();
                    object.notes.ends.insert(c.name, (micros(end.finished_at), how));
                }
            }
        }
        object
    }
}

impl Read for api::Node {
    fn object(mut self, kind: Kind) -> Object {
        let labels = std::mem::take(&mut self.metadata.labels);
        let mut object = base(kind, self.metadata);
        let listed = &self.status.addresses;
        object.facts.ips = addresses(
            listed
                .iter()
                .filter(|a| a.kind.ends_with("IP"))
                .map(|a| a.address.as_str()),
        );
        object.facts.labels = labels;
        object.facts.detail = json!({
            "addresses": listed.iter().map(|a| json!({"type": a.kind, "address": a.address})).collect::<Vec<_>>(),
            "kubelet": self.status.node_info.kubelet_version,
        });
        object.state.boot_id = self.status.node_info.boot_id;
        object.state.cordoned = self.spec.unschedulable;
        if let Some(c) = self.status.conditions.into_iter().find(|c| c.kind == "Ready") {
            object.state.ready = Some(match c.status.as_str() {
                "True" => Ready::Yes,
                "False" => Ready::No,
                _ => Ready::Unknown,
            });
            object.notes.ready_at = micros(c.last_transition_time);
            object.notes.ready_why = why(c.reason, c.message);
        }
        object
    }
}

impl Read for api::Service {
    fn object(mut self, kind: Kind) -> Object {
        let labels = std::mem::take(&mut self.metadata.labels);
        let mut object = base(kind, self.metadata);
        let spec = self.spec;
        let balancers: Vec<&str> = self
            .status
            .load_balancer
            .ingress
            .iter()
            .map(|i| i.ip.as_str())
            .collect();
        let external = spec.external_ips.iter().map(String::as_str).chain(balancers);
        let external = addresses(external);
        let cluster = addresses(spec.cluster_ips.iter().chain([&spec.cluster_ip]).map(String::as_str));
        object.facts.detail = json!({
            "type": if spec.kind.is_empty() { "ClusterIP" } else { &spec.kind },
            "cluster_ips": cluster,
            "external_ips": external,
            "ports": spec.ports.iter().map(port).collect::<Vec<_>>(),
            "selector": spec.selector,
        });
        let mut ips = [cluster, external].concat();
        ips.sort_unstable();
        ips.dedup();
        object.facts.ips = ips;
        object.facts.labels = labels;
        object
    }
}

fn port(port: &api::ServicePort) -> Value {
    let protocol = if port.protocol.is_empty() {
        "TCP"
    } else {
        &port.protocol
    };
    let mut shown = json!({"port": port.port, "protocol": protocol});
    if !port.name.is_empty() {
        shown["name"] = port.name.clone().into();
    }
    if let Some(target) = &port.target_port {
        let text = target.as_str().map_or_else(|| target.to_string(), str::to_owned);
        shown["target_port"] = text.into();
    }
    if let Some(node_port) = port.node_port {
        shown["node_port"] = node_port.into();
    }
    shown
}

/// The label by which a slice says which service it is of.
const SERVICE_NAME: &str = "kubernetes.io/service-name";

impl Read for api::EndpointSlice {
    /// Its name is the service's: of the slice itself only the uid matters.
    fn object(mut self, kind: Kind) -> Object {
        let service = self.metadata.labels.remove(SERVICE_NAME).unwrap_or_default();
        let mut object = base(kind, self.metadata);
        object.name = service;
        if self.address_type == "FQDN" {
            return object;
        }
        for endpoint in self.endpoints {
            let pod = endpoint.target_ref.filter(|t| t.kind == "Pod").map(|t| t.name);
            for ip in addresses(endpoint.addresses.iter().map(String::as_str)) {
                object.endpoints.push(Endpoint {
                    ip,
                    pod: pod.clone().unwrap_or_default(),
                    node: endpoint.node_name.clone(),
                    ready: endpoint.conditions.ready.unwrap_or(true),
                });
            }
        }
        object.endpoints.sort_by_key(|e| e.ip);
        object.endpoints.dedup_by_key(|e| e.ip);
        object
    }
}

/// Of the kubelet's words at most this much is kept.
const WORDS: usize = 300;

fn why(reason: Option<String>, message: Option<String>) -> String {
    let parts = [reason, message];
    let text: Vec<String> = parts.into_iter().flatten().filter(|p| !p.is_empty()).collect();
    text.join(": ").chars().take(WORDS).collect()
}
