//! An event as JSON, with the keys of the aggregator's `/api/v1/events`. What is not known is left out; `id` is the
//! aggregator's to give.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;
use sonde_common::time::rfc3339;

use crate::event::{Direction, Event, Subject};

#[derive(Debug, Serialize)]
pub(super) struct EventJson<'a> {
    /// UTC, with microseconds.
    pub(super) time: String,
    node: &'a str,
    /// Empty: the node itself. Left out: a network namespace of no known pod.
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<&'a str>,
    probe: &'static str,
    r#type: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    saddr: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    daddr: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dport: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<Peer<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direction: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    latency_ns: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    comm: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    state: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    interface: Option<&'a str>,
    #[serde(skip_serializing_if = "is_zero")]
    suppressed: u64,
    /// Innermost first.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    stack: Vec<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    attributes: BTreeMap<&'static str, &'a str>,
}

/// A pod of this node, or the node itself.
#[derive(Debug, Serialize)]
struct Peer<'a> {
    node: &'a str,
    namespace: &'a str,
    pod: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    workload: Option<&'a str>,
}

impl<'a> EventJson<'a> {
    pub(super) fn new(event: &'a Event, node: &'a str) -> Self {
        let seen = &event.observation;
        let (namespace, pod, workload) = names(&event.subject);
        let peer = event.peer.as_ref().and_then(|peer| {
            let (namespace, pod, workload) = names(peer);
            Some(Peer {
                node,
                namespace: namespace?,
                pod: pod?,
                workload,
            })
        });
        // No packet has port 0: it stands for none, as in the aggregator.
        let port = |port: Option<u16>| port.filter(|port| *port != 0);
        Self {
            time: rfc3339(event.time_ns),
            node,
            namespace,
            pod,
            workload,
            probe: seen.probe,
            r#type: seen.kind,
            reason: given(seen.reason.as_deref()),
            protocol: given(seen.protocol.as_deref()),
            saddr: seen.saddr,
            sport: port(seen.sport),
            daddr: seen.daddr,
            dport: port(seen.dport),
            peer,
            direction: match seen.direction {
                Direction::Unknown => None,
                Direction::Ingress => Some("ingress"),
                Direction::Egress => Some("egress"),
                Direction::Forward => Some("forward"),
            },
            latency_ns: seen.latency_ns,
            cpu: seen.cpu,
            pid: seen.pid,
            comm: given(seen.comm.as_deref()),
            state: given(seen.state.as_deref()),
            interface: given(seen.interface.as_deref()),
            suppressed: seen.suppressed,
            stack: seen.stack.iter().map(|frame| &**frame).collect(),
            attributes: seen.attributes.iter().map(|(key, value)| (*key, &**value)).collect(),
        }
    }
}

/// Namespace, pod and workload.
fn names(subject: &Subject) -> (Option<&str>, Option<&str>, Option<&str>) {
    match subject {
        Subject::Node => (Some(""), Some(""), None),
        Subject::Pod(pod) => (Some(&pod.namespace), Some(&pod.name), given(Some(&pod.workload))),
        Subject::Unknown => (None, None, None),
    }
}

fn given(word: Option<&str>) -> Option<&str> {
    word.filter(|word| !word.is_empty())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}
