//! TCP resets, sent and received: tracepoints tcp:tcp_send_reset and tcp:tcp_receive_reset.
//!
//! A reset that hits a TIME_WAIT socket or a connection request is not "received" in the kernel's eyes, and one that a
//! firewall makes (nftables `reject with tcp reset`) is not "sent": neither is told of.

use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use sonde_ebpf_common::record::kind as records;
use sonde_ebpf_common::reset::{HELD, HOLD_NS, Held, Key, NO_REASON, Record, Resets, STATES, Told, flag, kind, slot};
use sonde_ebpf_common::{limit, lost};

use crate::catalogue::{ColumnSpec, EventTypeSpec, LabelSpec, ProbeSpec};
use crate::event::{Direction, NetnsKey, Observation};
use crate::kernel::btf::{Btf, Kind};
use crate::kernel::clock::monotonic_ns;
use crate::kernel::connection;
use crate::kernel::counted::{self, Counted};
use crate::kernel::facts::{Facts, Release};
use crate::kernel::plan::{Attach, Bucket, Hook, Rung, Signal, Step};
use crate::kernel::probe::{
    Decoded, Decoder, Decoders, Defaults, Host, KernelProbe, Opened, Reader, Round, Setup, Standing, count_keys,
};
use crate::kernel::record::{self, RecordError};
use crate::kernel::symbols::Symbols;
use crate::kernel::sys::{BatchBuffer, RawMap};
use crate::table::Table;

const SPEC: ProbeSpec = ProbeSpec {
    name: "tcpreset",
    help: "TCP resets sent and received",
    source: "eBPF on tracepoints tcp:tcp_send_reset (Linux net/ipv4/tcp_ipv4.c, tcp_output.c; for segments without a socket \
             since 6.10, before that functions tcp_v4_send_reset and tcp_v6_send_reset) and tcp:tcp_receive_reset \
             (net/ipv4/tcp_input.c)",
    labels: &[LabelSpec {
        name: "type",
        help: "nosock, process, active: sent, as the event types say; receive: received",
    }],
    columns: &[ColumnSpec::counter("resets", "", "TCP resets")],
    event_types: &[
        EventTypeSpec {
            name: "TCPRESET_NOSOCK",
            help: "A reset was sent as no socket was there for a segment, such as a SYN to a closed port",
        },
        EventTypeSpec {
            name: "TCPRESET_PROCESS",
            help: "A reset was sent as a socket (also in TIME_WAIT) did not accept a segment",
        },
        EventTypeSpec {
            name: "TCPRESET_ACTIVE",
            help: "A reset was sent as this side gave the connection up: closed with data unread, lingering, time-outs",
        },
        EventTypeSpec {
            name: "TCPRESET_RECEIVE",
            help: "A reset was received; saddr is its sender",
        },
    ],
};

/// By position in `sonde_ebpf_common::reset::kind`: label, event type, its bucket.
const KINDS: [(&str, &str, usize); 4] = [
    ("nosock", "TCPRESET_NOSOCK", limit::TCPRESET_NOSOCK),
    ("process", "TCPRESET_PROCESS", limit::TCPRESET_PROCESS),
    ("active", "TCPRESET_ACTIVE", limit::TCPRESET_ACTIVE),
    ("receive", "TCPRESET_RECEIVE", limit::TCPRESET_RECEIVE),
];
const _: () = assert!(kind::RECEIVE as usize == KINDS.len() - 1);

pub(super) const PROBE: KernelProbe = KernelProbe {
    spec: &SPEC,
    node_only: false,
    defaults: Defaults::ON,
    signals: &[&COUNT, &EVENTS],
    maps: &[
        ("TCPRESET_COUNTS", count_keys),
        ("TCPRESET_HELD", |_| HELD),
        ("TCPRESET_TOLD", |_| HELD),
        ("TCPRESET_STATES", |_| STATES),
    ],
    uncounted: Some((lost::TCPRESET, "resets that are in no row: the map of counts was full")),
    prepare,
};

