//! TCP sockets of a network namespace by sock_diag: counted as they come, none is kept.
//!
//! The old request TCPDIAG_GETSOCK gives both address families in one walk; SOCK_DIAG_BY_FAMILY would need two. The
//! walk is what costs: the kernel goes through the whole hash table of the machine for each dump, whoever asks and
//! however few sockets it has (215 us for 262,144 buckets, measured on 6.18; that of the listeners alone 14 us). So it is
//! not asked for where nothing is there, or where nothing can have changed since the last one.

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
    /// snmp: InSegs, OutSegs, RetransSegs and OutRsts. `None` where there is no socket, so that nobody looks.
    pub segments: Option<[i64; 4]>,
}

/// Sums over the sockets of a namespace at one time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
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
    /// Established connections with a round-trip time.
    pub rtt_connections: i64,
    /// Smoothed round-trip times in microseconds that 50, 90 and 99 of a hundred connections do not exceed (nearest
    /// rank), and the highest.
    pub rtts: Option<[u32; 4]>,
    /// Local ports in use, ascending, each once.
    pub ports: Vec<u16>,
    /// Those that listening sockets have, ascending, one for each socket.
    listening: Vec<u16>,
    /// The most connections from one local address to one port of one other address: each needs a local port of its own.
    pub most_to_one_destination: i64,
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

/// What a walk collects and the sums are made of at its end. Stays from walk to walk.
#[derive(Debug)]
pub struct Scratch {
    rtts: Vec<u32>,
    /// A bit for each local port.
    ports: Box<[u64; 1024]>,
    destinations: HashMap<Destination, u32>,
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Destination {
    from: [u8; 16],
    to: [u8; 16],
    port: u16,
}

impl Default for Scratch {
    fn default() -> Self {
        Self {
            rtts: Vec::new(),
            ports: Box::new([0; 1024]),
            destinations: HashMap::new(),
        }
    }
}

const DESTINATIONS_KEPT: usize = 16 * 1024;

impl Scratch {
    fn clear(&mut self) {
        self.rtts.clear();
        self.ports.fill(0);
        self.destinations.clear();
        // One namespace of many connections is no reason to keep room for them with every other one.
        self.destinations.shrink_to(DESTINATIONS_KEPT);
    }

    fn finish(&mut self, sums: &mut TcpSockets) {
        let count = self.rtts.len();
        self.rtts.sort_unstable();
        let at = |percent: usize| self.rtts[(count * percent).div_ceil(100) - 1];
        sums.rtt_connections = count as i64;
        sums.rtts = (count > 0).then(|| [at(50), at(90), at(99), at(100)]);
        for (i, word) in self.ports.iter().enumerate().filter(|(_, word)| **word != 0) {
            let first = (i * 64) as u16;
            sums.ports
                .extend((0..64).filter(|bit| word & 1 << bit != 0).map(|bit| first + bit));
        }
        sums.listening.sort_unstable();
        sums.most_to_one_destination = self.destinations.values().copied().max().unwrap_or(0).into();
    }
}

impl TcpSockets {
    pub fn in_state(&self, state: u8) -> i64 {
        self.by_state.get(usize::from(state)).copied().unwrap_or(0)
    }

    /// Whether nothing is under way, so that without a segment nothing of it can change but the queues of listeners:
    /// what waits in a socket may be read or written at any time, and half-open connections end without a trace.
    fn is_still(&self) -> bool {
        let under_way = [
            self.receive_queue_bytes,
            self.send_queue_bytes,
            self.unacknowledged,
            self.in_state(TCP_NEW_SYN_RECV),
        ];
        under_way == [0; 4] && !self.lacks.info
    }

