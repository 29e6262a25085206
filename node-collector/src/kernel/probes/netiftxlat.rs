//! How long packets wait in the queueing disciplines of a device, and how long its driver works on them. Off by default:
//! it runs three times for every packet that is sent.
//!
//! The wait is from the last hand-over to a queueing discipline to the driver's begin. It holds what a discipline does on
//! purpose: the pacing of fq, the shaping of tbf. Devices upon devices (VLAN, tunnel, bond) have each their own times, and
//! the driver's time of the upper holds that of the lower. Not matched are packets that a discipline or the device's lack of
//! features had cut up and that carry no time stamp (UDP GSO), those that went by the queue (AF_XDP, PACKET_QDISC_BYPASS),
//! and those whose place in a table of 65,536 another packet took while they waited.
//!
//! Every packet that the tracepoints show to programs is in one count: its wait is known, or it is in `unmatched`. A kernel
//! may run no programs while a task of its sandbox's own is the running one (seen on one made for that; what a queue's timer
//! sends in that moment is in no program's count, and no missed run is counted): `live/hidden.rs` tells it in tests.

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use sonde_ebpf_common::netiftxlat::{Key, QUEUED, Record, Times};
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
use crate::table::Table;

const QDISC: &str = "NETIFTXLAT_QDISC";
const XMIT: &str = "NETIFTXLAT_XMIT";

/// After which time a silent device is taken for gone.
const IDLE: Duration = Duration::from_secs(3600);

const SPEC: ProbeSpec = ProbeSpec {
    name: "netiftxlat",
    help: "Time of sent packets in queueing disciplines and drivers; of a sample where probes.netiftxlat.sample is above 1",
    source: "eBPF on tracepoints net:net_dev_queue, net:net_dev_start_xmit and net:net_dev_xmit (Linux net/core/dev.c)",
    labels: &[LabelSpec {
        name: "device",
        help: "Name of the device in its network namespace",
    }],
    columns: &[
        ColumnSpec::histogram(
            "qdisc_seconds",
            "seconds",
            "Time from a packet's hand-over to the queueing discipline to that to the driver",
            LATENCY_BOUNDS,
        )
        .scaled(1e-9),
        ColumnSpec::counter(
            "qdisc_over_1ms",
            "",
            "Packets that waited longer than 1 ms for the driver",
        ),
        ColumnSpec::counter(
            "qdisc_over_10ms",
            "",
            "Packets that waited longer than 10 ms for the driver",
        ),
        ColumnSpec::counter(
            "qdisc_over_100ms",
            "",
            "Packets that waited longer than 100 ms for the driver",
        ),
        ColumnSpec::histogram(
            "xmit_seconds",
            "seconds",
            "Time that the driver's transmit function took for a packet",
            LATENCY_BOUNDS,
        )
        .scaled(1e-9),
        ColumnSpec::counter(
            "xmit_over_1ms",
            "",
            "Packets that the driver's transmit function took longer than 1 ms for",
        ),
        ColumnSpec::counter(
            "xmit_over_10ms",
            "",
            "Packets that the driver's transmit function took longer than 10 ms for",
        ),
        ColumnSpec::counter(
            "xmit_over_100ms",
            "",
            "Packets that the driver's transmit function took longer than 100 ms for",
        ),
        ColumnSpec::counter(
            "unmatched",
            "",
            "Packets handed to the driver of which it is not known when they were queued; 0 for samples",
        ),
    ],
    event_types: &[
        EventTypeSpec {
            name: QDISC,
            help: "A packet waited longer in the queueing discipline than probes.netiftxlat.threshold",
        },
        EventTypeSpec {
            name: XMIT,
            help: "A driver worked longer on a packet than probes.netiftxlat.threshold",
        },
    ],
};

