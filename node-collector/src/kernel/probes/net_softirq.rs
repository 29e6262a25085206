//! How long the network's softirqs wait to run, and run: tracepoints irq:softirq_raise, softirq_entry and softirq_exit
//! (all kernels).
//!
//! A device with threaded NAPI (`/sys/class/net/NAME/threaded`) polls in a thread and raises nothing: what it receives is
//! not in here. `doctor` names such devices.

use std::error::Error;
use std::io;
use std::net::UdpSocket;

use sonde_ebpf_common::latency::Latency;
use sonde_ebpf_common::limit;
use sonde_ebpf_common::record::kind;
use sonde_ebpf_common::softirq::{PLACES, Record, phase, place, vector};

use crate::catalogue::{ColumnSpec, EventTypeSpec, LabelSpec, ProbeSpec};
use crate::event::{Observation, Subject};
use crate::kernel::latency::{self, LATENCY_BOUNDS};
use crate::kernel::plan::{Attach, Bucket, Hook, Rung, Signal, Step};
use crate::kernel::probe::{
    Decoded, Decoder, Decoders, Defaults, Host, KernelProbe, Opened, Reader, Round, Setup, Standing, THRESHOLD_10_MS,
};
use crate::kernel::record::{self, RecordError};
use crate::kernel::symbols::Symbols;
use crate::kernel::sys::RawMap;
use crate::table::Table;
use std::sync::Arc;

const SPEC: ProbeSpec = ProbeSpec {
    name: "net_softirq",
    help: "Time until the network's softirqs run, and time they run, of all CPUs of the node",
    source: "eBPF on tracepoints irq:softirq_raise, softirq_entry and softirq_exit (Linux kernel/softirq.c); a device with \
             threaded NAPI raises none",
    labels: &[LabelSpec {
        name: "vector",
        help: "net_rx: receiving; net_tx: freeing what was sent, and sending what was put off",
    }],
    columns: &[
        ColumnSpec::histogram(
            "sched_seconds",
            "seconds",
            "Time from the first raise of the softirq to its entry",
            LATENCY_BOUNDS,
        )
        .scaled(1e-9),
        ColumnSpec::counter("sched_over_1ms", "", "Waits for the softirq of more than 1 ms"),
        ColumnSpec::counter("sched_over_10ms", "", "Waits for the softirq of more than 10 ms"),
        ColumnSpec::counter("sched_over_100ms", "", "Waits for the softirq of more than 100 ms"),
        ColumnSpec::histogram(
            "execute_seconds",
            "seconds",
            "Time from the softirq's entry to its exit",
            LATENCY_BOUNDS,
        )
        .scaled(1e-9),
        ColumnSpec::counter("execute_over_1ms", "", "Runs of the softirq of more than 1 ms"),
        ColumnSpec::counter("execute_over_10ms", "", "Runs of the softirq of more than 10 ms"),
        ColumnSpec::counter("execute_over_100ms", "", "Runs of the softirq of more than 100 ms"),
    ],
    event_types: &[
        EventTypeSpec {
            name: SCHED_SLOW,
            help: "A softirq of the network waited longer than the threshold (10 ms) before it ran",
        },
        EventTypeSpec {
            name: SCHED_100MS,
            help: "A softirq of the network waited longer than 100 ms before it ran",
        },
        EventTypeSpec {
            name: EXCUTE_SLOW,
            help: "A softirq of the network ran longer than the threshold (10 ms)",
        },
        EventTypeSpec {
            name: EXCUTE_100MS,
            help: "A softirq of the network ran longer than 100 ms",
        },
    ],
};

const SCHED_SLOW: &str = "NETSOFTIRQ_SCHED_SLOW";
const SCHED_100MS: &str = "NETSOFTIRQ_SCHED_100MS";
const EXCUTE_SLOW: &str = "NETSOFTIRQ_EXCUTE_SLOW";
const EXCUTE_100MS: &str = "NETSOFTIRQ_EXCUTE_100MS";

pub(super) const PROBE: KernelProbe = KernelProbe {
    spec: &SPEC,
    node_only: true,
    // Three programs run for each softirq, of which a veth pair makes one a packet: some 300 ns, where a small packet takes
    // 5,000.
    defaults: Defaults {
        enabled: false,
        threshold: THRESHOLD_10_MS,
        ..Defaults::ON
    },
    signals: &[&TIMES],
    // One entry for each CPU and phase, whatever is asked for.
    maps: &[],
    uncounted: None,
    prepare,
};

