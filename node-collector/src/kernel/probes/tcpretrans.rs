//! Segments that TCP sent again, and why: tracepoints tcp:tcp_retransmit_skb and tcp:tcp_retransmit_synack (all kernels).
//!
//! Exact: the kernel's own RetransSegs also counts what could not be sent again (TCPRetransFail), this does not.

use std::error::Error;
use std::io;
use std::sync::Arc;

use sonde_ebpf_common::record::kind as records;
use sonde_ebpf_common::retransmit::{Key, Record, Segments, kind};
use sonde_ebpf_common::{limit, lost};

use crate::catalogue::{ColumnSpec, EventTypeSpec, LabelSpec, ProbeSpec};
use crate::event::{Direction, NetnsKey, Observation};
use crate::kernel::connection;
use crate::kernel::counted::{self, Counted};
use crate::kernel::plan::{Attach, Bucket, Hook, Rung, Signal, Step};
use crate::kernel::probe::{
    Decoded, Decoder, Decoders, Defaults, Host, KernelProbe, Opened, Reader, Round, Setup, Standing, count_keys,
};
use crate::kernel::record::{self, RecordError};
use crate::kernel::symbols::Symbols;
use crate::table::Table;

const SPEC: ProbeSpec = ProbeSpec {
    name: "tcpretrans",
    help: "TCP segments sent again, by why",
    source: "eBPF on tracepoints tcp:tcp_retransmit_skb and tcp:tcp_retransmit_synack (Linux net/ipv4/tcp_output.c)",
    labels: &[LabelSpec {
        name: "kind",
        help: "syn, syn_ack; fast: three duplicate ACKs or SACK; rto: time-out; tlp: probe for a lost tail; \
               loss_recovery: after a time-out; other",
    }],
    columns: &[ColumnSpec::counter("segments", "", "TCP segments sent again")],
    event_types: &[EventTypeSpec {
        name: TCPRETRANS,
        help: "TCP sent a segment again; the reason is its kind",
    }],
};

const TCPRETRANS: &str = "TCPRETRANS";

/// By position in `sonde_ebpf_common::retransmit::kind`.
const KINDS: [&str; 7] = ["syn", "syn_ack", "fast", "rto", "tlp", "loss_recovery", "other"];
const _: () = assert!(kind::OTHER as usize == KINDS.len() - 1);

pub(super) const PROBE: KernelProbe = KernelProbe {
    spec: &SPEC,
    node_only: false,
    defaults: Defaults::ON,
    signals: &[&COUNT, &EVENTS],
    maps: &[("TCPRETRANS_COUNTS", count_keys)],
    uncounted: Some((
        lost::TCPRETRANS,
        "retransmits that are in no row: the map of counts was full",
    )),
    prepare,
};

const COUNT: Signal = Signal {
    name: "tcpretrans.count",
    probe: SPEC.name,
    rows: true,
    buckets: &[],
    steps: &[
        Step::new(
            Rung::TpBtf,
            &[
                Hook("retrans_count_btf", Attach::TpBtf("tcp_retransmit_skb")),
                Hook("synack_count_btf", Attach::TpBtf("tcp_retransmit_synack")),
            ],
        ),
        Step::new(
            Rung::RawTracepoint,
            &[
                Hook("retrans_count_raw", Attach::RawTracepoint("tcp_retransmit_skb")),
                Hook("synack_count_raw", Attach::RawTracepoint("tcp_retransmit_synack")),
            ],
        ),
    ],
    needs: NEEDS,
    missed: "retransmits that were not counted",
    provoke: None,
    ..Signal::PLAIN
};

const EVENTS: Signal = Signal {
    name: "tcpretrans.events",
    probe: SPEC.name,
    rows: false,
    buckets: &[Bucket {
        position: limit::TCPRETRANS,
        held: "events beyond events.rate",
    }],
    steps: &[
        Step::new(
            Rung::TpBtf,
            &[
                Hook("retrans_event_btf", Attach::TpBtf("tcp_retransmit_skb")),
                Hook("synack_event_btf", Attach::TpBtf("tcp_retransmit_synack")),
            ],
        ),
        Step::new(
            Rung::RawTracepoint,
            &[
                Hook("retrans_event_raw", Attach::RawTracepoint("tcp_retransmit_skb")),
                Hook("synack_event_raw", Attach::RawTracepoint("tcp_retransmit_synack")),
            ],
        ),
    ],
    needs: NEEDS,
    missed: "retransmits that could make no event",
    provoke: None,
    ..Signal::PLAIN
};

const NEEDS: &[&str] = &[
    "RETRANSMIT_SKB_SK",
    "RETRANSMIT_SKB_SKB",
    "RETRANSMIT_SYNACK_REQ",
    "SKB_CB",
    "TCP_CB_SEGMENTS",
    "SOCK_FAMILY",
    "SOCK_STATE",
    "SOCK_PORT",
    "SOCK_PEER_PORT",
    "SOCK_ADDRESS",
    "SOCK_PEER_ADDRESS",
    "SOCK_NET",
    "NET_INODE",
    "ICSK_CA_STATE",
    "ICSK_PENDING",
];