pub(super) const PROBE: KernelProbe = KernelProbe {
    spec: &SPEC,
    node_only: false,
    defaults: Defaults {
        enabled: false,
        threshold: Duration::from_millis(100),
        sample: 1,
    },
    signals: &[&TIME],
    maps: &[
        ("NETIFTXLAT_QUEUED", |_| QUEUED as u32),
        ("NETIFTXLAT_DRIVERS", |_| 1),
        ("NETIFTXLAT_TURNS", |_| 1),
        ("NETIFTXLAT_TIMES", |cpus| key_budget(cpus, size_of::<Times>())),
    ],
    uncounted: Some((
        lost::NETIFTXLAT,
        "packets whose times are in no row: the map of devices was full",
    )),
    prepare,
};

/// The end before the begin: what begins unseen is not ended, and not the other way round.
const TIME: Signal = Signal {
    name: "netiftxlat.time",
    probe: SPEC.name,
    rows: true,
    buckets: &[
        Bucket {
            position: limit::NETIFTXLAT_QDISC,
            held: "events of queues beyond events.rate",
        },
        Bucket {
            position: limit::NETIFTXLAT_XMIT,
            held: "events of drivers beyond events.rate",
        },
    ],
    steps: &[
        Step::new(
            Rung::TpBtf,
            &[
                Hook("netif_queue_btf", Attach::TpBtf("net_dev_queue")),
                Hook("netif_xmit_btf", Attach::TpBtf("net_dev_xmit")),
                Hook("netif_start_btf", Attach::TpBtf("net_dev_start_xmit")),
            ],
        ),
        Step::new(
            Rung::RawTracepoint,
            &[
                Hook("netif_queue_raw", Attach::RawTracepoint("net_dev_queue")),
                Hook("netif_xmit_raw", Attach::RawTracepoint("net_dev_xmit")),
                Hook("netif_start_raw", Attach::RawTracepoint("net_dev_start_xmit")),
            ],
        ),
    ],
    needs: &[
        "NET_DEV_QUEUE_SKB",
        "START_XMIT_SKB",
        "START_XMIT_DEV",
        "NET_DEV_XMIT_SKB",
        "NET_DEV_XMIT_DEV",
        "SKB_HEAD",
        "SKB_LEN",
        "SKB_DATA_LEN",
        "SKB_TSTAMP",
        "DEV_NET",
        "DEV_NAME",
        "NET_INODE",
    ],
    missed: "packets whose times were not taken",
    provoke: None,
    ..Signal::PLAIN
};

fn prepare(host: &Host<'_>) -> Setup {
    let symbols = Arc::clone(&host.symbols);
    let live = Arc::clone(&host.live);
    Setup::new(move |object| {
        Ok(Opened {
            reader: Box::new(Devices(
                Counted::new(object.map("NETIFTXLAT_TIMES")?).forgets_idle(IDLE),
            )),
            decoders: decoders(&symbols, &live),
        })
    })
}

pub(super) fn decoders(symbols: &Arc<Symbols>, live: &Arc<Live>) -> Decoders {
    let decoder = |kind| -> Box<dyn Decoder> {
        Box::new(Long {
            kind,
            live: Arc::clone(live),
            symbols: Arc::clone(symbols),
        })
    };
    vec![
        (kind::NETIFTXLAT_QDISC, decoder(limit::NETIFTXLAT_QDISC)),
        (kind::NETIFTXLAT_XMIT, decoder(limit::NETIFTXLAT_XMIT)),
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
        self.qdisc.add(&other.qdisc);
        self.xmit.add(&other.xmit);
        self.unmatched += other.unmatched;
    }

    fn count(&self) -> u64 {
        self.qdisc.count() + self.unmatched
    }
}

struct Devices(Counted<Key, Times>);

