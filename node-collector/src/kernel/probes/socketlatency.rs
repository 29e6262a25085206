//! How long data waits in sockets: until an application reads it, and from a send call to the device.
//!
//! A read is as old as the oldest byte it takes (tracepoints sock:sk_data_ready and tcp:tcp_rcv_space_adjust); time in
//! which there was nothing to read does not count. Of UDP it is a lower bound (sock:sock_recv_length), and there is none
//! below Linux 6.3. A send that could go out whole took no time; else it lasts until its last byte is given to a device
//! (sock:sock_send_length and net:net_dev_queue). A datagram of UDP is there when the send call comes back, unless the
//! address of its next hop has to be found first (neigh:neigh_event_send_done, from Linux 6.3 on): then it lasts until that
//! is known, and is not counted if it is dropped for want of it. Not in here: MPTCP, what is sent without a send call
//! (sendfile), and datagrams that wait for user space (NFQUEUE) or for keys of IPsec.

mod decode;
mod signals;
#[cfg(test)]
mod tests;
mod unread;

use std::io;
use std::sync::Arc;

use sonde_ebpf_common::latency::Latency;
use sonde_ebpf_common::lost;
use sonde_ebpf_common::record::kind;
use sonde_ebpf_common::socklat::{Key, TCP, UDP, operation};

use crate::catalogue::{ColumnSpec, EventTypeSpec, LabelSpec, ProbeSpec};
use crate::event::{NetnsKey, Observation};
use crate::kernel::counted::{self, Counted};
use crate::kernel::latency::{self, LATENCY_BOUNDS};
use crate::kernel::probe::{
    Decoders, Defaults, Host, KernelProbe, Opened, Reader, Round, Setup, Standing, THRESHOLD_100_MS, latency_keys,
};
use crate::kernel::symbols::Symbols;
use crate::table::Table;

const SPEC: ProbeSpec = ProbeSpec {
    name: "socketlatency",
    help: "Time that data waits in sockets to be read, and to be sent",
    source: "eBPF on tracepoints sock:sk_data_ready, sock_recv_length and sock_send_length (Linux 6.3; before it tcp:tcp_probe, \
             and the function tcp_sendmsg_locked, of TCP alone), tcp:tcp_rcv_space_adjust, net:net_dev_queue, \
             neigh:neigh_event_send_done",
    labels: &[
        LabelSpec {
            name: "operation",
            help: "read: from readable to read; send: from the send call to the device; datagrams wait there for the address of their next hop alone, and those that are dropped for want of it are not counted",
        },
        LabelSpec {
            name: "protocol",
            help: "tcp, or udp from Linux 6.3 on (its reads are a lower bound)",
        },
    ],
    columns: &[
        ColumnSpec::histogram(
            "latency_seconds",
            "seconds",
            "Time that the oldest byte of a read waited, or the last byte of a send",
            LATENCY_BOUNDS,
        )
        .scaled(1e-9),
        ColumnSpec::counter("over_1ms", "", "Reads or sends of data that had waited more than 1 ms"),
        ColumnSpec::counter(
            "over_10ms",
            "",
            "Reads or sends of data that had waited more than 10 ms",
        ),
        ColumnSpec::counter(
            "over_100ms",
            "",
            "Reads or sends of data that had waited more than 100 ms",
        ),
    ],
    event_types: &[
        EventTypeSpec {
            name: READSLOW,
            help: "Data waited longer than the threshold (100 ms) in a socket before it was read, or waits still (unread)",
        },
        EventTypeSpec {
            name: SENDSLOW,
            help: "Data waited longer than the threshold (100 ms) in a socket before it was sent",
        },
    ],
};

const READSLOW: &str = "SOCKETLAT_READSLOW";
const SENDSLOW: &str = "SOCKETLAT_SENDSLOW";

pub(super) const PROBE: KernelProbe = KernelProbe {
    spec: &SPEC,
    node_only: false,
    // Five programs run for each message that is sent and read: some 600 ns, where a small one takes 5,000.
    defaults: Defaults {
        enabled: false,
        threshold: THRESHOLD_100_MS,
        ..Defaults::ON
    },
    signals: &[&signals::READ, &signals::SEND],
    maps: &[
        ("SOCKETLATENCY_TIMES", latency_keys),
        // Sockets that data waits in, or did: 4 MB.
        ("SOCKETLATENCY_READS", |_| 16_384),
        ("SOCKETLATENCY_UDP", |_| 4096),
        ("SOCKETLATENCY_SENDS", |_| 4096),
        ("SOCKETLATENCY_CALLS", |_| 2048),
        ("SOCKETLATENCY_HELD", |_| 1024),
        ("SOCKETLATENCY_HOLDING", |_| 1024),
    ],
    uncounted: Some((
        lost::SOCKETLATENCY,
        "reads and sends whose time is not known: a map was full, or the data went out unseen",
    )),
    prepare,
};

fn prepare(host: &Host<'_>) -> Setup {
    let symbols = Arc::clone(&host.symbols);
    let live = Arc::clone(&host.live);
    Setup::new(move |object| {
        let reader = Waits {
            times: Counted::new(object.map("SOCKETLATENCY_TIMES")?),
            unread: unread::Unread::new(object.map("SOCKETLATENCY_READS")?, live),
            datagrams: unread::Datagrams::new(object.map("SOCKETLATENCY_UDP")?),
        };
        Ok(Opened {
            reader: Box::new(reader),
            decoders: decoders(&symbols),
        })
    })
}

pub(super) fn decoders(symbols: &Arc<Symbols>) -> Decoders {
    let symbols = Arc::clone(symbols);
    vec![(kind::SOCKET_LATENCY, Box::new(decode::Slow { symbols }))]
}

impl counted::Key for Key {
    fn netns(&self) -> NetnsKey {
        NetnsKey {
            inode: self.netns,
            cookie: self.cookie,
        }
    }
}

struct Waits {
    times: Counted<Key, Latency>,
    unread: unread::Unread,
    datagrams: unread::Datagrams,
}

fn labels(key: &Key) -> (&'static str, &'static str) {
    let operation = match key.operation {
        operation::READ => "read",
        operation::SEND => "send",
        _ => "other",
    };
    let protocol = match key.protocol {
        TCP => "tcp",
        UDP => "udp",
        _ => "other",
    };
    (operation, protocol)
}

impl Reader for Waits {
    fn read(&mut self, round: &Round<'_>) -> io::Result<Table> {
        self.datagrams.forget()?;
        let sums = self.times.read(round, labels)?;
        let mut table = Table::with_capacity(&SPEC, round.time_ns, sums.len());
        for (subject, (operation, protocol), times) in sums {
            let mut values = Vec::with_capacity(SPEC.columns.len() + LATENCY_BOUNDS.len() + 1);
            latency::push(&mut values, &times);
            table.push(subject, [operation, protocol].map(Arc::from), &values);
        }
        Ok(table)
    }

    fn observe(&mut self) -> io::Result<Vec<(usize, Observation)>> {
        self.unread.look()
    }

    fn seen(&mut self) -> io::Result<u64> {
        self.times.seen()
    }

    fn standing(&self) -> Standing {
        self.times.standing()
    }
}
