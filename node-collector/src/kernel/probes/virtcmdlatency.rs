//! How long control commands of virtio-net wait for the host's answer: entry and exit of virtnet_send_command (5.10, 6.1)
//! or virtnet_send_command_reply (6.12 on, where the other one calls it). By function only: no tracepoint has it, so a
//! kernel that lets neither fentry nor kprobes be had cannot be asked.

use std::error::Error;
use std::io;
use std::sync::Arc;

use sonde_ebpf_common::latency::Latency;
use sonde_ebpf_common::record::kind;
use sonde_ebpf_common::virtcmd::Record;
use sonde_ebpf_common::{limit, lost};

use crate::catalogue::{ColumnSpec, EventTypeSpec, ProbeSpec};
use crate::event::{Observation, Subject};
use crate::kernel::facts::Answer;
use crate::kernel::latency::{self, LATENCY_BOUNDS};
use crate::kernel::plan::{Attach, Bucket, Hook, Rung, Signal, Step};
use crate::kernel::probe::{
    Decoded, Decoder, Decoders, Defaults, Host, KernelProbe, Opened, Reader, Round, Setup, Standing, THRESHOLD_10_MS,
};
use crate::kernel::record;
use crate::kernel::symbols::Symbols;
use crate::kernel::sys::RawMap;
use crate::table::Table;

const SPEC: ProbeSpec = ProbeSpec {
    name: "virtcmdlatency",
    help: "Time that control commands of virtio-net wait for the host's answer",
    source: "eBPF on entry and exit of virtnet_send_command, virtnet_send_command_reply (Linux drivers/net/virtio_net.c; the \
             second name since 6.12)",
    labels: &[],
    columns: &[
        ColumnSpec::histogram(
            "latency_seconds",
            "seconds",
            "Time from the command to the host's answer",
            LATENCY_BOUNDS,
        )
        .scaled(1e-9),
        ColumnSpec::counter("over_1ms", "", "Commands that took more than 1 ms"),
        ColumnSpec::counter("over_10ms", "", "Commands that took more than 10 ms"),
        ColumnSpec::counter("over_100ms", "", "Commands that took more than 100 ms"),
    ],
    event_types: &[
        EventTypeSpec {
            name: SLOW,
            help: "The host took longer than the threshold (10 ms) to answer a control command",
        },
        EventTypeSpec {
            name: SLOW_100MS,
            help: "The host took longer than 100 ms to answer a control command",
        },
    ],
};

const SLOW: &str = "VIRTCMDEXCUTE";
const SLOW_100MS: &str = "VIRTCMDEXCUTE_100MS";

pub(super) const PROBE: KernelProbe = KernelProbe {
    spec: &SPEC,
    node_only: true,
    defaults: Defaults {
        threshold: THRESHOLD_10_MS,
        ..Defaults::ON
    },
    signals: &[&TIMES],
    maps: &[("VIRTCMDLATENCY_STARTS", |_| 1024)],
    uncounted: Some((
        lost::VIRTCMDLATENCY,
        "control commands that were not timed: the map was full",
    )),
    prepare,
};

/// The one that does the work first: the other one only calls it.
const FUNCTIONS: &[&str] = &["virtnet_send_command_reply", "virtnet_send_command"];

const HELD: &str = "events beyond events.rate";

const TIMES: Signal = Signal {
    name: "virtcmdlatency.times",
    probe: SPEC.name,
    rows: true,
    buckets: &[
        Bucket {
            position: limit::VIRTCMDEXCUTE,
            held: HELD,
        },
        Bucket {
            position: limit::VIRTCMDEXCUTE_100MS,
            held: HELD,
        },
    ],
    steps: &[
        // The exit first: what came in before it was watched is not timed.
        Step::new(
            Rung::Fentry,
            &[
                Hook("virtcmd_exit", Attach::Fexit(FUNCTIONS)),
                Hook("virtcmd_enter", Attach::Fentry(FUNCTIONS)),
            ],
        ),
        Step::new(
            Rung::Kprobe,
            &[
                Hook("virtcmd_exit_kprobe", Attach::Kretprobe(FUNCTIONS)),
                Hook("virtcmd_enter_kprobe", Attach::Kprobe(FUNCTIONS)),
            ],
        ),
    ],
    needs: &[],
    missed: "control commands that were not timed",
    provoke: None,
    idle: |facts| match &facts.virtio_net {
        Answer::No(why) => Some(format!("{why} was there when the collector started")),
        _ => None,
    },
    ..Signal::PLAIN
};

