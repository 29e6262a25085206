//! Traffic of each pod by the addresses it speaks with. Off by default: it runs for every packet.
//!
//! Packets are counted on every device of a listed namespace, so a device upon a device (VLAN, tunnel, bridge) shows the
//! same traffic once more under its own name; the sum over the rows of one device and direction is everything that the
//! device passed on, whether or not there was room for its flows.
//!
//! The tracepoint of received packets knows only the device that a packet comes by first. Not seen there is what another
//! program moves past the host's side (bpf_redirect_peer, as Cilium's host routing does), and what a device takes from the one
//! below it (macvlan, ipvlan, VLAN). With `probes.flow.tc` a program on the pods' devices counts what they receive instead, see
//! [`devices`].
//!
//! Drops are those that probe `packetloss` calls suspect, and what was sent again is counted as the kernel does for
//! RetransSegs; both are of every packet, also where `sample` is above 1. They are on the row of the flow's packets where the
//! kernel tells the device: the one a packet came by, or the one its route leads to. A packet that is dropped before it has a
//! route, and a SYN-ACK sent again, are on a row without a device. Addresses are those of the packet at that moment, and of
//! the socket: where the namespace itself translates them, those of its own side.

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use sonde_common::config::Config;
use sonde_ebpf_common::drop::NO_REASON;
use sonde_ebpf_common::flow::{Count, DropKey, Dropped, Key, direction, family};
use sonde_ebpf_common::lost;
use zerocopy::IntoBytes as _;

use crate::catalogue::{ColumnSpec, LabelSpec, ProbeSpec};
use crate::event::NetnsKey;
use crate::kernel::Gauge;
use crate::kernel::counted::{self, Counted};
use crate::kernel::load::LoadError;
use crate::kernel::packets;
use crate::kernel::plan::{Attach, Hook, Rung, Signal, Step};
use crate::kernel::probe::{Defaults, Host, KernelProbe, Opened, Reader, Round, Setup, Standing};
use crate::kernel::reasons::Reasons;
use crate::kernel::sites::{Sites, verdicts};
use crate::kernel::sys::{BPF_ANY, BatchBuffer, RawMap};
use crate::probes::packetloss::{Class, headers};
use crate::table::Table;

mod devices;

use devices::{Beat, Devices};

/// After which time a flow without packets is forgotten.
const IDLE: Duration = Duration::from_secs(300);

const SPEC: ProbeSpec = ProbeSpec {
    name: "flow",
    help: "Traffic by address; an estimate where probes.flow.sample is above 1",
    source: "eBPF on tracepoints net:net_dev_start_xmit and net:netif_receive_skb (Linux net/core/dev.c), skb:kfree_skb, \
             tcp:tcp_retransmit_skb and tcp:tcp_retransmit_synack; with probes.flow.tc also a program before all others on what \
             pods' devices receive (tcx from Linux 6.6 on, else a filter of their clsact qdisc), without which nothing is counted that macvlan, ipvlan and VLAN devices \
             receive or that bpf_redirect_peer gives to a pod",
    labels: &[
        LabelSpec {
            name: "device",
            help: "Name of the device in its network namespace; empty for drops and retransmits of which the kernel does not tell it",
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
        ColumnSpec::counter(
            "drops",
            "",
            "Packets that the kernel dropped in this namespace, of class suspect as probe packetloss has it; of all, whatever the sample",
        ),
        ColumnSpec::counter(
            "retransmits",
            "",
            "Segments that TCP sent again, SYN-ACKs included; of all, whatever the sample",
        ),
    ],
    event_types: &[],
};

pub(in crate::kernel) use devices::sweep;

pub(super) const PROBE: KernelProbe = KernelProbe {
    spec: &SPEC,
    node_only: false,
    defaults: Defaults {
        enabled: false,
        threshold: Duration::ZERO,
        sample: 1,
    },
    signals: &[&COUNT, &BY_TC],
    maps: &[
        ("FLOW_COUNTS", |cpus| if cpus > 16 { 8192 } else { 16_384 }),
        ("FLOW_USED", |_| 2048),
        ("FLOW_TURNS", |_| 1),
        ("FLOW_DEVICES", |_| 4096),
        ("FLOW_UNDECIDED", |_| 4096),
        ("FLOW_SITES", |_| 8192),
        ("FLOW_BY_TC", |_| 8192),
        ("FLOW_BEAT", |_| 1),
        ("FLOW_LOOKS", |_| 1),
    ],
    uncounted: Some((
        lost::FLOW,
        "packets, drops or retransmits that are in no row: the map of flows was full",
    )),
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
                Hook("flow_dropped_btf", Attach::TpBtf("kfree_skb")),
                Hook("flow_again_btf", Attach::TpBtf("tcp_retransmit_skb")),
                Hook("flow_synack_btf", Attach::TpBtf("tcp_retransmit_synack")),
            ],
        ),
        Step::new(
            Rung::RawTracepoint,
            &[
                Hook("flow_sent_raw", Attach::RawTracepoint("net_dev_start_xmit")),
                Hook("flow_received_raw", Attach::RawTracepoint("netif_receive_skb")),
                Hook("flow_dropped_raw", Attach::RawTracepoint("kfree_skb")),
                Hook("flow_again_raw", Attach::RawTracepoint("tcp_retransmit_skb")),
                Hook("flow_synack_raw", Attach::RawTracepoint("tcp_retransmit_synack")),
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
        "KFREE_SKB_SKB",
        "KFREE_SKB_LOCATION",
        "RETRANSMIT_SKB_SK",
        "RETRANSMIT_SKB_SKB",
        "RETRANSMIT_SYNACK_REQ",
        "SKB_IIF",
        "SKB_SK",
        "SOCK_NET",
        "SOCK_FAMILY",
        "SOCK_PORT",
        "SOCK_PEER_PORT",
        "SOCK_ADDRESS",
        "SOCK_PEER_ADDRESS",
    ],
    missed: "packets, drops or retransmits that were not counted",
    provoke: None,
    ..Signal::PLAIN
};

