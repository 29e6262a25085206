//! What became of attempts to connect, and how long it took: tracepoint sock:inet_sock_set_state (all kernels).
//!
//! Of the end that connects. What cannot be sent at all (no route) never gets as far as SYN_SENT, and is not in here; a
//! connect that finds no free port is among the aborted ones.

use std::io;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;

use sonde_ebpf_common::connect::{Key, result};
use sonde_ebpf_common::connection::{AF_INET, AF_INET6};
use sonde_ebpf_common::latency::Latency;
use sonde_ebpf_common::lost;

use crate::catalogue::{ColumnSpec, LabelSpec, ProbeSpec};
use crate::event::NetnsKey;
use crate::kernel::counted::{self, Counted};
use crate::kernel::latency::{self, LATENCY_BOUNDS};
use crate::kernel::plan::{Attach, Hook, Rung, Signal, Step};
use crate::kernel::probe::{
    Defaults, Host, KernelProbe, Opened, Reader, Round, Setup, Standing, count_keys, latency_keys,
};
use crate::table::Table;

const SPEC: ProbeSpec = ProbeSpec {
    name: "connect",
    help: "TCP connections that were asked for, by what came of them, and the time it took",
    source: "eBPF on tracepoint sock:inet_sock_set_state (Linux net/ipv4/af_inet.c), from SYN_SENT on",
    labels: &[
        LabelSpec {
            name: "family",
            help: "ipv4 or ipv6, as it is on the wire",
        },
        LabelSpec {
            name: "result",
            help: "established; refused; timeout: SYNs without an answer; reset; unreachable: ICMP said so; aborted: \
                   given up by the caller; other",
        },
    ],
    columns: &[
        ColumnSpec::counter("attempts", "", "Attempts to connect that ended so"),
        ColumnSpec::histogram(
            "latency_seconds",
            "seconds",
            "Time from the first SYN to the end of the attempt",
            LATENCY_BOUNDS,
        )
        .scaled(1e-9),
        ColumnSpec::counter("over_1ms", "", "Attempts that took more than 1 ms"),
        ColumnSpec::counter("over_10ms", "", "Attempts that took more than 10 ms"),
        ColumnSpec::counter("over_100ms", "", "Attempts that took more than 100 ms"),
    ],
    event_types: &[],
};

/// By position in `sonde_ebpf_common::connect::result`.
const RESULTS: [&str; 7] = [
    "established",
    "refused",
    "timeout",
    "reset",
    "unreachable",
    "aborted",
    "other",
];
const _: () = assert!(result::OTHER as usize == RESULTS.len() - 1);

pub(super) const PROBE: KernelProbe = KernelProbe {
    spec: &SPEC,
    node_only: false,
    defaults: Defaults::ON,
    signals: &[&TIMES],
    maps: &[("CONNECT_TIMES", latency_keys), ("CONNECT_STARTS", count_keys)],
    uncounted: Some((lost::CONNECT, "attempts to connect that are in no row: a map was full")),
    prepare,
};

const TIMES: Signal = Signal {
    name: "connect.times",
    probe: SPEC.name,
    rows: true,
    buckets: &[],
    steps: &[
        Step::new(
            Rung::TpBtf,
            &[Hook("connect_btf", Attach::TpBtf("inet_sock_set_state"))],
        ),
        Step::new(
            Rung::RawTracepoint,
            &[Hook("connect_raw", Attach::RawTracepoint("inet_sock_set_state"))],
        ),
    ],
    needs: &[
        "SET_STATE_SK",
        "SET_STATE_OLD",
        "SET_STATE_NEW",
        "SOCK_FAMILY",
        "SOCK_PROTOCOL",
        "SOCK_ERROR",
        "SOCK_NET",
        "NET_INODE",
    ],
    missed: "attempts to connect that were not counted",
    provoke: Some(connect),
    option: None,
};

fn prepare(_host: &Host<'_>) -> Setup {
    Setup::new(|object| {
        Ok(Opened {
            reader: Box::new(Attempts(Counted::new(object.map("CONNECT_TIMES")?))),
            decoders: Vec::new(),
        })
    })
}

impl counted::Key for Key {
    fn netns(&self) -> NetnsKey {
        NetnsKey {
            inode: self.netns,
            cookie: self.cookie,
        }
    }
}

struct Attempts(Counted<Key, Latency>);

fn labels(key: &Key) -> (&'static str, &'static str) {
    let family = match key.family {
        AF_INET => "ipv4",
        AF_INET6 => "ipv6",
        _ => "other",
    };
    (family, RESULTS.get(usize::from(key.result)).copied().unwrap_or("other"))
}

impl Reader for Attempts {
    fn read(&mut self, round: &Round<'_>) -> io::Result<Table> {
        let sums = self.0.read(round, labels)?;
        let mut table = Table::with_capacity(&SPEC, round.time_ns, sums.len());
        for (subject, (family, result), times) in sums {
            let mut values = vec![times.count() as i64];
            latency::push(&mut values, &times);
            table.push(subject, [family, result].map(Arc::from), &values);
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

fn connect() -> io::Result<()> {
    let listener = TcpListener::bind(("127.0.0.1", 0))?;
    TcpStream::connect(listener.local_addr()?).map(drop)
}
