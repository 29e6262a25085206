//! How long packets are on their way through the stack: from the device to the socket, and from the protocol to the
//! device's queue. Off by default: it runs for every packet.
//!
//! Receiving begins when a driver, or the other end of a veth pair, gives the packet to the stack, after GRO: what a packet
//! waits for its CPU is in it. A bridge, a tunnel or a second device begins anew. It ends when an established TCP connection
//! takes the segment, the time that the socket was busy with another task included, or when a datagram is in its UDP
//! socket's queue. Sending begins when TCP makes the segment, of UDP when the IP layer has the datagram, and ends at the
//! queue of each device that it passes in its own namespace; what is paced to leave later and acknowledgements without data
//! are left out.
//!
//! Where functions of the IP layer can be hooked, there is UDP, netfilter's share, and what the time of a slow packet is
//! made of; no tracepoint tells these. A link of netfilter's own kind (Linux 6.4) at the first and the last place of a hook
//! could tell its share without, but where there are no rules it is what makes packets pass through the hook at all.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use sonde_ebpf_common::kernellatency::{ARRIVALS, Key, Record, TCP, Times, UDP, UNKNOWN};
use sonde_ebpf_common::record::kind;
use sonde_ebpf_common::{limit, lost};

use crate::catalogue::{ColumnSpec, EventTypeSpec, LabelSpec, ProbeSpec};
use crate::event::{Direction, NetnsKey, Observation};
use crate::kernel::counted::{self, Counted};
use crate::kernel::latency::{self, LATENCY_BOUNDS};
use crate::kernel::packets;
use crate::kernel::plan::{Attach, Bucket, Hook, Rung, Signal, Step};
use crate::kernel::probe::{
    Decoded, Decoder, Decoders, Defaults, Host, KernelProbe, Live, Opened, Reader, Round, Setup, Standing, key_budget,
};
use crate::kernel::record::{self, RecordError};
use crate::kernel::symbols::Symbols;
use crate::table::{ABSENT, Table};

const RECEIVE: &str = "RXKERNEL_SLOW";
const SEND: &str = "TXKERNEL_SLOW";