const HELD: &str = "events beyond events.rate";

const TIMES: Signal = Signal {
    name: "net_softirq.times",
    probe: SPEC.name,
    rows: true,
    buckets: &[
        Bucket {
            position: limit::NETSOFTIRQ_SCHED_SLOW,
            held: HELD,
        },
        Bucket {
            position: limit::NETSOFTIRQ_SCHED_100MS,
            held: HELD,
        },
        Bucket {
            position: limit::NETSOFTIRQ_EXCUTE_SLOW,
            held: HELD,
        },
        Bucket {
            position: limit::NETSOFTIRQ_EXCUTE_100MS,
            held: HELD,
        },
    ],
    // Attached from the end backwards, so that each wait that is counted has a run that is, also of softirqs that come
    // while the programs do.
    steps: &[
        Step::new(
            Rung::TpBtf,
            &[
                Hook("softirq_exit_btf", Attach::TpBtf("softirq_exit")),
                Hook("softirq_entry_btf", Attach::TpBtf("softirq_entry")),
                Hook("softirq_raise_btf", Attach::TpBtf("softirq_raise")),
            ],
        ),
        Step::new(
            Rung::RawTracepoint,
            &[
                Hook("softirq_exit_raw", Attach::RawTracepoint("softirq_exit")),
                Hook("softirq_entry_raw", Attach::RawTracepoint("softirq_entry")),
                Hook("softirq_raise_raw", Attach::RawTracepoint("softirq_raise")),
            ],
        ),
    ],
    needs: &["SOFTIRQ_RAISE_VECTOR", "SOFTIRQ_ENTRY_VECTOR", "SOFTIRQ_EXIT_VECTOR"],
    missed: "softirqs whose times were not counted",
    provoke: Some(receive_a_packet),
    ..Signal::PLAIN
};

fn prepare(host: &Host<'_>) -> Setup {
    let symbols = Arc::clone(&host.symbols);
    let rows = host.config.pods.include_host;
    Setup::new(move |object| {
        Ok(Opened {
            reader: Box::new(Times {
                times: object.map("NET_SOFTIRQ_TIMES")?,
                rows,
            }),
            decoders: decoders(&symbols),
        })
    })
    .of_node(host)
}

pub(super) fn decoders(symbols: &Arc<Symbols>) -> Decoders {
    let symbols = Arc::clone(symbols);
    vec![(kind::NET_SOFTIRQ, Box::new(Slow { symbols }))]
}

struct Times {
    /// By `sonde_ebpf_common::softirq::place`.
    times: RawMap<u32, Latency>,
    /// Whether the node is one of those that are told of.
    rows: bool,
}

impl Times {
    fn of(&self, vector: u32, phase: u32) -> io::Result<Latency> {
        latency::sum(&self.times, place(vector, phase))
    }
}

impl Reader for Times {
    fn read(&mut self, round: &Round<'_>) -> io::Result<Table> {
        let mut table = Table::new(&SPEC, round.time_ns);
        if !self.rows {
            return Ok(table);
        }
        for vector in [vector::NET_RX, vector::NET_TX] {
            let mut values = Vec::new();
            for phase in [phase::SCHED, phase::EXECUTE] {
                latency::push(&mut values, &self.of(vector, phase)?);
            }
            let name = name(vector).unwrap_or_default();
            table.push(Subject::Node, [name.into()], &values);
        }
        Ok(table)
    }

    fn seen(&mut self) -> io::Result<u64> {
        Ok(self.of(vector::NET_RX, phase::EXECUTE)?.count())
    }

    fn standing(&self) -> Standing {
        Standing {
            keys: PLACES as usize,
            unknown: 0,
        }
    }
}

fn name(vector: u32) -> Option<&'static str> {
    match vector {
        vector::NET_RX => Some("net_rx"),
        vector::NET_TX => Some("net_tx"),
        _ => None,
    }
}

struct Slow {
    symbols: Arc<Symbols>,
}

impl Decoder for Slow {
    fn decode(&mut self, bytes: &[u8]) -> Result<Decoded, Box<dyn Error>> {
        let (record, stack) = record::parse::<Record>(bytes, |record| &record.head)?;
        let (bucket, mut seen) = observe(&record)?;
        seen.stack = self.symbols.stack(&stack);
        Ok(Decoded::Event(bucket, Box::new(seen)))
    }
}

