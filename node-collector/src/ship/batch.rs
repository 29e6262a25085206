//! Rows, events and gaps as `BatchBody` messages that stand alone: every string, stack and pod is inside.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use prost::Message as _;
use sonde_proto::limits::{
    MAX_ATTRIBUTES, MAX_BATCH_BYTES, MAX_FRAMES, MAX_IPS, MAX_POD_LABELS, MAX_POD_TEXT, MAX_STRING, MAX_WORD,
};
use sonde_proto::{body, v1};

use super::spool::Contents;
use crate::event::{Direction, Event, Gap, Subject};
use crate::pods::{Pod, PodIndex};
use crate::table::Table;

/// A body, ready for the spool.
#[derive(Debug)]
pub struct Batch {
    pub payload: Vec<u8>,
    pub contents: Contents,
}

/// What a body may grow to before it is compressed: half of what the aggregator takes compressed, so that even noise
/// fits.
const BODY_BYTES: usize = MAX_BATCH_BYTES / 2;

/// One round's tables, in as few batches as they fit.
pub fn rows(tables: &[Table], index: &PodIndex) -> Vec<Batch> {
    let mut out = Vec::new();
    let mut builder = Builder::new(index);
    for table in tables.iter().filter(|table| !table.is_empty()) {
        add_rows(&mut builder, table, 0..table.len(), &mut out);
    }
    builder.finish(&mut out);
    out
}

fn add_rows(builder: &mut Builder<'_>, table: &Table, range: std::ops::Range<usize>, out: &mut Vec<Batch>) {
    let values: usize = table
        .columns
        .iter()
        .zip(table.spec.columns)
        .map(|(_, spec)| spec.width())
        .sum();
    // A value takes at most ten bytes, a subject or label far less than its string.
    if values * range.len() * 10 > BODY_BYTES && range.len() > 1 {
        let middle = range.start + range.len() / 2;
        add_rows(builder, table, range.start..middle, out);
        add_rows(builder, table, middle..range.end, out);
        return;
    }
    if builder.size + values * range.len() * 4 > BODY_BYTES {
        builder.finish(out);
    }
    builder.rows(table, range);
}

/// Events, gaps, and pods that have to be told of (they came or ended).
pub fn events(events: &[Event], gaps: &[Gap], pods: &[Arc<Pod>], index: &PodIndex) -> Vec<Batch> {
    let mut out = Vec::new();
    let mut builder = Builder::new(index);
    for pod in pods {
        builder.pod(pod);
        builder.finish_if_full(&mut out);
    }
    for event in events {
        builder.event(event);
        builder.finish_if_full(&mut out);
    }
    for gap in gaps {
        builder.gap(gap);
        builder.finish_if_full(&mut out);
    }
    builder.finish(&mut out);
    out
}

/// A pod as it goes over the wire, with the addresses it has now.
pub fn pod_to_proto(pod: &Pod, index: &PodIndex) -> v1::Pod {
    let text = |text: &str| short(text, MAX_POD_TEXT).to_owned();
    let valid_to_ns = match pod.valid_to_ns.load(Ordering::Acquire) {
        0 => 0,
        // The clock may have been set back in between.
        ended => ended.max(pod.valid_from_ns),
    };
    v1::Pod {
        sandbox: text(&pod.sandbox),
        uid: text(&pod.uid),
        namespace: text(&pod.namespace),
        name: text(&pod.name),
        workload_kind: text(&pod.workload_kind),
        workload: text(&pod.workload),
        ips: index.addresses(pod).iter().take(MAX_IPS).map(octets).collect(),
        labels: pod
            .labels
            .iter()
            .take(MAX_POD_LABELS)
            .map(|(k, v)| (text(k), text(v)))
            .collect(),
        netns_inode: u64::from(pod.netns.inode),
        netns_cookie: pod.netns.cookie,
        valid_from_ns: pod.valid_from_ns,
        valid_to_ns,
        host_network: pod.host_network,
    }
}

