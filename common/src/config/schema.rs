//! Every key, with its default. A doc comment here is the key's documentation.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{Push, Sinks};
use crate::paths::HostPaths;
use crate::time::Span;

/// The whole document.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    pub node: Node,
    pub log: Log,
    pub host: Host,
    pub kernel: Kernel,
    pub pods: Pods,
    pub events: Events,
    pub sinks: Sinks,
    /// Settings of single probes by name, such as `packetloss: {stacks: false}`.
    pub probes: BTreeMap<String, Probe>,
    pub metrics: Metrics,
    pub collector: Collector,
    pub spool: Spool,
    pub aggregator: Aggregator,
    pub push: Push,
    pub storage: Storage,
    pub kubernetes: Kubernetes,
    pub insecure: Insecure,
}

impl Config {
    /// Whether the probe is to run, where `default` is its own.
    pub fn is_enabled(&self, probe: &str, default: bool) -> bool {
        let said = self.probes.get(probe).and_then(|settings| settings.enabled);
        said.unwrap_or(default)
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// Name of this node, as Kubernetes has it. Empty: the environment's NODE_NAME, else the host name.
    pub name: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,sonde_collector=debug`.
    pub level: String,
    /// `text` or `json`.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            level: "info".into(),
            format: LogFormat::Text,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    Text,
    Json,
}

/// Where the host's file systems are mounted: other values inside a container.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    pub proc: PathBuf,
    pub sys: PathBuf,
    /// Named network namespaces.
    pub netns: PathBuf,
    /// Sockets of container runtimes.
    pub run: PathBuf,
    /// Control groups.
    pub cgroup: PathBuf,
}

impl Default for Host {
    fn default() -> Self {
        let HostPaths {
            proc,
            sys,
            netns,
            run,
            cgroup,
        } = HostPaths::default();
        Self {
            proc,
            sys,
            netns,
            run,
            cgroup,
        }
    }
}

impl Host {
    pub fn paths(&self) -> HostPaths {
        HostPaths {
            proc: self.proc.clone(),
            sys: self.sys.clone(),
            netns: self.netns.clone(),
            run: self.run.clone(),
            cgroup: self.cgroup.clone(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Kernel {
    /// A BTF file for a kernel that has no `/sys/kernel/btf/vmlinux`. Empty: the kernel's own.
    pub btf_path: PathBuf,
    /// Whether to load eBPF programs: `auto` uses what the host permits and says what is missing, `off` loads none.
    pub ebpf: Switch,
    /// Percent of the node's CPU time that the programs of all probes may take together. Above it probes are stepped down, the dearest first: no events, then one packet in 64, then off (those that are on by default go on counting); well below it for a while, up again. 0: no budget.
    pub cpu_budget_percent: f64,
    /// Ways to hook into the kernel that may be taken: leave out one that does harm on a kernel. Of those that are left, each signal takes the best that the kernel has.
    pub rungs: Vec<Rung>,
}

impl Default for Kernel {
    fn default() -> Self {
        Self {
            btf_path: PathBuf::new(),
            ebpf: Switch::default(),
            cpu_budget_percent: 3.0,
            rungs: Rung::ALL.into(),
        }
    }
}

/// A way to hook into the kernel, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rung {
    /// A tracepoint whose arguments the verifier knows by type: fields are plain loads.
    TpBtf,
    /// The same tracepoint, every field read through a helper.
    RawTracepoint,
    /// Entry and exit of functions, whose arguments the verifier knows by type.
    Fentry,
    /// Entry and exit of functions, by breakpoint.
    Kprobe,
    /// Programs on the devices of pods, beside whatever else is there (Linux 6.6).
    Tcx,
    /// The same as filters of the devices' clsact qdisc.
    Clsact,
}

impl Rung {
    pub const ALL: [Self; 6] = [
        Self::TpBtf,
        Self::RawTracepoint,
        Self::Fentry,
        Self::Kprobe,
        Self::Tcx,
        Self::Clsact,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::TpBtf => "tp_btf",
            Self::RawTracepoint => "raw_tracepoint",
            Self::Fentry => "fentry",
            Self::Kprobe => "kprobe",
            Self::Tcx => "tcx",
            Self::Clsact => "clsact",
        }
    }
}

/// `auto` uses what the host permits and says what is missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    #[default]
    Auto,
    Off,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Pods {
    /// Where pods are found. `cri`: the container runtime, where there is one. `netns`: named network namespaces; those that a container runtime makes are left to `cri` while there is one.
    pub sources: Vec<PodSource>,
    pub cri: CriPods,
    pub netns: NetnsPods,
    /// Whether the node itself (the host's network namespace) is read and reported.
    pub include_host: bool,
}

impl Default for Pods {
    fn default() -> Self {
        Self {
            sources: vec![PodSource::Cri, PodSource::Netns],
            cri: CriPods::default(),
            netns: NetnsPods::default(),
            include_host: true,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum PodSource {
    Cri,
    Netns,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct CriPods {
    /// Socket of the container runtime, as a path of the host or `unix:///PATH`. Empty: the environment's RUNTIME_SOCK, else the first there is of containerd, CRI-O, cri-dockerd, k3s and RKE2 below `host.run`.
    pub endpoint: String,
    /// How often the runtime is asked for its sandboxes. Ten times less often where it tells of changes by itself.
    pub interval: Span,
}

impl Default for CriPods {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            interval: Span::from_secs(1),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetnsPods {
    /// Globs (`*`, `?`, `[a-z]`) over the names of network namespaces. `NS.POD` is pod POD of namespace NS; any other name is a pod of namespace `netns`.
    pub include: Vec<String>,
}

impl Default for NetnsPods {
    fn default() -> Self {
        Self {
            include: vec!["*".into()],
        }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Events {
    /// Events of network namespaces that belong to no known pod: `keep` or `drop`.
    pub unknown_netns: UnknownNetns,
    /// Events a second that one network namespace may make of one type; what is over is counted and becomes a gap.
    pub rate: u32,
    /// How many of them may come at once.
    pub burst: u32,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            unknown_netns: UnknownNetns::Keep,
            rate: 100,
            burst: 200,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownNetns {
    Keep,
    Drop,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Probe {
    /// Whether the probe runs. Not set: as the probe's own default is, which is off for those that look at every packet.
    pub enabled: Option<bool>,
    /// Whether the probe makes events beside its metrics.
    pub events: bool,
    /// Whether its events carry the kernel stack.
    pub stacks: bool,
    /// What takes longer is an event, for probes that measure time. Not set: the probe's own default.
    pub threshold: Option<Span>,
    /// One in so many packets is looked at, for probes that look at every packet. Not set: the probe's own default.
    pub sample: Option<NonZeroU32>,
    /// Whether flows are told apart by port, which makes many more of them. For probe `flow`.
    pub ports: bool,
    /// Whether the rule of nftables that dropped a packet is asked of the kernel, for probe `packetloss`: a table `sonde_trace` is put into the network namespace for at most ten seconds, which marks a few packets of that connection to be traced (Linux 5.12). Its next events tell the rule.
    pub nft_trace: bool,
    /// Whether packets that come into pods are counted by a program on their devices (tcx from Linux 6.6 on, else a filter named `sonde_flow:...` of their clsact qdisc), which also sees those that the tracepoint does not: moved past the host's side by another program (bpf_redirect_peer, as Cilium's host routing does), or taken from the device below (macvlan, ipvlan, VLAN). A filter outlives a collector that is killed: after three intervals and a minute it hands packets on without counting them, and the next collector takes it away. For probe `flow`.
    pub tc: bool,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            enabled: None,
            events: true,
            stacks: true,
            threshold: None,
            sample: None,
            ports: false,
            nft_trace: false,
            tc: false,
        }
    }
}

/// The collector's `/metrics`; `max_series` is the aggregator's too, for `/federate`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Whose names the series have: `sonde`, `kubeskoop` (names, types and labels of KubeSkoop's exporter), or both.
    pub names: Vec<MetricNames>,
    /// More labels for the series of pods, such as `{team: "${labels:team}"}`: text in which `${labels:KEY}` and `${annotations:KEY}` stand for those of the pod, and for nothing where it has none.
    pub labels: BTreeMap<String, String>,
    /// The same as KubeSkoop's exporter takes it, a list of `NAME=TEXT`; `additionalLabels` is taken too.
    #[serde(alias = "additionalLabels")]
    pub additional_labels: Vec<String>,
    pub max_series: MaxSeries,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            names: vec![MetricNames::Sonde],
            labels: BTreeMap::new(),
            additional_labels: Vec::new(),
            max_series: MaxSeries::default(),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum MetricNames {
    Sonde,
    Kubeskoop,
}

/// How many series there may be; those beyond are added up in series of pod `__overflow__`.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct MaxSeries {
    /// Series of one probe on one node. What is beyond is added up in series of pod `__overflow__`.
    pub per_probe: usize,
    /// Of these, series of one Kubernetes namespace.
    pub per_namespace: usize,
}

impl Default for MaxSeries {
    fn default() -> Self {
        Self {
            per_probe: 200_000,
            per_namespace: 100_000,
        }
    }
}

/// One address or several; a text with commas is a list too.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses(pub Vec<String>);

impl std::fmt::Display for Addresses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

impl Serialize for Addresses {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.as_slice() {
            [] => serializer.serialize_str(""),
            [one] => serializer.serialize_str(one),
            several => several.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Addresses;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an address or a list of addresses")
            }