const COUNT: Signal = Signal {
    name: "tcpreset.count",
    probe: SPEC.name,
    rows: true,
    buckets: &[],
    steps: &[
        Step {
            needs: WITH_ALL,
            unfit: null_in_doubt,
            ..Step::new(
                Rung::TpBtf,
                &[
                    Hook("reset_send_count_btf", Attach::TpBtf("tcp_send_reset")),
                    Hook("reset_receive_count_btf", Attach::TpBtf("tcp_receive_reset")),
                ],
            )
        },
        Step {
            needs: WITH_ALL,
            ..Step::new(
                Rung::RawTracepoint,
                &[
                    Hook("reset_send_count_raw", Attach::RawTracepoint("tcp_send_reset")),
                    Hook("reset_receive_count_raw", Attach::RawTracepoint("tcp_receive_reset")),
                ],
            )
        },
        Step {
            needs: FUNCTIONS,
            ..Step::new(
                Rung::Fentry,
                &[
                    Hook("reset_v4_count_fentry", Attach::Fentry(&["tcp_v4_send_reset"])),
                    Hook("reset_v6_count_fentry", Attach::Fentry(&["tcp_v6_send_reset"])),
                    Hook("reset_active_count_raw", Attach::RawTracepoint("tcp_send_reset")),
                    Hook("reset_receive_count_raw", Attach::RawTracepoint("tcp_receive_reset")),
                ],
            )
        },
        Step {
            needs: FUNCTIONS,
            ..Step::new(
                Rung::Kprobe,
                &[
                    Hook("reset_v4_count_kprobe", Attach::Kprobe(&["tcp_v4_send_reset"])),
                    Hook("reset_v6_count_kprobe", Attach::Kprobe(&["tcp_v6_send_reset"])),
                    Hook("reset_active_count_raw", Attach::RawTracepoint("tcp_send_reset")),
                    Hook("reset_receive_count_raw", Attach::RawTracepoint("tcp_receive_reset")),
                ],
            )
        },
    ],
    needs: NEEDS,
    missed: "resets that were not counted",
    provoke: Some(refuse_a_connection),
    ..Signal::PLAIN
};

const EVENTS: Signal = Signal {
    name: "tcpreset.events",
    probe: SPEC.name,
    rows: false,
    buckets: &[
        bucket(limit::TCPRESET_NOSOCK),
        bucket(limit::TCPRESET_PROCESS),
        bucket(limit::TCPRESET_ACTIVE),
        bucket(limit::TCPRESET_RECEIVE),
    ],
    steps: &[
        Step {
            needs: WITH_ALL,
            unfit: null_in_doubt,
            ..Step::new(
                Rung::TpBtf,
                &[
                    Hook("reset_state_btf", Attach::TpBtf("inet_sock_set_state")),
                    Hook("reset_send_event_btf", Attach::TpBtf("tcp_send_reset")),
                    Hook("reset_receive_event_btf", Attach::TpBtf("tcp_receive_reset")),
                ],
            )
        },
        Step {
            needs: WITH_ALL,
            ..Step::new(
                Rung::RawTracepoint,
                &[
                    Hook("reset_state_raw", Attach::RawTracepoint("inet_sock_set_state")),
                    Hook("reset_send_event_raw", Attach::RawTracepoint("tcp_send_reset")),
                    Hook("reset_receive_event_raw", Attach::RawTracepoint("tcp_receive_reset")),
                ],
            )
        },
        Step {
            needs: FUNCTIONS,
            ..Step::new(
                Rung::Fentry,
                &[
                    Hook("reset_state_raw", Attach::RawTracepoint("inet_sock_set_state")),
                    Hook("reset_v4_event_fentry", Attach::Fentry(&["tcp_v4_send_reset"])),
                    Hook("reset_v6_event_fentry", Attach::Fentry(&["tcp_v6_send_reset"])),
                    Hook("reset_active_event_raw", Attach::RawTracepoint("tcp_send_reset")),
                    Hook("reset_receive_event_raw", Attach::RawTracepoint("tcp_receive_reset")),
                ],
            )
        },
        Step {
            needs: FUNCTIONS,
            ..Step::new(
                Rung::Kprobe,
                &[
                    Hook("reset_state_raw", Attach::RawTracepoint("inet_sock_set_state")),
                    Hook("reset_v4_event_kprobe", Attach::Kprobe(&["tcp_v4_send_reset"])),
                    Hook("reset_v6_event_kprobe", Attach::Kprobe(&["tcp_v6_send_reset"])),
                    Hook("reset_active_event_raw", Attach::RawTracepoint("tcp_send_reset")),
                    Hook("reset_receive_event_raw", Attach::RawTracepoint("tcp_receive_reset")),
                ],
            )
        },
    ],
    needs: NEEDS,
    missed: "resets that could make no event",
    provoke: None,
    ..Signal::PLAIN
};