    fn take_listeners(&mut self, of: &Self) {
        self.accept_queue = of.accept_queue;
        self.accept_queue_limit = of.accept_queue_limit;
        self.fullest = of.fullest;
        self.fullest_limit = of.fullest_limit;
        self.full_listeners = of.full_listeners;
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
    fn info(&mut self, state: u8, value: &[u8], rtts: &mut Vec<u32>) {
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
        rtts.extend(word(value, 68).filter(|rtt| *rtt != 0));
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

/// A walk under way.
struct Walk<'a> {
    sums: &'a mut TcpSockets,
    scratch: &'a mut Scratch,
}

impl Sink for Walk<'_> {
    fn begin(&mut self) {
        self.scratch.clear();
        *self.sums = TcpSockets::default();
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
        let Self { sums, scratch } = self;
        let Some(count) = sums.by_state.get_mut(usize::from(state)).filter(|_| state != 0) else {
            return Err(Malformed("a TCP state that nobody knows"));
        };
        *count += 1;
        let id: &[u8] = socket.socket_id();
        let local = u16::from_be_bytes([id[0], id[1]]);
        scratch.ports[usize::from(local >> 6)] |= 1 << (local & 63);
        if state == TCP_LISTEN {
            sums.listener(socket.recv_queue(), socket.send_queue());
            sums.listening.push(local);
        } else {
            sums.receive_queue_bytes += i64::from(socket.recv_queue());
            sums.send_queue_bytes += i64::from(socket.send_queue());
            // A connection that came in has a far port of its own, so it stays alone in its place.
            *scratch
                .destinations
                .entry(destination(socket.family(), id))
                .or_default() += 1;
        }
        let has_no_more = info.is_none() && matches!(state, TCP_TIME_WAIT | TCP_FIN_WAIT2 | TCP_NEW_SYN_RECV);
        if !has_no_more {
            sums.memory(memory.unwrap_or_default());
            if state != TCP_LISTEN {
                sums.info(state, info.unwrap_or_default(), &mut scratch.rtts);
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

/// A namespace as the last walk found it, where nothing was under way.
#[derive(Debug, Default)]
pub struct Memory(Option<Box<(Known, TcpSockets)>>);

/// Reads the sockets of the namespace into `sums`. `Ok(false)`: this kernel does not list them.
///
/// `known` saves what it can. Without a socket in use nothing is asked. Where nothing was under way at the last walk and
/// since then no socket came or went and no segment came in or went out, all is as it was but the queues of listeners:
/// these alone are listed then. (A process that writes before its first segment goes out shows one round later.)
pub fn read(
    transport: &dyn Transport,
    known: Option<Known>,
    memory: &mut Memory,
    (buffer, scratch): (&mut [u8], &mut Scratch),
    sums: &mut TcpSockets,
) -> Result<bool, DumpError> {
    if let Some(Known {
        in_use: 0,
        time_wait: 0,
        ..
    }) = known
    {
        *sums = TcpSockets::default();
        memory.0 = None;
        return Ok(true);
    }
    if let Some((before, last)) = memory.0.as_deref()
        && Some(*before) == known
    {
        let listens = !last.listening.is_empty();
        if listens && !list(transport, LISTENERS, buffer, scratch, sums)? {
            return Ok(false);
        }
        if !listens || sums.listening == last.listening {
            let now = std::mem::replace(sums, last.clone());
            if listens {
                sums.take_listeners(&now);
            }
            return Ok(true);
        }
    }
    memory.0 = None;
    let there = list(transport, ALL, buffer, scratch, sums)?;
    if let Some(known) = known.filter(|known| known.segments.is_some() && there && sums.is_still()) {
        memory.0 = Some(Box::new((known, sums.clone())));
    }
    Ok(there)
}

fn list(
    transport: &dyn Transport,
    states: u32,
    buffer: &mut [u8],
    scratch: &mut Scratch,
    sums: &mut TcpSockets,
) -> Result<bool, DumpError> {
    let question = Question {
        kind: TCPDIAG_GETSOCK,
        payload: &payload(states),
        // The answers have the type of the request (`inet_diag_dump_compat`).
        answer: TCPDIAG_GETSOCK,
    };
    match dump(transport, question, buffer, &mut Walk { sums, scratch }) {
        Ok(()) => {
            scratch.finish(sums);
            Ok(true)
        }
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
