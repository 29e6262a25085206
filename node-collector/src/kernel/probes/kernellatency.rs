//! How long TCP segments are on their way through the stack: from the device to the socket, and from TCP to the device's
//! queue. Off by default: it runs for every packet.
//!
//! Receiving begins when a driver, or the other end of a veth pair, gives the packet to the stack, after GRO: what a packet
//! waits for its CPU is in it. A bridge, a tunnel or a second device begins anew. It ends when an established connection
//! takes the segment, the time that the socket was busy with another task included. Sending begins when TCP makes the
//! segment and ends at the queue of each device that it passes in its own namespace; what is paced to leave later and
//! acknowledgements without data are left out. Not here: UDP and other protocols, of which no tracepoint tells the end, and
//! netfilter's share, which only hooks on functions of the IP layer could tell.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use sonde_ebpf_common::kernellatency::{ARRIVALS, Key, Record, Times};
use sonde_ebpf_common::record::kind;
use sonde_ebpf_common::{limit, lost};

use crate::catalogue::{ColumnSpec, EventTypeSpec, ProbeSpec};
use crate::event::{Direction, NetnsKey, Observation};
use crate::kernel::counted::{self, Counted};
use crate::kernel::latency::{self, LATENCY_BOUNDS};
use crate::kernel::packets;
use crate::kernel::plan::{Attach, Bucket, Hook, Rung, Signal, Step};
use crate::kernel::probe::{
    Decoded, Decoder, Decoders, Defaults, Host, KernelProbe, Opened, Reader, Round, Setup, Standing, key_budget,
};
use crate::kernel::record::{self, RecordError};
use crate::kernel::symbols::Symbols;
use crate::table::Table;

const RECEIVE: &str = "RXKERNEL_SLOW";
const SEND: &str = "TXKERNEL_SLOW";

const SPEC: ProbeSpec = ProbeSpec {
    name: "kernellatency",
    help: "Time of TCP segments in the kernel's stack; of a sample where probes.kernellatency.sample is above 1",
    source: "eBPF on tracepoints net:netif_rx, net:netif_receive_skb, tcp:tcp_probe and net:net_dev_queue (Linux net/core/dev.c, \
             net/ipv4/tcp_input.c)",
    labels: &[],
    columns: &[
        ColumnSpec::histogram(
            "receive_seconds",
            "seconds",
            "Time from a TCP segment's arrival at the stack until its connection took it",
            LATENCY_BOUNDS,
        )
        .scaled(1e-9),
        ColumnSpec::counter(
            "receive_over_1ms",
            "",
            "TCP segments that took longer than 1 ms to their connection",
        ),
        ColumnSpec::counter(
            "receive_over_10ms",
            "",
            "TCP segments that took longer than 10 ms to their connection",
        ),
        ColumnSpec::counter(
            "receive_over_100ms",
            "",
            "TCP segments that took longer than 100 ms to their connection",
        ),
        ColumnSpec::histogram(
            "send_seconds",
            "seconds",
            "Time from the making of a TCP segment until a device's queue had it",
            LATENCY_BOUNDS,
        )
        .scaled(1e-9),
        ColumnSpec::counter(
            "send_over_1ms",
            "",
            "TCP segments that took longer than 1 ms to a device's queue",
        ),
        ColumnSpec::counter(
            "send_over_10ms",
            "",
            "TCP segments that took longer than 10 ms to a device's queue",
        ),
        ColumnSpec::counter(
            "send_over_100ms",
            "",
            "TCP segments that took longer than 100 ms to a device's queue",
        ),
        ColumnSpec::counter(
            "unmatched",
            "",
            "TCP segments that a connection took of which it is not known when they arrived; 0 for samples",
        ),
    ],
    event_types: &[
        EventTypeSpec {
            name: RECEIVE,
            help: "A TCP segment took longer from the device to its connection than probes.kernellatency.threshold",
        },
        EventTypeSpec {
            name: SEND,
            help: "A TCP segment took longer from TCP to the device's queue than probes.kernellatency.threshold",
        },
    ],
};