const fn bucket(position: usize) -> Bucket {
    Bucket {
        position,
        held: "events beyond events.rate",
    }
}

/// With a reason, since 6.10, the tracepoint also speaks of resets without a socket and from TIME_WAIT.
const WITH_ALL: &[&str] = &["SEND_RESET_REASON"];

const FUNCTIONS: &[&str] = &[
    "V4_SEND_RESET_SK",
    "V4_SEND_RESET_SKB",
    "V6_SEND_RESET_SK",
    "V6_SEND_RESET_SKB",
];

const NEEDS: &[&str] = &[
    "SEND_RESET_SK",
    "SEND_RESET_SKB",
    "RECEIVE_RESET_SK",
    "SET_STATE_SK",
    "SET_STATE_OLD",
    "SET_STATE_NEW",
    "SKB_DEV",
    "SKB_SK",
    "SKB_HEAD",
    "SKB_NETWORK_HEADER",
    "SKB_TRANSPORT_HEADER",
    "SKB_PROTOCOL",
    "DEV_NET",
    "SOCK_FAMILY",
    "SOCK_STATE",
    "SOCK_PORT",
    "SOCK_PEER_PORT",
    "SOCK_ADDRESS",
    "SOCK_PEER_ADDRESS",
    "SOCK_SHUTDOWN",
    "INET_PORT",
    "SOCK_NET",
    "NET_INODE",
];

/// Socket and packet of tcp_send_reset may each be NULL.
fn null_in_doubt(facts: &Facts) -> Option<String> {
    let doubtful = facts
        .release
        .is_none_or(|release| (Release(6, 2)..Release(6, 13)).contains(&release));
    doubtful.then(|| "this kernel's verifier may delete checks for NULL arguments (Linux 6.2 to 6.12)".to_owned())
}

fn prepare(host: &Host<'_>) -> Setup {
    let symbols = Arc::clone(&host.symbols);
    let reasons = host.btf.map(reasons).unwrap_or_default();
    Setup::new(move |object| {
        let reader = Counts {
            counts: Counted::new(object.map("TCPRESET_COUNTS")?),
            held: object.map("TCPRESET_HELD")?,
            buffer: BatchBuffer::default(),
        };
        let told = Some(object.map("TCPRESET_TOLD")?);
        Ok(Opened {
            reader: Box::new(reader),
            decoders: decoders(told, &symbols, reasons),
        })
    })
}

pub(super) fn decoders(
    told: Option<RawMap<u32, Told>>,
    symbols: &Arc<Symbols>,
    reasons: HashMap<u32, Arc<str>>,
) -> Decoders {
    let symbols = Arc::clone(symbols);
    vec![(records::RESET, Box::new(Reset { told, symbols, reasons }))]
}

/// Names of `enum sk_rst_reason` (since 6.10) without their prefix. Its numbers move.
fn reasons(btf: &Btf) -> HashMap<u32, Arc<str>> {
    let found = btf.find(Kind::Enum, "sk_rst_reason");
    let all = found.into_iter().flat_map(|(_, reasons)| reasons.enumerators());
    all.filter(|(name, _)| !name.ends_with("_MAX"))
        .filter_map(|(name, number)| {
            let name = name.strip_prefix("SK_RST_REASON_").unwrap_or(name);
            Some((u32::try_from(number).ok()?, Arc::from(name)))
        })
        .collect()
}

impl counted::Key for Key {
    fn netns(&self) -> NetnsKey {
        NetnsKey {
            inode: self.netns,
            cookie: self.cookie,
        }
    }
}

impl counted::Value for Resets {
    fn add(&mut self, other: &Self) {
        self.resets += other.resets;
    }