            fn visit_str<E>(self, text: &str) -> Result<Addresses, E> {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                Ok(Addresses(parts.map(str::to_owned).collect()))
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<Addresses, A::Error> {
                let mut all = Vec::new();
                while let Some(item) = items.next_element()? {
                    all.push(item);
                }
                Ok(Addresses(all))
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Collector {
    /// Where `/metrics`, `/status` and health are served.
    pub http: SocketAddr,
    /// The aggregator's gRPC address, `http://HOST:PORT`, or a list of several (in the environment with commas) that share a database: a collector stays with one while it answers and goes on to the next when it does not; each node begins at another one. Empty or `none`: the collector works alone.
    pub aggregator: Addresses,
    /// Holds the spool.
    pub data_dir: PathBuf,
    /// How often the metric probes are read.
    pub interval: Span,
}

impl Default for Collector {
    fn default() -> Self {
        Self {
            http: SocketAddr::from(([127, 0, 0, 1], 9642)),
            aggregator: Addresses(vec!["http://127.0.0.1:9641".into()]),
            data_dir: "/var/lib/sonde/collector".into(),
            interval: Span::from_secs(5),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Spool {
    /// What the spool may take on disk; the oldest rows go first, then events, and what goes becomes a gap.
    pub max_bytes: u64,
}

impl Default for Spool {
    fn default() -> Self {
        Self { max_bytes: 256 << 20 }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Aggregator {
    /// Pages, federation and the REST interface.
    pub http: SocketAddr,
    /// Where collectors connect.
    pub grpc: SocketAddr,
    /// Holds the private PostgreSQL, if there is one.
    pub data_dir: PathBuf,
}

impl Default for Aggregator {
    fn default() -> Self {
        Self {
            http: SocketAddr::from(([127, 0, 0, 1], 9640)),
            grpc: SocketAddr::from(([127, 0, 0, 1], 9641)),
            data_dir: "/var/lib/sonde/aggregator".into(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// `postgres://USER:PASSWORD@HOST:PORT/DATABASE`. Several `HOST:PORT` with commas between them: the one that takes writes is used, and another one when that changes. Empty: a private PostgreSQL in `aggregator.data_dir`.
    pub database_url: String,
    /// The user that the private PostgreSQL (and with it the aggregator) runs as when started by root.
    /// Empty: `sonde` where there is such a user, else `postgres`, else `nobody`.
    pub run_as: String,
    /// `none`, or `citus`: tables are spread over the workers of a Citus cluster as they are made. Not tried on a real one yet.
    pub distribution: Distribution,
    /// How long rows of probes are kept.
    pub keep_rows: Span,
    /// How long events and gaps are kept.
    pub keep_events: Span,
    /// How long rollups of probes' rows to one minute are kept.
    pub keep_rollups_1m: Span,
    /// How long rollups of probes' rows to one hour are kept.
    pub keep_rollups_1h: Span,
}

impl Default for Storage {
    fn default() -> Self {
        Self {
            database_url: String::new(),
            run_as: String::new(),
            distribution: Distribution::None,
            keep_rows: Span::from_secs(14 * 86_400),
            keep_events: Span::from_secs(90 * 86_400),
            keep_rollups_1m: Span::from_secs(30 * 86_400),
            keep_rollups_1h: Span::from_secs(400 * 86_400),
        }
    }
}

/// Where the tables are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Distribution {
    #[default]
    None,
    Citus,
}

/// Facts of the cluster from the Kubernetes API: read by one aggregator for all nodes, never by collectors.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Kubernetes {
    /// `auto`: read where a `kubeconfig` is given or the aggregator runs in a pod with a service account; `on`: the same, and not to start where neither is there; `off`: never.
    pub enabled: Enabled,
    /// How to reach the API. Empty: the service account of the aggregator's own pod.
    pub kubeconfig: PathBuf,
    /// Context of `kubeconfig`. Empty: its current context.
    pub context: String,
    /// Namespaces whose pods, workloads and services are read, each with watches of its own. Empty: all, with one watch for each kind. Nodes are always read.
    pub namespaces: Vec<String>,
}

/// `auto` decides by what is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, Default)]
#[serde(rename_all = "lowercase")]
pub enum Enabled {
    #[default]
    Auto,
    On,
    Off,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct Insecure {
    /// Permits addresses other than loopback although nothing asks for credentials yet.
    pub listen: bool,
}
