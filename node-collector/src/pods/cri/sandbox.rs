//! What a runtime says of a sandbox, made into what discovery needs.
//!
//! The interface itself has neither process nor network namespace. Both are in `info`, a JSON text for people that is
//! asked for verbosely: containerd and CRI-O have `pid` and `runtimeSpec` there, cri-dockerd has nothing.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::PathBuf;

use serde::Deserialize;

use super::v1;
use crate::pods::cgroup;

/// A pod sandbox as the runtime knows it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sandbox {
    pub id: String,
    pub uid: String,
    pub namespace: String,
    pub name: String,
    /// Grows by one with each new sandbox of one pod.
    pub attempt: u32,
    /// Without those that only repeat name, namespace and uid.
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// All of both families, the primary one first.
    pub ips: Vec<IpAddr>,
    /// Shares the node's network namespace.
    pub host_network: bool,
    /// As the runtime's host sees it. Still told of a sandbox whose namespace is gone.
    pub netns: Option<PathBuf>,
    /// Its first process; 0 when that has ended or is not told, which says nothing of the namespace.
    pub pid: u32,
    /// Below the root of a hierarchy. The pod's own group, if it has one.
    pub cgroup: Option<String>,
    /// Unix time.
    pub created_ns: u64,
    pub ready: bool,
}

