//! Checked batches as rows of COPY. The column lists here and the order of the fields are one thing in two forms.

use std::net::IpAddr;

use sonde_proto::v1;

use super::batch::Batch;
use super::cluster::addresses::ClusterAddresses;
use super::copy::CopyBuffer;
use super::pods::{Pods, address};

/// Numbers of a batch's strings, stacks and pods, by their places in it.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    pub(super) words: Vec<i32>,
    pub(super) stacks: Vec<i32>,
    pub(super) pods: Vec<i32>,
}

impl Numbers {
    /// What a row of this subject refers to: 0 is the node itself.
    pub(super) fn subject(&self, subject: u32) -> i32 {
        match subject {
            0 => 0,
            pod => self.pods[pod as usize - 1],
        }
    }

    /// The same where the subject may be unknown.
    fn known_subject(&self, subject: u32, unknown: bool) -> Option<i32> {
        (!unknown).then(|| self.subject(subject))
    }

    /// `None` for the empty string.
    fn word(&self, word: u32) -> Option<i32> {
        (word != 0).then(|| self.words[word as usize])
    }
}

pub(super) const EVENT_COLUMNS: &str = "time, id, node_id, pod_id, peer_pod_id, probe, type, reason, protocol, saddr, sport, daddr, dport, \
     direction, latency_ns, cpu, pid, comm, state, interface, suppressed, stack_id, attributes, peer_object_id";
const EVENT_FIELDS: usize = 24;

pub(super) const GAP_COLUMNS: &str = "from_time, to_time, node_id, pod_id, probe, cause, count, detail";
const GAP_FIELDS: usize = 8;

pub(super) fn event(
    out: &mut CopyBuffer,
    id: i64,
    batch: &Batch,
    event: &v1::Event,
    numbers: &Numbers,
    known: (&Pods, &ClusterAddresses),
) {
    let (saddr, daddr) = (address(&event.saddr), address(&event.daddr));
    let port = |port: u32| (port != 0).then_some(port as i32);
    let subject = numbers.known_subject(event.subject, event.subject_unknown);
    out.row(EVENT_FIELDS);
    out.time(event.time_ns);
    out.i64(id);
    out.i32(batch.stream.node_id);
    out.opt_i32(subject);
    let (peer_pod, peer_object) = peer(batch, event, numbers, known, (saddr, daddr));
    out.opt_i32(peer_pod);
    out.i32(numbers.words[event.probe as usize]);
    out.i32(numbers.words[event.r#type as usize]);
    out.opt_i32(numbers.word(event.reason));
    out.opt_i32(numbers.word(event.protocol));
    out.inet(saddr);
    out.opt_i32(port(event.sport));
    out.inet(daddr);
    out.opt_i32(port(event.dport));
    out.i16(event.direction as i16);
    out.opt_i64(event.latency_ns.map(|v| v as i64));
    out.opt_i32(event.cpu.map(|v| v as i32));
    out.opt_i32((event.pid != 0).then_some(event.pid as i32));
    out.opt_i32(numbers.word(event.comm));
    out.opt_i32(numbers.word(event.state));
    out.opt_i32(numbers.word(event.interface));
    out.i64(event.suppressed as i64);
    out.opt_i32((event.stack != 0).then(|| numbers.stacks[event.stack as usize - 1]));
    if event.attributes.is_empty() {
        out.null();
    } else {
        out.jsonb(|json| attributes(json, event, &batch.body.strings));
    }
    out.opt_i64(peer_object);
}

fn attributes(json: &mut Vec<u8>, event: &v1::Event, strings: &[String]) {
    let attribute = |a: &v1::Attribute| {
        let text = |at: u32| serde_json::Value::from(strings[at as usize].as_str());
        (strings[a.key as usize].clone(), text(a.value))
    };
    let map: serde_json::Map<_, _> = event.attributes.iter().map(attribute).collect();
    serde_json::to_writer(json, &map).expect("texts become JSON");
}

/// The pod at the other end: as the collector says, else whoever in the cluster had the other address at that time; or
/// what else the Kubernetes API knows to have had it: a service, a node, a pod where no collector runs.
fn peer(
    batch: &Batch,
    event: &v1::Event,
    numbers: &Numbers,
    (pods, cluster): (&Pods, &ClusterAddresses),
    (saddr, daddr): (Option<IpAddr>, Option<IpAddr>),
) -> (Option<i32>, Option<i64>) {
    if event.peer != 0 {
        return (Some(numbers.subject(event.peer - 1)), None);
    }
    let own = |ip: IpAddr| {
        if event.subject == 0 && !event.subject_unknown {
            return cluster.is_node(ip, event.time_ns, &batch.stream.node).then_some(());
        }
        let subject = event.subject.checked_sub(1).filter(|_| !event.subject_unknown)?;
        let pod = &batch.body.pods[subject as usize];
        pod.ips.iter().any(|bytes| address(bytes) == Some(ip)).then_some(())
    };
    // The subject's own address tells the ends apart best; the direction does where it is not known.
    let other = match (saddr.and_then(own), daddr.and_then(own), event.direction()) {
        (Some(()), None, _) => daddr,
        (None, Some(()), _) => saddr,
        (_, _, v1::Direction::Ingress) => saddr,
        (_, _, v1::Direction::Egress) => daddr,
        _ => None,
    };
    let Some(other) = other else { return (None, None) };
    match pods.by_address(other, event.time_ns, batch.stream.node_id) {
        Some(peer) if event.subject_unknown || peer != numbers.subject(event.subject) => (Some(peer), None),
        Some(_) => (None, None),
        None => (None, cluster.by_address(other, event.time_ns)),
    }
}

pub(super) fn gap(out: &mut CopyBuffer, from_ns: u64, node_id: i32, gap: &v1::Gap, numbers: &Numbers) {
    out.row(GAP_FIELDS);
    out.time(from_ns);
    out.time(gap.to_ns);
    out.i32(node_id);
    out.opt_i32(numbers.known_subject(gap.subject, gap.subject_unknown));
    out.text(&gap.probe);
    out.text(&gap.cause);
    out.i64(gap.count as i64);
    out.text(&gap.detail);
}