fn octets(ip: &IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// What the aggregator takes of it: `most` bytes, up to a NUL.
fn short(text: &str, most: usize) -> &str {
    let text = &text[..text.floor_char_boundary(most)];
    &text[..memchr::memchr(0, text.as_bytes()).unwrap_or(text.len())]
}

struct Builder<'a> {
    index: &'a PodIndex,
    body: v1::BatchBody,
    strings: HashMap<String, u32>,
    stacks: HashMap<Vec<u32>, u32>,
    pods: HashMap<String, u32>,
    contents: Contents,
    /// About how long the body is.
    size: usize,
}

impl<'a> Builder<'a> {
    fn new(index: &'a PodIndex) -> Self {
        Self {
            index,
            body: v1::BatchBody {
                strings: vec![String::new()],
                ..v1::BatchBody::default()
            },
            strings: HashMap::from([(String::new(), 0)]),
            stacks: HashMap::new(),
            pods: HashMap::new(),
            contents: Contents::default(),
            size: 0,
        }
    }

    fn finish_if_full(&mut self, out: &mut Vec<Batch>) {
        if self.size > BODY_BYTES {
            self.finish(out);
        }
    }

    /// Begins anew, with what was there as a batch of its own.
    fn finish(&mut self, out: &mut Vec<Batch>) {
        let full = std::mem::replace(self, Self::new(self.index));
        if full.size > 0 {
            out.push(Batch {
                payload: body::encode(&full.body),
                contents: full.contents,
            });
        }
    }

    fn note(&mut self, from_ns: u64, to_ns: u64, count: usize) {
        let all = &mut self.contents;
        all.from_ns = if all.from_ns == 0 {
            from_ns
        } else {
            all.from_ns.min(from_ns)
        };
        all.to_ns = all.to_ns.max(to_ns);
        all.count = all.count.saturating_add(count as u32);
    }

    fn string(&mut self, text: &str, most: usize) -> u32 {
        let text = short(text, most);
        if let Some(number) = self.strings.get(text) {
            return *number;
        }
        let number = self.body.strings.len() as u32;
        self.body.strings.push(text.to_owned());
        self.strings.insert(text.to_owned(), number);
        self.size += text.len() + 4;
        number
    }

    fn word(&mut self, text: &str) -> u32 {
        self.string(text, MAX_WORD)
    }

    fn optional(&mut self, text: Option<&Arc<str>>) -> u32 {
        text.map_or(0, |text| self.word(text))
    }

    fn stack(&mut self, frames: &[Arc<str>]) -> u32 {
        if frames.is_empty() {
            return 0;
        }
        let frames: Vec<u32> = frames
            .iter()
            .take(MAX_FRAMES)
            .map(|frame| self.string(frame, MAX_STRING))
            .collect();
        if let Some(number) = self.stacks.get(&frames) {
            return *number;
        }
        let number = self.body.stacks.len() as u32 + 1;
        self.size += frames.len() * 3 + 4;
        self.body.stacks.push(v1::Stack { frames: frames.clone() });
        self.stacks.insert(frames, number);
        number
    }

    /// Number of the subject; `None` when it is not known.
    fn subject(&mut self, subject: &Subject) -> Option<u32> {
        match subject {
            Subject::Node => Some(0),
            Subject::Pod(pod) => Some(self.pod(pod)),
            Subject::Unknown => None,
        }
    }

    fn pod(&mut self, pod: &Pod) -> u32 {
        if let Some(number) = self.pods.get(&pod.sandbox) {
            return *number;
        }
        let pod_message = pod_to_proto(pod, self.index);
        self.size += pod_message.encoded_len() + 4;
        self.body.pods.push(pod_message);
        let number = self.body.pods.len() as u32;
        self.pods.insert(pod.sandbox.clone(), number);
        number
    }

