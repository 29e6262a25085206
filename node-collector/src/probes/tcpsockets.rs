//! What the TCP sockets of a network namespace hold and wait for, both address families, from the same dump as
//! `tcpsummary`.

use std::sync::Arc;

use super::{Probe, Registration};
use crate::catalogue::{ColumnSpec, ProbeSpec};
use crate::event::Subject;
use crate::handles::{Netlink, Readings};
use crate::procfs::ReadError;
use crate::table::{ABSENT, Table};

pub(super) const PROBE: Registration = Registration {
    spec: &SPEC,
    files: &[],
    netlink: &[Netlink::SockDiag],
    node_only: false,
    make: || Box::new(TcpSockets),
};

static SPEC: ProbeSpec = ProbeSpec {
    name: "tcpsockets",
    help: "Queues, backlogs, memory and round-trip times of the TCP sockets that are there now, IPv4 and IPv6 together",
    source: "NETLINK_SOCK_DIAG, TCPDIAG_GETSOCK with INET_DIAG_INFO and INET_DIAG_SKMEMINFO (Linux net/ipv4/tcp_diag.c, tcp_diag_get_info; net/ipv4/tcp.c, tcp_get_info; net/core/sock.c, sk_get_meminfo)",
    labels: &[],
    columns: COLUMNS,
    event_types: &[],
};

const fn gauge(name: &'static str, unit: &'static str, help: &'static str) -> ColumnSpec {
    ColumnSpec::gauge(name, unit, help)
}

/// From microseconds.
const fn rtt(name: &'static str, help: &'static str) -> ColumnSpec {
    ColumnSpec::gauge(name, "seconds", help).scaled(1e-6)
}

const COLUMNS: &[ColumnSpec] = &[
    gauge(
        "receive_queue_bytes",
        "bytes",
        "Bytes received that no process has read yet, without listening sockets; as in ss the end of a stream that is not read yet counts as one",
    ),
    gauge(
        "send_queue_bytes",
        "bytes",
        "Bytes written that the other side has not acknowledged yet, without listening sockets; as in ss the beginning and the end of a stream count as one each",
    ),
    gauge(
        "accept_queue",
        "connections",
        "Connections that wait for accept(), of all listening sockets",
    ),
    gauge(
        "accept_queue_limit",
        "connections",
        "How many may wait, the sum over all listening sockets",
    ),
    gauge(
        "accept_queue_fullest",
        "connections",
        "Connections that wait at the listening socket that is fullest for its limit",
    ),
    gauge(
        "accept_queue_fullest_limit",
        "connections",
        "The limit of that socket: the smaller of listen() and net.core.somaxconn; one more than it fits",
    ),
    gauge(
        "accept_queues_full",
        "sockets",
        "Listening sockets that take no more connections",
    ),
    gauge(
        "receive_memory_bytes",
        "bytes",
        "Memory of received packets that wait in sockets, the kernel's own part included",
    ),
    gauge(
        "send_memory_bytes",
        "bytes",
        "Memory of packets handed down to qdisc and device and not yet freed",
    ),
    gauge(
        "write_queue_memory_bytes",
        "bytes",
        "Memory of packets not yet acknowledged",
    ),
    gauge(
        "forward_memory_bytes",
        "bytes",
        "Memory reserved by sockets and not used",
    ),
    gauge(
        "backlog_memory_bytes",
        "bytes",
        "Memory of packets that wait because a process holds the socket",
    ),
    gauge(
        "dropped_packets",
        "packets",
        "Packets that the sockets there now dropped since they began; falls when such a socket ends (Linux 4.7)",
    ),
    gauge(
        "unacknowledged_segments",
        "segments",
        "Segments sent and not acknowledged yet",
    ),
    gauge("lost_segments", "segments", "Segments in flight that are thought lost"),
    gauge(
        "retransmits_in_flight",
        "segments",
        "Segments sent again and not acknowledged yet",
    ),
    gauge(
        "backing_off",
        "sockets",
        "Sockets whose last retransmission time-out brought no answer yet",
    ),
    gauge(
        "zero_send_window",
        "sockets",
        "Established connections whose other side takes no more data now (Linux 5.4)",
    ),
    gauge(
        "zero_receive_window",
        "sockets",
        "Established connections whose other side was told to send no more now (Linux 6.2)",
    ),
    gauge(
        "rtt_connections",
        "connections",
        "Established connections with a round-trip time, of which the rtt columns tell",
    ),
    rtt(
        "rtt_p50_seconds",
        "Smoothed round-trip time that half of the established connections do not exceed now (nearest rank)",
    ),
    rtt(
        "rtt_p90_seconds",
        "Smoothed round-trip time that 90 % of the established connections do not exceed now",
    ),
    rtt(
        "rtt_p99_seconds",
        "Smoothed round-trip time that 99 % of the established connections do not exceed now",
    ),
    rtt(
        "rtt_max_seconds",
        "Highest smoothed round-trip time of an established connection now; these four are a snapshot, not to be added up or averaged",
    ),
];

#[derive(Debug)]
struct TcpSockets;

impl Probe for TcpSockets {
    fn read(
        &mut self,
        readings: &mut Readings<'_>,
        subject: &Subject,
        table: &mut Table,
    ) -> Result<(), Arc<ReadError>> {
        let Some(s) = readings.tcp()? else {
            return Ok(());
        };
        let [p50, p90, p99, max] = s.rtts.map_or([ABSENT; 4], |rtts| rtts.map(i64::from));
        let lacks = s.lacks;
        let unless = |lacking: bool, value: i64| if lacking { ABSENT } else { value };
        table.push(
            subject.clone(),
            [],
            &[
                s.receive_queue_bytes,
                s.send_queue_bytes,
                s.accept_queue,
                s.accept_queue_limit,
                s.fullest,
                s.fullest_limit,
                s.full_listeners,
                unless(lacks.memory, s.receive_memory_bytes),
                unless(lacks.memory, s.send_memory_bytes),
                unless(lacks.memory, s.write_queue_bytes),
                unless(lacks.memory, s.forward_memory_bytes),
                unless(lacks.memory, s.backlog_bytes),
                unless(lacks.drops, s.drops),
                unless(lacks.info, s.unacknowledged),
                unless(lacks.info, s.lost),
                unless(lacks.info, s.retransmits_in_flight),
                unless(lacks.info, s.backing_off),
                unless(lacks.send_window, s.zero_send_window),
                unless(lacks.receive_window, s.zero_receive_window),
                s.rtt_connections,
                p50,
                p90,
                p99,
                max,
            ],
        );
        Ok(())
    }
}
