//! What nodes ship: every event and every row follows from its number, so what is in the tables can be checked value by value.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use sonde_collector::catalogue::{ColumnSpec, EventTypeSpec, LabelSpec, ProbeSpec};
use sonde_collector::event::{Direction, Event, NetnsKey, Observation, Subject};
use sonde_collector::pods::Pod;
use sonde_collector::table::{ABSENT, Table};

/// With a column of each kind, among them ones that stand still, move, begin anew and are absent now and then.
pub static SPEC: ProbeSpec = ProbeSpec {
    name: "chaos",
    help: "Rows and events that follow from their numbers",
    source: "a number",
    labels: &[LabelSpec {
        name: "lane",
        help: "One of two rows of a subject",
    }],
    columns: &[
        ColumnSpec::gauge("round", "", "Which reading"),
        ColumnSpec::counter("still", "packets", "Never moves"),
        ColumnSpec::counter("grows", "bytes", "Moves always, begins anew every thousand readings"),
        ColumnSpec::gauge("seldom", "", "Moves every fifty readings"),
        ColumnSpec::gauge("sometimes", "", "Absent in every fifth row"),
        ColumnSpec::gauge("wait_seconds", "seconds", "Nanoseconds in the kernel").scaled(1e-9),
        ColumnSpec::histogram("latency_seconds", "seconds", "Three buckets and a sum", &[0.001, 0.01]).scaled(1e-9),
    ],
    event_types: &[EventTypeSpec {
        name: "CHAOS",
        help: "An event that follows from its number",
    }],
};

const LANES: [&str; 2] = ["east", "west"];
/// The node itself and its pods.
pub const SUBJECTS: u64 = 4;
pub const ROWS_A_ROUND: u64 = SUBJECTS * LANES.len() as u64;

/// A row as the view shows it, but for its time; numbers before their scale.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    pub round: i64,
    pub pod: String,
    pub lane: String,
    pub still: Option<i64>,
    pub grows: Option<i64>,
    pub seldom: Option<i64>,
    pub sometimes: Option<i64>,
    pub wait_ns: Option<i64>,
    pub latency: Option<Vec<i64>>,
}

/// The pods of a node.
#[derive(Debug)]
pub struct Pods(Vec<Arc<Pod>>);

impl Pods {
    pub fn new(node: &str) -> Self {
        let pod = |number: u64| {
            Arc::new(Pod {
                sandbox: format!("{node}/sandbox-{number}"),
                namespace: "chaos".into(),
                name: pod_name(node, number),
                ips: vec![IpAddr::V4(Ipv4Addr::new(10, 200, 0, number as u8))],
                netns: NetnsKey {
                    inode: 100 + number as u32,
                    cookie: number,
                },
                valid_from_ns: sonde_proto::limits::EARLIEST_NS,
                ..Pod::default()
            })
        };
        Self((1..SUBJECTS).map(pod).collect())
    }

    fn subject(&self, number: u64) -> Subject {
        match number {
            0 => Subject::Node,
            number => Subject::Pod(Arc::clone(&self.0[number as usize - 1])),
        }
    }

    /// All rows of one reading.
    pub fn table(&self, round: u64, time_ns: u64) -> Table {
        let mut table = Table::new(&SPEC, time_ns);
        for subject in 0..SUBJECTS {
            for (lane, name) in LANES.iter().enumerate() {
                table.push(
                    self.subject(subject),
                    [Arc::from(*name)],
                    &values(round, subject, lane as u64),
                );
            }
        }
        table
    }

    pub fn event(&self, id: u64, time_ns: u64) -> Event {
        let expected = expected_event("", id);
        Event {
            time_ns,
            subject: self.subject(id % SUBJECTS),
            peer: None,
            observation: Observation {
                probe: SPEC.name,
                kind: "CHAOS",
                reason: Some(expected.reason.into()),
                protocol: Some("TCP".into()),
                saddr: expected.saddr.parse().ok(),
                sport: u16::try_from(expected.sport).ok(),
                daddr: Some(IpAddr::V4(Ipv4Addr::LOCALHOST)),
                dport: Some(443),
                direction: Direction::Ingress,
                latency_ns: Some(id),
                stack: vec!["first+0x1".into(), "second+0x2".into()],
                // Nothing that zstd could make small: a spool is to be filled with it.
                attributes: vec![("noise", expected.noise.into())],
                ..Observation::default()
            },
        }
    }
}

fn pod_name(node: &str, number: u64) -> String {
    match number {
        0 => String::new(),
        number => format!("{node}-pod-{number}"),
    }
}

fn values(round: u64, subject: u64, lane: u64) -> Vec<i64> {
    let (round, row) = (round as i64, (subject * 2 + lane) as i64);
    let sometimes = if (round + row) % 5 == 0 {
        ABSENT
    } else {
        mixed((round * 8 + row) as u64) as i64 >> 1
    };
    vec![
        round,
        row * 1000,
        (round % 1000) * 1_500 + row,
        round / 50 - row,
        sometimes,
        round * 1_000_003 + row,
        round / 3,
        round / 7 + row,
        row,
        round * 12_345,
    ]
}

/// The rows of one reading, in the order of [`Row`]'s pod and lane.
pub fn expected_rows(node: &str, round: u64) -> Vec<Row> {
    let mut rows = Vec::new();
    for subject in 0..SUBJECTS {
        for (lane, name) in LANES.iter().enumerate() {
            let v = values(round, subject, lane as u64);
            let present = |value: i64| (value != ABSENT).then_some(value);
            rows.push(Row {
                round: v[0],
                pod: pod_name(node, subject),
                lane: (*name).to_owned(),
                still: present(v[1]),
                grows: present(v[2]),
                seldom: present(v[3]),
                sometimes: present(v[4]),
                wait_ns: present(v[5]),
                latency: Some(v[6..].to_vec()),
            });
        }
    }
    rows
}

/// An event as the view shows it, but for its time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub pod: String,
    pub reason: String,
    pub saddr: String,
    pub sport: i32,
    pub noise: String,
}

pub fn expected_event(node: &str, id: u64) -> Seen {
    let [a, b, c, ..] = id.to_le_bytes();
    Seen {
        pod: pod_name(node, id % SUBJECTS),
        reason: format!("REASON_{}", id % 5),
        saddr: format!("10.{c}.{b}.{a}"),
        sport: (id % 60_000) as i32 + 1,
        noise: format!(
            "{:016x}{:016x}{:016x}",
            mixed(id),
            mixed(id ^ 1 << 62),
            mixed(id ^ 1 << 61)
        ),
    }
}

/// splitmix64.
fn mixed(number: u64) -> u64 {
    let mut z = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
