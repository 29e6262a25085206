//! Traffic of each pod by the addresses it speaks with. Off by default: it runs for every packet.
//!
//! Packets are counted on every device of a listed namespace, so a device upon a device (VLAN, tunnel, bridge) shows the
//! same traffic once more under its own name; the sum over the rows of one device and direction is everything that the
//! device passed on, whether or not there was room for its flows. Not seen is what another program moves past the device:
//! Cilium's host routing (bpf_redirect_peer) gives packets to the pod's device without this tracepoint.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use sonde_ebpf_common::flow::{Count, Key, direction, family};
use sonde_ebpf_common::lost;

use crate::catalogue::{ColumnSpec, LabelSpec, ProbeSpec};
use crate::event::NetnsKey;
use crate::kernel::counted::{self, Counted};
use crate::kernel::packets;
use crate::kernel::plan::{Attach, Hook, Rung, Signal, Step};
use crate::kernel::probe::{Defaults, Host, KernelProbe, Opened, Reader, Round, Setup, Standing};
use crate::kernel::sys::{BPF_ANY, RawMap};
use crate::probes::packetloss::headers;
use crate::table::Table;

/// After which time a flow without packets is forgotten.
const IDLE: Duration = Duration::from_secs(300);

const SPEC: ProbeSpec = ProbeSpec {
    name: "flow",
    help: "Traffic by address; an estimate where probes.flow.sample is above 1",
    source: "eBPF on tracepoints net:net_dev_start_xmit and net:netif_receive_skb (Linux net/core/dev.c)",
    labels: &[
        LabelSpec {
            name: "device",
            help: "Name of the device in its network namespace",
        },
        LabelSpec {
            name: "direction",
            help: "ingress or egress, as the namespace sees it",
        },
        LabelSpec {
            name: "protocol",
            help: "TCP, UDP, ICMP, ICMPv6, SCTP, else the number of the IP protocol; empty where it is not IP",
        },
        LabelSpec {
            name: "src",
            help: "Source address; empty where it is not IP, `rest` for all flows beyond 1,024 of the namespace",
        },
        LabelSpec {
            name: "dst",
            help: "Destination address, as src",
        },
        LabelSpec {
            name: "sport",
            help: "Source port; empty where there is none, and unless probes.flow.ports is true",
        },
        LabelSpec {
            name: "dport",
            help: "Destination port, as sport",
        },
    ],
    columns: &[
        ColumnSpec::counter(
            "bytes",
            "bytes",
            "Bytes with link-layer headers, without frame check sequence; what segments of a GSO buffer have each counts for each",
        ),
        ColumnSpec::counter(
            "packets",
            "",
            "Packets as they are on the wire; segments of a GSO buffer count each",
        ),
    ],
    event_types: &[],
};

pub(super) const PROBE: KernelProbe = KernelProbe {
    spec: &SPEC,
    node_only: false,
    defaults: Defaults {
        enabled: false,
        threshold: Duration::ZERO,
        sample: 1,
    },
    signals: &[&COUNT],
    maps: &[
        ("FLOW_COUNTS", |cpus| if cpus > 16 { 8192 } else { 16_384 }),
        ("FLOW_USED", |_| 2048),
        ("FLOW_TURNS", |_| 1),
    ],
    uncounted: Some((lost::FLOW, "packets that are in no row: the map of flows was full")),
    prepare,
};

const COUNT: Signal = Signal {
    name: "flow.count",
    probe: SPEC.name,
    rows: true,
    buckets: &[],
    steps: &[
        Step::new(
            Rung::TpBtf,
            &[
                Hook("flow_sent_btf", Attach::TpBtf("net_dev_start_xmit")),
                Hook("flow_received_btf", Attach::TpBtf("netif_receive_skb")),
            ],
        ),
        Step::new(
            Rung::RawTracepoint,
            &[
                Hook("flow_sent_raw", Attach::RawTracepoint("net_dev_start_xmit")),
                Hook("flow_received_raw", Attach::RawTracepoint("netif_receive_skb")),
            ],
        ),
    ],
    needs: &[
        "START_XMIT_SKB",
        "START_XMIT_DEV",
        "RECEIVE_SKB",
        "SKB_DEV",
        "SKB_HEAD",
        "SKB_DATA",
        "SKB_LEN",
        "SKB_DATA_LEN",
        "SKB_MAC_HEADER",
        "SKB_NETWORK_HEADER",
        "SKB_TAIL",
        "SKB_END",
        "SKB_PROTOCOL",
        "SHARED_GSO_SIZE",
        "SHARED_GSO_SEGS",
        "DEV_NET",
        "DEV_NAME",
        "NET_INODE",
    ],
    missed: "packets that were not counted",
    provoke: None,
    ..Signal::PLAIN
};