pub(super) const PROBE: KernelProbe = KernelProbe {
    spec: &SPEC,
    node_only: false,
    defaults: Defaults {
        enabled: false,
        threshold: Duration::from_millis(10),
        sample: 1,
    },
    signals: &[&TIME],
    maps: &[
        ("KERNELLATENCY_ARRIVALS", |_| ARRIVALS as u32),
        ("KERNELLATENCY_RX_TURNS", |_| 1),
        ("KERNELLATENCY_TX_TURNS", |_| 1),
        ("KERNELLATENCY_TIMES", |cpus| key_budget(cpus, size_of::<Times>())),
    ],
    uncounted: Some((
        lost::KERNELLATENCY,
        "segments whose times are in no row: the map of namespaces was full",
    )),
    prepare,
};

const TIME: Signal = Signal {
    name: "kernellatency.time",
    probe: SPEC.name,
    rows: true,
    buckets: &[
        Bucket {
            position: limit::RXKERNEL_SLOW,
            held: "events of received segments beyond events.rate",
        },
        Bucket {
            position: limit::TXKERNEL_SLOW,
            held: "events of sent segments beyond events.rate",
        },
    ],
    steps: &[
        Step::new(
            Rung::TpBtf,
            &[
                Hook("rx_wait_btf", Attach::TpBtf("netif_rx")),
                Hook("rx_begin_btf", Attach::TpBtf("netif_receive_skb")),
                Hook("rx_end_btf", Attach::TpBtf("tcp_probe")),
                Hook("tx_end_btf", Attach::TpBtf("net_dev_queue")),
            ],
        ),
        Step::new(
            Rung::RawTracepoint,
            &[
                Hook("rx_wait_raw", Attach::RawTracepoint("netif_rx")),
                Hook("rx_begin_raw", Attach::RawTracepoint("netif_receive_skb")),
                Hook("rx_end_raw", Attach::RawTracepoint("tcp_probe")),
                Hook("tx_end_raw", Attach::RawTracepoint("net_dev_queue")),
            ],
        ),
    ],
    needs: &[
        "NETIF_RX_SKB",
        "RECEIVE_SKB",
        "TCP_PROBE_SK",
        "TCP_PROBE_SKB",
        "NET_DEV_QUEUE_SKB",
        "SKB_DEV",
        "SKB_SK",
        "SKB_TSTAMP",
        "SKB_TRUESIZE",
        "SOCK_NET",
        "SOCK_STATE",
        "SOCK_PROTOCOL",
        "DEV_NET",
        "NET_INODE",
    ],
    missed: "segments whose times were not taken",
    provoke: None,
};

fn prepare(host: &Host<'_>) -> Setup {
    let symbols = Arc::clone(&host.symbols);
    let sample = host.settings.sample;
    Setup::new(move |object| {
        Ok(Opened {
            reader: Box::new(Namespaces(Counted::new(object.map("KERNELLATENCY_TIMES")?))),
            decoders: decoders(&symbols, sample),
        })
    })
}

pub(super) fn decoders(symbols: &Arc<Symbols>, sample: u32) -> Decoders {
    let decoder = |position| -> Box<dyn Decoder> {
        Box::new(Long {
            position,
            sample,
            symbols: Arc::clone(symbols),
        })
    };
    vec![
        (kind::RXKERNEL, decoder(limit::RXKERNEL_SLOW)),
        (kind::TXKERNEL, decoder(limit::TXKERNEL_SLOW)),
    ]
}

impl counted::Key for Key {
    fn netns(&self) -> NetnsKey {
        NetnsKey {
            inode: self.netns,
            cookie: self.cookie,
        }
    }
}

impl counted::Value for Times {
    fn add(&mut self, other: &Self) {
        self.receive.add(&other.receive);
        self.send.add(&other.send);
        self.unmatched += other.unmatched;
    }

    fn count(&self) -> u64 {
        self.receive.count() + self.send.count() + self.unmatched
    }
}

struct Namespaces(Counted<Key, Times>);