/// What the first signal counts too, where this one's program is on the device.
const BY_TC: Signal = Signal {
    name: "flow.tc",
    probe: SPEC.name,
    rows: true,
    buckets: &[],
    steps: &[
        Step::new(Rung::Tcx, &[Hook(BY_TCX, Attach::Tcx)]),
        Step::new(Rung::Clsact, &[Hook(BY_CLSACT, Attach::Clsact)]),
    ],
    needs: &[],
    missed: "packets that were not counted on pods' devices",
    provoke: None,
    option: Some(("tc", by_tc)),
    ..Signal::PLAIN
};

const BY_TCX: &str = "flow_tcx";
const BY_CLSACT: &str = "flow_clsact";

fn by_tc(config: &Config) -> bool {
    config.probes.get(SPEC.name).is_some_and(|settings| settings.tc)
}

fn prepare(host: &Host<'_>) -> Setup {
    let ports = host.config.probes.get(SPEC.name).is_some_and(|settings| settings.ports);
    let by_tc = by_tc(host.config);
    let reasons = host
        .btf
        .map(|btf| Reasons::read(btf, &host.config.host.sys))
        .unwrap_or_default();
    let verdicts = verdicts(&reasons);
    let backlog = reasons.iter().find(|(_, name)| *name == "CPU_BACKLOG");
    let backlog = backlog.map_or(NO_REASON, |(number, _)| number);
    let symbols = Arc::clone(&host.symbols);
    Setup::new(move |object| {
        let by_tc = || object.map("FLOW_BY_TC");
        let devices = if let Some(program) = object.for_devices(BY_TCX) {
            Some(Devices::by_tcx(program, by_tc()?))
        } else if let Some(program) = object.for_devices(BY_CLSACT) {
            let by_tc = by_tc()?;
            let beat = Beat::new(object.map("FLOW_BEAT")?, object.map("FLOW_LOOKS")?);
            let devices = beat.and_then(|beat| Devices::by_clsact(program, by_tc, beat));
            Some(devices.map_err(|error| LoadError::Map("FLOW_BEAT", error))?)
        } else {
            None
        };
        Ok(Opened {
            reader: Box::new(Flows {
                devices,
                disturbed: HashSet::new(),
                counts: Counted::new(object.map("FLOW_COUNTS")?).forgets_idle(IDLE),
                used: object.map("FLOW_USED")?,
                known: HashMap::new(),
                undecided: Undecided {
                    map: object.map("FLOW_UNDECIDED")?,
                    buffer: BatchBuffer::default(),
                    sites: Sites::new(reasons, symbols, Some(object.map("FLOW_SITES")?)),
                },
            }),
            decoders: Vec::new(),
        })
    })
    .global("FLOW_PORTS", &u32::from(ports))
    .global("FLOW_TC", &u32::from(by_tc))
    .global("FLOW_BACKLOG_REASON", &backlog)
    .global("PACKETLOSS_REASONS", &verdicts)
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
        self.drops += other.drops;
        self.retransmits += other.retransmits;
    }

    fn count(&self) -> u64 {
        self.packets + self.drops + self.retransmits
    }
}