fn prepare(host: &Host<'_>) -> Setup {
    let symbols = Arc::clone(&host.symbols);
    let rows = host.config.pods.include_host;
    Setup::new(move |object| {
        Ok(Opened {
            reader: Box::new(Times {
                times: object.map("VIRTCMDLATENCY_TIMES")?,
                rows,
            }),
            decoders: decoders(&symbols),
        })
    })
    .of_node(host)
}

pub(super) fn decoders(symbols: &Arc<Symbols>) -> Decoders {
    let symbols = Arc::clone(symbols);
    vec![(kind::VIRTCMD, Box::new(Slow { symbols }))]
}

struct Times {
    times: RawMap<u32, Latency>,
    /// Whether the node is one of those that are told of.
    rows: bool,
}

impl Reader for Times {
    fn read(&mut self, round: &Round<'_>) -> io::Result<Table> {
        let mut table = Table::new(&SPEC, round.time_ns);
        if self.rows {
            let mut values = Vec::new();
            latency::push(&mut values, &latency::sum(&self.times, 0)?);
            table.push(Subject::Node, [], &values);
        }
        Ok(table)
    }

    fn seen(&mut self) -> io::Result<u64> {
        Ok(latency::sum(&self.times, 0)?.count())
    }

    fn standing(&self) -> Standing {
        Standing { keys: 1, unknown: 0 }
    }
}

struct Slow {
    symbols: Arc<Symbols>,
}

impl Decoder for Slow {
    fn decode(&mut self, bytes: &[u8]) -> Result<Decoded, Box<dyn Error>> {
        let (record, stack) = record::parse::<Record>(bytes, |record| &record.head)?;
        let (bucket, mut seen) = observe(&record);
        seen.stack = self.symbols.stack(&stack);
        Ok(Decoded::Event(bucket, Box::new(seen)))
    }
}

/// All but the stack. The running task gave the command, and waits.
fn observe(record: &Record) -> (usize, Observation) {
    let (bucket, kind) = if record.latency_ns > 100_000_000 {
        (limit::VIRTCMDEXCUTE_100MS, SLOW_100MS)
    } else {
        (limit::VIRTCMDEXCUTE, SLOW)
    };
    let seen = Observation {
        ktime_ns: record.head.ktime_ns,
        probe: SPEC.name,
        kind,
        netns: record::netns(&record.head),
        latency_ns: Some(record.latency_ns),
        cpu: Some(record.head.cpu),
        pid: Some(record.head.tgid),
        comm: record::comm(&record.comm),
        ..Observation::default()
    };
    (bucket, seen)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sonde_ebpf_common::record::Head;
    use zerocopy::IntoBytes as _;

    fn record(latency_ns: u64) -> Record {
        Record {
            head: Head {
                kind: kind::VIRTCMD,
                size: size_of::<Record>() as u32,
                ktime_ns: 77,
                cookie: 1,
                netns: 0xf000_0001,
                cpu: 1,
                tgid: 4711,
                stack_bytes: 0,
            },
            latency_ns,
            comm: *b"ethtool\0\0\0\0\0\0\0\0\0",
        }
    }

    #[test]
    fn a_slow_command_is_told_by_its_length_and_with_who_gave_it() {
        let (bucket, seen) = observe(&record(10_000_001));
        assert_eq!((bucket, seen.kind), (limit::VIRTCMDEXCUTE, SLOW));
        assert_eq!((seen.pid, seen.comm.as_deref()), (Some(4711), Some("ethtool")));
        assert_eq!((seen.cpu, seen.latency_ns), (Some(1), Some(10_000_001)));
        let (bucket, seen) = observe(&record(100_000_001));
        assert_eq!((bucket, seen.kind), (limit::VIRTCMDEXCUTE_100MS, SLOW_100MS));
    }

    #[test]
    fn cut_off_records_are_refused() {
        for len in 0..size_of::<Record>() {
            let bytes = record(1);
            assert!(
                record::parse::<Record>(&bytes.as_bytes()[..len], |r| &r.head).is_err(),
                "{len}"
            );
        }
    }
}