    fn count(&self) -> u64 {
        self.resets
    }
}

struct Counts {
    counts: Counted<Key, Resets>,
    held: RawMap<u32, Held>,
    buffer: BatchBuffer<u32, Held>,
}

impl Reader for Counts {
    fn read(&mut self, round: &Round<'_>) -> io::Result<Table> {
        let Self { counts, held, buffer } = self;
        let now = monotonic_ns();
        let name = |key: &Key| KINDS.get(key.kind as usize).map_or("other", |(label, ..)| *label);
        let sums = counts.read_with(round, name, || no_longer_in_doubt(held, buffer, now))?;
        let mut table = Table::with_capacity(&SPEC, round.time_ns, sums.len());
        for (subject, label, count) in sums {
            table.push(subject, [label.into()], &[count.resets as i64]);
        }
        Ok(table)
    }

    fn seen(&mut self) -> io::Result<u64> {
        self.counts.seen()
    }

    fn standing(&self) -> Standing {
        self.counts.standing()
    }
}

/// Received resets that are held, and were not taken back in their time.
fn no_longer_in_doubt(
    held: &RawMap<u32, Held>,
    buffer: &mut BatchBuffer<u32, Held>,
    now: u64,
) -> io::Result<Vec<(Key, Resets)>> {
    let mut out = Vec::new();
    held.for_each(buffer, |_, held| {
        for held in held {
            if held.socket != 0 && now.saturating_sub(held.ktime_ns) >= HOLD_NS {
                let key = Key {
                    cookie: held.cookie,
                    netns: held.netns,
                    kind: kind::RECEIVE,
                };
                out.push((key, Resets { resets: 1 }));
            }
        }
    })?;
    Ok(out)
}

struct Reset {
    /// Absent where no program writes it: then nothing is held.
    told: Option<RawMap<u32, Told>>,
    symbols: Arc<Symbols>,
    reasons: HashMap<u32, Arc<str>>,
}

impl Decoder for Reset {
    fn decode(&mut self, bytes: &[u8]) -> Result<Decoded, Box<dyn Error>> {
        let (record, stack) = record::parse::<Record>(bytes, |record| &record.head)?;
        let (bucket, mut seen) = observe(&record, &self.reasons)?;
        if record.flags & flag::HELD != 0 && self.was_mistaken(&record)? {
            return Ok(Decoded::Nothing);
        }
        seen.stack = self.symbols.stack(&stack);
        Ok(Decoded::Event(bucket, Box::new(seen)))
    }
}

/// How long a record waits until it is believed. Less than [`HOLD_NS`], which counts are held for, as all records behind it
/// wait too, in a ring that has an end.
const TELL_AFTER_NS: u64 = 10_000_000;

impl Reset {
    /// Waits until it is clear. Records behind this one are older by then, so this is done once for many.
    fn was_mistaken(&self, record: &Record) -> io::Result<bool> {
        let Some(told) = &self.told else { return Ok(false) };
        let age = monotonic_ns().saturating_sub(record.head.ktime_ns);
        std::thread::sleep(Duration::from_nanos(TELL_AFTER_NS.saturating_sub(age)));
        let told = told.get(&slot(record.socket, HELD))?;
        let same = |told: &Told| told.socket == record.socket && told.ktime_ns == record.head.ktime_ns;
        Ok(told.into_iter().flatten().any(|told| same(&told) && told.mistaken != 0))
    }
}

/// All but the stack, and the bucket.
fn observe(record: &Record, reasons: &HashMap<u32, Arc<str>>) -> Result<(usize, Observation), RecordError> {
    let (_, name, bucket) = KINDS.get(record.kind as usize).ok_or(RecordError::Value {
        what: "the kind of a reset",
        value: record.kind.into(),
    })?;
    let received = record.kind == kind::RECEIVE;
    let reason = match record.reason {
        NO_REASON => None,
        number => Some(
            reasons
                .get(&number)
                .cloned()
                .unwrap_or_else(|| format!("REASON_{number}").into()),
        ),
    };
    let mut seen = Observation {
        ktime_ns: record.head.ktime_ns,
        probe: SPEC.name,
        kind: name,
        netns: record::netns(&record.head),
        reason,
        direction: if received {
            Direction::Ingress
        } else {
            Direction::Egress
        },
        cpu: Some(record.head.cpu),
        ..Observation::default()
    };
    connection::fill(&mut seen, &record.connection);
    if received {
        // The sender of the reset is the other end.
        std::mem::swap(&mut seen.saddr, &mut seen.daddr);
        std::mem::swap(&mut seen.sport, &mut seen.dport);
    }
    Ok((*bucket, seen))
}