struct Flows {
    counts: Counted<Key, Count>,
    used: RawMap<u32, u64>,
    /// What `used` was last set to.
    known: HashMap<u32, u64>,
    undecided: Undecided,
    devices: Option<Devices>,
    /// Where its program was gone, was not the first, or stood aside, since the last round.
    disturbed: HashSet<NetnsKey>,
}

/// Drops that came before their site had a class. What is in the map stays there for as long as the flow: the kernel
/// side counts the next ones with the flow, or not at all.
struct Undecided {
    map: RawMap<DropKey, Dropped>,
    buffer: BatchBuffer<DropKey, Dropped>,
    sites: Sites,
}

impl Undecided {
    /// Those that are a loss, each under its flow.
    fn read(&mut self) -> io::Result<Vec<(Key, Count)>> {
        let mut drops: HashMap<Key, u64> = HashMap::new();
        let sites = &self.sites;
        self.map.for_each(&mut self.buffer, |key, copies| {
            let packets: u64 = copies.iter().map(|copy| copy.packets).sum();
            if sites.learn(key.site).class == Class::Suspect {
                *drops.entry(key.flow).or_default() += packets;
            }
        })?;
        let mut drops: Vec<_> = drops
            .into_iter()
            .map(|(key, drops)| {
                let count = Count {
                    drops,
                    ..Count::default()
                };
                (key, count)
            })
            .collect();
        // In one order, as they are compared from one reading to the next.
        drops.sort_unstable_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
        Ok(drops)
    }

    fn forget(&mut self, flows: &HashSet<Key>) -> io::Result<()> {
        if flows.is_empty() {
            return Ok(());
        }
        let mut gone = Vec::new();
        self.map.for_each(&mut self.buffer, |key, _| {
            if flows.contains(&key.flow) {
                gone.push(*key);
            }
        })?;
        for key in gone {
            self.map.delete(&key)?;
        }
        Ok(())
    }
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
        if let Some(devices) = &mut self.devices {
            self.disturbed.extend(devices.put_back());
        }
        let Self { counts, undecided, .. } = self;
        let sums = counts.read_with(round, labels, || undecided.read())?;
        undecided.forget(counts.deleted())?;
        self.make_room();
        let mut table = Table::with_capacity(&SPEC, round.time_ns, sums.len());
        for (subject, labels, count) in sums {
            let values = [count.bytes, count.packets, count.drops, count.retransmits];
            table.push(subject, labels, &values.map(|value| value as i64));
        }
        Ok(table)
    }

    fn visit(&mut self, netns: NetnsKey) -> io::Result<()> {
        match &mut self.devices {
            Some(devices) => devices.visit(netns),
            None => Ok(()),
        }
    }

    fn missed(&mut self) -> Vec<(NetnsKey, &'static str)> {
        const DETAIL: &str = "somebody took the program away that counts what the pod's devices receive, or put another one \
                              before it, or the collector stood still for so long that the program took it to be gone: \
                              until it was back, packets are in no row";
        let disturbed = std::mem::take(&mut self.disturbed).into_iter();
        disturbed.map(|netns| (netns, DETAIL)).collect()
    }

    fn stay_in(&mut self, live: &[NetnsKey]) {
        if let Some(devices) = &mut self.devices {
            devices.stay_in(live);
        }
    }

    fn seen(&mut self) -> io::Result<u64> {
        self.counts.seen()
    }

    fn gauges(&self) -> Vec<Gauge> {
        let gauge = |devices: &Devices| Gauge {
            name: "sonde_collector_ebpf_flow_devices",
            help: "Devices of pods that probe flow has a program on",
            value: devices.count() as u64,
        };
        self.devices.iter().map(gauge).collect()
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
            pad: 0,
            pad_word: 0,
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
