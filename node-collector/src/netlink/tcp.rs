//! TCP sockets of a network namespace by sock_diag: counted as they come, none is kept.
//!
//! The old request TCPDIAG_GETSOCK gives both address families in one walk; SOCK_DIAG_BY_FAMILY would need two. The
//! walk is what costs: the kernel goes through the whole hash table of the machine for each dump, whoever asks and
//! however few sockets it has (215 us for 262,144 buckets, measured on 6.18), so it is best not asked for at all where
//! nothing can be there.

use std::collections::HashMap;

use netlink_packet_sock_diag::constants::{
    AF_INET, AF_UNSPEC, INET_DIAG_INFO, INET_DIAG_SKMEMINFO, TCP_CLOSE, TCP_CLOSE_WAIT, TCP_CLOSING, TCP_ESTABLISHED,
    TCP_FIN_WAIT1, TCP_FIN_WAIT2, TCP_LAST_ACK, TCP_LISTEN, TCP_SYN_RECV, TCP_SYN_SENT, TCP_TIME_WAIT,
};
use netlink_packet_sock_diag::inet::{InetResponseBuffer, RESPONSE_LEN};

use super::dump::{DumpError, Malformed, Question, Sink, dump, each_attribute};
use super::socket::Transport;

/// linux/inet_diag.h; `struct inet_diag_req` follows.
const TCPDIAG_GETSOCK: u16 = 18;
/// linux/tcp_states.h: a half-open connection of a listening socket. On the wire it is TCP_SYN_RECV without
/// INET_DIAG_INFO (`inet_req_diag_fill`).
const TCP_NEW_SYN_RECV: u8 = 12;
/// All states. Not bit 13, sockets that are bound and no more (6.8): sockstat does not count them either.
const ALL: u32 = 0x1fff;
const LISTENERS: u32 = 1 << TCP_LISTEN;

/// The states, as rows of the metric have them.
pub const STATES: [(u8, &str); 12] = [
    (TCP_ESTABLISHED, "established"),
    (TCP_SYN_SENT, "syn_sent"),
    (TCP_SYN_RECV, "syn_recv"),
    (TCP_FIN_WAIT1, "fin_wait1"),
    (TCP_FIN_WAIT2, "fin_wait2"),
    (TCP_TIME_WAIT, "time_wait"),
    (TCP_CLOSE, "close"),
    (TCP_CLOSE_WAIT, "close_wait"),
    (TCP_LAST_ACK, "last_ack"),
    (TCP_LISTEN, "listen"),
    (TCP_CLOSING, "closing"),
    (TCP_NEW_SYN_RECV, "new_syn_recv"),
];

/// What a namespace says of its sockets without a walk, read before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// sockstat and sockstat6, `TCP: inuse`: in any state but TIME_WAIT and half-open.
    pub in_use: i64,
    /// sockstat, `tw`: both families, FIN_WAIT2 without a process included.
    pub time_wait: i64,
    /// snmp, `InSegs`.
    pub received_segments: i64,
}

/// Sums over the sockets of a namespace at one time.
#[derive(Debug, Default)]
pub struct TcpSockets {
    by_state: [i64; 13],
    /// Unread and unacknowledged bytes, listeners excluded.
    pub receive_queue_bytes: i64,
    pub send_queue_bytes: i64,
    /// Connections that wait for accept().
    pub accept_queue: i64,
    pub accept_queue_limit: i64,
    /// Of the listener that is fullest for its limit.
    pub fullest: i64,
    pub fullest_limit: i64,
    /// Listeners that take no more.
    pub full_listeners: i64,
    pub receive_memory_bytes: i64,
    pub send_memory_bytes: i64,
    pub forward_memory_bytes: i64,
    pub write_queue_bytes: i64,
    pub backlog_bytes: i64,
    /// Of the sockets that are there; falls when one goes.
    pub drops: i64,
    /// What a socket did not tell, so that a sum without it would be too low.
    pub lacks: Lacks,
    /// Segments.
    pub unacknowledged: i64,
    pub retransmits_in_flight: i64,
    pub lost: i64,
    /// Sockets that wait after a retransmission time-out.
    pub backing_off: i64,
    pub zero_send_window: i64,
    pub zero_receive_window: i64,
    /// Smoothed round-trip times of established connections, microseconds, in no order.
    rtts: Vec<u32>,
    pub ports: Ports,
}

/// Of full sockets: those of TIME_WAIT and half-open connections have none of these.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lacks {
    pub memory: bool,
    /// Before 4.7.
    pub drops: bool,
    pub info: bool,
    /// The window that the other side gives, before 5.4.
    pub send_window: bool,
    /// The window that this side gives, before 6.2.
    pub receive_window: bool,
}