const SPEC: ProbeSpec = ProbeSpec {
    name: "kernellatency",
    help: "Time of packets in the kernel's stack; of a sample where probes.kernellatency.sample is above 1",
    source: "eBPF on tracepoints net:netif_rx, net:netif_receive_skb, tcp:tcp_probe and net:net_dev_queue (Linux net/core/dev.c, \
             net/ipv4/tcp_input.c); for UDP, netfilter's share and the parts of a time also on functions ip_rcv_core, \
             ip_local_deliver_finish, __ip_local_out, those of IPv6, nf_hook_slow and __udp_enqueue_schedule_skb, as the kernel has \
             no tracepoint in netfilter or the IP layer: where it takes no programs at functions, these are absent",
    labels: &[LabelSpec {
        name: "protocol",
        help: "tcp, or udp where functions can be hooked",
    }],
    columns: &[
        ColumnSpec::histogram(
            "receive_seconds",
            "seconds",
            "Time from a packet's arrival at the stack until its TCP connection took it or its UDP socket had it in its queue",
            LATENCY_BOUNDS,
        )
        .scaled(1e-9),
        ColumnSpec::counter(
            "receive_over_1ms",
            "",
            "Packets that took longer than 1 ms to their socket",
        ),
        ColumnSpec::counter(
            "receive_over_10ms",
            "",
            "Packets that took longer than 10 ms to their socket",
        ),
        ColumnSpec::counter(
            "receive_over_100ms",
            "",
            "Packets that took longer than 100 ms to their socket",
        ),
        ColumnSpec::histogram(
            "send_seconds",
            "seconds",
            "Time from the making of a TCP segment, or from a UDP datagram's beginning in the IP layer, until a device's queue had it",
            LATENCY_BOUNDS,
        )
        .scaled(1e-9),
        ColumnSpec::counter(
            "send_over_1ms",
            "",
            "Packets that took longer than 1 ms to a device's queue",
        ),
        ColumnSpec::counter(
            "send_over_10ms",
            "",
            "Packets that took longer than 10 ms to a device's queue",
        ),
        ColumnSpec::counter(
            "send_over_100ms",
            "",
            "Packets that took longer than 100 ms to a device's queue",
        ),
        ColumnSpec::histogram(
            "receive_netfilter_seconds",
            "seconds",
            "Of receive_seconds, what netfilter's hooks had; packets that passed none are not in it. Absent where functions cannot be hooked",
            LATENCY_BOUNDS,
        )
        .scaled(1e-9),
        ColumnSpec::histogram(
            "send_netfilter_seconds",
            "seconds",
            "Of send_seconds, what netfilter's hooks had; packets that passed none are not in it. Absent where functions cannot be hooked",
            LATENCY_BOUNDS,
        )
        .scaled(1e-9),
        ColumnSpec::counter(
            "unmatched",
            "",
            "Packets that a socket took of which it is not known when they arrived; 0 for samples",
        ),
    ],
    event_types: &[
        EventTypeSpec {
            name: RECEIVE,
            help: "A packet took longer from the device to its socket than probes.kernellatency.threshold. Where functions can be hooked: attributes device_ns (until the IP layer had it, the wait for its CPU included), ip_ns (in the IP layer, without hooks), netfilter_ns, transport_ns (from there to the socket)",
        },
        EventTypeSpec {
            name: SEND,
            help: "A packet took longer from its protocol to the device's queue than probes.kernellatency.threshold. Where functions can be hooked: attributes transport_ns (TCP, until the IP layer had it), ip_ns (in the IP layer, without hooks), netfilter_ns",
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
    signals: &[&TIME, &STAGES],
    maps: &[
        ("KERNELLATENCY_ARRIVALS", |_| ARRIVALS as u32),
        ("KERNELLATENCY_ANCHOR", |_| 1),
        ("KERNELLATENCY_HOOKED", |_| 1),
        ("KERNELLATENCY_RX_TURNS", |_| 1),
        ("KERNELLATENCY_TX_TURNS", |_| 1),
        ("KERNELLATENCY_TIMES", |cpus| key_budget(cpus, size_of::<Times>())),
    ],
    uncounted: Some((
        lost::KERNELLATENCY,
        "packets whose times are in no row: the map of namespaces was full",
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
            held: "events of received packets beyond events.rate",
        },
        Bucket {
            position: limit::TXKERNEL_SLOW,
            held: "events of sent packets beyond events.rate",
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
    missed: "packets whose times were not taken",
    provoke: None,
    ..Signal::PLAIN
};

/// Hooks of the functions of the IP layer. Exits first: what was entered before is not looked for.
const STAGES: Signal = Signal {
    name: "kernellatency.stages",
    probe: SPEC.name,
    rows: false,
    buckets: &[],
    steps: &[
        Step::new(
            Rung::Fentry,
            &[
                Hook("stage_hooked_fexit", Attach::Fexit(&["nf_hook_slow"])),
                Hook("stage_hook_fentry", Attach::Fentry(&["nf_hook_slow"])),
                Hook("stage_ip4_in_fentry", Attach::Fentry(&["ip_rcv_core"])),
                Hook("stage_ip6_in_fentry", Attach::Fentry(&["ip6_rcv_core"])),
                Hook("stage_ip4_up_fentry", Attach::Fentry(&["ip_local_deliver_finish"])),
                Hook("stage_ip6_up_fentry", Attach::Fentry(&["ip6_protocol_deliver_rcu"])),
                Hook("stage_ip4_out_fentry", Attach::Fentry(&["__ip_local_out"])),
                Hook("stage_ip6_out_fentry", Attach::Fentry(&["__ip6_local_out"])),
                // TCP's segments, which do not pass the one above.
                Hook("stage_tcp6_out_fentry", Attach::Fentry(&["ip6_xmit"])),
                Hook(STAGE_PROGRAMS[0], Attach::Fentry(&["__udp_enqueue_schedule_skb"])),
            ],
        ),
        Step::new(
            Rung::Kprobe,
            &[
                Hook("stage_hooked_kretprobe", Attach::Kretprobe(&["nf_hook_slow"])),
                Hook("stage_hook_kprobe", Attach::Kprobe(&["nf_hook_slow"])),
                Hook("stage_ip4_in_kprobe", Attach::Kprobe(&["ip_rcv_core"])),
                Hook("stage_ip6_in_kprobe", Attach::Kprobe(&["ip6_rcv_core"])),
                Hook("stage_ip4_up_kprobe", Attach::Kprobe(&["ip_local_deliver_finish"])),
                Hook("stage_ip6_up_kprobe", Attach::Kprobe(&["ip6_protocol_deliver_rcu"])),
                Hook("stage_ip4_out_kprobe", Attach::Kprobe(&["__ip_local_out"])),
                Hook("stage_ip6_out_kprobe", Attach::Kprobe(&["__ip6_local_out"])),
                Hook("stage_tcp6_out_kprobe", Attach::Kprobe(&["ip6_xmit"])),
                Hook(STAGE_PROGRAMS[1], Attach::Kprobe(&["__udp_enqueue_schedule_skb"])),
            ],
        ),
    ],
    needs: &[
        "IP_RCV_CORE_SKB",
        "IP6_RCV_CORE_SKB",
        "IP_DELIVER_SKB",
        "IP6_DELIVER_SKB",
        "IP_LOCAL_OUT_SKB",
        "IP6_LOCAL_OUT_SKB",
        "IP6_XMIT_SKB",
        "HOOK_SLOW_SKB",
        "UDP_ENQUEUE_SK",
        "UDP_ENQUEUE_SKB",
    ],
    no_tracepoint: Some("the kernel has none in netfilter, nor where a packet comes into the IP layer or leaves it"),
    missed: "packets whose way through the IP layer was not seen",
    provoke: None,
    after: Some(TIME.name),
    ..Signal::PLAIN
};

/// The last programs of its steps: where one runs, all of its step do.
const STAGE_PROGRAMS: [&str; 2] = ["stage_udp_fentry", "stage_udp_kprobe"];

fn prepare(host: &Host<'_>) -> Setup {
    let symbols = Arc::clone(&host.symbols);
    let live = Arc::clone(&host.live);
    Setup::new(move |object| {
        let reader = Namespaces {
            times: Counted::new(object.map("KERNELLATENCY_TIMES")?),
            sees_hooks: STAGE_PROGRAMS.iter().any(|program| object.runs(program)),
        };
        Ok(Opened {
            reader: Box::new(reader),
            decoders: decoders(&symbols, &live),
        })
    })
}

pub(super) fn decoders(symbols: &Arc<Symbols>, live: &Arc<Live>) -> Decoders {
    let decoder = |position| -> Box<dyn Decoder> {
        Box::new(Long {
            position,
            live: Arc::clone(live),
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
        self.receive_hooks.add(&other.receive_hooks);
        self.send_hooks.add(&other.send_hooks);
        self.unmatched += other.unmatched;
    }

    fn count(&self) -> u64 {
        self.receive.count() + self.send.count() + self.unmatched
    }
}

struct Namespaces {
    times: Counted<Key, Times>,
    /// Whether netfilter's share is known.
    sees_hooks: bool,
}

impl Reader for Namespaces {
    fn read(&mut self, round: &Round<'_>) -> io::Result<Table> {
        let sums = self.times.read(round, |key| key.protocol)?;
        let mut table = Table::with_capacity(&SPEC, round.time_ns, sums.len());
        let mut values = Vec::new();
        for (subject, protocol, times) in sums {
            values.clear();
            latency::push(&mut values, &times.receive);
            latency::push(&mut values, &times.send);
            for hooks in [&times.receive_hooks, &times.send_hooks] {
                match self.sees_hooks {
                    true => latency::push_histogram(&mut values, hooks),
                    false => values.extend([ABSENT; LATENCY_BOUNDS.len() + 2]),
                }
            }
            values.push(times.unmatched as i64);
            let protocol = match protocol {
                TCP => "tcp",
                UDP => "udp",
                _ => "other",
            };
            table.push(subject, [protocol.into()], &values);
        }
        Ok(table)
    }

    fn seen(&mut self) -> io::Result<u64> {
        self.times.seen()
    }

    fn standing(&self) -> Standing {
        self.times.standing()
    }
}

struct Long {
    /// Of its type in `sonde_ebpf_common::limit`.
    position: usize,
    live: Arc<Live>,
    symbols: Arc<Symbols>,
}

impl Decoder for Long {
    fn decode(&mut self, bytes: &[u8]) -> Result<Decoded, Box<dyn Error>> {
        let (record, stack) = record::parse::<Record>(bytes, |record| &record.head)?;
        let mut seen = observe(&record, self.position == limit::RXKERNEL_SLOW, self.live.sample())?;
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
    let parts = [
        ("device_ns", record.device_ns),
        ("ip_ns", record.ip_ns),
        ("netfilter_ns", record.hooks_ns),
        ("transport_ns", record.transport_ns),
    ];
    let known = parts.iter().filter(|(_, ns)| *ns != UNKNOWN);
    seen.attributes
        .extend(known.map(|(name, ns)| (*name, ns.to_string().into())));
    packets::sampled(&mut seen, sample);
    packets::fill(&mut seen, &record.packet)?;
    Ok(seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::probe::live_with_sample as live;
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
            device_ns: 15_000_000,
            ip_ns: 1_000_000,
            hooks_ns: UNKNOWN,
            transport_ns: 4_000_000,
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
            live: live(1),
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
            assert!(seen.attributes.contains(&("device_ns", "15000000".into())));
            assert!(!seen.attributes.iter().any(|(name, _)| *name == "netfilter_ns"));
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