/// An answer that names no sandbox.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the runtime's answer has no {0}")]
pub struct Incomplete(&'static str);

impl Sandbox {
    /// From a verbose status. The state is not read from it: cri-dockerd calls every single-stack pod not ready there.
    /// The list has it right.
    pub fn new(response: v1::PodSandboxStatusResponse, ready: bool) -> Result<Self, Incomplete> {
        let info = Info::of(&response.info);
        let status = response.status.ok_or(Incomplete("status"))?;
        let metadata = status.metadata.ok_or(Incomplete("metadata"))?;
        if status.id.is_empty() || metadata.name.is_empty() {
            return Err(Incomplete("id or name"));
        }
        let namespaces = status.linux.and_then(|linux| linux.namespaces);
        let mode = namespaces.and_then(|namespaces| namespaces.options);
        let says_node = mode.is_some_and(|options| options.network() == v1::NamespaceMode::Node);
        let network = info.network();
        let group = info.group();
        Ok(Self {
            cgroup: group.and_then(|path| cgroup::of_pod(&path, &metadata.uid)),
            // containerd leaves the entry out, CRI-O too; the option says it as well.
            host_network: says_node || network == Some(Network::Host),
            netns: match network {
                Some(Network::At(path)) => Some(path),
                Some(Network::Host | Network::Unnamed) | None => None,
            },
            pid: info.pid,
            ips: addresses(status.network),
            labels: labels(status.labels),
            annotations: status.annotations.into_iter().collect(),
            created_ns: u64::try_from(status.created_at).unwrap_or(0),
            id: status.id,
            uid: metadata.uid,
            namespace: metadata.namespace,
            name: metadata.name,
            attempt: metadata.attempt,
            ready,
        })
    }

    /// Whether the runtime told too little to find the network namespace by.
    pub fn is_bare(&self) -> bool {
        !self.host_network && self.netns.is_none() && self.pid == 0
    }
}

fn addresses(network: Option<v1::PodSandboxNetworkStatus>) -> Vec<IpAddr> {
    let Some(network) = network else { return Vec::new() };
    let others = network.additional_ips.into_iter().map(|other| other.ip);
    let mut ips = Vec::new();
    for ip in std::iter::once(network.ip)
        .chain(others)
        .filter_map(|ip| ip.parse().ok())
    {
        if !ips.contains(&ip) {
            ips.push(ip);
        }
    }
    ips
}

fn labels(labels: HashMap<String, String>) -> BTreeMap<String, String> {
    let repeats = |key: &str| {
        matches!(
            key,
            "io.kubernetes.pod.name" | "io.kubernetes.pod.namespace" | "io.kubernetes.pod.uid"
        )
    };
    labels.into_iter().filter(|(key, _)| !repeats(key)).collect()
}

/// What is read of the JSON text. Everything may be missing or of another kind in a runtime to come.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Info {
    pid: u32,
    runtime_spec: Option<Spec>,
    config: Option<Config>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Spec {
    linux: Option<Linux>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Linux {
    namespaces: Option<Vec<Namespace>>,
    cgroups_path: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Namespace {
    r#type: String,
    path: PathBuf,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Config {
    linux: Option<LinuxConfig>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LinuxConfig {
    cgroup_parent: String,
}

#[derive(Debug, PartialEq, Eq)]
enum Network {
    Host,
    At(PathBuf),
    /// One of its own that has no name: only its processes lead there.
    Unnamed,
}

impl Info {
    fn of(texts: &HashMap<String, String>) -> Self {
        // A part that is not as expected must not cost the others.
        let whole: serde_json::Value = texts
            .get("info")
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default();
        Self {
            pid: whole["pid"]
                .as_u64()
                .and_then(|pid| u32::try_from(pid).ok())
                .unwrap_or(0),
            runtime_spec: Spec::deserialize(&whole["runtimeSpec"]).ok(),
            config: Config::deserialize(&whole["config"]).ok(),
        }
    }

    fn linux(&self) -> Option<&Linux> {
        self.runtime_spec.as_ref()?.linux.as_ref()
    }

    /// `None`: nothing is said of namespaces at all.
    fn network(&self) -> Option<Network> {
        let namespaces = self.linux()?.namespaces.as_ref()?;
        Some(
            match namespaces.iter().find(|namespace| namespace.r#type == "network") {
                None => Network::Host,
                Some(network) if network.path.as_os_str().is_empty() => Network::Unnamed,
                Some(network) => Network::At(network.path.clone()),
            },
        )
    }

    fn group(&self) -> Option<String> {
        let own = self.linux().and_then(|linux| cgroup::path_of(&linux.cgroups_path));
        let parent = || cgroup::path_of(&self.config.as_ref()?.linux.as_ref()?.cgroup_parent);
        own.or_else(parent)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    const UID: &str = "6b1f2c3d-0000-4bd0-8e44-000000000000";

    pub(crate) fn status(id: &str, name: &str) -> v1::PodSandboxStatus {
        v1::PodSandboxStatus {
            id: id.into(),
            metadata: Some(v1::PodSandboxMetadata {
                name: name.into(),
                uid: UID.into(),
                namespace: "default".into(),
                attempt: 1,
            }),
            created_at: 1_700_000_000_000_000_000,
            network: Some(v1::PodSandboxNetworkStatus {
                ip: "10.244.7.4".into(),
                additional_ips: vec![
                    v1::PodIp { ip: "fd00::4".into() },
                    v1::PodIp {
                        ip: "10.244.7.4".into(),
                    },
                ],
            }),
            labels: [
                ("app", "web"),
                ("io.kubernetes.pod.uid", UID),
                ("io.kubernetes.pod.name", name),
            ]
            .map(|(k, v)| (k.to_owned(), v.to_owned()))
            .into(),
            annotations: [("team".to_owned(), "net".to_owned())].into(),
            ..v1::PodSandboxStatus::default()
        }
    }

    fn network(mode: v1::NamespaceMode) -> Option<v1::LinuxPodSandboxStatus> {
        Some(v1::LinuxPodSandboxStatus {
            namespaces: Some(v1::Namespace {
                options: Some(v1::NamespaceOption { network: mode.into() }),
            }),
        })
    }

    fn sandbox(status: v1::PodSandboxStatus, info: &str) -> Sandbox {
        let info = match info {
            "" => HashMap::new(),
            info => HashMap::from([("info".to_owned(), info.to_owned())]),
        };
        let response = v1::PodSandboxStatusResponse {
            status: Some(status),
            info,
        };
        Sandbox::new(response, true).unwrap()
    }

    #[test]
    fn containerd_with_the_cgroupfs_driver() {
        let info = format!(
            r#"{{"pid":4321,"processStatus":"running","netNamespaceClosed":false,"image":"pause","runtimeType":"io.containerd.runc.v2",
            "config":{{"metadata":{{"name":"web-0"}},"linux":{{"cgroup_parent":"/kubepods/burstable/pod{UID}","security_context":{{}}}}}},
            "runtimeSpec":{{"ociVersion":"1.0.2","linux":{{"cgroupsPath":"/kubepods/burstable/pod{UID}/abc","namespaces":[
                {{"type":"pid"}},{{"type":"ipc"}},{{"type":"network","path":"/var/run/netns/cni-1"}}]}},
                "annotations":{{"io.kubernetes.cri.sandbox-id":"abc"}}}},"cniResult":{{}}}}"#
        );
        let found = sandbox(status("abc", "web-0"), &info);
        let expected = Sandbox {
            id: "abc".into(),
            uid: UID.into(),
            namespace: "default".into(),
            name: "web-0".into(),
            attempt: 1,
            labels: [("app".to_owned(), "web".to_owned())].into(),
            annotations: [("team".to_owned(), "net".to_owned())].into(),
            ips: vec!["10.244.7.4".parse().unwrap(), "fd00::4".parse().unwrap()],
            host_network: false,
            netns: Some("/var/run/netns/cni-1".into()),
            pid: 4321,
            cgroup: Some(format!("/kubepods/burstable/pod{UID}")),
            created_ns: 1_700_000_000_000_000_000,
            ready: true,
        };
        assert_eq!(found, expected);
        assert!(!found.is_bare());
    }

    #[test]
    fn crio_with_the_systemd_driver() {
        let slice = format!("kubepods-besteffort-pod{}.slice", UID.replace('-', "_"));
        let info = format!(
            r#"{{"image":"registry.k8s.io/pause:3.9","pid":77,"runtimeSpec":{{"linux":{{"cgroupsPath":"{slice}:crio:abc",
            "namespaces":[{{"type":"network","path":"/var/run/netns/6b1f2c3d-1111-4bd0-8e44-000000000000"}}]}}}}}}"#
        );
        let found = sandbox(status("abc", "web-0"), &info);
        assert_eq!(found.pid, 77);
        assert_eq!(
            found.netns,
            Some("/var/run/netns/6b1f2c3d-1111-4bd0-8e44-000000000000".into())
        );
        assert_eq!(
            found.cgroup,
            Some(format!("/kubepods.slice/kubepods-besteffort.slice/{slice}"))
        );
    }

    #[test]
    fn a_pod_on_the_host_network_has_no_network_entry() {
        let mut host = status("abc", "proxy-0");
        host.network = Some(v1::PodSandboxNetworkStatus::default());
        host.linux = network(v1::NamespaceMode::Node);
        let info = r#"{"pid":5,"runtimeSpec":{"linux":{"namespaces":[{"type":"pid"},{"type":"mount"}]}}}"#;
        for (linux, info) in [(host.linux, info), (None, info), (host.linux, "")] {
            let found = sandbox(v1::PodSandboxStatus { linux, ..host.clone() }, info);
            assert!(
                found.host_network && found.netns.is_none() && found.ips.is_empty(),
                "{found:?}"
            );
            assert!(!found.is_bare());
        }
        // Said to be a pod's, and nothing known of it: not the host's.
        host.linux = network(v1::NamespaceMode::Pod);
        let found = sandbox(host, "");
        assert!(!found.host_network && found.is_bare());
    }

    #[test]
    fn a_stopped_sandbox_keeps_its_stale_path_and_a_killed_one_its_addresses() {
        let stopped = r#"{"pid":0,"processStatus":"deleted","netNamespaceClosed":true,"runtimeSpec":{"linux":{"namespaces":[
            {"type":"network","path":"/var/run/netns/cni-1"}]}}}"#;
        let found = sandbox(status("abc", "web-0"), stopped);
        assert_eq!((found.pid, found.netns), (0, Some("/var/run/netns/cni-1".into())));
        assert_eq!(found.ips.len(), 2);
    }

    #[test]
    fn what_is_of_another_kind_costs_nothing_else() {
        let found = sandbox(
            status("abc", "web-0"),
            r#"{"pid":"4321","runtimeSpec":{"linux":{"namespaces":[{"type":"network","path":"/run/netns/x"}],"cgroupsPath":"a:b"}},
            "config":{"linux":{"cgroup_parent":7}}}"#,
        );
        assert_eq!((found.pid, found.netns.is_some(), found.cgroup), (0, true, None));
        for info in [
            "",
            "{",
            "[]",
            "null",
            r#"{"runtimeSpec":{"linux":{"namespaces":"none"}}}"#,
        ] {
            let found = sandbox(status("abc", "web-0"), info);
            assert!(found.is_bare() && found.name == "web-0", "{info}");
        }
    }

    #[test]
    fn an_answer_without_a_name_is_an_error() {
        let without = |status| {
            let response = v1::PodSandboxStatusResponse {
                status,
                info: HashMap::new(),
            };
            Sandbox::new(response, true).unwrap_err().to_string()
        };
        assert_eq!(without(None), "the runtime's answer has no status");
        let mut nameless = status("abc", "");
        assert_eq!(
            without(Some(nameless.clone())),
            "the runtime's answer has no id or name"
        );
        nameless.metadata = None;
        assert_eq!(without(Some(nameless)), "the runtime's answer has no metadata");
    }
}