/// Local ports that sockets hold.
#[derive(Debug)]
pub struct Ports {
    used: Box<[u64; 1024]>,
    /// Connections by their local address and where they go: each needs a local port of its own.
    to: HashMap<Destination, u32>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Destination {
    from: [u8; 16],
    to: [u8; 16],
    port: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            used: Box::new([0; 1024]),
            to: HashMap::new(),
        }
    }
}

impl Ports {
    fn clear(&mut self) {
        self.used.fill(0);
        self.to.clear();
    }

    fn add(&mut self, port: u16) {
        self.used[usize::from(port >> 6)] |= 1 << (port & 63);
    }

    /// How many of these ports are in use, each counted once.
    pub fn in_use(&self, ports: impl Iterator<Item = u16>) -> i64 {
        ports
            .filter(|port| self.used[usize::from(port >> 6)] & 1 << (port & 63) != 0)
            .count() as i64
    }

    /// The most connections from one local address to one port of one other address.
    pub fn most_to_one_destination(&self) -> i64 {
        self.to.values().copied().max().unwrap_or(0).into()
    }
}

impl TcpSockets {
    pub fn in_state(&self, state: u8) -> i64 {
        self.by_state.get(usize::from(state)).copied().unwrap_or(0)
    }

    fn others_than_listeners(&self) -> i64 {
        self.by_state.iter().sum::<i64>() - self.in_state(TCP_LISTEN)
    }

    /// Round-trip times of established connections: how many, and in microseconds the values that 50, 90 and 99 of a
    /// hundred do not exceed (nearest rank), and the highest. `None` without one.
    pub fn rtt(&mut self) -> (usize, Option<[u32; 4]>) {
        let count = self.rtts.len();
        if count == 0 {
            return (0, None);
        }
        self.rtts.sort_unstable();
        let at = |percent: usize| self.rtts[(count * percent).div_ceil(100) - 1];
        (count, Some([at(50), at(90), at(99), at(100)]))
    }

    fn listener(&mut self, waiting: u32, limit: u32) {
        let (waiting, limit) = (i64::from(waiting), i64::from(limit));
        self.accept_queue += waiting;
        self.accept_queue_limit += limit;
        // sk_acceptq_is_full: one more than the limit fits.
        self.full_listeners += i64::from(waiting > limit);
        let is_first = self.by_state[usize::from(TCP_LISTEN)] == 1;
        if is_first || waiting * self.fullest_limit.max(1) > self.fullest * limit.max(1) {
            (self.fullest, self.fullest_limit) = (waiting, limit);
        }
    }

    /// `sk_get_meminfo`.
    fn memory(&mut self, value: &[u8]) {
        let Some([receive, _, send, _, forward, queued, _, backlog]) = words::<8>(value) else {
            self.lacks.memory = true;
            self.lacks.drops = true;
            return;
        };
        self.receive_memory_bytes += receive;
        self.send_memory_bytes += send;
        self.forward_memory_bytes += forward;
        self.write_queue_bytes += queued;
        self.backlog_bytes += backlog;
        match word(value, 32) {
            Some(drops) => self.drops += i64::from(drops),
            None => self.lacks.drops = true,
        }
    }

    /// `tcp_get_info`: grows at its end from kernel to kernel, so what is not there is not known.
    fn info(&mut self, state: u8, value: &[u8]) {
        let at = |place| word(value, place).map(i64::from);
        if let (Some(unacked), Some(lost), Some(retrans)) = (at(24), at(32), at(36)) {
            self.unacknowledged += unacked;
            self.lost += lost;
            self.retransmits_in_flight += retrans;
            // tcpi_retransmits: time-outs in a row.
            self.backing_off += i64::from(value[2] != 0);
        } else {
            self.lacks.info = true;
        }
        if state != TCP_ESTABLISHED {
            return;
        }
        self.rtts.extend(word(value, 68).filter(|rtt| *rtt != 0));
        match at(228) {
            Some(window) => self.zero_send_window += i64::from(window == 0),
            None => self.lacks.send_window = true,
        }
        match at(232) {
            Some(window) => self.zero_receive_window += i64::from(window == 0),
            None => self.lacks.receive_window = true,
        }
    }
}

fn word(value: &[u8], place: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(place..place + 4)?.try_into().ok()?))
}

fn words<const N: usize>(value: &[u8]) -> Option<[i64; N]> {
    let mut all = [0; N];
    for (i, one) in all.iter_mut().enumerate() {
        *one = i64::from(word(value, i * 4)?);
    }
    Some(all)
}

impl Sink for TcpSockets {
    fn begin(&mut self) {
        let mut rtts = std::mem::take(&mut self.rtts);
        let mut ports = std::mem::take(&mut self.ports);
        rtts.clear();
        ports.clear();
        *self = Self {
            rtts,
            ports,
            ..Self::default()
        };
    }