impl Reader for Devices {
    fn read(&mut self, round: &Round<'_>) -> io::Result<Table> {
        let sums = self.0.read(round, |key| key.device)?;
        let mut table = Table::with_capacity(&SPEC, round.time_ns, sums.len());
        let mut values = Vec::new();
        for (subject, device, times) in sums {
            values.clear();
            latency::push(&mut values, &times.qdisc);
            latency::push(&mut values, &times.xmit);
            values.push(times.unmatched as i64);
            table.push(subject, [packets::label(device)], &values);
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
    /// Position in `sonde_ebpf_common::limit`.
    kind: usize,
    live: Arc<Live>,
    symbols: Arc<Symbols>,
}

impl Decoder for Long {
    fn decode(&mut self, bytes: &[u8]) -> Result<Decoded, Box<dyn Error>> {
        let (record, stack) = record::parse::<Record>(bytes, |record| &record.head)?;
        let name = if self.kind == limit::NETIFTXLAT_QDISC {
            QDISC
        } else {
            XMIT
        };
        let mut seen = observe(&record, name, self.live.sample())?;
        seen.stack = self.symbols.stack(&stack);
        Ok(Decoded::Event(self.kind, Box::new(seen)))
    }
}

/// All but the stack.
fn observe(record: &Record, kind: &'static str, sample: u32) -> Result<Observation, RecordError> {
    let mut seen = Observation {
        ktime_ns: record.head.ktime_ns,
        probe: SPEC.name,
        kind,
        netns: record::netns(&record.head),
        ifindex: record.ifindex,
        interface: packets::device(&record.device),
        direction: Direction::Egress,
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
    use crate::kernel::probe::live_with_sample as live;
    use sonde_ebpf_common::packet::Packet;
    use sonde_ebpf_common::record::Head;
    use zerocopy::IntoBytes as _;

    fn record() -> Record {
        let mut bytes = [0; 128];
        bytes[..28].copy_from_slice(&[
            0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x12, 0x34, 1, 0xbb, 0, 8, 0, 0,
        ]);
        let mut device = [0; 16];
        device[..4].copy_from_slice(b"eth0");
        Record {
            head: Head {
                kind: kind::NETIFTXLAT_QDISC,
                size: size_of::<Record>() as u32,
                ktime_ns: 5,
                cookie: 6,
                netns: 7,
                cpu: 1,
                tgid: 9,
                stack_bytes: 0,
            },
            latency_ns: 150_000_000,
            device,
            ifindex: 3,
            len: 42,
            packet: Packet {
                ethertype: 0x0800u16.to_be(),
                captured: 28,
                pad: 0,
                bytes,
            },
        }
    }

    fn decode(bytes: &[u8]) -> Result<(usize, Observation), String> {
        let mut decoder = Long {
            kind: limit::NETIFTXLAT_QDISC,
            live: live(8),
            symbols: Arc::new(Symbols::new(std::path::Path::new("/nonexistent"))),
        };
        match decoder.decode(bytes) {
            Ok(Decoded::Event(position, seen)) => Ok((position, *seen)),
            Ok(Decoded::Nothing) => Err("nothing".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_record_tells_packet_device_and_time() {
        let (position, seen) = decode(record().as_bytes()).unwrap();
        assert_eq!((position, seen.kind), (limit::NETIFTXLAT_QDISC, QDISC));
        assert_eq!((seen.sport, seen.dport), (Some(4660), Some(443)));
        assert_eq!((seen.interface.as_deref(), seen.ifindex), (Some("eth0"), 3));
        assert_eq!(
            (seen.latency_ns, seen.cpu, seen.pid),
            (Some(150_000_000), Some(1), None)
        );
        assert_eq!(seen.netns, Some(NetnsKey { inode: 7, cookie: 6 }));
        assert!(seen.attributes.contains(&("sample", "8".into())));
        assert!(seen.attributes.contains(&("length", "42".into())));
    }

    #[test]
    fn a_record_cut_off_anywhere_or_with_a_bad_length_is_an_error() {
        let whole = record();
        for len in 0..whole.as_bytes().len() {
            assert!(decode(&whole.as_bytes()[..len]).is_err(), "{len}");
        }
        let mut bad = whole;
        bad.packet.captured = 200;
        assert!(decode(bad.as_bytes()).unwrap_err().contains("beginning"));
    }

    #[test]
    fn columns_hold_what_is_pushed() {
        let width: usize = SPEC.columns.iter().map(ColumnSpec::width).sum();
        let mut values = Vec::new();
        latency::push(&mut values, &Times::default().qdisc);
        assert_eq!(width, values.len() * 2 + 1);
    }
}