impl Reader for Namespaces {
    fn read(&mut self, round: &Round<'_>) -> io::Result<Table> {
        let sums = self.0.read(round, |key| key.netns)?;
        let mut table = Table::with_capacity(&SPEC, round.time_ns, sums.len());
        let mut values = Vec::new();
        for (subject, _, times) in sums {
            values.clear();
            latency::push(&mut values, &times.receive);
            latency::push(&mut values, &times.send);
            values.push(times.unmatched as i64);
            table.push(subject, [], &values);
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

struct Long {
    /// Of its type in `sonde_ebpf_common::limit`.
    position: usize,
    sample: u32,
    symbols: Arc<Symbols>,
}

impl Decoder for Long {
    fn decode(&mut self, bytes: &[u8]) -> Result<Decoded, Box<dyn Error>> {
        let (record, stack) = record::parse::<Record>(bytes, |record| &record.head)?;
        let mut seen = observe(&record, self.position == limit::RXKERNEL_SLOW, self.sample)?;
        seen.stack = self.symbols.stack(&stack);
        Ok(Decoded::Event(self.position, Box::new(seen)))
    }
}

/// All but the stack.
fn observe(record: &Record, received: bool, sample: u32) -> Result<Observation, RecordError> {
    let (kind, direction) = match received {
        true => (RECEIVE, Direction::Ingress),
        false => (SEND, Direction::Egress),
    };
    let mut seen = Observation {
        ktime_ns: record.head.ktime_ns,
        probe: SPEC.name,
        kind,
        netns: record::netns(&record.head),
        ifindex: record.ifindex,
        direction,
        latency_ns: Some(record.latency_ns),
        cpu: Some(record.head.cpu),
        attributes: vec![("length", record.len.to_string().into())],
        ..Observation::default()
    };
    packets::sampled(&mut seen, sample);
    packets::fill(&mut seen, &record.packet)?;
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sonde_ebpf_common::packet::Packet;
    use sonde_ebpf_common::record::Head;
    use zerocopy::IntoBytes as _;

    fn record() -> Record {
        let mut bytes = [0; 128];
        bytes[..34].copy_from_slice(&[
            0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x12, 0x34, 1, 0xbb, 0, 0, 0, 0, 0, 0,
            0, 0, 0x50, 0x18,
        ]);
        Record {
            head: Head {
                kind: kind::RXKERNEL,
                size: size_of::<Record>() as u32,
                ktime_ns: 5,
                cookie: 6,
                netns: 7,
                cpu: 1,
                tgid: 9,
                stack_bytes: 0,
            },
            latency_ns: 20_000_000,
            ifindex: 3,
            len: 100,
            packet: Packet {
                ethertype: 0x0800u16.to_be(),
                captured: 34,
                pad: 0,
                bytes,
            },
        }
    }

    fn decoder(position: usize) -> Long {
        Long {
            position,
            sample: 1,
            symbols: Arc::new(Symbols::new(std::path::Path::new("/nonexistent"))),
        }
    }

    #[test]
    fn a_record_tells_connection_direction_and_time() {
        for (position, kind, direction) in [
            (limit::RXKERNEL_SLOW, RECEIVE, Direction::Ingress),
            (limit::TXKERNEL_SLOW, SEND, Direction::Egress),
        ] {
            let Decoded::Event(at, seen) = decoder(position).decode(record().as_bytes()).unwrap() else {
                panic!("an event");
            };
            assert_eq!((at, seen.kind, seen.direction), (position, kind, direction));
            assert_eq!((seen.sport, seen.dport), (Some(4660), Some(443)));
            assert_eq!(
                (seen.protocol.as_deref(), seen.latency_ns),
                (Some("TCP"), Some(20_000_000))
            );
            assert!(seen.attributes.contains(&("tcp_flags", "PSH,ACK".into())));
            assert!(!seen.attributes.iter().any(|(name, _)| *name == "sample"));
        }
    }

    #[test]
    fn a_record_cut_off_anywhere_or_with_a_bad_length_is_an_error() {
        let mut decoder = decoder(limit::RXKERNEL_SLOW);
        let whole = record();
        for len in 0..whole.as_bytes().len() {
            assert!(decoder.decode(&whole.as_bytes()[..len]).is_err(), "{len}");
        }
        let mut bad = whole;
        bad.packet.captured = 129;
        assert!(decoder.decode(bad.as_bytes()).is_err());
    }
}