    fn rows(&mut self, table: &Table, range: std::ops::Range<usize>) {
        let labels = table.spec.labels.len();
        // Rows never speak of an unknown subject: whoever reads a namespace knows whose it is.
        let subjects = table.subjects[range.clone()]
            .iter()
            .map(|s| self.subject(s).unwrap_or(0))
            .collect();
        let label_range = range.start * labels..range.end * labels;
        let label_strings = table.labels[label_range].iter().map(|label| self.word(label)).collect();
        let columns = table.columns.iter().zip(table.spec.columns).map(|(values, spec)| {
            let width = spec.width();
            v1::Column {
                values: values[range.start * width..range.end * width].to_vec(),
            }
        });
        let rows = v1::Rows {
            probe: table.spec.name.to_owned(),
            time_ns: table.time_ns,
            subjects,
            labels: label_strings,
            columns: columns.collect(),
        };
        self.size += rows.encoded_len();
        self.note(table.time_ns, table.time_ns, range.len());
        self.body.rows.push(rows);
    }

    fn event(&mut self, event: &Event) {
        let seen = &event.observation;
        let subject = self.subject(&event.subject);
        // The node as a peer has no number: the aggregator looks its address up.
        let peer = match &event.peer {
            Some(Subject::Pod(pod)) => self.pod(pod) + 1,
            _ => 0,
        };
        let message = v1::Event {
            time_ns: event.time_ns,
            subject: subject.unwrap_or(0),
            subject_unknown: subject.is_none(),
            probe: self.word(seen.probe),
            r#type: self.word(seen.kind),
            reason: self.optional(seen.reason.as_ref()),
            protocol: self.optional(seen.protocol.as_ref()),
            saddr: seen.saddr.as_ref().map(octets).unwrap_or_default(),
            sport: seen.sport.unwrap_or(0).into(),
            daddr: seen.daddr.as_ref().map(octets).unwrap_or_default(),
            dport: seen.dport.unwrap_or(0).into(),
            peer,
            direction: direction(seen.direction).into(),
            latency_ns: seen.latency_ns,
            cpu: seen.cpu,
            pid: seen.pid.unwrap_or(0),
            comm: self.optional(seen.comm.as_ref()),
            state: self.optional(seen.state.as_ref()),
            interface: self.optional(seen.interface.as_ref()),
            suppressed: seen.suppressed,
            stack: self.stack(&seen.stack),
            attributes: seen
                .attributes
                .iter()
                .take(MAX_ATTRIBUTES)
                .map(|(key, value)| v1::Attribute {
                    key: self.string(key, MAX_STRING),
                    value: self.string(value, MAX_STRING),
                })
                .collect(),
        };
        self.size += message.encoded_len() + 4;
        self.note(event.time_ns, event.time_ns, 1);
        self.body.events.push(message);
    }

    fn gap(&mut self, gap: &Gap) {
        let subject = self.subject(&gap.subject);
        let from_ns = gap.from_ns.max(1);
        let message = v1::Gap {
            probe: gap.probe.to_owned(),
            cause: gap.cause.to_owned(),
            // A time before 2020 is put right when it is sent: see `early`. 0 would say that there is none.
            from_ns,
            to_ns: gap.to_ns.max(from_ns),
            count: gap.count,
            subject: subject.unwrap_or(0),
            subject_unknown: subject.is_none(),
            detail: short(&gap.detail, MAX_STRING).to_owned(),
        };
        self.size += message.encoded_len() + 4;
        self.note(from_ns, gap.to_ns, 0);
        self.body.gaps.push(message);
    }
}