fn prepare(host: &Host<'_>) -> Setup {
    let symbols = Arc::clone(&host.symbols);
    Setup::new(move |object| {
        Ok(Opened {
            reader: Box::new(Retransmits(Counted::new(object.map("TCPRETRANS_COUNTS")?))),
            decoders: decoders(&symbols),
        })
    })
}

pub(super) fn decoders(symbols: &Arc<Symbols>) -> Decoders {
    let symbols = Arc::clone(symbols);
    vec![(records::RETRANSMIT, Box::new(Retransmit { symbols }))]
}

impl counted::Key for Key {
    fn netns(&self) -> NetnsKey {
        NetnsKey {
            inode: self.netns,
            cookie: self.cookie,
        }
    }
}

impl counted::Value for Segments {
    fn add(&mut self, other: &Self) {
        self.segments += other.segments;
    }

    fn count(&self) -> u64 {
        self.segments
    }
}

fn name(kind: u32) -> Option<&'static str> {
    KINDS.get(kind as usize).copied()
}

struct Retransmits(Counted<Key, Segments>);

impl Reader for Retransmits {
    fn read(&mut self, round: &Round<'_>) -> io::Result<Table> {
        let sums = self.0.read(round, |key| name(key.kind).unwrap_or("other"))?;
        let mut table = Table::with_capacity(&SPEC, round.time_ns, sums.len());
        for (subject, kind, count) in sums {
            table.push(subject, [kind.into()], &[count.segments as i64]);
        }
        Ok(table)
    }

    fn seen(&mut self) -> io::Result<u64> {
        self.0.seen()
    }

    fn standing(&self) -> Standing {
        self.0.standing()
    }
}

struct Retransmit {
    symbols: Arc<Symbols>,
}

impl Decoder for Retransmit {
    fn decode(&mut self, bytes: &[u8]) -> Result<Decoded, Box<dyn Error>> {
        let (record, stack) = record::parse::<Record>(bytes, |record| &record.head)?;
        let mut seen = observe(&record)?;
        seen.stack = self.symbols.stack(&stack);
        Ok(Decoded::Event(limit::TCPRETRANS, Box::new(seen)))
    }
}

/// All but the stack.
fn observe(record: &Record) -> Result<Observation, RecordError> {
    let kind = name(record.kind).ok_or(RecordError::Value {
        what: "the kind of a retransmit",
        value: record.kind.into(),
    })?;
    let mut seen = Observation {
        ktime_ns: record.head.ktime_ns,
        probe: SPEC.name,
        kind: TCPRETRANS,
        netns: record::netns(&record.head),
        reason: Some(kind.into()),
        direction: Direction::Egress,
        cpu: Some(record.head.cpu),
        attributes: vec![("segments", record.segments.to_string().into())],
        ..Observation::default()
    };
    connection::fill(&mut seen, &record.connection);
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sonde_ebpf_common::connection::{AF_INET, Connection};
    use sonde_ebpf_common::record::Head;
    use zerocopy::{FromBytes as _, FromZeros as _};

    fn record(kind: u32) -> Record {
        let mut connection = Connection::new_zeroed();
        (connection.sport, connection.dport, connection.family) = (40_001, 443, AF_INET);
        connection.saddr[..4].copy_from_slice(&[10, 0, 0, 1]);
        connection.daddr[..4].copy_from_slice(&[10, 0, 0, 2]);
        connection.state = 1;
        let head = Head {
            netns: 7,
            cookie: 70,
            ktime_ns: 5,
            cpu: 1,
            ..Head::new_zeroed()
        };
        Record {
            head,
            connection,
            segments: 3,
            kind,
        }
    }

    #[test]
    fn a_record_tells_what_was_sent_again_and_why() {
        for (kind, name) in KINDS.iter().enumerate() {
            let seen = observe(&record(kind as u32)).unwrap();
            assert_eq!(seen.reason.as_deref(), Some(*name));
        }
        let seen = observe(&record(kind::RTO)).unwrap();
        assert_eq!((seen.kind, seen.direction), (TCPRETRANS, Direction::Egress));
        assert_eq!(seen.netns, Some(NetnsKey { inode: 7, cookie: 70 }));
        assert_eq!((seen.saddr, seen.sport), (Some([10, 0, 0, 1].into()), Some(40_001)));
        assert_eq!((seen.daddr, seen.dport), (Some([10, 0, 0, 2].into()), Some(443)));
        assert_eq!(seen.attributes, [("segments", "3".into())]);
    }

    #[test]
    fn a_kind_that_is_none_is_refused_and_any_bytes_do_no_harm() {
        let error = observe(&record(7)).unwrap_err().to_string();
        assert_eq!(error, "record says the kind of a retransmit is 7");
        for byte in 0..=255 {
            let record = Record::read_from_bytes(&[byte; size_of::<Record>()]).unwrap();
            assert_eq!(observe(&record).is_ok(), byte == 0);
        }
    }
}