/// All but the stack. The running task is whoever was interrupted, so there is no process.
fn observe(record: &Record) -> Result<(usize, Observation), RecordError> {
    let vector = name(record.vector).ok_or(RecordError::Value {
        what: "the vector of a softirq",
        value: record.vector.into(),
    })?;
    let long = record.latency_ns > 100_000_000;
    let (bucket, kind) = match (record.phase, long) {
        (phase::SCHED, false) => (limit::NETSOFTIRQ_SCHED_SLOW, SCHED_SLOW),
        (phase::SCHED, true) => (limit::NETSOFTIRQ_SCHED_100MS, SCHED_100MS),
        (phase::EXECUTE, false) => (limit::NETSOFTIRQ_EXCUTE_SLOW, EXCUTE_SLOW),
        (phase::EXECUTE, true) => (limit::NETSOFTIRQ_EXCUTE_100MS, EXCUTE_100MS),
        (other, _) => {
            return Err(RecordError::Value {
                what: "the phase of a softirq",
                value: other.into(),
            });
        }
    };
    let seen = Observation {
        ktime_ns: record.head.ktime_ns,
        probe: SPEC.name,
        kind,
        netns: record::netns(&record.head),
        latency_ns: Some(record.latency_ns),
        cpu: Some(record.head.cpu),
        attributes: vec![("vector", vector.into())],
        ..Observation::default()
    };
    Ok((bucket, seen))
}

/// Over the loopback device, whose backlog is emptied by the softirq.
fn receive_a_packet() -> io::Result<()> {
    let receiver = UdpSocket::bind(("127.0.0.1", 0))?;
    let to = receiver.local_addr()?;
    UdpSocket::bind(("127.0.0.1", 0))?.send_to(b"sonde", to).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sonde_ebpf_common::record::Head;
    use zerocopy::IntoBytes as _;

    fn record(vector: u32, phase: u32, latency_ns: u64) -> Record {
        Record {
            head: Head {
                kind: kind::NET_SOFTIRQ,
                size: size_of::<Record>() as u32,
                ktime_ns: 77,
                cookie: 1,
                netns: 0xf000_0001,
                cpu: 3,
                tgid: 4711,
                stack_bytes: 0,
            },
            latency_ns,
            vector,
            phase,
        }
    }

    #[test]
    fn a_slow_softirq_is_told_by_phase_and_length_with_its_cpu_and_no_process() {
        let tell = |phase, ns| observe(&record(vector::NET_RX, phase, ns)).unwrap();
        let (bucket, seen) = tell(phase::SCHED, 10_000_001);
        assert_eq!((bucket, seen.kind), (limit::NETSOFTIRQ_SCHED_SLOW, SCHED_SLOW));
        assert_eq!((seen.cpu, seen.latency_ns, seen.pid), (Some(3), Some(10_000_001), None));
        assert_eq!(seen.attributes, [("vector", "net_rx".into())]);
        assert_eq!(tell(phase::SCHED, 100_000_000).1.kind, SCHED_SLOW);
        let (bucket, seen) = tell(phase::SCHED, 100_000_001);
        assert_eq!((bucket, seen.kind), (limit::NETSOFTIRQ_SCHED_100MS, SCHED_100MS));
        assert_eq!(tell(phase::EXECUTE, 20_000_000).1.kind, EXCUTE_SLOW);
        assert_eq!(tell(phase::EXECUTE, 2_000_000_000).1.kind, EXCUTE_100MS);
        let (_, sending) = observe(&record(vector::NET_TX, phase::SCHED, 1)).unwrap();
        assert_eq!(sending.attributes, [("vector", "net_tx".into())]);
    }

    #[test]
    fn records_of_another_version_and_cut_off_ones_are_refused() {
        let good = record(vector::NET_RX, phase::SCHED, 1);
        for len in 0..size_of::<Record>() {
            assert!(
                record::parse::<Record>(&good.as_bytes()[..len], |r| &r.head).is_err(),
                "{len}"
            );
        }
        let longer = [good.as_bytes(), &[0; 8]].concat();
        assert!(record::parse::<Record>(&longer, |r| &r.head).is_err());
        assert!(observe(&record(7, phase::SCHED, 1)).is_err());
        assert!(observe(&record(vector::NET_RX, 2, 1)).is_err());
    }
}