    fn message(&mut self, payload: &[u8]) -> Result<(), Malformed> {
        if payload.len() < RESPONSE_LEN {
            return Err(Malformed("shorter than inet_diag_msg"));
        }
        let socket = InetResponseBuffer::new(payload);
        let (mut info, mut memory) = (None, None);
        each_attribute(&payload[RESPONSE_LEN..], |kind, value| match kind {
            INET_DIAG_INFO => info = Some(value),
            INET_DIAG_SKMEMINFO => memory = Some(value),
            _ => {}
        })?;
        let state = match socket.state() {
            TCP_SYN_RECV if info.is_none() => TCP_NEW_SYN_RECV,
            state => state,
        };
        let Some(count) = self.by_state.get_mut(usize::from(state)).filter(|_| state != 0) else {
            return Err(Malformed("a TCP state that nobody knows"));
        };
        *count += 1;
        let id: &[u8] = socket.socket_id();
        let local = u16::from_be_bytes([id[0], id[1]]);
        self.ports.add(local);
        if state == TCP_LISTEN {
            self.listener(socket.recv_queue(), socket.send_queue());
        } else {
            self.receive_queue_bytes += i64::from(socket.recv_queue());
            self.send_queue_bytes += i64::from(socket.send_queue());
            // The listening port of a connection that came in is no port taken for it; its far port is its own, so it
            // stays alone in its place.
            *self.ports.to.entry(destination(socket.family(), id)).or_default() += 1;
        }
        let has_no_more = info.is_none() && matches!(state, TCP_TIME_WAIT | TCP_FIN_WAIT2 | TCP_NEW_SYN_RECV);
        if !has_no_more {
            self.memory(memory.unwrap_or_default());
            if state != TCP_LISTEN {
                self.info(state, info.unwrap_or_default());
            }
        }
        Ok(())
    }
}

/// From `struct inet_diag_sockid`: ports of two bytes each, addresses of sixteen.
fn destination(family: u8, id: &[u8]) -> Destination {
    let address = |at: usize| {
        let mut all = [0; 16];
        // The kernel leaves the rest of an IPv4 address as zeros; not relied on.
        let len = if family == AF_INET { 4 } else { 16 };
        all[..len].copy_from_slice(&id[at..at + len]);
        all
    };
    Destination {
        from: address(4),
        to: address(20),
        port: u16::from_be_bytes([id[2], id[3]]),
    }
}

/// What was seen of a namespace the last time all of it was walked.
#[derive(Debug, Default)]
pub struct Memory {
    /// InSegs before a walk that found nothing but listeners.
    quiet_at: Option<i64>,
}

/// Reads the sockets of the namespace into `sockets`. `Ok(false)`: this kernel does not list them.
///
/// `known` saves what it can: without a socket in use nothing is asked. Where all in use are listeners, no half-open
/// connection can be there either unless a segment came in since the last walk, which found none: then the listeners
/// alone are listed, from a table of their own.
pub fn read(
    transport: &dyn Transport,
    known: Option<Known>,
    memory: &mut Memory,
    buffer: &mut [u8],
    sockets: &mut TcpSockets,
) -> Result<bool, DumpError> {
    if let Some(Known {
        in_use: 0,
        time_wait: 0,
        ..
    }) = known
    {
        sockets.begin();
        return Ok(true);
    }
    if let Some(known) = known
        && known.time_wait == 0
        && memory.quiet_at == Some(known.received_segments)
    {
        if !list(transport, LISTENERS, buffer, sockets)? {
            return Ok(false);
        }
        if sockets.in_state(TCP_LISTEN) == known.in_use {
            return Ok(true);
        }
    }
    let there = list(transport, ALL, buffer, sockets)?;
    memory.quiet_at = known
        .filter(|_| there && sockets.others_than_listeners() == 0)
        .map(|known| known.received_segments);
    Ok(there)
}

fn list(
    transport: &dyn Transport,
    states: u32,
    buffer: &mut [u8],
    sockets: &mut TcpSockets,
) -> Result<bool, DumpError> {
    let question = Question {
        kind: TCPDIAG_GETSOCK,
        payload: &payload(states),
        // The answers have the type of the request (`inet_diag_dump_compat`).
        answer: TCPDIAG_GETSOCK,
    };
    match dump(transport, question, buffer, sockets) {
        Ok(()) => Ok(true),
        Err(error) if error.is_absent() => Ok(false),
        Err(error) => Err(error),
    }
}

/// `struct inet_diag_req`.
fn payload(states: u32) -> [u8; 60] {
    let extension = |attribute: u16| 1 << (attribute - 1);
    let mut all = [0; 60];
    all[0] = AF_UNSPEC;
    all[3] = extension(INET_DIAG_INFO) | extension(INET_DIAG_SKMEMINFO);
    all[52..56].copy_from_slice(&states.to_ne_bytes());
    all
}

#[cfg(test)]
mod tests;