const fn direction(direction: Direction) -> v1::Direction {
    match direction {
        Direction::Unknown => v1::Direction::Unspecified,
        Direction::Ingress => v1::Direction::Ingress,
        Direction::Egress => v1::Direction::Egress,
        Direction::Forward => v1::Direction::Forward,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{NetnsKey, Observation};
    use crate::probes::PROBES;

    fn pod(name: &str) -> Arc<Pod> {
        Arc::new(Pod {
            sandbox: format!("netns/{name}/1@b"),
            namespace: "demo".into(),
            name: name.into(),
            netns: NetnsKey { inode: 5, cookie: 6 },
            ips: vec!["10.0.0.1".parse().unwrap()],
            valid_from_ns: 3,
            ..Pod::default()
        })
    }

    fn decode(batches: &[Batch]) -> Vec<v1::BatchBody> {
        batches
            .iter()
            .map(|batch| body::decode(&batch.payload).unwrap())
            .collect()
    }

    fn event(subject: Subject, peer: Option<Subject>) -> Event {
        let stack = vec!["nft_do_chain+0x4f1".into(), "nf_hook_slow+0x42".into()];
        Event {
            time_ns: 9,
            subject,
            peer,
            observation: Observation {
                probe: "packetloss",
                kind: "PACKETLOSS",
                reason: Some("NETFILTER_DROP".into()),
                saddr: Some("10.0.0.1".parse().unwrap()),
                daddr: Some("fd00::2".parse().unwrap()),
                dport: Some(80),
                direction: Direction::Egress,
                latency_ns: Some(0),
                stack,
                attributes: vec![("hook", "output".into())],
                ..Observation::default()
            },
        }
    }

    #[test]
    fn a_batch_stands_alone() {
        let index = PodIndex::default();
        let (a, b) = (pod("a"), pod("b"));
        let all = [
            event(Subject::Pod(Arc::clone(&a)), Some(Subject::Pod(Arc::clone(&b)))),
            event(Subject::Node, Some(Subject::Node)),
            event(Subject::Unknown, None),
        ];
        let gap = Gap {
            probe: "packetloss",
            cause: sonde_proto::gap::RATE_LIMITED,
            from_ns: 1,
            to_ns: 20,
            count: 4,
            subject: Subject::Pod(b),
            detail: "x".repeat(MAX_STRING + 1),
        };
        let batches = events(&all, &[gap], &[], &index);
        assert_eq!(batches.len(), 1);
        assert_eq!(
            batches[0].contents,
            Contents {
                from_ns: 1,
                to_ns: 20,
                count: 3
            }
        );
        let body = decode(&batches).remove(0);
        let word = |number: u32| body.strings[number as usize].as_str();
        assert_eq!(body.strings[0], "");
        assert_eq!(
            body.pods.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(),
            ["a", "b"]
        );
        assert_eq!(body.pods[0].ips, [vec![10, 0, 0, 1]]);
        let first = &body.events[0];
        assert_eq!((first.subject, first.subject_unknown, first.peer), (1, false, 3));
        assert_eq!(
            (word(first.r#type), word(first.reason), word(first.comm)),
            ("PACKETLOSS", "NETFILTER_DROP", "")
        );
        assert_eq!(
            (first.saddr.len(), first.daddr.len(), first.dport, first.latency_ns),
            (4, 16, 80, Some(0))
        );
        assert_eq!((first.stack, word(body.stacks[0].frames[1])), (1, "nf_hook_slow+0x42"));
        assert_eq!(
            (word(first.attributes[0].key), word(first.attributes[0].value)),
            ("hook", "output")
        );
        assert_eq!(
            (
                body.events[1].subject,
                body.events[1].subject_unknown,
                body.events[1].peer
            ),
            (0, false, 0)
        );
        assert!(body.events[2].subject_unknown);
        assert_eq!(body.stacks.len(), 1, "a stack is sent once");
        assert_eq!((body.gaps[0].subject, body.gaps[0].detail.len()), (2, MAX_STRING));
    }

    #[test]
    fn nothing_is_sent_that_the_aggregator_would_refuse() {
        let index = PodIndex::default();
        let pod = Arc::new(Pod {
            sandbox: "s".into(),
            name: format!("{}é", "x".repeat(MAX_POD_TEXT - 1)),
            ips: (0..100).map(|i| IpAddr::from([10, 0, 0, i])).collect(),
            valid_from_ns: 50,
            valid_to_ns: 40.into(),
            ..Pod::default()
        });
        let mut event = event(Subject::Pod(pod), None);
        event.observation.comm = Some("a\0b".into());
        event.observation.state = Some("y".repeat(MAX_WORD + 1).into());
        event.observation.stack = (0..300).map(|i| format!("f{i}").into()).collect();
        let gap = Gap {
            probe: "",
            cause: sonde_proto::gap::COLLECTOR_DOWN,
            from_ns: 9,
            to_ns: 7,
            count: 0,
            subject: Subject::Node,
            detail: String::new(),
        };
        let body = decode(&events(&[event], &[gap], &[], &index)).remove(0);
        let word = |number: u32| body.strings[number as usize].as_str();
        assert_eq!(
            body.pods[0].name.len(),
            MAX_POD_TEXT - 1,
            "not in the middle of a character"
        );
        assert_eq!((body.pods[0].ips.len(), body.pods[0].valid_to_ns), (MAX_IPS, 50));
        assert_eq!(
            (word(body.events[0].comm), word(body.events[0].state).len()),
            ("a", MAX_WORD)
        );
        assert_eq!(body.stacks[0].frames.len(), MAX_FRAMES);
        assert_eq!((body.gaps[0].from_ns, body.gaps[0].to_ns), (9, 9));
    }

    #[test]
    fn rows_come_back_by_columns() {
        let index = PodIndex::default();
        let spec = PROBES.iter().find(|p| p.spec.name == "netdev").unwrap().spec;
        let mut table = Table::new(spec, 50);
        let n = spec.columns.len() as i64;
        table.push(Subject::Node, ["lo".into()], &(0..n).collect::<Vec<_>>());
        table.push(
            Subject::Pod(pod("a")),
            ["eth0".into()],
            &(100..100 + n).collect::<Vec<_>>(),
        );
        let batches = rows(&[table, Table::new(spec, 51)], &index);
        assert_eq!(
            batches[0].contents,
            Contents {
                from_ns: 50,
                to_ns: 50,
                count: 2
            }
        );
        let body = decode(&batches).remove(0);
        assert_eq!(body.rows.len(), 1, "an empty table is not sent");
        let rows = &body.rows[0];
        assert_eq!(
            (rows.probe.as_str(), rows.time_ns, &rows.subjects[..]),
            ("netdev", 50, &[0, 1][..])
        );
        assert_eq!(
            rows.labels
                .iter()
                .map(|l| body.strings[*l as usize].as_str())
                .collect::<Vec<_>>(),
            ["lo", "eth0"]
        );
        assert_eq!(rows.columns[1].values, [1, 101]);
    }

    #[test]
    fn what_is_too_long_for_one_batch_becomes_several() {
        let index = PodIndex::default();
        let spec = PROBES.iter().find(|p| p.spec.name == "netdev").unwrap().spec;
        let mut table = Table::new(spec, 50);
        let values = vec![i64::MAX; spec.columns.len()];
        for i in 0..60_000 {
            table.push(Subject::Node, [format!("veth{i}").into()], &values);
        }
        let batches = rows(&[table], &index);
        assert!(batches.len() > 1);
        let bodies = decode(&batches);
        let total: usize = bodies.iter().flat_map(|b| &b.rows).map(|r| r.subjects.len()).sum();
        assert_eq!(total, 60_000);
        assert!(bodies.iter().all(|b| b.encoded_len() <= MAX_BATCH_BYTES));

        let mut many = Vec::new();
        for i in 0..6000 {
            let mut event = event(Subject::Node, None);
            event.observation.comm = Some(format!("{i}{}", "x".repeat(4000)).into());
            many.push(event);
        }
        let batches = events(&many, &[], &[], &index);
        assert!(batches.len() > 1);
        let bodies = decode(&batches);
        assert_eq!(bodies.iter().map(|b| b.events.len()).sum::<usize>(), 6000);
        assert!(bodies.iter().all(|b| b.encoded_len() <= MAX_BATCH_BYTES));
    }
}