fn prepare(host: &Host<'_>) -> Setup {
    let ports = host.config.probes.get(SPEC.name).is_some_and(|settings| settings.ports);
    Setup::new(|object| {
        Ok(Opened {
            reader: Box::new(Flows {
                counts: Counted::new(object.map("FLOW_COUNTS")?).forgets_idle(IDLE),
                used: object.map("FLOW_USED")?,
                known: HashMap::new(),
            }),
            decoders: Vec::new(),
        })
    })
    .global("FLOW_PORTS", &u32::from(ports))
}

impl counted::Key for Key {
    fn netns(&self) -> NetnsKey {
        NetnsKey {
            inode: self.netns,
            cookie: self.cookie,
        }
    }
}

impl counted::Value for Count {
    fn add(&mut self, other: &Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
    }

    fn count(&self) -> u64 {
        self.packets
    }
}

struct Flows {
    counts: Counted<Key, Count>,
    used: RawMap<u32, u64>,
    /// What `used` was last set to.
    known: HashMap<u32, u64>,
}

impl Flows {
    /// Gives the room of flows that went to new ones.
    fn make_room(&mut self) {
        let left = self.counts.left();
        for inode in self.known.keys().filter(|inode| !left.contains_key(inode)) {
            let _ = self.used.delete(inode);
        }
        for (inode, flows) in &left {
            // What it cannot be told now it is told the next time.
            let _ = self.used.set(inode, flows, BPF_ANY);
        }
        self.known = left;
    }
}

impl Reader for Flows {
    fn read(&mut self, round: &Round<'_>) -> io::Result<Table> {
        let sums = self.counts.read(round, labels)?;
        self.make_room();
        let mut table = Table::with_capacity(&SPEC, round.time_ns, sums.len());
        for (subject, labels, count) in sums {
            table.push(subject, labels, &[count.bytes as i64, count.packets as i64]);
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

fn labels(key: &Key) -> [Arc<str>; 7] {
    let direction = match key.direction {
        direction::EGRESS => "egress",
        _ => "ingress",
    };
    let port = |port: u16| match port {
        0 => "".into(),
        port => port.to_string().into(),
    };
    [
        packets::label(key.device),
        direction.into(),
        protocol(key),
        address(key.family, key.saddr),
        address(key.family, key.daddr),
        port(key.sport),
        port(key.dport),
    ]
}

fn protocol(key: &Key) -> Arc<str> {
    const SCTP: u8 = 132;
    match (key.protocol, key.family) {
        (0, family::OTHER | family::REST) => "".into(),
        (headers::TCP, _) => "TCP".into(),
        (headers::UDP, _) => "UDP".into(),
        (headers::ICMP, _) => "ICMP".into(),
        (headers::ICMPV6, _) => "ICMPv6".into(),
        (SCTP, _) => "SCTP".into(),
        (other, _) => other.to_string().into(),
    }
}

fn address(of: u8, words: [u32; 4]) -> Arc<str> {
    match of {
        family::IPV4 => Ipv4Addr::from(words[0].to_ne_bytes()).to_string().into(),
        family::IPV6 => {
            let mut octets = [0; 16];
            for (bytes, word) in octets.chunks_exact_mut(4).zip(words) {
                bytes.copy_from_slice(&word.to_ne_bytes());
            }
            Ipv6Addr::from(octets).to_string().into()
        }
        family::REST => "rest".into(),
        _ => "".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(family: u8, protocol: u8) -> Key {
        let word = |bytes: [u8; 4]| u32::from_ne_bytes(bytes);
        let mut device = [0; 8];
        device[..4].copy_from_slice(b"eth0");
        Key {
            cookie: 1,
            netns: 2,
            sport: 4660,
            dport: 0,
            saddr: [word([10, 0, 0, 1]), 0, 0, word([0, 0, 0, 1])],
            daddr: [word([0x20, 1, 0xd, 0xb8]), 0, 0, word([0, 0, 0, 2])],
            device: [u64::from_ne_bytes(device), 0],
            protocol,
            family,
            direction: direction::EGRESS,
            pad: [0; 5],
        }
    }

    #[test]
    fn a_key_becomes_labels_of_either_family() {
        let texts = |key: &Key| labels(key).map(|label| label.to_string());
        assert_eq!(
            texts(&key(family::IPV4, 6)),
            ["eth0", "egress", "TCP", "10.0.0.1", "32.1.13.184", "4660", ""]
        );
        let ipv6 = texts(&key(family::IPV6, 58));
        assert_eq!((&*ipv6[2], &*ipv6[3], &*ipv6[4]), ("ICMPv6", "a00:1::1", "2001:db8::2"));
        let rest = texts(&key(family::REST, 17));
        assert_eq!((&*rest[2], &*rest[3], &*rest[4]), ("UDP", "rest", "rest"));
        let other = texts(&key(family::OTHER, 0));
        assert_eq!((&*other[2], &*other[3], &*other[4]), ("", "", ""));
        assert_eq!(texts(&key(family::IPV4, 47))[2], "47");
    }
}