/// A connection to a port of the loopback address that was just closed.
fn refuse_a_connection() -> io::Result<()> {
    let closed = std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?;
    match std::net::TcpStream::connect(closed) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error),
        Ok(_) => Err(io::Error::other("somebody took the port")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::btf::write::Writer;
    use sonde_ebpf_common::connection::{AF_INET6, Connection};
    use std::net::IpAddr;
    use zerocopy::{FromBytes as _, FromZeros as _};

    fn record(kind: u32) -> Record {
        let mut connection = Connection::new_zeroed();
        (connection.sport, connection.dport, connection.family) = (7_401, 41_001, AF_INET6);
        (connection.saddr[15], connection.daddr[15]) = (1, 2);
        connection.state = 5;
        Record {
            connection,
            kind,
            reason: 1,
            ..Record::new_zeroed()
        }
    }

    fn names() -> HashMap<u32, Arc<str>> {
        HashMap::from([(1, "NO_SOCKET".into())])
    }

    #[test]
    fn the_sender_of_a_reset_comes_first_also_where_it_was_received() {
        let [one, two]: [IpAddr; 2] = ["::1", "::2"].map(|address| address.parse().unwrap());
        for (number, (_, name, bucket)) in KINDS.iter().enumerate() {
            let (of, seen) = observe(&record(number as u32), &names()).unwrap();
            assert_eq!((of, seen.kind), (*bucket, *name));
            let received = number as u32 == kind::RECEIVE;
            let sender = if received { (two, 41_001) } else { (one, 7_401) };
            assert_eq!((seen.saddr, seen.sport), (Some(sender.0), Some(sender.1)), "{name}");
            assert_eq!(seen.direction == Direction::Ingress, received);
            assert_eq!(seen.state.as_deref(), Some("TCP_FIN_WAIT2"));
        }
    }

    #[test]
    fn reasons_have_the_running_kernels_names() {
        let w = &mut Writer::new();
        let values = [
            ("SK_RST_REASON_NOT_SPECIFIED", 0),
            ("SK_RST_REASON_TCP_STATE", 14),
            ("SK_RST_REASON_MAX", 25),
        ];
        w.enumeration("sk_rst_reason", &values);
        let names = reasons(&Btf::parse(w.finish()).unwrap());
        let reason = |number| {
            let record = Record {
                reason: number,
                ..record(0)
            };
            observe(&record, &names).unwrap().1.reason
        };
        assert_eq!(reason(14).as_deref(), Some("TCP_STATE"));
        assert_eq!(reason(25).as_deref(), Some("REASON_25"), "the mark is no reason");
        assert_eq!(reason(NO_REASON), None);
    }

    #[test]
    fn a_kind_that_is_none_is_refused_and_any_bytes_do_no_harm() {
        assert!(observe(&record(4), &names()).is_err());
        for byte in 0..=255 {
            let record = Record::read_from_bytes(&[byte; size_of::<Record>()]).unwrap();
            assert_eq!(observe(&record, &names()).is_ok(), byte == 0);
        }
    }

    #[test]
    fn where_null_may_be_taken_for_a_pointer_the_typed_tracepoint_is_not_used() {
        let at = |major, minor| {
            let mut facts = crate::kernel::facts::gather(&off()).0;
            facts.release = Some(Release(major, minor));
            null_in_doubt(&facts).is_some()
        };
        assert_eq!([at(6, 1), at(6, 2), at(6, 12), at(6, 13)], [false, true, true, false]);
    }

    fn off() -> sonde_common::config::Config {
        serde_json::from_str(r#"{"kernel":{"ebpf":"off"}}"#).unwrap()
    }
}
